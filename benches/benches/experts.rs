//! Is the time model of experts right, and does a plan by loss and time beat one scheme for all?
//!
//! `cargo bench --workspace --bench experts -- --table` measures a profile as `leanbits profile` does and prints two
//! tables: layers of one scheme, their time by the profile and measured; and plans of least `L^r · T^(1−r)` beside the uniform
//! ones that lose no less.

use leanbits::{ProfileOptions, Silent, measure_profile};
use leanbits_benches::weights;
use moe_quant::{
    Activation, AllocateConfig, Block, BlockLinear, Budget, Dispatch, ExpertWeights, LayerTable, MixedExperts,
    MoeLayer, Profile, Scheme, Sensitivity, allocate,
};
use quant_core::{PackedTensor, Shaped};
use rayon::prelude::*;
use std::time::Instant;

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("Layers of one scheme, {} threads\n", rayon::current_num_threads());
    println!("| experts | a token | scheme | tokens | predicted, ms | measured, ms | predicted / measured |");
    println!("|---|---:|---|---:|---:|---:|---:|");
    times(&Setting { experts: 64, top_k: 8, widths: [2048, 1408] }, &[1, 8, 64, 512]);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    one.install(|| times(&Setting { experts: 16, top_k: 2, widths: [192, 64] }, &[8, 64, 512, 4096]));
    println!("\nThe experts of 192 × 64 run on one thread.\n");
    plans(&Setting { experts: 32, top_k: 4, widths: [2048, 1408] }, 256);
}

struct Setting {
    experts: usize,
    top_k: usize,
    /// Hidden and inner.
    widths: [usize; 2],
}

fn schemes(names: &[&str]) -> Vec<Scheme> {
    names.iter().map(|name| name.parse().expect("the table names schemes that exist")).collect()
}

impl Setting {
    fn profile(&self, schemes: &[Scheme]) -> Profile {
        let [hidden, inner] = self.widths;
        let shapes = vec![[inner, hidden], [hidden, inner]];
        let options = ProfileOptions {
            weights: 3 * self.experts,
            seconds: 0.05,
            ..ProfileOptions::new(schemes.to_vec(), shapes)
        };
        measure_profile(&options, &mut Silent).expect("schemes hold the shapes")
    }

    /// Expert `e` is chosen with a weight that falls as `1/(e + 4)`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
    fn dispatch(&self, tokens: usize) -> Dispatch {
        let weight = |expert: usize| 1.0 / (expert + 4) as f64;
        let total: f64 = (0..self.experts).map(weight).sum();
        let all = tokens * self.top_k;
        let mut ids = Vec::with_capacity(all);
        for expert in 0..self.experts {
            let share = (all as f64 * weight(expert) / total).ceil() as usize;
            let left = all - ids.len();
            ids.extend(vec![expert; share.min(tokens).min(left)]);
        }
        // Dealt out one to each token in turn, so that no token has an expert twice.
        let dealt: Vec<usize> =
            (0..all).map(|choice| ids[choice % self.top_k * tokens + choice / self.top_k]).collect();
        let gates: Vec<f32> = (0..all).map(|choice| 0.1 + (choice * 37 % 101) as f32 / 200.0).collect();
        Dispatch::new(self.experts, self.top_k, &dealt, &gates).expect("experts that exist")
    }

    fn layer(&self, weights: &[[Vec<f32>; 3]], scheme: impl Fn(usize, Block) -> Scheme + Sync) -> MixedExperts {
        let expert = |expert: usize| {
            Block::ALL.map(|block| {
                let scheme = scheme(expert, block);
                let values = &weights[expert % weights.len()][block.index()];
                let tensor = Shaped::new(values, &block.shape(self.widths)).expect("the shape fits").to_owned();
                let packed = PackedTensor::encode(scheme.weight, &tensor).expect("finite values");
                BlockLinear::arranged(scheme, &packed)
            })
        };
        let experts = (0..self.experts).into_par_iter().map(expert).collect();
        MixedExperts::new(experts, Activation::Silu).expect("blocks of one shape")
    }
}

/// The least milliseconds of several runs.
fn measured(layer: &MixedExperts, x: &[f32], dispatch: &Dispatch) -> f64 {
    let (mut best, started) = (f64::INFINITY, Instant::now());
    for run in 0.. {
        let start = Instant::now();
        std::hint::black_box(layer.forward(x, dispatch).expect("shapes fit"));
        best = best.min(start.elapsed().as_secs_f64());
        if run >= 4 && started.elapsed().as_secs_f64() > 0.1 {
            break;
        }
    }
    1e3 * best
}

fn predicted(profile: &Profile, setting: &Setting, rows: &[u64], scheme: impl Fn(usize, Block) -> Scheme) -> f64 {
    let mut seconds = profile.overhead(rows.iter().sum(), setting.widths);
    for (expert, &rows) in rows.iter().enumerate() {
        for block in Block::ALL {
            let shape = block.shape(setting.widths);
            seconds += profile.seconds(scheme(expert, block), 0, rows, shape).expect("a scheme that was measured");
        }
    }
    1e3 * seconds
}

fn times(setting: &Setting, batches: &[usize]) {
    let names = ["int2-g128-asym", "int4-g128-asym", "int8", "int4-g128/int8", "int8/int8"];
    let [hidden, inner] = setting.widths;
    let same = weights(hidden * inner);
    let expert = [[same.clone(), same.clone(), same]];
    for scheme in schemes(&names) {
        let profile = setting.profile(&[scheme]);
        let layer = setting.layer(&expert, |_, _| scheme);
        for &tokens in batches {
            let dispatch = setting.dispatch(tokens);
            let x = weights(tokens * hidden);
            let expected = predicted(&profile, setting, &dispatch.counts(), |_, _| scheme);
            let found = measured(&layer, &x, &dispatch);
            println!(
                "| {} of {hidden} × {inner} | {} | {scheme} | {tokens} | {expected:.3} | {found:.3} | {:.2} |",
                setting.experts,
                setting.top_k,
                expected / found
            );
        }
    }
}

/// Weights of experts of different sizes, with a few large columns in the down matrices of some.
fn experts(setting: &Setting) -> Vec<[Vec<f32>; 3]> {
    let [hidden, inner] = setting.widths;
    let expert = |expert: usize| {
        let size = 0.5 + (expert * 7 % 11) as f32 / 10.0;
        let mut blocks = [(); 3].map(|()| weights(hidden * inner));
        for block in &mut blocks {
            block.rotate_left(expert * 1009);
            block.iter_mut().for_each(|weight| *weight *= size);
        }
        if expert.is_multiple_of(3) {
            blocks[2].iter_mut().step_by(97).for_each(|weight| *weight *= 8.0);
        }
        blocks
    };
    (0..setting.experts).into_par_iter().map(expert).collect()
}

fn plans(setting: &Setting, tokens: usize) {
    let names = [
        "int4-g128-asym",
        "int8/int8",
        "int2-g128-asym",
        "int3-g128-asym",
        "int8",
        "int4-g128/int8",
        "int6-g128/int8",
        "int8-g128/int8",
    ];
    let schemes = schemes(&names);
    let [hidden, inner] = setting.widths;
    let weights_of = experts(setting);
    let x: Vec<f32> = weights(tokens * hidden).iter().map(|x| 50.0 * x).collect();
    let dispatch = setting.dispatch(tokens);
    let rows = dispatch.counts();
    let losses = {
        let blocks = weights_of.iter().map(|[gate, up, down]| ExpertWeights { gate, up, down });
        let layer = MoeLayer::new(blocks.collect(), setting.widths, Activation::Silu).expect("blocks of one shape");
        Sensitivity::measure(&layer, &x, &dispatch, &schemes).expect("schemes hold the shapes")
    };
    let profile = setting.profile(&schemes);
    let table = LayerTable::new(setting.widths, losses, rows.clone()).expect("rows of all experts");
    let loss = |choice: &dyn Fn(usize, Block) -> usize| -> f64 {
        let blocks = (0..setting.experts).flat_map(|expert| Block::ALL.map(|block| (expert, block)));
        blocks.map(|(expert, block)| table.losses().delta(expert, block, choice(expert, block))).sum()
    };
    let bytes = |scheme: Scheme| -> u64 {
        let of = |block: Block| scheme.bytes(block.shape(setting.widths)).expect("schemes hold the shapes");
        setting.experts as u64 * Block::ALL.map(of).iter().sum::<u64>()
    };
    let budget = schemes.iter().map(|scheme| bytes(*scheme)).max().unwrap_or(0);
    let plans: Vec<_> = (0..=40)
        .map(|step| {
            let config = AllocateConfig { r: f64::from(step) / 40.0, ..AllocateConfig::new(Budget::Bytes(budget)) };
            allocate(std::slice::from_ref(&table), Some(&profile), &config).expect("a budget for the largest")
        })
        .collect();
    println!(
        "Plans by loss and time: {} experts of {hidden} × {inner}, {} a token, {tokens} tokens, {} threads\n",
        setting.experts,
        setting.top_k,
        rayon::current_num_threads()
    );
    println!("| plan | ΣΔ | bits a weight | predicted, ms | measured, ms |");
    println!("|---|---:|---:|---:|---:|");
    let row = |name: &str, choice: &(dyn Fn(usize, Block) -> usize + Sync)| {
        let of = |expert, block| schemes[choice(expert, block)];
        let all = (0..setting.experts)
            .flat_map(|expert| Block::ALL.map(|block| of(expert, block).bits(block.shape(setting.widths))));
        let bits: f64 =
            all.map(|bits| bits.expect("schemes hold the shapes")).sum::<f64>() / (3 * setting.experts) as f64;
        let expected = predicted(&profile, setting, &rows, of);
        let found = measured(&setting.layer(&weights_of, of), &x, &dispatch);
        println!("| {name} | {:.1} | {bits:.2} | {expected:.3} | {found:.3} |", loss(&|e, b| choice(e, b)));
    };
    for uniform in [0, 1] {
        row(&format!("all {}", schemes[uniform]), &|_, _| uniform);
        let allowed = loss(&|_, _| uniform);
        let fits = plans.iter().filter(|plan| plan.loss <= allowed);
        match fits.min_by(|a, b| a.seconds.total_cmp(&b.seconds)) {
            Some(plan) => row("by loss and time, losing no more", &|e, b| plan.choices[0][e][b.index()]),
            None => println!("| by loss and time: none that loses no more | | | | |"),
        }
    }
}

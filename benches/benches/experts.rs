//! Is the time model of experts right, and does a plan by loss and time beat one scheme for all?
//!
//! `cargo bench --workspace --bench experts -- --table` measures a profile as `leanbits profile` does and prints two
//! tables: layers of one scheme, their time by the profile and measured; and plans of least `L^r · T^(1−r)` beside the uniform
//! ones that lose no less.

use leanbits::{ProfileOptions, Silent, measure_profile};
use leanbits_benches::weights;
use moe_quant::{
    Activation, AllocateConfig, Block, BlockLinear, Budget, Dispatch, ExpertWeights, LayerTable, MixedExperts,
    MoeLayer, Plan, Profile, Scheme, Scratch, Sensitivity, allocate,
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
    plans(&Setting { experts: 32, top_k: 4, widths: [2048, 1408] }, &[8, 256]);
}

/// Times that everything is measured.
const ROUNDS: usize = 3;
/// Seconds that anything is measured in a round, whether for the profile or for the layer: the least of more runs is less.
const SECONDS: f64 = 0.02;

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
    fn profile(&self, schemes: &[Scheme], passes: usize) -> Profile {
        let [hidden, inner] = self.widths;
        let shapes = vec![[inner, hidden], [hidden, inner]];
        let options = ProfileOptions {
            experts: self.experts,
            top_k: self.top_k,
            weights: 3 * self.experts,
            seconds: SECONDS,
            passes,
            ..ProfileOptions::new(schemes.to_vec(), shapes)
        };
        measure_profile(&options, &mut Silent).expect("schemes hold the shapes")
    }

    /// Expert `e + first` is chosen with a weight that falls as `1/(e + 4)`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
    fn dispatch(&self, tokens: usize, first: usize) -> Dispatch {
        let weight = |expert: usize| 1.0 / (expert + 4) as f64;
        let total: f64 = (0..self.experts).map(weight).sum();
        let all = tokens * self.top_k;
        let mut ids = Vec::with_capacity(all);
        for expert in 0..self.experts {
            let share = (all as f64 * weight(expert) / total).ceil() as usize;
            let left = all - ids.len();
            ids.extend(vec![(expert + first) % self.experts; share.min(tokens).min(left)]);
        }
        // Dealt out one to each token in turn, so that no token has an expert twice.
        let dealt: Vec<usize> =
            (0..all).map(|choice| ids[choice % self.top_k * tokens + choice / self.top_k]).collect();
        let gates: Vec<f32> = (0..all).map(|choice| 0.1 + (choice * 37 % 101) as f32 / 200.0).collect();
        Dispatch::new(self.experts, self.top_k, &dealt, &gates).expect("experts that exist")
    }

    fn encoded(&self, scheme: Scheme, block: Block, values: &[f32]) -> PackedTensor<'static> {
        let tensor = Shaped::new(values, &block.shape(self.widths)).expect("the shape fits");
        PackedTensor::encode(scheme.weight, &tensor).expect("finite values")
    }

    /// Experts of equal weights.
    fn uniform(&self, scheme: Scheme) -> MixedExperts {
        let values = weights(self.widths[0] * self.widths[1]);
        let [gate, up, down] =
            Block::ALL.map(|block| BlockLinear::copies(scheme, &self.encoded(scheme, block, &values), self.experts));
        let experts = gate.into_iter().zip(up).zip(down).map(|((gate, up), down)| [gate, up, down]);
        MixedExperts::new(experts.collect(), Activation::Silu).expect("blocks of one shape")
    }

    fn layer(&self, weights: &[[Vec<f32>; 3]], scheme: impl Fn(usize, Block) -> Scheme + Sync) -> MixedExperts {
        let expert = |expert: usize| {
            Block::ALL.map(|block| {
                let scheme = scheme(expert, block);
                BlockLinear::arranged(scheme, &self.encoded(scheme, block, &weights[expert][block.index()]))
            })
        };
        let experts = (0..self.experts).into_par_iter().map(expert).collect();
        MixedExperts::new(experts, Activation::Silu).expect("blocks of one shape")
    }
}

/// The least milliseconds of several runs. Batches take turns: where they have few rows, each finds the weights of other
/// experts in the caches, as in a model of many layers.
fn measured(layer: &MixedExperts, x: &[f32], dispatches: &[Dispatch]) -> f64 {
    let (mut best, started, mut scratch) = (f64::INFINITY, Instant::now(), Scratch::default());
    for (run, dispatch) in dispatches.iter().cycle().enumerate() {
        let start = Instant::now();
        std::hint::black_box(layer.forward_with(x, dispatch, &mut scratch).expect("shapes fit"));
        best = best.min(start.elapsed().as_secs_f64());
        if run >= 2 && started.elapsed().as_secs_f64() > SECONDS {
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
    let names = ["int2-g128-asym", "int4-g128-asym", "int4-g128/int8", "int8/int8"];
    let [hidden, inner] = setting.widths;
    let layers: Vec<_> = schemes(&names).into_iter().map(|scheme| (scheme, setting.uniform(scheme))).collect();
    let mut found = vec![(f64::INFINITY, f64::INFINITY); layers.len() * batches.len()];
    // A machine that is slow for a while is slow for the profile or for the layer: the least of rounds far apart counts.
    for _ in 0..ROUNDS {
        for ((scheme, layer), found) in layers.iter().zip(found.chunks_exact_mut(batches.len())) {
            let profile = setting.profile(&[*scheme], 1);
            for (&tokens, (expected, taken)) in batches.iter().zip(found) {
                let turns: Vec<Dispatch> =
                    (0..8).map(|turn| setting.dispatch(tokens, turn * setting.experts / 8)).collect();
                let x = weights(tokens * hidden);
                *expected = expected.min(predicted(&profile, setting, &turns[0].counts(), |_, _| *scheme));
                *taken = taken.min(measured(layer, &x, &turns));
            }
        }
    }
    for ((scheme, _), found) in layers.iter().zip(found.chunks_exact(batches.len())) {
        for (tokens, (expected, taken)) in batches.iter().zip(found) {
            println!(
                "| {} of {hidden} × {inner} | {} | `{scheme}` | {tokens} | {expected:.3} | {taken:.3} | {:.2} |",
                setting.experts,
                setting.top_k,
                expected / taken
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

fn plans(setting: &Setting, batches: &[usize]) {
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
    let weights_of = experts(setting);
    let inputs = |tokens: usize| weights(tokens * setting.widths[0]).iter().map(|x| 50.0 * x).collect::<Vec<f32>>();
    let losses = {
        let blocks = weights_of.iter().map(|[gate, up, down]| ExpertWeights { gate, up, down });
        let layer = MoeLayer::new(blocks.collect(), setting.widths, Activation::Silu).expect("blocks of one shape");
        let dispatch = setting.dispatch(CALIBRATION, 0);
        Sensitivity::measure(&layer, &inputs(CALIBRATION), &dispatch, &schemes).expect("schemes hold the shapes")
    };
    let profile = setting.profile(&schemes, ROUNDS);
    for &tokens in batches {
        let dispatch = setting.dispatch(tokens, 0);
        let table = LayerTable::new(setting.widths, losses.clone(), dispatch.counts()).expect("rows of all experts");
        let mut rows = chosen(setting, &table, &profile);
        let layers: Vec<MixedExperts> = rows
            .iter()
            .map(|row| setting.layer(&weights_of, |expert, block| schemes[row.choices[expert][block.index()]]))
            .collect();
        for _ in 0..ROUNDS {
            for (row, layer) in rows.iter_mut().zip(&layers) {
                row.measured = row.measured.min(measured(layer, &inputs(tokens), std::slice::from_ref(&dispatch)));
            }
        }
        println!(
            "Plans by loss and time: {} experts of {} × {}, {} a token, {tokens} tokens, {} threads\n",
            setting.experts,
            setting.widths[0],
            setting.widths[1],
            setting.top_k,
            rayon::current_num_threads()
        );
        println!("| plan | ΣΔ | bits a weight | predicted, ms | measured, ms |");
        println!("|---|---:|---:|---:|---:|");
        for Row { name, loss, bits, predicted, measured, .. } in rows {
            println!("| {name} | {loss:.1} | {bits:.2} | {predicted:.2} | {measured:.2} |");
        }
        println!();
    }
}

/// Tokens that losses are measured on.
const CALIBRATION: usize = 256;

/// Two uniform plans, each with the fastest plan by the profile that loses no more. The uniform plan is one of the choices.
fn chosen(setting: &Setting, table: &LayerTable, profile: &Profile) -> Vec<Row> {
    let schemes = table.losses().schemes();
    let bytes = |scheme: &Scheme| -> u64 {
        let of = |block: Block| scheme.bytes(block.shape(setting.widths)).expect("schemes hold the shapes");
        setting.experts as u64 * Block::ALL.map(of).iter().sum::<u64>()
    };
    let budget = schemes.iter().map(bytes).max().unwrap_or(0);
    let plans: Vec<Plan> = (0..=40)
        .map(|step| {
            let config = AllocateConfig { r: f64::from(step) / 40.0, ..AllocateConfig::new(Budget::Bytes(budget)) };
            allocate(std::slice::from_ref(table), Some(profile), &config).expect("a budget for the largest")
        })
        .collect();
    let mut rows = Vec::new();
    for uniform in [0, 1] {
        let same = vec![[uniform; 3]; setting.experts];
        let row = Row::new(format!("all `{}`", schemes[uniform]), same, table, profile, setting);
        let found = plans.iter().map(|plan| Row::new(String::new(), plan.choices[0].clone(), table, profile, setting));
        let fastest = found
            .filter(|plan| plan.loss <= row.loss)
            .fold(row.clone(), |best, plan| if plan.predicted < best.predicted { plan } else { best });
        rows.extend([row, Row { name: "the fastest that loses no more".into(), ..fastest }]);
    }
    rows
}

/// A plan and what is said of it.
#[derive(Clone)]
struct Row {
    name: String,
    choices: Vec<[usize; 3]>,
    loss: f64,
    bits: f64,
    predicted: f64,
    measured: f64,
}

impl Row {
    fn new(name: String, choices: Vec<[usize; 3]>, table: &LayerTable, profile: &Profile, setting: &Setting) -> Self {
        let schemes = table.losses().schemes();
        let blocks = || (0..setting.experts).flat_map(|expert| Block::ALL.map(|block| (expert, block)));
        let index = |expert: usize, block: Block| choices[expert][block.index()];
        let loss = blocks().map(|(e, block)| table.losses().delta(e, block, index(e, block))).sum();
        let bits = |(e, block): (usize, Block)| schemes[index(e, block)].bits(block.shape(setting.widths));
        let bits: f64 = blocks().map(bits).map(|bits| bits.expect("schemes hold the shapes")).sum();
        let predicted = predicted(profile, setting, table.rows(), |e, block| schemes[index(e, block)]);
        let bits = bits / (3 * setting.experts) as f64;
        Self { name, choices, loss, bits, predicted, measured: f64::INFINITY }
    }
}

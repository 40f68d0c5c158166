//! CSKV: floors, orderings, and what training reaches.

mod common;

use common::{Inputs, inputs, statistics};
use low_rank::{
    Asvd, CacheWidth, Calibration, Error, KvAdapter, LatentFormat, Method, Optimizer, PlainSvd, RowMaps, SvdLlm,
    Training, train,
};
use ndarray::{Array2, ArrayView2, Axis};
use quant_calib::Statistics;
use quant_core::Shaped;
use quant_linalg::{gaussian, matmul};

const IN: usize = 32;
const OUT: usize = 24;
const TOKENS: usize = 512;

struct Layer {
    weight: Array2<f32>,
    x: Array2<f64>,
    statistics: Statistics,
}

impl Layer {
    fn new(kind: Inputs) -> Self {
        let x = inputs(kind, TOKENS, IN, 5);
        Self { weight: common::weight(OUT, IN), statistics: statistics(&x), x: x.mapv(f64::from) }
    }

    fn weight(&self) -> Shaped<'_> {
        Shaped::new(self.weight.as_slice().unwrap(), &[OUT, IN]).unwrap()
    }

    fn adapter(&self, method: &impl Method, width: usize) -> KvAdapter {
        KvAdapter::new(method, &self.weight(), &Calibration::from(&self.statistics), width).unwrap()
    }

    fn loss(&self, adapter: &KvAdapter) -> f64 {
        adapter.loss(&self.weight(), self.x.view()).unwrap()
    }

    fn batches(&self) -> Vec<ArrayView2<'_, f64>> {
        self.x.axis_chunks_iter(Axis(0), 128).collect()
    }

    fn train(&self, adapter: &mut KvAdapter, config: &Training) -> low_rank::TrainLog {
        train(&self.weight(), &self.batches(), adapter, config).unwrap()
    }

    /// The mean squared error that no adapter of this width is below.
    fn floor(&self, width: usize) -> f64 {
        let keys = matmul(self.x.view(), self.weight.mapv(f64::from).t());
        let values = quant_linalg::svd(keys.view()).unwrap().s;
        values.iter().skip(width).map(|s| s * s).sum::<f64>() / keys.len() as f64
    }
}

fn random(width: usize, seed: u64) -> KvAdapter {
    KvAdapter::from_parts(gaussian(IN, width, seed), gaussian(width, OUT, seed + 1)).unwrap()
}

fn adam(learning_rate: f64, epochs: usize) -> Training {
    Training { optimizer: Optimizer::AdamW { learning_rate, weight_decay: 0.0 }, epochs, latents: None }
}

#[test]
fn latents_as_wide_as_keys_rebuild_them_and_the_bias_comes_last() {
    let layer = Layer::new(Inputs::Correlated);
    let bias: Vec<f32> = (0..OUT).map(|i| i as f32 * 100.0).collect();
    let keys = matmul(layer.x.view(), layer.weight.mapv(f64::from).t());
    let adapters = [
        layer.adapter(&PlainSvd::default(), OUT),
        layer.adapter(&Asvd::default(), OUT),
        layer.adapter(&SvdLlm::default(), OUT),
    ];
    for adapter in adapters {
        assert!(layer.loss(&adapter) < 1e-20);
        let adapter = adapter.with_bias(&bias).unwrap();
        assert!(layer.loss(&adapter) < 1e-20, "a bias is on both sides");
        let rebuilt = adapter.rebuild(adapter.latents(layer.x.view()).view());
        let apart = (rebuilt - &keys).rows().into_iter().fold(0.0_f64, |worst, row| {
            row.iter().zip(&bias).fold(worst, |worst, (x, b)| worst.max((x - f64::from(*b)).abs()))
        });
        assert!(apart < 1e-9, "{apart}");
    }
}

#[test]
fn the_closed_form_reaches_the_floor_and_nothing_is_below() {
    for kind in [Inputs::Isotropic, Inputs::CorrelatedOutliers] {
        let layer = Layer::new(kind);
        for width in [3, 8, 16] {
            let (floor, loss) = (layer.floor(width), layer.loss(&layer.adapter(&SvdLlm::default(), width)));
            // The Gram matrix holds products in f32.
            assert!((loss / floor - 1.0).abs() < 1e-5, "{kind:?}, {width}: {loss} over {floor}");
            for other in
                [layer.adapter(&PlainSvd::default(), width), layer.adapter(&Asvd::default(), width), random(width, 3)]
            {
                assert!(layer.loss(&other) >= floor, "{kind:?}, {width}");
            }
        }
    }
}

#[test]
fn on_other_inputs_of_the_kind_losses_are_ordered_as_the_methods_know_more() {
    let layer = Layer::new(Inputs::CorrelatedOutliers);
    let held_out = inputs(Inputs::CorrelatedOutliers, TOKENS, IN, 6).mapv(f64::from);
    let loss = |adapter: &KvAdapter| adapter.loss(&layer.weight(), held_out.view()).unwrap();
    let (svd, asvd) = (layer.adapter(&PlainSvd::default(), 8), layer.adapter(&Asvd::default(), 8));
    let mut trained = asvd.clone();
    layer.train(&mut trained, &adam(3e-3, 30));
    let (best, random) = (loss(&layer.adapter(&SvdLlm::default(), 8)), loss(&random(8, 3)));
    let (svd, asvd, trained) = (loss(&svd), loss(&asvd), loss(&trained));
    assert!(
        random > 3.0 * svd && svd > 1.5 * asvd && asvd > trained && trained > 0.99 * best,
        "random {random}, SVD {svd}, ASVD {asvd}, trained {trained}, closed form {best}"
    );
}

#[test]
fn training_without_quantization_converges_to_the_closed_form() {
    for kind in [Inputs::Isotropic, Inputs::Correlated, Inputs::CorrelatedOutliers] {
        let layer = Layer::new(kind);
        let floor = layer.floor(8);
        for method in ["svd", "asvd"] {
            for config in [adam(0.02, 600), Training { optimizer: Optimizer::Alternating, epochs: 300, latents: None }]
            {
                let mut adapter = match method {
                    "svd" => layer.adapter(&PlainSvd::default(), 8),
                    _ => layer.adapter(&Asvd::default(), 8),
                };
                let log = layer.train(&mut adapter, &config);
                assert_eq!(log.epochs.len(), config.epochs);
                assert!((log.after / layer.loss(&adapter) - 1.0).abs() < 1e-12);
                let over = log.after / floor - 1.0;
                assert!(
                    (-1e-9..1e-3).contains(&over),
                    "{kind:?} from {method}, {:?}: {over:e} above",
                    config.optimizer
                );
                assert!(log.before > 1.01 * floor || kind == Inputs::Isotropic);
            }
        }
    }
}

#[test]
fn keys_of_a_lower_rank_are_found_by_whitening_and_not_by_the_weight() {
    // Inputs in five dimensions, a weight of full rank.
    let mut layer = Layer::new(Inputs::Isotropic);
    let x = common::narrow(&matmul(gaussian(TOKENS, 5, 8).view(), gaussian(5, IN, 9).view()));
    (layer.statistics, layer.x) = (statistics(&x), x.mapv(f64::from));
    let energy = layer.floor(0);
    let (whitened, plain) = (layer.adapter(&SvdLlm::default(), 5), layer.adapter(&PlainSvd::default(), 5));
    assert!(layer.loss(&whitened) < 1e-10 * energy, "{} of {energy}", layer.loss(&whitened));
    assert!(layer.loss(&plain) > 0.1 * energy);
}

#[test]
fn latents_of_keys_are_those_of_inputs_in_the_closed_form_and_never_worse() {
    let layer = Layer::new(Inputs::Correlated);
    let keys = matmul(layer.x.view(), layer.weight.mapv(f64::from).t());
    let adapter = layer.adapter(&SvdLlm::default(), 8);
    let of_keys = matmul(keys.view(), adapter.from_outputs().unwrap().view());
    let of_inputs = adapter.latents(layer.x.view());
    let energy = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>();
    let apart = energy(&(&of_keys - &of_inputs)) / energy(&of_inputs);
    assert!(apart < 1e-6, "{apart:e}");
    for other in [layer.adapter(&Asvd::default(), 8), random(8, 3)] {
        let of_keys = matmul(keys.view(), other.from_outputs().unwrap().view());
        let error = energy(&(matmul(of_keys.view(), other.b()) - &keys)) / keys.len() as f64;
        assert!(error < layer.loss(&other));
    }
}

#[test]
fn training_for_quantized_latents_takes_back_a_part_of_what_rounding_lost() {
    let layer = Layer::new(Inputs::CorrelatedOutliers);
    let floor = layer.floor(8);
    println!("floor {floor:.2}\n| | rounded | AdamW | alternating |\n|---|---:|---:|---:|");
    // Keys by channel over 32 tokens, values by token in groups of a head's share; symmetric ranges as well.
    for (format, block, most) in
        [("int4-min", Some(32), 0.85), ("int4-g4-min", None, 0.97), ("int2-g4-min", None, 0.7), ("int4-g4", None, 0.97)]
    {
        let latents = Some(LatentFormat { format: format.parse().unwrap(), block });
        let closed = layer.adapter(&SvdLlm::default(), 8);
        for (most, start) in [(most, closed.clone()), (0.995, closed.rotated(1).unwrap())] {
            let (mut by_steps, mut in_turn) = (start.clone(), start);
            let log = layer.train(&mut by_steps, &Training { latents, ..adam(5e-3, 60) });
            let other = layer.train(&mut in_turn, &Training { latents, optimizer: Optimizer::Alternating, epochs: 5 });
            println!("| `{format}` | {:.2} | {:.2} | {:.2} |", log.before, log.after, other.after);
            let (before, after) = (log.before - floor, log.after - floor);
            assert!(after > 0.0 && after < most * before, "{format}: {after} of {before}");
            assert!(log.before == other.before && other.after < 0.99 * other.before, "{format}: {other:?}");
        }
    }
}

#[test]
fn a_rotation_changes_nothing_but_what_rounding_costs() {
    let layer = Layer::new(Inputs::CorrelatedOutliers);
    let (plain, floor) = (layer.adapter(&SvdLlm::default(), 8), layer.floor(8));
    let keys = matmul(layer.x.view(), layer.weight.mapv(f64::from).t());
    let values: Vec<f64> = quant_linalg::svd(keys.view()).unwrap().s.iter().take(8).copied().collect();
    let sum: f64 = values.iter().sum();
    let expected = sum * sum / 8.0 / values.iter().map(|s| s * s).sum::<f64>();
    let latents = Some(LatentFormat { format: "int6-min".parse().unwrap(), block: Some(32) });
    let rounded = |adapter: &KvAdapter| {
        let config = Training { latents, epochs: 0, ..Training::default() };
        layer.train(&mut adapter.clone(), &config).before - floor
    };
    let cost: f64 = (0..8).map(|seed| rounded(&plain.rotated(seed).unwrap())).sum::<f64>() / 8.0;
    assert!((layer.loss(&plain.rotated(0).unwrap()) / layer.loss(&plain) - 1.0).abs() < 1e-9);
    let ratio = cost / rounded(&plain);
    println!("rotation: {ratio:.3} of the cost, expected {expected:.3}");
    assert!((ratio / expected - 1.0).abs() < 0.35, "{ratio} where {expected} is expected");
}

#[test]
fn training_gives_the_same_bits_for_any_number_of_threads_and_never_ends_worse() {
    let layer = Layer::new(Inputs::Correlated);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut adapter = layer.adapter(&Asvd::default(), 8);
            let log = layer.train(&mut adapter, &adam(1e-3, 3));
            (adapter, log)
        })
    };
    assert_eq!(run(1), run(3));
    // Steps far too long: the adapter stays what it was.
    let mut adapter = layer.adapter(&SvdLlm::default(), 8);
    let before = adapter.clone();
    let log = layer.train(&mut adapter, &adam(10.0, 2));
    assert!(log.epochs.iter().all(|&loss| loss > log.before));
    assert_eq!((adapter, log.after), (before, log.before));
}

#[test]
fn widths_are_cut_down_a_head_at_a_time() {
    for (width, heads, dim, latent) in [
        (CacheWidth::Density(0.2), 32, 128, 800),
        (CacheWidth::Density(0.3), 32, 128, 38 * 32),
        (CacheWidth::Density(0.29), 1, 100, 29),
        (CacheWidth::Density(1.0), 2, 64, 128),
        (CacheWidth::PerHead(16), 3, 64, 48),
    ] {
        assert_eq!(width.latent(heads, dim), Ok(latent));
    }
    for width in [CacheWidth::Density(0.0), CacheWidth::Density(1.5), CacheWidth::Density(f64::NAN)] {
        assert!(matches!(width.latent(1, 64), Err(Error::Ratio { .. })), "{width:?}");
    }
    for width in [CacheWidth::Density(0.01), CacheWidth::PerHead(0), CacheWidth::PerHead(65)] {
        assert!(matches!(width.latent(1, 64), Err(Error::Rank { .. })), "{width:?}");
    }
    assert!(matches!(CacheWidth::PerHead(1).latent(0, 64), Err(Error::Heads { .. })));
    let adapter = random(8, 1);
    assert_eq!((adapter.per_head(2), adapter.parameters()), (Ok(4), 8 * (32 + 24)));
    assert!(matches!(adapter.per_head(3), Err(Error::Heads { .. })));
    // Llama-2-7B: 13.1 million parameters a layer for keys and values.
    assert_eq!(2 * 800 * (4096 + 4096), 13_107_200);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let layer = Layer::new(Inputs::Isotropic);
    let calibration = Calibration::from(&layer.statistics);
    for width in [0, OUT + 1] {
        let refused = KvAdapter::new(&SvdLlm::default(), &layer.weight(), &calibration, width);
        assert!(matches!(refused, Err(Error::Rank { .. })));
    }
    let nothing = KvAdapter::new(&Asvd::default(), &layer.weight(), &Calibration::default(), 4);
    assert!(matches!(nothing, Err(Error::Missing { method: "ASVD", .. })));
    assert!(matches!(KvAdapter::from_parts(gaussian(4, 2, 1), gaussian(3, 4, 1)), Err(Error::Mismatch { .. })));
    assert!(matches!(KvAdapter::from_parts(gaussian(4, 2, 1) / 0.0, gaussian(2, 4, 1)), Err(Error::Linalg(_))));
    let mut adapter = random(8, 1);
    assert!(matches!(adapter.clone().with_bias(&[1.0]), Err(Error::Features { expected: OUT, found: 1, .. })));
    let mut run = |batches: &[ArrayView2<'_, f64>], config: &Training| {
        train(&layer.weight(), batches, &mut adapter, config).unwrap_err()
    };
    assert!(matches!(run(&[], &Training::default()), Error::Missing { .. }));
    let narrow = gaussian(4, IN - 1, 1);
    assert!(matches!(run(&[narrow.view()], &Training::default()), Error::Features { .. }));
    assert!(matches!(run(&layer.batches(), &adam(-1.0, 1)), Error::Setting { setting: "learning_rate", .. }));
    let latents = Some(LatentFormat { format: "int4-min".parse().unwrap(), block: Some(0) });
    let refused = run(&layer.batches(), &Training { latents, ..Training::default() });
    assert!(matches!(refused, Error::Setting { setting: "block", .. }));
    assert!(matches!(run(&layer.batches(), &adam(1e200, 3)), Error::Diverged { .. } | Error::Linalg(_)));
}

#[test]
fn training_reads_from_a_recipe() {
    let json = r#"{ "optimizer": { "adam_w": { "learning_rate": 0.001, "weight_decay": 0.0 } }, "epochs": 3,
        "latents": { "format": "int4-g25-min", "block": 32 } }"#;
    let config: Training = serde_json::from_str(json).unwrap();
    assert_eq!((config.epochs, config.latents.unwrap().block), (3, Some(32)));
    assert_eq!(serde_json::from_str::<Training>("{}").unwrap(), Training::default());
    assert!(serde_json::from_str::<Training>(r#"{ "epoch": 3 }"#).is_err());
}

#[test]
fn maps_of_rows_reach_the_floor_and_training_for_a_format_lowers_what_rounding_costs() {
    let layer = Layer::new(Inputs::CorrelatedOutliers);
    let keys = matmul(layer.x.view(), layer.weight.mapv(f64::from).t());
    #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
    let rows: Vec<f32> = keys.iter().map(|&x| x as f32 + 3.0).collect();
    // Without rounding nothing is left to train: the floor is what principal components leave.
    let plain = RowMaps::train(&rows, OUT, 8, 0, &Training { epochs: 1, ..Training::default() }).unwrap();
    let mean = keys.mean_axis(Axis(0)).unwrap();
    let values = quant_linalg::svd((&keys - &mean).view()).unwrap().s;
    let floor = values.iter().skip(8).map(|s| s * s).sum::<f64>() / keys.len() as f64;
    assert!((plain.log.before / floor - 1.0).abs() < 1e-4, "{} beside {floor}", plain.log.before);
    assert!(plain.shift.iter().zip(&mean).all(|(found, mean)| (f64::from(*found) - mean - 3.0).abs() < 1e-3));
    let latents = Some(LatentFormat { format: "int2-g4-min".parse().unwrap(), block: None });
    let config = Training { latents, epochs: 40, ..Training::default() };
    let trained = RowMaps::train(&rows, OUT, 8, 0, &config).unwrap();
    assert!(trained.log.after < 0.9 * trained.log.before, "{:?}", trained.log);
    assert_eq!(trained, RowMaps::train(&rows, OUT, 8, 0, &config).unwrap(), "the same every time");
}

#[test]
fn rows_that_cannot_be_trained_on_are_refused() {
    let config = Training::default();
    for (rows, channels) in [(&[][..], 4), (&[1.0; 7][..], 4), (&[1.0; 8][..], 0)] {
        assert!(matches!(RowMaps::train(rows, channels, 2, 0, &config), Err(Error::Features { .. })), "{channels}");
    }
    let rows: Vec<f32> = (0..64).map(|i| (i * i % 13) as f32).collect();
    assert!(matches!(RowMaps::train(&rows, 4, 0, 0, &config), Err(Error::Rank { rank: 0, .. })));
    assert!(matches!(RowMaps::train(&rows, 4, 5, 0, &config), Err(Error::Rank { rank: 5, .. })));
    let bad = [&rows[..], &[f32::NAN; 4]].concat();
    let found = RowMaps::train(&bad, 4, 2, 0, &config);
    assert!(matches!(found, Err(Error::Core(quant_core::Error::NonFinite { index: 64, .. }))), "{found:?}");
}

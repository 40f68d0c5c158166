//! AWQ's scale and clip search.

mod common;

use common::{gram, mean_gram, nearest, normal, parse, trace};
use quant_calib::{ChannelStats, Gram};
use quant_core::{PackedTensor, Shaped};
use weight_quant::awq::{AwqConfig, ClipSearch, ScaleSearch, awq, gram_loss, search_clips, search_scales};
use weight_quant::smoothquant::fold_scales;
use weight_quant::{Error, OutputError};

/// 512 tokens of 512 normal features, the first `count` of them times `factor`.
fn outliers(count: usize, factor: f32) -> Vec<f32> {
    let mut x = normal(512, 512, 1);
    for token in x.chunks_exact_mut(512) {
        token[..count].iter_mut().for_each(|x| *x *= factor);
    }
    x
}

fn abs_mean(x: &[f32], features: usize) -> Vec<f64> {
    let mut stats = ChannelStats::new(features);
    stats.add(x).unwrap();
    stats.abs_mean()
}

#[test]
fn salient_channels_gain_what_was_measured_elsewhere() {
    let w = normal(256, 512, 2);
    let weights = [Shaped::new(&w, &[256, 512]).unwrap()];
    // Outliers, factor, format, expected gain, tolerance.
    for (count, factor, name, expected, tolerance) in [
        (0, 1.0, "int3-g128-asym", 1.0, 0.01),
        (1, 50.0, "int3-g128-asym", 3.4, 0.5),
        (1, 50.0, "int4-g128-asym", 3.6, 0.5),
        (4, 50.0, "int3-g128-asym", 3.8, 0.7),
        (8, 20.0, "int4-g128-asym", 2.05, 0.25),
    ] {
        let x = outliers(count, factor);
        let inputs = OutputError::new(&gram(&x, 512)).unwrap();
        let loss = gram_loss(&weights, &inputs);
        let found = search_scales(&weights, &abs_mean(&x, 512), parse(name), &ScaleSearch::default(), loss).unwrap();
        let best = found.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let gain = found.losses[0] / best;
        println!("{count} × {factor} {name}: gain {gain:.2} at r = {}", found.ratio);
        assert!((gain - expected).abs() < tolerance, "{count} × {factor} {name}: {gain}, expected {expected}");
        if count == 1 {
            assert!((found.ratio - 0.4).abs() < 0.11, "{}", found.ratio);
        }
        assert_eq!(found.losses.len(), 20);
    }
}

#[test]
fn losses_are_those_of_the_folded_rounded_and_unfolded_weights() {
    let (w, x) = (normal(24, 64, 3), normal(100, 64, 4));
    let weights = [Shaped::new(&w, &[24, 64]).unwrap()];
    let h = mean_gram(&gram(&x, 64));
    let mut seen = Vec::new();
    let loss = |rounded: &[Vec<f32>]| {
        seen.push(trace(&w, &rounded[0], &h));
        Ok::<f64, Error>(*seen.last().unwrap())
    };
    let found =
        search_scales(&weights, &abs_mean(&x, 64), parse("int3-g32-asym"), &ScaleSearch::default(), loss).unwrap();
    assert_eq!(found.losses, seen);
    assert!((seen[0] / trace(&w, &nearest(&w, 64, parse("int3-g32-asym")).decode(), &h) - 1.0).abs() < 1e-9, "r = 0");
    let folded = fold_scales(&weights[0], &found.scales).unwrap();
    let mut rounded = nearest(&folded, 64, parse("int3-g32-asym")).decode();
    rounded.iter_mut().zip(found.scales.iter().cycle()).for_each(|(w, s)| *w /= s);
    let best = seen.iter().copied().fold(f64::INFINITY, f64::min);
    assert!((trace(&w, &rounded, &h) / best - 1.0).abs() < 1e-9);
    let (least, most) = found.scales.iter().fold((f32::MAX, 0.0_f32), |(l, m), s| (l.min(*s), m.max(*s)));
    assert!((least * most - 1.0).abs() < 1e-5, "centred");
}

#[test]
fn clips_are_the_best_of_all_candidates_by_output_error() {
    let (w, x) = (normal(6, 96, 5), outliers_of(96));
    let tensor = Shaped::new(&w, &[6, 96]).unwrap();
    let all = gram(&x, 96);
    let inputs = OutputError::new(&all).unwrap();
    let found = search_clips(&tensor, &inputs, parse("int2-g32-asym"), &ClipSearch::default()).unwrap();
    assert!(found.kept.iter().any(|kept| *kept < 0.9), "two bits want clips: {:?}", found.kept);
    let h = mean_gram(&all);
    for row in 0..6 {
        for group in 0..3 {
            let columns = 32 * group..32 * (group + 1);
            let values = &w[96 * row..][columns.clone()];
            let block = h.slice(ndarray::s![columns.clone(), columns]).to_owned();
            let error = |kept: f32| {
                let limit = kept * values.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
                let clamped: Vec<f32> = values.iter().map(|w| w.clamp(-limit, limit)).collect();
                trace(values, &nearest(&clamped, 32, parse("int2-g32-asym")).decode(), &block)
            };
            let best = (0..10_u8).map(|i| error(1.0 - f32::from(i) / 20.0)).fold(f64::INFINITY, f64::min);
            let ours = error(found.kept[3 * row + group]);
            assert!(ours <= best * 1.0001, "row {row}, group {group}: {ours} and {best}");
            let decoded = &found.packed.decode()[96 * row + 32 * group..][..32];
            assert!((trace(values, decoded, &block) / ours - 1.0).abs() < 1e-6, "what is stored is what was measured");
        }
    }
}

#[test]
fn mean_clips_of_normal_values_are_those_measured_elsewhere() {
    // Independent inputs: the error of the weights decides.
    let w = normal(300, 128, 17);
    let tensor = Shaped::new(&w, &[300, 128]).unwrap();
    let mut identity = vec![0.0; 128 * 128];
    identity.iter_mut().step_by(129).for_each(|x| *x = 1.0);
    let inputs = OutputError::new(&gram(&identity, 128)).unwrap();
    for (bits, expected) in [(2, 0.57), (3, 0.76), (4, 0.90), (8, 1.0)] {
        let format = parse(&format!("int{bits}-asym-g128-f32"));
        let found = search_clips(&tensor, &inputs, format, &ClipSearch { grid: 100, max_shrink: 0.8 }).unwrap();
        let mean = found.kept.iter().sum::<f32>() / 300.0;
        assert!((mean - expected).abs() < 0.02, "{bits} bits: {mean}, expected {expected}");
    }
}

fn outliers_of(features: usize) -> Vec<f32> {
    let mut x = normal(200, features, 6);
    for token in x.chunks_exact_mut(features) {
        token[7] *= 20.0;
    }
    x
}

#[test]
fn scales_and_clips_together_beat_rounding_in_many_formats() {
    let (a, b, x) = (normal(48, 128, 7), normal(16, 128, 8), outliers_of(128));
    let weights = [Shaped::new(&a, &[48, 128]).unwrap(), Shaped::new(&b, &[16, 128]).unwrap()];
    let all = gram(&x, 128);
    for name in ["int3-g32-asym", "int4-g128", "int4", "nvfp4", "mxfp4", "nf4-g32"] {
        let result = awq(&weights, &all, &abs_mean(&x, 128), parse(name), &AwqConfig::default()).unwrap();
        let unclipped = AwqConfig { clip: None, ..AwqConfig::default() };
        let scaled = awq(&weights, &all, &abs_mean(&x, 128), parse(name), &unclipped).unwrap();
        let plain = result.scales.losses[0];
        println!("{name}: {plain:.2} rounded, {:.2} scaled, {:.2} clipped too", scaled.loss, result.loss);
        // Powers of two follow channel scales only coarsely.
        let limit = if name == "mxfp4" { 0.9 } else { 0.5 };
        assert!(result.loss < limit * plain && result.loss <= scaled.loss * 1.02, "{name}");
        let mut total = 0.0;
        for (w, packed) in [&a, &b].into_iter().zip(&result.packed) {
            let mut decoded = packed.decode();
            decoded.iter_mut().zip(result.scales.scales.iter().cycle()).for_each(|(w, s)| *w /= s);
            total += trace(w, &decoded, &mean_gram(&all));
        }
        assert!((total / result.loss - 1.0).abs() < 1e-4, "{name}: the loss is that of the function: {total}");
    }
}

#[test]
fn duo_scaling_looks_at_weights_as_well() {
    let (mut w, x) = (normal(64, 128, 9), outliers_of(128));
    w.iter_mut().skip(3).step_by(128).for_each(|w| *w *= 8.0);
    let weights = [Shaped::new(&w, &[64, 128]).unwrap()];
    let inputs = OutputError::new(&gram(&x, 128)).unwrap();
    let search = |duo| {
        let config = ScaleSearch { duo, ..ScaleSearch::default() };
        search_scales(&weights, &abs_mean(&x, 128), parse("int3-g32-asym"), &config, gram_loss(&weights, &inputs))
            .unwrap()
    };
    let (plain, duo) = (search(false), search(true));
    assert_eq!(plain.losses[0], duo.losses[0], "the first candidate has no scales");
    assert!(duo.losses.iter().copied().fold(f64::INFINITY, f64::min) < 0.9 * duo.losses[0]);
    assert_ne!(plain.scales, duo.scales);
}

#[test]
fn silent_channels_and_ties_do_no_harm() {
    let mut x = normal(50, 32, 10);
    x.iter_mut().skip(5).step_by(32).for_each(|x| *x = 0.0);
    let w = normal(8, 32, 11);
    let weights = [Shaped::new(&w, &[8, 32]).unwrap()];
    let result = awq(&weights, &gram(&x, 32), &abs_mean(&x, 32), parse("int4-g32"), &AwqConfig::default()).unwrap();
    assert!(result.scales.scales.iter().all(|s| s.is_finite() && *s > 0.0));
    assert!(result.loss <= result.scales.losses[0] * 1.0001);
    let constant = |_: &[Vec<f32>]| Ok::<f64, Error>(1.0);
    let tie = search_scales(&weights, &[1.0; 32], parse("int4"), &ScaleSearch::default(), constant).unwrap();
    assert_eq!((tie.ratio, tie.scales), (0.0, vec![1.0; 32]), "the first of equals");
}

#[test]
fn the_same_bytes_on_one_two_and_seven_threads() {
    let (w, x) = (normal(64, 256, 12), outliers_of(256));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let weights = [Shaped::new(&w, &[64, 256]).unwrap()];
            awq(&weights, &gram(&x, 256), &abs_mean(&x, 256), parse("int3-g64-asym"), &AwqConfig::default()).unwrap()
        })
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(7), one);
}

#[test]
fn bad_input_is_refused() {
    let (w, x) = (normal(4, 32, 13), normal(20, 32, 14));
    let weights = [Shaped::new(&w, &[4, 32]).unwrap()];
    let (good, mean, default) = (gram(&x, 32), abs_mean(&x, 32), AwqConfig::default());
    let attempt = |gram: &Gram, mean: &[f64], format: &str, config: &AwqConfig| {
        awq(&weights, gram, mean, parse(format), config).unwrap_err()
    };
    assert_eq!(attempt(&Gram::new(32), &mean, "int4", &default), Error::NoTokens);
    let narrow = attempt(&good, &mean[..16], "int4", &default);
    assert_eq!(narrow, Error::Features { what: "the channel statistics", expected: 32, found: 16 });
    assert!(matches!(attempt(&gram(&normal(9, 16, 15), 16), &mean, "int4", &default), Error::Features { .. }));
    let mut broken = mean.clone();
    broken[4] = f64::NAN;
    assert!(matches!(attempt(&good, &broken, "int4", &default), Error::BadStatistic { channel: 4, .. }));
    assert_eq!(attempt(&good, &mean, "int4-t2x32", &default), Error::BlocksSpanRows { format: "int4-t2x32".into() });
    let none = AwqConfig { scale: ScaleSearch { grid: 0, ..ScaleSearch::default() }, ..default.clone() };
    assert!(matches!(attempt(&good, &mean, "int4", &none), Error::Config { option: "grid", .. }));
    let least = AwqConfig { scale: ScaleSearch { least: 0.0, ..ScaleSearch::default() }, ..default.clone() };
    assert!(matches!(attempt(&good, &mean, "int4", &least), Error::Config { option: "least", .. }));
    let empty: [PackedWeight; 0] = [];
    assert_eq!(awq(&empty, &good, &mean, parse("int4"), &default).unwrap_err(), Error::NoWeights);
    assert!(serde_json::from_str::<AwqConfig>(r#"{"n_grid": 20}"#).is_err());
    assert_eq!(serde_json::from_str::<AwqConfig>("{}").unwrap(), default);
}

type PackedWeight = Shaped<'static>;

#[test]
fn nothing_is_lost_between_clip_search_and_storage() {
    // The tensor scale of NVFP4 is that of the whole range, for the search and for what is stored.
    let (w, x) = (normal(8, 64, 16), outliers_of(64));
    let tensor = Shaped::new(&w, &[8, 64]).unwrap();
    let inputs = OutputError::new(&gram(&x, 64)).unwrap();
    let clipped = search_clips(&tensor, &inputs, parse("nvfp4"), &ClipSearch::default()).unwrap();
    let plain = PackedTensor::encode(parse("nvfp4"), &tensor).unwrap();
    assert_eq!(clipped.packed.second(), plain.second());
    let loss = |packed: &PackedTensor<'_>| inputs.between(&w, &packed.decode()).unwrap();
    assert!(loss(&clipped.packed) < loss(&plain));
}

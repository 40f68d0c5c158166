//! Round to nearest and clip search by weight error.

mod common;

use common::{FORMATS, codes, nearest, normal, parse};
use proptest::prelude::*;
use quant_core::{FormatGrid, Grid, Shaped, metrics::ErrorStats};
use std::path::Path;
use weight_quant::{Error, MseClip, RtnConfig, rtn};

fn clipped(w: &[f32], columns: usize, format: &str, clip: MseClip) -> quant_core::PackedTensor<'static> {
    let tensor = Shaped::new(w, &[w.len() / columns, columns]).unwrap();
    rtn(&tensor, parse(format), &RtnConfig { clip: Some(clip) }).unwrap()
}

fn noise(w: &[f32], q: &[f32]) -> f64 {
    ErrorStats::of(w, q).unwrap().noise()
}

#[test]
fn without_a_search_it_is_the_encoder_and_a_search_of_one_step_too() {
    let w = normal(20, 72, 1);
    for name in FORMATS.into_iter().chain(["nf4-dq", "int4-t8x16", "ternary"]) {
        let tensor = Shaped::new(&w, &[20, 72]).unwrap();
        let plain = nearest(&w, 72, parse(name));
        assert_eq!(rtn(&tensor, parse(name), &RtnConfig::default()).unwrap(), plain, "{name}");
        let whole = MseClip { max_shrink: 0.0, ..MseClip::default() };
        assert_eq!(clipped(&w, 72, name, whole), plain, "{name}");
    }
}

#[test]
fn a_search_never_raises_the_error_it_looks_at() {
    let w = normal(16, 128, 2);
    for name in FORMATS.into_iter().filter(|name| *name != "fp8-e4m3").chain(["int4-t8x16", "int4-g128-f32"]) {
        let clip = MseClip { norm: 2.0, ..MseClip::default() };
        let (before, after) =
            (noise(&w, &nearest(&w, 128, parse(name)).decode()), noise(&w, &clipped(&w, 128, name, clip).decode()));
        assert!(after <= before, "{name}: {after} above {before}");
    }
}

#[test]
fn mean_shrinks_are_those_of_normal_and_laplace_values() {
    // Groups of 128, asymmetric, exponent 2; the expected figures were computed with NumPy.
    let normal_values = normal(300, 128, 3);
    let uniform: Vec<f64> = quant_linalg::gaussian(300, 128, 4).iter().copied().collect();
    #[expect(clippy::cast_possible_truncation, reason = "test data")]
    let laplace: Vec<f32> = normal(300, 128, 5)
        .iter()
        .zip(normal(300, 128, 6))
        .zip(uniform)
        // An exponential number is half a sum of two squares of normal ones.
        .map(|((a, b), sign)| (f64::from(a * a + b * b).mul_add(0.5, 0.0)).copysign(sign) as f32)
        .collect();
    for (values, expected) in [(&normal_values, [0.608, 0.801, 0.927, 1.0]), (&laplace, [0.557, 0.781, 0.927, 1.0])] {
        for (bits, expected) in [2, 3, 4, 8].into_iter().zip(expected) {
            let grid = FormatGrid::new(parse(&format!("int{bits}-asym-g128-f32")), 0.0).unwrap();
            let clip = MseClip { norm: 2.0, ..MseClip::default() };
            let shrink =
                |group: &[f32]| f64::from(clip.fit(&grid, group).unwrap().scale / grid.fit(group, 1.0).unwrap().scale);
            let mean = values.chunks(128).map(shrink).sum::<f64>() / 300.0;
            println!("{bits} bits: {mean:.3}, expected {expected}");
            assert!((mean - expected).abs() < 0.02, "{bits} bits: {mean}, expected {expected}");
        }
    }
}

#[test]
fn rounding_noise_is_a_twelfth_of_the_squared_step() {
    let w = normal(64, 512, 7);
    for bits in [5, 6, 8] {
        let packed = nearest(&w, 512, parse(&format!("int{bits}-asym-f32")));
        let expected: f64 = (0..64).map(|row| f64::from(packed.params(row, 0).scale).powi(2) / 12.0 * 512.0).sum();
        let ratio = noise(&w, &packed.decode()) / expected;
        assert!((ratio - 1.0).abs() < 0.02, "{bits} bits: {ratio}");
    }
}

#[test]
fn patience_ends_the_search_early_and_finds_no_less_error() {
    let w = normal(8, 128, 8);
    let patient = clipped(&w, 128, "int3-g128", MseClip::default());
    let hasty = clipped(&w, 128, "int3-g128", MseClip { patience: Some(1), max_shrink: 0.2, ..MseClip::default() });
    let power = |q: &[f32]| -> f64 { w.iter().zip(q).map(|(w, q)| f64::from((w - q).abs()).powf(2.4)).sum() };
    assert!(power(&patient.decode()) < power(&hasty.decode()));
    assert!(power(&hasty.decode()) < power(&nearest(&w, 128, parse("int3-g128")).decode()), "it clips some");
}

#[test]
fn clip_search_agrees_with_the_gptq_quantizer() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [here.join("../quant-core/tests/golden/vectors"), here.join("../../../shared/golden")];
    let mut compared = 0;
    for path in folders.map(|folder| folder.join("int_gptq_awq.safetensors")).into_iter().filter(|path| path.exists()) {
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let (words, _) = file.tensor(name).unwrap().data().as_chunks::<4>();
            words.iter().copied().map(f32::from_le_bytes).collect()
        };
        let (w, shape) = (floats("w"), file.tensor("w").unwrap().shape().to_vec());
        for name in file.names() {
            let Some(stem) = name.strip_suffix("_mse/scale") else { continue };
            let [_, width, mode] = stem.split('/').collect::<Vec<_>>()[..] else { panic!("{stem}") };
            let rule = if mode == "sym" { "gptq" } else { "asym" };
            let format = format!("int{}-{rule}-g32-f32", &width[1..]);
            let ours = clipped(&w, shape[1], &format, MseClip::default());
            let layout = *ours.layout();
            let scales: Vec<f32> = (0..layout.blocks())
                .map(|b| ours.params(b / layout.block_columns_count(), b % layout.block_columns_count()).scale)
                .collect();
            assert_eq!(scales, floats(&format!("{stem}_mse/scale")), "{stem}");
            assert_eq!(ours.decode(), floats(&format!("{stem}_mse/deq")), "{stem}");
            compared += 1;
        }
    }
    assert!(compared >= 1, "the reduced golden file is part of the repository");
}

#[test]
fn bad_options_and_values_are_refused() {
    let w = normal(2, 32, 9);
    let tensor = Shaped::new(&w, &[2, 32]).unwrap();
    let attempt = |clip| rtn(&tensor, parse("int4"), &RtnConfig { clip: Some(clip) }).unwrap_err();
    let default = MseClip::default();
    assert!(matches!(attempt(MseClip { grid: 0, ..default }), Error::Config { option: "grid", .. }));
    assert!(matches!(attempt(MseClip { max_shrink: 1.0, ..default }), Error::Config { option: "max_shrink", .. }));
    assert!(matches!(attempt(MseClip { max_shrink: f64::NAN, ..default }), Error::Config { .. }));
    assert!(matches!(attempt(MseClip { norm: 0.0, ..default }), Error::Config { option: "norm", .. }));
    let bad = [1.0, f32::INFINITY];
    let bad = Shaped::new(&bad, &[1, 2]).unwrap();
    for clip in [None, Some(default)] {
        let error = rtn(&bad, parse("int4"), &RtnConfig { clip }).unwrap_err();
        assert!(matches!(error, Error::Core(quant_core::Error::NonFinite { index: 1, .. })), "{error:?}");
    }
    let huge: Vec<f32> = w.iter().map(|w| 1e9 * w).collect();
    let huge = Shaped::new(&huge, &[2, 32]).unwrap();
    let error = rtn(&huge, parse("int4-g16"), &RtnConfig { clip: Some(default) }).unwrap_err();
    assert!(matches!(error, Error::Core(quant_core::Error::ScaleOverflow { .. })), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn quantized_weights_stay_what_they_are(seed in 0_u64..1000, which in 0..FORMATS.len()) {
        // The signed minimum of a few rules and the mean of one-bit values move the scale; theirs is another contract.
        prop_assume!(!["int3-g16-gptq", "int2-g32-min", "ternary-g32", "mxint4"].contains(&FORMATS[which]));
        let format = parse(FORMATS[which]);
        let once = nearest(&normal(3, 40, seed), 40, format);
        let twice = nearest(&once.decode(), 40, format);
        let error = noise(&once.decode(), &twice.decode()) / noise(&once.decode(), &vec![0.0; 120]);
        prop_assert!(error < 1e-3, "{}: {}", FORMATS[which], error);
        prop_assert_eq!(codes(&once).len(), 120);
    }
}

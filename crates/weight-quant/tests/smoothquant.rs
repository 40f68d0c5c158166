//! SmoothQuant's closed forms, and what it is for.

mod common;

use common::{autoregressive, normal, parse};
use quant_core::{Format, Linear, PackedTensor, Shaped, fake_quantize};
use weight_quant::Error;
use weight_quant::smoothquant::{SmoothQuantConfig, fold_scales, smooth_scales, smoothquant};

fn column_maxima(values: &[f32], columns: usize) -> Vec<f32> {
    let mut maxima = vec![0.0_f32; columns];
    for row in values.chunks_exact(columns) {
        maxima.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(x.abs()));
    }
    maxima
}

#[test]
fn scales_have_their_closed_forms() {
    let (a, b, x) = (normal(20, 32, 1), normal(12, 32, 2), normal(50, 32, 3));
    let weights = [Shaped::new(&a, &[20, 32]).unwrap(), Shaped::new(&b, &[12, 32]).unwrap()];
    let both: Vec<f32> = a.iter().chain(&b).copied().collect();
    let (xmax, wmax) = (column_maxima(&x, 32), column_maxima(&both, 32));
    let scales =
        |alpha| smooth_scales(&weights, &xmax, &SmoothQuantConfig { alpha, ..SmoothQuantConfig::default() }).unwrap();
    let (one, zero, half) = (scales(1.0), scales(0.0), scales(0.5));
    for j in 0..32 {
        assert!((xmax[j] / one[j] - 1.0).abs() < 1e-6, "α = 1: activations of range 1");
        assert!((wmax[j] * zero[j] - 1.0).abs() < 1e-6, "α = 0: weights of range 1");
        let shared = (xmax[j] * wmax[j]).sqrt();
        assert!((xmax[j] / half[j] / shared - 1.0).abs() < 1e-6 && (wmax[j] * half[j] / shared - 1.0).abs() < 1e-6);
    }
}

#[test]
fn folding_keeps_the_function() {
    let (w, x) = (normal(16, 24, 4), normal(5, 24, 5));
    let weight = Shaped::new(&w, &[16, 24]).unwrap();
    // Powers of two fold exactly.
    let scales: Vec<f32> = (0..24).map(|j| 2_f32.powi(j % 7 - 3)).collect();
    let folded = fold_scales(&weight, &scales).unwrap();
    for (row, f) in w.chunks_exact(24).zip(folded.chunks_exact(24)) {
        for token in x.chunks_exact(24) {
            let plain: f32 = row.iter().zip(token).map(|(w, x)| w * x).sum();
            let smooth: f32 = f.iter().zip(token).zip(&scales).map(|((w, x), s)| w * (x / s)).sum();
            assert_eq!(plain, smooth);
        }
    }
}

#[test]
fn eight_bit_activations_with_outlier_channels_need_smoothing() {
    let (features, outputs) = (128, 32);
    let mut x = autoregressive(200, features, 0.3, 6);
    for token in x.chunks_exact_mut(features) {
        token[9] *= 300.0;
        token[77] *= 150.0;
    }
    let w = normal(outputs, features, 7);
    let weight = Shaped::new(&w, &[outputs, features]).unwrap();
    let apply = |packed: &PackedTensor<'_>, x: &[f32]| {
        let mut y = vec![0.0; x.len() / features * outputs];
        packed.matmul(x, &mut y).unwrap();
        y
    };
    let exact: Vec<f64> = x
        .chunks_exact(features)
        .flat_map(|x| {
            w.chunks_exact(features).map(move |w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum())
        })
        .collect();
    // Each output over its own size: the outliers' outputs would drown the others.
    let error = |y: &[f32]| -> f64 {
        y.iter().zip(&exact).map(|(y, e)| (f64::from(*y) - e).powi(2)).sum::<f64>() / exact.len() as f64
    };
    let per_token =
        |x: &[f32]| fake_quantize(Format::INT8, &Shaped::new(x, &[x.len() / features, features]).unwrap()).unwrap();
    let plain = error(&apply(&PackedTensor::encode(Format::INT8, &weight).unwrap(), &per_token(&x)));
    let smooth =
        smoothquant(&[weight], &column_maxima(&x, features), Format::INT8, &SmoothQuantConfig::default()).unwrap();
    let divided: Vec<f32> = x.iter().zip(smooth.scales.iter().cycle()).map(|(x, s)| x / s).collect();
    let dynamic = error(&apply(&smooth.packed[0], &per_token(&divided)));
    let mut rounded = divided.clone();
    smooth.activation.apply(&mut rounded);
    let fixed = error(&apply(&smooth.packed[0], &rounded));
    println!("plain {plain:.3}, smoothed per token {dynamic:.4}, smoothed static {fixed:.4}");
    assert!(dynamic < plain / 10.0 && fixed < plain / 4.0, "{plain} {dynamic} {fixed}");
    assert!(dynamic < fixed, "each token's own scale is finer");
    let largest = divided.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    assert!((smooth.activation.scale() * 127.0 / largest - 1.0).abs() < 1e-6);
}

#[test]
fn silent_channels_keep_their_weights() {
    let w = normal(4, 8, 8);
    let mut absmax = [1.0; 8];
    absmax[3] = 0.0;
    let scales = smooth_scales(&[Shaped::new(&w, &[4, 8]).unwrap()], &absmax, &SmoothQuantConfig::default()).unwrap();
    assert_eq!(scales[3], 1.0);
    let zeros = [0.0; 8];
    let scales =
        smooth_scales(&[Shaped::new(&zeros, &[1, 8]).unwrap()], &[1.0; 8], &SmoothQuantConfig::default()).unwrap();
    assert!(scales.iter().all(|s| s.is_finite()), "silent weights too");
}

#[test]
fn bad_input_is_refused() {
    let w = normal(4, 8, 9);
    let weights = [Shaped::new(&w, &[4, 8]).unwrap()];
    let default = SmoothQuantConfig::default();
    let none: [Shaped<'static>; 0] = [];
    assert_eq!(smooth_scales(&none, &[1.0; 8], &default), Err(Error::NoWeights));
    let wide = smooth_scales(&weights, &[1.0; 9], &default);
    assert_eq!(wide, Err(Error::Features { what: "the channel statistics", expected: 8, found: 9 }));
    for value in [-1.0, f32::NAN, f32::INFINITY] {
        let mut absmax = [1.0; 8];
        absmax[2] = value;
        assert!(matches!(smooth_scales(&weights, &absmax, &default), Err(Error::BadStatistic { channel: 2, .. })));
    }
    let alpha = SmoothQuantConfig { alpha: 1.5, ..default.clone() };
    assert!(matches!(smooth_scales(&weights, &[1.0; 8], &alpha), Err(Error::Config { option: "alpha", .. })));
    let least = SmoothQuantConfig { least: 0.0, ..default };
    assert!(matches!(smooth_scales(&weights, &[1.0; 8], &least), Err(Error::Config { option: "least", .. })));
    assert!(matches!(fold_scales(&weights[0], &[1.0; 7]), Err(Error::Features { .. })));
    assert!(matches!(fold_scales(&weights[0], &[0.0; 8]), Err(Error::BadStatistic { channel: 0, .. })));
    assert!(matches!(fold_scales(&weights[0], &[f32::MAX; 8]), Err(Error::Core(quant_core::Error::NonFinite { .. }))));
    assert!(serde_json::from_str::<SmoothQuantConfig>(r#"{"migration": 0.5}"#).is_err());
    assert_eq!(parse("int8"), Format::INT8);
}

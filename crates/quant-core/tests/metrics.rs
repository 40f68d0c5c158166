//! Error metrics and statistics of values.

use quant_core::Error;
use quant_core::metrics::{
    ErrorStats, Stats, cosine, crest_factor, kurtosis, lp_error, max_abs_error, mse, range, relative_frobenius, sqnr_db,
};

/// Deterministic values with a mean of `mean`, no two alike in a row.
fn values(n: usize, seed: u32, mean: f32) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            mean + (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[track_caller]
fn assert_close(found: f64, expected: f64, relative: f64) {
    assert!((found - expected).abs() <= relative * expected.abs(), "{found} is not {expected}");
}

#[test]
fn metrics_of_a_small_pair_are_those_computed_by_hand() {
    let (x, y) = ([1.0, 2.0, -2.0, 4.0], [1.0, 1.0, -2.0, 2.0]);
    assert_eq!(mse(&x, &y), Ok(1.25));
    assert_eq!(relative_frobenius(&x, &y), Ok(0.2_f64.sqrt()));
    assert_eq!(sqnr_db(&x, &y), Ok(10.0 * 5.0_f64.log10()));
    assert_close(cosine(&x, &y).unwrap(), 15.0 / (5.0 * 10.0_f64.sqrt()), 1e-15);
    assert_eq!(max_abs_error(&x, &y), Ok(2.0));
    assert_eq!(lp_error(&x, &y, 1.0), Ok(3.0));
    assert_close(lp_error(&x, &y, 2.4).unwrap(), (1.0 + 2.0_f64.powf(2.4)).powf(1.0 / 2.4), 1e-14);
    assert_eq!(range(&x), Ok((-2.0, 4.0)));
    assert_eq!(crest_factor(&x), Ok(4.0 / 2.5));
}

#[test]
fn an_exact_copy_has_no_error_and_infinite_sqnr() {
    let x = values(37, 1, 0.0);
    let stats = ErrorStats::of(&x, &x).unwrap();
    assert_eq!((stats.mse(), stats.relative_frobenius(), stats.max_abs_error()), (0.0, 0.0, 0.0));
    assert_eq!(stats.sqnr_db(), f64::INFINITY);
    assert_close(stats.cosine(), 1.0, 1e-15);
}

#[test]
fn an_error_on_a_zero_original_is_minus_infinity_decibels() {
    let stats = ErrorStats::of(&[0.0, 0.0], &[0.0, 0.5]).unwrap();
    assert_eq!(stats.sqnr_db(), f64::NEG_INFINITY);
    assert_eq!(stats.relative_frobenius(), f64::INFINITY);
    assert!(stats.cosine().is_nan(), "an angle with the zero vector");
}

#[test]
fn cutting_a_stream_anywhere_changes_no_bit() {
    let (x, y) = (values(53, 2, 0.25), values(53, 3, 0.25));
    let (errors, stats) = (ErrorStats::of(&x, &y).unwrap(), Stats::of(&x).unwrap());
    for first in 0..=x.len() {
        for second in first..=x.len() {
            let mut e = ErrorStats::default();
            let mut s = Stats::default();
            for part in [0..first, first..second, second..x.len()] {
                e.push(&x[part.clone()], &y[part.clone()]).unwrap();
                s.push(&x[part]).unwrap();
            }
            assert_eq!((&e, &s), (&errors, &stats), "cut at {first} and {second}");
        }
    }
}

#[test]
fn merging_parts_agrees_with_one_pass() {
    let (x, y) = (values(4001, 4, 100.0), values(4001, 5, 100.0));
    let (one_errors, one_stats) = (ErrorStats::of(&x, &y).unwrap(), Stats::of(&x).unwrap());
    for cut in [0, 1, 7, 8, 1000, 4001] {
        let mut errors = ErrorStats::default();
        let mut stats = Stats::default();
        for part in [0..cut, cut..x.len()] {
            let mut e = ErrorStats::default();
            let mut s = Stats::default();
            e.push(&x[part.clone()], &y[part.clone()]).unwrap();
            s.push(&x[part]).unwrap();
            errors.merge(&e);
            stats.merge(&s);
        }
        assert_eq!((errors.count(), stats.count()), (4001, 4001));
        assert_eq!((stats.min(), stats.max()), (one_stats.min(), one_stats.max()));
        assert_eq!(errors.max_abs_error(), one_errors.max_abs_error());
        assert_close(errors.noise(), one_errors.noise(), 1e-13);
        assert_close(errors.cosine(), one_errors.cosine(), 1e-13);
        assert_close(stats.mean(), one_stats.mean(), 1e-14);
        assert_close(stats.variance(), one_stats.variance(), 1e-11);
        assert_close(stats.kurtosis(), one_stats.kurtosis(), 1e-9);
    }
}

#[test]
fn a_large_mean_does_not_spoil_the_central_moments() {
    // Two values at distance 2: variance 1, kurtosis 1, whatever the mean.
    let x: Vec<f32> = (0..1000).map(|i| if i % 2 == 0 { 1e6 } else { 1e6 + 2.0 }).collect();
    let stats = Stats::of(&x).unwrap();
    assert_eq!((stats.mean(), stats.variance(), stats.kurtosis()), (1_000_001.0, 1.0, 1.0));
}

#[test]
fn uniform_values_have_their_known_kurtosis_and_crest_factor() {
    let x: Vec<f32> = (0..=2000).map(|i| (i - 1000) as f32).collect();
    assert_close(kurtosis(&x).unwrap(), 1.8, 2e-3);
    assert_close(crest_factor(&x).unwrap(), 3.0_f64.sqrt(), 1e-3);
}

#[test]
fn a_single_spike_reaches_the_largest_crest_factor() {
    let mut x = vec![0.0_f32; 64];
    x[17] = -3.0;
    assert_eq!(crest_factor(&x), Ok(8.0));
    assert!(Stats::of(&[0.0; 4]).unwrap().crest_factor().is_nan(), "no crest without energy");
    assert!(Stats::of(&[5.0; 4]).unwrap().kurtosis().is_nan(), "no kurtosis without variance");
}

#[test]
fn the_largest_and_the_smallest_floats_neither_overflow_nor_vanish() {
    let big = [f32::MAX, f32::MIN];
    let stats = Stats::of(&big).unwrap();
    assert_eq!((stats.crest_factor(), stats.kurtosis()), (1.0, 1.0));
    assert_eq!(lp_error(&big, &[0.0, 0.0], 30.0).map(f64::is_finite), Ok(true));
    let tiny = [f32::from_bits(1), 0.0];
    assert_eq!(sqnr_db(&tiny, &[f32::from_bits(1), 0.0]), Ok(f64::INFINITY));
    assert_eq!(lp_error(&tiny, &[0.0, 0.0], 2.0), Ok(f64::from(tiny[0])));
}

#[test]
fn slices_of_different_lengths_are_refused() {
    let expected = Error::LengthMismatch { left: 3, right: 2 };
    assert_eq!(mse(&[1.0; 3], &[1.0; 2]), Err(expected.clone()));
    assert_eq!(lp_error(&[1.0; 3], &[1.0; 2], 1.0), Err(expected));
}

#[test]
fn empty_slices_are_refused() {
    assert_eq!(sqnr_db(&[], &[]), Err(Error::Empty { shape: vec![0] }));
    assert_eq!(range(&[]), Err(Error::Empty { shape: vec![0] }));
}

#[test]
fn bad_elements_are_named_and_leave_the_statistics_alone() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(30, 6, 0.0);
        let y = x.clone();
        x[19] = bad;
        for error in [mse(&x, &y), mse(&y, &x), kurtosis(&x), lp_error(&x, &y, 3.0)] {
            assert!(matches!(error, Err(Error::NonFinite { index: 19, .. })), "{bad}: {error:?}");
        }
        let mut stats = Stats::of(&y).unwrap();
        let mut errors = ErrorStats::of(&y, &y).unwrap();
        let before = (stats.clone(), errors.clone());
        assert!(stats.push(&x).is_err() && errors.push(&x, &y).is_err(), "{bad} was accepted");
        assert_eq!((stats, errors), before);
        assert!(matches!(Stats::of(&[bad, 1.0]), Err(Error::NonFinite { index: 0, .. })), "{bad} comes first");
    }
}

#[test]
fn norms_below_one_do_not_exist() {
    for p in [0.5, 0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(lp_error(&[1.0], &[0.0], p), Err(Error::NormOrder { .. })), "{p}");
    }
}

#[test]
fn errors_add_up_to_the_same_bits_on_every_instruction_set() {
    let x: Vec<f32> = (0..1003_u16).map(|i| f32::from(i * 61 % 977) / 97.0 - 5.0).collect();
    let y: Vec<f32> = x.iter().map(|x| (x * 3.0).round() / 3.0).collect();
    let of = |isa| quant_core::kernels::with_isa(isa, || ErrorStats::of(&x, &y).unwrap());
    let expected = of(quant_core::kernels::Isa::Portable);
    let signal: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    assert!((expected.signal() - signal).abs() < 1e-9 * signal);
    for isa in quant_core::kernels::Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        assert_eq!(of(isa), expected, "{isa:?}");
    }
}

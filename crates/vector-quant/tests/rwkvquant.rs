//! The proxies of RWKVQuant, the choice between scalar and vector codes, and multipliers.

#![expect(clippy::cast_possible_truncation, reason = "data of tests")]

use vector_quant::Error;
use vector_quant::rwkvquant::{
    Choice, Gaps, MultiplierConfig, MultiplierStats, Policy, Uniformity, decide, incoherence, quantize_multiplier,
    uniformity,
};

#[path = "common/gaussian.rs"]
mod data;
use data::gaussian;

fn uniform(count: usize) -> Vec<f32> {
    // The normal distribution function of Gaussian values would do; a multiplicative generator is exact.
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn gaps_of_uniform_weights_are_exponential() {
    // Moments 1, 2 and 9 of unit exponentials about their mean; P_c = 1 − γ. Enough bits that nothing ties.
    let mut wide: Vec<f32> = uniform(1 << 13);
    wide.sort_by(f32::total_cmp);
    wide.dedup();
    let found = uniformity(&wide, Gaps::Literal, 4).unwrap();
    assert!((found.coarse - 0.4228).abs() < 0.03, "{found:?}");
    assert!((found.fine - (0.5 + 1.0 / 3.0 + 0.75)).abs() < 0.4, "{found:?}");
}

#[test]
fn the_coarse_proxy_is_the_series_of_moments() {
    // Jitter of 10 %: terms up to the fourth order leave an error of the fifth.
    let weights: Vec<f32> = (0..2000).map(|i| i as f32 + 0.05 * ((i * 7919) % 101) as f32 / 50.0).collect();
    let found = uniformity(&weights, Gaps::Literal, 4).unwrap();
    let gaps: Vec<f64> = weights.windows(2).map(|w| f64::from(w[1]) - f64::from(w[0])).collect();
    let (n, total) = (gaps.len() as f64, gaps.iter().sum::<f64>());
    let moment = |k: i32| gaps.iter().map(|g| (n * g / total - 1.0).powi(k)).sum::<f64>() / n;
    let series = moment(2) / 2.0 - moment(3) / 6.0 + moment(4) / 12.0;
    assert!((found.coarse - series).abs() < 1e-5, "{} and {series}", found.coarse);
}

#[test]
fn heavier_tails_are_farther_from_even_whatever_the_number_of_weights() {
    let normal = gaussian(1 << 16, 1);
    let heavy: Vec<f32> = normal.iter().map(|x| x * x * x).collect();
    let mut outlier = uniform(1 << 16);
    outlier[7] = 20.0;
    for gaps in [Gaps::Quantile { gaps: 1024 }, Gaps::Literal] {
        let of = |w: &[f32]| uniformity(w, gaps, 4).unwrap().coarse;
        assert!(of(&uniform(1 << 16)) < of(&normal) && of(&normal) < of(&heavy), "{gaps:?}");
    }
    let quantile = |w: &[f32]| uniformity(w, Gaps::default(), 4).unwrap();
    assert!(quantile(&uniform(1 << 16)).coarse < 0.01);
    assert!((quantile(&normal).coarse - quantile(&normal[..1 << 14]).coarse).abs() < 0.25);
    assert!(quantile(&outlier).fine > 1e3 * quantile(&uniform(1 << 16)).fine, "one outlier");
}

#[test]
fn proxies_do_not_change_under_scaling_and_shift() {
    let weights = gaussian(4096, 3);
    let moved: Vec<f32> = weights.iter().map(|w| 4.0 * w).collect();
    for gaps in [Gaps::Literal, Gaps::default()] {
        let (a, b) = (uniformity(&weights, gaps, 4).unwrap(), uniformity(&moved, gaps, 4).unwrap());
        assert!((a.coarse - b.coarse).abs() < 1e-9 && (a.fine / b.fine - 1.0).abs() < 1e-9);
        assert!(a.coarse >= 0.0 && a.coarse <= (a.gaps as f64).ln());
    }
}

#[test]
fn odd_weights_are_answered_or_refused() {
    let equal = uniformity(&[0.5; 100], Gaps::Literal, 4).unwrap();
    assert_eq!((equal.coarse, equal.fine), (0.0, 0.0));
    assert_eq!(uniformity(&[1.0, 2.0], Gaps::Literal, 4), Err(Error::TooFewPoints { points: 2, centroids: 3 }));
    assert!(matches!(uniformity(&[1.0, f32::NAN, 0.0], Gaps::Literal, 4), Err(Error::NonFinite { index: 1, .. })));
    assert!(matches!(uniformity(&[1.0, 1e6, 0.0], Gaps::DistinctF16, 4), Err(Error::NonFinite { index: 1, .. })));
    assert!(matches!(uniformity(&[1.0, 2.0, 3.0], Gaps::Literal, 1), Err(Error::Setting { .. })));
    assert_eq!(incoherence(&[0.0; 4]).unwrap(), 0.0);
    assert_eq!(incoherence(&[1.0, -1.0, 1.0, 1.0]).unwrap(), 1.0);
}

#[test]
fn the_most_even_matrices_get_scalar_codes() {
    let proxy = |coarse, fine| Uniformity { coarse, fine, gaps: 10 };
    let proxies = [proxy(0.1, 9.0), proxy(0.2, 1.0), proxy(5.0, 2.0), proxy(0.3, 3.0)];
    let half = decide(&proxies, Policy::ScalarShare { share: 0.5 }).unwrap();
    // Worse of both ranks: 3, 1, 3, 2.
    assert_eq!(half, [Choice::Vector, Choice::Scalar, Choice::Vector, Choice::Scalar]);
    let by_value = decide(&proxies, Policy::Thresholds { coarse: 1.0, fine: 5.0 }).unwrap();
    assert_eq!(by_value, [Choice::Vector, Choice::Scalar, Choice::Vector, Choice::Scalar]);
    assert!(decide(&proxies, Policy::ScalarShare { share: 1.5 }).is_err());
    assert!(decide(&proxies, Policy::Thresholds { coarse: f64::NAN, fine: 1.0 }).is_err());
}

#[test]
fn weighted_code_books_are_never_worse_by_their_own_measure() {
    let mu = gaussian(512, 5);
    let mut stats = MultiplierStats::new(512, (0.0, 1.0)).unwrap();
    let spread: Vec<f32> = (0..512).map(|j| if j % 7 == 0 { 10.0 } else { 0.1 }).collect();
    stats.update(&spread).unwrap();
    let config = MultiplierConfig { group: 512, values: vector_quant::BookType::F16, ..MultiplierConfig::default() };
    let weighted = quantize_multiplier(&mu, Some(&stats), &config).unwrap();
    let plain = quantize_multiplier(&mu, None, &config).unwrap();
    let back = quant_core::Linear::to_dense(&plain.codes).unwrap();
    let loss = |back: &[f32]| -> f64 {
        let terms = mu.iter().zip(back).zip(stats.weights());
        terms.map(|((m, b), w)| f64::from(w) * (f64::from(*m) - f64::from(*b)).powi(2)).sum()
    };
    assert!(weighted.loss < 0.9 * loss(&back), "{} and {}", weighted.loss, loss(&back));
}

#[test]
fn a_spike_in_one_sample_moves_no_channel_beyond_the_clip() {
    let mut stats = MultiplierStats::new(100, (0.01, 0.99)).unwrap();
    let mut sample = vec![1.0; 100 * 10];
    sample[5] = 1e3;
    stats.update(&sample).unwrap();
    let weights = stats.weights();
    assert!(weights.iter().all(|w| (w - 1.0).abs() < 1e-6), "the spike was cut to 1");
}

#[test]
fn multipliers_that_do_not_fit_are_refused() {
    let stats = MultiplierStats::new(4, (0.0, 1.0)).unwrap();
    let config = MultiplierConfig { bits: 1, ..MultiplierConfig::default() };
    assert!(matches!(quantize_multiplier(&[1.0; 5], Some(&stats), &config), Err(Error::Count { .. })));
    assert!(matches!(quantize_multiplier(&[1.0], None, &config), Err(Error::TooFewPoints { .. })));
    assert!(matches!(quantize_multiplier(&[f32::NAN; 9], None, &config), Err(Error::NonFinite { .. })));
    assert!(MultiplierStats::new(4, (0.9, 0.1)).is_err());
    let mut stats = stats;
    assert!(stats.update(&[1.0; 6]).is_err());
}

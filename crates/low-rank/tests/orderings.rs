//! Which method wins where: the synthetic sets with known answers.

mod common;

use common::{Inputs, inputs, measured_output_error, rank, statistics, weight};
use low_rank::{Asvd, Calibration, Method, PlainSvd, SvdLlm, correct};
use quant_core::{Format, Linear, PackedTensor};

/// Output errors of SVD, ASVD with α = ½ and 1, and whitening at a rank.
fn errors(kind: Inputs, r: usize) -> [f64; 4] {
    let w = weight(128, 128);
    let statistics = statistics(&inputs(kind, 4096, 128, 2));
    let calibration = Calibration::from(&statistics);
    let asvd = |alpha| Asvd { alpha, truncation: rank(r), ..Asvd::default() }.compress(&w, &calibration);
    [
        PlainSvd { truncation: rank(r) }.compress(&w, &calibration),
        asvd(0.5),
        asvd(1.0),
        SvdLlm { truncation: rank(r), ..SvdLlm::default() }.compress(&w, &calibration),
    ]
    .map(|found| found.unwrap().report.output_error.unwrap())
}

#[test]
fn on_isotropic_inputs_nothing_beats_the_plain_svd() {
    for (r, expected) in [(16, 0.787), (32, 0.617), (48, 0.459)] {
        let found = errors(Inputs::Isotropic, r);
        assert!((found[0] - expected).abs() < 0.012, "rank {r}: {found:?}");
        for error in &found[1..] {
            assert!((error - found[0]).abs() < 0.006, "rank {r}: {found:?}");
        }
    }
}

#[test]
fn uneven_channels_make_scaling_win_and_correlation_makes_whitening_win() {
    let outliers = errors(Inputs::Outliers, 32);
    assert!((outliers[0] - 0.61).abs() < 0.04, "{outliers:?}");
    assert!(outliers[1..].iter().all(|&error| error < 0.2 * outliers[0]), "scaling sees outliers: {outliers:?}");
    assert!((outliers[2] / outliers[3] - 1.0).abs() < 0.02, "whitening has nothing to add: {outliers:?}");

    let correlated = errors(Inputs::Correlated, 32);
    assert!((correlated[1] / correlated[0] - 1.0).abs() < 0.02, "scaling does not see correlation: {correlated:?}");
    assert!(correlated[3] < 0.75 * correlated[0], "whitening does: {correlated:?}");

    let both = errors(Inputs::CorrelatedOutliers, 32);
    assert!(both[1] < 0.25 * both[0] && both[3] < 0.75 * both[1].min(both[2]), "{both:?}");
}

#[test]
fn with_few_tokens_whitening_wins_on_calibration_and_loses_on_fresh_text() {
    let w = weight(96, 96);
    let run = |kind, tokens: usize, method: &dyn Fn(&Calibration<'_>) -> Vec<f32>| {
        let (seen, fresh) = (inputs(kind, tokens, 96, 2), inputs(kind, 3000, 96, 3));
        let statistics = statistics(&seen);
        let found = method(&Calibration::from(&statistics));
        (measured_output_error(&w, &found, &seen), measured_output_error(&w, &found, &fresh))
    };
    let plain =
        |c: &Calibration<'_>| PlainSvd { truncation: rank(24) }.compress(&w, c).unwrap().linear.to_dense().unwrap();
    let llm = |damping| {
        let (method, w) = (SvdLlm { damping, truncation: rank(24) }, &w);
        move |c: &Calibration<'_>| method.compress(w, c).unwrap().linear.to_dense().unwrap()
    };
    let (short_plain, short_white, short_damped) = (
        run(Inputs::Isotropic, 120, &plain),
        run(Inputs::Isotropic, 120, &llm(0.0)),
        run(Inputs::Isotropic, 120, &llm(0.5)),
    );
    assert!(short_white.0 < short_plain.0, "on calibration: {short_white:?}, {short_plain:?}");
    assert!(short_white.1 > short_plain.1, "on fresh text: {short_white:?}, {short_plain:?}");
    assert!(short_damped.1 < short_white.1, "damping helps there: {short_damped:?}, {short_white:?}");
    let (long_plain, long_white) =
        (run(Inputs::Correlated, 32 * 96, &plain), run(Inputs::Correlated, 32 * 96, &llm(0.0)));
    assert!(long_white.0 < long_plain.0 && long_white.1 < long_plain.1, "{long_white:?}, {long_plain:?}");
}

#[test]
fn a_whitened_correction_of_a_rounding_error_lowers_the_output_error_most() {
    let w = weight(128, 128);
    let statistics = statistics(&inputs(Inputs::CorrelatedOutliers, 2000, 128, 2));
    let calibration = Calibration::from(&statistics);
    let packed = PackedTensor::encode("int3-g64-asym".parse::<Format>().unwrap(), &w).unwrap();
    let plain = correct(&w, packed.clone(), &PlainSvd { truncation: rank(8) }, &calibration).unwrap();
    let scaled = Asvd { alpha: 1.0, truncation: rank(8), ..Asvd::default() };
    let scaled = correct(&w, packed.clone(), &scaled, &calibration).unwrap();
    let white = correct(&w, packed, &SvdLlm { truncation: rank(8), ..SvdLlm::default() }, &calibration).unwrap();
    let before = white.report.base_output_error.unwrap();
    let [plain_after, scaled_after, white_after] = [&plain, &scaled, &white].map(|c| c.report.output_error.unwrap());
    assert!(plain.report.weight_error < white.report.weight_error, "LoRC is best for the weight");
    assert!(
        white_after < scaled_after && scaled_after < plain_after && plain_after < before,
        "{white_after} < {scaled_after} < {plain_after} < {before}"
    );
    // The rounded weight is the one that was given.
    assert_eq!(white.linear.a(), plain.linear.a());
}

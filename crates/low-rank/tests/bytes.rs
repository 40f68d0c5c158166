//! Parameters and bytes are counted truly.

mod common;

use common::{Inputs, inputs, kept, rank, statistics, weight};
use low_rank::{
    AnyMethod, Calibration, Factored, LayerOption, Menu, Method, Palu, PlainSvd, Plan, Ratio, Size, Storage, SvdLlm,
    Truncation, allocate, break_even, options, pair_parameters, rank_for_ratio, realize,
};
use quant_core::Linear;

#[test]
fn ranks_and_parameters_are_those_of_the_papers_layers() {
    // ASVD at 0.9.
    assert_eq!(rank_for_ratio(4096, 4096, Ratio::Kept(0.9), 1).unwrap(), 1843);
    assert_eq!(pair_parameters(4096, 4096, 1843), 15_097_856);
    assert_eq!(rank_for_ratio(11008, 4096, Ratio::Kept(0.9), 1).unwrap(), 2686);
    assert_eq!(pair_parameters(11008, 4096, 2686), 40_569_344);
    // SVD-LLM with 20 % removed.
    assert_eq!(rank_for_ratio(4096, 4096, Ratio::Removed(0.2), 1).unwrap(), 1638);
    assert_eq!(pair_parameters(4096, 4096, 1638), 13_418_496);
    // Aligned ranks stay inside the ratio; the authors' code would take 1920.
    assert_eq!(rank_for_ratio(4096, 4096, Ratio::Kept(0.9), 128).unwrap(), 1792);
    // A wide, short projection of grouped-query attention.
    assert_eq!(break_even(1024, 4096), 819);
    assert_eq!(break_even(4096, 4096), 2047);
}

#[test]
fn break_even_is_the_last_rank_that_saves_parameters() {
    for (m, n) in [(1, 1), (2, 2), (3, 5), (64, 64), (17, 90)] {
        let k = break_even(m, n);
        assert!(pair_parameters(m, n, k) < (m * n) as u64, "{m}×{n}: {k}");
        assert!(pair_parameters(m, n, k + 1) >= (m * n) as u64, "{m}×{n}: {k}");
    }
}

#[test]
fn bytes_are_those_of_both_factors() {
    let w = weight(64, 96);
    for (storage, expected) in [("f32", 4 * 16 * 160), ("f16", 2 * 16 * 160), ("int8", 16 * 160 + 2 * (64 + 16))] {
        let truncation = Truncation { storage: storage.parse().unwrap(), ..rank(16) };
        let found = PlainSvd { truncation }.compress(&w, &Calibration::default()).unwrap();
        assert_eq!(found.report.bytes, expected, "{storage}");
        assert_eq!(found.linear.footprint().total_bytes(), expected, "{storage}");
        assert_eq!(found.linear.footprint().elements, 64 * 96, "bits are per weight, not per stored number");
        assert_eq!(found.report.kept, 16.0 * 160.0 / (64.0 * 96.0), "{storage}");
        assert!(!found.report.kept_dense, "{storage}");
    }
}

#[test]
fn a_rank_from_the_break_even_on_keeps_the_weight_and_says_so() {
    let w = weight(64, 64);
    for truncation in [rank(32), rank(64), kept(1.0)] {
        let found = PlainSvd { truncation }.compress(&w, &Calibration::default()).unwrap();
        assert!(found.report.kept_dense && matches!(found.linear, Factored::Dense(_)), "{:?}", found.report.rank);
        assert_eq!((found.report.kept, found.report.bytes, found.report.weight_error), (1.0, 4 * 64 * 64, 0.0));
        assert_eq!(found.linear.to_dense().unwrap(), *w.as_slice().unwrap());
    }
    assert!(!PlainSvd { truncation: rank(31) }.compress(&w, &Calibration::default()).unwrap().report.kept_dense);
}

#[test]
fn a_ratio_is_never_exceeded() {
    let w = weight(48, 80);
    for share in [0.05, 0.3, 0.5, 0.77, 0.95] {
        let found = PlainSvd { truncation: kept(share) }.compress(&w, &Calibration::default()).unwrap();
        assert!(found.report.kept <= share, "{share}: {}", found.report.kept);
        // One rank more would not fit.
        assert!(pair_parameters(48, 80, found.report.rank + 1) as f64 > share * 48.0 * 80.0, "{share}");
    }
}

#[test]
fn the_error_reported_is_that_of_the_rounded_factors() {
    let w = weight(64, 64);
    let truncation = Truncation { storage: "int4-g32".parse().unwrap(), ..rank(24) };
    let rounded = PlainSvd { truncation }.compress(&w, &Calibration::default()).unwrap();
    let exact = PlainSvd { truncation: rank(24) }.compress(&w, &Calibration::default()).unwrap();
    assert_eq!(rounded.report.dropped, exact.report.dropped, "the truncation is the same");
    assert!(rounded.report.weight_error > 1.02 * exact.report.weight_error, "rounding is counted");
    assert!((exact.report.weight_error / exact.report.dropped - 1.0).abs() < 1e-5);
    let dense = rounded.linear.to_dense().unwrap();
    let measured = quant_core::metrics::relative_frobenius(w.as_slice().unwrap(), &dense).unwrap();
    assert!((rounded.report.weight_error / measured - 1.0).abs() < 1e-9);
}

#[test]
fn palu_counts_the_block_diagonal_only() {
    let (w, x) = (weight(64, 48), inputs(Inputs::Correlated, 200, 48, 2));
    let statistics = statistics(&x);
    let config = Palu { heads: 4, heads_per_group: 2, width: Ratio::Kept(0.5), ..Palu::default() };
    let found = config.compress(&w, &Calibration::from(&statistics)).unwrap();
    assert_eq!(found.report.ranks, [16, 16]);
    assert_eq!(found.report.bytes, 2 * (32 * 48 + 2 * 32 * 16), "f16: B whole, A by groups");
}

#[test]
fn an_allocation_mixes_plans_within_its_bytes_and_loses_what_was_measured() {
    let x = inputs(Inputs::CorrelatedOutliers, 800, 64, 2);
    let statistics = statistics(&x);
    let calibration = Calibration::from(&statistics);
    // One layer of low rank, one of full rank.
    let full = weight(64, 64);
    let low = common::narrow(&quant_linalg::gaussian(64, 6, 5).dot(&quant_linalg::gaussian(6, 64, 6)));
    let method = SvdLlm::default();
    let menu = Menu {
        dense: ["f16", "int8", "int4-g32"].map(|name| name.parse().unwrap()).to_vec(),
        kept: vec![0.2, 0.4, 0.6, 0.8, 1.0],
        factors: ["f16", "int8"].map(|name| name.parse().unwrap()).to_vec(),
        corrected: vec!["int4-g32".parse().unwrap()],
        correction_ranks: vec![4, 8, 99],
        ..Menu::default()
    };
    let layers = [&full, &low].map(|w| options(w, &method, &calibration, &menu).unwrap());
    let is = |option: &LayerOption, f: fn(&Plan) -> bool| f(&option.plan);
    assert_eq!(layers[0].iter().filter(|o| is(o, |p| matches!(p, Plan::Dense { .. }))).count(), 3);
    assert_eq!(
        layers[0].iter().filter(|o| is(o, |p| matches!(p, Plan::LowRank { .. }))).count(),
        8,
        "1.0 saves nothing"
    );
    assert_eq!(
        layers[0].iter().filter(|o| is(o, |p| matches!(p, Plan::Corrected { .. }))).count(),
        2,
        "99 is too many"
    );

    let dense_bytes = 2 * 2 * 64 * 64;
    let mut last = f64::INFINITY;
    for budget in [dense_bytes / 4, dense_bytes / 3, dense_bytes / 2, dense_bytes] {
        let best = allocate(&layers, budget).unwrap();
        assert!(best.bytes <= budget && best.loss <= last, "{budget}: {best:?}");
        last = best.loss;
        let mut bytes = 0;
        for ((plan, w), options) in best.plans.iter().zip([&full, &low]).zip(&layers) {
            let linear = realize(*plan, w, &method, &calibration).unwrap();
            bytes += linear.footprint().total_bytes();
            let option = options.iter().find(|option| option.plan == *plan).unwrap();
            let measured = common::measured_output_error(w, &linear.to_dense().unwrap(), &x).powi(2);
            assert!(
                (measured - option.loss).abs() <= 1e-4 * option.loss + 1e-9,
                "{plan:?}: {measured}, {}",
                option.loss
            );
        }
        assert_eq!(bytes, best.bytes, "{budget}");
    }
    let tight = allocate(&layers, dense_bytes / 3).unwrap();
    assert!(matches!(tight.plans[1], Plan::LowRank { .. }), "the layer of low rank is factored: {:?}", tight.plans);
    assert!(!matches!(tight.plans[0], Plan::LowRank { .. }), "the other is rounded: {:?}", tight.plans);
}

#[test]
fn storages_and_configurations_have_stable_texts() {
    for name in ["f32", "f16", "bf16", "int4-g128-asym"] {
        assert_eq!(name.parse::<Storage>().unwrap().to_string(), name);
    }
    let truncation = Truncation { size: Size::Ratio(Ratio::Removed(0.2)), ..Truncation::default() };
    let method = SvdLlm { truncation, ..SvdLlm::default() };
    let text = serde_json::to_string(&method).unwrap();
    assert_eq!(
        text,
        r#"{"damping":0.0,"truncation":{"size":{"ratio":{"removed":0.2}},"align":1,"sigma":"both","solver":"exact","storage":"f16"}}"#
    );
    assert_eq!(serde_json::from_str::<SvdLlm>(&text).unwrap(), method);
    assert_eq!(serde_json::from_str::<SvdLlm>("{}").unwrap(), SvdLlm::default());
    assert!(serde_json::from_str::<SvdLlm>(r#"{"dampening":1.0}"#).is_err(), "unknown fields are refused");
    let any = serde_json::from_str::<AnyMethod>(r#"{"method":"svd-llm","damping":0.01}"#).unwrap();
    assert_eq!(any, AnyMethod::SvdLlm(SvdLlm { damping: 0.01, ..SvdLlm::default() }));
    assert!(serde_json::from_str::<AnyMethod>(r#"{"method":"svd","damping":0.01}"#).is_err(), "the plain SVD has none");
    assert!(serde_json::from_str::<Storage>(r#""int99""#).is_err(), "unknown storages are refused");
}

//! Closed forms: what must hold exactly, or to round-off.

mod common;

use common::{Inputs, inputs, measured_output_error, norm, rank, statistics, weight};
use low_rank::{
    Asvd, Calibration, DenseLinear, Factored, Fisher, FisherAxis, Fwsvd, Method, Metric, Palu, PlainSvd, Ratio,
    RootKind, ScaleSource, SigmaFuse, Solver, Storage, Sum, SvdLlm, Truncation, Whitening, fold_hadamard, fold_output,
    output_energy, refit_left,
};
use ndarray::{Array2, Axis, array};
use quant_core::{Linear, metrics};
use quant_linalg::gaussian;

fn error(w: &Array2<f32>, found: &Factored) -> f64 {
    metrics::relative_frobenius(w.as_slice().unwrap(), &found.to_dense().unwrap()).unwrap()
}

/// From a weight and its calibration to the errors of weight and output.
type Run = Box<dyn Fn(&Array2<f32>, &Calibration<'_>) -> (f64, f64)>;

/// Every method with a rank.
fn methods(truncation: &Truncation) -> Vec<(&'static str, Run)> {
    fn run<M: Method + 'static>(method: M) -> Run {
        Box::new(move |w, calibration| {
            let found = method.compress(w, calibration).unwrap();
            (found.report.weight_error, found.report.output_error.unwrap())
        })
    }
    let asvd = |alpha, source| Asvd { alpha, source, truncation: truncation.clone() };
    let fwsvd = |axis| Fwsvd { axis, alpha: 1.0, truncation: truncation.clone() };
    vec![
        ("svd", run(PlainSvd { truncation: truncation.clone() })),
        ("asvd mean", run(asvd(0.5, ScaleSource::AbsMean))),
        ("asvd max", run(asvd(0.5, ScaleSource::AbsMax))),
        ("asvd fisher", run(asvd(0.5, ScaleSource::Fisher))),
        ("asvd both", run(asvd(1.0, ScaleSource::FisherAbsMean))),
        ("fwsvd rows", run(fwsvd(FisherAxis::Rows))),
        ("fwsvd columns", run(fwsvd(FisherAxis::Columns))),
        ("svd-llm", run(SvdLlm { damping: 0.0, truncation: truncation.clone() })),
    ]
}

#[test]
fn full_rank_gives_the_weight_back_whatever_the_scales() {
    // Wide, so that full rank (20) is still below the break-even of a matrix of 20 × 500.
    let w = weight(20, 500);
    let statistics = statistics(&inputs(Inputs::CorrelatedOutliers, 2000, 500, 2));
    let fisher = gaussian(20, 500, 3).mapv(|value| value * value);
    let calibration = Calibration { fisher: Some(&Fisher::of(fisher.view())), ..Calibration::from(&statistics) };
    for (name, method) in methods(&rank(19)) {
        assert!(method(&w, &calibration).0 > 0.05, "{name}: 19 of 20 lose something");
    }
    let decomposition = PlainSvd::default().decompose(&w, &calibration, 20).unwrap();
    let (a, b) = decomposition.factors(20, SigmaFuse::Both).unwrap();
    let back = a.dot(&b);
    assert!((back - w.mapv(f64::from)).iter().all(|error| error.abs() < 1e-12), "plain");
    let llm = SvdLlm::default().decompose(&w, &calibration, 20).unwrap();
    let asvd = Asvd::default().decompose(&w, &calibration, 20).unwrap();
    for decomposition in [llm, asvd] {
        for sigma in [SigmaFuse::U, SigmaFuse::V, SigmaFuse::Both] {
            let (a, b) = decomposition.factors(20, sigma).unwrap();
            let error = norm(a.dot(&b) - w.mapv(f64::from)) / norm(w.iter().map(|&value| f64::from(value)));
            assert!(error < 1e-9, "{sigma:?}: {error:e}");
        }
    }
}

#[test]
fn the_error_in_the_scaled_space_is_the_sum_of_the_values_dropped() {
    let (w, x) = (weight(48, 40), inputs(Inputs::CorrelatedOutliers, 1000, 40, 2));
    let statistics = statistics(&x);
    let calibration = Calibration::from(&statistics);
    let wide = w.mapv(f64::from);
    let cases = [
        PlainSvd::default().decompose(&w, &calibration, 40).unwrap(),
        Asvd::default().decompose(&w, &calibration, 40).unwrap(),
        SvdLlm::default().decompose(&w, &calibration, 40).unwrap(),
    ];
    let gram = statistics.gram().unwrap().matrix() / 1000.0;
    for (index, decomposition) in cases.iter().enumerate() {
        for rank in [1, 7, 20, 39] {
            let (a, b) = decomposition.factors(rank, SigmaFuse::Both).unwrap();
            let error = &wide - &a.dot(&b);
            let found = match &decomposition.metrics().right {
                Metric::Identity => error.iter().map(|value| value * value).sum(),
                Metric::Diagonal(s) => (error * ndarray::Array1::from_vec(s.clone())).iter().map(|v| v * v).sum(),
                // Whitened: the mean squared output error over calibration.
                _ => output_energy(error.view(), gram.view()),
            };
            let tail: f64 = decomposition.spectrum()[rank..].iter().map(|value| value * value).sum();
            assert!((found - tail).abs() < 1e-8 * tail, "case {index}, rank {rank}: {found} and {tail}");
            assert!((decomposition.dropped(rank) - tail).abs() <= 1e-12 * tail, "case {index}, rank {rank}");
        }
    }
}

#[test]
fn the_output_error_of_the_report_is_the_one_measured_token_by_token() {
    let (w, x) = (weight(64, 48), inputs(Inputs::CorrelatedOutliers, 700, 48, 2));
    let statistics = statistics(&x);
    let found =
        SvdLlm { truncation: rank(12), ..SvdLlm::default() }.compress(&w, &Calibration::from(&statistics)).unwrap();
    let measured = measured_output_error(&w, &found.linear.to_dense().unwrap(), &x);
    let reported = found.report.output_error.unwrap();
    assert!((reported / measured - 1.0).abs() < 1e-5, "{reported} and {measured}");
    assert!((reported / found.report.dropped - 1.0).abs() < 1e-4, "{reported} and {}", found.report.dropped);
}

#[test]
fn a_diagonal_of_ones_or_an_exponent_of_zero_is_the_plain_svd() {
    let w = weight(40, 40);
    let statistics = statistics(&inputs(Inputs::Outliers, 500, 40, 2));
    let calibration = Calibration::from(&statistics);
    let plain = PlainSvd { truncation: rank(10) }.compress(&w, &calibration).unwrap();
    let flat = Asvd { alpha: 0.0, truncation: rank(10), ..Asvd::default() }.compress(&w, &calibration).unwrap();
    assert_eq!(plain.linear, flat.linear);
    let fisher = Array2::from_elem((40, 40), 0.3);
    let calibration = Calibration { fisher: Some(&Fisher::of(fisher.view())), ..calibration };
    for axis in [FisherAxis::Rows, FisherAxis::Columns] {
        let even = Fwsvd { axis, truncation: rank(10), ..Fwsvd::default() }.compress(&w, &calibration).unwrap();
        let (a, b) = (plain.linear.to_dense().unwrap(), even.linear.to_dense().unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{axis:?}");
    }
}

#[test]
fn the_scale_of_the_inputs_does_not_matter() {
    let (w, x) = (weight(40, 40), inputs(Inputs::CorrelatedOutliers, 500, 40, 2));
    let (once, louder) = (statistics(&x), statistics(&(&x * 1024.0)));
    for alpha in [0.5, 1.0] {
        let method = Asvd { alpha, truncation: rank(10), ..Asvd::default() };
        let [a, b] =
            [&once, &louder].map(|s| method.compress(&w, &Calibration::from(s)).unwrap().linear.to_dense().unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "ASVD {alpha}");
    }
    let method = SvdLlm { truncation: rank(10), ..SvdLlm::default() };
    let [a, b] =
        [&once, &louder].map(|s| method.compress(&w, &Calibration::from(s)).unwrap().linear.to_dense().unwrap());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "SVD-LLM");
}

#[test]
fn with_uncorrelated_inputs_asvd_of_exponent_one_is_the_optimum() {
    // Four tokens a channel, one channel a token: the Gram matrix is exactly diagonal, and every channel has the same shape.
    let w = weight(40, 32);
    let sizes = ndarray::Array1::from_shape_fn(32, |j| if j % 5 == 0 { 20.0_f32 } else { 1.0 + j as f32 / 8.0 });
    let mut x = Array2::zeros((128, 32));
    for (token, mut row) in x.axis_iter_mut(Axis(0)).enumerate() {
        row[token % 32] = if token < 64 { sizes[token % 32] } else { -sizes[token % 32] };
    }
    let statistics = statistics(&x);
    let calibration = Calibration::from(&statistics);
    let asvd = Asvd { alpha: 1.0, truncation: rank(8), ..Asvd::default() }.compress(&w, &calibration).unwrap();
    let llm = SvdLlm { truncation: rank(8), ..SvdLlm::default() }.compress(&w, &calibration).unwrap();
    let (a, b) = (asvd.report.output_error.unwrap(), llm.report.output_error.unwrap());
    assert!((a / b - 1.0).abs() < 1e-6, "{a} and {b}");
}

#[test]
fn whitening_is_the_optimum_no_method_and_no_change_of_the_factors_does_better() {
    let w = weight(48, 40);
    let fisher = gaussian(48, 40, 3).mapv(|value| value * value);
    for kind in [Inputs::Isotropic, Inputs::Correlated, Inputs::Outliers, Inputs::CorrelatedOutliers] {
        let statistics = statistics(&inputs(kind, 600, 40, 2));
        let calibration = Calibration { fisher: Some(&Fisher::of(fisher.view())), ..Calibration::from(&statistics) };
        for r in [3, 12, 20] {
            let best = SvdLlm { truncation: rank(r), ..SvdLlm::default() }.compress(&w, &calibration).unwrap();
            let best = best.report.output_error.unwrap();
            for (name, method) in methods(&rank(r)) {
                let found = method(&w, &calibration).1;
                assert!(found >= best * (1.0 - 1e-6), "{kind:?}, rank {r}: {name} {found} beats whitening {best}");
            }
        }
    }
    let statistics = statistics(&inputs(Inputs::CorrelatedOutliers, 600, 40, 2));
    let gram = statistics.gram().unwrap().matrix();
    let decomposition = SvdLlm::default().decompose(&w, &Calibration::from(&statistics), 40).unwrap();
    let (a, b) = decomposition.factors(12, SigmaFuse::Both).unwrap();
    let wide = w.mapv(f64::from);
    let loss = |a: &Array2<f64>, b: &Array2<f64>| output_energy((&wide - &a.dot(b)).view(), gram.view());
    let least = loss(&a, &b);
    for seed in 0..20 {
        let step = 1e-3 * if seed % 2 == 0 { 1.0 } else { -1.0 };
        assert!(loss(&(&a + &(gaussian(48, 12, seed) * step)), &b) > least, "left, {seed}");
        assert!(loss(&a, &(&b + &(gaussian(12, 40, seed) * step))) > least, "right, {seed}");
    }
}

#[test]
fn whitening_by_eigenvectors_gives_what_cholesky_gives() {
    let x = inputs(Inputs::Correlated, 300, 24, 2);
    let gram = statistics(&x).gram().unwrap().matrix() / 300.0;
    let lower = Whitening::new(gram.view(), 0.0).unwrap();
    assert_eq!(lower.kind(), RootKind::Cholesky);
    // A channel that never fires makes the matrix singular; on the others nothing changes.
    let mut dead = x.clone();
    dead.column_mut(5).fill(0.0);
    let statistics = statistics(&dead);
    let gram = statistics.gram().unwrap().matrix() / 300.0;
    let root = Whitening::new(gram.view(), 0.0).unwrap();
    assert!(matches!(root.kind(), RootKind::Eigen { raised: 1, .. }), "{:?}", root.kind());

    let w = weight(30, 24);
    let method = SvdLlm { truncation: rank(8), ..SvdLlm::default() };
    let found = method.compress(&w, &Calibration::from(&statistics)).unwrap();
    // The same without the dead channel, where Cholesky works.
    let keep: Vec<usize> = (0..24).filter(|&j| j != 5).collect();
    let (w_alive, x_alive) = (w.select(Axis(1), &keep), x.select(Axis(1), &keep));
    let alive = common::statistics(&x_alive);
    let expected = method.compress(&w_alive, &Calibration::from(&alive)).unwrap();
    let (a, b) = (found.report.output_error.unwrap(), expected.report.output_error.unwrap());
    assert!((a / b - 1.0).abs() < 1e-5, "{a} and {b}");
    // The dead channel's column stays near the weight's scale, where a tiny floor's inverse would have thrown it far away.
    assert!(found.linear.to_dense().unwrap().iter().all(|value| value.abs() < 100.0), "no blow-up");
}

#[test]
fn a_zero_channel_does_not_magnify_anything() {
    let (w, mut x) = (weight(40, 40), inputs(Inputs::Outliers, 500, 40, 2));
    x.column_mut(7).fill(0.0);
    let statistics = statistics(&x);
    for alpha in [0.5, 1.0] {
        let method = Asvd { alpha, truncation: rank(12), ..Asvd::default() };
        let found = method.compress(&w, &Calibration::from(&statistics)).unwrap();
        assert!(error(&w, &found.linear) < 2.0, "α = {alpha}: {}", error(&w, &found.linear));
    }
}

#[test]
fn a_randomized_decomposition_is_close_and_repeats() {
    let w = weight(128, 128);
    let statistics = statistics(&inputs(Inputs::CorrelatedOutliers, 1000, 128, 2));
    let calibration = Calibration::from(&statistics);
    let exact = SvdLlm { truncation: rank(24), ..SvdLlm::default() };
    let solver = Solver::Randomized { oversample: 10, power_iterations: 4, seed: 3 };
    let quick = SvdLlm { truncation: Truncation { solver, ..rank(24) }, ..SvdLlm::default() };
    let [a, b, again] = [&exact, &quick, &quick].map(|method| method.compress(&w, &calibration).unwrap());
    assert_eq!(b, again);
    let (best, found) = (a.report.output_error.unwrap(), b.report.output_error.unwrap());
    assert!(found >= best * (1.0 - 1e-6) && found < 1.01 * best, "{best} and {found}");
    assert!((b.report.dropped / found - 1.0).abs() < 1e-4, "the tail follows from the energy");
}

#[test]
fn refitting_the_left_factor_to_the_same_inputs_changes_nothing() {
    let (w, x) = (weight(30, 24), inputs(Inputs::CorrelatedOutliers, 400, 24, 2));
    let statistics = statistics(&x);
    let gram = statistics.gram().unwrap().matrix();
    let decomposition = SvdLlm::default().decompose(&w, &Calibration::from(&statistics), 24).unwrap();
    let (a, b) = decomposition.factors(8, SigmaFuse::Both).unwrap();
    let wide = w.mapv(f64::from);
    let same = refit_left(wide.view(), b.view(), gram.view(), gram.view()).unwrap();
    assert!((&same - &a).iter().all(|error| error.abs() < 1e-7), "a no-op");
    // Inputs that have shifted: the refit loses less than the old factor.
    let shifted = &x + &(inputs(Inputs::Isotropic, 400, 24, 9) * 0.5);
    let (x, y) = (x.mapv(f64::from), shifted.mapv(f64::from));
    let refit = refit_left(wide.view(), b.view(), x.t().dot(&y).view(), y.t().dot(&y).view()).unwrap();
    let loss = |a: &Array2<f64>| norm(x.dot(&wide.t()) - y.dot(&a.dot(&b).t()));
    assert!(loss(&refit) < loss(&a), "{} and {}", loss(&refit), loss(&a));
}

#[test]
fn products_through_the_factors_are_products_with_what_they_say_they_are() {
    let w = weight(33, 70);
    for storage in ["f32", "f16", "bf16", "int8", "int4-g32"] {
        let truncation = Truncation { storage: storage.parse().unwrap(), ..rank(12) };
        let found = PlainSvd { truncation }.compress(&w, &Calibration::default()).unwrap();
        let Factored::Pair(pair) = &found.linear else { panic!("12 is below the break-even") };
        let dense = DenseLinear::new(found.linear.to_dense().unwrap(), 33, 70).unwrap();
        let x = inputs(Inputs::Isotropic, 5, 70, 4).into_raw_vec_and_offset().0;
        let (mut y, mut expected) = (vec![0.0; 5 * 33], vec![0.0; 5 * 33]);
        found.linear.matmul(&x, &mut y).unwrap();
        dense.matmul(&x, &mut expected).unwrap();
        assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3), "{storage}");
        assert_eq!((pair.rank(), pair.a().out_features(), pair.b().in_features()), (12, 33, 70), "{storage}");

        let sum = Sum::new(dense, pair.clone()).unwrap();
        sum.matmul(&x, &mut y).unwrap();
        assert!(y.iter().zip(&expected).all(|(a, b)| (a - 2.0 * b).abs() < 2e-3), "{storage}: a sum is twice");
        // Many rows are multiplied another way.
        let many = inputs(Inputs::Isotropic, 20, 70, 5).into_raw_vec_and_offset().0;
        let [mut found, mut expected] = [(); 2].map(|()| vec![0.0; 20 * 33]);
        pair.prepared().unwrap().matmul(&many, &mut found).unwrap();
        sum.matmul(&many, &mut expected).unwrap();
        let close = |tolerance: f32| found.iter().zip(&expected).all(|(a, b)| (2.0 * a - b).abs() < tolerance);
        assert!(close(if storage.starts_with("int") { 0.1 } else { 2e-3 }), "{storage}");
        // One row at a time gives the same bits as five at once.
        let mut row = vec![0.0; 33];
        sum.matmul(&x[2 * 70..3 * 70], &mut row).unwrap();
        assert_eq!(row, y[2 * 33..3 * 33], "{storage}");
    }
}

#[test]
fn palu_groups_interpolate_between_heads_and_the_joint_factorization() {
    // Eight heads of 16 on 64 inputs.
    let (w, x) = (weight(128, 64), inputs(Inputs::CorrelatedOutliers, 600, 64, 2));
    let statistics = statistics(&x);
    let calibration = Calibration::from(&statistics);
    let palu = |heads_per_group| {
        let config =
            Palu { heads: 8, heads_per_group, width: Ratio::Kept(0.25), storage: Storage::F32, ..Palu::default() };
        let found = config.compress(&w, &calibration).unwrap();
        assert_eq!(found.report.width, 0.25, "the same width of the latent");
        let measured = measured_output_error(&w, &found.linear.to_dense().unwrap(), &x);
        let reported = found.report.output_error.unwrap();
        assert!((reported / measured - 1.0).abs() < 1e-5, "{reported} and {measured}");
        reported
    };
    let errors = [1, 2, 4, 8].map(palu);
    assert!(errors.is_sorted_by(|a, b| a >= b), "M-LRD ≥ G-LRD ≥ J-LRD: {errors:?}");
    let joint = SvdLlm { truncation: rank(32), ..SvdLlm::default() }.compress(&w, &calibration).unwrap();
    assert!((errors[3] / joint.report.output_error.unwrap() - 1.0).abs() < 1e-5, "all heads together are SVD-LLM");
}

#[test]
fn a_folded_hadamard_keeps_the_product_and_lowers_the_kurtosis_of_the_latent() {
    let (w, x) = (weight(64, 64), inputs(Inputs::CorrelatedOutliers, 600, 64, 2));
    let statistics = statistics(&x);
    let decomposition = SvdLlm::default().decompose(&w, &Calibration::from(&statistics), 64).unwrap();
    let (a, b) = decomposition.factors(32, SigmaFuse::Both).unwrap();
    let (mut turned_a, mut turned_b) = (a.clone(), b.clone());
    fold_hadamard(&mut turned_a, &mut turned_b).unwrap();
    assert!((turned_a.dot(&turned_b) - a.dot(&b)).iter().all(|error| error.abs() < 1e-12), "the product stays");
    let kurtosis = |b: &Array2<f64>| {
        let latents = x.mapv(f64::from).dot(&b.t());
        metrics::kurtosis(common::narrow(&latents).as_slice().unwrap()).unwrap()
    };
    assert!(kurtosis(&turned_b) < kurtosis(&b), "{} and {}", kurtosis(&turned_b), kurtosis(&b));

    let config = Palu { heads: 4, heads_per_group: 2, hadamard: true, storage: Storage::F32, ..Palu::default() };
    let plain = Palu { hadamard: false, ..config.clone() };
    let [a, b] =
        [&config, &plain].map(|c| c.compress(&w, &Calibration::from(&statistics)).unwrap().linear.to_dense().unwrap());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4), "through the configuration");
}

#[test]
fn values_folded_into_the_output_projection_give_the_same_attention() {
    // Two value heads of 8 in one group, four query heads (two for each value head).
    let (w, x) = (weight(16, 32), inputs(Inputs::Correlated, 50, 32, 2));
    let statistics = statistics(&x);
    let config = Palu { heads: 2, heads_per_group: 2, storage: Storage::F32, ..Palu::default() };
    let values = config.compress(&w, &Calibration::from(&statistics)).unwrap().linear;
    let output = weight(12, 32);
    let folded = fold_output(&output, &values, 2).unwrap();
    assert_eq!(folded.dim(), (12, 4 * 8));

    let tokens = x.as_slice().unwrap();
    let (mut v, mut latents) = (vec![0.0; 50 * 16], vec![0.0; 50 * 8]);
    values.matmul(tokens, &mut v).unwrap();
    values.latent().matmul(tokens, &mut latents).unwrap();
    let v = Array2::from_shape_vec((50, 16), v).unwrap().mapv(f64::from);
    let latents = Array2::from_shape_vec((50, 8), latents).unwrap().mapv(f64::from);
    let p = gaussian(4, 50, 5);
    let attended = ndarray::concatenate(
        Axis(0),
        &std::array::from_fn::<_, 4, _>(|h| {
            let head = v.select(Axis(1), &(h / 2 * 8..h / 2 * 8 + 8).collect::<Vec<_>>());
            p.row(h).dot(&head)
        })
        .each_ref()
        .map(|part| part.view()),
    )
    .unwrap();
    let short = ndarray::concatenate(
        Axis(0),
        &std::array::from_fn::<_, 4, _>(|h| p.row(h).dot(&latents)).each_ref().map(|part| part.view()),
    )
    .unwrap();
    let error = output.mapv(f64::from).dot(&attended) - folded.dot(&short);
    assert!(error.iter().all(|error| error.abs() < 1e-3), "{error}");
}

#[test]
fn triangular_systems_are_solved_from_the_right_side() {
    // A Gram matrix that is far from diagonal: a transposed solve would not give the weight back.
    let x = array![[1.0_f32, 2.0, 0.0], [0.0, 1.0, 3.0], [4.0, 0.0, 1.0], [1.0, 1.0, 1.0]];
    let statistics = statistics(&x);
    let w = weight(9, 3);
    let decomposition = SvdLlm::default().decompose(&w, &Calibration::from(&statistics), 3).unwrap();
    let (a, b) = decomposition.factors(3, SigmaFuse::Both).unwrap();
    assert!((a.dot(&b) - w.mapv(f64::from)).iter().all(|error| error.abs() < 1e-12));
}

#[test]
fn weights_of_zeros_and_of_lower_rank_than_asked_are_exact() {
    let statistics = statistics(&inputs(Inputs::Correlated, 200, 40, 2));
    let calibration = Calibration::from(&statistics);
    let low = common::narrow(&gaussian(40, 3, 1).dot(&gaussian(3, 40, 2)));
    for w in [Array2::zeros((40, 40)), low] {
        for solver in [Solver::Exact, Solver::Randomized { oversample: 5, power_iterations: 2, seed: 1 }] {
            let truncation = Truncation { solver, ..rank(8) };
            let plain = PlainSvd { truncation: truncation.clone() }.compress(&w, &calibration).unwrap();
            let white = SvdLlm { truncation, ..SvdLlm::default() }.compress(&w, &calibration).unwrap();
            for found in [plain, white] {
                assert!(found.report.weight_error < 1e-6, "{solver:?}: {}", found.report.weight_error);
                assert!(found.report.output_error.unwrap() < 1e-6, "{solver:?}: {:?}", found.report.output_error);
            }
        }
    }
}

#[test]
fn factors_do_not_depend_on_the_number_of_threads() {
    let w = weight(300, 420);
    let statistics = statistics(&inputs(Inputs::CorrelatedOutliers, 600, 420, 2));
    let x = inputs(Inputs::Isotropic, 3, 420, 7).into_raw_vec_and_offset().0;
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let solver = Solver::Randomized { oversample: 10, power_iterations: 2, seed: 1 };
            let truncation = Truncation { solver, storage: "int8-g32".parse().unwrap(), ..rank(40) };
            let method = SvdLlm { truncation, ..SvdLlm::default() };
            let found = method.compress(&w, &Calibration::from(&statistics)).unwrap();
            let dense = DenseLinear::new(found.linear.to_dense().unwrap(), 300, 420).unwrap();
            let (mut y, mut z) = (vec![0.0; 900], vec![0.0; 900]);
            found.linear.matmul(&x, &mut y).unwrap();
            dense.matmul(&x, &mut z).unwrap();
            (found, y, z)
        })
    };
    let expected = run(1);
    for threads in [2, 7] {
        assert!(run(threads) == expected, "{threads} threads give something else");
    }
}

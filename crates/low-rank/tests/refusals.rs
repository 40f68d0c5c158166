//! Bad input is an error that says what is wrong; never a random layer.

mod common;

use common::{Inputs, inputs, kept, rank, statistics, weight};
use low_rank::{
    Asvd, Calibration, DenseLinear, Error, Fisher, Fwsvd, LowRank, Menu, Method, Palu, PlainSvd, Ratio, ScaleSource,
    Size, Storage, Sum, SvdLlm, Truncation, Whitening, correct, fold_hadamard, fold_output, options, refit_left,
};
use ndarray::{Array1, Array2, array};
use quant_calib::{Needs, Statistics};
use quant_core::Linear;

fn svd(truncation: Truncation) -> PlainSvd {
    PlainSvd { truncation }
}

#[test]
fn ranks_outside_the_matrix_are_refused() {
    let w = weight(12, 20);
    for r in [0, 13, usize::MAX] {
        let found = svd(rank(r)).compress(&w, &Calibration::default());
        assert_eq!(found.unwrap_err(), Error::Rank { rank: r, rows: 12, columns: 20 });
    }
}

#[test]
fn ratios_that_are_no_shares_or_cannot_be_reached_are_refused() {
    let w = weight(12, 20);
    for bad in [0.0, -0.5, 1.01, f64::NAN, f64::INFINITY] {
        assert!(matches!(svd(kept(bad)).compress(&w, &Calibration::default()), Err(Error::Ratio { .. })), "{bad}");
    }
    assert_eq!(Ratio::Removed(1.0).kept(), Err(Error::Ratio { kept: 0.0 }));
    let found = svd(kept(0.1)).compress(&w, &Calibration::default()).unwrap_err();
    assert_eq!(found, Error::Unreachable { kept: 0.1, smallest: 32.0 / 240.0 });
    let align = Truncation { align: 0, ..kept(0.5) };
    assert!(matches!(svd(align).compress(&w, &Calibration::default()), Err(Error::Setting { setting: "align", .. })));
}

#[test]
fn weights_that_are_not_finite_matrices_are_refused() {
    let mut w = weight(12, 20);
    w[(3, 4)] = f32::NAN;
    let found = svd(rank(4)).compress(&w, &Calibration::default()).unwrap_err();
    assert!(matches!(found, Error::Core(quant_core::Error::NonFinite { index: 64, .. })), "{found}");
    let line = Array1::<f32>::zeros(5);
    assert_eq!(
        svd(rank(1)).compress(&line, &Calibration::default()).unwrap_err(),
        Error::NotAMatrix { shape: vec![5] }
    );
    let empty = Array2::<f32>::zeros((0, 5));
    let found = svd(rank(1)).compress(&empty, &Calibration::default()).unwrap_err();
    assert!(matches!(found, Error::Core(quant_core::Error::Empty { .. })), "{found}");
}

#[test]
fn statistics_that_are_missing_or_of_another_width_are_refused() {
    let w = weight(12, 20);
    let nothing = Calibration::default();
    let missing = |what, method| Error::Missing { method, what };
    assert_eq!(Asvd::default().compress(&w, &nothing).unwrap_err(), missing("channel statistics", "ASVD"));
    assert_eq!(SvdLlm::default().compress(&w, &nothing).unwrap_err(), missing("the Gram matrix", "SVD-LLM"));
    assert_eq!(Fwsvd::default().compress(&w, &nothing).unwrap_err(), missing("Fisher information", "FWSVD"));
    assert_eq!(Palu::default().compress(&w, &nothing).unwrap_err(), missing("the Gram matrix", "Palu"));

    let other = statistics(&inputs(Inputs::Isotropic, 40, 19, 2));
    let calibration = Calibration::from(&other);
    for found in [
        Asvd::default().compress(&w, &calibration).unwrap_err(),
        SvdLlm::default().compress(&w, &calibration).unwrap_err(),
        svd(rank(3)).compress(&w, &calibration).unwrap_err(),
    ] {
        assert!(matches!(found, Error::Features { expected: 20, found: 19, .. }), "{found}");
    }
    let fisher = Array2::ones((11, 20));
    let calibration = Calibration { fisher: Some(&Fisher::of(fisher.view())), ..nothing };
    assert!(matches!(
        Fwsvd::default().compress(&w, &calibration),
        Err(Error::Features { expected: 12, found: 11, .. })
    ));
    let found = options(&w, &PlainSvd::default(), &nothing, &Menu::default()).unwrap_err();
    assert_eq!(found, missing("the Gram matrix", "allocation"));
}

#[test]
fn statistics_of_nothing_are_refused() {
    let w = weight(12, 20);
    let needs = Needs { channels: true, ..Needs::gram() };
    let none = Statistics::new(20, &needs).unwrap();
    let silent = statistics(&Array2::zeros((30, 20)));
    for statistics in [&none, &silent] {
        let calibration = Calibration::from(statistics);
        assert!(matches!(Asvd::default().compress(&w, &calibration), Err(Error::AllZero { .. })));
        assert!(matches!(SvdLlm::default().compress(&w, &calibration), Err(Error::AllZero { .. })));
    }
    let fisher = Array2::zeros((12, 20));
    let calibration = Calibration { fisher: Some(&Fisher::of(fisher.view())), ..Calibration::default() };
    assert_eq!(
        Fwsvd::default().compress(&w, &calibration).unwrap_err(),
        Error::AllZero { what: "Fisher informations" }
    );
}

#[test]
fn bad_fisher_information_and_settings_are_refused() {
    let w = weight(12, 20);
    let mut fisher = Array2::ones((12, 20));
    fisher[(2, 3)] = f64::NAN;
    let calibration = Calibration { fisher: Some(&Fisher::of(fisher.view())), ..Calibration::default() };
    assert!(matches!(Fwsvd::default().compress(&w, &calibration), Err(Error::Statistic { index: 2, .. })));
    let source = ScaleSource::Fisher;
    let found = Asvd { source, ..Asvd::default() }.compress(&w, &calibration);
    assert!(matches!(found, Err(Error::Statistic { index: 3, .. })));

    let statistics = statistics(&inputs(Inputs::Isotropic, 40, 20, 2));
    let calibration = Calibration::from(&statistics);
    for alpha in [-1.0, f64::NAN, f64::INFINITY] {
        let found = Asvd { alpha, ..Asvd::default() }.compress(&w, &calibration);
        assert!(matches!(found, Err(Error::Setting { setting: "alpha", .. })), "{alpha}");
        let found = SvdLlm { damping: alpha, ..SvdLlm::default() }.compress(&w, &calibration);
        assert!(matches!(found, Err(Error::Setting { setting: "damping", .. })), "{alpha}");
    }
}

#[test]
fn an_indefinite_gram_matrix_is_refused_and_a_singular_one_is_not() {
    let indefinite = array![[1.0, 0.0], [0.0, -0.5]];
    assert_eq!(Whitening::new(indefinite.view(), 0.0).unwrap_err(), Error::Indefinite { least: -0.5, largest: 1.0 });
    let singular = array![[1.0, 1.0], [1.0, 1.0]];
    assert!(Whitening::new(singular.view(), 0.0).is_ok(), "by eigenvectors");
    let damped = Whitening::new(singular.view(), 0.01).unwrap();
    assert_eq!(damped.kind(), low_rank::RootKind::Cholesky);
    let bad = array![[1.0, 0.0], [0.0, f64::NAN]];
    assert!(matches!(Whitening::new(bad.view(), 0.0), Err(Error::Linalg(quant_linalg::Error::NonFinite { .. }))));
}

#[test]
fn factors_that_their_storage_cannot_hold_are_refused() {
    let w = weight(12, 20).mapv(|value| value * 1e20);
    let f16 = Truncation { storage: "f16".parse().unwrap(), ..rank(3) };
    let found = svd(f16).compress(&w, &Calibration::default()).unwrap_err();
    assert!(matches!(found, Error::FactorRange { .. }), "{found}");
    for storage in ["f32", "bf16", "int8-f32"] {
        let truncation = Truncation { storage: storage.parse().unwrap(), ..rank(3) };
        assert!(svd(truncation).compress(&w, &Calibration::default()).is_ok(), "{storage}");
    }
}

#[test]
fn linears_that_do_not_fit_are_refused() {
    let dense = |rows, columns| DenseLinear::new(vec![1.0; rows * columns], rows, columns).unwrap();
    let found = LowRank::new(dense(4, 3), dense(2, 5)).unwrap_err();
    assert_eq!(found, Error::Mismatch { left: (4, 3), right: (2, 5) });
    assert!(matches!(Sum::new(dense(4, 3), dense(3, 4)), Err(Error::Mismatch { .. })));
    assert!(matches!(
        correct(&weight(4, 3), dense(3, 4), &svd(rank(1)), &Calibration::default()),
        Err(Error::Mismatch { .. })
    ));
    assert!(DenseLinear::new(vec![1.0; 5], 2, 3).is_err());
    assert!(DenseLinear::new(vec![f32::NAN], 1, 1).is_err());
    let pair = LowRank::new(dense(4, 2), dense(2, 5)).unwrap();
    let mut y = [0.0; 4];
    assert!(matches!(pair.matmul(&[0.0; 6], &mut y), Err(quant_core::Error::Features { in_features: 5, found: 6 })));
    assert!(matches!(pair.matmul(&[0.0; 10], &mut y), Err(quant_core::Error::OutputLen { expected: 8, found: 4 })));
    let m = Array2::<f64>::ones((3, 3));
    let found = refit_left(m.view(), Array2::ones((2, 4)).view(), m.view(), m.view());
    assert!(matches!(found, Err(Error::Features { expected: 3, found: 4, .. })));
}

#[test]
fn heads_groups_and_widths_that_do_not_fit_are_refused() {
    let w = weight(24, 16);
    let statistics = statistics(&inputs(Inputs::Correlated, 60, 16, 2));
    let calibration = Calibration::from(&statistics);
    for (heads, heads_per_group) in [(0, 1), (5, 1), (6, 4), (6, 0)] {
        let config = Palu { heads, heads_per_group, ..Palu::default() };
        assert!(matches!(config.compress(&w, &calibration), Err(Error::Heads { rows: 24, .. })), "{heads}");
    }
    let config = Palu { heads: 6, heads_per_group: 2, ..Palu::default() };
    let narrow = Palu { width: Ratio::Kept(0.1), ..config.clone() };
    assert!(matches!(narrow.compress(&w, &calibration), Err(Error::Unreachable { .. })));
    assert!(matches!(config.compress_to(&w, &calibration, &[1, 2]), Err(Error::Heads { .. })));
    assert!(matches!(config.compress_to(&w, &calibration, &[1, 0, 2]), Err(Error::Rank { rank: 0, .. })));
    assert!(matches!(config.compress_to(&w, &calibration, &[1, 9, 2]), Err(Error::Rank { rank: 9, .. })));
    let turned = Palu { hadamard: true, ..config.clone() };
    assert!(turned.compress(&w, &calibration).is_ok(), "a width of four");
    assert!(matches!(turned.compress_to(&w, &calibration, &[4, 3, 4]), Err(Error::Hadamard { width: 3 })));
    let (mut a, mut b) = (Array2::zeros((3, 4)), Array2::zeros((2, 3)));
    assert!(matches!(fold_hadamard(&mut a, &mut b), Err(Error::Mismatch { .. })));
    let values = config.compress(&w, &calibration).unwrap().linear;
    assert!(matches!(fold_output(&weight(5, 30), &values, 6), Err(Error::Mismatch { .. })));
    assert!(matches!(fold_output(&weight(5, 24), &values, 0), Err(Error::Mismatch { .. })));
}

#[test]
fn an_alignment_above_the_rank_is_out_of_reach() {
    let w = weight(64, 64);
    let truncation =
        Truncation { align: 32, size: Size::Ratio(Ratio::Kept(0.5)), storage: Storage::F32, ..Truncation::default() };
    let found = svd(truncation).compress(&w, &Calibration::default()).unwrap_err();
    assert_eq!(found, Error::Unreachable { kept: 0.5, smallest: 1.0 });
}

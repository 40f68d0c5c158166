//! Bad input is an error that says what is wrong.

use ndarray::{Array2, ArrayView2, array};
use proptest::prelude::*;
use quant_linalg::{
    Error, RandomizedSvd, cholesky, eigh, invert_lower, qr, random_orthogonal, randomized_svd, randomized_svd_f32,
    reversed_cholesky, solve_lower, solve_upper, svd,
};

type Decomposition = fn(ArrayView2<'_, f64>) -> Result<(), Error>;

const SQUARE: [(&str, Decomposition); 6] = [
    ("cholesky", |a| cholesky(a).map(drop)),
    ("reversed_cholesky", |a| reversed_cholesky(a).map(drop)),
    ("eigh", |a| eigh(a).map(drop)),
    ("invert_lower", |a| invert_lower(a).map(drop)),
    ("solve_lower", |a| solve_lower(a, Array2::ones((a.nrows(), 1)).view()).map(drop)),
    ("solve_upper", |a| solve_upper(a, Array2::ones((a.nrows(), 1)).view()).map(drop)),
];

const ANY: [(&str, Decomposition); 4] = [
    ("svd", |a| svd(a).map(drop)),
    ("randomized_svd", |a| randomized_svd(a, RandomizedSvd::of_rank(1)).map(drop)),
    ("randomized_svd_f32", |a| randomized_svd_f32(a, RandomizedSvd::of_rank(1)).map(drop)),
    ("qr", |a| qr(a).map(drop)),
];

#[test]
fn matrices_that_are_not_square_are_refused() {
    for (name, decompose) in SQUARE {
        let found = decompose(Array2::ones((2, 3)).view());
        assert_eq!(found, Err(Error::NotSquare { rows: 2, columns: 3 }), "{name}");
    }
}

#[test]
fn elements_that_are_not_finite_are_refused_by_position() {
    for (name, decompose) in SQUARE.into_iter().chain(ANY) {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut a = Array2::eye(3);
            a[(2, 1)] = bad;
            assert_eq!(decompose(a.view()), Err(Error::NonFinite { row: 2, column: 1 }), "{name}");
        }
    }
    let b = array![[1.0], [f64::NAN]];
    assert_eq!(solve_lower(Array2::eye(2).view(), b.view()), Err(Error::NonFinite { row: 1, column: 0 }));
}

#[test]
fn empty_matrices_are_refused() {
    for (name, decompose) in SQUARE.into_iter().chain(ANY) {
        assert_eq!(decompose(Array2::zeros((0, 0)).view()), Err(Error::Empty { rows: 0, columns: 0 }), "{name}");
    }
    assert_eq!(svd(Array2::zeros((3, 0)).view()), Err(Error::Empty { rows: 3, columns: 0 }));
    assert_eq!(random_orthogonal(0, 1), Err(Error::Empty { rows: 0, columns: 0 }));
}

#[test]
fn ranks_outside_the_matrix_are_refused() {
    let a = Array2::<f64>::eye(4);
    for rank in [0, 5, usize::MAX] {
        let found = randomized_svd(a.view(), RandomizedSvd::of_rank(rank));
        assert_eq!(found, Err(Error::Rank { rank, rows: 4, columns: 4 }));
        assert_eq!(randomized_svd_f32(a.view(), RandomizedSvd::of_rank(rank)), found);
    }
}

#[test]
fn singular_triangles_and_wrong_right_hand_sides_are_refused() {
    let l = array![[1.0, 0.0], [1.0, 0.0]];
    let b = Array2::ones((2, 1));
    assert_eq!(solve_lower(l.view(), b.view()), Err(Error::Singular { index: 1 }));
    assert_eq!(solve_upper(l.t(), b.view()), Err(Error::Singular { index: 1 }));
    assert_eq!(invert_lower(l.view()), Err(Error::Singular { index: 1 }));
    let eye = Array2::eye(2);
    assert_eq!(
        solve_lower(eye.view(), Array2::ones((3, 1)).view()),
        Err(Error::RightHandSide { expected: 2, found: 3 })
    );
}

#[test]
fn results_that_overflow_are_refused() {
    let tiny = array![[f64::MIN_POSITIVE / 4.0]];
    assert_eq!(invert_lower(tiny.view()), Err(Error::Overflow));
    assert_eq!(solve_lower(tiny.view(), array![[1.0]].view()), Err(Error::Overflow));
    let huge = Array2::from_elem((40, 40), 1e308);
    assert_eq!(randomized_svd(huge.view(), RandomizedSvd::of_rank(2)), Err(Error::Overflow));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever finite numbers a small matrix holds, the decompositions return a result or an error.
    #[test]
    fn no_finite_matrix_makes_a_decomposition_panic(
        rows in 1_usize..6,
        columns in 1_usize..6,
        values in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO, 36),
    ) {
        let a = Array2::from_shape_fn((rows, columns), |(i, j)| values[6 * i + j]);
        for (_, decompose) in SQUARE.into_iter().chain(ANY) {
            let _ = decompose(a.view());
        }
    }
}

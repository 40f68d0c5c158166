//! Closed forms, residuals and agreement with plain implementations.

use ndarray::{Array2, ArrayView2, array, s};
use quant_linalg::{
    Error, RandomizedSvd, add_matmul, cholesky, eigh, gaussian, invert_lower, matmul, qr, random_orthogonal,
    randomized_svd, randomized_svd_f32, reversed_cholesky, solve_lower, solve_upper, svd,
};

/// Sizes on both sides of the cuts at 256 and of faer's own blocks.
const SIZES: [usize; 7] = [1, 2, 5, 64, 255, 300, 530];

fn largest(a: &Array2<f64>) -> f64 {
    a.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn assert_close(a: &Array2<f64>, b: &Array2<f64>, tolerance: f64, what: &str) {
    let error = largest(&(a - b));
    assert!(error <= tolerance, "{what}: {error:e} is above {tolerance:e}");
}

/// A well conditioned symmetric positive definite matrix.
fn definite(n: usize, seed: u64) -> Array2<f64> {
    let x = gaussian(2 * n + 4, n, seed);
    x.t().dot(&x) / n as f64
}

#[expect(clippy::cast_possible_truncation, reason = "narrowing is what is wanted")]
fn narrow(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|value| value as f32)
}

/// The textbook product.
fn naive(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Array2<f64> {
    Array2::from_shape_fn((a.nrows(), b.ncols()), |(i, j)| (0..a.ncols()).map(|k| a[(i, k)] * b[(k, j)]).sum())
}

/// The textbook factorization, element by element.
fn naive_cholesky(a: &Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    let mut l = Array2::<f64>::zeros((n, n));
    for i in 0..n {
        for j in 0..=i {
            let rest = a[(i, j)] - (0..j).map(|k| l[(i, k)] * l[(j, k)]).sum::<f64>();
            l[(i, j)] = if i == j { rest.sqrt() } else { rest / l[(j, j)] };
        }
    }
    l
}

#[test]
fn a_product_is_the_textbook_one_for_every_layout() {
    for (m, k, n) in [(1, 1, 1), (3, 5, 2), (1, 700, 300), (300, 700, 1), (257, 3, 600), (520, 130, 70)] {
        let (a, b) = (gaussian(m, k, 1), gaussian(k, n, 2));
        let expected = naive(a.view(), b.view());
        let tolerance = 1e-12 * k as f64;
        assert_close(&matmul(a.view(), b.view()), &expected, tolerance, "row-major");
        let (at, bt) = (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
        assert_close(&matmul(at.t(), bt.t()), &expected, tolerance, "column-major");
        let mut wide = Array2::zeros((2 * m, 2 * k));
        wide.slice_mut(s![..;2, ..;2]).assign(&a);
        assert_close(&matmul(wide.slice(s![..;2, ..;2]), b.view()), &expected, tolerance, "strided");
        let single = matmul(narrow(&a).view(), narrow(&b).view()).mapv(f64::from);
        assert_close(&single, &expected, 1e-5 * k as f64, "f32");
    }
}

#[test]
fn adding_a_product_writes_only_its_part_of_a_larger_array() {
    let (a, b) = (gaussian(300, 40, 1), gaussian(40, 70, 2));
    let mut out = Array2::from_elem((300, 100), 1.0);
    add_matmul(out.slice_mut(s![.., 30..]), -2.0, a.view(), b.view());
    assert!(out.slice(s![.., ..30]).iter().all(|&value| value == 1.0), "the rest is untouched");
    let expected = 1.0 - 2.0 * naive(a.view(), b.view());
    assert_close(&out.slice(s![.., 30..]).to_owned(), &expected, 1e-11, "the part");
}

#[test]
fn a_cholesky_factor_is_the_textbook_one() {
    for n in SIZES {
        let a = definite(n, 3);
        let l = cholesky(a.view()).unwrap();
        assert_close(&l, &naive_cholesky(&a), 1e-10, "factor");
        assert_close(&l.dot(&l.t()), &a, 1e-12 * largest(&a), "residual");
        assert!(l.indexed_iter().all(|((i, j), &value)| i >= j || value == 0.0), "nothing above the diagonal");
    }
}

#[test]
fn only_the_lower_triangle_of_a_symmetric_matrix_is_read() {
    let a = definite(40, 4);
    let lower = Array2::from_shape_fn(a.dim(), |(i, j)| if i >= j { a[(i, j)] } else { 1e9 });
    assert_eq!(cholesky(a.view()), cholesky(lower.view()));
    assert_eq!(reversed_cholesky(a.view()), reversed_cholesky(lower.view()));
    assert_eq!(eigh(a.view()), eigh(lower.view()));
}

#[test]
fn the_reversed_factor_gives_the_inverse_and_is_the_upper_factor_of_it() {
    for n in SIZES {
        let h = definite(n, 5);
        let u = reversed_cholesky(h.view()).unwrap();
        assert!(u.indexed_iter().all(|((i, j), &value)| i <= j || value == 0.0), "upper triangular");
        assert_close(&u.t().dot(&u).dot(&h), &Array2::eye(n), 1e-12 * n as f64, "UᵀU H = I");

        // The way of the paper's code: invert through the Cholesky factor, then factor the inverse.
        let l_inverse = invert_lower(cholesky(h.view()).unwrap().view()).unwrap();
        let inverse = l_inverse.t().dot(&l_inverse);
        let expected = cholesky(inverse.view()).unwrap().reversed_axes();
        assert_close(&u, &expected, 1e-12 * n as f64, "chol(inv(H))ᵀ");
    }
}

#[test]
fn a_matrix_of_condition_1e8_keeps_the_identity_of_the_reversed_factor() {
    let q = random_orthogonal(120, 6).unwrap();
    let values = Array2::from_diag(&ndarray::Array1::logspace(10.0, 0.0, -8.0, 120));
    let h = q.dot(&values).dot(&q.t());
    let h = (&h + &h.t()) / 2.0;
    let u = reversed_cholesky(h.view()).unwrap();
    // U H Uᵀ = I holds to round-off times the condition.
    assert_close(&u.dot(&h).dot(&u.t()), &Array2::eye(120), 1e-6, "U H Uᵀ = I");
}

#[test]
fn an_indefinite_matrix_is_refused_with_its_pivot() {
    for pivot in [0, 1, 100, 255, 256, 299] {
        let mut a = Array2::<f64>::eye(300);
        a[(pivot, pivot)] = -1.0;
        assert_eq!(cholesky(a.view()), Err(Error::NotPositiveDefinite { pivot }));
        assert_eq!(reversed_cholesky(a.view()), Err(Error::NotPositiveDefinite { pivot }));
    }
    let singular = array![[1.0, 1.0], [1.0, 1.0]];
    assert_eq!(cholesky(singular.view()), Err(Error::NotPositiveDefinite { pivot: 1 }));
    assert_eq!(reversed_cholesky(singular.view()), Err(Error::NotPositiveDefinite { pivot: 0 }));
}

#[test]
fn triangular_systems_and_inverses_leave_no_residual() {
    for n in SIZES {
        let l = cholesky(definite(n, 7).view()).unwrap();
        let b = gaussian(n, 300, 8);
        assert_close(&l.dot(&solve_lower(l.view(), b.view()).unwrap()), &b, 1e-11, "L X = B");
        assert_close(&l.t().dot(&solve_upper(l.t(), b.view()).unwrap()), &b, 1e-11, "Lᵀ X = B");
        let inverse = invert_lower(l.view()).unwrap();
        assert_close(&l.dot(&inverse), &Array2::eye(n), 1e-12 * n as f64, "L L⁻¹ = I");
        assert!(inverse.indexed_iter().all(|((i, j), &value)| i >= j || value == 0.0), "lower triangular");
    }
}

#[test]
fn eigenvalues_of_a_second_difference_matrix_are_the_known_ones() {
    for n in [1, 2, 31, 200] {
        let a = Array2::from_shape_fn((n, n), |(i, j)| match i.abs_diff(j) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        });
        let eigen = eigh(a.view()).unwrap();
        for (k, &value) in eigen.values.iter().enumerate() {
            let angle = std::f64::consts::PI * (k + 1) as f64 / (2 * (n + 1)) as f64;
            assert!((value - 4.0 * angle.sin().powi(2)).abs() < 1e-13, "eigenvalue {k} of {n}");
        }
        let back = (&eigen.vectors * &eigen.values).dot(&eigen.vectors.t());
        assert_close(&back, &a, 1e-12, "V λ Vᵀ");
    }
}

#[test]
fn singular_values_of_built_matrices_come_back() {
    for (m, n) in [(1, 1), (1, 9), (9, 1), (20, 20), (70, 20), (20, 70), (300, 40), (130, 128)] {
        let k = m.min(n);
        let values = ndarray::Array1::from_shape_fn(k, |i| 10.0 * (0.8_f64).powf(i as f64));
        let u = random_orthogonal(m, 1).unwrap().slice(s![.., ..k]).to_owned();
        let v = random_orthogonal(n, 2).unwrap().slice(s![.., ..k]).to_owned();
        let a = (&u * &values).dot(&v.t());
        let found = svd(a.view()).unwrap();
        assert!(found.s.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-13 * 10.0), "{m}×{n}: {:?}", found.s);
        assert_close(&(&found.u * &found.s).dot(&found.vt), &a, 1e-13 * 10.0, "U s Vᵀ");
        assert_close(&found.u.t().dot(&found.u), &Array2::eye(k), 1e-13, "UᵀU");
        assert_close(&found.vt.dot(&found.vt.t()), &Array2::eye(k), 1e-13, "VᵀV");
    }
}

#[test]
fn zero_and_rank_deficient_matrices_decompose() {
    let zero = svd(Array2::zeros((4, 6)).view()).unwrap();
    assert!(zero.s.iter().all(|&value| value == 0.0), "{:?}", zero.s);
    assert_close(&zero.u.t().dot(&zero.u), &Array2::eye(4), 1e-13, "still orthonormal");
    let ones = svd(Array2::from_elem((3, 5), 1.0).view()).unwrap();
    assert!((ones.s[0] - 15.0_f64.sqrt()).abs() < 1e-14 && ones.s[1] < 1e-14, "{:?}", ones.s);
    let flat = qr(Array2::from_elem((3, 2), 1.0).view()).unwrap();
    assert_close(&flat.q.dot(&flat.r), &Array2::from_elem((3, 2), 1.0), 1e-14, "rank-deficient QR");
}

#[test]
fn a_qr_factorization_has_orthonormal_columns_and_a_diagonal_without_negatives() {
    for (m, n) in [(1, 1), (5, 3), (3, 5), (300, 40), (40, 300), (270, 270)] {
        let a = gaussian(m, n, 9);
        let found = qr(a.view()).unwrap();
        assert_close(&found.q.dot(&found.r), &a, 1e-12, "Q R");
        assert_close(&found.q.t().dot(&found.q), &Array2::eye(m.min(n)), 1e-13, "QᵀQ");
        assert!(found.r.diag().iter().all(|&value| value >= 0.0), "signs of R");
        assert!(found.r.indexed_iter().all(|((i, j), &value)| i <= j || value == 0.0), "R is upper triangular");
    }
}

#[test]
fn random_orthogonal_matrices_are_orthogonal_and_have_no_preferred_sign() {
    let q = random_orthogonal(96, 11).unwrap();
    assert_close(&q.dot(&q.t()), &Array2::eye(96), 1e-13, "Q Qᵀ");
    assert_eq!(q, random_orthogonal(96, 11).unwrap());
    assert_ne!(q, random_orthogonal(96, 12).unwrap());
    // Under the Haar measure the trace has mean 0 and variance 1, and every element variance 1/n.
    let (mut trace, mut square, runs) = (0.0, 0.0, 400);
    for seed in 0..runs {
        let q = random_orthogonal(6, seed).unwrap();
        trace += q.diag().sum() / runs as f64;
        square += q[(0, 0)].powi(2) / runs as f64;
    }
    assert!(trace.abs() < 0.2, "mean trace {trace}");
    assert!((square - 1.0 / 6.0).abs() < 0.04, "mean square {square}");
}

#[test]
fn gaussian_deviates_have_the_moments_of_the_normal_distribution() {
    let x = gaussian(200, 501, 13);
    let moment = |power: i32| x.iter().map(|value| value.powi(power)).sum::<f64>() / x.len() as f64;
    assert!(moment(1).abs() < 0.01, "mean {}", moment(1));
    assert!((moment(2) - 1.0).abs() < 0.02, "variance {}", moment(2));
    assert!((moment(4) - 3.0).abs() < 0.12, "fourth moment {}", moment(4));
    // A prefix of the stream is a prefix of the matrix.
    assert_eq!(x.as_slice().unwrap()[..7], *gaussian(1, 7, 13).as_slice().unwrap());
}

#[test]
fn a_randomized_svd_finds_what_the_exact_one_finds() {
    // A spectrum that decays slowly, as those of weights do.
    let (m, n, rank) = (320, 280, 24);
    let values = ndarray::Array1::from_shape_fn(n, |i| 1.0 / (1.0 + i as f64));
    let u = random_orthogonal(m, 1).unwrap();
    let v = random_orthogonal(n, 2).unwrap();
    let a = (&u.slice(s![.., ..n]) * &values).dot(&v.t());
    let optimum: f64 = values.iter().skip(rank).map(|value| value * value).sum();
    let error = |power_iterations| {
        let config = RandomizedSvd { power_iterations, ..RandomizedSvd::of_rank(rank) };
        let found = randomized_svd(a.view(), config).unwrap();
        assert_close(&found.u.t().dot(&found.u), &Array2::eye(rank), 1e-12, "UᵀU");
        (&a - (&found.u * &found.s).dot(&found.vt)).iter().map(|value| value * value).sum::<f64>()
    };
    let errors = [0, 1, 2, 4].map(error);
    assert!(errors.iter().all(|&error| error >= optimum * (1.0 - 1e-12)), "Eckart–Young: {errors:?} < {optimum}");
    assert!(errors.is_sorted_by(|a, b| a >= b), "power iterations help: {errors:?}");
    assert!(errors[2] < 1.004 * optimum, "two of them are within 0.4 %: {errors:?}, {optimum}");
    // As wide as the matrix it is the exact one.
    let config = RandomizedSvd { oversample: n, ..RandomizedSvd::of_rank(rank) };
    let exact = svd(a.view()).unwrap();
    assert_eq!(randomized_svd(a.view(), config).unwrap().s, exact.s.slice(s![..rank]));
    assert_eq!(randomized_svd_f32(a.view(), config).unwrap().s, exact.s.slice(s![..rank]));
}

#[test]
fn a_randomized_svd_in_f32_finds_the_same_to_round_off_whatever_the_scale() {
    let (u, v) = (random_orthogonal(280, 1).unwrap(), random_orthogonal(320, 2).unwrap());
    let values = ndarray::Array1::from_shape_fn(280, |i| 1.0 / (1.0 + i as f64));
    let a = (&u * &values).dot(&v.slice(s![..280, ..]));
    for a in [a.view(), a.t()] {
        let config = RandomizedSvd::of_rank(24);
        let expected = randomized_svd(a, config).unwrap();
        for scale in [1.0, 3e-5, 6e4, 1e-30, 1e30, 1e200] {
            let found = randomized_svd_f32((&a * scale).view(), config).unwrap();
            let products = [&expected, &found].map(|svd| (&svd.u * &svd.s).dot(&svd.vt));
            assert_close(&products[0], &(&products[1] / scale), 1e-6, "U s Vᵀ");
            for basis in [found.u.view(), found.vt.t()] {
                assert_close(&basis.t().dot(&basis), &Array2::eye(24), 1e-6, "orthonormal vectors");
            }
        }
        let single = randomized_svd_f32(narrow(&a.to_owned()).view(), config).unwrap();
        let apart = (&single.s - &expected.s).iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        assert!(apart < 1e-6, "of f32 the same values: {apart:e}");
    }
}

#[test]
fn power_iterations_keep_directions_that_f32_alone_would_lose() {
    // Values halve: the square of the last one's share is below the round-off of f32.
    let (u, v) = (random_orthogonal(200, 1).unwrap(), random_orthogonal(200, 2).unwrap());
    let values = ndarray::Array1::from_shape_fn(200, |i| 0.5_f64.powf(i as f64));
    let a = (&u * &values).dot(&v);
    let found = randomized_svd(a.view(), RandomizedSvd { oversample: 4, ..RandomizedSvd::of_rank(24) }).unwrap();
    for (found, value) in found.s.iter().zip(&values) {
        assert!((found / value - 1.0).abs() < 1e-6, "{found} for {value}");
    }
}

#[test]
fn a_randomized_svd_of_an_exactly_low_rank_matrix_is_exact() {
    for (m, n) in [(200, 90), (90, 200)] {
        let a = matmul(gaussian(m, 12, 1).view(), gaussian(12, n, 2).view());
        let found = randomized_svd(a.view(), RandomizedSvd::of_rank(12)).unwrap();
        assert_close(&(&found.u * &found.s).dot(&found.vt), &a, 1e-11, "U s Vᵀ");
        // Asked for more than there is, bases take the slow way.
        for rank in [12, 30] {
            let found = randomized_svd_f32(a.view(), RandomizedSvd::of_rank(rank)).unwrap();
            assert_close(&(&found.u * &found.s).dot(&found.vt), &a, 1e-5 * largest(&a), "U s Vᵀ in f32");
            assert!(found.s.iter().skip(12).all(|value| *value < 1e-5 * found.s[0]), "{}", found.s);
        }
    }
    let zero = randomized_svd_f32(Array2::<f32>::zeros((40, 30)).view(), RandomizedSvd::of_rank(3)).unwrap();
    assert_eq!(zero.s, Array2::zeros((1, 3)).row(0));
    assert!(zero.u.iter().chain(&zero.vt).all(|x| x.is_finite()), "vectors of zeros are vectors");
}

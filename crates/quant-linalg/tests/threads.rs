//! One, two and seven threads give the same bits.

use ndarray::Array2;
use quant_linalg::{
    RandomizedSvd, add_matmul, cholesky, eigh, gaussian, invert_lower, matmul, qr, randomized_svd, randomized_svd_f32,
    reversed_cholesky, solve_lower, solve_upper, svd,
};

#[expect(clippy::cast_possible_truncation, reason = "narrowing is what is wanted")]
fn narrow(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|value| value as f32)
}

/// Bits of everything that the crate computes from two matrices.
fn results(a: &Array2<f64>, b: &Array2<f64>) -> Vec<u64> {
    let gram = matmul(a.t(), a.view());
    let l = cholesky(gram.view()).unwrap();
    let u = reversed_cholesky(gram.view()).unwrap();
    let mut sum = b.clone();
    add_matmul(sum.view_mut(), 0.5, a.view(), gram.view());
    let exact = svd(b.view()).unwrap();
    let truncated = randomized_svd(a.view(), RandomizedSvd::of_rank(40)).unwrap();
    let rough = randomized_svd_f32(a.view(), RandomizedSvd::of_rank(40)).unwrap();
    let eigen = eigh(gram.view()).unwrap();
    let factors = qr(a.view()).unwrap();
    let single = matmul(narrow(a).view(), narrow(&gram).view()).mapv(f64::from);
    let solved = solve_upper(u.view(), a.t()).unwrap();
    let lower = solve_lower(l.view(), a.t()).unwrap();
    let inverse = invert_lower(l.view()).unwrap();
    let matrices = [gram, l, u, sum, exact.u, exact.vt, truncated.u, truncated.vt, eigen.vectors, factors.q, factors.r];
    let more = [single, solved, lower, inverse, rough.u, rough.vt];
    let vectors = [exact.s, truncated.s, eigen.values];
    matrices.iter().chain(&more).flatten().chain(vectors.iter().flatten()).map(|value| value.to_bits()).collect()
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (a, b) = (gaussian(901, 530, 1), gaussian(901, 530, 2));
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let expected = pool(1).install(|| results(&a, &b));
    for threads in [2, 7] {
        assert!(pool(threads).install(|| results(&a, &b)) == expected, "{threads} threads give other bits");
    }
}

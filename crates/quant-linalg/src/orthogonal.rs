//! QR factors, normal deviates and random orthogonal matrices.

use crate::Error;
use crate::view::{check, check_result, to_array, to_faer};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::{Conj, Mat, MatMut, Par};
use ndarray::{Array2, ArrayView2};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// `A = Q R`.
#[derive(Clone, Debug, PartialEq)]
pub struct Qr {
    /// Orthonormal columns, `[m, k]`.
    pub q: Array2<f64>,
    /// Upper triangular with no negative element on the diagonal, `[k, n]`.
    pub r: Array2<f64>,
}

/// Factors a matrix `[m, n]` as `Q R`, thin: `k = min(m, n)`.
///
/// Signs are chosen so that the diagonal of `R` is not negative, which makes the factors of a matrix of full column
/// rank unique.
///
/// # Errors
///
/// [`Error::Empty`], [`Error::NonFinite`], [`Error::Overflow`].
///
/// # Examples
///
/// ```
/// use ndarray::array;
/// let qr = quant_linalg::qr(array![[0.0, -2.0], [-3.0, 5.0]].view())?;
/// assert!((qr.r - array![[3.0, -5.0], [0.0, 2.0]]).iter().all(|error| error.abs() < 1e-14));
/// # Ok::<(), quant_linalg::Error>(())
/// ```
pub fn qr(a: ArrayView2<'_, f64>) -> Result<Qr, Error> {
    check(a)?;
    let (m, n) = a.dim();
    let k = m.min(n);
    let (factored, coefficients) = householder(to_faer(a));
    let sign = |i: usize| if factored[(i, i)] < 0.0 { -1.0 } else { 1.0 };
    let r = Array2::from_shape_fn((k, n), |(i, j)| if i <= j { sign(i) * factored[(i, j)] } else { 0.0 });
    let mut q = Mat::from_fn(m, k, |i, j| if i == j { sign(i) } else { 0.0 });
    apply(&factored, &coefficients, q.as_mut());
    let q = to_array(q.as_ref());
    check_result(q.iter().chain(&r))?;
    Ok(Qr { q, r })
}

/// An orthogonal matrix `[n, n]` drawn from the uniform (Haar) distribution.
///
/// The `Q` of [`qr`] of a matrix of normal deviates, with the signs that make the distribution uniform (Mezzadri 2007,
/// arXiv math-ph/0609050). The deviates are those of [`gaussian`].
///
/// # Errors
///
/// [`Error::Empty`] for `n = 0`.
///
/// # Examples
///
/// ```
/// let q = quant_linalg::random_orthogonal(3, 7)?;
/// let error = q.t().dot(&q) - ndarray::Array2::<f64>::eye(3);
/// assert!(error.iter().all(|error| error.abs() < 1e-14));
/// # Ok::<(), quant_linalg::Error>(())
/// ```
pub fn random_orthogonal(n: usize, seed: u64) -> Result<Array2<f64>, Error> {
    Ok(qr(gaussian(n, n, seed).view())?.q)
}

/// Standard normal deviates `[rows, columns]`, filled row by row.
///
/// Box–Muller on the ChaCha8 stream of `seed`: words `2i` and `2i + 1` of 64 bits, cut to 53, give elements `2i` and `2i + 1`.
#[must_use]
pub fn gaussian(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut spare = None;
    Array2::from_shape_simple_fn((rows, columns), || {
        spare.take().unwrap_or_else(|| {
            // (0, 1], so that the logarithm is finite.
            let radius = (-2.0 * (1.0 - uniform(&mut rng)).ln()).sqrt();
            let (sine, cosine) = (std::f64::consts::TAU * uniform(&mut rng)).sin_cos();
            spare = Some(radius * sine);
            radius * cosine
        })
    })
}

/// Uniform in `[0, 1)`, a multiple of 2⁻⁵³.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (0.5_f64).powi(53)
}

/// Householder vectors below the diagonal, `R` on and above it; and the coefficients of the blocks of reflections.
pub(crate) fn householder(mut a: Mat<f64>) -> (Mat<f64>, Mat<f64>) {
    let (m, n) = a.shape();
    let block = recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::zeros(block, m.min(n));
    let stack = qr_in_place_scratch::<f64>(m, n, block, Par::Seq, Default::default());
    let mut buffer = MemBuffer::new(stack);
    qr_in_place(a.as_mut(), coefficients.as_mut(), Par::Seq, MemStack::new(&mut buffer), Default::default());
    (a, coefficients)
}

/// Multiplies by the orthogonal factor from the left.
fn apply(factored: &Mat<f64>, coefficients: &Mat<f64>, matrix: MatMut<'_, f64>) {
    let (m, k) = (factored.nrows(), coefficients.ncols());
    let block = coefficients.nrows();
    let stack = apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(m, block, matrix.ncols());
    apply_block_householder_sequence_on_the_left_in_place_with_conj(
        factored.as_ref().subcols(0, k),
        coefficients.as_ref(),
        Conj::No,
        matrix,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(stack)),
    );
}

//! The singular value decomposition.

use crate::Error;
use crate::view::{as_faer, check, check_result, contiguous, to_array};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd as faer_svd, svd_scratch};
use faer::{Mat, Par, diag::Diag};
use ndarray::{Array1, Array2, ArrayView2};

/// `A ≈ U diag(s) Vᵀ` with `k` singular values: all `min(m, n)` of them, or the largest.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    /// Left singular vectors, orthonormal columns, `[m, k]`.
    pub u: Array2<f64>,
    /// Singular values, not negative, descending, `[k]`.
    pub s: Array1<f64>,
    /// Right singular vectors, orthonormal rows, `[k, n]`.
    pub vt: Array2<f64>,
}

/// Decomposes a matrix `[m, n]`; thin, so `k = min(m, n)`.
///
/// The sign of a pair of vectors, and their choice among equal singular values, is whatever the algorithm gives: the
/// same every time, but not a convention. Compare products, not factors.
///
/// # Errors
///
/// [`Error::Empty`], [`Error::NonFinite`], [`Error::NoConvergence`], [`Error::Overflow`].
///
/// # Examples
///
/// ```
/// use ndarray::array;
/// let svd = quant_linalg::svd(array![[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]].view())?;
/// assert!((svd.s - array![4.0, 3.0]).iter().all(|error| error.abs() < 1e-14));
/// assert_eq!((svd.u.dim(), svd.vt.dim()), ((3, 2), (2, 2)));
/// # Ok::<(), quant_linalg::Error>(())
/// ```
pub fn svd(a: ArrayView2<'_, f64>) -> Result<Svd, Error> {
    check(a)?;
    let (m, n) = a.dim();
    let k = m.min(n);
    let (mut u, mut s, mut v) = (Mat::zeros(m, k), Diag::zeros(k), Mat::zeros(n, k));
    let thin = ComputeSvdVectors::Thin;
    let stack = svd_scratch::<f64>(m, n, thin, thin, Par::Seq, Default::default());
    faer_svd(
        as_faer(&contiguous(&a)),
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(stack)),
        Default::default(),
    )
    .map_err(|_| Error::NoConvergence { rows: m, columns: n })?;
    let svd = Svd { u: to_array(u.as_ref()), s: Array1::from_shape_fn(k, |i| s[i]), vt: to_array(v.transpose()) };
    check_result(svd.s.iter().chain(&svd.u).chain(&svd.vt))?;
    Ok(svd)
}

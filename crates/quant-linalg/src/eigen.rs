//! Eigenvalues and eigenvectors of symmetric matrices.

use crate::Error;
use crate::view::{check_result, check_square, to_array, to_faer};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, Par, diag::Diag};
use ndarray::{Array1, Array2, ArrayView2};

/// `A = V diag(λ) Vᵀ`.
#[derive(Clone, Debug, PartialEq)]
pub struct Eigh {
    /// Eigenvalues, ascending, `[n]`.
    pub values: Array1<f64>,
    /// Orthonormal eigenvectors, one a column, `[n, n]`.
    pub vectors: Array2<f64>,
}

/// Decomposes a symmetric matrix. Only its lower triangle is read.
///
/// # Errors
///
/// [`Error::NotSquare`], [`Error::Empty`], [`Error::NonFinite`], [`Error::NoConvergence`], [`Error::Overflow`].
///
/// # Examples
///
/// ```
/// use ndarray::array;
/// let eigen = quant_linalg::eigh(array![[2.0, 1.0], [1.0, 2.0]].view())?;
/// assert!((eigen.values - array![1.0, 3.0]).iter().all(|error| error.abs() < 1e-14));
/// # Ok::<(), quant_linalg::Error>(())
/// ```
pub fn eigh(a: ArrayView2<'_, f64>) -> Result<Eigh, Error> {
    check_square(a)?;
    let n = a.nrows();
    let (mut values, mut vectors) = (Diag::zeros(n), Mat::zeros(n, n));
    let stack = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    self_adjoint_evd(
        to_faer(a).as_ref(),
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(stack)),
        Default::default(),
    )
    .map_err(|_| Error::NoConvergence { rows: n, columns: n })?;
    let eigen = Eigh { values: Array1::from_shape_fn(n, |i| values[i]), vectors: to_array(vectors.as_ref()) };
    check_result(eigen.values.iter().chain(&eigen.vectors))?;
    Ok(eigen)
}

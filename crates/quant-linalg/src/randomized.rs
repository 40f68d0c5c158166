//! A truncated singular value decomposition from random projections.

use crate::view::check;
use crate::{Error, Svd, gaussian, matmul, qr};
use ndarray::{Array2, ArrayView2, Axis, Slice};

/// What [`randomized_svd`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomizedSvd {
    /// Singular values wanted.
    pub rank: usize,
    /// Columns of the random projection beyond the rank.
    pub oversample: usize,
    /// Power iterations, each with a product by `Aᵀ` and one by `A`.
    pub power_iterations: usize,
    /// Seed of the projection, [`gaussian`]'s.
    pub seed: u64,
}

impl RandomizedSvd {
    /// The usual choice: 10 columns more than the rank and two power iterations.
    #[must_use]
    pub fn of_rank(rank: usize) -> Self {
        Self { rank, oversample: 10, power_iterations: 2, seed: 0 }
    }
}

/// The largest singular values and their vectors, nearly: Halko, Martinsson and Tropp (arXiv 0909.4061), Algorithms 4.4 and 5.1.
///
/// 1. `Q` = orthonormal basis of `A Ω`, `Ω` `[n, rank + oversample]` of normal deviates;
/// 2. for every power iteration, `Q` = basis of `A · basis(Aᵀ Q)`;
/// 3. the decomposition of `Qᵀ A`, rotated back by `Q` and cut to the rank.
///
/// The error is that of the exact truncation times a factor that tends to 1 with the power iterations; values whose
/// ratio to the following ones is large are exact to round-off. When the projection is as wide as the matrix
/// the result is that of [`svd`](crate::svd), cut.
///
/// # Errors
///
/// [`Error::Rank`] when the rank is 0 or above the smaller side, and as [`svd`](crate::svd).
///
/// # Examples
///
/// ```
/// use quant_linalg::{RandomizedSvd, gaussian, matmul, randomized_svd};
/// let a = matmul(gaussian(60, 5, 1).view(), gaussian(5, 40, 2).view());
/// let svd = randomized_svd(a.view(), RandomizedSvd::of_rank(5))?;
/// let back = (svd.u * &svd.s).dot(&svd.vt);
/// assert!((back - a).iter().all(|error| error.abs() < 1e-12));
/// # Ok::<(), quant_linalg::Error>(())
/// ```
pub fn randomized_svd(a: ArrayView2<'_, f64>, config: RandomizedSvd) -> Result<Svd, Error> {
    check(a)?;
    let (m, n) = a.dim();
    let RandomizedSvd { rank, oversample, power_iterations, seed } = config;
    if rank == 0 || rank > m.min(n) {
        return Err(Error::Rank { rank, rows: m, columns: n });
    }
    let width = rank.saturating_add(oversample);
    if width >= m.min(n) {
        return Ok(truncate(crate::svd(a)?, rank));
    }
    let mut q = basis(matmul(a, gaussian(n, width, seed).view()))?;
    for _ in 0..power_iterations {
        let right = basis(matmul(a.t(), q.view()))?;
        q = basis(matmul(a, right.view()))?;
    }
    let mut svd = crate::svd(matmul(q.t(), a).view()).map_err(overflow)?;
    svd.u = matmul(q.view(), svd.u.view());
    Ok(truncate(svd, rank))
}

fn basis(a: Array2<f64>) -> Result<Array2<f64>, Error> {
    Ok(qr(a.view()).map_err(overflow)?.q)
}

/// A product of finite matrices that is not finite has overflowed; its elements are not the caller's.
fn overflow(error: Error) -> Error {
    if matches!(error, Error::NonFinite { .. }) { Error::Overflow } else { error }
}

/// Keeps the `rank` largest singular values.
fn truncate(svd: Svd, rank: usize) -> Svd {
    let first = Slice::from(..rank);
    Svd {
        u: svd.u.slice_axis(Axis(1), first).to_owned(),
        s: svd.s.slice_axis(Axis(0), first).to_owned(),
        vt: svd.vt.slice_axis(Axis(0), first).to_owned(),
    }
}

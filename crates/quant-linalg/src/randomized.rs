//! A truncated singular value decomposition from random projections.

use crate::triangular::{gram, times_upper};
use crate::view::check;
use crate::{Eigh, Error, Real, Svd, cholesky, eigh, gaussian, invert_lower, matmul, qr, solve_lower};
use ndarray::{Array2, ArrayView2, Axis, CowArray, Ix2, Slice};

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

    /// Columns of the projection, `None` where they would be as many as the matrix has.
    fn width<T: Real>(&self, a: ArrayView2<'_, T>) -> Result<Option<usize>, Error> {
        check(a)?;
        let (rows, columns) = a.dim();
        if self.rank == 0 || self.rank > rows.min(columns) {
            return Err(Error::Rank { rank: self.rank, rows, columns });
        }
        Ok(Some(self.rank.saturating_add(self.oversample)).filter(|width| *width < rows.min(columns)))
    }
}

/// The largest singular values and their vectors, nearly: Halko, Martinsson and Tropp (arXiv 0909.4061), Algorithms 4.4 and 5.1.
///
/// 1. `Y = A Ω`, `Ω` `[n, rank + oversample]` of normal deviates;
/// 2. for every power iteration, `Y = A · basis(Aᵀ · basis(Y))`, the outer basis only where `Y` says that f32 needs it;
/// 3. `Q`, an orthonormal basis of `Y`, and the decomposition of `Qᵀ A`, rotated back by `Q` and cut to the rank.
///
/// All products but the last by `A` and that by `Qᵀ` are in f32: they only choose the directions that are looked at, and what they miss by
/// rounding the last product restores where the rest of the spectrum is small. The intermediate bases come from Cholesky's factor of `Yᵀ Y`,
/// in f32 too where its pivots are alike, else in f64, or from [`qr`] where that is not positive definite.
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
    let Some(width) = config.width(a)? else {
        return Ok(truncate(crate::svd(a)?, config.rank));
    };
    let near = directions(narrow(a).0.view(), width, config)?.mapv(f64::from);
    let q = qr(matmul(a, near.view()).view()).map_err(overflow)?.q;
    let mut svd = crate::svd(matmul(rows_of(&q).view(), a).view()).map_err(overflow)?;
    svd.u = matmul(q.view(), svd.u.view());
    Ok(truncate(svd, config.rank))
}

/// [`randomized_svd`] with all products by the matrix in f32: half the time, for vectors and values good to the round-off of f32
/// at the largest singular value.
///
/// The bases come from Cholesky's factor throughout, the last one from two rounds of it. The decomposition of `B = Qᵀ A` is
/// from the eigenvectors of `B Bᵀ = U Σ² Uᵀ` in f64, `Vᵀ = Σ⁻¹ Uᵀ B`, where its eigenvalues are far enough from 0, else
/// [`svd`](crate::svd)'s.
///
/// # Errors
///
/// As [`randomized_svd`].
pub fn randomized_svd_f32<T: Real>(a: ArrayView2<'_, T>, config: RandomizedSvd) -> Result<Svd, Error> {
    let Some(width) = config.width(a)? else {
        return Ok(truncate(crate::svd(a.mapv(Into::into).view())?, config.rank));
    };
    let (a, scale) = narrow(a);
    let near = directions(a.view(), width, config)?;
    let q = basis(basis(matmul(a.view(), near.view()))?.0)?.0;
    let Svd { u, s, vt } = wide_svd(&matmul(rows_of(&q).view(), a.view()), config.rank)?;
    Ok(Svd { u: matmul(q.view(), rounded(&u).view()).mapv(f64::from), s: s * scale, vt })
}

/// Columns that span nearly the space of the largest right singular vectors of `a`.
fn directions(a: ArrayView2<'_, f32>, width: usize, config: RandomizedSvd) -> Result<Array2<f32>, Error> {
    let mut near = rounded(&gaussian(a.ncols(), width, config.seed));
    for _ in 0..config.power_iterations {
        let (left, pivot) = basis(matmul(a, near.view()))?;
        // As (Qᵀ A)ᵀ: reading a large matrix along its columns is slow.
        near = matmul(rows_of(&left).view(), a).reversed_axes();
        // `Aᵀ` draws columns together about as much as `A` did, and the next product will once more.
        if pivot * pivot < LEAST_PIVOT_F32 {
            near = basis(near)?.0;
        }
    }
    Ok(near)
}

/// The decomposition of a matrix with fewer rows than columns, cut to the rank.
fn wide_svd(b: &Array2<f32>, rank: usize) -> Result<Svd, Error> {
    let wide = b.mapv(f64::from);
    let Eigh { values, vectors } = eigh(gram(wide.view()).view())?;
    if values[0] <= LEAST_EIGENVALUE * values[values.len() - 1] {
        return Ok(truncate(crate::svd(wide.view())?, rank));
    }
    // The largest come last.
    let last = Slice::new(-(rank as isize), None, -1);
    let s = values.slice_axis(Axis(0), last).mapv(f64::sqrt);
    let u = vectors.slice_axis(Axis(1), last).to_owned();
    let vt = matmul(rounded(&(&u / &s)).t(), b.view()).mapv(f64::from);
    Ok(Svd { u, s, vt })
}

/// `Qᵀ`, its rows side by side: half the time of a product with columns in strides.
fn rows_of<T: Real>(q: &Array2<T>) -> Array2<T> {
    q.t().as_standard_layout().into_owned()
}

/// Columns with the range of `y`, orthonormal to within what a power iteration needs: `Y R⁻¹` with `RᵀR = YᵀY`; and how far the
/// columns of `y` are from depending on each other, as [`least_pivot`].
fn basis(y: Array2<f32>) -> Result<(Array2<f32>, f64), Error> {
    match basis_in_f32(&y) {
        Some(basis) => Ok(basis),
        None => Ok((rounded(&basis_in_f64(y.mapv(f64::from))?), 0.0)),
    }
}

/// The same where columns are at angles that f32 tells apart.
fn basis_in_f32(y: &Array2<f32>) -> Option<(Array2<f32>, f64)> {
    let l = cholesky(gram(y.t()).mapv(f64::from).view()).ok()?;
    let pivot = least_pivot(&l);
    if pivot < LEAST_PIVOT_F32 {
        return None;
    }
    let inverse = rounded(&invert_lower(l.view()).ok()?);
    let basis = times_upper(y.view(), inverse.view());
    basis.iter().all(|value| value.is_finite()).then_some((basis, pivot))
}

fn basis_in_f64(y: Array2<f64>) -> Result<Array2<f64>, Error> {
    match cholesky(gram(y.t()).view()) {
        // Squared pivots far below the largest leave nothing of the columns' angles.
        Ok(l) if least_pivot(&l) > LEAST_PIVOT => Ok(solve_lower(l.view(), y.t())?.reversed_axes()),
        Ok(_) | Err(Error::NotPositiveDefinite { .. }) => Ok(qr(y.view())?.q),
        Err(error) => Err(error),
    }
}

/// Eigenvalues up to this share of the largest, as all of a matrix of zeros are, are too near to its round-off to divide by their
/// roots.
const LEAST_EIGENVALUE: f64 = 1e-10;

/// Pivots of a triangular factor below this share of the largest have lost half of their digits, in f64 and in f32.
const LEAST_PIVOT: f64 = 1e-6;
const LEAST_PIVOT_F32: f64 = 1e-2;

fn least_pivot(l: &Array2<f64>) -> f64 {
    let (least, most) = l.diag().iter().fold((f64::INFINITY, 0.0_f64), |(least, most), &p| (least.min(p), most.max(p)));
    least / most
}

/// Rounds to f32, divided by a power of two near the largest magnitude where that is far from 1; and that power.
fn narrow<'a, T: Real>(a: ArrayView2<'a, T>) -> (CowArray<'a, f32, Ix2>, f64) {
    // Magnitudes are in the order of their bits, whose maximum is found faster.
    let largest = a.iter().fold(0, |largest, &value| largest.max(value.into().abs().to_bits()));
    let scale = f64::from_bits(largest & EXPONENT).max(f64::MIN_POSITIVE);
    let scale = if SAFE.contains(&scale) { 1.0 } else { scale };
    (T::scaled_f32(a, scale.recip()), scale)
}

/// The bits of an f64's exponent.
const EXPONENT: u64 = 0x7ff << 52;
/// Largest magnitudes, 2^-16 to 2^16, whose fourth powers, which are formed, leave room in f32 for long sums of them.
const SAFE: std::ops::RangeInclusive<f64> = 1.525_878_906_25e-5..=65536.0;

#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
fn rounded(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|value| value as f32)
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

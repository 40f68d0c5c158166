//! Matrix products split over the current rayon pool.

use crate::LEAF;
use crate::view::{as_faer, as_faer_mut, contiguous};
use faer::linalg::matmul::matmul as faer_matmul;
use faer::traits::ComplexField;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2};
use rayon::prelude::*;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// An element that products are computed in: f32 or f64.
pub trait Real: ComplexField<Real = Self> + Copy + Into<f64> + Send + Sync + sealed::Sealed {
    #[doc(hidden)]
    const ONE: Self;
    #[doc(hidden)]
    const ZERO: Self;
    /// The matrix times `factor` in f32; the matrix itself where that is no other.
    #[doc(hidden)]
    fn scaled_f32<'a>(a: ArrayView2<'a, Self>, factor: f64) -> CowArray<'a, f32, Ix2>;
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
impl Real for f32 {
    const ONE: Self = 1.0;
    const ZERO: Self = 0.0;
    fn scaled_f32<'a>(a: ArrayView2<'a, Self>, factor: f64) -> CowArray<'a, f32, Ix2> {
        if factor == 1.0 { a.into() } else { a.mapv(|value| (f64::from(value) * factor) as f32).into() }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
impl Real for f64 {
    const ONE: Self = 1.0;
    const ZERO: Self = 0.0;
    fn scaled_f32<'a>(a: ArrayView2<'a, Self>, factor: f64) -> CowArray<'a, f32, Ix2> {
        a.mapv(|value| (value * factor) as f32).into()
    }
}

/// Computes `a b` for `a` `[m, k]` and `b` `[k, n]`.
///
/// The work is cut at places that depend on the shape alone and each part is computed by one thread, so the bits
/// do not depend on the number of threads of the current rayon pool. Each element is one sum over `k` in
/// ascending order, fused, in blocks of fixed length.
///
/// # Panics
///
/// When the inner dimensions differ, as the products of `ndarray` do.
///
/// # Examples
///
/// ```
/// use ndarray::array;
/// let a = array![[1.0, 2.0], [3.0, 4.0]];
/// let b = array![[1.0], [-1.0]];
/// assert_eq!(quant_linalg::matmul(a.view(), b.view()), array![[-1.0], [-1.0]]);
/// ```
#[must_use]
pub fn matmul<T: Real>(a: ArrayView2<'_, T>, b: ArrayView2<'_, T>) -> Array2<T> {
    assert_eq!(a.ncols(), b.nrows(), "columns of the left matrix and rows of the right one");
    let mut out = Array2::from_elem((a.nrows(), b.ncols()), T::ZERO);
    let (a, b) = (contiguous(&a), contiguous(&b));
    product(as_faer_mut(&mut out), Accum::Replace, as_faer(&a), as_faer(&b), T::ONE);
    out
}

/// Adds `alpha a b` to `out`, for `a` `[m, k]`, `b` `[k, n]` and `out` `[m, n]`.
///
/// The product is formed first and then added, element by element; bits are independent of the layout of `out`
/// and of threads, as for [`matmul`]. `out` may be a part of a larger array.
///
/// # Panics
///
/// When the dimensions do not fit.
pub fn add_matmul<T: Real>(mut out: ArrayViewMut2<'_, T>, alpha: T, a: ArrayView2<'_, T>, b: ArrayView2<'_, T>) {
    assert_eq!(a.ncols(), b.nrows(), "columns of the left matrix and rows of the right one");
    assert_eq!(out.dim(), (a.nrows(), b.ncols()), "shape of the sum and of the product");
    // Bands of a transposed matrix would lie in strides.
    let (a, b) = (CowArray::from(a.as_standard_layout()), contiguous(&b));
    let (a, b) = (as_faer(&a), as_faer(&b));
    let bands: Vec<_> = out.axis_chunks_iter_mut(Axis(0), LEAF).enumerate().collect();
    bands.into_par_iter().for_each(|(index, mut band)| {
        let mut part = Array2::from_elem(band.dim(), T::ZERO);
        let rows = a.subrows(index * LEAF, band.nrows());
        faer_matmul(as_faer_mut(&mut part), Accum::Replace, rows, b, alpha, Par::Seq);
        band.zip_mut_with(&part, |sum, &value| *sum += value);
    });
}

/// `out = alpha a b`, or `out += alpha a b`; splits the longer side in half until both are short.
pub(crate) fn product<T: Real>(out: MatMut<'_, T>, beta: Accum, a: MatRef<'_, T>, b: MatRef<'_, T>, alpha: T) {
    let (m, n) = (out.nrows(), out.ncols());
    if m.max(n) <= LEAF + LEAF / 2 {
        faer_matmul(out, beta, a, b, alpha, Par::Seq);
    } else if m >= n {
        let half = half(m);
        let ((top, bottom), (above, below)) = (out.split_at_row_mut(half), a.split_at_row(half));
        rayon::join(|| product(top, beta, above, b, alpha), || product(bottom, beta, below, b, alpha));
    } else {
        let half = half(n);
        let ((left, right), (before, after)) = (out.split_at_col_mut(half), b.split_at_col(half));
        rayon::join(|| product(left, beta, a, before, alpha), || product(right, beta, a, after, alpha));
    }
}

/// Where a side of `length` is cut: the middle, rounded up to whole registers.
pub(crate) fn half(length: usize) -> usize {
    (length / 2).next_multiple_of(64).min(length - 1).max(1)
}

//! Cholesky factors, and the factor of an inverse.

use crate::product::half;
use crate::triangular::{invert_lower_in_place, square};
use crate::view::{as_faer_mut, check_result, check_square};
use crate::{Error, LEAF};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

/// Factors a symmetric positive definite matrix as `A = L Lᵀ`, `L` lower triangular with a positive diagonal.
///
/// Only the lower triangle of `a` is read.
///
/// # Errors
///
/// [`Error::NotSquare`], [`Error::Empty`], [`Error::NonFinite`], and [`Error::NotPositiveDefinite`] with the row at which
/// the elimination breaks down.
///
/// # Examples
///
/// ```
/// use ndarray::array;
/// let l = quant_linalg::cholesky(array![[4.0, 2.0], [2.0, 5.0]].view())?;
/// assert_eq!(l, array![[2.0, 0.0], [1.0, 2.0]]);
/// # Ok::<(), quant_linalg::Error>(())
/// ```
pub fn cholesky(a: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
    check_square(a)?;
    let mut l = Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)]);
    factor(l.as_mut()).map_err(|pivot| Error::NotPositiveDefinite { pivot })?;
    lower_part(l.as_ref(), |i| i)
}

/// Factors the inverse of a symmetric positive definite matrix as `H⁻¹ = Uᵀ U`, `U` upper triangular with a positive
/// diagonal: the factor that GPTQ's columns are divided by.
///
/// With `J` the reversal of rows and columns and `L'` the Cholesky factor of `J H J`, `U = J L'⁻¹ J`: one
/// factorization and one triangular inverse, and `H⁻¹` is never formed. Only the lower triangle of `h` is read.
///
/// # Errors
///
/// As [`cholesky`]; the elimination starts at the last row, so the pivot named is the largest that fails.
///
/// # Examples
///
/// ```
/// use ndarray::array;
/// let h = array![[4.0, 2.0], [2.0, 5.0]];
/// let u = quant_linalg::reversed_cholesky(h.view())?;
/// let identity = u.t().dot(&u).dot(&h);
/// assert!((identity - Array2::<f64>::eye(2)).iter().all(|error| error.abs() < 1e-15));
/// # use ndarray::Array2;
/// # Ok::<(), quant_linalg::Error>(())
/// ```
pub fn reversed_cholesky(h: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
    check_square(h)?;
    let n = h.nrows();
    let back = |i: usize| n - 1 - i;
    // Column by column, each from a part of a row of `h`.
    let mut columns = Array2::zeros((n, n));
    let each: Vec<_> = columns.axis_iter_mut(Axis(0)).enumerate().collect();
    each.into_par_iter().with_min_len(64).for_each(|(j, mut column)| {
        let row = h.row(back(j));
        (j..n).for_each(|i| column[i] = row[back(i)]);
    });
    let mut l = as_faer_mut(&mut columns).transpose_mut();
    factor(l.rb_mut()).map_err(|pivot| Error::NotPositiveDefinite { pivot: back(pivot) })?;
    invert_lower_in_place(l.rb_mut());
    lower_part(l.as_ref(), back)
}

/// Copies the lower triangle, row and column `i` to `place(i)`, which is its own inverse; the rest is zero. Bands of rows go to
/// different threads, by tiles, so that neither side walks through memory in long strides.
fn lower_part(l: MatRef<'_, f64>, place: impl Fn(usize) -> usize + Sync) -> Result<Array2<f64>, Error> {
    const TILE: usize = 8;
    let n = l.nrows();
    let mut out = Array2::zeros((n, n));
    let tiles: Vec<_> = out.axis_chunks_iter_mut(Axis(0), TILE).enumerate().collect();
    tiles.into_par_iter().for_each(|(tile, mut rows)| {
        for left in (0..n).step_by(TILE) {
            for (row, mut values) in rows.rows_mut().into_iter().enumerate() {
                let i = place(tile * TILE + row);
                for column in left..n.min(left + TILE) {
                    let j = place(column);
                    if j <= i {
                        values[column] = l[(i, j)];
                    }
                }
            }
        }
    });
    check_result(&out)?;
    Ok(out)
}

/// Replaces the lower triangle by the Cholesky factor, block column by block column; the parts of each update are
/// shared out to threads. The error is the pivot.
fn factor(mut a: MatMut<'_, f64>) -> Result<(), usize> {
    let n = a.nrows();
    let mut scratch = MemBuffer::new(cholesky_in_place_scratch::<f64>(LEAF.min(n), Par::Seq, Default::default()));
    for start in (0..n).step_by(LEAF) {
        let width = LEAF.min(n - start);
        let (_, _, _, rest) = a.rb_mut().split_at_mut(start, start);
        let (mut diagonal, _, mut below, trailing) = rest.split_at_mut(width, width);
        let stack = MemStack::new(&mut scratch);
        cholesky_in_place(diagonal.rb_mut(), Default::default(), Par::Seq, stack, Default::default())
            .map_err(|LltError::NonPositivePivot { index }| start + index)?;
        divide(diagonal.rb(), below.rb_mut());
        square(trailing, Accum::Add, below.rb(), -1.0);
    }
    Ok(())
}

/// Solves `X Lᵀ = B` in place, bands of rows on different threads.
fn divide(l: MatRef<'_, f64>, b: MatMut<'_, f64>) {
    if b.nrows() <= LEAF {
        return solve_lower_triangular_in_place(l, b.transpose_mut(), Par::Seq);
    }
    let (top, bottom) = {
        let half = half(b.nrows());
        b.split_at_row_mut(half)
    };
    rayon::join(|| divide(l, top), || divide(l, bottom));
}

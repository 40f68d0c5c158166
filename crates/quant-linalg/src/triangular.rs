//! Triangular systems and inverses.

use crate::product::{Real, half, product};
use crate::view::{as_faer, as_faer_mut, check, check_result, check_square, contiguous, to_faer};
use crate::{Error, LEAF};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView2};

/// Solves `L X = B` for lower triangular `L` `[n, n]` and `B` `[n, m]`. What lies above the diagonal is not read.
///
/// A system from the right, `X L = B`, is `Lᵀ Xᵀ = Bᵀ`: [`solve_upper`] with both transposed.
///
/// # Errors
///
/// [`Error::NotSquare`], [`Error::RightHandSide`], [`Error::Empty`], [`Error::NonFinite`], [`Error::Singular`],
/// [`Error::Overflow`].
///
/// # Examples
///
/// ```
/// use ndarray::array;
/// let l = array![[2.0, 0.0], [1.0, 4.0]];
/// let x = quant_linalg::solve_lower(l.view(), array![[2.0], [9.0]].view())?;
/// assert_eq!(x, array![[1.0], [2.0]]);
/// # Ok::<(), quant_linalg::Error>(())
/// ```
pub fn solve_lower(l: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
    solve(l, b, |l, b| solve_lower_triangular_in_place(l, b, Par::Seq))
}

/// Solves `U X = B` for upper triangular `U` `[n, n]` and `B` `[n, m]`. What lies below the diagonal is not read.
///
/// # Errors
///
/// As [`solve_lower`].
pub fn solve_upper(u: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
    solve(u, b, |u, b| solve_upper_triangular_in_place(u, b, Par::Seq))
}

/// Inverts a lower triangular matrix. What lies above the diagonal is not read.
///
/// # Errors
///
/// As [`solve_lower`].
pub fn invert_lower(l: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
    check_square(l)?;
    check_diagonal(l)?;
    let mut inverse = Array2::from_shape_fn(l.dim(), |(i, j)| if j <= i { l[(i, j)] } else { 0.0 });
    invert_lower_in_place(as_faer_mut(&mut inverse));
    check_result(&inverse)?;
    Ok(inverse)
}

/// `P Pᵀ` of rows: its lower triangle, with zeros above.
pub(crate) fn gram<T: Real>(rows: ArrayView2<'_, T>) -> Array2<T> {
    let mut out = Array2::from_elem((rows.nrows(), rows.nrows()), T::ZERO);
    square(as_faer_mut(&mut out), Accum::Replace, as_faer(&contiguous(&rows)), T::ONE);
    out
}

/// `Y Lᵀ` for `L` lower triangular.
pub(crate) fn times_upper<T: Real>(y: ArrayView2<'_, T>, l: ArrayView2<'_, T>) -> Array2<T> {
    let mut out = Array2::from_elem(y.dim(), T::ZERO);
    let (y, l) = (contiguous(&y), contiguous(&l));
    lower_times(as_faer_mut(&mut out).transpose_mut(), as_faer(&l), as_faer(&y).transpose(), T::ONE);
    out
}

fn solve(
    matrix: ArrayView2<'_, f64>,
    b: ArrayView2<'_, f64>,
    in_place: impl Fn(MatRef<'_, f64>, MatMut<'_, f64>) + Sync,
) -> Result<Array2<f64>, Error> {
    check_square(matrix)?;
    if b.nrows() != matrix.nrows() {
        return Err(Error::RightHandSide { expected: matrix.nrows(), found: b.nrows() });
    }
    check(b)?;
    check_diagonal(matrix)?;
    let mut x = b.as_standard_layout().into_owned();
    columns(to_faer(matrix).as_ref(), as_faer_mut(&mut x), &in_place);
    check_result(&x)?;
    Ok(x)
}

fn check_diagonal(a: ArrayView2<'_, f64>) -> Result<(), Error> {
    match a.diag().iter().position(|&value| value == 0.0) {
        Some(index) => Err(Error::Singular { index }),
        None => Ok(()),
    }
}

/// Solves for bands of columns on different threads.
fn columns(matrix: MatRef<'_, f64>, b: MatMut<'_, f64>, in_place: &(impl Fn(MatRef<'_, f64>, MatMut<'_, f64>) + Sync)) {
    if b.ncols() <= LEAF {
        return in_place(matrix, b);
    }
    let half = half(b.ncols());
    let (left, right) = b.split_at_col_mut(half);
    rayon::join(|| columns(matrix, left, in_place), || columns(matrix, right, in_place));
}

/// Replaces a lower triangle by its inverse: `[A 0; B C]⁻¹ = [A⁻¹ 0; -C⁻¹ B A⁻¹ C⁻¹]`. The rest is not touched.
pub(crate) fn invert_lower_in_place(mut l: MatMut<'_, f64>) {
    let n = l.nrows();
    if n <= LEAF {
        let leaf = l.to_owned();
        return invert_lower_triangular(l, leaf.as_ref(), Par::Seq);
    }
    let half = half(n);
    let (mut first, _, mut corner, mut last) = l.rb_mut().split_at_mut(half, half);
    rayon::join(|| invert_lower_in_place(first.rb_mut()), || invert_lower_in_place(last.rb_mut()));
    let mut right = Mat::zeros(n - half, half);
    times_lower(right.as_mut(), corner.rb(), first.rb(), 1.0);
    lower_times(corner.rb_mut(), last.rb(), right.as_ref(), -1.0);
}

/// `out = alpha b t` with `t` lower triangular.
fn times_lower<T: Real>(out: MatMut<'_, T>, b: MatRef<'_, T>, t: MatRef<'_, T>, alpha: T) {
    // Transposed and reversed it is the other case: (J tᵀ J) is lower triangular again.
    lower_times(
        out.transpose_mut().reverse_rows_mut(),
        t.transpose().reverse_rows_and_cols(),
        b.transpose().reverse_rows(),
        alpha,
    );
}

/// `out = alpha t b` with `t` lower triangular: the rows of the lower half see all of `b`, those of the upper half only its upper part.
fn lower_times<T: Real>(out: MatMut<'_, T>, t: MatRef<'_, T>, b: MatRef<'_, T>, alpha: T) {
    let n = t.nrows();
    if n <= LEAF {
        return triangle_leaf(out, t, b, alpha);
    }
    let half = half(n);
    let (first, _, corner, last) = t.split_at(half, half);
    let (above, below) = b.split_at_row(half);
    let (top, mut bottom) = out.split_at_row_mut(half);
    rayon::join(
        || lower_times(top, first, above, alpha),
        || {
            lower_times(bottom.rb_mut(), last, below, alpha);
            product(bottom, Accum::Add, corner, above, alpha);
        },
    );
}

/// [`lower_times`] for a short triangle: bands of columns on different threads.
fn triangle_leaf<T: Real>(out: MatMut<'_, T>, t: MatRef<'_, T>, b: MatRef<'_, T>, alpha: T) {
    if out.ncols() > LEAF {
        let half = half(out.ncols());
        let ((left, right), (before, after)) = (out.split_at_col_mut(half), b.split_at_col(half));
        rayon::join(|| triangle_leaf(left, t, before, alpha), || triangle_leaf(right, t, after, alpha));
        return;
    }
    use BlockStructure::{Rectangular, TriangularLower};
    triangular::matmul(out, Rectangular, Accum::Replace, t, TriangularLower, b, Rectangular, alpha, Par::Seq);
}

/// The lower triangle of `c = alpha p pᵀ`, or of `c += alpha p pᵀ`. The rest is not touched.
pub(crate) fn square<T: Real>(c: MatMut<'_, T>, beta: Accum, p: MatRef<'_, T>, alpha: T) {
    let n = c.nrows();
    if n <= LEAF {
        use BlockStructure::{Rectangular, TriangularLower};
        let (lower, all) = (TriangularLower, Rectangular);
        return triangular::matmul(c, lower, beta, p, all, p.transpose(), all, alpha, Par::Seq);
    }
    let half = half(n);
    let (upper, lower) = p.split_at_row(half);
    let (first, _, corner, last) = c.split_at_mut(half, half);
    rayon::join(
        || product(corner, beta, lower, upper.transpose(), alpha),
        || rayon::join(|| square(first, beta, upper, alpha), || square(last, beta, lower, alpha)),
    );
}

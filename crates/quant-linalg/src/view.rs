//! Between the arrays of `ndarray` and the matrices of `faer`, and the checks that every entry point makes.

use crate::Error;
use faer::{Mat, MatMut, MatRef};
use ndarray::{Array2, ArrayView2, CowArray, Ix2};

/// A view of memory that faer can read: as it is when rows or columns lie side by side, else a copy.
pub(crate) fn contiguous<'a, T: Copy>(a: &'a ArrayView2<'_, T>) -> CowArray<'a, T, Ix2> {
    if a.is_standard_layout() || a.t().is_standard_layout() {
        CowArray::from(a.view())
    } else {
        CowArray::from(a.as_standard_layout().into_owned())
    }
}

/// Views a row-major or column-major array as a matrix of faer.
pub(crate) fn as_faer<'a, T: Copy>(a: &'a CowArray<'_, T, Ix2>) -> MatRef<'a, T> {
    let (rows, columns) = a.dim();
    if let Some(slice) = a.as_slice() {
        return MatRef::from_row_major_slice(slice, rows, columns);
    }
    let columns_first = a.as_slice_memory_order().expect("`contiguous` leaves rows or columns side by side");
    MatRef::from_column_major_slice(columns_first, rows, columns)
}

/// Views a freshly made, row-major array as a matrix that faer can write.
pub(crate) fn as_faer_mut<T>(a: &mut Array2<T>) -> MatMut<'_, T> {
    let (rows, columns) = a.dim();
    let slice = a.as_slice_mut().expect("an array made by `zeros` is row-major");
    MatMut::from_row_major_slice_mut(slice, rows, columns)
}

/// Copies a matrix of faer into a row-major array.
pub(crate) fn to_array(m: MatRef<'_, f64>) -> Array2<f64> {
    let (rows, columns) = m.shape();
    let mut out = Array2::zeros((rows, columns));
    // Tile by tile, so that neither side walks through memory in long strides.
    for (top, left) in (0..rows).step_by(TILE).flat_map(|top| (0..columns).step_by(TILE).map(move |left| (top, left))) {
        for i in top..rows.min(top + TILE) {
            for j in left..columns.min(left + TILE) {
                out[(i, j)] = m[(i, j)];
            }
        }
    }
    out
}

/// Side of the tiles in which a matrix is transposed.
const TILE: usize = 32;

/// Copies an array into a column-major matrix, the layout faer's decompositions like best.
pub(crate) fn to_faer(a: ArrayView2<'_, f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)])
}

/// Refuses an empty matrix and one with an element that is not finite.
pub(crate) fn check<T: Copy + Into<f64>>(a: ArrayView2<'_, T>) -> Result<(), Error> {
    if a.is_empty() {
        return Err(Error::Empty { rows: a.nrows(), columns: a.ncols() });
    }
    if a.iter().all(|&value| value.into().is_finite()) {
        return Ok(());
    }
    match a.indexed_iter().find(|&(_, &value)| !value.into().is_finite()) {
        Some(((row, column), _)) => Err(Error::NonFinite { row, column }),
        None => Ok(()),
    }
}

/// [`check`], and refuses a matrix that is not square.
pub(crate) fn check_square(a: ArrayView2<'_, f64>) -> Result<(), Error> {
    if a.nrows() != a.ncols() {
        return Err(Error::NotSquare { rows: a.nrows(), columns: a.ncols() });
    }
    check(a)
}

/// Refuses a result that has overflowed.
pub(crate) fn check_result<'a>(values: impl IntoIterator<Item = &'a f64>) -> Result<(), Error> {
    if values.into_iter().all(|value| value.is_finite()) { Ok(()) } else { Err(Error::Overflow) }
}

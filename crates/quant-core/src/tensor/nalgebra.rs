//! `nalgebra` matrices and views (column-major inside, `[rows, columns]` here).

use super::{Scalar, Tensor, TensorView};
use nalgebra::{Dim, Matrix, RawStorage};
use std::ptr::NonNull;

impl<T, R, C, S> Tensor for Matrix<T, R, C, S>
where
    T: Scalar + nalgebra::Scalar,
    R: Dim,
    C: Dim,
    S: RawStorage<T, R, C>,
{
    fn view(&self) -> TensorView<'_> {
        let (row_stride, column_stride) = self.strides();
        let ptr = NonNull::new(self.as_ptr().cast_mut()).unwrap_or(NonNull::dangling());
        let strides = [row_stride.cast_signed(), column_stride.cast_signed()];
        // SAFETY: nalgebra's storage keeps `nrows`×`ncols` elements at these strides, shared for the view's life.
        unsafe { TensorView::from_raw(ptr, &[self.nrows(), self.ncols()], &strides) }
    }
}

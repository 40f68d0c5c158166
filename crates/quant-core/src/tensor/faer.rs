//! `faer` matrices and views.

use super::{Scalar, Tensor, TensorView};
use faer::{Mat, MatRef};
use std::ptr::NonNull;

impl<T: Scalar> Tensor for MatRef<'_, T> {
    fn view(&self) -> TensorView<'_> {
        let ptr = NonNull::new(self.as_ptr().cast_mut()).unwrap_or(NonNull::dangling());
        // SAFETY: faer keeps `nrows`×`ncols` elements at these strides, shared for the view's life.
        unsafe { TensorView::from_raw(ptr, &[self.nrows(), self.ncols()], &[self.row_stride(), self.col_stride()]) }
    }
}

impl<T: Scalar> Tensor for Mat<T> {
    fn view(&self) -> TensorView<'_> {
        let matrix = self.as_ref();
        let ptr = NonNull::new(matrix.as_ptr().cast_mut()).unwrap_or(NonNull::dangling());
        // SAFETY: as for `MatRef`; the borrow of `self` outlives the view.
        unsafe {
            TensorView::from_raw(ptr, &[matrix.nrows(), matrix.ncols()], &[matrix.row_stride(), matrix.col_stride()])
        }
    }
}

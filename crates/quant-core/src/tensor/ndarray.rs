//! `ndarray` arrays and views of any rank and stride.

use super::{Scalar, Tensor, TensorView};
use ndarray::{ArrayBase, Data, Dimension};
use std::ptr::NonNull;

impl<S, D> Tensor for ArrayBase<S, D>
where
    S: Data,
    S::Elem: Scalar,
    D: Dimension,
{
    fn view(&self) -> TensorView<'_> {
        let ptr = NonNull::new(self.as_ptr().cast_mut()).unwrap_or(NonNull::dangling());
        // SAFETY: ndarray keeps pointer, shape and strides of elements it borrows or owns; `self` is shared for the view's life.
        unsafe { TensorView::from_raw(ptr, self.shape(), self.strides()) }
    }
}

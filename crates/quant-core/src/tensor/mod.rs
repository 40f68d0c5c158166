//! The door into every crate of the family: anything that lends its elements.
//!
//! [`Tensor`] is implemented for shaped slices and, behind features, for `ndarray`, `nalgebra` and
//! `faer`. It lends a [`TensorView`]: element type, shape and strides over borrowed memory. No
//! arithmetic grows here; that is the work of the tensor libraries.

#[cfg(feature = "faer")]
mod faer;
#[cfg(feature = "nalgebra")]
mod nalgebra;
#[cfg(feature = "ndarray")]
mod ndarray;
mod view;

pub(crate) use view::element_count;
pub use view::{Scalar, ScalarType, TensorView};

use crate::Error;

/// Anything that can lend its elements as a [`TensorView`].
///
/// # Examples
///
/// A slice with a shape is a tensor:
///
/// ```
/// use quant_core::{Shaped, Tensor};
/// let values = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let tensor = Shaped::new(&values, &[2, 3])?;
/// assert_eq!(tensor.view().shape(), [2, 3]);
/// # Ok::<(), quant_core::Error>(())
/// ```
pub trait Tensor {
    /// Borrows the elements with their shape and strides.
    fn view(&self) -> TensorView<'_>;
}

impl<T: Tensor + ?Sized> Tensor for &T {
    fn view(&self) -> TensorView<'_> {
        (**self).view()
    }
}

impl Tensor for TensorView<'_> {
    fn view(&self) -> TensorView<'_> {
        self.clone()
    }
}

/// A slice with a shape, in row-major order unless strides are given.
#[derive(Clone, Debug)]
pub struct Shaped<'a>(TensorView<'a>);

impl<'a> Shaped<'a> {
    /// Views `values` as a row-major tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] when the product of `shape` is not `values.len()`, [`Error::SizeOverflow`]
    /// when it overflows.
    pub fn new<T: Scalar>(values: &'a [T], shape: &[usize]) -> Result<Self, Error> {
        TensorView::contiguous(values, shape).map(Self)
    }

    /// Views `values` with explicit strides, counted in elements from the first one.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] when the ranks differ, [`Error::Shape`] when an element would lie outside
    /// `values`.
    pub fn strided<T: Scalar>(values: &'a [T], shape: &[usize], strides: &[isize]) -> Result<Self, Error> {
        TensorView::strided(values, shape, strides).map(Self)
    }

    /// Views `values` with explicit strides, starting at `values[first]`; negative strides lead back.
    ///
    /// ```
    /// use quant_core::{Shaped, Tensor};
    /// let values = [1.0_f32, 2.0, 3.0];
    /// let reversed = Shaped::strided_from(&values, 2, &[1, 3], &[3, -1])?;
    /// assert_eq!(reversed.view().to_f32()?, [3.0, 2.0, 1.0]);
    /// # Ok::<(), quant_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Shaped::strided`].
    pub fn strided_from<T: Scalar>(
        values: &'a [T],
        first: usize,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, Error> {
        TensorView::strided_from(values, first, shape, strides).map(Self)
    }
}

impl Tensor for Shaped<'_> {
    fn view(&self) -> TensorView<'_> {
        self.0.clone()
    }
}

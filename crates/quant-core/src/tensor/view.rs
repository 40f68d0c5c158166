//! Borrowed elements with shape and strides.
//!
//! The view keeps a raw pointer because a strided view of another library's tensor may interleave
//! with memory that is mutably borrowed elsewhere, over which no slice may be formed. This is the
//! only module outside the kernels that uses `unsafe`.

use crate::Error;
use half::{bf16, f16};
use std::marker::PhantomData;
use std::ptr::NonNull;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// An element type that a tensor may have: f32, f64, f16 or bf16.
pub trait Scalar: Copy + Send + Sync + 'static + sealed::Sealed {
    /// The type as a value.
    const TYPE: ScalarType;
}

impl Scalar for f32 {
    const TYPE: ScalarType = ScalarType::F32;
}
impl Scalar for f64 {
    const TYPE: ScalarType = ScalarType::F64;
}
impl Scalar for f16 {
    const TYPE: ScalarType = ScalarType::F16;
}
impl Scalar for bf16 {
    const TYPE: ScalarType = ScalarType::Bf16;
}

/// Element type of a [`TensorView`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScalarType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

/// Borrowed elements of one type with a shape and strides (in elements).
///
/// The last axis is the one along which formats form groups: a weight is `[out, in]`, activations
/// are `[tokens, channels]`. All leading axes together count as rows; a scalar or a vector is one row.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    ptr: NonNull<u8>,
    scalar: ScalarType,
    shape: Vec<usize>,
    strides: Vec<isize>,
    lifetime: PhantomData<&'a [u8]>,
}

// SAFETY: the view only reads, its elements are plain numbers, and `from_raw` demands shared access for `'a`.
unsafe impl Send for TensorView<'_> {}
// SAFETY: as for `Send`; no method writes.
unsafe impl Sync for TensorView<'_> {}

impl<'a> TensorView<'a> {
    /// Views a slice in row-major order.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] when the product of `shape` is not `values.len()`, [`Error::SizeOverflow`]
    /// when it overflows.
    pub fn contiguous<T: Scalar>(values: &'a [T], shape: &[usize]) -> Result<Self, Error> {
        let expected = element_count(shape)?;
        if expected != values.len() {
            return Err(Error::Shape { shape: shape.to_vec(), expected, found: values.len() });
        }
        let mut strides = vec![0; shape.len()];
        let mut step = 1_isize;
        for (stride, &dim) in strides.iter_mut().zip(shape).rev() {
            *stride = step;
            step = step.saturating_mul(isize::try_from(dim.max(1)).unwrap_or(isize::MAX));
        }
        Ok(Self::from_parts(values, shape, &strides))
    }

    /// Views a slice with explicit strides, counted in elements from the first one.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] when the ranks differ, [`Error::Shape`] when an element would lie outside
    /// `values`, [`Error::SizeOverflow`] when positions overflow.
    pub fn strided<T: Scalar>(values: &'a [T], shape: &[usize], strides: &[isize]) -> Result<Self, Error> {
        Self::strided_from(values, 0, shape, strides)
    }

    /// Views a slice whose element at index 0 is `values[first]`; negative strides lead back from it.
    ///
    /// # Errors
    ///
    /// As [`TensorView::strided`].
    pub fn strided_from<T: Scalar>(
        values: &'a [T],
        first: usize,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, Error> {
        if shape.len() != strides.len() {
            return Err(Error::Rank { shape: shape.to_vec(), strides: strides.to_vec() });
        }
        let overflow = || Error::SizeOverflow { shape: shape.to_vec() };
        if element_count(shape)? == 0 {
            return Ok(Self::from_parts(&values[..0], shape, strides));
        }
        let first_position = isize::try_from(first).map_err(|_| overflow())?;
        let (mut lowest, mut highest) = (first_position, first_position);
        for (&dim, &stride) in shape.iter().zip(strides) {
            let last = isize::try_from(dim - 1).map_err(|_| overflow())?;
            let reach = last.checked_mul(stride).ok_or_else(overflow)?;
            let end = if reach < 0 { &mut lowest } else { &mut highest };
            *end = end.checked_add(reach).ok_or_else(overflow)?;
        }
        let expected = usize::try_from(highest).map_err(|_| overflow())?.saturating_add(1);
        if lowest < 0 || expected > values.len() {
            return Err(Error::Shape { shape: shape.to_vec(), expected, found: values.len() });
        }
        // Its address is `values[first]`'s, but it may reach all of `values`.
        let start = NonNull::from(values).cast::<T>();
        // SAFETY: `first <= highest < values.len()`, and every position of the view was found to lie inside `values`.
        Ok(unsafe { Self::from_raw(start.add(first), shape, strides) })
    }

    fn from_parts<T: Scalar>(values: &'a [T], shape: &[usize], strides: &[isize]) -> Self {
        // SAFETY: the callers checked that every position lies inside `values`, borrowed for `'a`.
        unsafe { Self::from_raw(NonNull::from(values).cast::<T>(), shape, strides) }
    }

    /// Views memory of another library.
    ///
    /// # Safety
    ///
    /// For every index below `shape`, `ptr + Σ index·strides` (in elements of `T`) must be an
    /// aligned, initialised `T` that nobody writes for `'a`. `shape` and `strides` have one length.
    pub unsafe fn from_raw<T: Scalar>(ptr: NonNull<T>, shape: &[usize], strides: &[isize]) -> Self {
        Self {
            ptr: ptr.cast(),
            scalar: T::TYPE,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            lifetime: PhantomData,
        }
    }

    /// The element type.
    #[must_use]
    pub fn scalar(&self) -> ScalarType {
        self.scalar
    }

    /// The shape; empty for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The strides, in elements.
    #[must_use]
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Number of elements in the last axis; 1 for a scalar.
    #[must_use]
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, leading)| leading.iter().product())
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The view with its axes in reverse order; no element moves.
    #[must_use]
    pub fn transposed(mut self) -> Self {
        self.shape.reverse();
        self.strides.reverse();
        self
    }

    /// The elements of row `row` when they are f32 and lie side by side.
    #[must_use]
    pub fn contiguous_row(&self, row: usize) -> Option<&'a [f32]> {
        let unit = self.row_len() <= 1 || self.strides.last() == Some(&1);
        if self.scalar != ScalarType::F32 || !unit || row >= self.rows() {
            return None;
        }
        // SAFETY: `row` exists; its `row_len` elements are one apart and shared for `'a` (`from_raw`).
        Some(unsafe {
            let start = self.ptr.cast::<f32>().as_ptr().offset(self.row_offset(row));
            std::slice::from_raw_parts(start, self.row_len())
        })
    }

    /// Several rows as they are stored, if they are f32, contiguous and one after the other.
    pub(crate) fn contiguous_rows(&self, first: usize, rows: usize) -> Option<&'a [f32]> {
        let row = self.contiguous_row(first)?;
        let follow = |i: usize| self.row_offset(first + i) - self.row_offset(first) == (i * row.len()).cast_signed();
        if first + rows > self.rows() || !(self.rows_follow() || (1..rows).all(follow)) {
            return None;
        }
        // SAFETY: the rows exist, each starts where the one before ends, and they are shared for `'a`.
        Some(unsafe { std::slice::from_raw_parts(row.as_ptr(), rows * row.len()) })
    }

    /// Whether each row starts where the one before ends.
    fn rows_follow(&self) -> bool {
        let Some(leading) = self.shape.len().checked_sub(1) else { return true };
        let mut distance = self.row_len();
        (0..leading).rev().all(|axis| {
            let follows = self.shape[axis] == 1 || self.strides[axis] == distance.cast_signed();
            distance *= self.shape[axis];
            follows
        })
    }

    /// Copies row `row` into `out` as f32.
    ///
    /// f16 and bf16 widen exactly. f64 is narrowed by rounding to odd, so that a later rounding to
    /// any format of at most 22 significant bits gives what one rounding from f64 would give.
    ///
    /// # Errors
    ///
    /// [`Error::Row`] and [`Error::OutputLen`] for a wrong index or slice; [`Error::NonFinite`] for
    /// NaN and infinities, [`Error::OutOfRange`] for f64 values beyond f32.
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), Error> {
        if row >= self.rows() {
            return Err(Error::Row { row, rows: self.rows() });
        }
        if out.len() != self.row_len() {
            return Err(Error::OutputLen { expected: self.row_len(), found: out.len() });
        }
        let first = row * self.row_len();
        match self.scalar {
            ScalarType::F32 => self.gather::<f32>(row, out, |x| x),
            ScalarType::F16 => self.gather::<f16>(row, out, f16::to_f32),
            ScalarType::Bf16 => self.gather::<bf16>(row, out, bf16::to_f32),
            ScalarType::F64 => {
                let mut beyond = None;
                let mut column = 0;
                self.gather::<f64>(row, out, |x| {
                    if x.is_finite() && x.abs() > f64::from(f32::MAX) && beyond.is_none() {
                        beyond = Some((column, x));
                    }
                    column += 1;
                    narrow_to_odd(x)
                });
                if let Some((column, value)) = beyond {
                    return Err(Error::OutOfRange { index: first + column, value });
                }
            }
        }
        match out.iter().position(|x| !x.is_finite()) {
            Some(i) => Err(Error::NonFinite { index: first + i, value: f64::from(out[i]) }),
            None => Ok(()),
        }
    }

    /// All elements in row-major order as f32; see [`TensorView::read_row`].
    ///
    /// # Errors
    ///
    /// As [`TensorView::read_row`].
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let mut out = vec![0.0; self.len()];
        if self.row_len() > 0 {
            for (row, values) in out.chunks_exact_mut(self.row_len()).enumerate() {
                self.read_row(row, values)?;
            }
        }
        Ok(out)
    }

    fn gather<T: Scalar>(&self, row: usize, out: &mut [f32], mut widen: impl FnMut(T) -> f32) {
        debug_assert_eq!(T::TYPE, self.scalar, "the caller matched on the element type");
        let step = self.strides.last().copied().unwrap_or(1);
        let mut offset = self.row_offset(row);
        let base = self.ptr.cast::<T>().as_ptr();
        for value in out {
            // SAFETY: `row` exists and `out` has `row_len` places, so `offset` is the position of an element.
            *value = widen(unsafe { *base.offset(offset) });
            offset = offset.wrapping_add(step);
        }
    }

    /// Offset of the first element of a row, in elements.
    fn row_offset(&self, mut row: usize) -> isize {
        let Some(leading) = self.shape.len().checked_sub(1) else { return 0 };
        let mut offset = 0;
        for axis in (0..leading).rev() {
            let index = row % self.shape[axis];
            row /= self.shape[axis];
            // In range: `from_raw` promises that the position is an element of one allocation.
            offset += index.cast_signed() * self.strides[axis];
        }
        offset
    }
}

/// Number of elements of a shape.
pub(crate) fn element_count(shape: &[usize]) -> Result<usize, Error> {
    let overflow = || Error::SizeOverflow { shape: shape.to_vec() };
    if shape.contains(&0) {
        return Ok(0);
    }
    // Eight bytes an element is the widest type; bounding the bytes bounds every later product.
    let bytes = shape.iter().try_fold(8_usize, |n, &dim| n.checked_mul(dim)).ok_or_else(overflow)?;
    if isize::try_from(bytes).is_err() {
        return Err(overflow());
    }
    Ok(bytes / 8)
}

/// Narrows to f32: exact values stay, all others go to the neighbour whose last bit is 1.
#[expect(clippy::cast_possible_truncation, reason = "the rounding of the cast is what is being corrected")]
fn narrow_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || !x.is_finite() || nearest.to_bits() & 1 == 1 {
        return nearest;
    }
    // Inexact with an even last bit: the other neighbour is odd.
    if f64::from(nearest) < x { nearest.next_up() } else { nearest.next_down() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_to_odd_keeps_what_a_second_rounding_needs() {
        assert_eq!(narrow_to_odd(1.5), 1.5, "exact values stay");
        let just_above_tie = 1.0 + 2_f64.powi(-11) + 2_f64.powi(-40);
        assert_eq!(f16::from_f32(narrow_to_odd(just_above_tie)).to_bits(), 0x3c01, "one rounding from f64");
        assert_eq!(f16::from_f32(narrow_to_odd(-just_above_tie)).to_bits(), 0xbc01, "symmetric");
        assert_eq!(narrow_to_odd(f64::INFINITY), f32::INFINITY, "infinities pass");
        assert_eq!(narrow_to_odd(f64::from(f32::MAX) * 1.000_000_001), f32::MAX, "no overflow to infinity");
        assert!(narrow_to_odd(1e-60) > 0.0, "underflow keeps a sticky bit");
    }
}

//! f32 and f64, in which rows and weights come.

use std::fmt::Debug;
use std::ops::{Add, Mul, Neg, Sub};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// An element of rows and weights: f32 or f64.
pub trait Element:
    Copy
    + Debug
    + Default
    + PartialEq
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Neg<Output = Self>
    + sealed::Sealed
    + 'static
{
    /// The value, exactly.
    fn wide(self) -> f64;

    /// The nearest value of this type.
    fn narrow(value: f64) -> Self;

    /// The Walsh–Hadamard transform of each row of `size`, a power of two, times `scale`.
    #[doc(hidden)]
    fn walsh(rows: &mut [Self], size: usize, scale: f64);

    /// `x'[a] = Σ_b H[a, b] x[b]` for the `m` runs of a block.
    #[doc(hidden)]
    fn mix(factor: &[Self], m: usize, block: &mut [Self], strip: &mut [Self]) {
        crate::hadamard::mix(factor, m, block, strip);
    }
}

impl Element for f32 {
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
    fn narrow(value: f64) -> Self {
        value as Self
    }

    fn walsh(rows: &mut [Self], size: usize, scale: f64) {
        let scale = Self::narrow(scale);
        if !crate::kernels::rows(rows, size, scale) {
            crate::walsh::rows(rows, size, scale);
        }
    }

    fn mix(factor: &[Self], m: usize, block: &mut [Self], strip: &mut [Self]) {
        crate::kernels::mix(factor, m, block, strip);
    }
}

impl Element for f64 {
    fn wide(self) -> f64 {
        self
    }

    fn narrow(value: f64) -> Self {
        value
    }

    fn walsh(rows: &mut [Self], size: usize, scale: f64) {
        crate::walsh::rows(rows, size, scale);
    }
}

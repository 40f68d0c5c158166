//! E8M0: powers of two in a byte, the scales of OCP Microscaling.

use crate::Error;

/// A power of two `2^(code − 127)`; code 255 is NaN. There is no sign and no zero.
///
/// Source: OCP "Microscaling Formats" v1.0, section 5.4.
///
/// ```
/// use quant_core::{E8m0, E8m0Rounding};
/// assert_eq!(E8m0(127).to_f32(), 1.0);
/// assert_eq!(E8m0::from_f32(3.0, E8m0Rounding::Floor)?.to_f32(), 2.0);
/// assert_eq!(E8m0::from_f32(3.0, E8m0Rounding::Ceil)?.to_f32(), 4.0);
/// # Ok::<(), quant_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct E8m0(
    /// The code.
    pub u8,
);

/// How a positive f32 becomes a power of two; subnormals included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum E8m0Rounding {
    /// The largest power of two that is not larger; below 2^-127, 2^-127.
    #[default]
    Floor,
    /// The smallest power of two that is not smaller; above 2^127, 2^127.
    Ceil,
    /// The nearest by value, ties upwards; from 1.5·2^127 on, NaN.
    HalfUp,
}

impl E8m0 {
    /// The code of NaN.
    pub const NAN: Self = Self(255);

    /// The value, exact: code 0 is the f32 subnormal 2^-127, code 255 is NaN.
    #[must_use]
    pub const fn to_f32(self) -> f32 {
        match self.0 {
            0 => f32::from_bits(0x40_0000),
            255 => f32::NAN,
            code => f32::from_bits((code as u32) << 23),
        }
    }

    /// Rounds a positive finite number.
    ///
    /// # Errors
    ///
    /// [`Error::ReservedScale`] for zero, negative numbers, NaN and infinity.
    pub fn from_f32(x: f32, rounding: E8m0Rounding) -> Result<Self, Error> {
        if x > 0.0 && x.is_finite() {
            Ok(Self::from_f32_lossy(x, rounding))
        } else {
            Err(Error::ReservedScale { block: 0, value: x })
        }
    }

    /// Rounds any number: zero becomes code 0; negative numbers, NaN and infinity become NaN.
    #[must_use]
    pub fn from_f32_lossy(x: f32, rounding: E8m0Rounding) -> Self {
        if !x.is_finite() || x < 0.0 {
            return Self::NAN;
        }
        const HALF: u32 = 0x40_0000;
        let bits = x.to_bits() & 0x7fff_ffff;
        let (exponent, mantissa) = (bits >> 23, bits & 0x7f_ffff);
        // Subnormals: HALF is the mantissa of 2^-127 itself, code 0. Above it lies code 1 = 2^-126,
        // to which `HalfUp` too rounds everything in between, as ml_dtypes and torch do.
        let code = match (rounding, exponent) {
            (E8m0Rounding::Floor, _) => exponent,
            (_, 0) => u32::from(mantissa > HALF),
            (E8m0Rounding::Ceil, _) => (exponent + u32::from(mantissa != 0)).min(254),
            (E8m0Rounding::HalfUp, _) => exponent + u32::from(mantissa >= HALF),
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most 254 + 1")]
        let code = code as u8;
        Self(code)
    }
}

//! Float scales as they are stored.

use crate::{Error, FloatKind, Overflow, Rounding, ScaleType};
use half::{bf16, f16};

impl ScaleType {
    /// The value of stored bits.
    #[expect(clippy::cast_possible_truncation, reason = "two-byte floats lie in the low half")]
    pub(crate) fn load(self, bits: u32) -> f32 {
        match self {
            Self::F32 => f32::from_bits(bits),
            Self::F16 => f16::from_bits(bits as u16).to_f32(),
            Self::Bf16 => bf16::from_bits(bits as u16).to_f32(),
        }
    }

    /// `x` rounded to this type, to nearest even; beyond its range, infinity.
    pub(crate) fn round(self, x: f32) -> f32 {
        self.load(self.bits_of(x))
    }

    /// The bits of a scale. A scale that is not zero never becomes zero: it is kept at the smallest
    /// subnormal, so that no block of values vanishes.
    ///
    /// # Errors
    ///
    /// [`Error::ScaleOverflow`] when the type cannot hold it.
    pub(crate) fn store(self, scale: f32) -> Result<u32, Error> {
        let bits = self.bits_of(scale);
        let stored = self.load(bits);
        if !stored.is_finite() {
            return Err(Error::ScaleOverflow { block: 0, value: scale });
        }
        Ok(if stored == 0.0 && scale != 0.0 { bits | 1 } else { bits })
    }

    /// Distance from 1 to the next larger value.
    pub(crate) fn epsilon(self) -> f32 {
        match self {
            Self::F32 => f32::EPSILON,
            Self::F16 => f16::EPSILON.to_f32(),
            Self::Bf16 => bf16::EPSILON.to_f32(),
        }
    }

    fn bits_of(self, x: f32) -> u32 {
        let half =
            |kind: FloatKind| u32::from(kind.encode_rounded(x, Overflow::NonSaturating, Rounding::NearestEven, 0));
        match self {
            Self::F32 => x.to_bits(),
            Self::F16 => half(FloatKind::F16),
            Self::Bf16 => half(FloatKind::Bf16),
        }
    }
}

//! Floats of at most 16 bits: sign, exponent, mantissa, and the codes set aside for NaN and infinity.

use super::Rounding;
use super::generated::floats::{FloatKind, Special};
use crate::Overflow;

impl FloatKind {
    /// Bits a code.
    #[must_use]
    pub const fn bits(self) -> u32 {
        let (exponent, mantissa, ..) = self.parameters();
        1 + exponent + mantissa
    }

    /// Mantissa bits, the hidden one not counted.
    #[must_use]
    pub const fn mantissa_bits(self) -> u32 {
        self.parameters().1
    }

    /// The largest finite value.
    #[must_use]
    pub fn max(self) -> f32 {
        self.decode(self.max_code())
    }

    /// Code of the largest finite value.
    const fn max_code(self) -> u16 {
        let (exponent, mantissa, _, special) = self.parameters();
        let all_ones = (1_u16 << (exponent + mantissa)) - 1;
        match special {
            Special::Ieee => all_ones - (1 << mantissa),
            Special::AllOnes => all_ones - 1,
            Special::NegativeZero | Special::None => all_ones,
        }
    }

    /// The value of a code; bits above [`FloatKind::bits`] are ignored.
    #[must_use]
    pub fn decode(self, code: u16) -> f32 {
        let (exponent_bits, mantissa_bits, bias, special) = self.parameters();
        let sign_bit = 1_u16 << (exponent_bits + mantissa_bits);
        let negative = code & sign_bit != 0;
        let magnitude = code & (sign_bit - 1);
        let is_nan = match special {
            Special::Ieee if magnitude > self.max_code() => {
                if magnitude == self.max_code() + 1 {
                    return if negative { f32::NEG_INFINITY } else { f32::INFINITY };
                }
                true
            }
            Special::AllOnes => magnitude > self.max_code(),
            Special::NegativeZero => negative && magnitude == 0,
            Special::Ieee | Special::None => false,
        };
        if is_nan {
            return f32::NAN;
        }
        let field = i32::from(magnitude >> mantissa_bits);
        let fraction = f64::from(magnitude & ((1 << mantissa_bits) - 1));
        let hidden = if field == 0 { 0.0 } else { f64::from(1_u16 << mantissa_bits) };
        let quantum = exp2(field.max(1) - bias - mantissa_bits.cast_signed());
        let value = (hidden + fraction) * quantum;
        #[expect(clippy::cast_possible_truncation, reason = "every value of these formats is exact in f32")]
        let value = value as f32;
        if negative { -value } else { value }
    }

    /// The code of the value nearest to `x`, ties to even.
    ///
    /// −0 and underflow keep their sign except in the FNUZ formats. NaN becomes the format's NaN with
    /// the sign of `x` (quiet in the IEEE ones), or the largest finite value where there is none.
    ///
    /// ```
    /// use quant_core::{FloatKind, Overflow};
    /// assert_eq!(FloatKind::E4m3Fn.encode(464.0, Overflow::Saturate), 0x7e);
    /// assert_eq!(FloatKind::E4m3Fn.encode(500.0, Overflow::NonSaturating), 0x7f, "NaN: there is no infinity");
    /// assert_eq!(FloatKind::E2m1.encode(2.5, Overflow::Saturate), 4, "a tie goes to the even code");
    /// ```
    #[must_use]
    pub fn encode(self, x: f32, overflow: Overflow) -> u16 {
        self.encode_rounded(x, overflow, Rounding::NearestEven, 0)
    }

    /// The code of `x` under any rounding; `random` holds the bits of stochastic rounding.
    ///
    /// With `e = max(⌊log2|x|⌋, 1 − bias)`, the code without sign is
    /// `((e − (1 − bias)) << mantissa_bits) + round(|x| / 2^(e − mantissa_bits))`: subnormals and
    /// carries into the next binade need no case of their own. Overflow is decided after rounding.
    #[must_use]
    pub fn encode_rounded(self, x: f32, overflow: Overflow, rounding: Rounding, random: u32) -> u16 {
        self.encode_f64(f64::from(x), overflow, rounding, random)
    }

    /// As [`FloatKind::encode_rounded`] for an f64, rounding once: going through f32 first would
    /// round twice.
    #[must_use]
    pub fn encode_f64(self, x: f64, overflow: Overflow, rounding: Rounding, random: u32) -> u16 {
        let (exponent_bits, mantissa_bits, bias, special) = self.parameters();
        let sign_bit = 1_u16 << (exponent_bits + mantissa_bits);
        let sign = if x.is_sign_negative() { sign_bit } else { 0 };
        if x.is_nan() {
            return match special {
                Special::NegativeZero => sign_bit,
                Special::None => self.max_code(),
                // All ones but the sign: a quiet NaN of every 8-bit format that has one.
                Special::Ieee | Special::AllOnes if self.bits() < 16 => sign | (sign_bit - 1),
                Special::Ieee | Special::AllOnes => sign | (self.max_code() + 1) | (1 << (mantissa_bits - 1)),
            };
        }
        let smallest = 1 - bias;
        let exponent = exponent_of(x).max(smallest);
        // Exact: a multiplication by a power of two, upwards wherever x is small.
        let q = if x.is_infinite() { f64::INFINITY } else { x.abs() * exp2(mantissa_bits.cast_signed() - exponent) };
        let rounded = rounding.magnitude(q, x < 0.0, random);
        let code = f64::from(exponent - smallest) * f64::from(1_u16 << mantissa_bits) + rounded;
        if code > f64::from(self.max_code()) {
            return match (overflow, special) {
                (Overflow::Saturate, _) | (_, Special::None) => sign | self.max_code(),
                (_, Special::Ieee | Special::AllOnes) => sign | (self.max_code() + 1),
                (_, Special::NegativeZero) => sign_bit,
            };
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 <= code <= max_code, an integer"
        )]
        let code = code as u16;
        if special == Special::NegativeZero && code == 0 { 0 } else { sign | code }
    }
}

/// 2^k as f64, exact for every normal exponent.
pub(crate) fn exp2(k: i32) -> f64 {
    f64::from_bits(u64::from((k + 1023).clamp(1, 2046).cast_unsigned()) << 52)
}

/// ⌊log2|x|⌋ exactly. Zero and what f32 cannot hold count as f32's smallest subnormal, which is
/// below the smallest normal of every kind.
pub(crate) fn exponent_of(x: f64) -> i32 {
    // Every f32 is a normal f64, so the exponent field is the answer.
    let field = (x.to_bits() >> 52) & 0x7ff;
    (field as i32 - 1023).max(-149)
}

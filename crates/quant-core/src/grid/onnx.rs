//! ONNX's QuantizeLinear and DequantizeLinear, whose scale and zero point are given.

use super::{Rounder, int};
use crate::{FloatKind, Overflow, Rounding};

/// One scale and zero point of ONNX's `QuantizeLinear` / `DequantizeLinear` (opset 21 and later).
///
/// `y = saturate(rne(x / s) + z)`: rounded first, then the zero point is added. Decoding is
/// `(y − z)·s`. Per tensor, per axis and per block differ only in which scale an element uses.
/// Source: ONNX operator specification.
///
/// ```
/// use quant_core::LinearQuantizer;
/// let q = LinearQuantizer::Int { bits: 4, signed: false, scale: 0.5, zero: 8 };
/// assert_eq!(q.encode(-1.25), 6, "-2.5 rounds to -2, then 8 is added");
/// assert_eq!(q.decode(6), -1.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinearQuantizer {
    /// INT2, INT4, INT8 and their unsigned forms.
    Int {
        /// Bits a code, 1 to 8; others are clamped to that.
        bits: u8,
        /// Whether codes are two's complement.
        signed: bool,
        /// The step.
        scale: f32,
        /// The integer that means zero.
        zero: i16,
    },
    /// FP8 and FP4; their zero point is always 0.
    Float {
        /// The element type.
        kind: FloatKind,
        /// ONNX's attribute `saturate`.
        overflow: Overflow,
        /// The scale.
        scale: f32,
    },
}

impl LinearQuantizer {
    /// The code of `x`, an unsigned bit pattern; NaN becomes the code of 0 for integers.
    #[must_use]
    pub fn encode(self, x: f32) -> u16 {
        match self {
            Self::Int { bits, signed, scale, zero } => {
                let round = Rounder { rounding: Rounding::NearestEven, random: 0 };
                let bits = bits.clamp(1, 8);
                let low = if signed { -f32::from(1_u16 << (bits - 1)) } else { 0.0 };
                let high = low + f32::from((1_u16 << bits) - 1);
                int::to_code(bits, (round.integer(x / scale) + f32::from(zero)).clamp(low, high))
            }
            Self::Float { kind, overflow, scale } => kind.encode(x / scale, overflow),
        }
    }

    /// The value of a code.
    #[must_use]
    pub fn decode(self, code: u16) -> f32 {
        match self {
            Self::Int { bits, signed, scale, zero } => {
                let bits = bits.clamp(1, 8);
                let q = if signed { int::sign_extend(code, bits) } else { (code & ((1 << bits) - 1)).cast_signed() };
                (f32::from(q) - f32::from(zero)) * scale
            }
            Self::Float { kind, scale, .. } => kind.decode(code) * scale,
        }
    }
}

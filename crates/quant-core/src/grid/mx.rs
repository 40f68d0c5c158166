//! Microscaling: elements under a power-of-two scale in one byte, see [`ScaleRule`].

use super::{BlockParams, Rounder, int, largest_element};
use crate::element::{exp2, exponent_of};
use crate::{E8m0, E8m0Rounding, Element, FloatKind, Overflow, ScaleRule};

/// The E8M0 code of a block with largest magnitude `amax`; 0 for a zero block.
pub(super) fn scale_code(rule: ScaleRule, element: Element, amax: f32) -> u8 {
    let (largest, mantissa) = match element {
        // An MX integer of b bits is k / 2^(b−2), so its largest value lies just below 2.
        Element::Int { bits, .. } => (largest_element(element) * exp2_f32(2 - i32::from(bits)), u32::from(bits) - 2),
        Element::Float { kind, .. } => (kind.max(), kind.mantissa_bits()),
        _ => (1.0, 0),
    };
    if amax == 0.0 {
        return 0;
    }
    let emax = exponent_of(f64::from(largest));
    // The exponent field; 0 for subnormal numbers, whose code is 0 whatever the rule.
    let field = |bits: u32| (bits >> 23).cast_signed();
    let bits = amax.to_bits();
    let even = |mantissa: u32| field(bits + (1 << (22 - mantissa))) - emax;
    let quotient = amax / largest;
    let code = match rule {
        ScaleRule::Floor => field(bits) - emax,
        ScaleRule::Ceil => field(bits) + i32::from(bits & 0x7f_ffff != 0) - emax,
        ScaleRule::Even => even(mantissa),
        ScaleRule::EvenCt => match element {
            Element::Float { kind: FloatKind::E4m3Fn | FloatKind::E5m2, .. } => even(1),
            _ => even(mantissa),
        },
        ScaleRule::RCeil => i32::from(E8m0::from_f32_lossy(quotient, E8m0Rounding::Ceil).0),
        ScaleRule::RFloor => exponent_of(f64::from(quotient)) + 127,
        ScaleRule::RRound => round_log2(f64::from(quotient)) + 127,
    };
    #[expect(clippy::cast_sign_loss, reason = "clamped to a byte")]
    let code = code.clamp(0, 254) as u8;
    code
}

/// `log2 q` rounded to nearest. There are no ties: `q` would have to be an odd multiple of √2.
fn round_log2(q: f64) -> i32 {
    let exponent = exponent_of(q);
    let fraction = q * exp2(-exponent);
    // The fraction has 24 bits, so that its square is exact: no logarithm, no rounding of √2.
    exponent + i32::from(fraction * fraction > 2.0)
}

/// `x / 2^s`, exact: f64 holds every quotient of an f32 and an f32 power of two.
fn normalize(x: f32, p: &BlockParams) -> f64 {
    f64::from(x) / f64::from(p.step)
}

pub(super) fn encode_float(kind: FloatKind, rule: ScaleRule, x: f32, p: &BlockParams, round: Rounder) -> u16 {
    if rule == ScaleRule::EvenCt && kind == FloatKind::E2m1 && x == 0.0 {
        return 0;
    }
    kind.encode_f64(normalize(x, p), Overflow::Saturate, round.rounding, round.random)
}

/// The integer `k` of the value `k / 2^(b−2)`, clamped to ±Q.
pub(super) fn encode_int(bits: u8, x: f32, p: &BlockParams, round: Rounder) -> u16 {
    let v = normalize(x, p) * exp2(i32::from(bits) - 2);
    let largest = f64::from((1_u16 << (bits - 1)) - 1);
    #[expect(clippy::cast_possible_truncation, reason = "at most Q")]
    let k = round.magnitude(v).min(largest) as i16;
    let k = if v < 0.0 { -k } else { k };
    k.cast_unsigned() & ((1 << bits) - 1)
}

/// `k·2^(2−b)·2^s`: the first product is exact, the second leaves f32's range by IEEE rules.
pub(super) fn decode_int(bits: u8, code: u16, p: &BlockParams) -> f32 {
    f32::from(int::sign_extend(code, bits)) * exp2_f32(2 - i32::from(bits)) * p.scale
}

fn exp2_f32(k: i32) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "small exponents")]
    let power = exp2(k) as f32;
    power
}

//! Integers with float scales, see [`IntRule`].

use super::{BlockParams, Range, Rounder, divide_up, mean_magnitude};
use crate::{Error, IntRule, Scale, ScaleType};

/// The three limits of `bits`-bit integers: `Q = 2^(b−1) − 1`, `−2^(b−1)`, `2^b − 1`.
fn limits(bits: u8) -> (f32, f32, f32) {
    let q_max = f32::from((1_u16 << (bits - 1)) - 1);
    (q_max, -q_max - 1.0, f32::from((1_u16 << bits) - 1))
}

pub(super) fn fit(
    bits: u8,
    rule: IntRule,
    kind: ScaleType,
    range: &Range,
    group: &[f32],
) -> Result<BlockParams, Error> {
    let (q_max, q_min, levels) = limits(bits);
    let store = |scale: f32, zero: f32| -> Result<BlockParams, Error> {
        let bits = kind.store(scale)?;
        Ok(BlockParams::plain(kind.load(bits), zero, bits))
    };
    match rule {
        // One bit has no code for zero, so that a zero block needs the scale 0.
        IntRule::Restricted if bits == 1 => store(mean_magnitude(group), 0.0),
        IntRule::Restricted => store(divide_up(range.amax(), q_max), 0.0),
        IntRule::Full => store(divide_up(range.amax(), levels / 2.0), 0.0),
        IntRule::AwqSym => store(range.amax().max(1e-5) / q_max, 0.0),
        IntRule::CtSym => {
            let bits = or_epsilon(kind, range.amax() / (levels / 2.0))?;
            Ok(BlockParams::plain(kind.load(bits), 0.0, bits))
        }
        IntRule::GptqSym => {
            let (mut lo, mut hi) = range.with_zero();
            hi = hi.max(-lo);
            if lo < 0.0 {
                lo = -hi;
            }
            if hi == 0.0 {
                (lo, hi) = (-1.0, 1.0);
            }
            store(span(lo, hi, levels), 0.0)
        }
        IntRule::Asymmetric => {
            let (mut lo, mut hi) = range.with_zero();
            if lo == hi {
                (lo, hi) = (-1.0, 1.0);
            }
            let mut params = store(span(lo, hi, levels), 0.0)?;
            // + 0 turns −0 into 0.
            params.zero = (-lo / params.scale).round_ties_even().clamp(0.0, levels) + 0.0;
            params.origin = params.zero;
            Ok(params)
        }
        IntRule::CtAsym => {
            let (lo, hi) = range.with_zero();
            let scale = kind.round(kind.round(hi - lo) / levels);
            // 0/0 for a zero block: the zero point is found before the scale is replaced.
            let zero = kind.round(q_min - kind.round(lo / scale)).clamp(q_min, q_max);
            let zero = if zero.is_nan() { 0.0 } else { zero.round_ties_even() };
            let bits = or_epsilon(kind, scale)?;
            Ok(BlockParams::plain(kind.load(bits), zero - q_min, bits))
        }
        IntRule::AwqAsym => {
            let mut params = store((range.hi - range.lo).max(1e-5) / levels, 0.0)?;
            params.zero = (-(range.lo / params.scale).round_ties_even()).clamp(0.0, levels) + 0.0;
            params.origin = params.zero;
            Ok(params)
        }
        IntRule::FloatMin => {
            let zero = kind.load(kind.store(range.lo)?);
            store(((range.hi - range.lo) / levels).max(1e-5), zero)
        }
        IntRule::Mlx => {
            let (scale, bias) = mlx(range, levels);
            let zero = kind.load(kind.store(bias)?);
            // Codes come from the unrounded pair.
            Ok(BlockParams { step: scale, origin: bias, ..store(scale, zero)? })
        }
    }
}

/// `(hi − lo) / levels`, also where the difference overflows; never zero.
fn span(lo: f32, hi: f32, levels: f32) -> f32 {
    let span = if (hi - lo).is_finite() { (hi - lo) / levels } else { hi / levels - lo / levels };
    span.max(f32::from_bits(1))
}

/// The scale in the type it is stored in; zero becomes the type's epsilon.
fn or_epsilon(kind: ScaleType, scale: f32) -> Result<u32, Error> {
    kind.store(if kind.round(scale) == 0.0 { kind.epsilon() } else { scale })
}

/// MLX's scale and bias: the value of larger magnitude (the edge) and zero both get exact codes.
fn mlx(range: &Range, levels: f32) -> (f32, f32) {
    let negative = range.lo.abs() > range.hi.abs();
    let width = ((range.hi - range.lo) / levels).max(1e-7);
    let (scale, edge) = if negative { (width, range.lo) } else { (-width, range.hi) };
    let zero = (edge / scale).round_ties_even();
    if zero == 0.0 { (scale, 0.0) } else { (edge / zero, edge) }
}

pub(super) fn encode(bits: u8, rule: IntRule, scale: Scale, x: f32, p: &BlockParams, round: Rounder) -> u16 {
    let (q_max, q_min, levels) = limits(bits);
    let code = match rule {
        IntRule::Restricted if bits == 1 => return u16::from(x < 0.0),
        IntRule::Restricted => return encode_symmetric(bits, x / p.step, round),
        IntRule::Full => round.integer((x / p.step).clamp(q_min, q_max)),
        IntRule::GptqSym | IntRule::AwqSym => round.integer(x / p.step).clamp(q_min, q_max),
        IntRule::CtSym => round.integer(in_type(scale, x / p.step).clamp(q_min, q_max)),
        IntRule::Asymmetric | IntRule::AwqAsym => (round.integer(x / p.step) + p.origin).clamp(0.0, levels),
        IntRule::CtAsym => {
            // In signed codes, as the sum is rounded.
            let v = in_type(scale, in_type(scale, x / p.step) + (p.origin + q_min));
            round.integer(v.clamp(q_min, q_max)) - q_min
        }
        IntRule::FloatMin => round.integer(((x - p.origin) / p.step).clamp(0.0, levels)),
        IntRule::Mlx => round.integer((x - p.origin) / p.step).clamp(0.0, levels),
    };
    to_code(bits, code)
}

/// `clamp(round(v), ±Q)` in two's complement.
pub(super) fn encode_symmetric(bits: u8, v: f32, round: Rounder) -> u16 {
    let (q_max, ..) = limits(bits);
    to_code(bits, round.integer(v).clamp(-q_max, q_max))
}

pub(super) fn to_code(bits: u8, q: f32) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the bits of a code; NaN becomes 0")]
    let q = q as i16;
    q.cast_unsigned() & ((1 << bits) - 1)
}

fn in_type(scale: Scale, x: f32) -> f32 {
    if let Scale::Float(kind) = scale { kind.round(x) } else { x }
}

pub(super) fn decode(bits: u8, rule: IntRule, code: u16, p: &BlockParams) -> f32 {
    let code = code & ((1 << bits) - 1);
    match rule {
        IntRule::Restricted if bits == 1 => {
            if code == 1 {
                -p.scale
            } else {
                p.scale
            }
        }
        IntRule::Restricted | IntRule::Full | IntRule::CtSym | IntRule::GptqSym | IntRule::AwqSym => {
            f32::from(sign_extend(code, bits)) * p.scale
        }
        IntRule::Asymmetric | IntRule::CtAsym | IntRule::AwqAsym => (f32::from(code) - p.zero) * p.scale,
        IntRule::FloatMin | IntRule::Mlx => f32::from(code) * p.scale + p.zero,
    }
}

/// Two's complement of so many bits.
pub(super) fn sign_extend(code: u16, bits: u8) -> i16 {
    let shift = 16 - u32::from(bits);
    (code << shift).cast_signed() >> shift
}

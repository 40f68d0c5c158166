//! Three levels, see [`TernaryRule`].

use super::{BlockParams, Range, Rounder, divide_up, mean_magnitude};
use crate::{Error, ScaleType, TernaryRule};

pub(super) fn fit(rule: TernaryRule, kind: ScaleType, range: &Range, group: &[f32]) -> Result<BlockParams, Error> {
    match rule {
        TernaryRule::Mean => {
            // BitNet's factor s; decoding divides by it, so 1/s is what is stored.
            let factor = 1.0 / mean_magnitude(group).max(1e-5);
            let bits = kind.store(1.0 / factor)?;
            let stored = params(rule, kind.load(bits), 0.0, bits);
            Ok(if kind == ScaleType::F32 { BlockParams { step: factor, ..stored } } else { stored })
        }
        TernaryRule::Max => {
            let bits = kind.store(divide_up(range.amax(), 1.0))?;
            Ok(params(rule, kind.load(bits), 0.0, bits))
        }
        TernaryRule::Min => {
            let zero = kind.load(kind.store(range.lo)?);
            let bits = kind.store(((range.hi - range.lo) / 2.0).max(1e-5))?;
            Ok(params(rule, kind.load(bits), zero, bits))
        }
    }
}

/// Parameters from a stored scale; `Mean` encodes with its reciprocal.
pub(super) fn params(rule: TernaryRule, scale: f32, zero: f32, scale_code: u32) -> BlockParams {
    let plain = BlockParams::plain(scale, zero, scale_code);
    match rule {
        TernaryRule::Mean => BlockParams { step: 1.0 / scale, ..plain },
        TernaryRule::Max | TernaryRule::Min => plain,
    }
}

pub(super) fn encode(rule: TernaryRule, x: f32, p: &BlockParams, round: Rounder) -> u16 {
    let level = match rule {
        TernaryRule::Mean => round.integer(x * p.step).clamp(-1.0, 1.0) + 1.0,
        TernaryRule::Max => round.integer(x / p.step).clamp(-1.0, 1.0) + 1.0,
        TernaryRule::Min => round.integer(((x - p.origin) / p.step).clamp(0.0, 2.0)),
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0, 1 or 2; NaN becomes 0")]
    let code = level as u16;
    code
}

pub(super) fn decode(rule: TernaryRule, code: u16, p: &BlockParams) -> f32 {
    match rule {
        TernaryRule::Mean | TernaryRule::Max => (f32::from(code) - 1.0) * p.scale,
        TernaryRule::Min => f32::from(code) * p.scale + p.zero,
    }
}

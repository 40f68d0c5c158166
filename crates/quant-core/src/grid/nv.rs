//! E4M3 block scales under one f32 scale a tensor, see [`NvRule`].

use super::{BlockParams, Rounder, e4m3};
use crate::{FloatKind, NvRule, Overflow, ScaleType};
use std::sync::LazyLock;

/// The least normal E4M3 number, 2^-6, and the least one, 2^-9.
const LEAST_NORMAL: f32 = 0.015_625;
const LEAST: f32 = 0.001_953_125;

/// The value of each scale.
static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut values = [0.0; 256];
    values.iter_mut().zip(0..).for_each(|(value, code)| *value = FloatKind::E4m3Fn.decode(code));
    values
});

/// The stored scale of a tensor; 1 for a zero tensor.
pub(super) fn tensor_scale(rule: NvRule, amax: f32, largest: f32) -> f32 {
    match rule {
        _ if amax == 0.0 => 1.0,
        // Finite, where the reciprocal of a tiny maximum is not.
        NvRule::CompressedTensors => ((448.0 * largest) * (1.0 / amax)).min(f32::MAX),
        NvRule::Mlx => amax,
        NvRule::TorchAoSingle | NvRule::MlxSingle => 1.0,
        NvRule::PaperBf16 => (amax / largest) / 448.0,
        // Not zero, lest the whole tensor be.
        NvRule::Standard => (amax / (448.0 * largest)).max(f32::from_bits(1)),
        NvRule::TorchAo | NvRule::ModelOpt => amax / (448.0 * largest),
    }
}

/// The block scale for the largest magnitude `amax` of a block.
pub(super) fn fit(rule: NvRule, second: f32, largest: f32, amax: f32) -> BlockParams {
    let code = match rule {
        NvRule::Standard if amax == 0.0 => 0,
        NvRule::Standard => e4m3((amax / largest) / second).max(1),
        NvRule::TorchAo => e4m3(((amax / largest) / second).max(LEAST_NORMAL)),
        NvRule::TorchAoSingle => e4m3((amax / largest).max(LEAST_NORMAL)),
        NvRule::ModelOpt => {
            let t = amax / (largest * second);
            e4m3(if t == 0.0 { 1.0 } else { t.max(LEAST) })
        }
        NvRule::CompressedTensors => match e4m3(second * (amax / largest)) {
            0 => e4m3(0.125),
            code => code,
        },
        NvRule::Mlx => e4m3((amax / largest) * mlx_factor(second, largest)),
        NvRule::MlxSingle => e4m3(amax / largest),
        NvRule::PaperBf16 if amax == 0.0 => 0,
        NvRule::PaperBf16 => e4m3((amax / largest) / second),
    };
    params(rule, second, largest, code)
}

/// The parameters of a stored block scale.
pub(super) fn params(rule: NvRule, second: f32, largest: f32, code: u8) -> BlockParams {
    params_of(rule, second, largest, (u32::from(code), E4M3[usize::from(code)]))
}

/// `of` the parameters of every scale from code 0 on, in a loop compiled for each rule.
pub(super) fn of_codes<T: Copy + Default, const N: usize>(
    rule: NvRule,
    (second, largest): (f32, f32),
    of: impl Fn(BlockParams) -> T,
) -> [T; N] {
    let values: &[f32; 256] = &E4M3;
    let by = |rule| {
        let mut all = [T::default(); N];
        for ((one, code), &value) in all.iter_mut().zip(0..).zip(values) {
            *one = of(params_of(rule, second, largest, (code, value)));
        }
        all
    };
    match rule {
        NvRule::Standard => by(NvRule::Standard),
        NvRule::TorchAo => by(NvRule::TorchAo),
        NvRule::TorchAoSingle => by(NvRule::TorchAoSingle),
        NvRule::ModelOpt => by(NvRule::ModelOpt),
        NvRule::CompressedTensors => by(NvRule::CompressedTensors),
        NvRule::Mlx => by(NvRule::Mlx),
        NvRule::MlxSingle => by(NvRule::MlxSingle),
        NvRule::PaperBf16 => by(NvRule::PaperBf16),
    }
}

#[inline(always)]
fn params_of(rule: NvRule, second: f32, largest: f32, (code, scale): (u32, f32)) -> BlockParams {
    let plain = |scale| BlockParams::plain(scale, 0.0, code);
    match rule {
        NvRule::Standard | NvRule::ModelOpt => plain(scale * second),
        NvRule::TorchAo => BlockParams { step: (1.0 / second) / scale, ..plain(second * scale) },
        NvRule::TorchAoSingle => BlockParams { step: 1.0 / scale, ..plain(scale) },
        NvRule::CompressedTensors => plain(scale / second),
        // MLX decodes with another expression than it encodes with.
        NvRule::Mlx => {
            BlockParams { step: scale / mlx_factor(second, largest), ..plain(scale * (second / (448.0 * largest))) }
        }
        NvRule::MlxSingle => plain(scale),
        NvRule::PaperBf16 => {
            let bf16 = ScaleType::Bf16;
            plain(bf16.round(bf16.round(second) * scale).max(bf16.round(1e-25)))
        }
    }
}

fn mlx_factor(amax: f32, largest: f32) -> f32 {
    (448.0 * largest) / amax
}

/// `x` in units of the block scale, ready to be rounded to an element.
pub(super) fn normalize(rule: NvRule, x: f32, p: &BlockParams) -> f32 {
    match rule {
        NvRule::ModelOpt | NvRule::CompressedTensors if x == 0.0 => 0.0,
        _ if x == 0.0 => x,
        NvRule::TorchAo | NvRule::TorchAoSingle => x * p.step,
        _ if p.step == 0.0 => 0.0_f32.copysign(x),
        _ => x / p.step,
    }
}

/// The E2M1 code of `x`; under MLX's rules there is no −0.
pub(super) fn encode_float(rule: NvRule, kind: FloatKind, x: f32, p: &BlockParams, round: Rounder) -> u16 {
    let code = kind.encode_rounded(normalize(rule, x, p), Overflow::Saturate, round.rounding, round.random);
    match rule {
        NvRule::Mlx | NvRule::MlxSingle if kind.decode(code) == 0.0 => 0,
        _ => code,
    }
}

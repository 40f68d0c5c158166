//! One value of each of many blocks, rounded under the parameters of its block.

use super::Isa;
use super::ops::{self, MAGIC};
use crate::{BlockParams, Element, FormatGrid, IntRule, Scale};

/// Values rounded at a time.
const STRIP: usize = 64;

/// Integers `clamp(rne(x/step) + origin, low, high)` that stand for `(code − zero)·scale`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntColumn {
    low: f32,
    high: f32,
    /// The bits of a code.
    mask: u32,
}

impl IntColumn {
    /// The rule of a grid, if it is of this kind.
    fn of(grid: &FormatGrid) -> Option<Self> {
        let (Element::Int { bits: bits @ 2.., rule }, Scale::Float(_)) = (grid.format().element, grid.format().scale)
        else {
            return None;
        };
        let levels = f32::from((1_u16 << bits) - 1);
        let largest = f32::from((1_u16 << (bits - 1)) - 1);
        let (low, high) = match rule {
            IntRule::Restricted => (-largest, largest),
            IntRule::Full | IntRule::GptqSym | IntRule::AwqSym => (-largest - 1.0, largest),
            IntRule::Asymmetric | IntRule::AwqAsym => (0.0, levels),
            // These round sums or quotients to the type of the scale, or have zero points that are no integers.
            IntRule::CtSym | IntRule::CtAsym | IntRule::FloatMin | IntRule::Mlx => return None,
        };
        Some(Self { low, high, mask: (1 << bits) - 1 })
    }
}

/// Parameters of a strip, each kind side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params {
    step: [f32; STRIP],
    origin: [f32; STRIP],
    scale: [f32; STRIP],
    zero: [f32; STRIP],
}

/// See [`crate::Grid::round_column`]; true when the grid has a kernel.
pub(crate) fn round_column(
    grid: &FormatGrid,
    values: &[f32],
    params: &[BlockParams],
    codes: &mut [u32],
    rounded: &mut [f32],
) -> bool {
    let isa = Isa::current();
    let (Some(rule), true) = (IntColumn::of(grid), isa != Isa::Reference) else { return false };
    let backend = isa.backend();
    let mut strip = Params { step: [1.0; STRIP], origin: [0.0; STRIP], scale: [1.0; STRIP], zero: [0.0; STRIP] };
    let strips = values.chunks(STRIP).zip(params.chunks(STRIP));
    for ((x, params), (codes, out)) in strips.zip(codes.chunks_mut(STRIP).zip(rounded.chunks_mut(STRIP))) {
        for (i, p) in params.iter().enumerate() {
            (strip.step[i], strip.origin[i]) = (p.step, p.origin);
            (strip.scale[i], strip.zero[i]) = (p.scale, p.zero);
        }
        if !backend.round_column(rule, &strip, x, codes, out) {
            grid.round_each(x, params, codes, out);
        }
    }
    true
}

/// False when the reference must decide: for values that are not finite and parameters that no fit gives.
#[inline(always)]
pub(super) fn round_strip(rule: IntColumn, params: &Params, x: &[f32], codes: &mut [u32], rounded: &mut [f32]) -> bool {
    let whole = |v: f32| (v + MAGIC) - MAGIC;
    let plain = params.step.iter().zip(&params.origin).fold(true, |plain, (&step, &origin)| {
        plain & (step > 0.0) & (0.0..=255.0).contains(&origin) & (whole(origin).to_bits() == origin.to_bits())
    });
    if !plain || ops::amax_bits(x) >= ops::INFINITE {
        return false;
    }
    let scales = params.step.iter().zip(&params.origin).zip(params.scale.iter().zip(&params.zero));
    for (((&x, code), out), ((&step, &origin), (&scale, &zero))) in x.iter().zip(codes).zip(rounded).zip(scales) {
        // Clamping between integers before rounding or after gives the same.
        let v = ops::fmin(ops::fmax(x / step, rule.low - origin), rule.high - origin);
        let sum = (v + MAGIC) + origin;
        *code = sum.to_bits() & rule.mask;
        *out = ((sum - MAGIC) - zero) * scale;
    }
    true
}

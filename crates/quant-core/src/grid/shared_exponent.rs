//! Sign and magnitude under a shared exponent: BFP, GSE, SEFP.
//!
//! `E = ⌊log2 amax⌋`, unit `u = 2^(E−(m−1))`, `k = round(|x|/u)` clamped to `2^m − 1`, value `±k·u`.
//! `amax/u` lies in `[2^(m−1), 2^m)`, so the clamp acts only on rounding up. The unit of a coarser
//! grid is that of a finer one times a power of two, and truncation nests: dropping the low bits of
//! a truncated code gives the truncated code of the coarser grid.
//!
//! A 5-bit exponent is stored with bias 15 and lies in [−14, 15], as in f16: larger blocks saturate
//! (their codes clamp), smaller ones flush to the unit of −14; [`ExponentClamps`] counts both. An 8-bit exponent has bias 127
//! and lies in [−126, 127]. A zero block gets the least exponent.

use super::{BlockParams, Rounder};
use crate::element::{exp2, exponent_of};
use crate::{Element, Error, Format, Layout, Scale, Tensor};

/// Least exponent, largest exponent, bias.
fn limits(width: u8) -> (i32, i32, i32) {
    if width == 5 { (-14, 15, 15) } else { (-126, 127, 127) }
}

/// The stored exponent of a block with largest magnitude `amax`.
pub(super) fn exponent_code(width: u8, amax: f32) -> u32 {
    let (low, high, bias) = limits(width);
    let exponent = if amax == 0.0 { low } else { exponent_of(f64::from(amax)).clamp(low, high) };
    (exponent + bias).cast_unsigned()
}

/// The unit of a block; every stored exponent has one.
pub(super) fn step(element: Element, width: u8, code: u8) -> f32 {
    let (.., bias) = limits(width);
    let Element::Magnitude { bits } = element else { return 1.0 };
    #[expect(clippy::cast_possible_truncation, reason = "2^-135 to 2^128: exact, or the infinity of an unused code")]
    let step = exp2(i32::from(code) - bias - (i32::from(bits) - 1)) as f32;
    step
}

/// Bit `m` is the sign; zero is always +0.
pub(super) fn encode(bits: u8, x: f32, p: &BlockParams, round: Rounder) -> u16 {
    let largest = f64::from((1_u16 << bits) - 1);
    // Exact: a division by a power of two.
    let k = round.magnitude(f64::from(x) / f64::from(p.step)).min(largest);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= k < 2^bits")]
    let k = k as u16;
    if x < 0.0 && k > 0 { k | 1 << bits } else { k }
}

pub(super) fn decode(bits: u8, code: u16, p: &BlockParams) -> f32 {
    let value = f32::from(code & ((1 << bits) - 1)) * p.scale;
    if code >> bits & 1 == 1 { -value } else { value }
}

/// Blocks of a tensor whose shared exponent does not fit the field that stores it.
///
/// ```
/// use quant_core::{ExponentClamps, Format, Shaped};
/// let values = [1e6_f32, 1.0, 1e-6, 0.0];
/// let tensor = Shaped::new(&values, &[4, 1])?;
/// let clamps = ExponentClamps::count("sefp4".parse::<Format>()?, &tensor)?;
/// assert_eq!(clamps, ExponentClamps { saturated: 1, flushed: 1 });
/// # Ok::<(), quant_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ExponentClamps {
    /// Blocks too large for the field: their largest codes are clamped.
    pub saturated: usize,
    /// Blocks too small for it, zero blocks not counted: they lose precision or vanish.
    pub flushed: usize,
}

impl ExponentClamps {
    /// Counts the blocks that encoding the tensor in this format clamps; none for formats without
    /// shared exponents.
    ///
    /// # Errors
    ///
    /// As [`PackedTensor::encode`](crate::PackedTensor::encode).
    pub fn count(format: Format, tensor: &impl Tensor) -> Result<Self, Error> {
        let view = tensor.view();
        let layout = Layout::new(format, view.shape())?;
        let mut clamps = Self::default();
        let Scale::Exponent(width) = format.scale else { return Ok(clamps) };
        let (low, high, _) = limits(width);
        let mut values = vec![0.0; layout.columns];
        let mut largest = vec![0.0_f32; layout.block_columns_count()];
        for row in 0..layout.rows {
            view.read_row(row, &mut values)?;
            for (largest, block) in largest.iter_mut().zip(values.chunks(layout.block_columns)) {
                *largest = block.iter().fold(*largest, |m, x| m.max(x.abs()));
            }
            if (row + 1) % layout.block_rows == 0 || row + 1 == layout.rows {
                for amax in &mut largest {
                    let exponent = exponent_of(f64::from(*amax));
                    clamps.saturated += usize::from(exponent > high);
                    clamps.flushed += usize::from(exponent < low && *amax > 0.0);
                    *amax = 0.0;
                }
            }
        }
        Ok(clamps)
    }
}

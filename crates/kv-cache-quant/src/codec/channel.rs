//! Number formats along tokens: what the elements of one channel share, over some tokens.

use crate::Error;
use crate::codec::{Codec, TokenFormat, UnitBytes, check_heads};
use crate::packed::PackedRows;
use quant_core::Format;

/// Stores a unit of tokens transposed, as a tensor `[channels, tokens]` in a [`Format`], so that each channel has
/// scales of its own: keys have channels far larger than the others.
///
/// The tokens of a unit can only be sealed together, once the last of them has come; until then they wait in full
/// precision. Codes of a channel lie side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelFormat {
    heads: usize,
    channels: usize,
    unit: usize,
    transposed: TokenFormat,
}

impl ChannelFormat {
    /// For rows of `heads` heads of `dim` elements, `unit` tokens at a time. Groups of the format count tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] when the format contradicts itself; [`Error::Unsupported`] for no heads or a unit of no tokens
    /// or more than 2^14.
    pub fn new(heads: usize, dim: usize, unit: usize, format: Format) -> Result<Self, Error> {
        check_heads(heads, dim)?;
        if unit == 0 || unit > 1 << 14 {
            let found = format!("{unit} tokens");
            return Err(Error::Unsupported {
                what: "unit of a per-channel codec",
                found,
                supported: "1 to 16384 tokens",
            });
        }
        let transposed = TokenFormat::of_shape([heads * dim, unit], format)?;
        Ok(Self { heads, channels: heads * dim, unit, transposed })
    }
}

impl Codec for ChannelFormat {
    fn width(&self) -> usize {
        self.channels
    }

    fn unit(&self) -> usize {
        self.unit
    }

    fn bytes(&self, stage: usize) -> UnitBytes {
        self.transposed.bytes(stage)
    }

    fn seal(&self, rows: &[f32], stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error> {
        let mut transposed = vec![0.0; rows.len()];
        transpose(rows, self.channels, &mut transposed);
        self.transposed.seal(&transposed, stage, out)
    }

    fn open(&self, units: &[u8], stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error> {
        let mut transposed = vec![0.0; self.unit * self.channels];
        let units = units.chunks_exact(self.bytes(stage).total());
        for (unit, rows) in units.zip(rows.chunks_exact_mut(self.unit * self.channels)) {
            self.transposed.open(unit, stage, &mut transposed)?;
            transpose(&transposed, self.unit, rows);
        }
        Ok(())
    }

    fn packed(&self, stage: usize) -> Option<PackedRows> {
        Some(self.transposed.packed(stage)?.transposed(self.heads))
    }

    fn description(&self) -> String {
        format!("channels of {}", self.transposed.description())
    }
}

/// Side of the squares that are transposed one after the other, so that both sides stay in the cache.
const TILE: usize = 16;

/// Writes the transpose of a matrix with `columns` columns.
fn transpose(from: &[f32], columns: usize, to: &mut [f32]) {
    let rows = from.len() / columns;
    for first_row in (0..rows).step_by(TILE) {
        for first_column in (0..columns).step_by(TILE) {
            for c in first_column..columns.min(first_column + TILE) {
                for r in first_row..rows.min(first_row + TILE) {
                    to[c * rows + r] = from[r * columns + c];
                }
            }
        }
    }
}

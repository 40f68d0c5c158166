//! Where codes, scales and zero points lie in bytes.

use crate::bits::Packing;
use crate::tensor::element_count;
use crate::{Block, Element, Error, Format, NvRule, Scale, ScaleType, ZeroPoint};

/// Byte layout of a packed tensor: which block an element belongs to and how long each section is.
///
/// A tensor of shape `[…, columns]` has `rows` rows. Sections:
///
/// | section | order | contents |
/// |---|---|---|
/// | codes | row by row, each row starts on a byte | little-endian bit stream of `b`-bit codes (bit `k` of the stream is bit `k % 8` of byte `k / 8`); ternary: five base-3 digits a byte, first digit least significant, digit = level from 0 to 2 |
/// | scales | block row by block row, each starts on a byte | f32/f16/bf16 little-endian, one byte (E8M0, E4M3, 8-bit exponent, double-quantized), or a bit stream of 5-bit exponents |
/// | zeros | like scales | bit stream of `b`-bit integers, or floats of the scale's type |
/// | second | – | little-endian f32: the tensor scale of NVFP4; offset and block magnitudes of double quantization |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Product of all axes but the last.
    pub rows: usize,
    /// Length of the last axis.
    pub columns: usize,
    /// Rows that one block spans (the last may span fewer).
    pub block_rows: usize,
    /// Columns that one block spans (the last may span fewer).
    pub block_columns: usize,
    /// Bytes of the codes of one row.
    pub code_row_bytes: usize,
    /// Bytes of the scales of one row of blocks.
    pub scale_row_bytes: usize,
    /// Bytes of the zero points of one row of blocks.
    pub zero_row_bytes: usize,
    /// Values in the section `second`.
    pub second_len: usize,
}

/// Blocks of double quantization that share a second-level magnitude (QLoRA).
pub(crate) const DOUBLE_BLOCK: usize = 256;

impl Layout {
    /// The layout of a tensor of this shape in this format.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidFormat`], [`Error::Empty`] for a shape without elements, [`Error::SizeOverflow`].
    pub fn new(format: Format, shape: &[usize]) -> Result<Self, Error> {
        format.validate()?;
        let elements = element_count(shape)?;
        if elements == 0 {
            return Err(Error::Empty { shape: shape.to_vec() });
        }
        let columns = shape.last().copied().unwrap_or(1);
        let rows = elements / columns;
        let (block_rows, block_columns) = match format.block {
            Block::Tensor => (rows, columns),
            Block::Row => (1, columns),
            Block::Group(group) => (1, columns.min(group as usize)),
            Block::Tile { rows: r, columns: c } => (rows.min(r as usize), columns.min(c as usize)),
        };
        let blocks = columns.div_ceil(block_columns);
        let overflow = || Error::SizeOverflow { shape: shape.to_vec() };
        let scale_row_bytes = match format.scale {
            Scale::None => 0,
            Scale::Float(kind) => kind.bytes() * blocks,
            Scale::E8m0(_) | Scale::E4m3(_) | Scale::Double => blocks,
            Scale::Exponent(bits) => Packing::Bits(u32::from(bits)).bytes(blocks).ok_or_else(overflow)?,
        };
        let zero_row_bytes = match format.zero_point() {
            ZeroPoint::None => 0,
            ZeroPoint::Integer { bits } => Packing::Bits(u32::from(bits)).bytes(blocks).ok_or_else(overflow)?,
            ZeroPoint::Float(kind) => kind.bytes() * blocks,
        };
        let layout = Self {
            rows,
            columns,
            block_rows,
            block_columns,
            code_row_bytes: format.packing().bytes(columns).ok_or_else(overflow)?,
            scale_row_bytes,
            zero_row_bytes,
            second_len: match format.scale {
                Scale::E4m3(NvRule::TorchAoSingle | NvRule::MlxSingle) => 0,
                Scale::E4m3(_) => 1,
                Scale::Double => 1 + (rows.div_ceil(block_rows) * blocks).div_ceil(DOUBLE_BLOCK),
                _ => 0,
            },
        };
        layout.code_row_bytes.checked_mul(rows).ok_or_else(overflow)?;
        Ok(layout)
    }

    /// Number of blocks side by side in a row.
    #[must_use]
    pub fn block_columns_count(&self) -> usize {
        self.columns.div_ceil(self.block_columns)
    }

    /// Number of blocks above each other.
    #[must_use]
    pub fn block_rows_count(&self) -> usize {
        self.rows.div_ceil(self.block_rows)
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.block_rows_count() * self.block_columns_count()
    }

    /// Bytes of the section `codes`.
    #[must_use]
    pub fn code_bytes(&self) -> usize {
        self.rows * self.code_row_bytes
    }

    /// Bytes of the section `scales`.
    #[must_use]
    pub fn scale_bytes(&self) -> usize {
        self.block_rows_count() * self.scale_row_bytes
    }

    /// Bytes of the section `zeros`.
    #[must_use]
    pub fn zero_bytes(&self) -> usize {
        self.block_rows_count() * self.zero_row_bytes
    }
}

impl Format {
    pub(crate) fn packing(&self) -> Packing {
        match self.element {
            Element::Ternary(_) => Packing::Trits,
            _ => Packing::Bits(self.code_bits()),
        }
    }
}

impl ScaleType {
    /// Bytes one scale takes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

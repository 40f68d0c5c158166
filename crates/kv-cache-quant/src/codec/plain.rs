//! Rows as they are: f32, f16 or bf16.

use crate::codec::{Codec, UnitBytes, check_heads};
use crate::packed::PackedRows;
use crate::{Error, FullPrecision};

/// Keeps rows in full precision. For layers that are better left alone, and to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    heads: usize,
    width: usize,
    precision: FullPrecision,
}

impl Plain {
    /// For rows of `heads` heads of `dim` elements.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for no heads, or absurdly many.
    pub fn new(heads: usize, dim: usize, precision: FullPrecision) -> Result<Self, Error> {
        check_heads(heads, dim)?;
        Ok(Self { heads, width: heads * dim, precision })
    }
}

impl Codec for Plain {
    fn width(&self) -> usize {
        self.width
    }

    fn bytes(&self, _stage: usize) -> UnitBytes {
        UnitBytes { codes: self.width * self.precision.bytes(), metadata: 0 }
    }

    fn seal(&self, rows: &[f32], _stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error> {
        self.precision
            .check(rows)
            .map_err(|index| quant_core::Error::NonFinite { index, value: f64::from(rows[index]) })?;
        self.precision.write(rows, out);
        Ok(())
    }

    fn open(&self, units: &[u8], _stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error> {
        self.precision.read(units, rows);
        Ok(())
    }

    fn packed(&self, _stage: usize) -> Option<PackedRows> {
        Some(PackedRows::floats(self.precision.coding(), self.heads, self.width / self.heads))
    }

    fn description(&self) -> String {
        format!("plain {:?}, {} channels", self.precision, self.width)
    }
}

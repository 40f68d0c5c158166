//! Any number format of quant-core, token by token: the round-to-nearest baseline.

use crate::Error;
use crate::codec::{Codec, UnitBytes, check_heads};
use crate::halves;
use crate::kernels::{self, Affine};
use crate::pack::MinRow;
use crate::packed::PackedRows;
use quant_core::{Element, EncodeOptions, Format, IntRule, Layout, PackedTensor, Scale, ScaleType, Shaped};

/// Stores each token as a tensor `[heads, dim]` in a [`Format`]: INT1–8, FP8, FP4, MX, NVFP4, NF4, block floating
/// point, ternary.
///
/// Groups run along the elements of a head and never span heads; a head that is no multiple of the group ends in a
/// shorter one. `int4-min` (one group a head) with `x ≈ q·s + lo` is the round-to-nearest baseline of the
/// papers on caches. The tensor scale of NVFP4 becomes a scale of the token.
///
/// Bytes of a token: codes, scales, zero points, tensor scale, each as [`Layout`] says.
///
/// ```
/// use kv_cache_quant::{Codec, TokenFormat};
/// let codec = TokenFormat::new(8, 128, "int2-g128-min".parse()?)?;
/// let bytes = codec.bytes(0);
/// assert_eq!(bytes.total() * 8, 8 * 128 * 9 / 4, "2 bits, and an f16 scale and minimum for 128: 2.25");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenFormat {
    shape: [usize; 2],
    format: Format,
    layout: Layout,
}

impl TokenFormat {
    /// For rows of `heads` heads of `dim` elements.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] when the format contradicts itself, [`Error::Unsupported`] for no heads.
    pub fn new(heads: usize, dim: usize, format: Format) -> Result<Self, Error> {
        check_heads(heads, dim)?;
        Self::of_shape([heads, dim], format)
    }

    pub(crate) fn of_shape(shape: [usize; 2], format: Format) -> Result<Self, Error> {
        Ok(Self { shape, format, layout: Layout::new(format, &shape)? })
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// How codes are read where they are integers of 2, 4 or 8 bits under f16 scales, in rows of whole bytes: the
    /// formats that are decoded by kernels of this crate. The others go through [`PackedTensor`].
    fn affine(&self) -> Option<(u32, Affine)> {
        let Element::Int { bits: bits @ (2 | 4 | 8), rule } = self.format.element else { return None };
        let sign = match rule {
            IntRule::FloatMin => 0,
            IntRule::Restricted | IntRule::Full => 1 << (bits - 1),
            _ => return None,
        };
        let (row, bits) = (self.shape[1], u32::from(bits));
        let whole = self.format.scale == Scale::Float(ScaleType::F16)
            && self.layout.block_rows == 1
            && (row * bits as usize).is_multiple_of(8);
        whole.then_some((bits, Affine { row, group: self.layout.block_columns, sign }))
    }

    /// How rows are sealed where they are integers of 2, 4 or 8 bits above the least value of their group, in f16.
    pub(crate) fn min_row(&self) -> Option<MinRow> {
        let Element::Int { bits: bits @ (2 | 4 | 8), rule: IntRule::FloatMin } = self.format.element else {
            return None;
        };
        let plain = self.format.scale == Scale::Float(ScaleType::F16) && self.layout.block_rows == 1;
        let (head, group) = (self.shape[1], self.layout.block_columns);
        plain.then_some(MinRow { bits: u32::from(bits), head, group })
    }

    fn open_affine(&self, bits: u32, affine: Affine, unit: &[u8], rows: &mut [f32]) {
        let (code_bytes, meta) = unit.split_at(self.layout.code_bytes());
        let (scale_bytes, zero_bytes) = meta.split_at(self.layout.scale_bytes());
        let mut codes = vec![0; rows.len()];
        let mut params = vec![0.0; 2 * self.layout.blocks()];
        let (scales, zeros) = params.split_at_mut(self.layout.blocks());
        kernels::unpack(bits, code_bytes, &mut codes);
        halves::read(scale_bytes, scales);
        halves::read(zero_bytes, zeros);
        kernels::affine(&codes, affine, scales, zeros, rows);
    }

    /// One token as a tensor that borrows its bytes.
    fn packed<'a>(&self, unit: &'a [u8]) -> Result<PackedTensor<'a>, quant_core::Error> {
        let [codes, scales, zeros, second] = self.sections(unit);
        let second = second.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        PackedTensor::from_sections(self.format, &self.shape, codes, scales, zeros, second)
    }

    /// Many tokens as one tensor, their sections gathered; not for formats with a scale a token.
    fn gathered(&self, units: &[u8]) -> Result<PackedTensor<'static>, quant_core::Error> {
        let size = self.bytes(0).total();
        let gather = |section: usize| -> Vec<u8> {
            units.chunks_exact(size).map(|unit| self.sections(unit)[section]).collect::<Vec<_>>().concat()
        };
        let shape = [units.len() / size * self.shape[0], self.shape[1]];
        PackedTensor::from_sections(self.format, &shape, gather(0), gather(1), gather(2), Vec::new())
    }

    /// Codes, scales, zeros, tensor scale.
    fn sections<'a>(&self, unit: &'a [u8]) -> [&'a [u8]; 4] {
        let layout = &self.layout;
        let (codes, rest) = unit.split_at(layout.code_bytes().min(unit.len()));
        let (scales, rest) = rest.split_at(layout.scale_bytes().min(rest.len()));
        let (zeros, second) = rest.split_at(layout.zero_bytes().min(rest.len()));
        [codes, scales, zeros, second]
    }
}

impl Codec for TokenFormat {
    fn width(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn bytes(&self, _stage: usize) -> UnitBytes {
        let layout = &self.layout;
        UnitBytes {
            codes: layout.code_bytes(),
            metadata: layout.scale_bytes() + layout.zero_bytes() + 4 * layout.second_len,
        }
    }

    fn seal(&self, rows: &[f32], _stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error> {
        if self.min_row().is_some_and(|row_of| row_of.seal(rows, out)) {
            return Ok(());
        }
        let (codes, rest) = out.split_at_mut(self.layout.code_bytes());
        let (scales, rest) = rest.split_at_mut(self.layout.scale_bytes());
        let (zeros, rest) = rest.split_at_mut(self.layout.zero_bytes());
        let (rows, options) = (Shaped::new(rows, &self.shape)?, EncodeOptions::default());
        let second = PackedTensor::encode_into(self.format, &rows, options, [codes, scales, zeros])?;
        for (out, value) in rest.as_chunks_mut::<4>().0.iter_mut().zip(second) {
            *out = value.to_le_bytes();
        }
        Ok(())
    }

    fn open(&self, units: &[u8], stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error> {
        let affine = self.affine();
        let by_row = self.layout.block_rows == 1 && self.layout.second_len == 0;
        if affine.is_none() && by_row && rows.len() > self.width() {
            return self.gathered(units)?.decode_into(rows);
        }
        for (unit, rows) in units.chunks_exact(self.bytes(stage).total()).zip(rows.chunks_exact_mut(self.width())) {
            match affine {
                Some((bits, affine)) => self.open_affine(bits, affine, unit, rows),
                None => self.packed(unit)?.decode_into(rows)?,
            }
        }
        Ok(())
    }

    fn packed(&self, stage: usize) -> Option<PackedRows> {
        PackedRows::of_format(self.format, &self.layout, self.bytes(stage).total())
    }

    fn description(&self) -> String {
        format!("{} of [{}, {}]", self.format, self.shape[0], self.shape[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::kernels::{Isa, with_isa};

    #[test]
    fn kernels_decode_to_the_bits_of_the_packed_tensor() {
        let mut tried = 0;
        for name in
            ["int2-g32-min", "int4-min", "int4-g128-min", "int8-min", "int8", "int4-g32", "int2-full-g7", "int8-full"]
        {
            for dim in [64, 80, 100, 128, 4] {
                let codec = TokenFormat::new(3, dim, name.parse().unwrap()).unwrap();
                let Some((bits, affine)) = codec.affine() else { panic!("{name} has no kernel") };
                let rows: Vec<f32> = (0..3 * dim).map(|i| ((i * 7919 % 1009) as f32 - 604.0) / 97.0).collect();
                let mut unit = vec![0; codec.bytes(0).total()];
                codec.seal(&rows, 0, &mut unit).unwrap();
                let expected = codec.packed(&unit).unwrap().decode();
                for isa in Isa::ALL {
                    let mut out = vec![0.0; rows.len()];
                    with_isa(isa, || codec.open_affine(bits, affine, &unit, &mut out));
                    assert_eq!(out, expected, "{name}, {dim}, {isa:?}");
                    tried += 1;
                }
            }
        }
        assert_eq!(tried, 8 * 5 * Isa::ALL.len(), "every format has a kernel at every size");
    }
}

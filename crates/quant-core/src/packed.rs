//! A tensor as codes, scales and zero points.

mod assemble;
mod double;
mod encode;

use crate::bits::Packing;
use crate::kernels::{self, Isa, RowBytes, RowDecoder};
use crate::parallel;
use crate::{BlockParams, Error, Footprint, Format, FormatGrid, Layout, Rounding, Scale, ScaleType, Tensor, ZeroPoint};
use half::{bf16, f16};
use std::borrow::Cow;

/// How to encode, beyond what the format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Rounding of elements; scales are rounded as the format says.
    pub rounding: Rounding,
    /// Seed of stochastic rounding; element `i` uses word `i` of the ChaCha8 stream of this seed.
    pub seed: u64,
}

/// A tensor stored in a [`Format`]; owned, or borrowed from a memory-mapped file.
///
/// The bytes of each section are described at [`Layout`].
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTensor<'a> {
    format: Format,
    shape: Vec<usize>,
    layout: Layout,
    grid: FormatGrid,
    decoder: Option<RowDecoder>,
    codes: Cow<'a, [u8]>,
    scales: Cow<'a, [u8]>,
    zeros: Cow<'a, [u8]>,
    second: Vec<f32>,
}

/// Refuses codes, scales, zero points and values of `second` of other lengths than a layout says.
fn check_sections(
    format: Format,
    shape: &[usize],
    layout: &Layout,
    bytes: [usize; 3],
    second_len: usize,
) -> Result<(), Error> {
    let lengths = [
        ("codes", layout.code_bytes(), bytes[0]),
        ("scales", layout.scale_bytes(), bytes[1]),
        ("zeros", layout.zero_bytes(), bytes[2]),
        ("second", 4 * layout.second_len, 4 * second_len),
    ];
    for (section, expected, found) in lengths {
        if expected != found {
            let (format, shape) = (format.to_string(), shape.to_vec());
            return Err(Error::SectionLen { section, format, shape, expected, found });
        }
    }
    Ok(())
}

impl<'a> PackedTensor<'a> {
    /// Joins sections that were stored, checking every length and every scale.
    ///
    /// # Errors
    ///
    /// [`Error::SectionLen`] for a section of the wrong length, [`Error::ReservedScale`] for a NaN or
    /// infinite scale, and the errors of [`Layout::new`].
    pub fn from_sections(
        format: Format,
        shape: &[usize],
        codes: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Cow<'a, [u8]>>,
        zeros: impl Into<Cow<'a, [u8]>>,
        second: Vec<f32>,
    ) -> Result<Self, Error> {
        let layout = Layout::new(format, shape)?;
        let (codes, scales, zeros) = (codes.into(), scales.into(), zeros.into());
        check_sections(format, shape, &layout, [codes.len(), scales.len(), zeros.len()], second.len())?;
        if let Some(&value) = second.iter().find(|s| !s.is_finite()) {
            return Err(Error::ReservedScale { block: 0, value });
        }
        // Double quantization keeps its second level in `second` too, but its grid has no tensor scale.
        let tensor_scale = if matches!(format.scale, Scale::E4m3(_)) { second.first().copied() } else { None };
        let grid = FormatGrid::with_tensor_scale(format, tensor_scale.unwrap_or(1.0))?;
        let decoder = RowDecoder::new(&grid, &layout);
        let tensor = Self { format, shape: shape.to_vec(), layout, grid, decoder, codes, scales, zeros, second };
        let suspects = if tensor.scales_are_plainly_finite() { 0 } else { layout.blocks() };
        for block in 0..suspects {
            let params = tensor.params(block / layout.block_columns_count(), block % layout.block_columns_count());
            if !params.scale.is_finite() || !params.zero.is_finite() {
                return Err(Error::ReservedScale { block, value: params.scale });
            }
        }
        Ok(tensor)
    }

    /// Whether the bytes of one-byte scales show at a glance that all are finite, so that lending a
    /// mapped tensor need not decode each.
    fn scales_are_plainly_finite(&self) -> bool {
        match self.format.scale {
            Scale::E8m0(_) => !self.scales.contains(&0xff),
            // No product with the tensor scale overflows when that of the largest scale does not.
            Scale::E4m3(_) => {
                self.grid.params_from_stored(0x7e, 0.0).scale.is_finite()
                    && self.scales.iter().all(|s| s & 0x7f != 0x7f)
            }
            _ => false,
        }
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The shape of the tensor it represents.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where everything lies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The grid its elements lie on.
    #[must_use]
    pub fn grid(&self) -> &FormatGrid {
        &self.grid
    }

    /// The section of codes.
    #[must_use]
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The section of scales.
    #[must_use]
    pub fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// The section of zero points.
    #[must_use]
    pub fn zeros(&self) -> &[u8] {
        &self.zeros
    }

    /// The f32 values of the section `second`.
    #[must_use]
    pub fn second(&self) -> &[f32] {
        &self.second
    }

    /// The same tensor owning its bytes.
    #[must_use]
    pub fn into_owned(self) -> PackedTensor<'static> {
        PackedTensor {
            format: self.format,
            shape: self.shape,
            layout: self.layout,
            grid: self.grid,
            decoder: self.decoder,
            codes: self.codes.into_owned().into(),
            scales: self.scales.into_owned().into(),
            zeros: self.zeros.into_owned().into(),
            second: self.second,
        }
    }

    /// Every byte that is stored.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint {
            elements: (self.layout.rows * self.layout.columns) as u64,
            codes: self.codes.len() as u64,
            scales: self.scales.len() as u64,
            zeros: self.zeros.len() as u64,
            other: 4 * self.second.len() as u64,
        }
    }

    /// The parameters of one block.
    ///
    /// # Panics
    ///
    /// When the block does not exist.
    #[must_use]
    pub fn params(&self, block_row: usize, block_column: usize) -> BlockParams {
        let scales = &self.scales[block_row * self.layout.scale_row_bytes..][..self.layout.scale_row_bytes];
        let zeros = &self.zeros[block_row * self.layout.zero_row_bytes..][..self.layout.zero_row_bytes];
        let scale_code = match self.format.scale {
            Scale::Double => {
                let block = block_row * self.layout.block_columns_count() + block_column;
                double::magnitude(scales[block_column], block, &self.second).to_bits()
            }
            scale => read_scale(scale, scales, block_column),
        };
        let zero = match self.format.zero_point() {
            ZeroPoint::None => 0.0,
            ZeroPoint::Integer { bits } => f32::from(read_bits(zeros, block_column, u32::from(bits))),
            ZeroPoint::Float(kind) => float_from_bits(kind, read_float(kind, zeros, block_column)),
        };
        self.grid.params_from_stored(scale_code, zero)
    }

    /// Writes the unpacked codes of one row.
    ///
    /// # Errors
    ///
    /// [`Error::Row`] and [`Error::OutputLen`].
    pub fn row_codes(&self, row: usize, out: &mut [u16]) -> Result<(), Error> {
        self.check_row(row, out.len())?;
        let bytes = &self.codes[row * self.layout.code_row_bytes..][..self.layout.code_row_bytes];
        self.format.packing().unpack(bytes, 0, out);
        Ok(())
    }

    /// Writes the values of one row.
    ///
    /// # Errors
    ///
    /// [`Error::Row`] when the row does not exist, [`Error::OutputLen`] when `out` is not one row long.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<(), Error> {
        self.check_row(row, out.len())?;
        self.decode_checked(Isa::current(), row, out, false);
        Ok(())
    }

    /// Decodes a row that exists into a slice that fits; with a decoder that takes them together, as many rows as fit.
    pub(crate) fn decode_checked(&self, isa: Isa, row: usize, out: &mut [f32], stream: bool) {
        let (rows, block_row) = (out.len() / self.layout.columns, row / self.layout.block_rows);
        let codes = &self.codes[row * self.layout.code_row_bytes..][..rows * self.layout.code_row_bytes];
        if let (Some(decoder), true) = (&self.decoder, isa != Isa::Reference) {
            let scales = &self.scales[block_row * self.layout.scale_row_bytes..][..rows * self.layout.scale_row_bytes];
            let zeros = &self.zeros[block_row * self.layout.zero_row_bytes..][..rows * self.layout.zero_row_bytes];
            return decoder.decode(isa, RowBytes { codes, scales, zeros }, out, stream);
        }
        let mut unpacked = vec![0; out.len()];
        self.format.packing().unpack(codes, 0, &mut unpacked);
        let width = self.layout.block_columns;
        for (block, (codes, out)) in unpacked.chunks(width).zip(out.chunks_mut(width)).enumerate() {
            let params = self.params(block_row, block);
            for (&code, value) in codes.iter().zip(out) {
                *value = self.grid.decode_one(code, &params);
            }
        }
    }

    /// The product of a row with inputs where there is a way that does not decode it first; the bits are the same.
    pub(crate) fn dot_checked(&self, isa: Isa, row: usize, x: &[f32]) -> Option<f32> {
        let codes = &self.codes[row * self.layout.code_row_bytes..][..self.layout.code_row_bytes];
        self.decoder.as_ref().filter(|_| isa != Isa::Reference)?.dot(isa, x, codes)
    }

    /// Writes all values in row-major order.
    ///
    /// # Errors
    ///
    /// [`Error::OutputLen`] when `out` does not hold exactly the elements of the tensor.
    pub fn decode_into(&self, out: &mut [f32]) -> Result<(), Error> {
        let expected = self.layout.rows * self.layout.columns;
        if out.len() != expected {
            return Err(Error::OutputLen { expected, found: out.len() });
        }
        let isa = Isa::current();
        let stream = size_of_val(out) >= kernels::STREAM_FLOATS;
        let decoder = self.decoder.as_ref().filter(|_| isa != Isa::Reference);
        let rows = decoder.map_or(1, |decoder| decoder.rows_together(&self.layout));
        let bands = out.chunks_mut(rows * self.layout.columns).enumerate().collect();
        parallel::for_each(bands, rows * self.layout.columns, |(band, values)| {
            self.decode_checked(isa, band * rows, values, stream);
            Ok(())
        })
    }

    /// All values in row-major order.
    #[must_use]
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.layout.rows * self.layout.columns];
        let done = self.decode_into(&mut out);
        debug_assert!(done.is_ok(), "the output was made for this tensor");
        out
    }

    fn check_row(&self, row: usize, len: usize) -> Result<(), Error> {
        if row >= self.layout.rows {
            return Err(Error::Row { row, rows: self.layout.rows });
        }
        if len != self.layout.columns {
            return Err(Error::OutputLen { expected: self.layout.columns, found: len });
        }
        Ok(())
    }
}

/// What a tensor becomes when it is encoded and decoded again, row-major.
///
/// # Errors
///
/// As [`PackedTensor::encode`].
pub fn fake_quantize(format: Format, tensor: &impl Tensor) -> Result<Vec<f32>, Error> {
    Ok(PackedTensor::encode(format, tensor)?.decode())
}

#[expect(clippy::cast_possible_truncation, reason = "scale codes are stored in as many bits as their kind has")]
fn write_scales(format: Format, params: &[BlockParams], out: &mut [u8]) {
    match format.scale {
        Scale::None => {}
        Scale::Float(kind) => {
            for (p, bytes) in params.iter().zip(out.chunks_exact_mut(kind.bytes())) {
                bytes.copy_from_slice(&p.scale_code.to_le_bytes()[..kind.bytes()]);
            }
        }
        Scale::E8m0(_) | Scale::E4m3(_) | Scale::Double => {
            for (p, byte) in params.iter().zip(out) {
                *byte = p.scale_code as u8;
            }
        }
        Scale::Exponent(bits) => {
            let codes: Vec<u16> = params.iter().map(|p| p.scale_code as u16).collect();
            Packing::Bits(u32::from(bits)).pack(&codes, out);
        }
    }
}

fn write_zeros(format: Format, params: &[BlockParams], out: &mut [u8]) {
    match format.zero_point() {
        ZeroPoint::None => {}
        ZeroPoint::Integer { bits } => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "integer zero points lie in 0..2^bits"
            )]
            let codes: Vec<u16> = params.iter().map(|p| p.zero as u16).collect();
            Packing::Bits(u32::from(bits)).pack(&codes, out);
        }
        ZeroPoint::Float(kind) => {
            for (p, bytes) in params.iter().zip(out.chunks_exact_mut(kind.bytes())) {
                match kind {
                    ScaleType::F32 => bytes.copy_from_slice(&p.zero.to_le_bytes()),
                    ScaleType::F16 => bytes.copy_from_slice(&f16::from_f32(p.zero).to_le_bytes()),
                    ScaleType::Bf16 => bytes.copy_from_slice(&bf16::from_f32(p.zero).to_le_bytes()),
                }
            }
        }
    }
}

fn read_scale(scale: Scale, bytes: &[u8], index: usize) -> u32 {
    match scale {
        Scale::None => 0,
        Scale::Float(kind) => read_float(kind, bytes, index),
        Scale::E8m0(_) | Scale::E4m3(_) | Scale::Double => u32::from(bytes[index]),
        Scale::Exponent(bits) => u32::from(read_bits(bytes, index, u32::from(bits))),
    }
}

fn read_bits(bytes: &[u8], index: usize, bits: u32) -> u16 {
    let mut code = [0];
    Packing::Bits(bits).unpack(bytes, index, &mut code);
    code[0]
}

fn read_float(kind: ScaleType, bytes: &[u8], index: usize) -> u32 {
    let mut word = [0; 4];
    word[..kind.bytes()].copy_from_slice(&bytes[index * kind.bytes()..][..kind.bytes()]);
    u32::from_le_bytes(word)
}

fn float_from_bits(kind: ScaleType, bits: u32) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "two-byte floats")]
    match kind {
        ScaleType::F32 => f32::from_bits(bits),
        ScaleType::F16 => f16::from_bits(bits as u16).to_f32(),
        ScaleType::Bf16 => bf16::from_bits(bits as u16).to_f32(),
    }
}

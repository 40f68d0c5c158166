//! A tensor as codes, scales and zero points.

mod assemble;
mod double;

use crate::bits::Packing;
use crate::kernels::{self, Isa, RowBytes, RowDecoder, RowEncoder};
use crate::parallel;
use crate::{
    BlockParams, Error, Footprint, Format, FormatGrid, Grid, Layout, Rounding, Scale, ScaleType, Tensor, TensorView,
    ZeroPoint,
};
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
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

impl PackedTensor<'static> {
    /// Quantizes a tensor, rounding to nearest even.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] or [`Error::OutOfRange`] naming the first bad element, [`Error::Empty`],
    /// [`Error::InvalidFormat`], [`Error::ScaleOverflow`].
    ///
    /// # Examples
    ///
    /// ```
    /// use quant_core::{Format, PackedTensor, Shaped};
    /// let x = [0.5_f32, -1.0, 3.0, 6.0];
    /// let packed = PackedTensor::encode(Format::MXFP4, &Shaped::new(&x, &[1, 4])?)?;
    /// assert_eq!(packed.decode(), x);
    /// # Ok::<(), quant_core::Error>(())
    /// ```
    pub fn encode(format: Format, tensor: &impl Tensor) -> Result<Self, Error> {
        Self::encode_with(format, tensor, EncodeOptions::default())
    }

    /// Quantizes a tensor with explicit options.
    ///
    /// # Errors
    ///
    /// As [`PackedTensor::encode`].
    pub fn encode_with(format: Format, tensor: &impl Tensor, options: EncodeOptions) -> Result<Self, Error> {
        let view = tensor.view();
        Self::encode_on(&grid_of(format, &view)?, &view, options)
    }

    /// Quantizes a tensor on a given grid: activations under a tensor scale that calibration fixed,
    /// for example. Blocks beyond the reach of that scale saturate.
    ///
    /// # Errors
    ///
    /// As [`PackedTensor::encode`].
    pub fn encode_on(grid: &FormatGrid, tensor: &impl Tensor, options: EncodeOptions) -> Result<Self, Error> {
        let format = grid.format();
        if format.scale == Scale::Double {
            return double::encode(format, tensor, options);
        }
        let (view, grid) = (tensor.view(), *grid);
        let layout = Layout::new(format, view.shape())?;
        let mut packed = Self {
            format,
            shape: view.shape().to_vec(),
            layout,
            grid,
            decoder: RowDecoder::new(&grid, &layout),
            codes: vec![0; layout.code_bytes()].into(),
            scales: vec![0; layout.scale_bytes()].into(),
            zeros: vec![0; layout.zero_bytes()].into(),
            second: second_of(&grid, &layout),
        };
        packed.fill(&view, options)?;
        Ok(packed)
    }

    /// As [`PackedTensor::encode_with`], into memory of the caller's: the sections of codes, scales and zero points, each as
    /// long as [`Layout`] says. Returns the section `second`. After an error what the memory holds is of no use.
    ///
    /// # Errors
    ///
    /// As [`PackedTensor::encode`], and [`Error::SectionLen`].
    ///
    /// # Examples
    ///
    /// ```
    /// use quant_core::{EncodeOptions, Format, Layout, PackedTensor, Shaped};
    /// let x = Shaped::new(&[0.5_f32, -1.0, 3.0, 6.0], &[1, 4])?;
    /// let layout = Layout::new(Format::MXFP4, &[1, 4])?;
    /// let (mut codes, mut scales) = (vec![0; layout.code_bytes()], vec![0; layout.scale_bytes()]);
    /// let second =
    ///     PackedTensor::encode_into(Format::MXFP4, &x, EncodeOptions::default(), [&mut codes, &mut scales, &mut []])?;
    /// let packed = PackedTensor::from_sections(Format::MXFP4, &[1, 4], codes, scales, vec![], second)?;
    /// assert_eq!(packed.decode(), [0.5, -1.0, 3.0, 6.0]);
    /// # Ok::<(), quant_core::Error>(())
    /// ```
    pub fn encode_into(
        format: Format,
        tensor: &impl Tensor,
        options: EncodeOptions,
        sections: [&mut [u8]; 3],
    ) -> Result<Vec<f32>, Error> {
        let view = tensor.view();
        let layout = Layout::new(format, view.shape())?;
        check_sections(
            format,
            view.shape(),
            &layout,
            sections.each_ref().map(|section| section.len()),
            layout.second_len,
        )?;
        if format.scale == Scale::Double {
            let packed = double::encode(format, &view, options)?;
            let parts = [&packed.codes, &packed.scales, &packed.zeros];
            sections.into_iter().zip(parts).for_each(|(section, part)| section.copy_from_slice(part));
            return Ok(packed.second);
        }
        let grid = grid_of(format, &view)?;
        fill(&grid, &layout, &view, options, sections)?;
        Ok(second_of(&grid, &layout))
    }

    /// Quantizes another tensor of the same shape into the memory of this one, which saves the
    /// system the work of finding fresh pages. A tensor scale (NVFP4) is kept as it is.
    ///
    /// # Errors
    ///
    /// As [`PackedTensor::encode`], and [`Error::Shape`] when the shapes differ. After an error some
    /// rows are the old tensor's and some the new one's.
    ///
    /// # Examples
    ///
    /// ```
    /// use quant_core::{EncodeOptions, Format, PackedTensor, Shaped};
    /// let mut packed = PackedTensor::encode(Format::INT8, &Shaped::new(&[1.0_f32, -2.0], &[1, 2])?)?;
    /// packed.encode_again(&Shaped::new(&[127.0_f32, 3.0], &[1, 2])?, EncodeOptions::default())?;
    /// assert_eq!(packed.decode(), [127.0, 3.0]);
    /// # Ok::<(), quant_core::Error>(())
    /// ```
    pub fn encode_again(&mut self, tensor: &impl Tensor, options: EncodeOptions) -> Result<(), Error> {
        let view = tensor.view();
        if view.shape() != self.shape {
            let expected = self.layout.rows * self.layout.columns;
            return Err(Error::Shape { shape: self.shape.clone(), expected, found: view.len() });
        }
        if self.format.scale == Scale::Double {
            *self = double::encode(self.format, &view, options)?;
            return Ok(());
        }
        self.fill(&view, options)
    }

    fn fill(&mut self, view: &TensorView<'_>, options: EncodeOptions) -> Result<(), Error> {
        let sections = [self.codes.to_mut(), self.scales.to_mut(), self.zeros.to_mut()].map(Vec::as_mut_slice);
        fill(&self.grid, &self.layout, view, options, sections)
    }
}

/// The grid of a tensor, whose largest magnitude some formats ask for.
fn grid_of(format: Format, view: &TensorView<'_>) -> Result<FormatGrid, Error> {
    let amax = if matches!(format.scale, Scale::E4m3(_)) { largest_magnitude(view)? } else { 0.0 };
    FormatGrid::new(format, amax)
}

fn second_of(grid: &FormatGrid, layout: &Layout) -> Vec<f32> {
    if layout.second_len > 0 { vec![grid.tensor_scale()] } else { Vec::new() }
}

/// Encodes into codes, scales and zero points.
fn fill(
    grid: &FormatGrid,
    layout: &Layout,
    view: &TensorView<'_>,
    options: EncodeOptions,
    [codes, scales, zeros]: [&mut [u8]; 3],
) -> Result<(), Error> {
    let isa = Isa::current();
    let nearest = options.rounding == Rounding::NearestEven && isa != Isa::Reference;
    let encoder = if nearest { RowEncoder::new(grid, layout) } else { None };
    let all = Band { first_row: 0, rows: layout.rows, codes, scales, zeros };
    let rows = encoder.as_ref().map_or(layout.block_rows, |encoder| encoder.rows_together(layout));
    parallel::for_each(all.split(layout, rows), rows * layout.columns, |mut band| match &encoder {
        Some(encoder) => band.encode_fast(isa, encoder, view, layout, grid, options),
        None => band.encode(view, layout, grid, options),
    })
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

/// Some rows of blocks and the bytes they are written to.
struct Band<'a> {
    first_row: usize,
    rows: usize,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    zeros: &'a mut [u8],
}

impl<'a> Band<'a> {
    /// Cuts it into bands of so many rows, a multiple of those of a block.
    fn split(self, layout: &Layout, step: usize) -> Vec<Self> {
        let Self { first_row, rows, mut codes, mut scales, mut zeros } = self;
        let mut bands = Vec::with_capacity(rows.div_ceil(step));
        for at in (0..rows).step_by(step) {
            let rows = step.min(rows - at);
            let blocks = rows.div_ceil(layout.block_rows);
            let (band_codes, band_scales, band_zeros);
            (band_codes, codes) = codes.split_at_mut(rows * layout.code_row_bytes);
            (band_scales, scales) = scales.split_at_mut(blocks * layout.scale_row_bytes);
            (band_zeros, zeros) = zeros.split_at_mut(blocks * layout.zero_row_bytes);
            let first_row = first_row + at;
            bands.push(Self { first_row, rows, codes: band_codes, scales: band_scales, zeros: band_zeros });
        }
        bands
    }

    /// Encodes rows that are one block high with a kernel, or as the reference does where that must decide.
    fn encode_fast(
        &mut self,
        isa: Isa,
        encoder: &RowEncoder,
        view: &TensorView<'_>,
        layout: &Layout,
        grid: &FormatGrid,
        options: EncodeOptions,
    ) -> Result<(), Error> {
        if let Some(x) = view.contiguous_rows(self.first_row, self.rows)
            && encoder.encode(isa, x, self.codes, self.scales, self.zeros)
        {
            return Ok(());
        }
        let (mut widened, known) = (Vec::new(), self.rows == 1);
        let all = Band { codes: self.codes, scales: self.scales, zeros: self.zeros, ..*self };
        for mut band in all.split(layout, 1) {
            let x = match view.contiguous_rows(band.first_row, 1) {
                // Just seen to be the reference's.
                Some(_) if known => None,
                Some(row) => Some(row),
                None => {
                    widened.resize(layout.columns, 0.0);
                    view.read_row(band.first_row, &mut widened)?;
                    Some(widened.as_slice())
                }
            };
            if !x.is_some_and(|x| encoder.encode(isa, x, band.codes, band.scales, band.zeros)) {
                band.encode(view, layout, grid, options)?;
            }
        }
        Ok(())
    }

    fn encode(
        &mut self,
        view: &TensorView<'_>,
        layout: &Layout,
        grid: &FormatGrid,
        options: EncodeOptions,
    ) -> Result<(), Error> {
        let columns = layout.columns;
        let mut values = vec![0.0; self.rows * columns];
        for (row, values) in values.chunks_exact_mut(columns).enumerate() {
            view.read_row(self.first_row + row, values)?;
        }
        let mut codes = vec![0_u16; self.rows * columns];
        let mut block_values = Vec::with_capacity(self.rows * layout.block_columns);
        let mut random = RandomBits::new(options, self.first_row * columns);
        let first_block = self.first_row / layout.block_rows * layout.block_columns_count();
        let mut params = Vec::with_capacity(layout.block_columns_count());
        for start in (0..columns).step_by(layout.block_columns) {
            let end = columns.min(start + layout.block_columns);
            block_values.clear();
            for row in values.chunks_exact(columns) {
                block_values.extend_from_slice(&row[start..end]);
            }
            params.push(grid.fit(&block_values, 1.0).map_err(|e| e.offset_block(first_block + params.len()))?);
        }
        for (row, codes) in values.chunks_exact(columns).zip(codes.chunks_exact_mut(columns)) {
            for (column, (&x, code)) in row.iter().zip(codes).enumerate() {
                let params = &params[column / layout.block_columns];
                *code = grid.encode_one(x, params, options.rounding, random.next());
            }
        }
        let packing = grid.format().packing();
        for (codes, bytes) in codes.chunks_exact(columns).zip(self.codes.chunks_exact_mut(layout.code_row_bytes)) {
            packing.pack(codes, bytes);
        }
        write_scales(grid.format(), &params, self.scales);
        write_zeros(grid.format(), &params, self.zeros);
        Ok(())
    }
}

/// The random bits of consecutive elements.
struct RandomBits {
    rng: Option<(ChaCha8Rng, u32)>,
}

impl RandomBits {
    fn new(options: EncodeOptions, first_element: usize) -> Self {
        let bits = options.rounding.random_bits();
        if bits == 0 {
            return Self { rng: None };
        }
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_word_pos(first_element as u128);
        Self { rng: Some((rng, 32 - u32::from(bits))) }
    }

    fn next(&mut self) -> u32 {
        self.rng.as_mut().map_or(0, |(rng, shift)| rng.next_u32() >> *shift)
    }
}

fn largest_magnitude(view: &TensorView<'_>) -> Result<f32, Error> {
    let isa = Isa::current();
    let together = (TOGETHER / view.row_len().max(1)).max(1);
    let firsts = (0..view.rows()).step_by(together).collect();
    let largest = std::sync::atomic::AtomicU32::new(0);
    parallel::for_each(firsts, together * view.row_len(), |first: usize| {
        let count = together.min(view.rows() - first);
        let amax_of = |x: &[f32]| Some(kernels::amax(isa, x)).filter(|amax| amax.is_finite());
        let amax = match view.contiguous_rows(first, count).and_then(amax_of) {
            Some(amax) => amax,
            None => {
                let (mut values, mut amax) = (vec![0.0; view.row_len()], 0.0_f32);
                for row in first..first + count {
                    if let Some(row_amax) = view.contiguous_row(row).and_then(amax_of) {
                        amax = amax.max(row_amax);
                    } else {
                        view.read_row(row, &mut values)?;
                        amax = values.iter().fold(amax, |m, x| m.max(x.abs()));
                    }
                }
                amax
            }
        };
        // Bits of magnitudes order as the magnitudes do.
        largest.fetch_max(amax.to_bits(), std::sync::atomic::Ordering::Relaxed);
        Ok(())
    })?;
    Ok(f32::from_bits(largest.into_inner()))
}

/// Values whose largest magnitude is found at once.
const TOGETHER: usize = 1 << 16;

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

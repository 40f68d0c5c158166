//! Quantizing tensors: their rows in bands, each by a kernel or as the reference does.

use super::{EncodeOptions, PackedTensor, check_sections, double, write_scales, write_zeros};
use crate::kernels::{self, Isa, RowDecoder, RowEncoder};
use crate::parallel;
use crate::{Error, Format, FormatGrid, Grid, Layout, Rounding, Scale, Tensor, TensorView};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

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

//! Packed tensors from codes made elsewhere, and from packed tensors of more bits.

use super::{PackedTensor, double, write_scales, write_zeros};
use crate::{BlockParams, Element, Error, Format, FormatGrid, Layout, Scale, ZeroPoint};

impl PackedTensor<'static> {
    /// Packs codes and block parameters that were found elsewhere, by an error-compensating sweep
    /// such as GPTQ for example.
    ///
    /// `codes` are row-major, one an element; `params` row-major, one a block. `second` is the
    /// tensor scale of the grid that fitted the parameters ([`FormatGrid::tensor_scale`]) for
    /// formats that have one and empty otherwise. For double quantization an empty `second` means
    /// that the second level is found here, from the magnitudes in `params`.
    ///
    /// ```
    /// use quant_core::{Format, FormatGrid, Grid, PackedTensor};
    /// let grid = FormatGrid::new(Format::INT4_G128, 0.0)?;
    /// let params = grid.fit(&[7.0, -3.4], 1.0)?;
    /// let codes = [7.0, -3.4].map(|x| grid.encode(&[x], &params) as u16);
    /// let packed = PackedTensor::from_codes(Format::INT4_G128, &[1, 2], &codes, &[params], &[])?;
    /// assert_eq!(packed.decode(), [7.0, -3.0]);
    /// # Ok::<(), quant_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] and [`Error::Blocks`] for the wrong number of codes or parameters,
    /// [`Error::Code`] for a code the format does not have, [`Error::SectionLen`] for a `second` of the
    /// wrong length, [`Error::ReservedScale`] for parameters that cannot be stored, and the errors of
    /// [`Layout::new`].
    pub fn from_codes(
        format: Format,
        shape: &[usize],
        codes: &[u16],
        params: &[BlockParams],
        second: &[f32],
    ) -> Result<Self, Error> {
        let layout = Layout::new(format, shape)?;
        let elements = layout.rows * layout.columns;
        if codes.len() != elements {
            return Err(Error::Shape { shape: shape.to_vec(), expected: elements, found: codes.len() });
        }
        if params.len() != layout.blocks() {
            let (format, shape) = (format.to_string(), shape.to_vec());
            return Err(Error::Blocks { format, shape, expected: layout.blocks(), found: params.len() });
        }
        let limit = if matches!(format.element, Element::Ternary(_)) { 3 } else { 1 << format.code_bits() };
        if let Some(index) = codes.iter().position(|&code| u32::from(code) >= limit) {
            return Err(Error::Code { index, code: codes[index], limit, format: format.to_string() });
        }
        check_zeros(format, params)?;
        let mut bytes = vec![0; layout.code_bytes()];
        for (row, out) in codes.chunks_exact(layout.columns).zip(bytes.chunks_exact_mut(layout.code_row_bytes)) {
            format.packing().pack(row, out);
        }
        let mut scales = vec![0; layout.scale_bytes()];
        let mut zeros = vec![0; layout.zero_bytes()];
        let mut second = second.to_vec();
        if format.scale == Scale::Double {
            let magnitudes: Vec<f32> = params.iter().map(|p| p.scale).collect();
            if second.is_empty() {
                (scales, second) = double::quantize(&magnitudes);
            } else if second.len() == layout.second_len {
                scales = double::requantize(&magnitudes, &second);
            }
        } else {
            for (block_row, params) in params.chunks_exact(layout.block_columns_count()).enumerate() {
                write_scales(
                    format,
                    params,
                    &mut scales[block_row * layout.scale_row_bytes..][..layout.scale_row_bytes],
                );
                write_zeros(format, params, &mut zeros[block_row * layout.zero_row_bytes..][..layout.zero_row_bytes]);
            }
        }
        Self::from_sections(format, shape, bytes, scales, zeros, second)
    }
}

fn check_zeros(format: Format, params: &[BlockParams]) -> Result<(), Error> {
    let ZeroPoint::Integer { bits } = format.zero_point() else { return Ok(()) };
    let storable = |zero: f32| zero >= 0.0 && zero < f32::from(1_u16 << bits) && zero.fract() == 0.0;
    match params.iter().position(|p| !storable(p.zero)) {
        Some(block) => Err(Error::ReservedScale { block, value: params[block].zero }),
        None => Ok(()),
    }
}

impl PackedTensor<'_> {
    /// The same tensor with `bits` magnitude bits: the low bits of every code are dropped, the
    /// shared exponents stay (SEFP; OTARo, arXiv 2511.13147).
    ///
    /// Exact nesting: cutting a tensor that was encoded with
    /// [`Rounding::TowardZero`](crate::Rounding::TowardZero) gives, bit for bit, what encoding it
    /// with fewer bits gives.
    ///
    /// ```
    /// use quant_core::{EncodeOptions, Format, PackedTensor, Rounding, Shaped};
    /// let values = [1.0_f32, -0.7, 0.3, 0.1];
    /// let tensor = Shaped::new(&values, &[1, 4])?;
    /// let options = EncodeOptions { rounding: Rounding::TowardZero, ..Default::default() };
    /// let master = PackedTensor::encode_with("sefp8".parse::<Format>()?, &tensor, options)?;
    /// let coarse = PackedTensor::encode_with("sefp3".parse::<Format>()?, &tensor, options)?;
    /// assert_eq!(master.truncated(3)?, coarse);
    /// # Ok::<(), quant_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Truncate`] for formats without shared exponents and for 0 or more bits than are stored.
    pub fn truncated(&self, bits: u8) -> Result<PackedTensor<'static>, Error> {
        let refused = |reason| Err(Error::Truncate { format: self.format.to_string(), bits, reason });
        let Element::Magnitude { bits: stored } = self.format.element else {
            return refused("its codes do not nest; only bfp, gse and sefp formats do");
        };
        if bits == 0 || bits > stored {
            return refused("it has fewer magnitude bits, or none were asked for");
        }
        let format = Format { element: Element::Magnitude { bits }, ..self.format };
        let layout = Layout::new(format, &self.shape)?;
        let mut bytes = vec![0; layout.code_bytes()];
        let mut codes = vec![0; layout.columns];
        for (row, out) in bytes.chunks_exact_mut(layout.code_row_bytes).enumerate() {
            self.row_codes(row, &mut codes)?;
            for code in &mut codes {
                let magnitude = (*code & ((1 << stored) - 1)) >> (stored - bits);
                let sign = *code >> stored & 1;
                // Zero is +0, as the encoder writes it.
                *code = if magnitude == 0 { 0 } else { magnitude | sign << bits };
            }
            format.packing().pack(&codes, out);
        }
        Ok(PackedTensor {
            format,
            shape: self.shape.clone(),
            layout,
            grid: FormatGrid::new(format, 0.0)?,
            decoder: None,
            codes: bytes.into(),
            scales: self.scales.clone().into_owned().into(),
            zeros: self.zeros.clone().into_owned().into(),
            second: self.second.clone(),
        })
    }
}

//! How a factor is stored.

use crate::Error;
use ndarray::ArrayView2;
use quant_core::{Footprint, Format, Layout, Linear, PackedTensor, Shaped};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the elements of a factor are stored: as f32, or in any format (`f16`, `bf16`, `int8`, `int4-g128`, …).
///
/// Prints, parses and serializes as a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Storage {
    /// Four bytes an element.
    F32,
    /// Packed.
    Packed(Format),
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::Packed(format) => format.fmt(f),
        }
    }
}

impl FromStr for Storage {
    type Err = quant_core::Error;

    fn from_str(name: &str) -> Result<Self, quant_core::Error> {
        if name == "f32" { Ok(Self::F32) } else { name.parse().map(Self::Packed) }
    }
}

impl TryFrom<String> for Storage {
    type Error = quant_core::Error;

    fn try_from(name: String) -> Result<Self, quant_core::Error> {
        name.parse()
    }
}

impl From<Storage> for String {
    fn from(storage: Storage) -> Self {
        storage.to_string()
    }
}

impl From<Format> for Storage {
    fn from(format: Format) -> Self {
        Self::Packed(format)
    }
}

impl Storage {
    /// Bytes of a matrix `[rows, columns]`, scales and padding included.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] for a matrix that is empty or too large.
    pub fn bytes(self, rows: usize, columns: usize) -> Result<u64, Error> {
        let Self::Packed(format) = self else { return Ok((4 * rows as u64).saturating_mul(columns as u64)) };
        let layout = Layout::new(format, &[rows, columns])?;
        let sections = layout.code_bytes() + layout.scale_bytes() + layout.zero_bytes() + 4 * layout.second_len;
        Ok(sections as u64)
    }

    /// Rounds a row-major matrix `[rows, columns]` to what is stored.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] for elements that are not finite or a shape that does not fit, [`Error::FactorRange`] when a format
    /// without scales cannot hold the largest element.
    pub fn store(self, values: Vec<f32>, rows: usize, columns: usize) -> Result<Factor, Error> {
        let Self::Packed(format) = self else { return Ok(Factor::Dense(DenseLinear::new(values, rows, columns)?)) };
        let packed = PackedTensor::encode(format, &Shaped::new(&values, &[rows, columns])?)?;
        if format.scale == quant_core::Scale::None {
            // A cast saturates; only a value beyond the largest number moves by more than a unit of 1/4.
            let mut row = vec![0.0; columns];
            for (index, given) in values.chunks_exact(columns).enumerate() {
                packed.decode_row(index, &mut row)?;
                if let Some((&value, _)) =
                    given.iter().zip(&row).find(|(a, b)| (**a - **b).abs() > 0.25 * a.abs() && b.abs() > 1.0)
                {
                    return Err(Error::FactorRange { value, format });
                }
            }
        }
        Ok(Factor::Packed(Box::new(packed)))
    }
}

/// A matrix of f32 as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseLinear {
    values: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl DenseLinear {
    /// Takes a row-major matrix `[rows, columns]`.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] when the shape is empty or does not fit, or an element is not finite.
    pub fn new(values: Vec<f32>, rows: usize, columns: usize) -> Result<Self, Error> {
        let shape = || vec![rows, columns];
        Shaped::new(&values, &[rows, columns])?;
        if values.is_empty() {
            return Err(quant_core::Error::Empty { shape: shape() }.into());
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(quant_core::Error::NonFinite { index, value: f64::from(values[index]) }.into());
        }
        Ok(Self { values, rows, columns })
    }

    /// The elements, row-major `[out, in]`.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// Outputs that one thread takes at a time.
const BAND: usize = 64;
/// Rows of inputs from which on they are multiplied together.
const MANY: usize = 16;

impl Linear for DenseLinear {
    fn in_features(&self) -> usize {
        self.columns
    }

    fn out_features(&self) -> usize {
        self.rows
    }

    /// Sums of up to 15 rows are formed in 16 lanes that are folded by halves, each row by itself; more rows are multiplied
    /// together, by [`quant_linalg::matmul`]. All bits are the same for any number of threads.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        let rows = product_rows(self, x, y)?;
        let matrices = (
            ArrayView2::from_shape((rows, self.columns), x),
            ArrayView2::from_shape((self.rows, self.columns), &self.values),
        );
        if let (MANY.., (Ok(x), Ok(weights))) = (rows, matrices) {
            let product = quant_linalg::matmul(x, weights.t());
            y.iter_mut().zip(&product).for_each(|(y, &sum)| *y = sum);
            return Ok(());
        }
        let mut bands: Vec<(usize, Vec<f32>)> = (0..self.rows).step_by(BAND).map(|first| (first, Vec::new())).collect();
        bands.par_iter_mut().for_each(|(first, sums)| {
            let weights = self.values[*first * self.columns..].chunks_exact(self.columns).take(BAND);
            *sums = weights.flat_map(|w| x.chunks_exact(self.columns).map(move |x| dot(x, w))).collect();
        });
        for (first, sums) in bands {
            for (output, sums) in sums.chunks_exact(rows.max(1)).enumerate() {
                for (row, &sum) in sums.iter().enumerate() {
                    y[row * self.rows + first + output] = sum;
                }
            }
        }
        Ok(())
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        Ok(self.values.clone())
    }

    fn footprint(&self) -> Footprint {
        let elements = self.values.len() as u64;
        Footprint { elements, codes: 4 * elements, ..Footprint::default() }
    }

    fn prepared(&self) -> Option<Box<dyn Linear>> {
        Some(Box::new(self.clone()))
    }
}

/// Lanes of a sum.
const LANES: usize = 16;

fn dot(x: &[f32], w: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((x, x_tail), (w, w_tail)) = (x.as_chunks(), w.as_chunks());
    x.iter().zip(w).for_each(|(x, w)| add_products(&mut lanes, x, w));
    for (lane, (x, w)) in lanes.iter_mut().zip(x_tail.iter().zip(w_tail)) {
        *lane += x * w;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `lanes += x · w`. A function of its own, so that compilers keep lanes in registers.
#[inline(always)]
fn add_products(lanes: &mut [f32; LANES], x: &[f32; LANES], w: &[f32; LANES]) {
    for i in 0..LANES {
        lanes[i] += x[i] * w[i];
    }
}

/// Checks the slices of a product and returns the number of rows.
pub(crate) fn product_rows(linear: &impl Linear, x: &[f32], y: &[f32]) -> Result<usize, quant_core::Error> {
    let (inputs, outputs) = (linear.in_features(), linear.out_features());
    if inputs == 0 || !x.len().is_multiple_of(inputs) {
        return Err(quant_core::Error::Features { in_features: inputs, found: x.len() });
    }
    let (rows, expected) = (x.len() / inputs, x.len() / inputs * outputs);
    if y.len() != expected {
        return Err(quant_core::Error::OutputLen { expected, found: y.len() });
    }
    Ok(rows)
}

/// A stored factor: f32 or packed.
#[derive(Clone, Debug, PartialEq)]
pub enum Factor {
    /// f32.
    Dense(DenseLinear),
    /// In a format.
    Packed(Box<PackedTensor<'static>>),
}

impl Factor {
    fn linear(&self) -> &dyn Linear {
        match self {
            Self::Dense(dense) => dense,
            Self::Packed(packed) => &**packed,
        }
    }

    fn in_16_bits(&self) -> Option<&PackedTensor<'static>> {
        match self {
            Self::Packed(packed) if packed.format().code_bits() == 16 => Some(packed),
            _ => None,
        }
    }

    fn decoded(&self, packed: &PackedTensor<'_>) -> DenseLinear {
        DenseLinear { values: packed.decode(), rows: self.out_features(), columns: self.in_features() }
    }
}

impl Linear for Factor {
    fn in_features(&self) -> usize {
        self.linear().in_features()
    }

    fn out_features(&self) -> usize {
        self.linear().out_features()
    }

    /// 16-bit floats are read as they are for up to 15 rows, and decoded at once for more.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        match self.in_16_bits() {
            Some(packed) if x.len() >= MANY * self.in_features() => self.decoded(packed).matmul(x, y),
            _ => self.linear().matmul(x, y),
        }
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        self.linear().to_dense()
    }

    fn footprint(&self) -> Footprint {
        self.linear().footprint()
    }

    /// Packed factors as [`quant_core::PreparedLinear`], 16-bit floats as they are, and those of a format that has no such form
    /// decoded to f32.
    fn prepared(&self) -> Option<Box<dyn Linear>> {
        match self {
            Self::Dense(dense) => dense.prepared(),
            Self::Packed(_) if self.in_16_bits().is_some() => Some(Box::new(self.clone())),
            Self::Packed(packed) => packed.prepared().or_else(|| Some(Box::new(self.decoded(packed)))),
        }
    }
}

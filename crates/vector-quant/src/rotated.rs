//! Code books for Gaussian values on rotated weights: PCDVQ (arXiv 2506.05432) and E8P with feedback (QuIP#, arXiv 2402.04396).
//!
//! ```text
//! 1. W̃ = W T,  T a randomized Hadamard matrix of the input axis        weights become nearly Gaussian
//! 2. s_r = |W̃_r| / (√n · scale)                                        one f16 a row
//! 3. codes of W̃_r / s_r: nearest, or chosen in a sweep that pushes errors into the columns to come (LDLQ)
//! 4. s_r ← s_r · ⟨W̃_r, Ŵ_r⟩ / ⟨Ŵ_r, Ŵ_r⟩, in the metric of the inputs where it is known
//! y = (x T) Ŵᵀ
//! ```
//!
//! Departures. PCDVQ as published rotates columns (the output axis) and QuIP# both axes; only the rotation of the input
//! axis is undone on activations with a single transform, so that is what is done. Sizes without a Hadamard
//! matrix are rotated in blocks; nothing is padded. Step 4 costs nothing and is in neither paper. PCDVQ describes no
//! feedback; with it the sweep runs over blocks of 8 columns, for both.

use crate::error::{Error, within};
use crate::gptvq::{error, mean_gram};
use crate::kmeans_vq::matrix;
use crate::polar::{PolarCodec, PolarConfig};
use crate::{Books, E8P, Residual, VectorCodec, VqLinear};
use half::f16;
use ndarray::{Array2, ArrayView2};
use quant_calib::{Gram, Needs};
use quant_core::Linear;
use quant_transforms::{Hadamard, RandomizedHadamard, Transform, TransformedLinear};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use weight_quant::gptq::{ColumnRounder, Factor, Order, SweepPlan, sweep};

/// A code book that follows from its settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "book", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FixedBook {
    /// E8P, two bits a weight.
    E8p,
    /// E8P and E8P of the remainder, four bits a weight.
    E8pTwice,
    /// Direction and length (PCDVQ).
    Polar(PolarConfig),
}

impl FixedBook {
    /// The code book and the root mean square of the values it is made for.
    fn make(self) -> Result<(Books, f32), Error> {
        Ok(match self {
            Self::E8p => (Books::E8P(E8P), E8P::GAUSSIAN_SCALE),
            // The gain of QuIP#; the scale that serves Gaussian values best with it.
            Self::E8pTwice => (Books::E8PTwice(Residual { first: E8P, second: E8P, gain: E8P::RESIDUAL_GAIN }), 1.0),
            Self::Polar(config) => (Books::Polar(PolarCodec::new(config)?), 1.0),
        })
    }
}

/// How a weight is rotated and coded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RotatedVq {
    /// The code book.
    #[serde(flatten)]
    pub book: FixedBook,
    /// Whether codes are chosen with feedback through the Hessian of the inputs.
    #[serde(default = "yes")]
    pub feedback: bool,
    /// Share of the mean diagonal of the Hessian that is added to its diagonal.
    #[serde(default = "one_percent")]
    pub damp: f64,
    /// Of the signs of the rotation.
    #[serde(default)]
    pub seed: u64,
}

fn yes() -> bool {
    true
}

fn one_percent() -> f64 {
    0.01
}

impl RotatedVq {
    /// A code book with feedback.
    #[must_use]
    pub fn new(book: FixedBook) -> Self {
        Self { book, feedback: true, damp: one_percent(), seed: 0 }
    }

    /// The statistics it needs: with feedback the Gram matrix of the inputs.
    #[must_use]
    pub fn needs(&self) -> Needs {
        if self.feedback { Needs::gram() } else { Needs::nothing() }
    }
}

/// A coded weight and what is to be said about it.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// The weight behind its rotation.
    pub weight: TransformedLinear<VqLinear>,
    /// `‖W̃ − Ŵ‖² / ‖W̃‖²`, of the stored values.
    pub relative_error: f64,
    /// `tr(D H Dᵀ)` for the mean, undamped `H` of the tokens; nothing without calibration.
    pub loss: Option<f64>,
}

/// Rotates and codes a weight `[out, in]`; `gram` is that of its inputs, needed for feedback only.
///
/// # Errors
///
/// [`Error::Core`] for tensors that are no finite matrix, [`Error::NotDivisible`] when `in` is no multiple of 8,
/// [`Error::NoTokens`] when feedback is asked for and there are none, [`Error::Count`] for a Gram matrix of another width,
/// [`Error::Setting`], [`Error::Candidates`], [`Error::Sweep`].
///
/// # Examples
///
/// ```
/// use quant_core::{Linear, Shaped};
/// use vector_quant::{FixedBook, RotatedVq, rotated_vq};
/// let weights: Vec<f32> = (0..16 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
/// let config = RotatedVq { feedback: false, ..RotatedVq::new(FixedBook::E8p) };
/// let coded = rotated_vq(&Shaped::new(&weights, &[16, 64])?, None, &config)?;
/// assert!(coded.relative_error < 0.11, "two bits a weight, as on Gaussian values");
/// assert_eq!(coded.weight.inner().footprint().bits_per_element(), 2.0 + 16.0 / 64.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn rotated_vq(weight: &impl quant_core::Tensor, gram: Option<&Gram>, config: &RotatedVq) -> Result<Rotated, Error> {
    let (mut w, [rows, columns]) = matrix(weight)?;
    within("damping", config.damp, 0.0, 1.0)?;
    let (books, scale) = config.book.make()?;
    if !columns.is_multiple_of(8) {
        return Err(Error::NotDivisible { what: "a row", len: columns, dim: 8 });
    }
    let transform = Transform::from(RandomizedHadamard::new(Hadamard::largest(columns)?, config.seed));
    transform.apply(&mut w)?;
    let w = Array2::from_shape_vec((rows, columns), w).map_err(|_| Error::Shape { rows, columns })?;
    let hessian = match gram {
        None if config.feedback => return Err(Error::NoTokens),
        None => None,
        Some(gram) if gram.tokens() == 0 && !config.feedback => None,
        Some(gram) => Some(rotate(mean_gram(gram, columns)?, &transform)?),
    };
    let scales: Vec<f32> = w.outer_iter().map(|row| row_scale(row.iter().copied(), scale)).collect();
    let codes = match (&hessian, config.feedback) {
        (Some(hessian), true) => swept(&w, hessian.view(), &books, &scales, config.damp)?,
        _ => nearest(&w, &books, &scales),
    };
    let build = |scales: &[f32]| {
        let scales = scales.iter().map(|s| f16::from_f32(*s)).collect();
        VqLinear::new([rows, columns], books.clone(), &codes, scales)
    };
    let scales = refit(&w, &build(&scales)?, &scales, hessian.as_ref())?;
    let coded = build(&scales)?;
    let loss = hessian.map(|hessian| error(&w, &coded, hessian.view())).transpose()?;
    let energy = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let signal = energy(&mut w.iter().copied());
    let noise = energy(&mut w.iter().zip(coded.to_dense()?).map(|(w, q)| w - q));
    let relative_error = if signal > 0.0 { noise / signal } else { 0.0 };
    Ok(Rotated { weight: TransformedLinear::new(transform, coded)?, relative_error, loss })
}

/// `Tᵀ H T`.
fn rotate(hessian: Array2<f64>, transform: &Transform) -> Result<Array2<f64>, Error> {
    let once = |h: Array2<f64>| -> Result<Array2<f64>, Error> {
        let shape = h.dim();
        let mut rows: Vec<f64> = h.iter().copied().collect();
        transform.apply(&mut rows)?;
        Array2::from_shape_vec(shape, rows).map_err(|_| Error::Shape { rows: shape.0, columns: shape.1 })
    };
    once(once(hessian)?.reversed_axes())
}

/// The root mean square of a row over that of the code book, as f16.
fn row_scale(row: impl ExactSizeIterator<Item = f32>, scale: f32) -> f32 {
    let n = row.len() as f64;
    let energy: f64 = row.map(|w| f64::from(w).powi(2)).sum();
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f16 next")]
    let rms = (energy / n).sqrt() as f32;
    f16::from_f32(rms / scale).to_f32()
}

fn codec(books: &Books) -> &dyn VectorCodec {
    match books {
        Books::E8P(book) => book,
        Books::E8PTwice(book) => book,
        Books::Polar(book) => book,
        Books::Learned(learned) => &learned.books[0],
    }
}

/// A row of zeros is coded as if its scale were 1; its stored scale is 0.
fn divisor(scale: f32) -> f32 {
    if scale > 0.0 { scale } else { 1.0 }
}

/// Each vector by itself.
fn nearest(w: &Array2<f32>, books: &Books, scales: &[f32]) -> Vec<u32> {
    let scaled: Vec<f32> = w
        .outer_iter()
        .zip(scales)
        .flat_map(|(row, s)| row.into_iter().map(|w| w / divisor(*s)).collect::<Vec<_>>())
        .collect();
    let mut codes = vec![0; scaled.len() / 8];
    codec(books).encode_all(&scaled, &mut codes);
    codes
}

/// In the order of columns, with feedback.
fn swept(
    w: &Array2<f32>,
    hessian: ArrayView2<'_, f64>,
    books: &Books,
    scales: &[f32],
    damp: f64,
) -> Result<Vec<u32>, Error> {
    let (rows, columns) = w.dim();
    let factor = Factor::new(hessian, Order::Natural, 8, damp)?;
    let plan = SweepPlan { group_ends: vec![columns], width: 8, ..SweepPlan::new(&factor, rows, 1) };
    let panel_rows = plan.panel_rows;
    let start = |rows: Range<usize>| Coder { codec: codec(books), scales: &scales[rows], codes: Vec::new() };
    let swept = sweep(w.view(), &factor, &plan, start)?;
    let mut codes = vec![0; rows * columns / 8];
    for (panel, coder) in swept.rounders.iter().enumerate() {
        let height = coder.scales.len();
        for (at, code) in coder.codes.iter().enumerate() {
            codes[(panel * panel_rows + at % height) * (columns / 8) + at / height] = *code;
        }
    }
    Ok(codes)
}

/// Rounds the vectors of a panel of rows to a fixed code book.
struct Coder<'a> {
    codec: &'a dyn VectorCodec,
    scales: &'a [f32],
    /// Vectors of all rows, then the next vector.
    codes: Vec<u32>,
}

impl ColumnRounder for Coder<'_> {
    type Error = Error;

    fn width(&self) -> usize {
        8
    }

    fn begin_group(&mut self, _group: Range<usize>, _values: &[f32]) -> Result<(), Error> {
        Ok(())
    }

    fn round(&mut self, _position: usize, values: &[f32], rounded: &mut [f32]) -> Result<(), Error> {
        let rows = self.scales.len();
        let mut points = vec![0.0; 8 * rows];
        for (row, (point, scale)) in points.chunks_exact_mut(8).zip(self.scales).enumerate() {
            point.iter_mut().enumerate().for_each(|(axis, x)| *x = values[axis * rows + row] / divisor(*scale));
        }
        let from = self.codes.len();
        self.codes.resize(from + rows, 0);
        self.codec.encode_all(&points, &mut self.codes[from..]);
        let mut point = [0.0; 8];
        for (row, (code, scale)) in self.codes[from..].iter().zip(self.scales).enumerate() {
            self.codec.decode(*code, &mut point);
            point.iter().enumerate().for_each(|(axis, x)| rounded[axis * rows + row] = scale * x);
        }
        Ok(())
    }
}

/// The scale of each row that fits its codes best, where that lowers the error after rounding to f16.
fn refit(w: &Array2<f32>, coded: &VqLinear, scales: &[f32], hessian: Option<&Array2<f64>>) -> Result<Vec<f32>, Error> {
    let (rows, columns) = w.dim();
    let dense = coded.to_dense()?.into_iter().map(f64::from).collect();
    let q = Array2::from_shape_vec((rows, columns), dense).map_err(|_| Error::Shape { rows, columns })?;
    let metric = hessian.map_or_else(|| q.clone(), |hessian| quant_linalg::matmul(q.view(), hessian.view()));
    let better = |(row, scale): (usize, &f32)| {
        let (w, q, m) = (w.row(row), q.row(row), metric.row(row));
        let wm: f64 = w.iter().zip(m).map(|(w, m)| f64::from(*w) * m).sum();
        let qm: f64 = q.iter().zip(m).map(|(q, m)| q * m).sum();
        if qm <= 0.0 {
            return *scale;
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f16")]
        let fitted = f16::from_f32((f64::from(*scale) * wm / qm) as f32).to_f32();
        // The error in units of the old scale, without what does not depend on it.
        let cost = |to: f32| {
            let g = f64::from(to) / f64::from(*scale);
            qm * g * g - 2.0 * wm * g
        };
        if fitted.is_finite() && cost(fitted) < cost(*scale) { fitted } else { *scale }
    };
    Ok(scales.iter().enumerate().map(better).collect())
}

//! What the values of one tensor look like, and which formats suit them.

use quant_core::metrics::{ErrorStats, Stats};
use quant_core::{Error, Format, PackedTensor, Shaped};
use rayon::prelude::*;
use serde::Serialize;

/// Most elements that formats are tried on; larger tensors are represented by evenly spaced rows.
pub const TRIAL_ELEMENTS: usize = 1 << 18;
/// Distance from the mean, in standard deviations, from which on a value counts as an outlier.
pub const OUTLIER_SIGMAS: f64 = 6.0;

/// Formats that are compared, by the bits that they are meant for.
const CANDIDATES: [(u32, &[&str]); 3] = [
    (4, &["int4-g128", "int4-g128-asym", "int4-g32", "int4-g32-asym", "mxfp4", "mxint4", "nvfp4", "nvint4", "nf4"]),
    (6, &["int6-g128", "int6-g32", "mxfp6-e2m3", "mxfp6-e3m2", "mxint6", "bfp5"]),
    (8, &["int8", "int8-g32", "fp8-e4m3", "fp8-e5m2", "mxfp8-e4m3", "mxint8"]),
];

/// Decibels that one bit more gains when errors are uniform: `20·log10 2`.
const DB_PER_BIT: f64 = 6.020_599_913_279_624;

/// The distribution of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Least value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Mean.
    pub mean: f64,
    /// Root of the mean square.
    pub rms: f64,
    /// Largest magnitude over RMS; `None` when all values are zero.
    pub crest_factor: Option<f64>,
    /// Fourth central moment over squared variance, 3 for normal values; `None` when all values are equal.
    pub kurtosis: Option<f64>,
    /// Values further than [`OUTLIER_SIGMAS`] standard deviations from the mean.
    pub outliers: u64,
}

impl Distribution {
    /// Measures the values of a tensor.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] naming the first bad element, [`Error::Empty`] for no elements.
    pub fn of(values: &[f32]) -> Result<Self, Error> {
        let stats = Stats::of(values)?;
        let (mean, limit) = (stats.mean(), OUTLIER_SIGMAS * stats.variance().sqrt());
        let outliers = values.par_iter().filter(|x| (f64::from(**x) - mean).abs() > limit).count();
        let number = |value: f64| value.is_finite().then_some(value);
        Ok(Self {
            min: stats.min(),
            max: stats.max(),
            mean,
            rms: stats.rms(),
            crest_factor: number(stats.crest_factor()),
            kurtosis: number(stats.kurtosis()),
            outliers: outliers as u64,
        })
    }
}

/// How well one format keeps one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The format.
    pub format: String,
    /// Bits stored for each element, scales and zero points included.
    pub bits: f64,
    /// Signal to quantization noise in dB; `None` when nothing was lost.
    pub sqnr_db: Option<f64>,
}

/// The format that suits a tensor best at about so many bits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suitable {
    /// Bits that the compared formats are meant for: 4, 6 or 8.
    pub about_bits: u32,
    /// The best one: the highest SQNR after 6.02 dB are taken off for each bit it stores.
    pub best: Trial,
    /// All that were compared, best first.
    pub trials: Vec<Trial>,
}

/// Tries the usual formats on a tensor.
///
/// Tensors of more than [`TRIAL_ELEMENTS`] elements are represented by evenly spaced rows. Ties go to the
/// smaller, then to the one whose name comes first.
///
/// # Errors
///
/// As [`PackedTensor::encode`].
pub fn suitable_formats(values: &[f32], shape: &[usize]) -> Result<Vec<Suitable>, Error> {
    let columns = shape.last().copied().unwrap_or(1).max(1);
    let sample = sample_rows(values, columns);
    let rows = sample.len() / columns;
    CANDIDATES.iter().map(|(bits, names)| compare(*bits, names, &sample, &[rows, columns])).collect()
}

fn compare(about_bits: u32, names: &[&str], sample: &[f32], shape: &[usize]) -> Result<Suitable, Error> {
    let trials: Result<Vec<(f64, Trial)>, Error> =
        names.par_iter().map(|name| try_format(name, sample, shape)).collect();
    let mut trials = trials?;
    trials
        .sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.bits.total_cmp(&y.bits)).then_with(|| x.format.cmp(&y.format)));
    let trials: Vec<Trial> = trials.into_iter().map(|(_, trial)| trial).collect();
    let best = trials.first().cloned().ok_or_else(|| Error::Empty { shape: shape.to_vec() })?;
    Ok(Suitable { about_bits, best, trials })
}

/// One trial and its merit in dB.
fn try_format(name: &str, sample: &[f32], shape: &[usize]) -> Result<(f64, Trial), Error> {
    let format: Format = name.parse()?;
    let packed = PackedTensor::encode(format, &Shaped::new(sample, shape)?)?;
    let sqnr = ErrorStats::of(sample, &packed.decode())?.sqnr_db();
    let bits = packed.footprint().bits_per_element();
    let trial = Trial { format: name.to_owned(), bits, sqnr_db: sqnr.is_finite().then_some(sqnr) };
    Ok((sqnr - DB_PER_BIT * bits, trial))
}

/// Evenly spaced rows of at most [`TRIAL_ELEMENTS`] elements in all; at least one row.
fn sample_rows(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    let wanted = (TRIAL_ELEMENTS / columns).clamp(1, rows.max(1));
    if wanted >= rows {
        return values.to_vec();
    }
    (0..wanted).flat_map(|i| &values[i * rows / wanted * columns..][..columns]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_made_of_whole_rows_spread_over_the_tensor() {
        let columns = TRIAL_ELEMENTS / 4;
        let values: Vec<f32> = (0..10_u16).flat_map(|row| vec![f32::from(row); columns]).collect();
        let sample = sample_rows(&values, columns);
        let rows: Vec<f32> = sample.chunks(columns).map(|row| row[0]).collect();
        assert_eq!(rows, [0.0, 2.0, 5.0, 7.0], "four of ten rows");
        assert!(sample.chunks(columns).all(|row| row.iter().all(|x| *x == row[0])), "rows are whole");
    }
}

//! The search for channel scales.

use crate::smoothquant::fold_scales;
use crate::{Error, OutputError, blocks};
use quant_core::{Format, PackedTensor, Shaped, Tensor};
use serde::{Deserialize, Serialize};

/// Which channel scales are tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScaleSearch {
    /// Number of exponents `r = 0, 1/grid, …, (grid − 1)/grid`.
    pub grid: u32,
    /// Least scale before the scales are centred.
    pub least: f64,
    /// Divides by `w̄^(1−r)` as well (llm-compressor's duo scaling), `w̄` the mean over rows of the weights'
    /// magnitudes, each over the largest one of its group.
    pub duo: bool,
}

impl Default for ScaleSearch {
    fn default() -> Self {
        Self { grid: 20, least: 1e-4, duo: false }
    }
}

/// The best channel scales.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Scales {
    /// The scale of each input channel; weights are multiplied by it, inputs divided.
    pub scales: Vec<f32>,
    /// The exponent that gave them.
    pub ratio: f64,
    /// The loss of each exponent; the first is that without scales.
    pub losses: Vec<f64>,
}

/// Searches the exponent `r` for which rounding `W·diag(s)` costs least, `s = max(x̄^r, least)` divided by `√(max s ·
/// min s)` (equations 4 and 5; the division is the reference code's).
///
/// `weights` `[out, in]` share their input, whose mean magnitudes by channel are `abs_mean`; padding must not be part
/// of the mean. `loss` gets the weights that the model would compute with, `Q(W·diag(s))·diag(s)⁻¹`, row-major and in
/// the order of `weights`: the error of the layers' own outputs ([`gram_loss`]) or of the block around them. The least
/// loss wins, the first of equals.
///
/// # Errors
///
/// [`Error::NoWeights`], [`Error::Features`] when widths differ, [`Error::BadStatistic`] for means that are negative or
/// not finite, [`Error::Config`], [`Error::Core`] for what the format refuses, and those of `loss`.
pub fn search_scales<W, E>(
    weights: &[W],
    abs_mean: &[f64],
    format: Format,
    config: &ScaleSearch,
    mut loss: impl FnMut(&[Vec<f32>]) -> Result<f64, E>,
) -> Result<Scales, E>
where
    W: Tensor,
    E: From<Error>,
{
    check(weights, abs_mean, config)?;
    let salience = if config.duo { Some(mean_share(weights, format)?) } else { None };
    let mut best: Option<(f64, f64, Vec<f32>)> = None;
    let mut losses = Vec::new();
    for i in 0..config.grid {
        let ratio = f64::from(i) / f64::from(config.grid);
        let scales = candidate(abs_mean, salience.as_deref().filter(|_| i > 0), ratio, config.least);
        let rounded = weights.iter().map(|w| round_scaled(w, &scales, format)).collect::<Result<Vec<_>, Error>>()?;
        let found = loss(&rounded)?;
        losses.push(found);
        if best.as_ref().is_none_or(|(least, ..)| found < *least) {
            best = Some((found, ratio, scales));
        }
    }
    let (_, ratio, scales) = best.unwrap_or((0.0, 0.0, vec![1.0; abs_mean.len()]));
    Ok(Scales { scales, ratio, losses })
}

/// The loss of [`search_scales`] that counts the error of the layers' own outputs, `Σ tr(D G Dᵀ)`. It fails for weights
/// that are not finite or of another width.
pub fn gram_loss<W: Tensor>(weights: &[W], inputs: &OutputError) -> impl FnMut(&[Vec<f32>]) -> Result<f64, Error> {
    let originals: Result<Vec<Vec<f32>>, _> = weights.iter().map(|w| w.view().to_f32()).collect();
    move |rounded| {
        originals.as_ref().map_err(Clone::clone)?.iter().zip(rounded).map(|(w, q)| inputs.between(w, q)).sum()
    }
}

fn check<W: Tensor>(weights: &[W], abs_mean: &[f64], config: &ScaleSearch) -> Result<(), Error> {
    if config.grid == 0 {
        return Err(Error::Config { option: "grid", value: 0.0, limits: "at least 1" });
    }
    if !(config.least.is_finite() && config.least > 0.0) {
        return Err(Error::Config { option: "least", value: config.least, limits: "finite and above 0" });
    }
    if weights.is_empty() {
        return Err(Error::NoWeights);
    }
    for weight in weights {
        let (expected, found) = (weight.view().row_len(), abs_mean.len());
        if expected != found {
            return Err(Error::Features { what: "the channel statistics", expected, found });
        }
    }
    match abs_mean.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
        Some(channel) => Err(Error::BadStatistic { what: "mean magnitude", channel, value: abs_mean[channel] }),
        None => Ok(()),
    }
}

/// The scales of one exponent, centred so that the largest is the reciprocal of the least.
fn candidate(abs_mean: &[f64], salience: Option<&[f64]>, ratio: f64, least: f64) -> Vec<f32> {
    let scale = |channel: usize| {
        let x = abs_mean[channel].powf(ratio);
        let s = salience.map_or(x, |w| x / (w[channel].powf(1.0 - ratio) + 1e-4));
        if s.is_finite() { s.max(least) } else { 1.0 }
    };
    let scales: Vec<f64> = (0..abs_mean.len()).map(scale).collect();
    let largest = scales.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let smallest = scales.iter().copied().fold(f64::INFINITY, f64::min);
    let centre = (largest * smallest).sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "scales are f32")]
    scales.iter().map(|s| (s / centre) as f32).collect()
}

/// `Q(W·diag(s))·diag(s)⁻¹`.
fn round_scaled(weight: &impl Tensor, scales: &[f32], format: Format) -> Result<Vec<f32>, Error> {
    let folded = fold_scales(weight, scales)?;
    let mut rounded = PackedTensor::encode(format, &Shaped::new(&folded, weight.view().shape())?)?.decode();
    for row in rounded.chunks_exact_mut(scales.len()) {
        row.iter_mut().zip(scales).for_each(|(w, s)| *w /= s);
    }
    Ok(rounded)
}

/// The mean over all rows of `|w| / max|w|`, the largest of the group.
fn mean_share<W: Tensor>(weights: &[W], format: Format) -> Result<Vec<f64>, Error> {
    let mut sums: Vec<f64> = Vec::new();
    let mut rows = 0.0;
    for weight in weights {
        let values = blocks::read(weight)?;
        let layout = quant_core::Layout::new(format, weight.view().shape())?;
        sums.resize(layout.columns, 0.0);
        for row in values.outer_iter() {
            rows += 1.0;
            for (group, sums) in row.to_vec().chunks(layout.block_columns).zip(sums.chunks_mut(layout.block_columns)) {
                let largest = group.iter().fold(f32::MIN_POSITIVE, |m, w| m.max(w.abs()));
                sums.iter_mut().zip(group).for_each(|(sum, w)| *sum += f64::from(w.abs() / largest));
            }
        }
    }
    Ok(sums.into_iter().map(|sum| sum / rows).collect())
}

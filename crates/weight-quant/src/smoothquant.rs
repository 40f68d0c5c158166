//! SmoothQuant (arXiv 2211.10438): moves the outliers of activations into the weights, so that both fit 8 bits.

use crate::{Error, blocks};
use quant_calib::Needs;
use quant_core::{Format, FormatGrid, PackedTensor, Shaped, Tensor};
use serde::{Deserialize, Serialize};

/// How SmoothQuant shares the range of a channel between activations and weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SmoothQuantConfig {
    /// Exponent of the activations, 0 to 1: 1 makes all channels of the activations equally large, 0 those of the
    /// weights.
    pub alpha: f64,
    /// Least scale, and least magnitude of a weight channel that counts.
    pub least: f64,
}

impl Default for SmoothQuantConfig {
    fn default() -> Self {
        Self { alpha: 0.5, least: 1e-5 }
    }
}

impl SmoothQuantConfig {
    /// The statistics it needs: the largest magnitude of each channel.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs::channels()
    }
}

/// The scales `s` of the input channels of linear layers that share their input (equation 4):
/// `s_j = max(max_t |x_tj|^α / max_n |w_nj|^(1−α), least)`, the second maximum over all rows of all weights.
///
/// The layers then compute `(W·diag(s)) (x/s)`: see [`fold_scales`] for the weight, and divide what makes `x` (the gain
/// of a norm) by `s`. A channel whose input was always zero keeps the scale 1; the reference would shrink its weights
/// to nothing.
///
/// ```
/// use quant_core::Shaped;
/// use weight_quant::smoothquant::{SmoothQuantConfig, smooth_scales};
/// let weight = Shaped::new(&[0.5_f32, 1.0, -0.25, 0.5], &[2, 2])?;
/// // The second channel is an outlier.
/// let scales = smooth_scales(&[weight], &[2.0, 64.0], &SmoothQuantConfig::default())?;
/// assert_eq!(scales, [2.0, 8.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::NoWeights`], [`Error::Features`] when widths differ, [`Error::BadStatistic`] for magnitudes that are
/// negative or not finite, [`Error::Config`], and [`Error::Core`] for weights that are not finite.
pub fn smooth_scales<W: Tensor>(weights: &[W], absmax: &[f32], config: &SmoothQuantConfig) -> Result<Vec<f32>, Error> {
    if !(0.0..=1.0).contains(&config.alpha) {
        return Err(Error::Config { option: "alpha", value: config.alpha, limits: "from 0 to 1" });
    }
    if !(config.least.is_finite() && config.least > 0.0) {
        return Err(Error::Config { option: "least", value: config.least, limits: "finite and above 0" });
    }
    for (channel, &value) in absmax.iter().enumerate() {
        if !(value.is_finite() && value >= 0.0) {
            return Err(Error::BadStatistic { what: "largest magnitude", channel, value: f64::from(value) });
        }
    }
    let weight_max = column_maxima(weights, absmax.len())?;
    let scale = |(&x, &w): (&f32, &f32)| {
        if x == 0.0 {
            return 1.0;
        }
        let (x, w) = (f64::from(x), f64::from(w).max(config.least));
        #[expect(clippy::cast_possible_truncation, reason = "scales are f32")]
        let scale = (x.powf(config.alpha) / w.powf(1.0 - config.alpha)).max(config.least) as f32;
        scale
    };
    Ok(absmax.iter().zip(&weight_max).map(scale).collect())
}

/// The largest magnitude of each column over all weights.
fn column_maxima<W: Tensor>(weights: &[W], columns: usize) -> Result<Vec<f32>, Error> {
    if weights.is_empty() {
        return Err(Error::NoWeights);
    }
    let mut maxima = vec![0.0_f32; columns];
    for weight in weights {
        let expected = weight.view().row_len();
        if expected != columns {
            return Err(Error::Features { what: "the channel statistics", expected, found: columns });
        }
        for row in blocks::read(weight)?.outer_iter() {
            maxima.iter_mut().zip(row).for_each(|(m, w)| *m = m.max(w.abs()));
        }
    }
    Ok(maxima)
}

/// `W·diag(s)`: the weight `[out, in]` for inputs that were divided by `s`, row-major; one f32 product each.
///
/// # Errors
///
/// [`Error::Features`] when there is not one scale a column, [`Error::BadStatistic`] for scales that are not finite and
/// above zero, [`Error::Core`] for weights that are not finite or become so.
pub fn fold_scales(weight: &impl Tensor, scales: &[f32]) -> Result<Vec<f32>, Error> {
    let (expected, found) = (weight.view().row_len(), scales.len());
    if expected != found {
        return Err(Error::Features { what: "the scales", expected, found });
    }
    if let Some(channel) = scales.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(Error::BadStatistic { what: "scale", channel, value: f64::from(scales[channel]) });
    }
    let mut values = blocks::read(weight)?;
    for mut row in values.outer_iter_mut() {
        row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
    }
    if let Some((index, value)) = values.iter().enumerate().find(|(_, w)| !w.is_finite()) {
        return Err(quant_core::Error::NonFinite { index, value: f64::from(*value) }.into());
    }
    Ok(values.into_iter().collect())
}

/// Smoothed and quantized linear layers that share their input.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SmoothQuant {
    /// What the input channels are to be divided by.
    pub scales: Vec<f32>,
    /// The weights, already multiplied by the scales.
    pub packed: Vec<PackedTensor<'static>>,
    /// The scale of the activations when one is to serve all tokens; otherwise each token finds its own.
    pub activation: StaticActivation,
}

/// Smooths weights that share their input and rounds them to a format, [`Format::INT8`] as a rule.
///
/// # Errors
///
/// As [`smooth_scales`] and [`PackedTensor::encode`].
pub fn smoothquant<W: Tensor>(
    weights: &[W],
    absmax: &[f32],
    format: Format,
    config: &SmoothQuantConfig,
) -> Result<SmoothQuant, Error> {
    let scales = smooth_scales(weights, absmax, config)?;
    let pack = |weight: &W| {
        let shape = weight.view().shape().to_vec();
        let folded = fold_scales(weight, &scales)?;
        Ok(PackedTensor::encode(format, &Shaped::new(&folded, &shape)?)?)
    };
    let packed = weights.iter().map(pack).collect::<Result<_, Error>>()?;
    let activation = StaticActivation::new(absmax, &scales)?;
    Ok(SmoothQuant { scales, packed, activation })
}

/// Activations of 8 bits under one scale that calibration fixed; larger values saturate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StaticActivation {
    grid: FormatGrid,
    params: quant_core::BlockParams,
}

impl StaticActivation {
    /// From the largest magnitude of each channel and what the channels are divided by: `max_j (a_j / s_j) / 127`.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] for magnitudes that are not finite.
    pub fn new(absmax: &[f32], scales: &[f32]) -> Result<Self, Error> {
        let format = "int8-tensor-f32".parse()?;
        let largest = absmax.iter().zip(scales).fold(0.0_f32, |m, (a, s)| m.max(a / s));
        let grid = FormatGrid::new(format, largest)?;
        let params = quant_core::Grid::fit(&grid, &[largest], 1.0)?;
        Ok(Self { grid, params })
    }

    /// Value of one step.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.params.scale
    }

    /// Rounds smoothed activations to the values they are computed with.
    pub fn apply(&self, x: &mut [f32]) {
        for x in x {
            *x = self.grid.round(*x, &self.params);
        }
    }
}

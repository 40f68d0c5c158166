//! ASVD: input channels scaled by the size of their activations (arXiv 2312.05821).

use crate::metric::diagonal;
use crate::{Calibration, Error, Fisher, Method, Metric, Metrics, Truncation};
use quant_calib::Needs;
use serde::{Deserialize, Serialize};

/// Truncates `W S` with `S = diag(s^α)`, `s` the size of each input channel (paper, eq. 8), and undoes `S` on the right factor.
///
/// Departures from the authors' code: statistics are means over tokens, not sums of means over sequences; the decomposition is
/// exact unless a randomized one is asked for; a channel that never fires gets 10⁻⁴ of the mean scale in place of 10⁻⁶, whose
/// inverse would magnify noise a million times; a failure is an error, not a layer of random numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asvd {
    /// Exponent; 0 is the plain SVD.
    pub alpha: f64,
    /// What the size of a channel is.
    pub source: ScaleSource,
    /// How large, how found, how stored.
    pub truncation: Truncation,
}

impl Default for Asvd {
    fn default() -> Self {
        Self { alpha: 0.5, source: ScaleSource::AbsMean, truncation: Truncation::default() }
    }
}

/// What the size of an input channel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleSource {
    /// Mean magnitude over tokens.
    #[default]
    AbsMean,
    /// Largest magnitude.
    AbsMax,
    /// Root of the mean Fisher information of the channel's weights.
    Fisher,
    /// The product of that and the mean magnitude.
    FisherAbsMean,
}

/// Scales below this share of their mean are raised to it.
const LEAST_SCALE: f64 = 1e-4;

impl Method for Asvd {
    fn needs(&self) -> Needs {
        match self.source {
            ScaleSource::Fisher => Needs::nothing(),
            _ => Needs::channels(),
        }
    }

    fn truncation(&self) -> &Truncation {
        &self.truncation
    }

    fn metrics(&self, shape: (usize, usize), calibration: &Calibration<'_>) -> Result<Metrics, Error> {
        let channels = || calibration.require_channels("ASVD", shape.1);
        let fisher = || calibration.require_fisher("ASVD", shape).map(column_importance);
        let size: Vec<f64> = match self.source {
            ScaleSource::AbsMean => channels()?.abs_mean(),
            ScaleSource::AbsMax => channels()?.absmax().into_iter().map(f64::from).collect(),
            ScaleSource::Fisher => fisher()?,
            ScaleSource::FisherAbsMean => fisher()?.iter().zip(channels()?.abs_mean()).map(|(f, x)| f * x).collect(),
        };
        let scale = diagonal(&size, self.alpha, LEAST_SCALE, "channel scales")?;
        Ok(Metrics::right(Metric::Diagonal(scale)))
    }
}

/// `f_j = sqrt(mean_i F_ij)`.
pub(crate) fn column_importance(fisher: &Fisher) -> Vec<f64> {
    let rows = fisher.rows().len() as f64;
    fisher.columns().iter().map(|sum| (sum / rows).sqrt()).collect()
}

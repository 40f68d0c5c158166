//! What is known about a linear beside its weight.

use crate::{Error, Fisher};
use ndarray::Array2;
use quant_calib::{ChannelStats, Gram, Statistics};

/// Statistics of one linear, each if it was gathered. Methods say in `needs` what they read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calibration<'a> {
    /// Ranges and means of each input channel.
    pub channels: Option<&'a ChannelStats>,
    /// Gram matrix of the inputs. With it every report has the output error.
    pub gram: Option<&'a Gram>,
    /// Fisher information of the weight.
    pub fisher: Option<&'a Fisher>,
}

impl<'a> From<&'a Statistics> for Calibration<'a> {
    fn from(statistics: &'a Statistics) -> Self {
        Self { channels: statistics.channels(), gram: statistics.gram(), fisher: None }
    }
}

impl Calibration<'_> {
    /// The mean of `x xᵀ`, if the Gram matrix is there.
    pub(crate) fn mean_gram(&self, features: usize) -> Result<Option<Array2<f64>>, Error> {
        let Some(gram) = self.gram else { return Ok(None) };
        check_features("Gram matrices", features, gram.features())?;
        if gram.weight_sum() <= 0.0 {
            return Err(Error::AllZero { what: "token weights" });
        }
        Ok(Some(gram.matrix() / gram.weight_sum()))
    }

    pub(crate) fn require_gram(&self, method: &'static str, features: usize) -> Result<Array2<f64>, Error> {
        self.mean_gram(features)?.ok_or(Error::Missing { method, what: "the Gram matrix" })
    }

    pub(crate) fn require_channels(&self, method: &'static str, features: usize) -> Result<&ChannelStats, Error> {
        let channels = self.channels.ok_or(Error::Missing { method, what: "channel statistics" })?;
        check_features("channel statistics", features, channels.features())?;
        Ok(channels)
    }

    pub(crate) fn require_fisher(&self, method: &'static str, shape: (usize, usize)) -> Result<&Fisher, Error> {
        let fisher = self.fisher.ok_or(Error::Missing { method, what: "Fisher information" })?;
        check_features("Fisher informations (rows)", shape.0, fisher.rows().len())?;
        check_features("Fisher informations (columns)", shape.1, fisher.columns().len())?;
        Ok(fisher)
    }
}

fn check_features(what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Features { what, expected, found }) }
}

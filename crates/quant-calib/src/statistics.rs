//! All statistics of one input.

use crate::rows::Rows;
use crate::{ChannelStats, Error, GatePower, Gram, Needs, QuantileSketch, Reservoir};

/// The statistics of the input of one linear that its [`Needs`] name.
///
/// # Examples
///
/// ```
/// use quant_calib::{Needs, Statistics};
/// let needs = Needs { channels: true, ..Needs::gram() };
/// let mut statistics = Statistics::new(2, &needs)?;
/// statistics.add(&[1.0, 0.0, -3.0, 0.0], None)?;
/// assert_eq!(statistics.tokens(), 2);
/// assert_eq!(statistics.gram().map(|gram| gram.diagonal()), Some(vec![10.0, 0.0]));
/// assert_eq!(statistics.channels().map(|channels| channels.absmax()), Some(vec![3.0, 0.0]));
/// assert_eq!(statistics.dead_channels(), Some(vec![1]));
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    pub(crate) features: usize,
    pub(crate) needs: Needs,
    pub(crate) tokens: u64,
    pub(crate) gram: Option<Gram>,
    pub(crate) channels: Option<ChannelStats>,
    pub(crate) quantiles: Option<QuantileSketch>,
    pub(crate) reservoir: Option<Reservoir>,
}

impl Statistics {
    /// Starts with no tokens.
    ///
    /// # Errors
    ///
    /// [`Error::SketchBits`] when the needs ask for quantiles of more bits than a sketch has.
    pub fn new(features: usize, needs: &Needs) -> Result<Self, Error> {
        let sketch = |q: crate::QuantileNeeds| QuantileSketch::new(features, q.bits, q.per_channel);
        Ok(Self {
            features,
            needs: needs.clone(),
            tokens: 0,
            gram: needs.gram.then(|| Gram::new(features)),
            channels: needs.channels.then(|| ChannelStats::new(features)),
            quantiles: needs.quantiles.map(sketch).transpose()?,
            reservoir: needs.reservoir.map(|rows| Reservoir::new(features, rows, needs.seed)),
        })
    }

    /// Adds tokens `rows` `[tokens, features]`. `gates` are the router's weights of tokens sent to an expert: they
    /// weight the Gram matrix as [`Needs::gate_power`] says and are kept beside sampled rows.
    ///
    /// # Errors
    ///
    /// [`Error::Width`], [`Error::NonFinite`], [`Error::WeightCount`] and [`Error::Weight`] for bad input,
    /// [`Error::TooLarge`] when the Gram matrix does not fit. Nothing is added on error.
    pub fn add(&mut self, rows: &[f32], gates: Option<&[f32]>) -> Result<(), Error> {
        let rows = Rows::new(rows, self.features, gates)?;
        if let Some(gram) = &mut self.gram {
            let squared: Vec<f32>;
            let weights = match self.needs.gate_power {
                GatePower::Ignored => None,
                GatePower::Linear => gates,
                GatePower::Squared => {
                    squared = gates.unwrap_or_default().iter().map(|gate| gate * gate).collect();
                    gates.map(|_| squared.as_slice())
                }
            };
            gram.add_rows(&Rows { weights, ..rows })?;
        }
        if let Some(channels) = &mut self.channels {
            channels.add_rows(&rows);
        }
        if let Some(quantiles) = &mut self.quantiles {
            quantiles.add_rows(&rows);
        }
        if let Some(reservoir) = &mut self.reservoir {
            reservoir.add_rows(&rows);
        }
        self.tokens += rows.len() as u64;
        Ok(())
    }

    /// Adds what was gathered elsewhere for the same needs; exact for given parts in a given order. Seeds of reservoirs
    /// must differ, see [`Reservoir::merge`].
    ///
    /// # Errors
    ///
    /// [`Error::Features`] and [`Error::Settings`] when the two cannot be joined, [`Error::TooLarge`] when the Gram matrix
    /// does not fit. Nothing is changed on error.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        if self.features != other.features {
            return Err(Error::Features { features: self.features, found: other.features });
        }
        let settings = |s: &Self| Needs { seed: 0, ..s.needs.clone() };
        if settings(self) != settings(other) {
            let name = |s: &Self| format!("{:?}", s.needs);
            return Err(Error::Settings { what: "needs differ", left: name(self), right: name(other) });
        }
        // What can refuse goes first.
        let mut reservoir = self.reservoir.clone();
        if let (Some(reservoir), Some(other)) = (&mut reservoir, &other.reservoir) {
            reservoir.merge(other)?;
        }
        if let (Some(gram), Some(other)) = (&mut self.gram, &other.gram) {
            gram.merge(other)?;
        }
        if let (Some(channels), Some(other)) = (&mut self.channels, &other.channels) {
            channels.merge(other)?;
        }
        if let (Some(quantiles), Some(other)) = (&mut self.quantiles, &other.quantiles) {
            quantiles.merge(other)?;
        }
        self.reservoir = reservoir;
        self.tokens += other.tokens;
        Ok(())
    }

    /// Width of the input.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// What is gathered.
    #[must_use]
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Refuses statistics of fewer than `needed` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewTokens`].
    pub fn require_tokens(&self, needed: u64) -> Result<(), Error> {
        if self.tokens < needed { Err(Error::TooFewTokens { needed, found: self.tokens }) } else { Ok(()) }
    }

    /// The Gram matrix, if the needs name it.
    #[must_use]
    pub fn gram(&self) -> Option<&Gram> {
        self.gram.as_ref()
    }

    /// Range, means and variance of each channel, if the needs name them.
    #[must_use]
    pub fn channels(&self) -> Option<&ChannelStats> {
        self.channels.as_ref()
    }

    /// Quantiles, if the needs name them.
    #[must_use]
    pub fn quantiles(&self) -> Option<&QuantileSketch> {
        self.quantiles.as_ref()
    }

    /// The sample of tokens, if the needs name it.
    #[must_use]
    pub fn reservoir(&self) -> Option<&Reservoir> {
        self.reservoir.as_ref()
    }

    /// Channels that were zero in every token, in order; `None` when nothing that tells was gathered.
    #[must_use]
    pub fn dead_channels(&self) -> Option<Vec<usize>> {
        let of_channels = self.channels.as_ref().map(ChannelStats::dead_channels);
        of_channels.or_else(|| self.gram.as_ref().map(Gram::dead_channels))
    }
}

//! What a method asks of calibration.

use crate::Error;
use crate::quantiles::SKETCH_BITS;
use serde::{Deserialize, Serialize};

/// The statistics that a method needs of the input of a linear; calibration gathers those and nothing else.
///
/// A pipeline unites the needs of all methods that read one input.
///
/// # Examples
///
/// ```
/// use quant_calib::Needs;
/// let gptq = Needs::gram();
/// let awq = Needs { channels: true, ..Needs::reservoir(512) };
/// let both = gptq.union(&awq)?;
/// assert_eq!(both, Needs { gram: true, channels: true, reservoir: Some(512), ..Needs::default() });
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Needs {
    /// The Gram matrix `Σ w x xᵀ`.
    pub gram: bool,
    /// How the gates of routed tokens weight the Gram matrix; tokens that are not routed count 1.
    pub gate_power: GatePower,
    /// Range, means and variance of each channel.
    pub channels: bool,
    /// Quantiles.
    pub quantiles: Option<QuantileNeeds>,
    /// Rows kept in a uniform sample of tokens.
    pub reservoir: Option<usize>,
    /// Seed of that sample.
    pub seed: u64,
}

/// What a gate `c` counts as in the Gram matrix.
///
/// MoEQuant's affinity-guided quantization weights by `c`; the error of the layer's output weights by `c²`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatePower {
    /// Every token counts 1.
    #[default]
    Ignored,
    /// A token counts `c`.
    Linear,
    /// A token counts `c²`.
    Squared,
}

/// How finely quantiles are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantileNeeds {
    /// Bits of the significand that tell buckets apart: the relative error is `2^-(bits + 1)`.
    pub bits: u32,
    /// A distribution for each channel; else one for the whole input.
    pub per_channel: bool,
}

impl Default for QuantileNeeds {
    fn default() -> Self {
        Self { bits: SKETCH_BITS, per_channel: false }
    }
}

impl Needs {
    /// Nothing: the method reads the weight alone.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// The Gram matrix.
    #[must_use]
    pub fn gram() -> Self {
        Self { gram: true, ..Self::default() }
    }

    /// Range, means and variance of each channel.
    #[must_use]
    pub fn channels() -> Self {
        Self { channels: true, ..Self::default() }
    }

    /// A sample of `rows` tokens.
    #[must_use]
    pub fn reservoir(rows: usize) -> Self {
        Self { reservoir: Some(rows), ..Self::default() }
    }

    /// Whether nothing has to be gathered.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        !self.gram && !self.channels && self.quantiles.is_none() && self.reservoir.is_none()
    }

    /// All that either asks for. A reservoir gets the larger number of rows, a sketch the larger number of bits.
    ///
    /// # Errors
    ///
    /// [`Error::Settings`] when both ask for one statistic in ways that cannot be had together: Gram matrices of different
    /// weights, samples of different seeds, quantiles of channels and of the whole.
    pub fn union(&self, other: &Self) -> Result<Self, Error> {
        let quantiles = match (self.quantiles, other.quantiles) {
            (Some(a), Some(b)) => Some(QuantileNeeds {
                bits: a.bits.max(b.bits),
                per_channel: same("quantiles per channel", (true, a.per_channel), (true, b.per_channel))?,
            }),
            (a, b) => a.or(b),
        };
        let sampled = |needs: &Self| needs.reservoir.is_some();
        Ok(Self {
            gram: self.gram || other.gram,
            gate_power: same(
                "weights of the Gram matrix",
                (self.gram, self.gate_power),
                (other.gram, other.gate_power),
            )?,
            channels: self.channels || other.channels,
            quantiles,
            reservoir: self.reservoir.max(other.reservoir),
            seed: same("seeds of reservoirs", (sampled(self), self.seed), (sampled(other), other.seed))?,
        })
    }
}

/// The setting of whichever is used; both must agree when both are.
fn same<T: Copy + PartialEq + std::fmt::Debug>(
    what: &'static str,
    (left_used, left): (bool, T),
    (right_used, right): (bool, T),
) -> Result<T, Error> {
    if left_used && right_used && left != right {
        return Err(Error::Settings { what, left: format!("{left:?}"), right: format!("{right:?}") });
    }
    Ok(if right_used && !left_used { right } else { left })
}

//! Affinity-guided quantization (MoEQuant, arXiv 2505.03804, section 3.3): tokens count by their gates.
//!
//! The output of an expert is multiplied by the gate `c` of each token, so what is to be small is `Σ c^p ‖(W − Ŵ) x‖²`: GPTQ's
//! Hessian and AWQ's losses are those of `H = Σ c^p x xᵀ`. The paper takes `p = 1` for gate, up and down alike; the error of
//! the layer's output weighs `c²`; `p = 0` is plain GPTQ and AWQ.

use crate::{Dispatch, Error};
use quant_calib::{ChannelStats, GatePower, Gram};
use quant_core::{Format, PackedTensor, Tensor};
use serde::{Deserialize, Serialize};
use weight_quant::gptq::{Gptq, gptq};
use weight_quant::{AwqConfig, GptqConfig, RtnConfig, rtn};

/// What becomes of an expert that calibration did not reach, or whose gates were all zero. Its weights are never zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnseenExpert {
    /// It is an error.
    Error,
    /// It is rounded to nearest.
    #[default]
    Rtn,
    /// It is quantized with the sum of all experts' Hessians. For gate and up this is what any token of the layer
    /// looks like; the features inside experts have nothing in common, so for down it is little better than rounding.
    SharedHessian,
}

/// The Hessian that an expert was quantized with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HessianSource {
    /// That of its own tokens.
    Own,
    /// That of all tokens.
    Shared,
    /// None: it was rounded to nearest.
    Nothing,
}

/// The Gram matrices of one block's inputs, one for each expert.
///
/// ```
/// use moe_quant::{Dispatch, ExpertGrams, HessianSource, UnseenExpert};
/// use quant_calib::GatePower;
/// use quant_core::Shaped;
/// use weight_quant::GptqConfig;
///
/// let dispatch = Dispatch::new(3, 1, &[0, 2, 0], &[0.9, 0.5, 0.1])?;
/// let mut grams = ExpertGrams::new(3, 2, GatePower::Linear);
/// grams.add_routed(&[1.0, 0.0, 1.0, 1.0, 0.0, 2.0], &dispatch)?;
/// assert_eq!(grams.tokens(), [2, 0, 1]);
///
/// let weight = Shaped::new(&[0.3_f32, -0.7, 1.0, 0.2], &[2, 2])?;
/// let (format, config) = ("int3-row".parse()?, GptqConfig::default());
/// let (_, source) = grams.gptq(1, &weight, format, &config, UnseenExpert::SharedHessian)?;
/// assert_eq!(source, HessianSource::Shared);
/// assert!(grams.gptq(1, &weight, format, &config, UnseenExpert::Error).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertGrams {
    features: usize,
    power: GatePower,
    grams: Vec<Gram>,
    channels: Vec<ChannelStats>,
}

impl ExpertGrams {
    /// Starts with no tokens, for experts whose block has this many inputs.
    #[must_use]
    pub fn new(experts: usize, features: usize, power: GatePower) -> Self {
        let (gram, channels) = (Gram::new(features), ChannelStats::new(features));
        Self { features, power, grams: vec![gram; experts], channels: vec![channels; experts] }
    }

    /// Adds the inputs `rows` `[tokens, features]` of one expert with the gates of its tokens.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchExpert`], [`Error::Calib`] for wrong widths, values that are not finite and gates that are negative.
    pub fn add(&mut self, expert: usize, rows: &[f32], gates: &[f32]) -> Result<(), Error> {
        let experts = self.grams.len();
        let (Some(gram), Some(channels)) = (self.grams.get_mut(expert), self.channels.get_mut(expert)) else {
            return Err(Error::NoSuchExpert { choice: 0, expert, experts });
        };
        let squared: Vec<f32>;
        let weights = match self.power {
            GatePower::Ignored => None,
            GatePower::Linear => Some(gates),
            GatePower::Squared => {
                squared = gates.iter().map(|gate| gate * gate).collect();
                Some(squared.as_slice())
            }
        };
        gram.add(rows, weights)?;
        Ok(channels.add(rows)?)
    }

    /// Adds the inputs `x` `[tokens, features]` of a layer to the experts they are routed to.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::NoSuchExpert`], [`Error::Calib`].
    pub fn add_routed(&mut self, x: &[f32], dispatch: &Dispatch) -> Result<(), Error> {
        let sorted = dispatch.gather(x, self.features)?;
        for expert in 0..dispatch.experts() {
            let rows = dispatch.rows_of(expert);
            if !rows.is_empty() {
                let rows = &sorted[rows.start * self.features..rows.end * self.features];
                self.add(expert, rows, dispatch.gates_of(expert))?;
            }
        }
        Ok(())
    }

    /// Tokens each expert saw.
    #[must_use]
    pub fn tokens(&self) -> Vec<u64> {
        self.grams.iter().map(Gram::tokens).collect()
    }

    /// The Gram matrix of an expert's own tokens, if there is such an expert.
    #[must_use]
    pub fn own(&self, expert: usize) -> Option<&Gram> {
        self.grams.get(expert)
    }

    /// The sum of all.
    ///
    /// # Errors
    ///
    /// [`Error::Calib`] when it does not fit.
    pub fn shared(&self) -> Result<Gram, Error> {
        let mut sum = Gram::new(self.features);
        self.grams.iter().try_for_each(|gram| sum.merge(gram))?;
        Ok(sum)
    }

    /// Quantizes the block of an expert by GPTQ under its weighted Hessian.
    ///
    /// # Errors
    ///
    /// [`Error::Uncalibrated`] if the policy says so, [`Error::NoSuchExpert`], [`Error::Method`].
    pub fn gptq(
        &self,
        expert: usize,
        weight: &impl Tensor,
        format: Format,
        config: &GptqConfig,
        policy: UnseenExpert,
    ) -> Result<(Gptq, HessianSource), Error> {
        let (gram, source) = self.hessian(expert, policy)?;
        // Without tokens GPTQ itself rounds to nearest, and its report says so.
        Ok((gptq(weight, &gram, format, config)?, source))
    }

    /// Quantizes blocks of an expert that share their input, gate and up, by AWQ under its weighted loss. Returns the scales
    /// that the inputs are to be divided by with the weights, which are already multiplied by them.
    ///
    /// # Errors
    ///
    /// As [`ExpertGrams::gptq`].
    pub fn awq<W: Tensor>(
        &self,
        expert: usize,
        weights: &[W],
        format: Format,
        config: &AwqConfig,
        policy: UnseenExpert,
    ) -> Result<(Vec<f32>, Vec<PackedTensor<'static>>, HessianSource), Error> {
        let (gram, source) = self.hessian(expert, policy)?;
        if source == HessianSource::Nothing {
            let rounded = weights.iter().map(|weight| rtn(weight, format, &RtnConfig::default()));
            return Ok((vec![1.0; self.features], rounded.collect::<Result<_, _>>()?, source));
        }
        let mut channels = ChannelStats::new(self.features);
        match source {
            HessianSource::Own => channels.merge(&self.channels[expert])?,
            _ => self.channels.iter().try_for_each(|other| channels.merge(other))?,
        }
        let result = weight_quant::awq::awq(weights, &gram, &channels.abs_mean(), format, config)?;
        Ok((result.scales.scales, result.packed, source))
    }

    fn hessian(
        &self,
        expert: usize,
        policy: UnseenExpert,
    ) -> Result<(std::borrow::Cow<'_, Gram>, HessianSource), Error> {
        use std::borrow::Cow;
        let experts = self.grams.len();
        let own = self.grams.get(expert).ok_or(Error::NoSuchExpert { choice: 0, expert, experts })?;
        if own.weight_sum() > 0.0 {
            return Ok((Cow::Borrowed(own), HessianSource::Own));
        }
        match policy {
            UnseenExpert::Error => Err(Error::Uncalibrated { expert }),
            UnseenExpert::Rtn => Ok((Cow::Owned(Gram::new(self.features)), HessianSource::Nothing)),
            UnseenExpert::SharedHessian => {
                let shared = self.shared()?;
                let source = if shared.weight_sum() > 0.0 { HessianSource::Shared } else { HessianSource::Nothing };
                Ok((Cow::Owned(shared), source))
            }
        }
    }
}

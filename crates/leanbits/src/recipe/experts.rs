//! What a recipe says about mixtures of experts: schemes allocated to their blocks (MxMoE).

use super::RecipeError;
use moe_quant::{AllocateConfig, Budget, Granularity, LossSum, Scheme, Scope};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Formats for the matrices of routed experts, chosen under a budget by what each costs the layer's output.
///
/// The method of the recipe then quantizes each matrix to its format. Rules of the recipe come first: experts that they name
/// keep what they say, beside the budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Experts {
    /// Bits a weight of routed experts on average, scales and zero points counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<f64>,
    /// The same budget in bytes for the whole model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Formats to choose from.
    #[serde(default = "usual_schemes")]
    pub schemes: Vec<Scheme>,
    /// What decides: measured losses, or how often experts are used.
    #[serde(default)]
    pub by: AllocateBy,
    /// Exponent of the loss; below 1 time is weighed too, which needs a profile.
    #[serde(default = "one")]
    pub r: f64,
    /// What gets a format of its own.
    #[serde(default)]
    pub granularity: Granularity,
    /// Whether each layer keeps within the budget, or the model.
    #[serde(default)]
    pub scope: Scope,
    /// How losses add up.
    #[serde(default)]
    pub sum: LossSum,
    /// Most tokens of the calibration text that losses are measured on.
    #[serde(default = "usual_tokens")]
    pub tokens: usize,
    /// Experts that saw fewer tokens are given the loss that they would have had with so many.
    #[serde(default = "usual_least_tokens")]
    pub least_tokens: u64,
    /// What `leanbits profile` measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<PathBuf>,
    /// Tokens of a batch that times are looked at for.
    #[serde(default = "usual_batch")]
    pub batch: u64,
}

/// What decides about the formats of experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllocateBy {
    /// What each format costs each block (MxMoE).
    #[default]
    Loss,
    /// How often each expert is used. A baseline.
    Frequency,
}

fn usual_schemes() -> Vec<Scheme> {
    let names = ["int1-g128-asym", "int2-g128-asym", "int3-g128-asym", "int4-g128-asym", "int6-g128-asym", "int8"];
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

fn one() -> f64 {
    1.0
}

fn usual_tokens() -> usize {
    8192
}

fn usual_least_tokens() -> u64 {
    16
}

fn usual_batch() -> u64 {
    512
}

impl Experts {
    /// Checks what the types leave open.
    pub(super) fn validate(&self) -> Result<(), RecipeError> {
        let bad = |name, value: String, expected| Err(RecipeError::BadSetting { name, value, expected });
        if self.bits.is_some() == self.bytes.is_some() {
            return bad("experts", "both or none of bits and bytes".to_owned(), "one of `bits` and `bytes`");
        }
        if let Some(bits) = self.bits.filter(|bits| !(bits.is_finite() && *bits > 0.0)) {
            return bad("experts.bits", bits.to_string(), "above 0");
        }
        if self.schemes.is_empty() {
            return bad("experts.schemes", "none".to_owned(), "at least one format");
        }
        if let Some(scheme) = self.schemes.iter().find(|scheme| scheme.activation.is_some()) {
            let expected = "formats of weights; a folder has no place for activations of single blocks";
            return bad("experts.schemes", scheme.to_string(), expected);
        }
        if !(0.0..=1.0).contains(&self.r) {
            return bad("experts.r", self.r.to_string(), "a number from 0 to 1");
        }
        if self.r < 1.0 && self.profile.is_none() {
            return bad("experts.profile", "none".to_owned(), "a profile of this machine, or r = 1");
        }
        if self.tokens == 0 {
            return bad("experts.tokens", "0".to_owned(), "at least 1");
        }
        Ok(())
    }

    /// The allocator's settings.
    pub(crate) fn config(&self) -> AllocateConfig {
        let budget = match (self.bits, self.bytes) {
            (_, Some(bytes)) => Budget::Bytes(bytes),
            (bits, None) => Budget::Bits(bits.unwrap_or(0.0)),
        };
        AllocateConfig {
            r: self.r,
            granularity: self.granularity,
            scope: self.scope,
            sum: self.sum,
            ..AllocateConfig::new(budget)
        }
    }
}

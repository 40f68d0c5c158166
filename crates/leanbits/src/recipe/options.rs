//! What a recipe says about the model as a whole: its calibration and its change of basis.

use moe_quant::UnseenExpert;
use quant_calib::GatePower;
use serde::{Deserialize, Serialize};

/// The text that methods see: how much of it, and where from.
///
/// The text is cut into windows that do not overlap; if it has more of them than are asked for, a seeded draw
/// decides which are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Calibration {
    /// Most windows.
    pub windows: usize,
    /// Tokens of a window; at most what the model was made for.
    pub tokens: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// Whether the begin-of-sequence token stands before every window.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bos: bool,
    /// Where the text is cut into documents, each with a window of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// How much the tokens of an expert count by their gates: `linear` is MoEQuant's affinity-guided quantization, `squared`
    /// weighs the error of the layer's output. Tokens of other linears count one.
    #[serde(skip_serializing_if = "is_ignored")]
    pub gate_power: GatePower,
    /// What becomes of an expert that fewer than 0.5 % of the tokens reach: its inputs say too little for a method that looks at
    /// them.
    #[serde(skip_serializing_if = "is_usual")]
    pub unseen_experts: UnseenExpert,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_usual(policy: &UnseenExpert) -> bool {
    *policy == UnseenExpert::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_ignored(power: &GatePower) -> bool {
    *power == GatePower::Ignored
}

impl Default for Calibration {
    /// 128 windows of 512 tokens, seed 0.
    fn default() -> Self {
        Self {
            windows: 128,
            tokens: 512,
            seed: 0,
            bos: false,
            split: None,
            gate_power: GatePower::Ignored,
            unseen_experts: UnseenExpert::Rtn,
        }
    }
}

/// An orthogonal change of basis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rotation {
    /// A Hadamard matrix with random signs, as QuaRot uses it.
    Hadamard,
    /// A random orthogonal matrix.
    Orthogonal,
}

/// What is done to the whole model before its weights are rounded. The model computes the same function after it.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Transforms {
    /// Rotates the residual stream and the heads: spreads outliers over all channels. Gains of norms are folded into
    /// the linears that read them first, and a tied output head becomes a tensor of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate: Option<Rotation>,
    /// Moves the range of activations into weights (SmoothQuant); the value is the strength α, 0.5 in the paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smooth: Option<f64>,
    /// Seed of the rotation.
    #[serde(skip_serializing_if = "is_zero")]
    pub seed: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(seed: &u64) -> bool {
    *seed == 0
}

impl Transforms {
    /// Whether the model stays as it is.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.rotate.is_none() && self.smooth.is_none()
    }
}

//! A mixture layer as slices: what is needed to compute what its experts lose.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One of the three matrices of an expert, `down(act(gate x) ⊙ up x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Block {
    /// `[inner, hidden]`, through the nonlinearity.
    Gate,
    /// `[inner, hidden]`.
    Up,
    /// `[hidden, inner]`.
    Down,
}

impl Block {
    /// All three, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// `[out, in]` in a layer of these widths.
    #[must_use]
    pub fn shape(self, [hidden, inner]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Gate | Self::Up => [inner, hidden],
            Self::Down => [hidden, inner],
        }
    }

    /// Place in [`Block::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// The nonlinearity between the matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x / (1 + e^−x)`.
    #[default]
    Silu,
    /// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Of one number.
    #[must_use]
    pub fn of(self, x: f64) -> f64 {
        match self {
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::Relu => x.max(0.0),
        }
    }

    /// Of one number, in f32 arithmetic.
    #[must_use]
    pub fn of_f32(self, x: f32) -> f32 {
        match self {
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::GeluTanh => {
                let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::Relu => x.max(0.0),
        }
    }
}

/// The weights of one expert, row-major.
#[derive(Clone, Copy, Debug)]
pub struct ExpertWeights<'a> {
    /// `[inner, hidden]`.
    pub gate: &'a [f32],
    /// `[inner, hidden]`.
    pub up: &'a [f32],
    /// `[hidden, inner]`.
    pub down: &'a [f32],
}

impl<'a> ExpertWeights<'a> {
    /// One of the three.
    #[must_use]
    pub fn block(&self, block: Block) -> &'a [f32] {
        match block {
            Block::Gate => self.gate,
            Block::Up => self.up,
            Block::Down => self.down,
        }
    }
}

/// The routed experts of a layer. Shared experts and the router are no part of it: what they add cancels in errors.
#[derive(Clone, Debug)]
pub struct MoeLayer<'a> {
    experts: Vec<ExpertWeights<'a>>,
    widths: [usize; 2],
    activation: Activation,
}

impl<'a> MoeLayer<'a> {
    /// A layer of `widths` `[hidden, inner]`.
    ///
    /// # Errors
    ///
    /// [`Error::Mixture`] without experts or widths, [`Error::Length`] for a weight of the wrong size.
    pub fn new(experts: Vec<ExpertWeights<'a>>, widths: [usize; 2], activation: Activation) -> Result<Self, Error> {
        let [hidden, inner] = widths;
        if experts.is_empty() || hidden == 0 || inner == 0 {
            return Err(Error::Mixture { experts: experts.len(), top_k: 1, hidden, inner });
        }
        for expert in &experts {
            for (block, what) in Block::ALL.into_iter().zip(["the gate weight", "the up weight", "the down weight"]) {
                let (expected, found) = (hidden * inner, expert.block(block).len());
                if expected != found {
                    return Err(Error::Length { what, expected, found });
                }
            }
        }
        Ok(Self { experts, widths, activation })
    }

    /// The experts.
    #[must_use]
    pub fn experts(&self) -> &[ExpertWeights<'a>] {
        &self.experts
    }

    /// `[hidden, inner]`.
    #[must_use]
    pub fn widths(&self) -> [usize; 2] {
        self.widths
    }

    /// The nonlinearity.
    #[must_use]
    pub fn activation(&self) -> Activation {
        self.activation
    }
}

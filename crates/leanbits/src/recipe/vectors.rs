//! Settings of methods that code several weights together: `e8p`, `pcdvq`, `rwkvquant`. Those of `kmeans` and `gptvq`
//! are the ones of their crate.

use super::{Method, RecipeError};
use serde::{Deserialize, Serialize};
use vector_quant::rwkvquant::{Gaps, MultiplierConfig};
use vector_quant::{FixedBook, GptvqConfig, Magnitude, PolarConfig, RotatedVq};
use weight_quant::gptq::GptqConfig;

/// The code book of QuIP#, E8P, on rotated weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct E8p {
    /// Bits a weight: 2, or 4 for the code book applied twice.
    pub bits: u32,
    /// Whether codes are chosen with feedback through the Hessian of the inputs (LDLQ).
    pub feedback: bool,
    /// Share of the mean diagonal of the Hessian that is added to its diagonal.
    pub damp: f64,
    /// Of the signs of the rotation.
    pub seed: u64,
}

impl Default for E8p {
    fn default() -> Self {
        let RotatedVq { feedback, damp, seed, .. } = RotatedVq::new(FixedBook::E8p);
        Self { bits: 2, feedback, damp, seed }
    }
}

/// PCDVQ: direction and length of each 8-vector of the rotated weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pcdvq {
    /// Bits of the direction.
    pub direction_bits: u32,
    /// Bits of the length.
    pub magnitude_bits: u32,
    /// Which length is rounded.
    pub magnitude: Magnitude,
    /// Candidates for directions: points of E8 up to this squared norm.
    pub max_squared_norm: u32,
    /// Whether codes are chosen with feedback through the Hessian of the inputs, which the paper does not.
    pub feedback: bool,
    /// Share of the mean diagonal of the Hessian that is added to its diagonal.
    pub damp: f64,
    /// Of the signs of the rotation.
    pub seed: u64,
}

impl Default for Pcdvq {
    fn default() -> Self {
        let PolarConfig { direction_bits, magnitude_bits, magnitude, max_squared_norm } = PolarConfig::default();
        let E8p { feedback, damp, seed, .. } = E8p::default();
        Self { direction_bits, magnitude_bits, magnitude, max_squared_norm, feedback, damp, seed }
    }
}

/// RWKVQuant: scalar codes for evenly spaced weights, vector codes for the others, code books for multipliers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RwkvQuant {
    /// Which gaps between sorted weights are looked at.
    pub gaps: Gaps,
    /// Highest moment of the fine proxy.
    pub order: u32,
    /// How it is decided which weights get scalar codes.
    pub assign: Assign,
    /// Settings of scalar codes, which are those of the recipe's format.
    pub scalar: GptqConfig,
    /// Settings of vector codes.
    pub vector: GptvqConfig,
    /// What happens to element-wise multipliers.
    pub multipliers: Multipliers,
    /// How multipliers are coded.
    pub multiplier: MultiplierConfig,
    /// Percentiles to which each calibration window is clipped before its mean magnitude counts.
    pub clip: [f64; 2],
}

impl Default for RwkvQuant {
    /// Nine of ten matrices in scalar codes; vectors of 2 in 6 bits with a code book for 2048 weights: 3.5 bits.
    fn default() -> Self {
        Self {
            gaps: Gaps::default(),
            order: 4,
            assign: Assign::default(),
            scalar: GptqConfig::default(),
            vector: GptvqConfig { bits: 6, ..GptvqConfig::default() },
            multipliers: Multipliers::default(),
            multiplier: MultiplierConfig::default(),
            clip: [0.01, 0.99],
        }
    }
}

/// How it is decided which weights get scalar codes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "rule", deny_unknown_fields)]
#[non_exhaustive]
pub enum Assign {
    /// This share of the matrices, the most evenly spaced ones. 1 is scalar codes for all, 0 vector codes for all.
    ScalarShare {
        /// From 0 to 1.
        share: f64,
    },
    /// Those whose proxies are both below these values.
    Thresholds {
        /// Of the coarse proxy.
        coarse: f64,
        /// Of the fine proxy.
        fine: f64,
    },
    /// Those whose `max |W| √n / ‖W‖` is at most this, the rule of the published code.
    Incoherence {
        /// 8 in that code.
        most: f64,
    },
    /// This share, drawn at random: what the proxies have to beat.
    Random {
        /// From 0 to 1.
        share: f64,
        /// Of the draw.
        seed: u64,
    },
}

impl Default for Assign {
    fn default() -> Self {
        Self::ScalarShare { share: 0.9 }
    }
}

/// What happens to element-wise multipliers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Multipliers {
    /// They stay as they are.
    Keep,
    /// Coded with a code book for which all channels count alike.
    Plain,
    /// Coded with a code book for which channels count by what they are multiplied with.
    #[default]
    Weighted,
}

impl Method {
    /// The rotated vector code that this method is; `None` for other methods.
    pub(crate) fn rotated(&self) -> Option<RotatedVq> {
        match *self {
            Self::E8p(E8p { bits, feedback, damp, seed }) => {
                let book = if bits == 4 { FixedBook::E8pTwice } else { FixedBook::E8p };
                Some(RotatedVq { book, feedback, damp, seed })
            }
            Self::Pcdvq(Pcdvq {
                direction_bits,
                magnitude_bits,
                magnitude,
                max_squared_norm,
                feedback,
                damp,
                seed,
            }) => {
                let config = PolarConfig { direction_bits, magnitude_bits, magnitude, max_squared_norm };
                Some(RotatedVq { book: FixedBook::Polar(config), feedback, damp, seed })
            }
            _ => None,
        }
    }

    pub(super) fn validate_vectors(&self) -> Result<(), RecipeError> {
        let bad = |name, value: String, expected| Err(RecipeError::BadSetting { name, value, expected });
        let share = |name, share: f64| match (0.0..=1.0).contains(&share) {
            true => Ok(()),
            false => bad(name, share.to_string(), "a share from 0 to 1"),
        };
        match self {
            Self::E8p(E8p { bits, .. }) if ![2, 4].contains(bits) => bad("bits", bits.to_string(), "2 or 4"),
            Self::Kmeans(config) => check_vectors(config.dim, config.bits, 16),
            Self::Gptvq(config) => check_vectors(config.dim, config.bits, 12),
            Self::Pcdvq(Pcdvq { direction_bits, .. }) if !(4..=16).contains(direction_bits) => {
                bad("direction_bits", direction_bits.to_string(), "4 to 16")
            }
            Self::Pcdvq(Pcdvq { magnitude_bits, .. }) if *magnitude_bits > 6 => {
                bad("magnitude_bits", magnitude_bits.to_string(), "0 to 6")
            }
            Self::Rwkvquant(config) => {
                check_vectors(config.vector.dim, config.vector.bits, 12)?;
                if !(2..=6).contains(&config.order) {
                    return bad("order", config.order.to_string(), "2 to 6");
                }
                if !(1..=8).contains(&config.multiplier.bits) {
                    return bad("multiplier.bits", config.multiplier.bits.to_string(), "1 to 8");
                }
                let [low, high] = config.clip;
                if !(0.0 <= low && low <= high && high <= 1.0) {
                    return bad("clip", format!("[{low}, {high}]"), "two rising shares");
                }
                match config.assign {
                    Assign::ScalarShare { share: s } | Assign::Random { share: s, .. } => share("assign.share", s),
                    Assign::Thresholds { coarse, fine } if coarse.is_nan() || fine.is_nan() => {
                        bad("assign", "not a number".to_owned(), "two thresholds")
                    }
                    Assign::Incoherence { most } if most.is_nan() => {
                        bad("assign.most", "not a number".to_owned(), "a threshold")
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

fn check_vectors(dim: usize, bits: u32, most: u32) -> Result<(), RecipeError> {
    let bad = |name, value: String, expected| Err(RecipeError::BadSetting { name, value, expected });
    if dim == 0 || dim > vector_quant::MAX_DIM {
        return bad("dim", dim.to_string(), "1 to 16 values");
    }
    match (1..=most).contains(&bits) {
        true => Ok(()),
        false => bad("bits", bits.to_string(), if most == 16 { "1 to 16" } else { "1 to 12" }),
    }
}

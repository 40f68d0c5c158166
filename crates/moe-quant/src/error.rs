//! The crate's error type.

use crate::Block;

/// Why something about a mixture of experts was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor, a format or a product was refused.
    #[error(transparent)]
    Core(#[from] quant_core::Error),
    /// Calibration statistics were refused.
    #[error(transparent)]
    Calib(#[from] quant_calib::Error),
    /// A quantization method refused a weight.
    #[error(transparent)]
    Method(#[from] weight_quant::Error),
    /// The allocation was refused for a reason other than its budget.
    #[error(transparent)]
    Allocation(#[from] bit_allocation::Error),
    /// A slice has the wrong number of elements.
    #[error("{what} has {found} elements, expected {expected}")]
    Length {
        /// The slice.
        what: &'static str,
        /// Elements that were expected.
        expected: usize,
        /// Elements that were given.
        found: usize,
    },
    /// A mixture without experts, widths of zero, or more choices a token than experts.
    #[error(
        "a mixture of {experts} experts with {top_k} a token, {hidden} hidden and {inner} inner features is impossible"
    )]
    Mixture {
        /// Experts.
        experts: usize,
        /// Experts a token.
        top_k: usize,
        /// Width of the residual stream.
        hidden: usize,
        /// Width inside an expert.
        inner: usize,
    },
    /// A router chose an expert that does not exist.
    #[error("choice {choice} is expert {expert}, but there are {experts}")]
    NoSuchExpert {
        /// Index among all choices, `token · top_k + slot`.
        choice: usize,
        /// The expert.
        expert: usize,
        /// Experts there are.
        experts: usize,
    },
    /// A gate is negative, NaN or infinite.
    #[error("gate {choice} is {value}; gates are finite and not negative")]
    Gate {
        /// Index among all choices.
        choice: usize,
        /// The gate.
        value: f32,
    },
    /// A sensitivity is negative, NaN or infinite.
    #[error(
        "the sensitivity of {block} of expert {expert} to scheme {scheme} is {value}; it must be finite and not negative"
    )]
    Sensitivity {
        /// The expert.
        expert: usize,
        /// Its block.
        block: Block,
        /// Index of the scheme.
        scheme: usize,
        /// The value.
        value: f64,
    },
    /// There is nothing to choose from.
    #[error("no {what} given")]
    Nothing {
        /// What is missing: schemes, layers, tiles.
        what: &'static str,
    },
    /// Not even the smallest schemes fit.
    #[error(
        "the budget of {what} is {budget} bytes, but the smallest reachable size is {smallest} bytes ({smallest_bits:.4} bits a weight)"
    )]
    Budget {
        /// What the budget is for: all layers, or the layer.
        what: String,
        /// Bytes allowed.
        budget: u64,
        /// Least bytes that would do.
        smallest: u64,
        /// The same in bits a weight.
        smallest_bits: f64,
    },
    /// A budget is not a positive number.
    #[error("a budget of {bits} bits a weight is impossible")]
    Bits {
        /// The budget.
        bits: f64,
    },
    /// Time was to be looked at, but no profile was given.
    #[error("r = {r} weighs time, which needs a profile of the machine; measure one, or set r to 1")]
    NoProfile {
        /// Exponent of the loss.
        r: f64,
    },
    /// A profile was measured on another machine.
    #[error("the profile was measured on {profile}, but this is {here}; measure one here")]
    OtherMachine {
        /// Where it was measured.
        profile: String,
        /// Where it was to be used.
        here: String,
    },
    /// A profile does not know a scheme.
    #[error("the profile has no times of scheme {scheme}; it has {known}")]
    NoTimes {
        /// The scheme.
        scheme: String,
        /// Schemes it knows.
        known: String,
    },
    /// A profile contradicts itself.
    #[error("the profile is wrong about scheme {scheme}: {reason}")]
    Profile {
        /// The scheme.
        scheme: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Tiles of different schemes cannot be combined, or there are too many combinations.
    #[error("{found} combinations of tiles; between 1 and {most} can be searched")]
    Tiles {
        /// Combinations there are.
        found: usize,
        /// Combinations that are searched at most.
        most: usize,
    },
    /// An expert saw no token (of positive weight) and the policy is to refuse.
    #[error(
        "expert {expert} saw no calibration token; calibrate on more text, or choose another policy for such experts"
    )]
    Uncalibrated {
        /// The expert.
        expert: usize,
    },
    /// A setting is outside its range.
    #[error("{name} is {value}; expected {expected}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// The value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

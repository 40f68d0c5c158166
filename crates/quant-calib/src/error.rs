//! The crate's error type.

/// Why activations, statistics or a calibration set were refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An activation is NaN or infinite.
    #[error("row {row}, channel {channel} is {value}; the model that is calibrated must compute finite activations")]
    NonFinite {
        /// Token within the batch.
        row: usize,
        /// Channel of the token.
        channel: usize,
        /// The value found there.
        value: f32,
    },
    /// A batch is not whole rows.
    #[error("a batch of {found} values is not whole rows of {features} features")]
    Width {
        /// Features one row has.
        features: usize,
        /// Values given.
        found: usize,
    },
    /// The number of weights is not the number of rows.
    #[error("{rows} tokens came with {found} weights")]
    WeightCount {
        /// Rows of the batch.
        rows: usize,
        /// Weights given.
        found: usize,
    },
    /// The weight of a token is negative, NaN, infinite, or so large that the weighted row overflows.
    #[error("token {row} has the weight {value}; weights are finite, not negative, and must not make a row overflow")]
    Weight {
        /// Token within the batch.
        row: usize,
        /// The weight.
        value: f32,
    },
    /// Statistics of different widths cannot be joined.
    #[error("statistics of {found} features cannot be added to those of {features}")]
    Features {
        /// Features of the one that grows.
        features: usize,
        /// Features of the one that is added.
        found: usize,
    },
    /// Statistics that were gathered with different settings cannot be joined.
    #[error("{what}: {left} and {right} cannot be joined")]
    Settings {
        /// The setting.
        what: &'static str,
        /// Its value in the one that grows.
        left: String,
        /// Its value in the one that is added.
        right: String,
    },
    /// A matrix of this size does not fit the memory.
    #[error("a Gram matrix of {features} features does not fit the memory")]
    TooLarge {
        /// Features of the input.
        features: usize,
    },
    /// Fewer tokens than the caller asks for.
    #[error("{found} tokens were seen where at least {needed} are needed; calibrate with more text")]
    TooFewTokens {
        /// Tokens asked for.
        needed: u64,
        /// Tokens seen.
        found: u64,
    },
    /// A sketch of quantiles has at most so many bits.
    #[error("a sketch of quantiles has at most {most} bits, not {bits}")]
    SketchBits {
        /// Bits that were asked for.
        bits: u32,
        /// The most there are.
        most: u32,
    },
}

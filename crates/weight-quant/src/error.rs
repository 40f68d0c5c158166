//! The crate's error type.

use crate::gptq::Order;

/// Why a weight could not be quantized.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tensor, its format or its values were refused.
    #[error(transparent)]
    Core(#[from] quant_core::Error),
    /// A decomposition failed.
    #[error(transparent)]
    Linalg(#[from] quant_linalg::Error),
    /// Statistics and weight disagree about the number of input features.
    #[error("{what} cover {found} input features but the weight has {expected}")]
    Features {
        /// What disagrees: `gram`, `channel statistics`, `scales` …
        what: &'static str,
        /// Columns of the weight.
        expected: usize,
        /// Features of the statistics.
        found: usize,
    },
    /// No weight was given.
    #[error("a group of linear layers needs at least one weight")]
    NoWeights,
    /// A method that cannot fall back was given statistics without tokens.
    #[error("the statistics have seen no token with a weight above zero")]
    NoTokens,
    /// A statistic is negative, NaN or infinite.
    #[error("{what} of channel {channel} is {value}; it must be finite and not negative")]
    BadStatistic {
        /// The statistic.
        what: &'static str,
        /// Index of the input channel.
        channel: usize,
        /// The value found there.
        value: f64,
    },
    /// A number in a configuration lies outside its range.
    #[error("{option} is {value}; it must be {limits}")]
    Config {
        /// Name of the option.
        option: &'static str,
        /// The value that was given.
        value: f64,
        /// What is allowed.
        limits: &'static str,
    },
    /// Groups in the order of quantization would need an index of groups beside the weight, which packed tensors do
    /// not have.
    #[error(
        "order {order:?} with dynamic groups of {format} would need a stored group index; choose static groups or the \
         order `group-aware`"
    )]
    NeedsGroupIndex {
        /// The order.
        order: Order,
        /// The format, as text.
        format: String,
    },
    /// The Hessian-weighted clip search looks at the columns of a group when the sweep reaches them; static groups
    /// are fitted before.
    #[error("the Hessian-weighted clip search needs dynamic groups, but the groups of {format} are static here")]
    ClipNeedsDynamicGroups {
        /// The format, as text.
        format: String,
    },
    /// A clip search by groups was asked for blocks that span rows.
    #[error("clips are searched by row and group, but blocks of {format} span several rows")]
    BlocksSpanRows {
        /// The format, as text.
        format: String,
    },
    /// A group does not hold whole code vectors.
    #[error("columns {start}..{end} are not whole vectors of {width} columns")]
    Width {
        /// First column of the group.
        start: usize,
        /// One past its last column.
        end: usize,
        /// Columns that one code covers.
        width: usize,
    },
    /// A scheme of columns does not cover the weight.
    #[error("groups end at column {found} but the weight has {expected} columns")]
    Groups {
        /// Columns of the weight.
        expected: usize,
        /// End of the last group, or the first end that does not rise.
        found: usize,
    },
    /// No damping up to the largest made the Hessian positive definite.
    #[error("the Hessian is not positive definite even with {damp} of its mean diagonal added")]
    NotPositiveDefinite {
        /// The largest damping that was tried.
        damp: f64,
    },
    /// Compensated weights left the range of f32.
    #[error("the compensated weights of row {row} are not finite; raise the damping")]
    Diverged {
        /// Row of the weight.
        row: usize,
    },
}

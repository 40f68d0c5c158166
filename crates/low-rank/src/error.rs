//! Why a factorization was refused.

/// What is wrong with a weight, its statistics or the settings.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The weight is not a matrix.
    #[error("a weight [out, in] is needed, not a tensor of shape {shape:?}")]
    NotAMatrix {
        /// Shape that was given.
        shape: Vec<usize>,
    },
    /// Statistics were gathered for another width.
    #[error("{what} describe {found} features but the weight has {expected}")]
    Features {
        /// Which statistics.
        what: &'static str,
        /// Features of the weight.
        expected: usize,
        /// Features of the statistics.
        found: usize,
    },
    /// The method needs statistics that were not given.
    #[error("{method} needs {what}, which calibration did not gather")]
    Missing {
        /// The method.
        method: &'static str,
        /// The statistics.
        what: &'static str,
    },
    /// Nothing was seen in calibration, or nothing but zeros.
    #[error("{what} are zero in every channel: calibration saw no token, or none that reaches this layer")]
    AllZero {
        /// Which statistics.
        what: &'static str,
    },
    /// A statistic is NaN, infinite or negative.
    #[error("{what}: entry {index} is {value}; entries are finite and not negative")]
    Statistic {
        /// Which statistics.
        what: &'static str,
        /// Row-major position of the first such entry.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// The Gram matrix has a negative eigenvalue that rounding does not explain.
    #[error("the Gram matrix is indefinite: eigenvalue {least:e} beside a largest of {largest:e}")]
    Indefinite {
        /// Least eigenvalue.
        least: f64,
        /// Largest eigenvalue.
        largest: f64,
    },
    /// The rank is 0 or larger than the matrix allows.
    #[error("rank {rank} was asked of a {rows}×{columns} weight; it must lie between 1 and the smaller side")]
    Rank {
        /// Rank that was asked for.
        rank: usize,
        /// Rows of the weight.
        rows: usize,
        /// Columns of the weight.
        columns: usize,
    },
    /// A ratio is not a share.
    #[error("a kept share lies above 0 and is at most 1, but {kept} would be kept")]
    Ratio {
        /// What would be kept.
        kept: f64,
    },
    /// Even the smallest choice keeps more than was asked.
    #[error("{kept} cannot be kept: the smallest choice keeps {smallest}")]
    Unreachable {
        /// The share that was asked for.
        kept: f64,
        /// The smallest share there is.
        smallest: f64,
    },
    /// A setting lies outside its range.
    #[error("{setting} is {value}, expected {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Value given.
        value: f64,
        /// What would be right.
        expected: &'static str,
    },
    /// A factor has a value that its format cannot hold.
    #[error("a factor holds {value:e}, more than {format} can store; choose bf16, f32 or a format with scales")]
    FactorRange {
        /// Largest magnitude of the factor.
        value: f32,
        /// The format.
        format: quant_core::Format,
    },
    /// Two linears cannot be chained or added.
    #[error("linears of {left:?} and {right:?} (out, in) do not fit together")]
    Mismatch {
        /// Shape of the left or first one.
        left: (usize, usize),
        /// Shape of the right or second one.
        right: (usize, usize),
    },
    /// Rows cannot be cut into heads, or heads into groups.
    #[error("{rows} rows cannot be cut into {heads} heads in groups of {group}")]
    Heads {
        /// Rows of the weight.
        rows: usize,
        /// Heads that were asked for.
        heads: usize,
        /// Heads a group.
        group: usize,
    },
    /// No Hadamard matrix of this order is known.
    #[error("a latent of width {width} cannot be rotated: no Hadamard matrix of this order is known")]
    Hadamard {
        /// Width of the latent.
        width: usize,
    },
    /// Ranks with the required minimum and maximum cannot add up to the total.
    #[error("ranks cannot add up to {total}: they reach from {least} to {most} together")]
    TotalRank {
        /// Total that was asked for.
        total: usize,
        /// Sum of the least ranks.
        least: usize,
        /// Sum of the largest ranks.
        most: usize,
    },
    /// A candidate of a search names a layer that does not exist, or has no score.
    #[error("candidate {candidate} names layer {layer} of {layers} with score {score}")]
    Candidate {
        /// Position of the candidate.
        candidate: usize,
        /// Layer it names.
        layer: usize,
        /// Number of layers.
        layers: usize,
        /// Its score.
        score: f64,
    },
    /// Training took a wrong turn.
    #[error("the loss is {loss} after pass {epoch}; a smaller learning rate may help")]
    Diverged {
        /// Pass, from 0.
        epoch: usize,
        /// The loss.
        loss: f64,
    },
    /// A tensor, a format or a product was refused.
    #[error(transparent)]
    Core(#[from] quant_core::Error),
    /// A decomposition was refused.
    #[error(transparent)]
    Linalg(#[from] quant_linalg::Error),
    /// An allocation was refused.
    #[error(transparent)]
    Allocation(#[from] bit_allocation::Error),
}

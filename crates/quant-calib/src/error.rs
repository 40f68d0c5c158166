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
    /// A batch of a named input was refused.
    #[error("input {name}, batch {batch}: {source}")]
    Input {
        /// The linear, layer or cache whose input it is.
        name: String,
        /// Batches of this input that were added before.
        batch: u64,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// Nothing was declared under this name.
    #[error("nothing is gathered for {name}; declare it before calibration runs")]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// A name was declared before in another way, or tokens were already gathered for it.
    #[error("{name} cannot be declared: {reason}")]
    Declared {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A router that sends each token to no expert, or to more than there are.
    #[error("a router cannot choose {top_k} of {experts} experts")]
    Router {
        /// Experts of the layer.
        experts: usize,
        /// Experts a token is sent to.
        top_k: usize,
    },
    /// A token is sent to an expert that does not exist.
    #[error("token {row} is sent to expert {expert}; the layer has {experts}")]
    Expert {
        /// Token within the batch.
        row: usize,
        /// Expert it is sent to.
        expert: u32,
        /// Experts of the layer.
        experts: usize,
    },
    /// A token is sent to one expert twice.
    #[error("token {row} is sent to expert {expert} twice")]
    RepeatedExpert {
        /// Token within the batch.
        row: usize,
        /// The expert.
        expert: u32,
    },
    /// A calibration set without tokens.
    #[error("a calibration set needs at least one window, and each at least one token; window {window} is empty")]
    EmptySet {
        /// The first empty window; 0 for a set without windows.
        window: usize,
    },
    /// A text is too short for the windows that are to be cut from it.
    #[error("{found} tokens are too few: {windows} windows of {length} need {needed}")]
    ShortText {
        /// Windows asked for.
        windows: usize,
        /// Tokens in each.
        length: usize,
        /// Tokens needed.
        needed: usize,
        /// Tokens given.
        found: usize,
    },
    /// A token is not in the model's vocabulary.
    #[error(
        "window {window}, position {position}: token {token} is not below {vocabulary}, the size of the vocabulary"
    )]
    Token {
        /// The window.
        window: usize,
        /// Position within the window.
        position: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The hash that was stored with a calibration set is not that of its tokens.
    #[error("the calibration set has the hash {found:016x}, but {expected:016x} was stored with it")]
    Hash {
        /// Stored.
        expected: u64,
        /// Computed.
        found: u64,
    },
    /// Saved statistics cannot be read, or cannot be what calibration gives.
    #[error("saved statistics, {item}: {reason}")]
    Stored {
        /// The tensor or entry.
        item: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Names the input and the batch.
    pub(crate) fn of_input(self, name: &str, batch: u64) -> Self {
        Self::Input { name: name.to_owned(), batch, source: Box::new(self) }
    }
}

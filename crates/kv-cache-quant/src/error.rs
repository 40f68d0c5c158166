//! The crate's error type.

/// Which of the two streams of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Keys.
    Keys,
    /// Values.
    Values,
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Keys => "keys",
            Self::Values => "values",
        })
    }
}

/// Why a cache refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice has another length than the geometry asks for.
    #[error("{what}: {found} elements, expected {expected}")]
    Shape {
        /// What was given.
        what: &'static str,
        /// Elements that were expected; of several tokens, a multiple of it.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// A row holds NaN or infinity.
    #[error("{stream}: token {token}, channel {channel} is {value}")]
    NonFinite {
        /// Keys or values.
        stream: Stream,
        /// Token within the call.
        token: usize,
        /// Channel within the token.
        channel: usize,
        /// The value.
        value: f32,
    },
    /// A row holds a value that the type of unsealed rows cannot represent.
    #[error("{stream}: token {token}, channel {channel} is {value}; rows are kept in a type that ends at {limit}")]
    OutOfRange {
        /// Keys or values.
        stream: Stream,
        /// Token within the call.
        token: usize,
        /// Channel within the token.
        channel: usize,
        /// The value.
        value: f32,
        /// The largest magnitude that can be kept.
        limit: f32,
    },
    /// A parameter has a value that nothing can be done with.
    #[error("{what} is {found}; supported: {supported}")]
    Unsupported {
        /// The parameter.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would have been accepted.
        supported: &'static str,
    },
    /// A parameter made for one number of channels is used with another.
    #[error("{what} is made for {found} channels, the cache has {expected}")]
    Width {
        /// The parameter.
        what: &'static str,
        /// Channels of the cache.
        expected: usize,
        /// Channels the parameter was made for.
        found: usize,
    },
    /// A method that lives on calibration was given none.
    #[error("{stream}: the method needs statistics of calibration")]
    Statistics {
        /// Keys or values.
        stream: Stream,
    },
    /// A list of channels names one twice or one that does not exist.
    #[error("entry {at} of the permutation is {channel}: not each of {channels} channels once")]
    Permutation {
        /// Place in the list.
        at: usize,
        /// The channel named there.
        channel: usize,
        /// Number of channels.
        channels: usize,
    },
    /// A static scale or shift is not usable.
    #[error("{what} of channel {channel} is {value}; it must be finite{}", if *positive { " and positive" } else { "" })]
    Parameter {
        /// Which parameter.
        what: &'static str,
        /// The channel.
        channel: usize,
        /// Its value.
        value: f32,
        /// Whether it also has to be positive.
        positive: bool,
    },
    /// A position lies outside of the rotary table, or would become negative.
    #[error("position {position} is outside of the rotary table's {limit} positions")]
    Position {
        /// The position.
        position: i64,
        /// Positions in the table.
        limit: usize,
    },
    /// A range of tokens does not lie within the cache.
    #[error("tokens {start}..{end} are not within the {len} tokens held")]
    Tokens {
        /// First token.
        start: usize,
        /// One past the last token.
        end: usize,
        /// Tokens held.
        len: usize,
    },
    /// Tokens that were sealed together cannot be evicted one by one.
    #[error("tokens {start}..{end} cut units of {unit} tokens that were sealed together from token {first} on")]
    Granularity {
        /// First token.
        start: usize,
        /// One past the last token.
        end: usize,
        /// Tokens of a unit.
        unit: usize,
        /// The token where units begin.
        first: usize,
    },
    /// The tokens do not fit into the byte budget at the least width.
    #[error("the cache would take {need} bytes at its least width, the budget is {have}")]
    Budget {
        /// Bytes needed.
        need: u64,
        /// Bytes allowed.
        have: u64,
    },
    /// A token could not be encoded.
    #[error("{stream}: {source}")]
    Encode {
        /// Keys or values.
        stream: Stream,
        /// Why.
        source: quant_core::Error,
    },
    /// A format contradicts itself, or stored codes cannot be read with it.
    #[error(transparent)]
    Format(#[from] quant_core::Error),
    /// The bytes are not a saved cache.
    #[error("not a saved cache: {what}")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
    },
    /// A saved cache was made with other parameters.
    #[error("the saved cache has {field} = {found}, this one has {expected}")]
    HeaderMismatch {
        /// The parameter.
        field: &'static str,
        /// This cache's value.
        expected: String,
        /// The saved one.
        found: String,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A decomposition of calibration data was refused.
    #[error(transparent)]
    Linalg(#[from] quant_linalg::Error),
    /// No widths fit the budget.
    #[error(transparent)]
    Allocation(#[from] bit_allocation::Error),
}

//! The crate's error type.

/// Why an operation on tensors, formats or packed bytes was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An element is NaN or infinite.
    #[error("element {index} is {value}; only finite values can be quantized")]
    NonFinite {
        /// Row-major position of the first offender.
        index: usize,
        /// The value found there.
        value: f64,
    },
    /// A finite f64 element lies outside the range of f32, in which all formats compute.
    #[error("element {index} = {value:e} exceeds the f32 range in which formats compute")]
    OutOfRange {
        /// Row-major position of the first offender.
        index: usize,
        /// The value found there.
        value: f64,
    },
    /// A slice does not hold what its shape and strides say.
    #[error("shape {shape:?} needs {expected} elements but {found} were given")]
    Shape {
        /// The shape that was asked for.
        shape: Vec<usize>,
        /// Elements the shape (and strides) reach.
        expected: usize,
        /// Elements in the slice.
        found: usize,
    },
    /// Shape and strides differ in rank.
    #[error("shape {shape:?} and strides {strides:?} have different ranks")]
    Rank {
        /// The shape that was asked for.
        shape: Vec<usize>,
        /// The strides that were asked for.
        strides: Vec<isize>,
    },
    /// The product of the dimensions, or the bytes it needs, overflows `usize`.
    #[error("a tensor of shape {shape:?} does not fit the address space")]
    SizeOverflow {
        /// The shape that was asked for.
        shape: Vec<usize>,
    },
    /// A tensor without elements cannot be quantized.
    #[error("a tensor of shape {shape:?} has no elements to quantize")]
    Empty {
        /// The offending shape.
        shape: Vec<usize>,
    },
    /// The input of a product is not whole rows.
    #[error("an input of {found} elements is not whole rows of {in_features} features")]
    Features {
        /// Features one row has.
        in_features: usize,
        /// Elements given.
        found: usize,
    },
    /// An output slice has the wrong length.
    #[error("the output holds {found} elements but {expected} are produced")]
    OutputLen {
        /// Elements that are produced.
        expected: usize,
        /// Elements the slice holds.
        found: usize,
    },
    /// Two slices that are compared element by element differ in length.
    #[error("{left} elements cannot be compared with {right}")]
    LengthMismatch {
        /// Elements of the first slice.
        left: usize,
        /// Elements of the second slice.
        right: usize,
    },
    /// The order of a norm is not a finite number from 1 on.
    #[error("there is no norm of order {p}; it must be finite and at least 1")]
    NormOrder {
        /// The order that was asked for.
        p: f64,
    },
    /// A row index lies outside the tensor.
    #[error("row {row} does not exist; the tensor has {rows} rows")]
    Row {
        /// Index that was asked for.
        row: usize,
        /// Rows in the tensor.
        rows: usize,
    },
    /// A format name does not parse.
    #[error("unknown format {name:?}: {reason}; `leanbits formats` lists the named ones")]
    UnknownFormat {
        /// The text that was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The parts of a format contradict each other.
    #[error("format {format}: {reason}")]
    InvalidFormat {
        /// The format, as text.
        format: String,
        /// The contradiction.
        reason: &'static str,
    },
    /// A section of packed bytes has the wrong length.
    #[error("section {section} of a {format} tensor of shape {shape:?} has {found} bytes, expected {expected}")]
    SectionLen {
        /// `codes`, `scales`, `zeros` or `second`.
        section: &'static str,
        /// The format, as text.
        format: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Bytes the layout asks for.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// Codes of this width do not exist.
    #[error("codes have 1 to 16 bits, not {bits}")]
    CodeBits {
        /// The width that was asked for.
        bits: u32,
    },
    /// A bit stream is too short.
    #[error("{count} packed codes take {expected} bytes but {found} were given")]
    PackedLen {
        /// Codes that were asked for.
        count: usize,
        /// Bytes they take.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// A code is not one of the format's.
    #[error("code {code} at position {index} is not below {limit}, the number of codes of the format {format}")]
    Code {
        /// Row-major position of the code.
        index: usize,
        /// The code.
        code: u16,
        /// Number of codes.
        limit: u32,
        /// The format, as text.
        format: String,
    },
    /// The number of block parameters is not the number of blocks.
    #[error("a {format} tensor of shape {shape:?} has {expected} blocks but parameters of {found} were given")]
    Blocks {
        /// The format, as text.
        format: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Blocks of the tensor.
        expected: usize,
        /// Parameters that were given.
        found: usize,
    },
    /// A tensor cannot be arranged for fast products.
    #[error("{format} cannot be arranged for fast products: {reason}")]
    Prepare {
        /// Name of the format.
        format: String,
        /// Why not.
        reason: &'static str,
    },
    /// Dropping bits is defined only for formats whose codes nest.
    #[error("{format} cannot be cut to {bits} magnitude bits: {reason}")]
    Truncate {
        /// The format, as text.
        format: String,
        /// Bits that were asked for.
        bits: u8,
        /// Why not.
        reason: &'static str,
    },
    /// A stored scale is NaN, infinite or a reserved code.
    #[error("the scale of block {block} is {value}, which no encoder writes")]
    ReservedScale {
        /// Index of the block.
        block: usize,
        /// The decoded scale.
        value: f32,
    },
    /// A scale exceeds the type it is stored in.
    #[error(
        "block {block} needs the scale {value:e}, more than its stored type can hold; choose a wider scale such as `-f32`"
    )]
    ScaleOverflow {
        /// Index of the block.
        block: usize,
        /// The scale before rounding.
        value: f32,
    },
}

impl Error {
    /// Moves the block index of a per-block error by `first`, so that errors found in one row
    /// name the block of the whole tensor.
    pub(crate) fn offset_block(self, first: usize) -> Self {
        match self {
            Self::ScaleOverflow { block, value } => Self::ScaleOverflow { block: block + first, value },
            Self::ReservedScale { block, value } => Self::ReservedScale { block: block + first, value },
            other => other,
        }
    }
}

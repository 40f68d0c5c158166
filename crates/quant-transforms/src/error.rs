//! The crate's error type.

/// Why a transform was not built, applied or folded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Values are not whole rows of the transform's size.
    #[error("{found} values are not whole rows of {size}, the size of the transform")]
    Rows {
        /// Size of the transform.
        size: usize,
        /// Values given.
        found: usize,
    },
    /// No Hadamard matrix of this order is constructed here.
    #[error("no Hadamard matrix of order {size} is known here; use blocks of {block}, or another size of block")]
    NoHadamard {
        /// The order that was asked for.
        size: usize,
        /// The largest power of two that divides it.
        block: usize,
    },
    /// Blocks do not divide the size, or nothing has to be transformed.
    #[error("{size} channels cannot be cut into blocks of {block}")]
    Blocks {
        /// Size of the transform.
        size: usize,
        /// Size of a block.
        block: usize,
    },
    /// A matrix that should be orthogonal is not.
    #[error("the matrix is not orthogonal: an element of TᵀT − I is {deviation:e}, more than {limit:e}")]
    NotOrthogonal {
        /// Largest magnitude in `TᵀT − I`; infinite when an element is not a number.
        deviation: f64,
        /// What is allowed.
        limit: f64,
    },
    /// A matrix that should be square is not.
    #[error("a transform is square, not {rows}×{columns}")]
    NotSquare {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// A scale is zero, negative, NaN or infinite.
    #[error("scale {index} is {value}; scales are positive and finite")]
    Scale {
        /// Position of the scale.
        index: usize,
        /// The scale.
        value: f32,
    },
    /// A list is not a permutation.
    #[error("position {index} of the permutation is {value}, which is out of range or occurs before")]
    Permutation {
        /// Position in the list.
        index: usize,
        /// What stands there.
        value: u32,
    },
    /// The number of vectors, scales or heads does not fit a weight.
    #[error("{name} has {found} {what}, but {expected} are needed")]
    Count {
        /// The weight.
        name: String,
        /// What is counted.
        what: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A weight's values do not fill its shape.
    #[error("{name} is {rows}×{columns} but has {found} values")]
    Shape {
        /// The weight.
        name: String,
        /// Output features.
        rows: usize,
        /// Input features.
        columns: usize,
        /// Values given.
        found: usize,
    },
    /// A value of a weight is NaN or infinite, or overflows when it is folded.
    #[error("{name}: element {index} is {value}, or became so by folding")]
    NonFinite {
        /// The weight.
        name: String,
        /// Row-major position.
        index: usize,
        /// The value.
        value: f64,
    },
    /// Query heads are not a multiple of the key-value heads, or a number of heads is zero.
    #[error("{heads} query heads of {head_dim} cannot share {kv_heads} key-value heads")]
    Heads {
        /// Query heads.
        heads: usize,
        /// Key-value heads.
        kv_heads: usize,
        /// Channels of a head.
        head_dim: usize,
    },
    /// The two channels that rotary positions turn into each other have different scales.
    #[error("channels {first} and {second} are turned into each other by rotary positions but have scales {a} and {b}")]
    RopePair {
        /// Channel of the first scale.
        first: usize,
        /// Its partner.
        second: usize,
        /// Scale of the first.
        a: f32,
        /// Scale of the second.
        b: f32,
    },
    /// A place that only admits rotations was given another transform.
    #[error("{place} admits only orthogonal transforms, since {reason}")]
    RotationNeeded {
        /// The place.
        place: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// Folding changed the function.
    #[error("the folded model differs by {found:e}, relative to the output, more than {tolerance:e}")]
    NotTheSame {
        /// Relative error found.
        found: f64,
        /// Relative error allowed.
        tolerance: f64,
    },
    /// A decomposition failed.
    #[error(transparent)]
    Linalg(#[from] quant_linalg::Error),
}

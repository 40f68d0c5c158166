//! The crate's error type.

/// Why vector quantization was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor or a product of `quant-core` was refused.
    #[error(transparent)]
    Core(#[from] quant_core::Error),
    /// A decomposition failed.
    #[error(transparent)]
    Linalg(#[from] quant_linalg::Error),
    /// A rotation was refused.
    #[error(transparent)]
    Transform(#[from] quant_transforms::Error),
    /// GPTQ's sweep was refused.
    #[error(transparent)]
    Sweep(#[from] weight_quant::Error),
    /// Calibration saw no token of these inputs.
    #[error("no calibration token reached this weight; code it without feedback, or calibrate on more text")]
    NoTokens,
    /// Values and shape do not belong together.
    #[error("the values are not those of a matrix of {rows} rows and {columns} columns")]
    Shape {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// Vectors of this many dimensions are not supported.
    #[error("code vectors have 1 to {most} dimensions here, not {dim}")]
    Dimension {
        /// Dimensions asked for.
        dim: usize,
        /// Most that are supported.
        most: usize,
    },
    /// Rows cannot be cut into whole vectors.
    #[error("{what} of {len} values cannot be cut into vectors of {dim}; pick a dimension that divides")]
    NotDivisible {
        /// What was to be cut: a row, a list of points, a group.
        what: &'static str,
        /// Values in it.
        len: usize,
        /// Values of one vector.
        dim: usize,
    },
    /// There are fewer points than centroids, or none of either.
    #[error("{points} points cannot be clustered into {centroids} centroids; lower the bits or give more points")]
    TooFewPoints {
        /// Points given.
        points: usize,
        /// Centroids asked for.
        centroids: usize,
    },
    /// A value is NaN or infinite.
    #[error("{what} {index} is {value}; only finite values can be quantized")]
    NonFinite {
        /// What the value belongs to.
        what: &'static str,
        /// Position of the first offender.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A weight is negative or not finite.
    #[error("weight {index} is {value}; weights are finite and not negative")]
    Weight {
        /// Position of the first offender.
        index: usize,
        /// The weight.
        value: f32,
    },
    /// Two things that belong together differ in number.
    #[error("{what}: {found} were given but {expected} are needed")]
    Count {
        /// What was counted.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A number of bits or a setting lies outside what is defined.
    #[error("{what} is {found}; it must lie in {least}..={most}")]
    Setting {
        /// Name of the setting.
        what: &'static str,
        /// The value given.
        found: f64,
        /// Least value allowed.
        least: f64,
        /// Greatest value allowed.
        most: f64,
    },
    /// The candidates do not suffice for a code book of this size.
    #[error("a code book of {wanted} directions needs more than the {available} of E8 up to squared norm {limit}")]
    Candidates {
        /// Directions asked for.
        wanted: usize,
        /// Directions there are.
        available: usize,
        /// The squared norm up to which points were taken.
        limit: u32,
    },
    /// A stored code lies outside its code book.
    #[error("vector {index} has the code {code}, but the code book has {entries} entries")]
    Code {
        /// Position of the vector, row-major.
        index: usize,
        /// The stored code.
        code: u32,
        /// Entries of the code book.
        entries: u32,
    },
}

/// Refuses NaN and infinite values.
pub(crate) fn finite(what: &'static str, values: &[f32]) -> Result<(), Error> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(Error::NonFinite { what, index, value: values[index] }),
        None => Ok(()),
    }
}

/// Refuses a setting outside its range.
pub(crate) fn within(what: &'static str, found: f64, least: f64, most: f64) -> Result<(), Error> {
    if (least..=most).contains(&found) { Ok(()) } else { Err(Error::Setting { what, found, least, most }) }
}

//! Why a decomposition was refused.

/// What is wrong with a matrix, or with what was asked of it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A matrix without elements has no decomposition.
    #[error("a {rows}×{columns} matrix has no elements to decompose")]
    Empty {
        /// Rows that were given.
        rows: usize,
        /// Columns that were given.
        columns: usize,
    },
    /// The decomposition is defined for square matrices only.
    #[error("a square matrix is needed, not {rows}×{columns}")]
    NotSquare {
        /// Rows that were given.
        rows: usize,
        /// Columns that were given.
        columns: usize,
    },
    /// An element is NaN or infinite.
    #[error("element ({row}, {column}) of the matrix is NaN or infinite")]
    NonFinite {
        /// Row of the first such element.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// The matrix is not positive definite to working precision.
    #[error("the matrix is not positive definite: the elimination breaks down at pivot {pivot}")]
    NotPositiveDefinite {
        /// Row, in the matrix as given, whose remaining diagonal is not positive.
        pivot: usize,
    },
    /// A triangular matrix has a zero on its diagonal.
    #[error("the triangular matrix is singular: diagonal element {index} is zero")]
    Singular {
        /// Position of the first zero.
        index: usize,
    },
    /// The right-hand side of a system has another number of rows than its matrix.
    #[error("the right-hand side has {found} rows but the matrix has {expected}")]
    RightHandSide {
        /// Rows of the matrix.
        expected: usize,
        /// Rows of the right-hand side.
        found: usize,
    },
    /// The rank is 0 or larger than the matrix allows.
    #[error("rank {rank} was asked of a {rows}×{columns} matrix; it must lie between 1 and the smaller side")]
    Rank {
        /// The rank that was asked for.
        rank: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// The result does not fit in f64, although every element does.
    #[error("the elements are so large that the result overflows; divide the matrix by its largest magnitude first")]
    Overflow,
    /// The iteration for singular values or eigenvalues did not end.
    #[error("the iteration did not converge on a {rows}×{columns} matrix")]
    NoConvergence {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// No LAPACK was found.
    #[cfg(feature = "lapack")]
    #[error("no LAPACK library among {tried}; name one in LEANBITS_LAPACK")]
    NoLapack {
        /// Files that were looked for.
        tried: String,
    },
}

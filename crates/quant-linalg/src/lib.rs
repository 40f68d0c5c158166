//! Decompositions for quantization methods: deterministic, on [faer](https://docs.rs/faer), in f64 but for
//! [`randomized_svd_f32`].
//!
//! Matrices come in as [`ndarray`] views of any layout and go out as row-major arrays. What GPTQ divides by, what low-rank methods
//! truncate and what rotations are drawn from is computed here and nowhere else.
//!
//! ```
//! use ndarray::Array2;
//! use quant_linalg::{gaussian, reversed_cholesky};
//!
//! // The Gram matrix of 200 tokens with 16 features, and the factor of its inverse: H⁻¹ = Uᵀ U.
//! let x = gaussian(200, 16, 1);
//! let h = x.t().dot(&x);
//! let u = reversed_cholesky(h.view())?;
//! let error = u.t().dot(&u).dot(&h) - Array2::<f64>::eye(16);
//! assert!(error.iter().all(|error| error.abs() < 1e-12));
//! # Ok::<(), quant_linalg::Error>(())
//! ```
//!
//! | function | result |
//! |---|---|
//! | [`cholesky`] | lower `L` with `A = L Lᵀ` |
//! | [`reversed_cholesky`] | upper `U` with `H⁻¹ = Uᵀ U`, GPTQ's factor |
//! | [`eigh`] | eigenvalues and eigenvectors of a symmetric matrix |
//! | [`svd`], [`randomized_svd`], [`randomized_svd_f32`] | the thin decomposition, and the largest part of it |
//! | [`qr`], [`random_orthogonal`] | orthonormal bases; rotations drawn uniformly |
//! | [`solve_lower`], [`solve_upper`], [`invert_lower`] | triangular systems |
//! | [`matmul`], [`add_matmul`] | products in f32 and f64 |
//!
//! With the feature `lapack` the module `lapack` (on Unix) has the decompositions of whatever LAPACK the machine has, to compare with.
//! It is found at run time; nothing is linked.
//!
//! # Promises
//!
//! The bits of a result do not depend on the number of threads: decompositions run on one thread inside, or are cut
//! into parts at places that depend on the shape alone and shared out over the current rayon pool. They are the
//! same on machines whose vector registers are equally wide (and have FMA); on others the last digits may differ, since
//! faer sums in as many lanes as a register has. Random matrices come from ChaCha8 streams of a seed.
//!
//! An element that is NaN or infinite is an [`Error`], and so is a result that overflows.

#![cfg_attr(not(feature = "lapack"), forbid(unsafe_code))]
#![deny(unsafe_code)]

mod cholesky;
mod eigen;
mod error;
#[cfg(all(feature = "lapack", unix))]
pub mod lapack;
mod orthogonal;
mod product;
mod randomized;
mod svd;
mod triangular;
mod view;

pub use cholesky::{cholesky, reversed_cholesky};
pub use eigen::{Eigh, eigh};
pub use error::Error;
pub use orthogonal::{Qr, gaussian, qr, random_orthogonal};
pub use product::{Real, add_matmul, matmul};
pub use randomized::{RandomizedSvd, randomized_svd, randomized_svd_f32};
pub use svd::{Svd, svd};
pub use triangular::{invert_lower, solve_lower, solve_upper};

/// Rows or columns below which a part of the work is not split again.
const LEAF: usize = 256;

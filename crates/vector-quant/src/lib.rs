//! Vector quantization of weights: one code for several values, below three bits a weight.
//!
//! | method | function | code book | source |
//! |---|---|---|---|
//! | k-means | [`kmeans_vq()`] | learned, per matrix or group | generalized Lloyd algorithm |
//! | GPTVQ | [`gptvq()`] | learned in GPTQ's sweep, one byte a value | arXiv 2402.15319 |
//! | E8P | [`rotated_vq()`] with [`FixedBook::E8p`]; [`E8P`], [`Residual`] | 2^16 points of a lattice, from a table of 256 patterns | arXiv 2402.04396 |
//! | PCDVQ | [`rotated_vq()`] with [`FixedBook::Polar`]; [`PolarCodec`] | directions of E8 and lengths of the chi distribution | arXiv 2506.05432 |
//! | RWKVQuant | [`rwkvquant`] | scalar or vector codes by two proxies; multipliers | arXiv 2505.03803 |
//!
//! What comes out is a [`VqLinear`], which multiplies without a dense copy and counts its code books in its footprint.
//!
//! ```
//! use quant_core::{Linear, Shaped, metrics::sqnr_db};
//! use vector_quant::{KMeansVq, kmeans_vq};
//!
//! let weights: Vec<f32> = (0..64 * 256).map(|i| (i as f32 * 0.37).sin() * (i as f32 * 0.011).cos()).collect();
//! let matrix = Shaped::new(&weights, &[64, 256])?;
//! let coded = kmeans_vq(&matrix, None, &KMeansVq { dim: 2, bits: 6, ..KMeansVq::default() })?;
//! let bits = coded.footprint().bits_per_element();
//! assert!(bits < 3.2, "six bits for two weights, and the code book: {bits}");
//! assert!(sqnr_db(&weights, &coded.to_dense()?)? > 15.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Promises
//!
//! The same bytes for any number of threads: sums that decide are formed in a fixed order, and distances by fused
//! operations that round alike everywhere. Ties go to the lowest index. Random choices follow from a seed (ChaCha8).
//! Values that are not finite, dimensions that do not divide and code books that are too large are errors.

#![forbid(unsafe_code)]

mod book;
mod codec;
mod directions;
mod e8p;
mod error;
mod gptvq;
mod kmeans;
mod kmeans_vq;
mod lattice;
mod linear;
mod magnitude;
mod nearest;
mod plus_plus;
mod polar;
mod product;
mod rotated;
pub mod rwkvquant;
mod sizes;

pub use book::{BookType, LearnedBook};
pub use codec::{Residual, VectorCodec};
pub use directions::Directions;
pub use e8p::E8P;
pub use error::Error;
pub use gptvq::{Gptvq, GptvqConfig, gptvq};
pub use kmeans::{Clustering, Init, KMeans, MAX_DIM, Weights, kmeans};
pub use kmeans_vq::{KMeansVq, kmeans_vq};
pub use lattice::{MAX_SQUARED_NORM, e8_directions, e8_shell};
pub use linear::{Books, BooksHeader, LearnedBooks, OwnedParts, Parts, VqLinear};
pub use magnitude::{LloydMax, chi_lloyd_max};
pub use polar::{Magnitude, PolarCodec, PolarConfig};
pub use rotated::{FixedBook, Rotated, RotatedVq, rotated_vq};
pub use sizes::PartSizes;

/// The examples of this crate's page in the book.
#[cfg(doctest)]
mod outside {
    #[doc = include_str!("../../../docs/src/vector-quant.md")]
    struct Page;
}

//! Changes of basis that keep what a model computes: Hadamard, rotation, smoothing, permutation.
//!
//! ```
//! use quant_transforms::{Hadamard, RandomizedHadamard, Transform, Weight};
//!
//! // A residual stream of 1536 = 12 · 128 channels is rotated; what reads it is folded once.
//! let rotation = Transform::from(RandomizedHadamard::new(Hadamard::new(1536)?, 0));
//! let (mut x, mut w) = (vec![0.01_f32; 1536], vec![0.5_f32; 1536]);
//! x[7] = 100.0; // an outlier
//! rotation.apply(&mut x)?;
//! rotation.fold_input(&mut Weight::new("up_proj", &mut w, [1, 1536])?)?;
//!
//! assert!(x.iter().all(|v| v.abs() < 4.0)); // it is spread over all channels
//! let y: f32 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
//! assert!((y - (50.0 + 0.5 * 15.35)).abs() < 1e-2); // and the output is what it was
//! # Ok::<(), quant_transforms::Error>(())
//! ```
//!
//! | item | what |
//! |---|---|
//! | [`Hadamard`], [`RandomizedHadamard`] | fast transforms of `m · 2ᵏ` channels, or in blocks |
//! | [`Orthogonal`] | random rotations, Karhunen–Loève, any orthogonal matrix |
//! | [`Diagonal`], [`Permutation`], [`Chain`] | smoothing, reordering, one after the other |
//! | [`Transform`] | any of them: on rows, in place, both ways; folded into a [`Weight`] |
//! | [`model`] | folding into norms, residual streams, heads and pairs of linears |
//! | [`Rope`] | scales that rotary positions respect |
//! | [`TransformedLinear`] | a linear behind a transform that is computed when it runs |
//! | [`SameFunction`] | whether a folded model computes what it did |
//!
//! # Promises
//!
//! Folding computes in f64 and rounds each weight once. Results do not depend on the number of threads. Random signs and rotations come
//! from ChaCha8 streams of a seed.

#![deny(unsafe_code)]

mod element;
mod error;
mod hadamard;
#[allow(unsafe_code, reason = "instructions by name, chosen when the program runs")]
mod kernels;
mod linear;
pub mod model;
mod orders;
mod rope;
mod same;
mod transform;
#[doc(hidden)]
pub mod walsh;
mod weight;

pub use element::Element;
pub use error::Error;
pub use hadamard::{Hadamard, RandomizedHadamard};
pub use linear::TransformedLinear;
pub use rope::{Rope, RopePairing};
pub use same::{SameFunction, relative_error};
pub use transform::{Chain, Diagonal, Orthogonal, Permutation, Transform};
pub use weight::Weight;

/// The example of this crate's page in the book.
#[cfg(doctest)]
mod outside {
    #[doc = include_str!("../../../docs/src/quant-transforms.md")]
    struct Page;
}

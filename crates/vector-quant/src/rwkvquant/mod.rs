//! RWKVQuant (arXiv 2505.03803): scalar or vector codes, decided matrix by matrix, and code books for multipliers.
//!
//! | file | step of the paper |
//! |---|---|
//! | `proxy.rs` | how far the weights of a matrix are from evenly spaced: a coarse and a fine proxy |
//! | `decide.rs` | scalar codes for evenly spaced matrices without outliers, vector codes for the others |
//! | `multiplier.rs` | element-wise weights, coded with a code book weighted by squared activations |
//!
//! Paper and published code disagree in most details; this is the paper. Where it leaves something open, or where the
//! code decided what its figures mean, the item says so.

mod decide;
mod multiplier;
mod proxy;

pub use decide::{Choice, Policy, decide};
pub use multiplier::{
    Multiplier, MultiplierConfig, MultiplierStats, quantize_multiplier, quantize_multiplier_weighted,
};
pub use proxy::{Gaps, Uniformity, incoherence, uniformity};

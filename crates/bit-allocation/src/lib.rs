//! One option per item under a budget: exact knapsack, hull search for two objectives.
//!
//! Which layer gets 2 bits and which gets 8, when all of them together may take so many bytes? Each *item* (a layer, a
//! block of an expert, a cache) offers some *options*, each with a cost in whole units (bytes, usually) and a
//! loss. One option is to be taken of every item so that the costs fit the budget and the sum of losses is least.
//!
//! ```
//! use bit_allocation::{Choice, allocate};
//!
//! // Two layers at 2, 4 or 8 bits: losses 10, 9, 0 and 10, 6, 5.
//! let layer = |losses: [f64; 3]| {
//!     [2, 4, 8].into_iter().zip(losses).map(|(cost, loss)| Choice { cost, loss }).collect::<Vec<_>>()
//! };
//! let best = allocate(&[layer([10.0, 9.0, 0.0]), layer([10.0, 6.0, 5.0])], 10)?;
//! assert_eq!(best.choices, [2, 0], "8 and 2 bits; going up by the best gain per bit ends at 4 and 4");
//! assert_eq!((best.cost, best.loss), (10, 10.0));
//! # Ok::<(), bit_allocation::Error>(())
//! ```
//!
//! | problem | function |
//! |---|---|
//! | least sum of losses under a budget | [`allocate`] |
//! | least `L^r · T^(1−r)`, loss against time, under a budget (MxMoE) | [`allocate_product`] |
//! | items that must take the same option | [`Ties`] |
//!
//! The answers are optimal, not approximate, and the same on every machine. Which options there are, what they lose
//! and what they cost is for the caller to say.

#![forbid(unsafe_code)]

mod error;
mod knapsack;
mod product;
mod ties;

pub use error::Error;
pub use knapsack::{Allocation, Choice, allocate};
pub use product::{ProductAllocation, TimedChoice, allocate_product};
pub use ties::{Joint, Ties};

/// The examples of this crate's page in the book.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/bit-allocation.md")]
struct Page;

//! What calibration gathers: Gram matrices, ranges and moments of channels, quantiles, samples of tokens.
//!
//! A quantization method says what it [`Needs`]; a pipeline feeds the inputs of the model's linears, batch by batch, to
//! [`Statistics`], and hands those to the method.
//!
//! ```
//! use quant_calib::{Needs, Statistics};
//!
//! let mut statistics = Statistics::new(3, &Needs { channels: true, ..Needs::gram() })?;
//! for batch in [[1.0, 2.0, 0.0, -1.0, 4.0, 0.0], [0.5, -2.0, 0.0, 1.0, 1.0, 0.0]] {
//!     statistics.add(&batch, None)?; // two tokens of three channels
//! }
//! if let (Some(gram), Some(channels)) = (statistics.gram(), statistics.channels()) {
//!     assert_eq!(gram.matrix()[[1, 1]], 25.0);
//!     assert_eq!(channels.abs_mean(), [0.875, 2.25, 0.0]);
//! }
//! assert_eq!(statistics.dead_channels(), Some(vec![2]));
//! # Ok::<(), quant_calib::Error>(())
//! ```
//!
//! | item | what |
//! |---|---|
//! | [`Needs`], [`Statistics`] | what a method asks for, and the statistics of one input |
//! | [`Gram`] | `Σ w x xᵀ`: GPTQ's Hessian, the covariance of low-rank methods |
//! | [`ChannelStats`], [`QuantileSketch`] | ranges, moments and quantiles of channels |
//! | [`Reservoir`] | a uniform sample of tokens |
//! | [`ExpertCounts`], [`KvStatistics`] | choices of routers; keys before and after rotary positions, and values |
//! | [`Gatherer`], [`Coverage`] | many inputs by name, shared between linears; saved; reported |
//! | [`CalibrationSet`] | the text: windows of tokens, their source, a hash |
//!
//! # Promises
//!
//! How tokens are split into calls and the number of threads change no bit. Bad input (NaN, wrong widths, impossible
//! choices) is an [`Error`] that names input, batch, row and channel, and changes nothing. Samples come from ChaCha8 streams of a seed.

#![forbid(unsafe_code)]

mod channels;
mod coverage;
mod error;
mod experts;
mod gatherer;
mod gram;
mod kv;
mod needs;
mod quantiles;
mod reservoir;
mod rows;
mod set;
mod statistics;
mod store;

pub use channels::ChannelStats;
pub use coverage::{Coverage, ExpertCoverage, InputCoverage};
pub use error::Error;
pub use experts::ExpertCounts;
pub use gatherer::Gatherer;
pub use gram::Gram;
pub use kv::{KvStatistics, KvStream};
pub use needs::{GatePower, Needs, QuantileNeeds};
pub use quantiles::QuantileSketch;
pub use reservoir::Reservoir;
pub use set::{CalibrationSet, WindowChoice, WindowConfig};
pub use statistics::Statistics;

/// The example of this crate's page in the book.
#[cfg(doctest)]
mod outside {
    #[doc = include_str!("../../../docs/src/quant-calib.md")]
    struct Page;
}

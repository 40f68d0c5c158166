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

//! x
#![forbid(unsafe_code)]

mod config;
mod decoder;
mod error;
pub mod eval;
mod generate;
mod kv;
mod observe;
mod ops;
mod rope;
mod slot;
mod text;
mod weights;

pub use config::{Activation, Config, Family};
pub use decoder::{Decoder, Hidden};
pub use error::{BoxError, Error};
pub use generate::{Generate, Sampler, Sampling, generate};
pub use kv::{KvCache, KvGeometry, KvRows, KvScratch, KvState, PlainKvCache};
pub use observe::Observer;
pub use rope::{Rope, RopeScaling, RopeTable};
pub use slot::{Apply, Slot};
pub use text::{Text, Tokens};
pub use weights::WeightSource;

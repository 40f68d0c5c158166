//! Post-training quantization of weights: round to nearest, clip search, GPTQ, AWQ, SmoothQuant, one file a method.
//!
//! Each method takes a weight `[out, in]` as any [`quant_core::Tensor`], a [`quant_core::Format`] and what calibration
//! gathered ([`quant_calib`]), and gives back a [`quant_core::PackedTensor`]. Its configuration holds the paper's
//! defaults and says which statistics it [needs](GptqConfig::needs).
//!
//! ```
//! use quant_calib::Gram;
//! use quant_core::{Format, Shaped};
//! use weight_quant::{GptqConfig, OutputError, RtnConfig, gptq::gptq, rtn};
//!
//! // 64 tokens of 32 features, each like its neighbour, and a weight of 8 rows.
//! let x: Vec<f32> = (0..64 * 32).map(|i| ((i / 32 * 5 % 17) as f32 - 8.0) + 0.1 * (i * 7 % 11) as f32).collect();
//! let w: Vec<f32> = (0..8 * 32).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
//! let weight = Shaped::new(&w, &[8, 32])?;
//! let mut gram = Gram::new(32);
//! gram.add(&x, None)?;
//!
//! let format: Format = "int3-g32-asym".parse()?;
//! let nearest = rtn(&weight, format, &RtnConfig::default())?;
//! let compensated = gptq(&weight, &gram, format, &GptqConfig::default())?.packed;
//! let outputs = OutputError::new(&gram)?;
//! assert!(outputs.between(&w, &compensated.decode())? < 0.5 * outputs.between(&w, &nearest.decode())?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | item | what |
//! |---|---|
//! | [`rtn()`] | round to nearest, with or without clip search |
//! | [`MseClip`] | clip search by the error of the weights, over any [`quant_core::Grid`] |
//! | [`gptq`] | GPTQ for all formats; its [`sweep`](gptq::sweep()) for any other rounding |
//! | [`awq`] | AWQ: channel scales and clips |
//! | [`smoothquant`] | SmoothQuant: channel scales for 8-bit activations |
//! | [`OutputError`] | the error of a layer's outputs |
//!
//! Results are the same bytes for any number of threads. Papers: GPTQ arXiv 2210.17323, AWQ arXiv 2306.00978,
//! SmoothQuant arXiv 2211.10438.

#![forbid(unsafe_code)]

pub mod awq;
mod blocks;
mod error;
pub mod gptq;
mod loss;
mod mse;
mod rtn;
pub mod smoothquant;

pub use awq::AwqConfig;
pub use error::Error;
pub use gptq::GptqConfig;
pub use loss::OutputError;
pub use mse::MseClip;
pub use rtn::{RtnConfig, rtn};
pub use smoothquant::SmoothQuantConfig;

/// The examples of this crate's page in the book.
#[cfg(doctest)]
mod outside {
    #[doc = include_str!("../../../docs/src/weight-quant.md")]
    struct Page;
}

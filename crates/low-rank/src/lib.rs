//! Low-rank compression of linears: SVD, ASVD, SVD-LLM, FWSVD, Palu, CSKV; with factors that may be quantized.
//!
//! A weight `W` `[out, in]` becomes `A B` with `A` `[out, rank]` and `B` `[rank, in]`. All methods truncate a scaled weight,
//! `D W S = U Σ Vᵀ`, and differ in the scales:
//!
//! | config | `D`, `S` | what is least |
//! |---|---|---|
//! | [`PlainSvd`] | none | error of the weight |
//! | [`Fwsvd`] | a diagonal from Fisher information | weighted error of the weight |
//! | [`Asvd`] | `S` = diagonal of channel sizes | output error, if inputs were uncorrelated |
//! | [`SvdLlm`] | `S Sᵀ` = Gram matrix of the inputs | output error on calibration |
//! | [`Palu`] | as `SvdLlm`, for each group of heads | the same, for keys and values |
//!
//! Each says what it [`needs`](Method::needs) of calibration, and [`compress`](Method::compress)es a weight to a linear and a report:
//!
//! ```
//! use low_rank::{Calibration, Method, Ratio, Size, SvdLlm, Truncation};
//! use quant_calib::Statistics;
//! use quant_core::{Linear, Shaped};
//!
//! let method = SvdLlm {
//!     truncation: Truncation { size: Size::Ratio(Ratio::Kept(0.5)), ..Truncation::default() },
//!     ..SvdLlm::default()
//! };
//! let mut statistics = Statistics::new(64, &method.needs())?;
//! let wave = |i: usize| ((i * i % 97) as f32 - 48.0) / 32.0;
//! statistics.add(&(0..200 * 64).map(wave).collect::<Vec<_>>(), None)?; // 200 tokens
//!
//! let values: Vec<f32> = (0..32 * 64).map(|i| wave(3 * i + 1)).collect();
//! let weight = Shaped::new(&values, &[32, 64])?;
//! let small = method.compress(&weight, &Calibration::from(&statistics))?;
//! assert_eq!(small.report.rank, 10); // 10 · (32 + 64) of 32 · 64 parameters
//! assert_eq!(small.linear.footprint().total_bytes(), 2 * 10 * (32 + 64)); // in f16
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | more | what |
//! |---|---|
//! | [`AnyMethod`] | one of the first four, chosen by name in a recipe |
//! | [`LowRank`], [`Sum`] | linears of two factors and of two terms; each part dense or packed |
//! | [`correct`] | two factors for the error of a quantized weight |
//! | [`strs`](fn@strs) | ranks for all layers from measured sensitivities, the search of the ASVD paper |
//! | [`options`], [`allocate`], [`realize`] | one plan a layer under a budget of bytes, from output errors in closed form |
//! | [`KvAdapter`], [`train`](fn@train) | CSKV: narrow latents for a cache of keys and values, and their quantization-aware training |
//! | [`allocate_ranks`], [`refit_left`], [`fold_hadamard`], [`fold_output`] | further steps of Palu and SVD-LLM |
//!
//! # Promises
//!
//! Errors in a report are those of the factors as they are stored. Sizes count everything. A rank that would not make the weight
//! smaller keeps it whole, and the report says so. Nothing fails silently: weights that are not finite, statistics of zeros, ranks of 0,
//! ratios that cannot be reached are errors. Results do not depend on the number of threads.

#![forbid(unsafe_code)]

mod allocation;
mod any_method;
mod asvd;
mod calibration;
mod correction;
mod cskv;
mod decompose;
mod error;
mod factor;
mod fisher;
mod fwsvd;
mod linear;
mod matrix;
mod metric;
mod palu;
mod ratio;
mod strs;
mod svd;
mod svd_llm;

pub use allocation::{Allocation, LayerOption, Menu, Plan, allocate, options, realize};
pub use any_method::AnyMethod;
pub use asvd::{Asvd, ScaleSource};
pub use calibration::Calibration;
pub use correction::{Corrected, CorrectionReport, correct};
pub use cskv::{CacheWidth, KvAdapter, LatentFormat, Optimizer, RowMaps, TrainLog, Training, train};
pub use decompose::{Compressed, Decomposition, Method, Report, SigmaFuse, Solver, Truncation};
pub use error::Error;
pub use factor::{DenseLinear, Factor, Storage};
pub use fisher::Fisher;
pub use fwsvd::{FisherAxis, Fwsvd};
pub use linear::{Factored, LowRank, Sum};
pub use matrix::output_energy;
pub use metric::{Metric, Metrics, RootKind, Whitening};
pub use palu::{Grouped, GroupedLowRank, GroupedReport, Palu, allocate_ranks, fold_hadamard, fold_output};
pub use ratio::{Ratio, Size, break_even, pair_parameters, rank_for_ratio};
pub use strs::{Candidate, RankChoice, RankSearch, kept_share, stable_rank_score, strs};
pub use svd::PlainSvd;
pub use svd_llm::{SvdLlm, refit_left};

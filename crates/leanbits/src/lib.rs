//! Makes trained models small and measures what that costs.
//!
//! This crate joins the family: [`core`] has the number formats, [`io`] reads and writes checkpoints,
//! [`models`] runs small reference decoders. Here a [`Recipe`] says which tensor is stored how,
//! [`compress()`] follows it from one model folder to another, and [`evaluate`] measures the result. The
//! `leanbits` program is a thin skin over the same functions.
//!
//! ```
//! use leanbits::{CompressOptions, EvalOptions, Recipe, Silent, compress, evaluate};
//! # let folder = tempfile::tempdir()?;
//! # let (model, small) = ("../../models/tiny-llama", folder.path().join("small"));
//! # let text = "../../models/heldout.txt";
//! // `model` is a Hugging Face folder, `small` becomes one.
//! let report = compress(model, &small, &CompressOptions::new(Recipe::uniform("int4-g128".parse()?)), &mut Silent)?;
//! assert_eq!(report.bits_per_weight, 4.125);
//!
//! let options = EvalOptions { tokens: Some(1024), against: Some(model.into()), ..EvalOptions::default() };
//! let found = evaluate(&small, text, &options, &mut Silent)?;
//! assert!(found.against.is_some_and(|against| against.top1 > 0.8));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | function | from | to |
//! |---|---|---|
//! | [`compress()`] | model folder, recipe | model folder and report |
//! | [`evaluate`] | model folder, text | perplexity; KL divergence and agreement with another model |
//! | [`quantize`] | file or folder | one safetensors file with packed tensors |
//! | [`dequantize`] | leanbits, GGUF, compressed-tensors | floats that any tool loads |
//! | [`kv()`] | model folder, text | what quantized key-value caches cost |
//! | [`bench()`] | model folder | tokens a second, bytes a token, share of memory's bandwidth |
//! | [`inspect`] | file or folder | shapes, formats, ranges, outliers, formats that suit |
//! | [`demo()`] | the embedded model | what each format costs |
//! | [`formats`] | | the named formats in words |
//!
//! The same input and options give the same bytes for any number of threads, and after an interruption. Files
//! appear complete or not at all. Tensors are handled one at a time. Nothing is printed: jobs
//! report to a [`Progress`].
#![forbid(unsafe_code)]

pub use kv_cache_quant;
pub use low_rank;
pub use moe_quant;
pub use quant_core as core;
pub use quant_io as io;
pub use quant_models as models;
pub use vector_quant;
pub use weight_quant;

mod bench;
mod compress;
mod convert;
mod demo;
mod ebss;
mod encode;
mod error;
mod evaluate;
mod formats;
mod glob;
mod inspect;
mod kv;
mod picture;
mod plan;
mod profile;
mod progress;
mod recipe;
mod report;
mod skip;
mod storage;
mod table;
mod usage;

pub use bench::{BenchOptions, BenchReport, BenchWay, bench};
pub use compress::{CalibrationReport, CompressOptions, ExpertLayerReport, ExpertsReport, compress};
pub use convert::{
    DequantizeOptions, DequantizeReport, DequantizedTensor, FloatType, QuantizeOptions, QuantizeReport, dequantize,
    quantize,
};
pub use demo::{DemoOptions, DemoReference, DemoReport, DemoRow, demo};
pub use ebss::sample_calibration;
pub use error::Error;
pub use evaluate::{AgainstReport, DEFAULT_CONTEXT, EvalOptions, EvalReport, evaluate};
pub use formats::{FormatInfo, REFERENCE_SHAPE, footprint, formats, formats_table};
pub use glob::{MAX_PATTERN, NamePattern, PatternError};
pub use inspect::{
    Distribution, InspectOptions, InspectReport, OUTLIER_SIGMAS, Suitable, TRIAL_ELEMENTS, TensorInfo, Trial, inspect,
    suitable_formats,
};
pub use kv::{KvBytes, KvLayerSchedule, KvOptions, KvReference, KvReport, KvRow, KvShrink, kv, usual_codecs};
pub use profile::{ProfileOptions, measure_profile, this_device};
pub use progress::{Progress, Silent};
pub use recipe::{
    AllocateBy, Assign, Asvd, Calibration, Choice, Corrected, Decision, E8p, Experts, Fwsvd, IdleRule, KeyPlace,
    KvCacheChoice, MAX_RECIPE_BYTES, MAX_RULES, Method, Metric, Multipliers, Pcdvq, Preset, Ranks, Reason, Recipe,
    RecipeError, Rotation, Rule, RwkvQuant, Svd, SvdLlm, Transforms, default_exclusions, presets,
};
pub use report::{CodesReport, CompressReport, RuleLine, RunCost, TensorReport, UniformityReport};
pub use skip::{SkipBy, SkipOptions, SkipReport};
pub use storage::{ComposedError, StorageLayout, Weights};
pub use usage::peak_rss_bytes;

/// Writes a small file beside its place and renames it: it appears complete or not at all.
///
/// # Errors
///
/// [`Error::Io`].
pub fn write_file(path: impl AsRef<std::path::Path>, bytes: &[u8]) -> Result<(), Error> {
    Ok(quant_io::write_atomically(path, bytes)?)
}

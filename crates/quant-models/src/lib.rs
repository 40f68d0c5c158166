//! Small reference decoders: the place where quantization methods are tried.
//!
//! A [`Decoder`] is a language model in f32, read from a folder, compressed or not: a transformer of the Llama
//! family, a mixture of experts, or RWKV. What methods change or watch are slots:
//!
//! | slot | holds | how |
//! |---|---|---|
//! | each linear, `model.layers.0.self_attn.q_proj` … `lm_head` | any [`quant_core::Linear`], or dense f32 | [`Decoder::slot_mut`], [`Slot::set_linear`] |
//! | each linear's input | a [`quant_core::Format`] it is rounded to, token by token | [`Slot::set_input_format`] |
//! | norms and offsets; RWKV's element-wise multipliers | f32 | [`Layer::vectors_mut`], [`Layer::multipliers_mut`] |
//! | each layer's past | any [`KvCache`] | [`KvState::with`] |
//!
//! An [`Observer`] sees the inputs of linears, what multipliers are multiplied with, the [`Routing`] of mixtures, and
//! [`KeyValues`] before and after the rotary turn.
//!
//! [`Layers`] reads the same pieces one at a time, so that a method can work through a model of any size layer by layer.
//! [`Outliers`] makes channels large without changing what a model computes.
//!
//! [`kv_gradients`] says how much the loss depends on each key and value, [`weight_gradients`] on each weight, for methods
//! that weigh their errors so. [`RoundedBlock`] learns what the weights of a layer and its cache are rounded with from the
//! outputs of layers behind it (WKVQuant).
//!
//! [`eval`] measures what a change did: perplexity, bits per byte, KL divergence and top-1 agreement with a
//! reference. [`generate()`] writes text, greedily or sampled.
//!
//! # Example
//!
//! How much does a model of bytes lose in four bits?
//!
//! ```
//! use quant_core::{Format, PackedTensor, Shaped};
//! use quant_models::eval::{Recording, WindowOptions, Windows};
//! use quant_models::{Apply, Decoder, Text};
//! use std::sync::Arc;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
//! # let folder = models.join("tiny-llama");
//! # let story = std::fs::read(models.join("heldout.txt"))?;
//!
//! let model = Decoder::open(&folder)?;
//! let text = Text::open(&folder, model.config())?.encode(&story)?;
//! let options = WindowOptions { max_tokens: Some(2000), ..WindowOptions::new(512) };
//! let reference = Recording::new(&model, Windows::of_text(&text, options)?, &mut |_| {})?;
//!
//! let mut small = model.clone(); // shares all weights until they are replaced
//! let linears: Vec<String> = model.slots().map(|s| s.name().to_owned()).filter(|n| n != "lm_head").collect();
//! for name in &linears {
//!     let slot = small.slot_mut(name)?;
//!     let weight = slot.weight()?;
//!     let packed = PackedTensor::encode(Format::INT4_G128, &Shaped::new(&weight, &slot.shape())?)?;
//!     slot.set_linear(Arc::new(packed), Apply::Decoded)?;
//! }
//!
//! let found = reference.compare(&small, &mut |_| {})?;
//! assert!(found.model.perplexity() > found.reference.perplexity());
//! assert!(found.kl > 0.0 && found.top1 > 0.8);
//! # Ok(())
//! # }
//! ```
//!
//! # What is read
//!
//! | `model_type` | names in the checkpoint | besides |
//! |---|---|---|
//! | `llama`, `mistral`, `qwen2`, `qwen3` | Hugging Face's | tied and untied heads, grouped heads, biases, norms on heads, sliding windows |
//! | `mixtral`, `qwen2_moe`, `qwen3_moe`, `deepseek` | Hugging Face's, an expert a tensor or stacked | shared experts, dense layers among mixtures, gates renormalized or not |
//! | `rwkv6`, `rwkv7` | RWKV's own | low-rank pairs input-major or output-major |
//!
//! SiLU, GELU and ReLU, and the rotary scalings `linear`, `dynamic`, `llama3` and `yarn`. Anything else is an [`Error`]
//! that names the file and the key. Weights come through [`WeightSource`], which [`quant_io::Checkpoint`] implements.
//! Tokenizers are Hugging Face's `tokenizer.json`; a vocabulary of 256 without one is a model of bytes.
//!
//! # What is promised
//!
//! * Logits agree with `transformers` in f32, and with rwkv.cpp's: to 2e-5 on the models that the tests compare. Every
//!   family is also compared with a plain f64 rewrite.
//! * A compressed weight put into a slot with [`Apply::Decoded`] multiplies with exactly the values of
//!   [`quant_core::Linear::to_dense`].
//! * Likelihoods and divergences are f64, from f32 logits. The same machine gives the same figures for any number of
//!   threads; another instruction set adds the products in another order and differs in the last digits.
//! * Matrix products run on candle's `gemm` with AVX2 or AVX-512, chosen when the program runs; memory beyond the
//!   weights stays near that of 2048 tokens in one layer.
//! * No `unsafe` here; nothing panics on bad files, texts or settings.

#![forbid(unsafe_code)]

mod config;
mod decoder;
mod ends;
mod error;
pub mod eval;
mod generate;
mod gradient;
mod kv;
mod layer;
mod layers;
mod loader;
mod norm;
mod observe;
mod ops;
mod outliers;
mod reconstruct;
mod rope;
mod route;
mod slot;
mod stream;
mod text;
mod vector;
mod weights;

pub use config::{Activation, Config, Family, Mixture, Rwkv, SharedExpert};
pub use decoder::Decoder;
pub use ends::{Embedding, Head, Hidden};
pub use error::{BoxError, Error};
pub use generate::{Generate, Sampler, Sampling, generate};
pub use gradient::{KvGradients, LayerGradients, kv_gradients, weight_gradients};
pub use kv::{KvCache, KvGeometry, KvRows, KvScratch, KvState, KvStep, PlainKvCache, RecurrentState};
pub use layer::Layer;
pub use layers::Layers;
pub use observe::{KeyValues, Observer};
pub use outliers::{Injected, OutlierSite, Outliers};
pub use reconstruct::{Loss, PastRounding, Reconstructed, Reconstruction, RoundedBlock, StreamRounding};
pub use rope::{Rope, RopeScaling, RopeTable};
pub use route::{Choices, Routing};
pub use slot::{Apply, Origin, Role, Slot};
pub use stream::Stream;
pub use text::{Text, Tokens};
pub use vector::Vector;
pub use weights::WeightSource;

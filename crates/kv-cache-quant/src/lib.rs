//! One quantized key-value cache, many codecs: SKVQ, PM-KVQ, WKVQuant, KIVI, CSKV; attention on the packed cache.
//!
//! A [`Codec`] turns rows of keys or values into bytes. [`QuantizedKv`] is the state machine around any two of them,
//! one layer of one sequence: it appends, attends, rolls back, evicts, forks, saves, and stays within a budget. Engines
//! hold it as a [`KvCacheLayer`]. Nothing here knows a tensor library: rows are `&[f32]`, `[tokens, heads, dim]`.
//!
//! ```
//! use kv_cache_quant::*;
//! use std::sync::Arc;
//!
//! let geometry = KvGeometry { kv_heads: 2, q_heads: 8, dim_k: 64, dim_v: 64 };
//! let keys = Mapped::new(Arc::new(Hadamard::new(2, 64)?), Arc::new(TokenFormat::new(2, 64, "int4-min".parse()?)?))?;
//! let values = TokenFormat::new(2, 64, "int2-g32-min".parse()?)?;
//! let policy = KvPolicy { sinks: 4, window: 64, ..KvPolicy::default() };
//! let mut cache = QuantizedKv::new(geometry, KeyStorage::PostRope, Arc::new(keys), Arc::new(values), policy)?;
//!
//! let rows: Vec<f32> = (0..1000 * 128).map(|i| (i % 29) as f32 / 7.0 - 2.0).collect();
//! cache.append(KvRows { keys: &rows, values: &rows }, Positions::Next)?;
//! let mut out = vec![0.0; 8 * 64];
//! cache.attend(&Attention::of(&rows[..8 * 64]), &mut out, &mut Workspace::default())?;
//! assert!(cache.bytes().total() < 1000 * 256 * 2 / 2, "less than half of f16");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | codec | method |
//! |---|---|
//! | [`Plain`], [`TokenFormat`] | full precision; any number format of quant-core by token |
//! | [`KiviConfig`], [`ChannelFormat`] | KIVI: keys by channel, values by token |
//! | [`Mapped`] with [`Hadamard`] or [`ChannelAffine`] | rotated, centred, SmoothQuant-style |
//! | [`Skvq`] | SKVQ: reordered channels, clipped ranges, FP8 scales, ternary codes |
//! | [`PmKvq`] | PM-KVQ: 16 → 8 → 4 → 2 bits in place, budgets by layer |
//! | [`Cskv`] | CSKV and ASVD: latents of fewer channels, in any of the codecs |
//! | [`TwoDimConfig`] | WKVQuant: static by channel, dynamic by token; past-only attention by [`Attention::fresh`] |
//!
//! [`KvMethod`] makes any of them from a name such as `rotated:int4-min` or `skvq:2/ternary`.
//!
//! The same tokens give the same bytes however they are split into calls, for any number of threads.

#![deny(unsafe_code)]

mod attend;
mod batch;
mod cache;
mod codec;
mod error;
#[cfg(target_arch = "x86_64")]
mod fused;
mod generated {
    pub(crate) mod isa;
}
mod geometry;
mod halves;
mod kernels;
mod layer;
mod lines;
mod method;
mod pack;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "attention on codes reads it"))]
mod packed;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "attention on codes reads it"))]
mod pages;
mod positions;
mod precision;
mod ring;
mod rope;
mod save;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "attention on codes reads it"))]
mod side;

pub use attend::{Attention, Factors, Mask, Workspace};
pub use batch::KvBatch;
pub use cache::{KeyStorage, KvPolicy, QuantizedKv};
pub use codec::{
    Adapter, AttentionSample, ChannelAffine, ChannelFormat, ClipMode, Codec, Cskv, Hadamard, KiviConfig, LatentCode,
    LatentWidth, Levels, Mapped, MetaFormat, Plain, PmKvq, PmKvqConfig, Projection, ReorderPlan, RowMap, Sensitivity,
    Skvq, SkvqConfig, TokenFormat, TwoDimConfig, UnitBytes, Width, attention_errors, fold_key_scales, fold_values,
    layer_bytes, search_clip, search_clip_by_attention, shrink_code, stretched_positions,
};
pub use error::{Error, Stream};
pub use geometry::{KvGeometry, KvRows};
pub use layer::{ByteReport, Capabilities, KvCacheLayer, Rollback};
pub use method::{KvMethod, Pair, SkvqCodes, StreamStatistics};
pub use packed::PackedRows;
pub use positions::Positions;
pub use precision::FullPrecision;
pub use rope::{RopePairing, RopeTable};

/// The examples of this crate's page in the book.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/kv-cache-quant.md")]
struct Page;

//! compressed-tensors: the layout that llm-compressor writes and that vLLM and Transformers load.
//!
//! A model folder whose config.json has a `quantization_config` with groups of modules and how each is
//! quantized; the weight of a module is several tensors. `N` rows, `K` columns, groups of `g`:
//!
//! | layout | tensors of a module | format read as |
//! |---|---|---|
//! | `pack-quantized` | `weight_packed` I32 `[N, ⌈K·b/32⌉]`, `weight_scale`, `weight_shape` I64 `[2]`, with zero points `weight_zero_point` I32 `[⌈N·b/32⌉, K/g]` | `int{b}-…-ctsym`, `-ctasym` |
//! | `int-quantized` | `weight` I8 `[N, K]`, `weight_scale`, with zero points `weight_zero_point` I8 | `int8-…` |
//! | `float-quantized` | `weight` F8_E4M3 `[N, K]`, `weight_scale` | `fp8-e4m3-…` |
//! | `nvfp4-pack-quantized` | `weight_packed` U8 `[N, K/2]`, `weight_scale` F8_E4M3 `[N, K/16]`, `weight_global_scale` F32 `[1]` | `nvfp4-ct` |
//! | `mxfp4-pack-quantized` | `weight_packed` U8 `[N, K/2]`, `weight_scale` U8 `[N, K/32]` | `mxfp4-ct` |
//! | `mxfp6-pack-quantized` | `weight_packed` U8 `[N, 3K/4]` (E2M3), `weight_scale` U8 | `mxfp6-e2m3-ct` |
//! | `mxfp8-quantized` | `weight` F8_E4M3 `[N, K]`, `weight_scale` U8 | `mxfp8-e4m3-ct` |
//!
//! `weight_scale` has the shape of the blocks: `[1]`, `[N, 1]`, `[N, K/g]` or `[⌈N/r⌉, ⌈K/c⌉]`. Packed integers are
//! stored as `q + 2^(b−1)` in a little-endian bit stream a row, in whole 32-bit words; zero points likewise,
//! but along the rows. Until version 0.17 the Python package put `⌊32/b⌋` codes into a word; which of the two
//! it is follows from the width of `weight_packed`, then from the version in config.json.
//!
//! # Values
//!
//! We decode to single f32 products. The package multiplies in the type of the scales and so gives our values
//! rounded once to that type, bf16 for MX and NVFP4; MX products are exact in bf16, and from f32 scales
//! ([`Scales::F32`]) it gives our very f32 values. Codes and scales are the same in either case. The
//! same numbers in a check against the package 0.20 and Transformers 5.23, with every weight of a small model:
//!
//! | format written | decompressed by the package | loaded with `dtype=float32`, `dequantize=False` |
//! |---|---|---|
//! | int3-g64, int4-g128, int8, fp8-e4m3 (rows, tiles), bf16 scales | ours rounded to bf16 | ours |
//! | int4-g128-asym, bf16 scales | ours rounded to bf16 | does not load, see below |
//! | the same with f32 scales | ours | ours |
//! | mxfp4, mxfp6-e2m3, mxfp8-e4m3 | ours | computes in bf16 only |
//! | nvfp4-ct | ours rounded to bf16 | computes in bf16 only |
//!
//! # Writing
//!
//! [`native_format`] maps a format to the one to encode in, [`Plan::new`] gives the configuration and the names,
//! types and shapes of all tensors before any exists, [`module_tensors`] the tensors of one module.
//!
//! Two things that Transformers 5.23 does not load, whoever wrote them: with `dequantize=True` it applies the
//! scheme of the first group to all modules, so that mixed formats need `dequantize=False`; with
//! `dequantize=False` it expects zero points unpacked, so that asymmetric integers need `dequantize=True`.
//! vLLM fuses projections and wants one global scale for them, see [`shared_scale_key`].

mod config;
mod presets;
mod read;
mod scheme;
mod targets;
mod words;
mod write;

pub use config::{Config, Group, Number, StorageFormat, Strategy, WeightArgs};
pub use read::{Compressed, Weight};
pub use scheme::{Int8, Scales, WriteOptions, native_format};
pub use write::{ModuleSpec, NamedTensor, Plan, module_tensors, shared_scale_key};

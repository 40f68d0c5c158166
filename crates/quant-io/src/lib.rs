//! Checkpoints in and out.
//!
//! [`Checkpoint`] opens a safetensors or GGUF file or a Hugging Face folder and lends its tensors one at
//! a time from the memory-mapped files: plain, packed in a [`quant_core::Format`], or in ggml blocks.
//! Writers plan a file first (exact size included) and stream tensors into it one at a time; files
//! appear complete or not at all.
//!
//! | module | container | read | written |
//! |---|---|---|---|
//! | [`safetensors`] | safetensors | ✓ | ✓ |
//! | [`hf`] | Hugging Face folders, single or sharded | ✓ | ✓ |
//! | [`packed`] | packed tensors of this project in safetensors | ✓ | ✓ |
//! | [`composed`] | tensors of this project that are stored in parts: factors, codes and code books | ✓ | – |
//! | [`gguf`] | GGUF v2, v3 | ✓ | – |
//! | [`compressed_tensors`] | the tensors and the configuration of that layout in such folders | ✓ | ✓ |
//!
//! Outside bytes never cause a panic: every defect has its variant of [`Error`], which names file,
//! tensor and limit. Memory for headers is bounded by a small multiple of the file's size.

#![deny(unsafe_code)]

mod atomic;
mod checkpoint;
pub mod composed;
pub mod compressed_tensors;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz_bodies;
pub mod gguf;
pub mod hf;
mod json;
mod mmap;
pub mod packed;
pub mod safetensors;
mod write;

pub use atomic::{AtomicFile, write_atomically};
pub use checkpoint::{Checkpoint, CheckpointLayout, Entry, PlainTensor, Stored};
pub use error::Error;
pub use mmap::FileBytes;
pub use write::{CheckpointPlan, CheckpointWriter, PlannedStorage, PlannedTensor};

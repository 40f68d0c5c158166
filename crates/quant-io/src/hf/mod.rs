//! Hugging Face folders: `config.json`, weights in one safetensors file or in shards with an index,
//! and the small files beside them.

mod folder;
mod index;
mod shards;

#[cfg(feature = "fuzzing")]
pub(crate) use folder::parse_config;
pub use folder::{ModelFolder, side_files};
pub(crate) use folder::{read_config, weight_files};
pub use index::{INDEX_NAME, Index};
pub use shards::{ShardOptions, ShardPlan, ShardWriter, copy_side_files};

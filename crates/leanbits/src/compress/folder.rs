//! The folders on both sides of a compression.

use super::CompressOptions;
use crate::plan::Plan;
use crate::recipe::{Choice, Reason};
use crate::storage::compressed_tensors_config;
use crate::{Error, StorageLayout};
use quant_io::Checkpoint;
use serde_json::{Value, json};
use std::hash::Hasher;
use std::path::Path;
use std::time::UNIX_EPOCH;
use twox_hash::XxHash3_64;

/// Version of the `quantization_config` that this crate writes.
const CONFIG_VERSION: u32 = 1;

/// Opens a model folder: weights and a `config.json`.
pub(super) fn open(model: &Path) -> Result<Checkpoint, Error> {
    let checkpoint = Checkpoint::open(model)?;
    if checkpoint.config().is_none() {
        return Err(Error::NoConfig { path: model.to_owned() });
    }
    Ok(checkpoint)
}

/// Tells one state of a model folder from another: names, lengths and times of its weight files and its configuration.
pub(super) fn fingerprint(model: &Path) -> Result<u64, Error> {
    let list = std::fs::read_dir(model).map_err(|source| Error::file(model, "read", source))?;
    let mut lines = Vec::new();
    for entry in list {
        let entry = entry.map_err(|source| Error::file(model, "read", source))?;
        let path = entry.path();
        let weights = path.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
        let name = entry.file_name().to_string_lossy().into_owned();
        if !weights && name != "config.json" && !name.ends_with(".index.json") {
            continue;
        }
        let metadata = std::fs::metadata(&path).map_err(|source| Error::file(&path, "read", source))?;
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        lines.push(format!("{name}\0{}\0{:?}\n", metadata.len(), modified.map(|time| time.as_nanos())));
    }
    lines.sort();
    Ok(checksum([lines.concat().as_bytes()]))
}

/// Checksum over some byte strings, one after the other.
pub(super) fn checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = XxHash3_64::with_seed(0);
    for part in parts {
        hasher.write(part);
    }
    hasher.finish()
}

/// The configuration of the output: that of the model with a `quantization_config`.
pub(super) fn config(checkpoint: &Checkpoint, plan: &Plan, options: &CompressOptions) -> Result<Value, Error> {
    let mut config = checkpoint.config().cloned().unwrap_or_else(|| json!({}));
    let quantization = match options.layout {
        StorageLayout::Leanbits => json!({
            "quant_method": "leanbits",
            "version": CONFIG_VERSION,
            "recipe": options.recipe,
        }),
        StorageLayout::CompressedTensors => {
            let compressed: Vec<_> =
                plan.quantized().map(|(t, format)| (t.name.as_str(), format, t.shape.as_slice())).collect();
            // Embeddings are no linears, so nothing has to spare them.
            let spared = plan.tensors.iter().filter(|t| {
                t.decision.choice == Choice::Keep && t.decision.reason != Reason::Embedding && t.shape.len() == 2
            });
            let left_alone: Vec<&str> = spared.map(|t| t.name.as_str()).collect();
            compressed_tensors_config(&compressed, &left_alone)?
        }
    };
    config["quantization_config"] = quantization;
    Ok(config)
}

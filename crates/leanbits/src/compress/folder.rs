//! The folders on both sides of a compression.

use super::{CompressOptions, Source};
use crate::plan::Plan;
use crate::recipe::Reason;
use crate::storage::compressed_tensors_config;
use crate::{Error, StorageLayout};
use quant_core::Format;
use quant_io::{Checkpoint, compressed_tensors};
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
pub(super) fn config(source: &Source<'_>, plan: &Plan, options: &CompressOptions) -> Result<Value, Error> {
    let mut config = source.checkpoint().config().cloned().unwrap_or_else(|| json!({}));
    if source.unties_head() {
        config["tie_word_embeddings"] = json!(false);
    }
    let activations = options.recipe.activations;
    let quantization = match options.layout {
        StorageLayout::Leanbits => {
            let mut quantization = json!({
                "quant_method": "leanbits",
                "version": CONFIG_VERSION,
                "recipe": options.recipe,
            });
            if let Some(format) = activations {
                quantization[ACTIVATIONS] = json!(format.to_string());
            }
            quantization
        }
        StorageLayout::CompressedTensors => {
            let compressed: Vec<_> = plan
                .compressed()
                .filter_map(|t| Some((t.name.as_str(), t.packed_format()?, t.shape.as_slice())))
                .collect();
            // Embeddings are no linears, so nothing has to spare them.
            let spared = plan
                .tensors
                .iter()
                .filter(|t| t.is_kept() && t.treatment.decision.reason != Reason::Embedding && t.shape.len() == 2);
            let left_alone: Vec<&str> = spared.map(|t| t.name.as_str()).collect();
            let mut quantization = compressed_tensors_config(&compressed, &left_alone)?;
            if activations.is_some() {
                let groups = quantization["config_groups"].as_object_mut();
                groups.into_iter().flatten().for_each(|(_, group)| group[INPUTS] = tokens_in_8_bits());
            }
            quantization
        }
    };
    config["quantization_config"] = quantization;
    Ok(config)
}

/// Key of `quantization_config` under which the format of activations stands.
pub(crate) const ACTIVATIONS: &str = "activations";

/// The same in a group of compressed-tensors.
const INPUTS: &str = "input_activations";

/// How compressed-tensors describes activations of 8 bits, one scale a token, found as the model runs.
fn tokens_in_8_bits() -> Value {
    json!({
        "num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true, "group_size": null,
        "actorder": null,
    })
}

/// Whether a layout can say that activations are rounded to a format beside weights of another one.
pub(super) fn holds_activations(layout: StorageLayout, activations: Format, weights: Format) -> bool {
    let int8 = compressed_tensors::native_format(Format::INT8);
    layout == StorageLayout::Leanbits || (activations == Format::INT8 && Some(weights) == int8)
}

/// The format that the inputs of quantized linears are rounded to, as a folder says it. Of compressed-tensors folders only
/// 8-bit integers for each token are known; others are run with activations as they are.
pub(crate) fn activations(path: &Path, config: Option<&Value>) -> Result<Option<Format>, Error> {
    let Some(quantization) = config.and_then(|config| config.get("quantization_config")) else { return Ok(None) };
    match quantization.get("quant_method").and_then(Value::as_str) {
        Some("leanbits") => {
            let Some(found) = quantization.get(ACTIVATIONS) else { return Ok(None) };
            let format = found.as_str().and_then(|name| name.parse().ok());
            format.map(Some).ok_or_else(|| Error::Config {
                path: path.join("config.json"),
                reason: format!("quantization_config.{ACTIVATIONS} is {found}, which is no format"),
            })
        }
        Some("compressed-tensors") => {
            let expected = tokens_in_8_bits();
            let same = |key: &str, args: &Value| args.get(key) == expected.get(key);
            let keys = ["num_bits", "type", "symmetric", "strategy", "dynamic"];
            let known = |group: &Value| group.get(INPUTS).is_some_and(|args| keys.iter().all(|key| same(key, args)));
            let groups = quantization.get("config_groups").and_then(Value::as_object);
            let all = groups.is_some_and(|groups| !groups.is_empty() && groups.values().all(known));
            Ok(all.then_some(Format::INT8))
        }
        _ => Ok(None),
    }
}

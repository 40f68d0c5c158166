//! Folders whose weights `quant-io` stored packed.

mod common;

use common::{Tensors, all_logits, config, model_of, some_tokens, weights};
use quant_core::{Format, PackedTensor, Shaped};
use quant_io::safetensors::DType;
use quant_io::{CheckpointPlan, CheckpointWriter, PlannedTensor};
use quant_models::Decoder;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn packed(values: &[f32], shape: &[usize], format: Format) -> PackedTensor<'static> {
    PackedTensor::encode(format, &Shaped::new(values, shape).unwrap()).unwrap()
}

/// Stores the tensors for which `choose` says so in that format, the others as f32.
fn write(folder: &Path, config: &Value, tensors: &Tensors, choose: impl Fn(&str) -> Option<Format>) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let planned: Vec<PlannedTensor> = tensors
        .iter()
        .map(|(name, (shape, _))| match choose(name) {
            Some(format) => PlannedTensor::packed(name, format, shape),
            None => PlannedTensor::plain(name, DType::F32, shape),
        })
        .collect();
    let plan = CheckpointPlan::new(&planned, &BTreeMap::new(), Default::default()).unwrap();
    let mut writer = CheckpointWriter::create(folder, plan).unwrap();
    for (name, (shape, values)) in tensors {
        match choose(name) {
            Some(format) => writer.write_packed(name, &packed(values, shape, format)).unwrap(),
            None => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                writer.write_plain(name, &bytes).unwrap();
            }
        }
    }
    writer.finish().unwrap();
}

/// The tensors as their packed forms decode.
fn decoded(tensors: &Tensors, choose: impl Fn(&str) -> Option<Format>) -> Tensors {
    let mut out = tensors.clone();
    for (name, (shape, values)) in &mut out {
        if let Some(format) = choose(name) {
            *values = packed(values, shape, format).decode();
        }
    }
    out
}

fn check(changes: Value, choose: impl Fn(&str) -> Option<Format>, compressed_slots: usize) {
    let json = config(changes);
    let tensors = weights(&json, 1);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &json, &tensors, &choose);
    let model = Decoder::open(folder.path()).unwrap();
    let tokens = some_tokens(20, 40, 1);
    let expected = all_logits(&model_of(&json, &decoded(&tensors, &choose)), &tokens);
    assert_eq!(all_logits(&model, &tokens), expected, "bit for bit");
    let compressed: Vec<_> = model.slots().filter_map(|slot| Some((slot.name(), slot.linear()?.footprint()))).collect();
    assert_eq!(compressed.len(), compressed_slots, "{compressed:?}");
    for (name, footprint) in compressed {
        assert!(footprint.total_bytes() < 4 * footprint.elements / 3, "{name} is small in the slot as well");
    }
}

#[test]
fn packed_linears_multiply_with_their_decoded_values() {
    check(json!({}), |name| name.contains("proj.weight").then_some(Format::INT8), 14);
    check(json!({}), |name| name.contains("mlp").then_some(Format::MXFP4), 6);
}

#[test]
fn a_packed_embedding_is_decoded_and_a_tied_head_follows_it() {
    let choose = |name: &str| name.contains("embed").then_some(Format::INT8);
    check(json!({}), choose, 0);
    check(json!({"tie_word_embeddings": true}), choose, 0);
    check(json!({}), |name| name.contains("lm_head").then_some(Format::INT8), 1);
}

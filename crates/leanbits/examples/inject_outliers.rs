//! Writes a copy of a model in which some channels of the activations are many times larger than the others, and
//! which computes the same function: `inject_outliers MODEL_DIR OUT_DIR CHANNELS FACTOR`.
//!
//! For measuring what methods do about outliers. Weights are stored in f32.

use leanbits::io::hf::copy_side_files;
use leanbits::io::safetensors::{DType, TensorSpec, serialize};
use leanbits::io::{Checkpoint, write_atomically};
use leanbits::models::{Decoder, OutlierSite, Outliers};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, output, channels, factor] = arguments.as_slice() else {
        return Err("usage: inject_outliers MODEL_DIR OUT_DIR CHANNELS FACTOR".into());
    };
    let (model, output) = (PathBuf::from(model), PathBuf::from(output));
    let checkpoint = Checkpoint::open(&model)?;
    let mut decoder = Decoder::open(&model)?;
    let outliers = Outliers { site: OutlierSite::Norms, channels: channels.parse()?, factor: factor.parse()?, seed: 0 };
    outliers.inject(&mut decoder)?;
    let mut changed = BTreeMap::new();
    for layer in decoder.layers() {
        for slot in layer.slots() {
            changed.insert(slot.origin().tensor.clone(), slot.weight()?);
        }
        for vector in layer.vectors() {
            changed.insert(vector.name().to_owned(), vector.values().to_vec());
        }
    }
    let mut tensors = Vec::new();
    for entry in checkpoint.entries() {
        let values = match changed.remove(&entry.name) {
            Some(values) => values,
            None => checkpoint.read_f32(&entry.name)?,
        };
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((TensorSpec::new(entry.name.clone(), DType::F32, &entry.shape), bytes));
    }
    let lent: Vec<(TensorSpec, &[u8])> = tensors.iter().map(|(spec, bytes)| (spec.clone(), bytes.as_slice())).collect();
    std::fs::create_dir_all(&output)?;
    copy_side_files(&checkpoint.side_files()?, &output)?;
    let file = serialize(&lent, BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
    write_atomically(output.join("model.safetensors"), &file)?;
    std::fs::copy(model.join("config.json"), output.join("config.json"))?;
    Ok(())
}

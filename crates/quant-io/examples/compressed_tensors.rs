//! Compresses a model folder into the compressed-tensors layout, and decompresses one.
//!
//! ```text
//! compressed_tensors compress MODEL_DIR FORMAT[,FORMAT…] OUT_DIR [--f32-scales]
//! compressed_tensors decompress MODEL_DIR OUT_DIR
//! ```
//!
//! Weights are rounded to the nearest code, nothing is calibrated; several formats are dealt to the linear
//! modules in turn. Decompressed weights are f32 products of codes and scales.

use quant_core::{FormatGrid, PackedTensor, Shaped};
use quant_io::compressed_tensors::{
    Compressed, ModuleSpec, Plan, Scales, WriteOptions, module_tensors, native_format, shared_scale_key,
};
use quant_io::hf::{self, ModelFolder, ShardOptions, ShardPlan, ShardWriter};
use quant_io::safetensors::{DType, TensorBytes, TensorSpec};
use quant_io::write_atomically;
use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["compress", model, formats, out] => compress(model, formats, out, WriteOptions::default()),
        ["compress", model, formats, out, "--f32-scales"] => {
            compress(model, formats, out, WriteOptions { scales: Scales::F32, ..WriteOptions::default() })
        }
        ["decompress", model, out] => decompress(model, out),
        _ => {
            Err("usage: compress MODEL_DIR FORMAT[,FORMAT…] OUT_DIR [--f32-scales] | decompress MODEL_DIR OUT_DIR"
                .into())
        }
    }
}

fn compress(model: &str, formats: &str, out: &str, options: WriteOptions) -> Result<(), Box<dyn Error>> {
    let folder = ModelFolder::open(model)?;
    let mut config = folder.config().ok_or("there is no config.json")?.clone();
    let mut natives = Vec::new();
    for format in formats.split(',') {
        natives.push(native_format(format.parse()?).ok_or_else(|| format!("the layout cannot hold {format}"))?);
    }

    let tensors: Vec<TensorBytes<'_>> = folder.shards().iter().flat_map(|shard| shard.tensors()).collect();
    let mut modules = Vec::new();
    for tensor in &tensors {
        if let Some(name) = tensor.name.strip_suffix("_proj.weight") {
            let name = &tensor.name[..name.len() + "_proj".len()];
            modules.push(ModuleSpec { name, format: natives[modules.len() % natives.len()], shape: tensor.shape });
        }
    }
    let plan = Plan::new(&modules, &[], options)?;

    let mut groups: Vec<(Vec<TensorSpec>, BTreeMap<String, String>)> = Vec::new();
    let mut amax: BTreeMap<String, f32> = BTreeMap::new();
    let mut planned = modules.iter().zip(plan.tensors());
    let mut jobs: Vec<Option<&ModuleSpec<'_>>> = Vec::new();
    for tensor in &tensors {
        let Some((module, specs)) = planned.clone().next().filter(|(m, _)| tensor.name == format!("{}.weight", m.name))
        else {
            groups.push((vec![TensorSpec::new(tensor.name, tensor.dtype, tensor.shape)], BTreeMap::new()));
            jobs.push(None);
            continue;
        };
        planned.next();
        groups.push((specs.clone(), BTreeMap::new()));
        jobs.push(Some(module));
        if let Some(key) = shared_scale_key(module.name, module.format) {
            let largest = tensor.to_f32()?.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let shared = amax.entry(key).or_default();
            *shared = shared.max(largest);
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let shards = ShardPlan::new(&groups, &metadata, ShardOptions::default())?;
    let mut writer = ShardWriter::create(out, shards, ShardOptions::default())?;
    for (tensor, module) in tensors.iter().zip(jobs) {
        let Some(module) = module else {
            writer.write(tensor.name, tensor.bytes)?;
            continue;
        };
        let values = tensor.to_f32()?;
        let view = Shaped::new(&values, tensor.shape)?;
        let packed = match shared_scale_key(module.name, module.format).and_then(|key| amax.get(&key)) {
            Some(amax) => PackedTensor::encode_on(&FormatGrid::new(module.format, *amax)?, &view, Default::default())?,
            None => PackedTensor::encode(module.format, &view)?,
        };
        for tensor in module_tensors(module.name, &packed, options)? {
            writer.write(&tensor.spec.name, &tensor.bytes)?;
        }
    }
    writer.finish()?;
    config["quantization_config"] = plan.quantization_config().clone();
    finish(model, out, &config)
}

fn decompress(model: &str, out: &str) -> Result<(), Box<dyn Error>> {
    let folder = ModelFolder::open(model)?;
    let mut config = folder.config().ok_or("there is no config.json")?.clone();
    let compressed = Compressed::from_config(&config)?.ok_or("the model is not in this layout")?;
    let lookup = |name: &str| folder.shards().iter().find_map(|shard| shard.get(name));
    let tensors: Vec<TensorBytes<'_>> = folder.shards().iter().flat_map(|shard| shard.tensors()).collect();
    let modules = compressed.modules(tensors.iter().map(|tensor| tensor.name))?;

    let mut groups = Vec::new();
    let belongs = |tensor: &TensorBytes<'_>| {
        let module = tensor.name.rsplit_once('.').map_or("", |(module, _)| module);
        modules.binary_search_by(|m| m.as_str().cmp(module)).is_ok()
            && Compressed::sections(module).any(|section| section == tensor.name)
    };
    for tensor in tensors.iter().filter(|tensor| !belongs(tensor)) {
        groups.push((vec![TensorSpec::new(tensor.name, tensor.dtype, tensor.shape)], BTreeMap::new()));
    }
    for module in &modules {
        let (shape, _) = compressed.describe(module, lookup)?;
        groups.push((vec![TensorSpec::new(format!("{module}.weight"), DType::F32, &shape)], BTreeMap::new()));
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let plan = ShardPlan::new(&groups, &metadata, ShardOptions::default())?;
    let mut writer = ShardWriter::create(out, plan, ShardOptions::default())?;
    for tensor in tensors.iter().filter(|tensor| !belongs(tensor)) {
        writer.write(tensor.name, tensor.bytes)?;
    }
    for module in &modules {
        let weight = compressed.read(module, lookup)?;
        let bytes: Vec<u8> = weight.to_f32().iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write(&format!("{module}.weight"), &bytes)?;
    }
    writer.finish()?;
    if let Some(object) = config.as_object_mut() {
        object.remove("quantization_config");
    }
    finish(model, out, &config)
}

fn finish(model: &str, out: &str, config: &Value) -> Result<(), Box<dyn Error>> {
    hf::copy_side_files(&hf::side_files(model)?, out)?;
    write_atomically(Path::new(out).join("config.json"), serde_json::to_string_pretty(config)?.as_bytes())?;
    Ok(())
}

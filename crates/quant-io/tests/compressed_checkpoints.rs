//! compressed-tensors folders through the loader and the checkpoint writer.

use half::bf16;
use quant_core::{Format, PackedTensor, Shaped};
use quant_io::compressed_tensors::WriteOptions;
use quant_io::hf::ShardOptions;
use quant_io::safetensors::{DType, SafetensorsFile};
use quant_io::{
    Checkpoint, CheckpointLayout, CheckpointPlan, CheckpointWriter, PlannedTensor, Stored, write_atomically,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FOLDERS: [&str; 8] = [
    "ct_fp8_ch",
    "ct_mxfp4",
    "ct_mxfp8",
    "ct_nvfp4",
    "ct_w3a16_sym_ch",
    "ct_w4a16_asym_g32",
    "ct_w4a16_sym_g32",
    "ct_w8_int_ch",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/files").join(name)
}

#[test]
fn the_loader_reads_folders_of_the_python_package_bit_for_bit() {
    for name in FOLDERS {
        let expected = SafetensorsFile::open(golden(name).join("expected.safetensors")).unwrap();
        let expected = expected.tensor("deq").unwrap().to_f32().unwrap();
        // The file alone is understood through the config.json beside it.
        for path in [golden(name), golden(name).join("model.safetensors")] {
            let model = Checkpoint::open(&path).unwrap();
            assert_eq!(model.layout(), CheckpointLayout::CompressedTensors, "{name}");
            let [entry] = model.entries() else { panic!("{name}: {:?}", model.entries()) };
            assert_eq!(entry.name, "model.layers.0.mlp.up_proj.weight", "{name}");
            assert_eq!(entry.shape, [48, 128], "{name}");
            assert!(matches!(entry.stored, Stored::Packed(_)), "{name}: {:?}", entry.stored);
            let ours: Vec<f32> = model.read_f32(&entry.name).unwrap().into_iter().map(round).collect();
            assert!(ours == expected, "{name}: decompression differs");
            let packed = model.packed(&entry.name).unwrap().unwrap();
            assert!(packed.decode().into_iter().map(round).eq(expected.iter().copied()), "{name}");
            assert!(model.plain(&entry.name).unwrap().is_none(), "{name}: codes are not lent as values");
        }
    }
}

/// The package rounds each product to the type of the scales, bf16 in all these folders.
fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

fn weight(format: &str, shape: &[usize]) -> PackedTensor<'static> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> =
        (0..count).map(|i| f32::from(i16::try_from(i * 7919 % 2003).unwrap() - 1001) / 512.0).collect();
    PackedTensor::encode(format.parse().unwrap(), &Shaped::new(&values, shape).unwrap()).unwrap()
}

const FORMATS: [&str; 14] = [
    "int4-g32-bf16",
    "int4-g128-ctsym-bf16",
    "int4-g32-asym-bf16",
    "int3-row-bf16",
    "int5-g64-ctasym-f16",
    "int6-tensor-f32",
    "int7-g32-asym-f32",
    "int8",
    "fp8",
    "fp8-t128x128",
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "nvfp4-ct",
];

#[test]
fn what_is_written_in_this_layout_reads_back_with_the_same_values() {
    let folder = tempfile::tempdir().unwrap();
    let weights: Vec<_> = FORMATS.iter().map(|f| (format!("model.{f}.weight"), weight(f, &[40, 256]))).collect();
    let mut planned: Vec<_> = weights.iter().map(|(n, w)| PlannedTensor::packed(n, w.format(), w.shape())).collect();
    planned.push(PlannedTensor::plain("model.norm.weight", DType::F32, &[1]));
    planned.push(PlannedTensor::plain("lm_head.weight", DType::F32, &[1, 1]));
    let options = ShardOptions { max_shard_bytes: 20_000, keep_finished: false };
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let plan = CheckpointPlan::compressed_tensors(&planned, &metadata, options, WriteOptions::default()).unwrap();
    let quantization = plan.quantization_config().unwrap().clone();
    assert_eq!(quantization["format"], "mixed-precision");
    assert_eq!(quantization["ignore"], serde_json::json!(["lm_head"]));
    let total = plan.total_bytes();
    let mut writer = CheckpointWriter::create(folder.path(), plan).unwrap();
    for (name, weight) in &weights {
        assert!(writer.needs(name), "{name}");
        writer.write_packed(name, weight).unwrap();
    }
    for name in ["model.norm.weight", "lm_head.weight"] {
        writer.write_plain(name, &1_f32.to_le_bytes()).unwrap();
    }
    writer.finish().unwrap();
    let files: u64 = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(files, total, "the plan predicts every byte");

    let config = serde_json::json!({ "quantization_config": quantization });
    write_atomically(folder.path().join("config.json"), config.to_string().as_bytes()).unwrap();
    let model = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(model.entries().len(), planned.len());
    for (name, weight) in &weights {
        assert!(model.read_f32(name).unwrap() == weight.decode(), "{name}");
        let packed = model.packed(name).unwrap().unwrap();
        // Rules by which scales were found are not stored, everything else is.
        assert_eq!(packed.codes(), weight.codes(), "{name}");
        assert_eq!(packed.scales(), weight.scales(), "{name}");
        assert_eq!(packed.zeros(), weight.zeros(), "{name}");
    }
}

#[test]
fn formats_the_layout_cannot_hold_are_refused_before_a_file_exists() {
    let plan = |name: &str, format: &str, shape: &[usize]| {
        let planned = [PlannedTensor::packed(name, format.parse::<Format>().unwrap(), shape)];
        let (options, write) = (ShardOptions::default(), WriteOptions::default());
        CheckpointPlan::compressed_tensors(&planned, &BTreeMap::new(), options, write).map_err(|e| e.variant())
    };
    for format in
        ["nf4", "ternary", "sefp4", "mxint8", "nvint4", "int4-min", "int4-mlx", "fp8-e5m2", "mxfp8-e5m2", "int1"]
    {
        assert_eq!(plan("m.weight", format, &[4, 128]).unwrap_err(), "GridMismatch", "{format}");
    }
    assert_eq!(plan("m.bias", "mxfp4", &[4, 128]).unwrap_err(), "GridMismatch");
    assert_eq!(plan("m.weight", "mxfp4", &[128]).unwrap_err(), "GridMismatch");
    assert_eq!(plan("m.weight", "mxfp4", &[4, 100]).unwrap_err(), "RaggedBlocks");
    assert!(plan("m.weight", "mxfp4", &[4, 128]).is_ok(), "whole groups fit");

    // The reciprocal of this tensor scale does not give the same values.
    let weight = weight("nvfp4", &[4, 128]);
    let planned = [PlannedTensor::packed("m.weight", weight.format(), weight.shape())];
    let (options, write) = (ShardOptions::default(), WriteOptions::default());
    let plan = CheckpointPlan::compressed_tensors(&planned, &BTreeMap::new(), options, write).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut writer = CheckpointWriter::create(folder.path().join("x.safetensors"), plan).unwrap();
    assert_eq!(writer.write_packed("m.weight", &weight).unwrap_err().variant(), "GridMismatch");
    writer.discard();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn checkpoints_of_other_quantizers_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("ct_mxfp4").join("expected.safetensors");
    std::fs::copy(model, folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"quantization_config":{"quant_method":"gptq"}}"#).unwrap();
    for path in [folder.path().to_owned(), folder.path().join("model.safetensors")] {
        let error = Checkpoint::open(path).unwrap_err();
        assert_eq!(error.variant(), "Unsupported");
        assert!(error.to_string().contains("gptq") && error.to_string().contains("config.json"), "{error}");
    }
}

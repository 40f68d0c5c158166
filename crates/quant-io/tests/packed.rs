//! This project's container: packed tensors in safetensors.

use quant_core::{Format, PackedTensor, Shaped};
use quant_io::packed::{self, PACKED_KEY, VERSION_KEY};
use quant_io::safetensors::{DType, SafetensorsFile, TensorSpec, serialize};
use quant_io::{
    Checkpoint, CheckpointLayout, CheckpointPlan, CheckpointWriter, FileBytes, PlannedTensor, Stored, hf::ShardOptions,
};
use std::collections::BTreeMap;
use std::path::Path;

const NAMES: [&str; 16] = [
    "int8",
    "int4-g32",
    "int4-g128-asym",
    "int3-g32-asym-bf16",
    "int4-min",
    "fp8-e4m3",
    "fp8-e4m3-t16x16",
    "mxfp8",
    "mxfp6-e3m2",
    "mxfp4",
    "nvfp4",
    "nvfp4-torchao1",
    "nf4-dq",
    "sefp4",
    "ternary",
    "fp8-e5m2-cast",
];

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| f32::from(i16::try_from(i * 7919 % 2003).unwrap() - 1001) / 512.0).collect()
}

fn weight(format: &str, shape: &[usize]) -> PackedTensor<'static> {
    let values = values(shape.iter().product());
    PackedTensor::encode(format.parse().unwrap(), &Shaped::new(&values, shape).unwrap()).unwrap()
}

fn all_weights() -> Vec<(String, PackedTensor<'static>)> {
    NAMES.iter().map(|name| (format!("layer.{name}.weight"), weight(name, &[24, 160]))).collect()
}

fn save(target: &Path, weights: &[(String, PackedTensor<'static>)], max_shard_bytes: u64) {
    let mut planned: Vec<_> = weights.iter().map(|(n, w)| PlannedTensor::packed(n, w.format(), w.shape())).collect();
    planned.push(PlannedTensor::plain("norm", DType::F32, &[2]));
    let options = ShardOptions { max_shard_bytes, keep_finished: false };
    let plan = CheckpointPlan::new(&planned, &BTreeMap::from([("format".into(), "pt".into())]), options).unwrap();
    let mut writer = CheckpointWriter::create(target, plan).unwrap();
    for (name, weight) in weights {
        assert!(writer.needs(name), "{name}");
        writer.write_packed(name, weight).unwrap();
    }
    writer.write_plain("norm", &[0, 0, 128, 63, 0, 0, 0, 64]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn every_kind_of_format_comes_back_equal_from_a_file_and_from_shards() {
    let folder = tempfile::tempdir().unwrap();
    let weights = all_weights();
    let (file, shards) = (folder.path().join("x.safetensors"), folder.path().join("sharded"));
    save(&file, &weights, u64::MAX);
    save(&shards, &weights, 10_000);
    for path in [&file, &shards] {
        let model = Checkpoint::open(path).unwrap();
        assert_eq!(model.layout(), CheckpointLayout::Leanbits);
        assert_eq!(model.entries().len(), weights.len() + 1, "sections are not entries");
        for (name, weight) in &weights {
            let entry = model.entry(name).unwrap();
            assert_eq!(entry.stored, Stored::Packed(weight.format()), "{name}");
            assert_eq!(
                entry.bytes,
                weight.footprint().total_bytes(),
                "{name}: the file stores what the footprint says"
            );
            assert!(model.packed(name).unwrap().as_ref() == Some(weight), "{name}");
            assert!(model.read_f32(name).unwrap() == weight.decode(), "{name}");
            assert!(model.plain(name).unwrap().is_none(), "{name}");
        }
        assert_eq!(model.read_f32("norm").unwrap(), [1.0, 2.0]);
    }
}

#[test]
fn a_mapped_file_lends_its_sections_without_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    save(&path, &all_weights(), u64::MAX);
    let file = SafetensorsFile::open(&path).unwrap();
    let infos = packed::find(file.header()).unwrap().unwrap();
    let tensors: Vec<_> = file.tensors().collect();
    for info in &infos {
        let packed = packed::assemble(info, |i| tensors[i].bytes).unwrap();
        let codes = file.get(&format!("{}.codes", info.name)).unwrap().bytes;
        assert!(std::ptr::eq(packed.codes(), codes), "{}", info.name);
    }
}

#[test]
fn the_same_tensors_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str| {
        let path = folder.path().join(name);
        save(&path, &all_weights(), u64::MAX);
        std::fs::read(path).unwrap()
    };
    assert!(bytes("a.safetensors") == bytes("b.safetensors"), "two runs differ");
}

#[test]
fn a_plan_refuses_names_that_collide_and_a_writer_refuses_what_was_not_planned() {
    let format = Format::MXFP4;
    let plan = |tensors: &[PlannedTensor]| {
        CheckpointPlan::new(tensors, &BTreeMap::new(), ShardOptions::default()).map_err(|e| e.variant())
    };
    let w = PlannedTensor::packed("w", format, &[2, 32]);
    let clash = PlannedTensor::plain("w.codes", DType::U8, &[1]);
    assert_eq!(plan(&[w.clone(), clash]).unwrap_err(), "DuplicateKey");
    assert_eq!(plan(&[w.clone(), w.clone()]).unwrap_err(), "DuplicateKey");
    let inner = PlannedTensor::packed("w.codes", format, &[2, 32]);
    assert_eq!(plan(&[w.clone(), inner]).unwrap_err(), "DuplicateKey");
    assert_eq!(plan(&[PlannedTensor::packed("w", format, &[0, 32])]).unwrap_err(), "Packed");
    assert_eq!(plan(&[PlannedTensor::packed("w", format, &[usize::MAX, 32])]).unwrap_err(), "Overflow");

    let folder = tempfile::tempdir().unwrap();
    let mut writer = CheckpointWriter::create(folder.path(), plan(&[w]).unwrap()).unwrap();
    assert_eq!(writer.write_packed("w", &weight("mxfp4", &[4, 32])).unwrap_err().variant(), "NotPlanned");
    assert_eq!(writer.write_packed("w", &weight("mxfp8", &[2, 32])).unwrap_err().variant(), "NotPlanned");
    assert_eq!(writer.write_plain("w", &[]).unwrap_err().variant(), "NotPlanned");
    writer.write_packed("w", &weight("mxfp4", &[2, 32])).unwrap();
    assert!(!writer.needs("w"), "its shard is complete");
    writer.discard();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a discarded writer leaves nothing");
}

#[test]
fn every_defect_of_the_container_has_its_own_error() {
    let weight = weight("nvfp4", &[2, 32]);
    let good = || {
        let metadata = packed::metadata([("w", weight.format(), weight.shape())]);
        let specs = packed::specs("w", weight.format(), weight.shape()).unwrap();
        let sections = packed::sections("w", &weight);
        let tensors: Vec<_> = specs.into_iter().zip(sections).map(|(s, (_, b))| (s, b.into_owned())).collect();
        (tensors, metadata)
    };
    type Parts = (Vec<(TensorSpec, Vec<u8>)>, BTreeMap<String, String>);
    let outcome = |change: &dyn Fn(&mut Parts)| {
        let mut parts = good();
        change(&mut parts);
        let tensors: Vec<_> = parts.0.iter().map(|(s, b)| (s.clone(), b.as_slice())).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, serialize(&tensors, parts.1).unwrap()).unwrap();
        match Checkpoint::open(&path).and_then(|m| m.packed("w").map(|p| p.is_some())) {
            Ok(true) => "ok".to_owned(),
            Ok(false) => "plain".to_owned(),
            Err(error) => {
                assert!(error.to_string().contains("x.safetensors"), "{error}");
                error.variant()
            }
        }
    };
    let describe = |text: &'static str| {
        move |p: &mut Parts| {
            p.1.insert(format!("{PACKED_KEY}w"), text.to_owned());
        }
    };
    assert_eq!(outcome(&|_| ()), "ok");
    assert_eq!(outcome(&|p| drop(p.1.insert(VERSION_KEY.into(), "3".into()))), "UnsupportedVersion");
    assert_eq!(outcome(&|p| drop(p.1.remove(VERSION_KEY))), "BadField");
    assert_eq!(outcome(&|p| drop(p.1.insert("leanbits.rotation".into(), "h128".into()))), "BadField");
    assert_eq!(outcome(&describe("{\"format\":\"nvfp5\",\"shape\":[2,32]}")), "Packed");
    assert_eq!(outcome(&describe("{\"format\":\"int9\",\"shape\":[2,32]}")), "Packed");
    assert_eq!(outcome(&describe("{\"format\":\"int4-g0\",\"shape\":[2,32]}")), "Packed");
    assert_eq!(outcome(&describe("{\"format\":\"nvfp4\",\"shape\":[2,0]}")), "Packed");
    assert_eq!(outcome(&describe("{\"format\":\"nvfp4\",\"shape\":[2,48]}")), "BadSection");
    assert_eq!(outcome(&describe("{\"format\":\"mxfp4\",\"shape\":[2,32]}")), "BadSection");
    assert_eq!(outcome(&describe("{\"format\":\"nvfp4\",\"shape\":[4294967296,4294967296]}")), "Overflow");
    assert_eq!(outcome(&describe("{\"format\":\"nvfp4\",\"shape\":[-2,32]}")), "BadField");
    assert_eq!(outcome(&describe("{\"format\":\"nvfp4\",\"shape\":[2,32],\"order\":1}")), "BadField");
    assert_eq!(outcome(&describe("{\"format\":\"nvfp4\"}")), "BadField");
    assert_eq!(outcome(&describe("nvfp4")), "BadField");
    for section in 0..3 {
        assert_eq!(outcome(&|p| drop(p.0.remove(section))), "MissingSection", "section {section}");
    }
    assert_eq!(outcome(&|p| p.0.push((TensorSpec::new("w", DType::U8, &[1]), vec![0]))), "DuplicateKey");
    let scales = |p: &mut Parts, byte| p.0[1].1[1] = byte;
    assert_eq!(outcome(&|p| scales(p, 0x7f)), "Packed", "a NaN scale");
    let second = |p: &mut Parts, x: f32| p.0[2].1.copy_from_slice(&x.to_le_bytes());
    assert_eq!(outcome(&|p| second(p, f32::NAN)), "Packed");
    assert_eq!(outcome(&|p| second(p, f32::INFINITY)), "Packed");
}

#[test]
fn two_packed_tensors_cannot_share_a_section() {
    // "a.codes" and "a" packed at once: the sections of one would be the other.
    let w = weight("mxfp4", &[2, 32]);
    let mut metadata = packed::metadata([("a", w.format(), w.shape()), ("a.b", w.format(), w.shape())]);
    let mut tensors: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for name in ["a", "a.b"] {
        let specs = packed::specs(name, w.format(), w.shape()).unwrap();
        tensors.extend(specs.into_iter().zip(packed::sections(name, &w)).map(|(s, (_, b))| (s, b.into_owned())));
    }
    let bytes = |metadata: &BTreeMap<String, String>| {
        let lent: Vec<_> = tensors.iter().map(|(s, b)| (s.clone(), b.as_slice())).collect();
        serialize(&lent, metadata.clone()).unwrap()
    };
    let file = SafetensorsFile::from_bytes(FileBytes::owned("x", bytes(&metadata))).unwrap();
    assert_eq!(packed::find(file.header()).unwrap().unwrap().len(), 2, "dots in names are no collision");
    metadata.insert(format!("{PACKED_KEY}a.codes"), metadata[&format!("{PACKED_KEY}a")].clone());
    let file = SafetensorsFile::from_bytes(FileBytes::owned("x", bytes(&metadata))).unwrap();
    assert_eq!(packed::find(file.header()).unwrap_err().variant(), "MissingSection");
}

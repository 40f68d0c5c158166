//! Hugging Face folders: single files, shards, indexes, side files.

use quant_io::hf::{INDEX_NAME, Index, ModelFolder, ShardOptions, ShardPlan, ShardWriter, copy_side_files, side_files};
use quant_io::safetensors::{DType, TensorSpec, serialize};
use quant_io::{Checkpoint, CheckpointLayout, Stored};
use std::collections::BTreeMap;
use std::path::Path;

fn write_shard(path: &Path, tensors: &[(&str, &[u8])]) {
    let tensors: Vec<_> =
        tensors.iter().map(|(name, bytes)| (TensorSpec::new(*name, DType::U8, &[bytes.len()]), *bytes)).collect();
    std::fs::write(path, serialize(&tensors, BTreeMap::new()).unwrap()).unwrap();
}

fn open_error(folder: &Path) -> String {
    ModelFolder::open(folder).unwrap_err().variant()
}

#[test]
fn every_defect_of_a_sharded_index_has_its_own_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert_eq!(open_error(path), "NoCheckpoint");
    write_shard(&path.join("s1.safetensors"), &[("a", &[1, 2])]);
    write_shard(&path.join("s2.safetensors"), &[("b", &[3])]);
    let index = |text: &str| std::fs::write(path.join(INDEX_NAME), text).unwrap();
    let cases = [
        (r#"{"metadata":{"total_size":3},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#, "ok"),
        (r#"{"metadata":{"total_size":3.0},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#, "ok"),
        (r#"{"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#, "ok"),
        (r#"{"metadata":{"total_size":4},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#, "TotalSize"),
        (r#"{"metadata":{"total_size":-1},"weight_map":{"a":"s1.safetensors"}}"#, "BadField"),
        (r#"{"weight_map":{"a":"s1.safetensors","b":"s3.safetensors"}}"#, "MissingShard"),
        (r#"{"weight_map":{"a":"s1.safetensors","b":"s1.safetensors"}}"#, "ShardLacksTensor"),
        (r#"{"weight_map":{"a":"s2.safetensors","b":"s1.safetensors"}}"#, "ShardLacksTensor"),
        (r#"{"weight_map":{"a":"s1.safetensors","a":"s2.safetensors"}}"#, "DuplicateKey"),
        (r#"{"weight_map":{"a":"../s1.safetensors"}}"#, "UnsafePath"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "UnsafePath"),
        (r#"{"weight_map":{"a":"sub/s1.safetensors"}}"#, "UnsafePath"),
        (r#"{"weight_map":{"a":"sub\\s1.safetensors"}}"#, "UnsafePath"),
        (r#"{"weight_map":{"a":".."}}"#, "UnsafePath"),
        (r#"{"weight_map":{"a":""}}"#, "UnsafePath"),
        (r#"{"weight_map":{"a":1}}"#, "BadField"),
        (r#"{"weight_map":["a"]}"#, "BadField"),
        (r#"{}"#, "BadField"),
        ("", "BadJson"),
        ("{", "BadJson"),
    ];
    for (text, expected) in cases {
        index(text);
        let found = ModelFolder::open(path).map_or_else(|e| e.variant(), |_| "ok".to_owned());
        assert_eq!(found, expected, "{text}");
    }
    write_shard(&path.join("s2.safetensors"), &[("b", &[3]), ("a", &[9, 9])]);
    index(cases[2].0);
    assert_eq!(open_error(path), "TensorInTwoShards");
    std::fs::write(path.join(INDEX_NAME), [0x7b, 0xff]).unwrap();
    assert_eq!(open_error(path), "BadUtf8");
    std::fs::write(path.join(INDEX_NAME), "[".repeat(100_000)).unwrap();
    assert_eq!(open_error(path), "BadField");
    std::fs::write(path.join(INDEX_NAME), format!("{{\"metadata\":{}", "[".repeat(100_000))).unwrap();
    assert_eq!(open_error(path), "BadField");
}

#[test]
fn a_bad_config_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    write_shard(&folder.path().join("model.safetensors"), &[("a", &[1])]);
    for (text, expected) in
        [("{}", "ok"), ("[]", "BadField"), ("{\"a\":", "BadJson"), (&"{\"a\":".repeat(100_000), "BadJson")]
    {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        match ModelFolder::open(folder.path()) {
            Ok(_) => assert_eq!(expected, "ok"),
            Err(error) => {
                assert_eq!(error.variant(), expected);
                assert!(error.to_string().contains("config.json"), "{error}");
            }
        }
    }
}

fn plan(max_shard_bytes: u64) -> (ShardPlan, ShardOptions) {
    let options = ShardOptions { max_shard_bytes, keep_finished: true };
    let groups: Vec<_> = (0..5_usize)
        .map(|i| {
            let specs = vec![
                TensorSpec::new(format!("t{i}.codes"), DType::U8, &[10]),
                TensorSpec::new(format!("t{i}.scales"), DType::F32, &[1]),
            ];
            (specs, BTreeMap::from([(format!("about.t{i}"), i.to_string())]))
        })
        .collect();
    (ShardPlan::new(&groups, &BTreeMap::new(), options).unwrap(), options)
}

fn contents(name: &str) -> Vec<u8> {
    let digit = name.as_bytes()[1];
    if name.ends_with("codes") { vec![digit; 10] } else { vec![digit; 4] }
}

#[test]
fn shards_keep_groups_together_and_their_index_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, options) = plan(30);
    let (files, total) = (plan.files().len(), plan.total_bytes());
    assert_eq!(files, 3);
    let mut writer = ShardWriter::create(folder.path(), plan.clone(), options).unwrap();
    for i in 0..5 {
        for section in ["codes", "scales"] {
            let name = format!("t{i}.{section}");
            writer.write(&name, &contents(&name)).unwrap();
        }
    }
    assert!(folder.path().join("model-00001-of-00003.safetensors").exists(), "a full shard appears at once");
    writer.finish().unwrap();
    let mut on_disk = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        on_disk += entry.unwrap().metadata().unwrap().len();
    }
    assert_eq!(on_disk, total, "the plan predicts every byte");
    let model = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(model.layout(), CheckpointLayout::Safetensors);
    assert_eq!(model.entries().len(), 10);
    for entry in model.entries() {
        assert_eq!(*model.plain(&entry.name).unwrap().unwrap().bytes, contents(&entry.name));
        assert!(matches!(entry.stored, Stored::Plain(_)), "{entry:?}");
    }
    let index = std::fs::read_to_string(folder.path().join(INDEX_NAME)).unwrap();
    assert_eq!(Index::parse(&index).unwrap(), plan.index().unwrap());
    let shard = &ModelFolder::open(folder.path()).unwrap().shards()[2].clone();
    assert_eq!(shard.header().metadata().keys().collect::<Vec<_>>(), ["about.t4"]);
}

#[test]
fn an_interrupted_run_continues_with_the_shards_it_lacks_and_gives_the_same_bytes() {
    let (whole, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names: Vec<String> = (0..5).flat_map(|i| [format!("t{i}.codes"), format!("t{i}.scales")]).collect();
    let run = |folder: &Path, count: usize| {
        let (plan, options) = plan(30);
        let mut writer = ShardWriter::create(folder, plan, options).unwrap();
        let mut written = 0;
        for name in names.iter().take(count) {
            if writer.needs(name) {
                writer.write(name, &contents(name)).unwrap();
                written += 1;
            }
        }
        (writer, written)
    };
    run(whole.path(), 10).0.finish().unwrap();
    let (interrupted, _) = run(resumed.path(), 7);
    drop(interrupted);
    let left: Vec<_> = std::fs::read_dir(resumed.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["model-00001-of-00003.safetensors"], "unfinished shards are gone");
    let (writer, written) = run(resumed.path(), 10);
    assert_eq!(written, 6, "the finished shard is not written again");
    writer.finish().unwrap();
    for entry in std::fs::read_dir(whole.path()).unwrap() {
        let name = entry.unwrap().file_name();
        let read = |folder: &Path| std::fs::read(folder.join(&name)).unwrap();
        assert_eq!(read(whole.path()), read(resumed.path()), "{name:?}");
    }
}

#[test]
fn side_files_are_those_without_weights() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_shard(&folder.path().join("model.safetensors"), &[("a", &[1])]);
    for name in ["config.json", "tokenizer.json", "LICENSE", "empty.txt", "x.bin", ".hidden", INDEX_NAME, "y.tmp"] {
        let text = if name == "empty.txt" { "" } else { "{}" };
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let files = side_files(folder.path()).unwrap();
    let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["LICENSE", "empty.txt", "tokenizer.json"]);
    copy_side_files(&files, copy.path()).unwrap();
    assert_eq!(std::fs::read(copy.path().join("tokenizer.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read_dir(copy.path()).unwrap().count(), 3);
}

#[test]
fn reading_a_tensor_checks_its_name_and_the_room_for_it() {
    let folder = tempfile::tempdir().unwrap();
    write_shard(&folder.path().join("only.safetensors"), &[("a", &[1, 2])]);
    let model = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(model.read_f32("a").unwrap(), [1.0, 2.0]);
    assert_eq!(model.read_f32("b").unwrap_err().variant(), "NoSuchTensor");
    assert_eq!(model.read_f32_into("a", &mut [0.0]).unwrap_err().variant(), "SizeMismatch");
    assert!(model.packed("a").unwrap().is_none(), "a plain tensor is not packed");
}

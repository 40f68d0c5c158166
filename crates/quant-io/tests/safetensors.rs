//! The safetensors container: reading, canonical writing, atomic replacement.

use quant_io::safetensors::{DType, FilePlan, Header, SafetensorsFile, SafetensorsWriter, TensorSpec, serialize};
use quant_io::{Error, FileBytes};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn rewrite(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let original = std::fs::read(path).unwrap();
    let file = SafetensorsFile::open(path).unwrap();
    let tensors: Vec<(TensorSpec, &[u8])> =
        file.tensors().map(|t| (TensorSpec::new(t.name, t.dtype, t.shape), t.bytes)).collect();
    (original, serialize(&tensors, file.header().metadata().clone()).unwrap())
}

#[test]
fn a_file_of_the_reference_writer_is_rewritten_byte_for_byte() {
    for name in ["files/dtypes.safetensors", "gguf_blocks.safetensors", "files/ct_mxfp4/expected.safetensors"] {
        let (original, mut ours) = rewrite(&golden(name));
        if name.contains("dtypes") {
            // The reference writer leaves metadata in hash order; everything after it must agree.
            let cut = |bytes: &[u8]| bytes.windows(6).position(|w| w == b"\"i64\":").unwrap();
            let (a, b) = (cut(&original), cut(&ours));
            assert_eq!(original[a..], ours[b..], "{name}");
            ours.clone_from(&original);
        }
        assert_eq!(original.len(), ours.len(), "{name}");
        assert!(original == ours, "{name} differs");
    }
}

#[test]
fn every_dtype_of_the_reference_file_is_read() {
    let file = SafetensorsFile::open(golden("files/dtypes.safetensors")).unwrap();
    let types: Vec<DType> = file.tensors().map(|t| t.dtype).collect();
    assert!(types.is_sorted(), "the reference writer's order is the order of DType::ALL");
    for tensor in file.tensors() {
        match tensor.to_f32() {
            Ok(values) => assert_eq!(values.len(), tensor.elements(), "{}", tensor.name),
            Err(error) => {
                assert_eq!(tensor.dtype, DType::C64, "{error}");
                assert_eq!(error.variant(), "NotNumeric");
            }
        }
    }
    assert_eq!(file.get("scalar").unwrap().shape, &[] as &[usize]);
    assert_eq!(file.get("empty").unwrap().shape, [0, 3]);
}

#[test]
fn names_of_dtypes_round_trip() {
    for dtype in DType::ALL {
        assert_eq!(DType::from_name(dtype.name()), Some(dtype));
    }
    assert_eq!(DType::from_name("F31"), None);
}

#[test]
fn sub_byte_elements_are_decoded_from_the_bit_stream() {
    let mut out = [0.0; 4];
    assert!(DType::F4.decode_f32(&[0x21, 0x7f], &mut out), "F4 is numeric");
    assert_eq!(out, [0.5, 1.0, -6.0, 6.0]);
    // Codes 1, 2, 3, 63 of E2M3 as a stream of 6 bits: 0.125, 0.25, 0.375, -7.5.
    let stream: u32 = 1 | 2 << 6 | 3 << 12 | 63 << 18;
    assert!(DType::F6E2M3.decode_f32(&stream.to_le_bytes()[..3], &mut out), "F6 is numeric");
    assert_eq!(out, [0.125, 0.25, 0.375, -7.5]);
}

#[test]
fn tensors_may_be_written_in_any_order_and_the_bytes_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let specs = [
        TensorSpec::new("b", DType::U8, &[3]),
        TensorSpec::new("a", DType::F32, &[1]),
        TensorSpec::new("c", DType::U8, &[0]),
    ];
    let contents = |name: &str| match name {
        "a" => vec![1, 2, 3, 4],
        "b" => vec![5, 6, 7],
        _ => vec![],
    };
    let mut files = Vec::new();
    for order in [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]] {
        let path = folder.path().join("x.safetensors");
        let plan = FilePlan::new(&specs, BTreeMap::from([("format".to_owned(), "pt".to_owned())])).unwrap();
        let size = plan.file_bytes();
        let mut writer = SafetensorsWriter::create(&path, plan).unwrap();
        for name in order {
            writer.write(name, &contents(name)).unwrap();
        }
        assert!(!path.exists() || !files.is_empty(), "the file appears only when it is finished");
        writer.finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size, "the plan knows the exact size");
        files.push(std::fs::read(path).unwrap());
    }
    assert!(files.windows(2).all(|w| w[0] == w[1]), "the order of writing must not matter");
    assert_eq!(Header::parse(&files[0]).unwrap().metadata()["format"], "pt");
}

#[test]
fn a_writer_that_fails_or_is_dropped_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let plan = || FilePlan::new(&[TensorSpec::new("a", DType::F32, &[2])], BTreeMap::new()).unwrap();
    let mut writer = SafetensorsWriter::create(&path, plan()).unwrap();
    assert_eq!(writer.write("a", &[0; 7]).unwrap_err().variant(), "SizeMismatch");
    assert_eq!(writer.write("b", &[0; 8]).unwrap_err().variant(), "NotPlanned");
    assert_eq!(SafetensorsWriter::create(&path, plan()).unwrap_err().variant(), "Busy");
    assert_eq!(writer.finish().unwrap_err().variant(), "Unwritten");
    drop(SafetensorsWriter::create(&path, plan()).unwrap());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let mut writer = SafetensorsWriter::create(&path, plan()).unwrap();
    writer.write("a", &[0; 8]).unwrap();
    assert_eq!(writer.write("a", &[0; 8]).unwrap_err().variant(), "NotPlanned");
}

#[test]
fn the_leftover_of_a_killed_writer_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    std::fs::write(folder.path().join("x.json.tmp"), "half a fi").unwrap();
    quant_io::write_atomically(&path, b"whole").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_can_be_saved_onto_itself_while_it_is_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values: Vec<u8> = (0..=255).collect();
    let spec = TensorSpec::new("w", DType::U8, &[256]);
    std::fs::write(&path, serialize(&[(spec.clone(), &values)], BTreeMap::new()).unwrap()).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    let specs = [spec, TensorSpec::new("again", DType::U8, &[256])];
    let mut writer = SafetensorsWriter::create(&path, FilePlan::new(&specs, BTreeMap::new()).unwrap()).unwrap();
    writer.write("again", file.get("w").unwrap().bytes).unwrap();
    writer.write("w", file.get("w").unwrap().bytes).unwrap();
    writer.finish().unwrap();
    assert_eq!(file.get("w").unwrap().bytes, values, "the mapped file is the old one");
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.get("again").unwrap().bytes, values);
}

#[test]
fn errors_name_the_file_and_the_tensor() {
    let json = br#"{"layer.weight":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#;
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json);
    let error = SafetensorsFile::from_bytes(FileBytes::owned("some/file.safetensors", bytes)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("file.safetensors") && text.contains("layer.weight") && text.contains("F31"), "{text}");
    assert!(matches!(error.root(), Error::UnknownDtype { .. }), "{error:?}");
    let error = SafetensorsFile::open("no/such/file").unwrap_err();
    assert!(error.to_string().starts_with("no/such/file: cannot open"), "{error}");
}

#[test]
fn names_are_free_text_even_when_they_look_like_paths() {
    for name in ["../../etc/passwd", "nul\0inside", "quote\"and\\slash", "ünïcode 🦀", ""] {
        let spec = TensorSpec::new(name, DType::U8, &[1]);
        let bytes = serialize(&[(spec, &[7])], BTreeMap::new()).unwrap();
        assert_eq!(Header::parse(&bytes).unwrap().tensors()[0].name, name);
    }
    let duplicate = [TensorSpec::new("a", DType::U8, &[1]), TensorSpec::new("a", DType::F32, &[1])];
    assert_eq!(FilePlan::new(&duplicate, BTreeMap::new()).unwrap_err().variant(), "DuplicateKey");
}

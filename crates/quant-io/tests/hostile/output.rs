//! What is left on disk when writing fails, or when the target is the file being read.

use quant_core::{Error as CoreError, Format, PackedTensor, Shaped};
use quant_io::safetensors::{DType, SafetensorsFile};
use quant_io::{Checkpoint, CheckpointPlan, CheckpointWriter, PlannedTensor};
use std::path::Path;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A plain tensor `w` of two rows of 32 and a plain tensor `b`.
fn plain_model(path: &Path, weight: &[f32; 64]) {
    let planned = [PlannedTensor::plain("w", DType::F32, &[2, 32]), PlannedTensor::plain("b", DType::U8, &[3])];
    let plan = CheckpointPlan::new(&planned, &Default::default(), Default::default()).unwrap();
    let mut writer = CheckpointWriter::create(path, plan).unwrap();
    let bytes: Vec<u8> = weight.iter().flat_map(|v| v.to_le_bytes()).collect();
    writer.write_plain("w", &bytes).unwrap();
    writer.write_plain("b", &[1, 2, 3]).unwrap();
    writer.finish().unwrap();
}

/// Packs `w` of one checkpoint into another.
fn pack(source: &Path, target: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let model = Checkpoint::open(source)?;
    let planned = [PlannedTensor::plain("b", DType::U8, &[3]), PlannedTensor::packed("w", Format::MXFP4, &[2, 32])];
    let plan = CheckpointPlan::new(&planned, &Default::default(), Default::default())?;
    let mut writer = CheckpointWriter::create(target, plan)?;
    writer.write_plain("b", &model.plain("b")?.ok_or("b is plain")?.bytes)?;
    let values = model.read_f32("w")?;
    writer.write_packed("w", &PackedTensor::encode(Format::MXFP4, &Shaped::new(&values, &[2, 32])?)?)?;
    writer.finish()?;
    Ok(())
}

#[test]
fn a_weight_that_is_not_finite_is_named_by_its_position_and_leaves_nothing_behind() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let folder = tempfile::tempdir().unwrap();
        let mut weight = [0.5; 64];
        weight[37] = bad;
        let source = folder.path().join("in.safetensors");
        plain_model(&source, &weight);
        let error = pack(&source, &folder.path().join("out.safetensors")).unwrap_err();
        let error = error.downcast_ref::<CoreError>().unwrap();
        assert!(matches!(error, CoreError::NonFinite { index: 37, .. }), "{error:?}");
        assert_eq!(names(folder.path()), ["in.safetensors"]);
    }
}

#[test]
fn a_source_that_is_cut_leaves_no_output() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("in.safetensors");
    plain_model(&source, &[0.5; 64]);
    let bytes = std::fs::read(&source).unwrap();
    std::fs::write(&source, &bytes[..bytes.len() - 1]).unwrap();
    let error = pack(&source, &folder.path().join("out.safetensors")).unwrap_err();
    assert_eq!(error.downcast_ref::<quant_io::Error>().unwrap().variant(), "Truncated");
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[test]
fn a_checkpoint_can_be_packed_onto_the_file_it_is_read_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    plain_model(&path, &[0.5; 64]);
    let before = SafetensorsFile::open(&path).unwrap();
    pack(&path, &path).unwrap();
    assert_eq!(before.get("b").unwrap().bytes, [1, 2, 3], "the mapped file is the old one");
    assert_eq!(before.get("w").unwrap().to_f32().unwrap(), [0.5; 64]);
    let after = Checkpoint::open(&path).unwrap();
    assert!(after.packed("w").unwrap().is_some(), "the new file is packed");
    assert_eq!(after.read_f32("w").unwrap(), [0.5; 64]);
    assert_eq!(names(folder.path()), ["model.safetensors"]);
}

#[test]
fn a_target_that_cannot_be_written_is_an_error_and_the_target_stays() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("in.safetensors");
    plain_model(&source, &[0.5; 64]);
    let missing = folder.path().join("no/such/folder/out.safetensors");
    let error = pack(&source, &missing).unwrap_err();
    assert_eq!(error.downcast_ref::<quant_io::Error>().unwrap().variant(), "Io");
    // A folder where the file should be.
    let folder_in_the_way = folder.path().join("out");
    std::fs::create_dir(&folder_in_the_way).unwrap();
    std::fs::write(folder_in_the_way.join("keep"), "me").unwrap();
    let error = quant_io::write_atomically(&folder_in_the_way, b"x").unwrap_err();
    assert_eq!(error.variant(), "Io");
    assert_eq!(names(folder.path()), ["in.safetensors", "out"]);
    assert_eq!(names(&folder_in_the_way), ["keep"]);
}

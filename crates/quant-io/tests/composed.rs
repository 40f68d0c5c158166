//! Tensors stored in parts: what is lent, and what is refused.

use quant_core::{Format, PackedTensor, Shaped};
use quant_io::composed::{COMPOSED_KEY, Description, Part};
use quant_io::packed::{self, PACKED_KEY, VERSION_KEY};
use quant_io::safetensors::{DType, TensorSpec, serialize};
use quant_io::{Checkpoint, CheckpointLayout, Error, FileBytes, Stored};
use std::collections::BTreeMap;

/// A file with a pair: `w.a` plain, `w.b` packed, and another tensor.
struct File {
    tensors: Vec<(TensorSpec, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
}

fn description(parts: &[&str], shape: &[u64]) -> Description {
    Description {
        kind: "low-rank".to_owned(),
        version: 1,
        shape: shape.to_vec(),
        parts: parts.iter().map(|part| (*part).to_owned()).collect(),
        settings: serde_json::Value::Null,
    }
}

impl File {
    fn new() -> Self {
        let b = PackedTensor::encode(Format::INT8, &Shaped::new(&[1.0_f32; 64], &[1, 64]).expect("a shape"));
        let b = b.expect("a packed row");
        let mut metadata = packed::metadata([("w.b", Format::INT8, &[1, 64][..])]);
        metadata.extend(description(&["a", "b"], &[4, 64]).metadata("w"));
        let mut tensors = vec![
            (TensorSpec::new("norm", DType::F32, &[2]), vec![0; 8]),
            (TensorSpec::new("w.a", DType::F32, &[4, 1]), 1.0_f32.to_le_bytes().repeat(4)),
        ];
        for (spec, (_, bytes)) in
            packed::specs("w.b", Format::INT8, &[1, 64]).expect("specs").into_iter().zip(packed::sections("w.b", &b))
        {
            tensors.push((spec, bytes.into_owned()));
        }
        Self { tensors, metadata }
    }

    fn describe(mut self, text: &str) -> Self {
        self.metadata.insert(format!("{COMPOSED_KEY}w"), text.to_owned());
        self
    }

    fn open(&self) -> Result<Checkpoint, Error> {
        let lent: Vec<_> = self.tensors.iter().map(|(spec, bytes)| (spec.clone(), bytes.as_slice())).collect();
        let bytes = serialize(&lent, self.metadata.clone())?;
        Checkpoint::from_bytes(FileBytes::owned("x.safetensors", bytes))
    }

    #[track_caller]
    fn refused(&self) -> Error {
        match self.open() {
            Ok(_) => panic!("the file was accepted"),
            Err(Error::InFile { source, .. }) => *source,
            Err(error) => error,
        }
    }
}

#[test]
fn parts_are_lent_and_counted_as_one_tensor() {
    let model = File::new().open().expect("a checkpoint");
    assert_eq!(model.layout(), CheckpointLayout::Leanbits, "it is ours");
    let names: Vec<&str> = model.entries().iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names.len(), 2, "parts are no tensors of their own: {names:?}");
    let entry = model.entry("w").expect("the whole");
    assert_eq!((entry.shape.as_slice(), entry.stored), (&[4, 64][..], Stored::Composed), "{entry:?}");
    let stored: usize = File::new().tensors.iter().skip(1).map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(entry.bytes, stored as u64, "everything stored");
    let composed = model.composed("w").expect("there").expect("composed");
    assert_eq!(composed.description().kind, "low-rank", "the method knows what that is");
    assert!(matches!(composed.part("a").expect("lent"), Some(Part::Plain(a)) if a.shape == [4, 1]), "a plain part");
    assert!(matches!(composed.part("b").expect("lent"), Some(Part::Packed(b)) if b.shape() == [1, 64]), "a packed one");
    assert!(composed.part("c").expect("no error").is_none(), "there is no c");
    assert!(model.composed("norm").expect("there").is_none(), "a plain tensor has no parts");
    let refused = model.read_f32("w").map_err(|error| error.root().to_string());
    assert!(refused.is_err_and(|text| text.contains("low-rank")), "decoding is the method's business");
}

#[test]
fn readers_of_version_one_never_meet_a_composed_tensor() {
    let mut file = File::new();
    file.metadata.insert(VERSION_KEY.to_owned(), "1".to_owned());
    assert!(matches!(file.refused(), Error::BadField { field, .. } if field.starts_with(COMPOSED_KEY)), "version 1");
    file.metadata.insert(VERSION_KEY.to_owned(), "3".to_owned());
    assert!(matches!(file.refused(), Error::UnsupportedVersion { found, .. } if found == "3"), "version 3");
    file.metadata.remove(VERSION_KEY);
    file.metadata.retain(|key, _| !key.starts_with(PACKED_KEY));
    assert!(matches!(file.refused(), Error::BadField { .. }), "no version");
}

#[test]
fn hostile_descriptions_are_refused_by_name() {
    let json = |parts: &str, shape: &str| {
        format!("{{\"kind\":\"low-rank\",\"version\":1,\"shape\":{shape},\"parts\":{parts}}}")
    };
    let many: Vec<String> = (0..17).map(|i| format!("\"p{i}\"")).collect();
    let missing = File::new().describe(&json("[\"a\",\"c\"]", "[4,64]")).refused();
    assert!(matches!(&missing, Error::MissingSection { section, .. } if section == "w.c"), "{missing}");
    for (text, what) in [
        ("{".to_owned(), "no JSON"),
        (json("[\"a\",\"b\"]", "[4,64]").replace("low-rank", "LOW RANK"), "a kind that is no name"),
        (json("[]", "[4,64]"), "no parts"),
        (json("[\"a\",\"a\"]", "[4,64]"), "a part twice"),
        (json("[\"a/../b\"]", "[4,64]"), "a part that is no name"),
        (json("[\"a\",\"b\"]", "[]"), "no axes"),
        (json("[\"a\",\"b\"]", "[0,64]"), "no elements"),
        (json("[\"a\",\"b\"]", "[4,-64]"), "a negative axis"),
        (json("[\"a\",\"b\"]", "[4,64]").replace("\"version\"", "\"extra\":1,\"version\""), "an unknown key"),
    ] {
        let error = File::new().describe(&text).refused();
        assert!(matches!(error, Error::BadField { .. }), "{what}: {error}");
    }
    let parts = File::new().describe(&json(&format!("[{}]", many.join(",")), "[4,64]")).refused();
    assert!(matches!(parts, Error::TooLarge { value: 17, .. }), "{parts}");
    let huge = File::new().describe(&json("[\"a\",\"b\"]", "[1000000,1000000]")).refused();
    assert!(matches!(huge, Error::TooLarge { .. }), "a small file never decodes to a terabyte: {huge}");
    let overflow = File::new().describe(&json("[\"a\",\"b\"]", "[9223372036854775807,9223372036854775807]")).refused();
    assert!(matches!(overflow, Error::Overflow { .. }), "{overflow}");
}

#[test]
fn names_of_composed_tensors_and_their_parts_do_not_collide() {
    let mut file = File::new();
    file.tensors.push((TensorSpec::new("w", DType::F32, &[1]), vec![0; 4]));
    assert!(matches!(file.refused(), Error::DuplicateKey { key } if key == "w"), "the whole is there already");
    let mut file = File::new();
    file.tensors.push((TensorSpec::new("v.a", DType::F32, &[1]), vec![0; 4]));
    file.metadata.extend(description(&["a"], &[1]).metadata("v"));
    assert!(file.open().is_ok(), "another composed tensor has parts of its own");
    file.metadata.extend(description(&["a"], &[1]).metadata("v.a"));
    assert!(matches!(file.refused(), Error::DuplicateKey { .. }), "a part is no composed tensor itself");
}

//! Packed tensors of this project.

use super::Cases;
use quant_core::{Format, PackedTensor, Shaped};
use quant_io::packed::{self, PACKED_KEY, VERSION_KEY};
use quant_io::safetensors::{DType, TensorSpec, serialize};
use std::collections::BTreeMap;

struct Parts {
    tensors: Vec<(TensorSpec, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
}

impl Parts {
    /// The packed tensor `w` of this format and shape.
    fn new(format: &str, shape: &[usize]) -> Self {
        let format: Format = format.parse().expect("the names in this file are formats");
        let elements = u16::try_from(shape.iter().product::<usize>()).expect("cases are small");
        let values: Vec<f32> = (0..elements).map(|i| f32::from(i * 37 % 101) / 32.0 - 1.5).collect();
        let tensor = Shaped::new(&values, shape).expect("as many values as the shape has");
        let packed = PackedTensor::encode(format, &tensor).expect("finite values");
        let specs = packed::specs("w", format, shape).expect("a shape that was encoded");
        let sections = packed::sections("w", &packed);
        let tensors = specs.into_iter().zip(sections).map(|(spec, (_, bytes))| (spec, bytes.into_owned())).collect();
        Self { tensors, metadata: packed::metadata([("w", format, shape)]) }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Vec<u8> {
        change(&mut self);
        let tensors: Vec<_> = self.tensors.iter().map(|(spec, bytes)| (spec.clone(), bytes.as_slice())).collect();
        serialize(&tensors, self.metadata).expect("cases are well-formed containers")
    }

    fn section(&mut self, name: &str) -> &mut Vec<u8> {
        let found = self.tensors.iter_mut().find(|(spec, _)| spec.name == format!("w.{name}"));
        &mut found.expect("the case has this section").1
    }

    fn describe(&mut self, text: &str) {
        self.metadata.insert(format!("{PACKED_KEY}w"), text.to_owned());
    }
}

pub(crate) fn make(cases: &mut Cases) {
    good(cases);
    descriptions(cases);
    sections(cases);
    scales(cases);
}

fn good(cases: &mut Cases) {
    for format in [
        "int8",
        "int4-g32",
        "int4-g32-asym",
        "int3-min",
        "fp8",
        "fp8-t2x16",
        "mxfp8",
        "mxfp6",
        "mxfp4",
        "mxint8",
        "nvfp4",
        "nvint4",
        "nf4",
        "nf4-dq",
        "sefp4",
        "ternary",
        "fp8-cast",
        "int1",
    ] {
        cases.add(&format!("good-{format}"), "ok", Parts::new(format, &[3, 32]).with(|_| ()));
    }
    cases.add("good-ragged-groups", "ok", Parts::new("int4-g32", &[2, 45]).with(|_| ()));
    cases.add("good-group-larger-than-row", "ok", Parts::new("int4-g128", &[2, 45]).with(|_| ()));
    cases.add("good-vector", "ok", Parts::new("mxfp4", &[40]).with(|_| ()));
}

fn descriptions(cases: &mut Cases) {
    let version = |text: &str| {
        let text = text.to_owned();
        Parts::new("mxfp4", &[2, 32]).with(|p| drop(p.metadata.insert(VERSION_KEY.to_owned(), text)))
    };
    cases.add("version-from-the-future", "UnsupportedVersion", version("3"));
    cases.add("version-zero", "UnsupportedVersion", version("0"));
    cases.add("version-empty", "UnsupportedVersion", version(""));
    cases.add("version-with-space", "UnsupportedVersion", version("1 "));
    let removed = Parts::new("mxfp4", &[2, 32]).with(|p| drop(p.metadata.remove(VERSION_KEY)));
    cases.add("version-missing", "BadField", removed);
    let unknown = Parts::new("mxfp4", &[2, 32]).with(|p| {
        p.metadata.insert("leanbits.rotation".to_owned(), "hadamard".to_owned());
    });
    cases.add("unknown-required-field", "BadField", unknown);

    let described = |text: &str| Parts::new("mxfp4", &[2, 32]).with(|p| p.describe(text));
    let format = |name: &str| described(&format!("{{\"format\":\"{name}\",\"shape\":[2,32]}}"));
    for (case, name) in [
        ("unknown", "mxfp5"),
        ("empty", ""),
        ("bits-0", "int0"),
        ("bits-9", "int9"),
        ("group-0", "mxfp4-g0"),
        ("group-overflows", "int4-g4294967296"),
        ("tile-0", "fp8-t0x4"),
        ("modifiers-contradict", "int4-g32-g64"),
        ("two-scales", "mxfp4-floor-ceil"),
    ] {
        cases.add(&format!("format-{case}"), "Packed", format(name));
    }
    cases.add("format-long", "Packed", format(&"int4-".repeat(600)));
    cases.add("format-of-another-size", "BadSection", format("mxfp8"));
    cases.add("format-with-more-sections", "BadSection", format("nvfp4"));

    let shape = |text: &str| described(&format!("{{\"format\":\"mxfp4\",\"shape\":{text}}}"));
    cases.add("shape-other", "BadSection", shape("[3,32]"));
    cases.add("shape-zero", "Packed", shape("[2,0]"));
    cases.add("shape-overflows", "Overflow", shape("[4294967296,4294967296]"));
    cases.add("shape-overflows-by-element", "Overflow", shape("[1152921504606846976]"));
    cases.add("shape-max", "Overflow", shape("[18446744073709551615]"));
    cases.add("shape-negative", "BadField", shape("[-2,32]"));
    cases.add("shape-fraction", "BadField", shape("[2,32.0]"));
    cases.add("shape-text", "BadField", shape("\"2x32\""));
    cases.add("description-no-json", "BadField", described("mxfp4 2x32"));
    cases.add("description-array", "BadField", described("[\"mxfp4\",[2,32]]"));
    cases.add("description-without-shape", "BadField", described("{\"format\":\"mxfp4\"}"));
    cases.add("description-unknown-field", "BadField", described("{\"format\":\"mxfp4\",\"shape\":[2,32],\"axis\":0}"));
    cases.add("description-deep", "BadField", described(&"[".repeat(3000)));
}

fn sections(cases: &mut Cases) {
    let parts = || Parts::new("nvfp4", &[2, 32]);
    for section in ["codes", "scales", "second"] {
        let missing = parts().with(|p| p.tensors.retain(|(spec, _)| spec.name != format!("w.{section}")));
        cases.add(&format!("section-{section}-missing"), "MissingSection", missing);
    }
    let zeros = Parts::new("int4-g32-asym", &[2, 32]).with(|p| p.tensors.retain(|(s, _)| s.name != "w.zeros"));
    cases.add("section-zeros-missing", "MissingSection", zeros);
    cases.add("section-with-dtype-i8", "BadSection", parts().with(|p| p.tensors[0].0.dtype = DType::I8));
    cases.add("section-flat", "BadSection", parts().with(|p| p.tensors[0].0.shape = vec![32]));
    let short = parts().with(|p| {
        p.tensors[1].0.shape = vec![2, 1];
        p.tensors[1].1.truncate(2);
    });
    cases.add("section-scales-short", "BadSection", short);
    let plain = parts().with(|p| p.tensors.push((TensorSpec::new("w", DType::U8, &[1]), vec![0])));
    cases.add("name-also-plain", "DuplicateKey", plain);
    let other = parts().with(|p| p.tensors.push((TensorSpec::new("w.other", DType::U8, &[1]), vec![0])));
    cases.add("unrelated-neighbour", "ok", other);
}

fn scales(cases: &mut Cases) {
    let scale = |format: &str, section: &str, bytes: &[u8]| {
        Parts::new(format, &[2, 32]).with(|p| p.section(section)[..bytes.len()].copy_from_slice(bytes))
    };
    cases.add("scale-f16-nan", "Packed", scale("int8", "scales", &[0, 0x7e]));
    cases.add("scale-f16-infinite", "Packed", scale("int8", "scales", &[0, 0x7c]));
    cases.add("scale-f16-minus-infinite", "Packed", scale("int8", "scales", &[0, 0xfc]));
    cases.add("scale-f16-zero", "ok", scale("int8", "scales", &[0, 0]));
    cases.add("scale-f16-subnormal", "ok", scale("int8", "scales", &[1, 0]));
    cases.add("scale-f32-nan", "Packed", scale("fp8", "scales", &f32::NAN.to_le_bytes()));
    cases.add("scale-f32-infinite", "Packed", scale("nf4", "scales", &f32::INFINITY.to_le_bytes()));
    cases.add("scale-bf16-nan", "Packed", scale("int4-bf16", "scales", &[0xc0, 0x7f]));
    cases.add("scale-e8m0-reserved", "Packed", scale("mxfp4", "scales", &[255]));
    cases.add("scale-e8m0-least", "ok", scale("mxfp4", "scales", &[0]));
    cases.add("scale-e4m3-nan", "Packed", scale("nvfp4", "scales", &[0x7f]));
    cases.add("scale-e4m3-minus-nan", "Packed", scale("nvfp4", "scales", &[0xff]));
    cases.add("tensor-scale-nan", "Packed", scale("nvfp4", "second", &f32::NAN.to_le_bytes()));
    cases.add("tensor-scale-infinite", "Packed", scale("nvfp4", "second", &f32::NEG_INFINITY.to_le_bytes()));
    cases.add("tensor-scale-overflows", "Packed", scale("nvfp4", "second", &f32::MAX.to_le_bytes()));
    cases.add("double-scale-nan", "Packed", scale("nf4-dq", "second", &f32::NAN.to_le_bytes()));
    cases.add("zero-float-nan", "Packed", scale("int4-min", "zeros", &[0, 0x7e]));
    cases.add("codes-arbitrary", "ok", scale("nf4", "codes", &[0xff; 16]));
    cases.add("codes-beyond-base-3", "ok", scale("ternary", "codes", &[0xff; 6]));
}

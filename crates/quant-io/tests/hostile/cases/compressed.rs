//! compressed-tensors: a configuration and a file, as `fuzz_bodies::compressed_tensors` takes them.

use super::Cases;
use quant_core::{Format, PackedTensor, Shaped};
use quant_io::compressed_tensors::{ModuleSpec, Plan, WriteOptions, module_tensors};
use quant_io::safetensors::{DType, TensorSpec, serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

struct Parts {
    config: Value,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
}

impl Parts {
    /// The module `m` of 8 rows and 64 columns.
    fn new(format: &str) -> Self {
        let format: Format = format.parse().expect("the names in this file are formats");
        let values: Vec<f32> = (0..512_u16).map(|i| f32::from(i * 37 % 101) / 32.0 - 1.5).collect();
        let tensor = Shaped::new(&values, &[8, 64]).expect("8 times 64 values");
        let packed = PackedTensor::encode(format, &tensor).expect("finite values");
        let module = ModuleSpec { name: "m", format, shape: &[8, 64] };
        let plan = Plan::new(&[module], &[], WriteOptions::default()).expect("formats that the layout holds");
        let tensors = module_tensors("m", &packed, WriteOptions::default()).expect("as planned");
        Self {
            config: json!({ "quantization_config": plan.quantization_config() }),
            tensors: tensors.into_iter().map(|t| (t.spec, t.bytes.into_owned())).collect(),
        }
    }

    fn section(&mut self, name: &str) -> &mut (TensorSpec, Vec<u8>) {
        let found = self.tensors.iter_mut().find(|(spec, _)| spec.name == format!("m.{name}"));
        found.expect("the case has this section")
    }

    fn replace(&mut self, name: &str, dtype: DType, shape: &[usize], bytes: Vec<u8>) {
        self.tensors.retain(|(spec, _)| spec.name != format!("m.{name}"));
        self.tensors.push((TensorSpec::new(format!("m.{name}"), dtype, shape), bytes));
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Vec<u8> {
        change(&mut self);
        let config = self.config.to_string();
        let tensors: Vec<_> = self.tensors.iter().map(|(spec, bytes)| (spec.clone(), bytes.as_slice())).collect();
        let file = serialize(&tensors, BTreeMap::new()).expect("cases are well-formed containers");
        let length = u32::try_from(config.len()).expect("cases are small").to_le_bytes();
        [&length[..], config.as_bytes(), &file].concat()
    }
}

pub(crate) fn make(cases: &mut Cases) {
    for format in [
        "int4-g32-bf16",
        "int4-g32-asym-bf16",
        "int3-row-bf16",
        "int8-tensor-f32",
        "fp8-bf16",
        "fp8-t4x32",
        "nvfp4-ct",
        "mxfp4",
        "mxfp6",
        "mxfp8",
    ] {
        cases.add(&format!("good-{format}"), "ok", Parts::new(format).with(|_| ()));
    }
    cases.add("nothing", "Truncated", []);
    cases.add("config-beyond-end", "Truncated", [0xff, 0xff, 0xff, 0xff, b'{', b'}']);
    sections(cases);
    scales(cases);
    shapes(cases);
    schemes(cases);
}

fn sections(cases: &mut Cases) {
    let without = |format: &str, name: &str| {
        Parts::new(format).with(|p| p.tensors.retain(|(spec, _)| spec.name != format!("m.{name}")))
    };
    cases.add("no-scale", "MissingSection", without("int4-g32-bf16", "weight_scale"));
    cases.add("no-zero-point", "MissingSection", without("int4-g32-asym-bf16", "weight_zero_point"));
    cases.add("no-global-scale", "MissingSection", without("nvfp4-ct", "weight_global_scale"));
    cases.add("no-shape-of-channels", "MissingSection", without("int3-row-bf16", "weight_shape"));
    cases.add("no-shape-of-groups", "ok", without("int4-g32-bf16", "weight_shape"));
    let both = Parts::new("int4-g32-bf16").with(|p| p.replace("weight", DType::U8, &[1], vec![0]));
    cases.add("packed-and-plain", "DuplicateKey", both);
    let stray = Parts::new("int4-g32-bf16").with(|p| p.replace("input_scale", DType::F32, &[1], vec![0; 4]));
    cases.add("scale-of-inputs-beside", "ok", stray);
}

fn scales(cases: &mut Cases) {
    let patched = |format: &str, section: &str, bytes: &[u8]| {
        Parts::new(format).with(|p| p.section(section).1[..bytes.len()].copy_from_slice(bytes))
    };
    cases.add("scale-nan", "Packed", patched("int4-g32-bf16", "weight_scale", &[0xc0, 0x7f]));
    cases.add("scale-infinite", "Packed", patched("fp8-bf16", "weight_scale", &[0x80, 0x7f]));
    cases.add("scale-e8m0-reserved", "Packed", patched("mxfp4", "weight_scale", &[0xff]));
    cases.add("scale-e4m3-nan", "Packed", patched("nvfp4-ct", "weight_scale", &[0x7f]));
    let global = |x: f32| patched("nvfp4-ct", "weight_global_scale", &x.to_le_bytes());
    cases.add("global-scale-nan", "Packed", global(f32::NAN));
    cases.add("global-scale-infinite", "Packed", global(f32::INFINITY));
    cases.add("global-scale-zero", "Packed", global(0.0));
    let dtype = |format: &str, dtype, bytes| {
        Parts::new(format).with(|p| {
            let shape = p.section("weight_scale").0.shape.clone();
            p.replace("weight_scale", dtype, &shape, vec![1; bytes]);
        })
    };
    cases.add("scale-of-integers", "BadSection", dtype("int4-g32-bf16", DType::I32, 64));
    cases.add("scale-of-floats-for-mx", "BadSection", dtype("mxfp4", DType::F32, 64));
    let wrong = Parts::new("int4-g32-bf16").with(|p| p.replace("weight_scale", DType::BF16, &[8, 1], vec![0; 16]));
    cases.add("scale-of-fewer-groups", "BadSection", wrong);
}

fn shapes(cases: &mut Cases) {
    let stated = |sides: [i64; 2]| {
        Parts::new("int4-g32-bf16").with(|p| p.section("weight_shape").1 = sides.map(i64::to_le_bytes).concat())
    };
    cases.add("shape-negative", "BadField", stated([-8, 64]));
    cases.add("shape-zero", "BadField", stated([8, 0]));
    cases.add("shape-huge", "BadSection", stated([i64::MAX, i64::MAX]));
    cases.add("shape-of-more-columns", "BadSection", stated([8, 128]));
    let floats = Parts::new("int4-g32-bf16").with(|p| p.replace("weight_shape", DType::F64, &[2], vec![0; 16]));
    cases.add("shape-of-floats", "BadSection", floats);
    let three = Parts::new("int4-g32-bf16").with(|p| p.replace("weight_shape", DType::I64, &[3], vec![8; 24]));
    cases.add("shape-of-three", "BadSection", three);
    let empty = Parts::new("mxfp4").with(|p| {
        p.replace("weight_packed", DType::U8, &[0, 1 << 62], Vec::new());
        p.replace("weight_scale", DType::U8, &[0, 2], Vec::new());
    });
    cases.add("codes-without-rows", "BadSection", empty);
    let vector = Parts::new("fp8-bf16").with(|p| p.section("weight").0.shape = vec![512]);
    cases.add("codes-as-vector", "BadSection", vector);
    let signed = Parts::new("mxfp4").with(|p| p.section("weight_packed").0.dtype = DType::I8);
    cases.add("codes-of-wrong-type", "BadSection", signed);
    let order = |value: i32| {
        let bytes = (0..64).flat_map(|i| if i == 0 { value.to_le_bytes() } else { (i / 32_i32).to_le_bytes() });
        Parts::new("int4-g32-bf16").with(|p| p.replace("weight_g_idx", DType::I32, &[64], bytes.collect()))
    };
    cases.add("order-of-groups", "ok", order(1));
    cases.add("order-beyond-groups", "BadField", order(2));
    cases.add("order-negative", "BadField", order(-1));
    let short = Parts::new("int4-g32-bf16").with(|p| p.replace("weight_g_idx", DType::I32, &[8], vec![0; 32]));
    cases.add("order-too-short", "BadSection", short);
}

fn schemes(cases: &mut Cases) {
    let weights = |key: &str, value: Value| {
        let key = key.to_owned();
        Parts::new("int4-g32-bf16").with(move |p| {
            p.config["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value;
        })
    };
    cases.add("bits-of-another-width", "BadSection", weights("num_bits", json!(8)));
    cases.add("groups-do-not-divide", "RaggedBlocks", weights("group_size", json!(48)));
    cases.add("integers-said-to-be-floats", "Unsupported", weights("type", json!("float")));
    let target = |target: &str| {
        Parts::new("int4-g32-bf16").with(|p| {
            p.config["quantization_config"]["config_groups"]["group_0"]["targets"] = json!([target]);
        })
    };
    cases.add("target-elsewhere", "NoScheme", target("model.other"));
    cases.add("target-by-pattern", "ok", target("re:^m$"));
    cases.add("target-by-broken-pattern", "BadPattern", target("re:("));
    let ignored = Parts::new("int4-g32-bf16").with(|p| p.config["quantization_config"]["ignore"] = json!(["m"]));
    cases.add("compressed-but-ignored", "NoScheme", ignored);
    let dense = Parts::new("int4-g32-bf16").with(|p| {
        p.config["quantization_config"]["config_groups"]["group_0"]["format"] = json!("nvfp4-pack-quantized");
    });
    cases.add("format-of-another-layout", "Unsupported", dense);
}

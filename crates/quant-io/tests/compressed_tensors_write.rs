//! compressed-tensors: what is written is read back to the same values, and what cannot be held is refused.

use half::f16;
use quant_core::{Format, FormatGrid, PackedTensor, Shaped};
use quant_io::Error;
use quant_io::compressed_tensors::{
    Compressed, Int8, ModuleSpec, NamedTensor, Plan, Scales, WriteOptions, module_tensors, native_format,
};
use quant_io::safetensors::{DType, TensorBytes};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

fn weights(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..rows * columns).map(|_| (uniform() + uniform() + uniform()) * 0.1).collect()
}

fn encode(format: &str, rows: usize, columns: usize) -> PackedTensor<'static> {
    let values = weights(rows, columns, (rows * columns) as u64);
    PackedTensor::encode(format.parse().unwrap(), &Shaped::new(&values, &[rows, columns]).unwrap()).unwrap()
}

fn lookup<'a>(tensors: &'a [NamedTensor<'_>]) -> impl Fn(&str) -> Option<TensorBytes<'a>> {
    move |name| {
        let NamedTensor { spec, bytes } = tensors.iter().find(|tensor| tensor.spec.name == name)?;
        Some(TensorBytes { name: &spec.name, dtype: spec.dtype, shape: &spec.shape, bytes })
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every format the layout holds, with shapes that are no multiples of words or tiles where that is allowed.
fn held() -> Vec<(String, usize, usize)> {
    let mut held = Vec::new();
    for width in 1..=8 {
        for rule in ["full", "ctsym", "asym", "ctasym", "awqasym"] {
            held.push((format!("int{width}-g16-{rule}"), 37, 48));
            held.push((format!("int{width}-row-{rule}-f32"), 9, 77));
            held.push((format!("int{width}-tensor-{rule}-bf16"), 5, 13));
        }
        if width > 1 {
            for rule in ["sym", "gptq", "awq"] {
                held.push((format!("int{width}-g32-{rule}-bf16"), 3, 96));
            }
        }
    }
    for block in ["row", "tensor", "t128x128", "t2x4", "g128"] {
        held.push((format!("fp8-e4m3-{block}"), 130, 256));
        held.push((format!("fp8-e4m3-{block}-bf16"), 7, 128));
    }
    held.push(("fp8-e4m3-t128x128".to_owned(), 130, 200));
    for format in
        ["mxfp8-e4m3", "mxfp6-e2m3", "mxfp4", "mxfp4-ct", "mxfp4-rceil", "nvfp4-ct", "nvfp4-torchao1", "nvfp4-mlx1"]
    {
        held.push((format.to_owned(), 6, 96));
    }
    held
}

#[test]
fn what_is_written_is_read_back_to_the_same_values() {
    for (format, rows, columns) in held() {
        let packed = encode(&format, rows, columns);
        let module = ModuleSpec { name: "layers.0.q_proj", format: packed.format(), shape: packed.shape() };
        for scales in [Scales::AsEncoded, Scales::F32] {
            for int8 in [Int8::Packed, Int8::Bytes] {
                let options = WriteOptions { scales, int8 };
                let plan = Plan::new(&[module], &[], options).unwrap();
                let tensors = module_tensors(module.name, &packed, options).unwrap();
                assert!(tensors.iter().map(|t| &t.spec).eq(&plan.tensors()[0]), "{format}");
                for tensor in &tensors {
                    assert_eq!(
                        tensor.spec.bytes().unwrap(),
                        tensor.bytes.len() as u64,
                        "{format} {}",
                        tensor.spec.name
                    );
                }
                let config = serde_json::json!({ "quantization_config": plan.quantization_config() });
                let model = Compressed::from_config(&config).unwrap().unwrap();
                let names = tensors.iter().map(|t| t.spec.name.as_str());
                assert_eq!(model.modules(names).unwrap(), [module.name], "{format}");
                let weight = model.read(module.name, lookup(&tensors)).unwrap();
                assert_eq!(weight.shape(), packed.shape());
                assert_eq!(bits(&weight.to_f32()), bits(&packed.decode()), "{format} {options:?}");
                if options == WriteOptions::default() {
                    let read = weight.format().unwrap();
                    assert_eq!((read.block, read.code_bits()), (packed.format().block, packed.format().code_bits()));
                }
            }
        }
    }
}

/// A sample of every family of formats, and whether the layout holds it.
#[test]
fn formats_without_a_place_are_refused_with_the_reason() {
    let refused = [
        "nf4",
        "af4",
        "bnbfp4",
        "int4-g128-min",
        "int4-g64-mlx",
        "int1",
        "mxint8",
        "nvint4",
        "mxfp8-e5m2",
        "mxfp6-e3m2",
        "fp8-e5m2",
        "fp8-e4m3fnuz",
        "fp8-e4m3-cast",
        "bf16",
        "sefp8",
        "gse4",
        "bfp5",
        "ternary",
        "nf4-dq",
        "int4-t2x4",
        "mxfp4-g64",
        "nvfp4-g32",
    ];
    for name in refused {
        let format: Format = name.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(native_format(format), None, "{name}");
        let module = ModuleSpec { name: "m", format, shape: &[2, 128] };
        match Plan::new(&[module], &[], WriteOptions::default()) {
            Err(Error::GridMismatch { tensor, target, reason, .. }) => {
                assert_eq!((tensor.as_str(), target), ("m", "compressed-tensors"), "{name}: {reason}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    for format in Format::named() {
        if let Some(native) = native_format(format.format) {
            assert!(!refused.contains(&format.name), "{}", format.name);
            assert_eq!(native_format(native), Some(native), "{}: native formats stay as they are", format.name);
        }
    }
}

#[test]
fn shapes_that_the_package_refuses_are_refused() {
    let plan = |format: Format, shape: &[usize]| {
        Plan::new(&[ModuleSpec { name: "m", format, shape }], &[], WriteOptions::default()).map_err(|e| e.variant())
    };
    assert_eq!(plan(Format::INT4_G128, &[4, 192]).unwrap_err(), "RaggedBlocks");
    assert_eq!(plan(Format::INT4_G128, &[4, 64]).unwrap_err(), "RaggedBlocks");
    assert_eq!(plan(Format::MXFP4, &[4, 80]).unwrap_err(), "RaggedBlocks");
    assert_eq!(plan(Format::NVFP4, &[4, 24]).unwrap_err(), "RaggedBlocks");
    assert_eq!(plan(Format::INT8, &[4, 4, 64]).unwrap_err(), "GridMismatch");
    assert_eq!(plan(Format::INT8, &[64]).unwrap_err(), "GridMismatch");
    assert!(plan(Format::INT8, &[4, 63]).is_ok());
}

#[test]
fn a_tensor_scale_is_stored_only_if_its_reciprocal_gives_the_same_values() {
    let values = weights(8, 64, 3);
    let tensor = Shaped::new(&values, &[8, 64]).unwrap();
    let (mut exact, mut refused) = (0, 0);
    for power in 0..40 {
        // Odd multiples: most have no fitting reciprocal, powers of two always do.
        let scale = if power % 2 == 0 { 2.0_f32.powi(power - 30) } else { 1.0e-4 * power as f32 };
        let grid = FormatGrid::with_tensor_scale(Format::NVFP4, scale).unwrap();
        let packed = PackedTensor::encode_on(&grid, &tensor, quant_core::EncodeOptions::default()).unwrap();
        match module_tensors("m", &packed, WriteOptions::default()) {
            Ok(tensors) => {
                let config = Plan::new(
                    &[ModuleSpec { name: "m", format: packed.format(), shape: &[8, 64] }],
                    &[],
                    WriteOptions::default(),
                )
                .unwrap();
                let model = Compressed::from_config(config.quantization_config()).unwrap().unwrap();
                assert_eq!(bits(&model.read("m", lookup(&tensors)).unwrap().to_f32()), bits(&packed.decode()));
                exact += 1;
            }
            Err(error) => {
                assert_eq!(error.variant(), "GridMismatch", "{error}");
                assert!(error.to_string().contains("nvfp4-ct"), "{error}");
                assert_eq!(power % 2, 1, "the reciprocal of a power of two is exact");
                refused += 1;
            }
        }
    }
    assert!(exact >= 20 && refused > 0, "{exact} exact, {refused} refused");
}

#[test]
fn one_scheme_is_one_group_and_several_name_their_modules() {
    let module = |name, format| ModuleSpec { name, format, shape: &[2, 128] };
    let int4 = native_format(Format::INT4_G128).unwrap();
    let fp8 = Format::FP8_E4M3;
    let plan = |modules: &[ModuleSpec<'_>], left: &[&str]| {
        Plan::new(modules, left, WriteOptions::default()).unwrap().quantization_config().clone()
    };
    let one = plan(&[module("a.q_proj", int4), module("a.k_proj", int4)], &["z.gate", "b.router"]);
    assert_eq!(one["config_groups"]["group_0"]["targets"], serde_json::json!(["Linear"]));
    assert_eq!(one["ignore"], serde_json::json!(["b.router", "lm_head", "z.gate"]));
    assert_eq!((&one["format"], &one["quantization_status"]), (&"pack-quantized".into(), &"compressed".into()));

    let embedded = plan(&[module("model.embed_tokens", int4), module("lm_head", int4)], &[]);
    assert_eq!(embedded["config_groups"]["group_0"]["targets"], serde_json::json!(["Linear", "model.embed_tokens"]));
    assert_eq!(embedded["ignore"], serde_json::json!([]));

    let mixed = plan(&[module("a.q_proj", int4), module("a.o_proj", fp8), module("a.k_proj", int4)], &[]);
    assert_eq!(mixed["format"], "mixed-precision");
    let groups = &mixed["config_groups"];
    assert_eq!(groups["group_0"]["targets"], serde_json::json!(["a.q_proj", "a.k_proj"]));
    assert_eq!(groups["group_0"]["format"], "pack-quantized");
    assert_eq!(groups["group_1"]["targets"], serde_json::json!(["a.o_proj"]));
    assert_eq!(groups["group_1"]["format"], "float-quantized");
    let model = Compressed::from_config(&mixed).unwrap().unwrap();
    assert_eq!(model.group("a.o_proj").unwrap().unwrap().name, "group_1");
}

#[test]
fn wide_scales_are_the_stored_ones() {
    let packed = encode("int4-g32", 2, 64);
    let options = WriteOptions { scales: Scales::F32, ..WriteOptions::default() };
    let tensors = module_tensors("m", &packed, options).unwrap();
    let scales = tensors.iter().find(|t| t.spec.name == "m.weight_scale").unwrap();
    assert_eq!((scales.spec.dtype, scales.spec.shape.as_slice()), (DType::F32, &[2_usize, 2] as &[_]));
    let stored = packed.scales().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
    let written = scales.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    assert!(stored.eq(written));
}

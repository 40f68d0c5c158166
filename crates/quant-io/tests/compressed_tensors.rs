//! compressed-tensors: checkpoints that the Python package wrote are read to its very values.

use half::{bf16, f16};
use quant_core::{Format, PackedTensor, ScaleType, Shaped};
use quant_io::Error;
use quant_io::compressed_tensors::{
    Compressed, Config, Int8, Number, StorageFormat, Strategy, Weight, WriteOptions, module_tensors,
};
use quant_io::hf::ModelFolder;
use quant_io::safetensors::{DType, SafetensorsFile, TensorBytes};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const MODULE: &str = "model.layers.0.mlp.up_proj";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The package rounds the product to the type of the scales.
fn rounded(kind: ScaleType, values: &[f32]) -> Vec<u32> {
    values
        .iter()
        .map(|value| match kind {
            ScaleType::F32 => value.to_bits(),
            ScaleType::F16 => f16::from_f32(*value).to_f32().to_bits(),
            ScaleType::Bf16 => bf16::from_f32(*value).to_f32().to_bits(),
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A tensor in memory.
#[derive(Clone)]
struct Owned {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Owned {
    fn new(section: &str, dtype: DType, shape: &[usize], bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: format!("m.{section}"), dtype, shape: shape.to_vec(), bytes: bytes.into() }
    }
}

fn lookup<'a>(tensors: &'a [Owned]) -> impl Fn(&str) -> Option<TensorBytes<'a>> {
    move |name| {
        let tensor = tensors.iter().find(|tensor| tensor.name == name)?;
        Some(TensorBytes { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape, bytes: &tensor.bytes })
    }
}

fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn compressed(format: &str, weights: Value) -> Compressed {
    let config = json!({"quantization_config": {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }});
    Compressed::from_config(&config).unwrap().unwrap()
}

const FOLDERS: [(&str, &str); 8] = [
    ("ct_fp8_ch", "fp8-e4m3-bf16"),
    ("ct_mxfp4", "mxfp4-ct"),
    ("ct_mxfp8", "mxfp8-e4m3-ct"),
    ("ct_nvfp4", "nvfp4-ct"),
    ("ct_w3a16_sym_ch", "int3-ctsym-bf16"),
    ("ct_w4a16_asym_g32", "int4-g32-ctasym-bf16"),
    ("ct_w4a16_sym_g32", "int4-g32-ctsym-bf16"),
    ("ct_w8_int_ch", "int8-ctsym-bf16"),
];

#[test]
fn checkpoints_of_the_python_package_are_read_bit_for_bit() {
    for (name, format) in FOLDERS {
        let folder = ModelFolder::open(golden("files").join(name).join("")).unwrap();
        let file = &folder.shards().iter().find(|file| file.path().ends_with("model.safetensors")).unwrap();
        let compressed = Compressed::from_config(folder.config().unwrap()).unwrap().unwrap();
        assert_eq!(compressed.modules(file.tensors().map(|t| t.name)).unwrap(), [MODULE], "{name}");
        let weight = compressed.read(MODULE, |name| file.get(name)).unwrap();
        assert_eq!(weight.format().unwrap().to_string(), format, "{name}");
        let described = compressed.describe(MODULE, |name| file.get(name)).unwrap();
        assert_eq!((described.0.as_slice(), described.1), (weight.shape(), weight.format()), "{name}");

        let expected = SafetensorsFile::open(golden("files").join(name).join("expected.safetensors")).unwrap();
        let theirs = expected.tensor("deq").unwrap().to_f32().unwrap();
        let ours = rounded(weight.decompressed_type(), &weight.to_f32());
        assert_eq!(ours, bits(&theirs), "{name}");
    }
}

/// bf16 weights, so that the package's arithmetic (in the type of the weights) is that of the `ct` rules.
#[test]
fn encoding_the_original_weights_gives_the_files_of_the_python_package() {
    for (name, format) in FOLDERS {
        let file = SafetensorsFile::open(golden("files").join(name).join("model.safetensors")).unwrap();
        let expected = SafetensorsFile::open(golden("files").join(name).join("expected.safetensors")).unwrap();
        let weights = expected.tensor("w").unwrap();
        let values = weights.to_f32().unwrap();
        let format: Format = format.parse().unwrap();
        let packed = PackedTensor::encode(format, &Shaped::new(&values, weights.shape).unwrap()).unwrap();
        // The folder of int8 has codes as bytes.
        let options = WriteOptions { int8: Int8::Bytes, ..WriteOptions::default() };
        for tensor in module_tensors(MODULE, &packed, options).unwrap() {
            let theirs = file.tensor(&tensor.spec.name).unwrap();
            // Under FP8 scales, and to find those of NVFP4, the package divides in bf16 and we in f32.
            let approximate: &[&str] = match name {
                "ct_fp8_ch" => &["weight"],
                "ct_nvfp4" => &["weight_scale", "weight_packed"],
                _ => &[],
            };
            if approximate.iter().any(|section| tensor.spec.name.ends_with(section)) {
                assert_eq!((theirs.shape, theirs.dtype), (&*tensor.spec.shape, tensor.spec.dtype), "{name}");
                continue;
            }
            assert_eq!(theirs.shape, tensor.spec.shape, "{name} {}", tensor.spec.name);
            assert_eq!(theirs.dtype, tensor.spec.dtype, "{name} {}", tensor.spec.name);
            assert!(theirs.bytes == &*tensor.bytes, "{name} {}", tensor.spec.name);
        }
    }
}

/// Blocks of ordinary and of extreme values: zero blocks, subnormal and huge scales.
#[test]
fn mx_blocks_of_the_python_package_are_decoded_bit_for_bit() {
    let file = SafetensorsFile::open(golden("mx_ct.safetensors")).unwrap();
    for (layout, bits, section, dtype) in [
        ("mxfp4-pack-quantized", 4_usize, "weight_packed", DType::U8),
        ("mxfp6-pack-quantized", 6, "weight_packed", DType::U8),
        ("mxfp8-quantized", 8, "weight", DType::F8E4M3),
    ] {
        for rows in ["main", "edge"] {
            let get = |what: &str| file.tensor(&format!("{layout}/{rows}/{what}")).unwrap();
            let (data, scale, theirs) = (get("data"), get("scale"), get("deq_bf16"));
            let tensors = [
                Owned::new(section, dtype, data.shape, data.bytes),
                Owned::new("weight_scale", DType::U8, scale.shape, scale.bytes),
            ];
            let args = json!({"num_bits": bits, "type": "float", "group_size": 32, "scale_dtype": "torch.uint8"});
            let weight = compressed(layout, args).read("m", lookup(&tensors)).unwrap();
            let (theirs, _) = theirs.bytes.as_chunks::<2>();
            for (i, (ours, theirs)) in weight.to_f32().iter().zip(theirs).enumerate() {
                let theirs = bf16::from_le_bytes(*theirs);
                let ours = bf16::from_f32(*ours);
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{layout} {rows} {i}: {ours} {theirs}");
            }
        }
    }
}

/// The two packings, with every width and both axes: weights along columns, zero points along rows.
#[test]
fn both_packings_of_integers_are_read_for_every_width() {
    let file = SafetensorsFile::open(golden("packing_ct.safetensors")).unwrap();
    for kind in ["ct_dense", "ct_legacy"] {
        for bits in 1..=8_u8 {
            let values = file.tensor(&format!("ct_dense/b{bits}/values")).unwrap();
            let codes: Vec<f32> = values.to_f32().unwrap();
            let [rows, columns] = *values.shape else { panic!("a matrix") };
            let along_columns = file.tensor(&format!("{kind}/b{bits}/dim1")).unwrap();
            let tensors = [
                Owned::new("weight_packed", along_columns.dtype, along_columns.shape, along_columns.bytes),
                Owned::new("weight_scale", DType::F32, &[rows, 1], floats(&vec![1.0; rows])),
                Owned::new(
                    "weight_shape",
                    DType::I64,
                    &[2],
                    [rows as u64, columns as u64].map(u64::to_le_bytes).concat(),
                ),
            ];
            // The widths of some of these are the same in both packings, so the version has to be said.
            let read = |tensors: &[Owned], weights: Value| {
                let config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
                    "version": if kind == "ct_legacy" { "0.12.2" } else { "0.20.0" },
                    "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}});
                Compressed::from_config(&config).unwrap().unwrap().read("m", lookup(tensors)).unwrap().to_f32()
            };
            let weight = read(&tensors, json!({"num_bits": bits, "strategy": "channel"}));
            assert_eq!(weight, codes, "{kind} {bits}");

            // The same numbers as zero points of groups of one column: with all codes at their middle, -zero is read.
            let along_rows = file.tensor(&format!("{kind}/b{bits}/dim0")).unwrap();
            let legacy = kind == "ct_legacy";
            let per_word = 32 / usize::from(bits);
            let middle = 1_u32 << (bits - 1);
            let width = if legacy { columns.div_ceil(per_word) } else { (columns * usize::from(bits)).div_ceil(32) };
            let mut row = vec![0_u32; width];
            for column in 0..columns {
                for bit in 0..usize::from(bits) {
                    let position = if legacy {
                        column / per_word * 32 + column % per_word * usize::from(bits) + bit
                    } else {
                        column * usize::from(bits) + bit
                    };
                    row[position / 32] |= (middle >> bit & 1) << (position % 32);
                }
            }
            let row: Vec<u8> = row.iter().flat_map(|word| word.to_le_bytes()).collect();
            let tensors = [
                Owned::new("weight_packed", DType::I32, &[rows, width], row.repeat(rows)),
                Owned::new("weight_scale", DType::F32, &[rows, columns], floats(&vec![1.0; rows * columns])),
                Owned::new(
                    "weight_shape",
                    DType::I64,
                    &[2],
                    [rows as u64, columns as u64].map(u64::to_le_bytes).concat(),
                ),
                Owned::new("weight_zero_point", along_rows.dtype, along_rows.shape, along_rows.bytes),
            ];
            let args = json!({"num_bits": bits, "symmetric": false, "strategy": "group", "group_size": 1});
            let negated: Vec<f32> = codes.iter().map(|code| 0.0 - code).collect();
            assert_eq!(read(&tensors, args), negated, "zero points, {kind} {bits}");
        }
    }
}

#[test]
fn ambiguous_packings_follow_the_version() {
    // Twenty 3-bit codes take two words either way; from the eleventh on they lie elsewhere.
    let codes: Vec<u32> = (0..20).map(|i| i % 8).collect();
    let mut legacy = [0_u32; 2];
    for (i, code) in codes.iter().enumerate() {
        legacy[i / 10] |= code << (3 * (i % 10));
    }
    let tensors = [
        Owned::new("weight_packed", DType::I32, &[1, 2], legacy.map(u32::to_le_bytes).concat()),
        Owned::new("weight_scale", DType::F32, &[1, 1], floats(&[1.0])),
        Owned::new("weight_shape", DType::I64, &[2], [1_u64, 20].map(u64::to_le_bytes).concat()),
    ];
    let read = |version: Option<&str>| {
        let config = json!({"quantization_config": {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "version": version,
            "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 3, "strategy": "channel"}}},
        }});
        Compressed::from_config(&config).unwrap().unwrap().read("m", lookup(&tensors)).unwrap().to_f32()
    };
    let expected: Vec<f32> = codes.iter().map(|code| *code as f32 - 4.0).collect();
    assert_eq!(read(Some("0.12.2")), expected);
    assert_ne!(read(Some("0.20.0")), expected);
    assert_eq!(read(Some("0.20.0")), read(None));
}

#[test]
fn act_order_is_decoded_with_the_group_of_each_column() {
    let tensors = |groups: &[i32]| {
        vec![
            // Codes 1 - 8, 2 - 8, …, 8 - 8 in one word.
            Owned::new("weight_packed", DType::I32, &[1, 1], words(&[0x8765_4321_u32.cast_signed()])),
            Owned::new("weight_scale", DType::F32, &[1, 2], floats(&[1.0, 10.0])),
            Owned::new("weight_shape", DType::I64, &[2], [1_u64, 8].map(u64::to_le_bytes).concat()),
            Owned::new("weight_g_idx", DType::I32, &[8], words(groups)),
        ]
    };
    let model = compressed("pack-quantized", json!({"num_bits": 4, "group_size": 4, "actorder": "group"}));
    let shuffled = tensors(&[1, 0, 1, 0, 1, 0, 1, 0]);
    let weight = model.read("m", lookup(&shuffled)).unwrap();
    assert_eq!(weight.to_f32(), [-70.0, -6.0, -50.0, -4.0, -30.0, -2.0, -10.0, 0.0]);
    assert!(matches!(weight, Weight::Dense { .. }));
    assert_eq!(model.describe("m", lookup(&shuffled)).unwrap(), ([1, 8], None));

    for trivial in [[0, 0, 0, 0, 1, 1, 1, 1], [-1; 8]] {
        let tensors = tensors(&trivial);
        let weight = model.read("m", lookup(&tensors)).unwrap();
        assert_eq!(weight.to_f32(), [-7.0, -6.0, -5.0, -4.0, -30.0, -20.0, -10.0, 0.0]);
        assert_eq!(weight.format().unwrap().to_string(), "int4-g4-ctsym-f32");
    }
    let error = model.read("m", lookup(&tensors(&[0, 0, 0, 2, 1, 1, 1, 1]))).unwrap_err();
    assert_eq!(error.variant(), "BadField", "{error}");
}

#[test]
fn tiles_of_fp8_and_scalars_are_read() {
    let weight: Vec<u8> = vec![0x38; 3 * 5];
    let tensors = [
        Owned::new("weight", DType::F8E4M3, &[3, 5], weight.clone()),
        Owned::new("weight_scale", DType::F32, &[2, 2], floats(&[1.0, 2.0, 3.0, 4.0])),
    ];
    let args = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [2, 4]});
    let tiles = compressed("float-quantized", args).read("m", lookup(&tensors)).unwrap();
    assert_eq!(tiles.to_f32(), [1., 1., 1., 1., 2., 1., 1., 1., 1., 2., 3., 3., 3., 3., 4.]);

    for shape in [&[] as &[usize], &[1], &[1, 1]] {
        let tensors = [
            Owned::new("weight", DType::F8E4M3, &[3, 5], weight.clone()),
            Owned::new("weight_scale", DType::F32, shape, floats(&[0.5])),
        ];
        let args = json!({"num_bits": 8, "type": "float", "strategy": "tensor"});
        assert_eq!(compressed("naive-quantized", args).read("m", lookup(&tensors)).unwrap().to_f32(), [0.5; 15]);
    }
}

#[test]
fn every_missing_or_misshapen_tensor_has_its_error() {
    let good = vec![
        Owned::new("weight_packed", DType::I32, &[2, 4], vec![0x11; 32]),
        Owned::new("weight_scale", DType::BF16, &[2, 2], vec![0x3f; 8]),
        Owned::new("weight_shape", DType::I64, &[2], [2_u64, 32].map(u64::to_le_bytes).concat()),
        Owned::new("weight_zero_point", DType::I32, &[1, 2], vec![0x55; 8]),
    ];
    let model = compressed("pack-quantized", json!({"num_bits": 4, "group_size": 16, "symmetric": false}));
    assert_eq!(model.read("m", lookup(&good)).unwrap().shape(), [2, 32]);

    for missing in ["weight_packed", "weight_scale", "weight_zero_point"] {
        let tensors: Vec<Owned> = good.iter().filter(|t| t.name != format!("m.{missing}")).cloned().collect();
        match model.read("m", lookup(&tensors)) {
            Err(Error::MissingSection { tensor, section }) => assert_eq!((tensor.as_str(), &*section), ("m", missing)),
            other => panic!("{missing}: {other:?}"),
        }
    }
    // Without a stated shape the number of scales tells it.
    let unstated: Vec<Owned> = good.iter().filter(|t| t.name != "m.weight_shape").cloned().collect();
    assert_eq!(model.read("m", lookup(&unstated)).unwrap(), model.read("m", lookup(&good)).unwrap());

    let change = |index: usize, changed: Owned| {
        let mut tensors = good.clone();
        tensors[index] = changed;
        model.read("m", lookup(&tensors)).unwrap_err().variant()
    };
    let shape = |sides: [i64; 2]| Owned::new("weight_shape", DType::I64, &[2], sides.map(i64::to_le_bytes).concat());
    let cases = [
        ("packed as bytes", change(0, Owned::new("weight_packed", DType::U8, &[2, 16], vec![0; 32])), "BadSection"),
        ("packed of rank 1", change(0, Owned::new("weight_packed", DType::I32, &[8], vec![0; 32])), "BadSection"),
        ("too few words", change(0, Owned::new("weight_packed", DType::I32, &[2, 3], vec![0; 24])), "BadSection"),
        ("integer scales", change(1, Owned::new("weight_scale", DType::I8, &[2, 2], vec![0; 4])), "BadSection"),
        ("too few scales", change(1, Owned::new("weight_scale", DType::BF16, &[2, 1], vec![0; 4])), "BadSection"),
        ("NaN scale", change(1, Owned::new("weight_scale", DType::BF16, &[2, 2], vec![0xff; 8])), "Packed"),
        ("negative shape", change(2, shape([2, -32])), "BadField"),
        ("huge shape", change(2, shape([2, i64::MAX])), "BadSection"),
        ("huge whole groups", change(2, shape([2, 1 << 62])), "BadSection"),
        ("other rows", change(2, shape([3, 32])), "BadSection"),
        ("ragged groups", change(2, shape([2, 30])), "RaggedBlocks"),
        (
            "zero points along columns",
            change(3, Owned::new("weight_zero_point", DType::I32, &[2, 1], vec![0; 8])),
            "BadSection",
        ),
        (
            "zero points too large",
            change(3, Owned::new("weight_zero_point", DType::I8, &[2, 2], vec![8; 4])),
            "BadField",
        ),
    ];
    for (what, found, expected) in cases {
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn reserved_scales_are_errors() {
    let mx = [
        Owned::new("weight_packed", DType::U8, &[1, 16], vec![0; 16]),
        Owned::new("weight_scale", DType::U8, &[1, 1], vec![0xff]),
    ];
    let args = json!({"num_bits": 4, "type": "float", "group_size": 32, "scale_dtype": "torch.uint8"});
    let error = compressed("mxfp4-pack-quantized", args).read("m", lookup(&mx)).unwrap_err();
    assert_eq!(error.variant(), "Packed", "{error}");

    for (scale, global) in [(0x7f_u8, 1.0_f32), (0x38, 0.0), (0x38, f32::NAN)] {
        let nv = [
            Owned::new("weight_packed", DType::U8, &[1, 8], vec![0; 8]),
            Owned::new("weight_scale", DType::F8E4M3, &[1, 1], vec![scale]),
            Owned::new("weight_global_scale", DType::F32, &[1], floats(&[global])),
        ];
        let args = json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16});
        let error = compressed("nvfp4-pack-quantized", args).read("m", lookup(&nv)).unwrap_err();
        assert_eq!(error.variant(), "Packed", "{scale:#x} {global}: {error}");
    }
}

#[test]
fn configurations_take_defaults_and_tolerate_unknown_keys() {
    let config = json!({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "some_future_key": {"a": [1]},
        "sparsity_config": {}, "transform_config": {}, "quantization_status": "frozen", "ignore": null,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "group_size": 64, "observer": "mse", "observer_kwargs": {"p": 2.4e0}, "dynamic": "local", "actorder": false}}},
    }});
    let config = Config::parse(&config).unwrap().unwrap();
    let args = config.groups[0].weights.unwrap();
    assert_eq!((args.bits, args.number, args.symmetric), (4, Number::Int, true));
    assert_eq!(args.strategy, Strategy::Group(64));
    assert_eq!(config.dense_words, None);

    for other in [
        json!({}),
        json!({"quantization_config": null}),
        json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    ] {
        assert_eq!(Config::parse(&other).unwrap(), None, "{other}");
    }
}

#[test]
fn presets_stand_for_groups() {
    let parse = |preset: &str| {
        let config = json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "mixed-precision",
            "config_groups": {preset: ["Linear"]}}});
        Config::parse(&config).map(|config| config.unwrap().groups.remove(0))
    };
    let cases = [
        ("W4A16", 4, Number::Int, Strategy::Group(128), StorageFormat::PackQuantized),
        ("w4a16_asym", 4, Number::Int, Strategy::Group(128), StorageFormat::PackQuantized),
        ("W8A8", 8, Number::Int, Strategy::Channel, StorageFormat::IntQuantized),
        ("W3A16", 3, Number::Int, Strategy::Group(128), StorageFormat::PackQuantized),
        ("FP8", 8, Number::Float, Strategy::Tensor, StorageFormat::FloatQuantized),
        ("FP8_DYNAMIC", 8, Number::Float, Strategy::Channel, StorageFormat::FloatQuantized),
        ("FP8_BLOCK", 8, Number::Float, Strategy::Block { rows: 128, columns: 128 }, StorageFormat::FloatQuantized),
        ("NVFP4", 4, Number::Float, Strategy::Group(16), StorageFormat::Nvfp4Pack),
        ("NVFP4A16", 4, Number::Float, Strategy::Group(16), StorageFormat::Nvfp4Pack),
        ("MXFP4", 4, Number::Float, Strategy::Group(32), StorageFormat::Mxfp4Pack),
        ("MXFP6A16", 6, Number::Float, Strategy::Group(32), StorageFormat::Mxfp6Pack),
        ("MXFP8", 8, Number::Float, Strategy::Group(32), StorageFormat::Mxfp8),
    ];
    for (name, bits, number, strategy, format) in cases {
        let group = parse(name).unwrap();
        let args = group.weights.unwrap();
        assert_eq!((args.bits, args.number, args.strategy, group.format), (bits, number, strategy, format), "{name}");
        assert_eq!(args.symmetric, name != "w4a16_asym", "{name}");
    }
    for unknown in ["W9A16", "W4A12", "WAT", "NVFP5"] {
        assert_eq!(parse(unknown).unwrap_err().variant(), "Unsupported", "{unknown}");
    }
}

#[test]
fn layouts_that_are_not_read_are_named() {
    let with = |key: &str, value: Value| {
        let mut config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4}}}});
        config[key] = value;
        Config::parse(&json!({ "quantization_config": config })).unwrap_err()
    };
    for layout in ["marlin-24", "sparse-bitmask", "sparse-24-bitmask", "from-the-future"] {
        let error = with("format", json!(layout));
        assert_eq!(error.variant(), "Unsupported");
        assert!(error.to_string().contains(layout), "{error}");
    }
    assert_eq!(with("sparsity_config", json!({"format": "sparse-24-bitmask"})).variant(), "Unsupported");
    assert_eq!(with("transform_config", json!({"config_groups": {"u": {}}})).variant(), "Unsupported");
    assert_eq!(with("format", json!(4)).variant(), "BadField");
    assert_eq!(with("ignore", json!("lm_head")).variant(), "BadField");
    assert_eq!(with("config_groups", json!([])).variant(), "BadField");
    for weights in [
        json!({"num_bits": 0}),
        json!({"num_bits": 9}),
        json!({"num_bits": "4"}),
        json!({"type": "complex"}),
        json!({"group_size": 0}),
        json!({"group_size": -2}),
        json!({"group_size": 1_u64 << 40}),
        json!({"strategy": "group"}),
        json!({"strategy": "block"}),
        json!({"strategy": "block", "block_structure": [128, 0]}),
        json!({"symmetric": "yes"}),
        json!([]),
    ] {
        let error = with("config_groups", json!({"g": {"targets": ["Linear"], "weights": weights}}));
        assert_eq!(error.variant(), "BadField", "{weights}: {error}");
    }
    assert_eq!(
        with("config_groups", json!({"g": {"targets": [], "weights": {"strategy": "token"}}})).variant(),
        "Unsupported"
    );
}

#[test]
fn names_go_before_patterns_and_patterns_before_classes() {
    let args = |bits: u8| json!({"num_bits": bits, "strategy": "channel"});
    let config = json!({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*router", "re:(?!x)"],
        "config_groups": {
            "a": {"targets": ["Linear"], "weights": args(2)},
            "b": {"targets": ["re:.*mlp", "re:.*mlp\\.down_proj$"], "weights": args(3)},
            "c": {"targets": ["layers.0.mlp.down_proj", "Embedding"], "weights": args(4)},
        },
    }});
    let model = Compressed::from_config(&config).unwrap().unwrap();
    let bits = |module: &str| model.group(module).unwrap().map(|group| group.weights.unwrap().bits);
    assert_eq!(bits("layers.0.self_attn.q_proj"), Some(2));
    assert_eq!(bits("layers.0.mlp.up_proj"), Some(3), "a pattern matches the start of a name");
    assert_eq!(bits("layers.0.mlp.down_proj"), Some(4));
    assert_eq!(bits("model.embed_tokens"), Some(4));
    assert_eq!(bits("lm_head"), None);
    assert_eq!(bits("layers.0.mlp.router.0"), None);

    let stored = ["lm_head.weight_packed", "lm_head.weight_scale"];
    assert_eq!(model.modules(stored).unwrap_err().variant(), "NoScheme");
    let plain = ["a.weight", "a.bias", "b.weight", "b.weight_scale", "c.weight_packed"];
    assert_eq!(model.modules(plain).unwrap(), ["b", "c"]);
}

#[test]
fn a_pattern_that_does_not_parse_is_an_error_where_it_decides() {
    let config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"a": {"targets": ["re:^(?!.*head).*$", "named"], "weights": {"num_bits": 4}}}});
    let model = Compressed::from_config(&config).unwrap().unwrap();
    assert!(model.group("named").unwrap().is_some());
    assert_eq!(model.group("other").unwrap_err().variant(), "BadPattern");
}

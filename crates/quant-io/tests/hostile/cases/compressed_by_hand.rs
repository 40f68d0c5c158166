//! compressed-tensors models written byte by byte, so that reader and writer cannot share an error.

use super::Cases;
use super::parts::{Part, halves, weights};

/// Scales of 1 in bf16.
const ONE: u16 = 0x3f80;
const GROUP_8: &str = r#"{"num_bits":4,"type":"int","symmetric":true,"strategy":"group","group_size":8}"#;
const CHANNEL: &str = r#"{"num_bits":4,"type":"int","symmetric":true,"strategy":"channel"}"#;
const ASYMMETRIC: &str = r#"{"num_bits":4,"type":"int","symmetric":false,"strategy":"group","group_size":8}"#;
const NVFP4: &str = r#"{"num_bits":4,"type":"float","strategy":"tensor_group","group_size":16}"#;
const FP8: &str = r#"{"num_bits":8,"type":"float","strategy":"channel"}"#;

/// config.json with one group of these fields, in a layout.
fn config(layout: &str, group: &str, more: &str) -> String {
    format!(
        r#"{{"quantization_config":{{"quant_method":"compressed-tensors","format":{layout},"config_groups":{{"g":{group}}}{more}}}}}"#
    )
}

fn linear(layout: &str, args: &str) -> String {
    config(&format!("\"{layout}\""), &format!(r#"{{"targets":["Linear"],"weights":{args}}}"#), "")
}

fn model(config: &str, parts: &[Part]) -> Vec<u8> {
    let length = u32::try_from(config.len()).expect("cases are small").to_le_bytes();
    [&length[..], config.as_bytes(), &weights(&[], parts)].concat()
}

fn packed() -> Part {
    ("w.weight_packed", "I32", vec![2, 1], vec![0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe])
}

fn scale(second: u16) -> Part {
    ("w.weight_scale", "BF16", vec![2, 1], halves(&[ONE, second]))
}

fn shape(rows: i64, columns: i64) -> Part {
    ("w.weight_shape", "I64", vec![2], [rows.to_le_bytes(), columns.to_le_bytes()].concat())
}

/// Two rows of eight 4-bit integers.
fn int4() -> [Part; 3] {
    [packed(), scale(ONE), shape(2, 8)]
}

pub(crate) fn make(cases: &mut Cases) {
    configurations(cases);
    arguments(cases);
    patterns(cases);
    integers(cases);
    empty_sides(cases);
    zero_points(cases);
    permutations(cases);
    floats(cases);
}

fn configurations(cases: &mut Cases) {
    let mut add =
        |name: &str, expected, config: &str| cases.add(&format!("hand-{name}"), expected, model(config, &int4()));
    let good = linear("pack-quantized", GROUP_8);
    add("good", "ok", &good);
    add("config-empty", "ok", "{}");
    add("config-cut", "BadJson", &good[..good.len() - 1]);
    add("method-other", "Unsupported", r#"{"quantization_config":{"quant_method":"gptq","bits":4}}"#);
    add("method-number", "ok", &good.replace("\"compressed-tensors\"", "4"));
    add("config-is-list", "ok", r#"{"quantization_config":[1]}"#);
    add("groups-list", "BadField", r#"{"quantization_config":{"config_groups":[1]}}"#);
    add("groups-null", "ok", r#"{"quantization_config":{"config_groups":null}}"#);
    add("groups-none", "NoScheme", r#"{"quantization_config":{"config_groups":{}}}"#);
    let group = |group: &str| config("\"pack-quantized\"", group, "");
    add("group-number", "BadField", &group("4"));
    add("group-preset-unknown", "Unsupported", &group(r#"["Linear"]"#));
    add("targets-missing", "BadField", &group(&format!(r#"{{"weights":{GROUP_8}}}"#)));
    add("targets-text", "BadField", &group(&format!(r#"{{"targets":"Linear","weights":{GROUP_8}}}"#)));
    add("targets-numbers", "BadField", &group(&format!(r#"{{"targets":[1],"weights":{GROUP_8}}}"#)));
    add("targets-none", "NoScheme", &group(&format!(r#"{{"targets":[],"weights":{GROUP_8}}}"#)));
    add("weights-null", "NoScheme", &group(r#"{"targets":["Linear"],"weights":null}"#));
    add("weights-text", "BadField", &group(r#"{"targets":["Linear"],"weights":"int4"}"#));
    add("layout-unknown", "Unsupported", &good.replace("pack-quantized", "zip-quantized"));
    add("layout-long", "Unsupported", &good.replace("pack-quantized", &"z".repeat(3000)));
    add("layout-sparse", "Unsupported", &good.replace("pack-quantized", "marlin-24"));
    add("layout-number", "BadField", &good.replace("\"pack-quantized\"", "4"));
    add("layout-dense", "ok", &good.replace("pack-quantized", "dense"));
    add("layout-of-floats", "Unsupported", &good.replace("pack-quantized", "nvfp4-pack-quantized"));
    let more =
        |more: &str| config("\"pack-quantized\"", &format!(r#"{{"targets":["Linear"],"weights":{GROUP_8}}}"#), more);
    add("ignored-but-packed", "NoScheme", &more(r#","ignore":["w"]"#));
    add("ignore-text", "BadField", &more(r#","ignore":"w""#));
    add("sparse-mask", "Unsupported", &more(r#","sparsity_config":{"format":"sparse-bitmask"}"#));
    add("transform", "Unsupported", &more(r#","transform_config":{"config_groups":{"R1":{}}}"#));
    add("version-huge", "ok", &more(r#","version":"99999999999999999999.1""#));
    add("version-number", "BadField", &more(r#","version":0.17"#));
}

fn arguments(cases: &mut Cases) {
    let mut add = |name: &str, expected, from: &str, to: &str| {
        let args = GROUP_8.replace(from, to);
        assert_ne!(args, GROUP_8, "the case changes something");
        cases.add(&format!("hand-{name}"), expected, model(&linear("pack-quantized", &args), &int4()));
    };
    let bits = "\"num_bits\":4";
    add("bits-0", "BadField", bits, "\"num_bits\":0");
    add("bits-9", "BadField", bits, "\"num_bits\":9");
    add("bits-260", "BadField", bits, "\"num_bits\":260");
    add("bits-negative", "BadField", bits, "\"num_bits\":-4");
    add("bits-float", "BadField", bits, "\"num_bits\":4.0");
    add("bits-text", "BadField", bits, "\"num_bits\":\"4\"");
    add("bits-other", "BadSection", bits, "\"num_bits\":8");
    let group = "\"group_size\":8";
    add("group-0", "BadField", group, "\"group_size\":0");
    add("group-minus-1", "BadField", group, "\"group_size\":-1");
    add("group-minus-2", "BadField", group, "\"group_size\":-2");
    add("group-two-to-32", "BadField", group, "\"group_size\":4294967296");
    add("group-float", "BadField", group, "\"group_size\":8.0");
    add("group-not-a-divisor", "RaggedBlocks", group, "\"group_size\":3");
    // Our own formats allow it; this layout wants whole groups.
    add("group-larger-than-row", "RaggedBlocks", group, "\"group_size\":16");
    add("group-smaller", "BadSection", group, "\"group_size\":4");
    add("type-unknown", "BadField", "\"int\"", "\"complex\"");
    add("type-number", "BadField", "\"int\"", "4");
    add("type-float", "Unsupported", "\"int\"", "\"float\"");
    add("symmetric-text", "BadField", "true", "\"yes\"");
    add("strategy-token", "Unsupported", "\"group\"", "\"token\"");
    add("strategy-number", "BadField", "\"group\"", "1");
    add("strategy-tensor", "BadSection", "\"group\"", "\"tensor\"");
    add("block-missing", "BadField", "\"group\"", "\"block\"");
    add("block-zero", "BadField", "\"group\"", "\"block\",\"block_structure\":[0,8]");
    add("block-one-side", "BadField", "\"group\"", "\"block\",\"block_structure\":[8]");
    add("block-text", "BadField", "\"group\"", "\"block\",\"block_structure\":\"8x\"");
    add("block-huge", "BadSection", "\"group\"", "\"block\",\"block_structure\":[4294967295,4294967295]");
}

fn patterns(cases: &mut Cases) {
    let mut add = |name: &str, expected, targets: &str| {
        let group = format!(r#"{{"targets":[{targets}],"weights":{GROUP_8}}}"#);
        cases.add(&format!("hand-{name}"), expected, model(&config("\"pack-quantized\"", &group, ""), &int4()));
    };
    add("pattern-good", "ok", "\"re:^w$\"");
    add("pattern-elsewhere", "NoScheme", "\"re:v\"");
    add("pattern-open", "BadPattern", "\"re:(w\"");
    add("pattern-look-behind", "BadPattern", "\"re:(?<=x)w\"");
    add("pattern-nested", "BadPattern", &format!("\"re:{}\"", "(".repeat(2000)));
    add("pattern-repeats", "BadPattern", "\"re:((((w{99}){99}){99}){99})\"");
    // Each would compile to hundreds of kilobytes.
    let many: Vec<String> = (0..100).map(|i| format!("\"re:((x{i}){{90}}){{90}}\"")).collect();
    add("pattern-many-repeats", "BadPattern", &many.join(","));
}

fn integers(cases: &mut Cases) {
    let mut add = |name: &str, expected, parts: &[Part]| {
        cases.add(&format!("hand-{name}"), expected, model(&linear("pack-quantized", GROUP_8), parts));
    };
    add("codes-missing", "ok", &[scale(ONE), shape(2, 8)]);
    add("scale-missing", "MissingSection", &[packed(), shape(2, 8)]);
    add("shape-missing", "ok", &[packed(), scale(ONE)]);
    let eight = || packed().3;
    add("codes-bytes", "BadSection", &[("w.weight_packed", "U8", vec![2, 4], eight()), scale(ONE), shape(2, 8)]);
    add("codes-u32", "BadSection", &[("w.weight_packed", "U32", vec![2, 1], eight()), scale(ONE), shape(2, 8)]);
    add("codes-flat", "BadSection", &[("w.weight_packed", "I32", vec![2], eight()), scale(ONE), shape(2, 8)]);
    add("codes-turned", "BadSection", &[("w.weight_packed", "I32", vec![1, 2], eight()), scale(ONE), shape(2, 8)]);
    let deep = vec![1; 400].into_iter().chain([2]).collect();
    add("codes-rank-401", "BadSection", &[("w.weight_packed", "I32", deep, eight()), scale(ONE), shape(2, 8)]);
    for (name, rows, columns, expected) in [
        ("zero-rows", 0, 8, "BadField"),
        ("zero-columns", 2, 0, "BadField"),
        ("negative", -2, -8, "BadField"),
        ("rows-more", 3, 8, "BadSection"),
        ("columns-more", 2, 16, "BadSection"),
        ("columns-fewer", 2, 7, "RaggedBlocks"),
        ("columns-two-to-62", 2, 1 << 62, "BadSection"),
        ("columns-max", 2, i64::MAX, "BadSection"),
        ("turned", 8, 2, "BadSection"),
    ] {
        add(&format!("shape-{name}"), expected, &[packed(), scale(ONE), shape(rows, columns)]);
    }
    let shape_of = |dtype, dims, bytes| -> Part { ("w.weight_shape", dtype, dims, bytes) };
    add("shape-i32", "ok", &[packed(), scale(ONE), shape_of("I32", vec![2], vec![2, 0, 0, 0, 8, 0, 0, 0])]);
    add("shape-f32", "BadSection", &[packed(), scale(ONE), shape_of("F32", vec![2], vec![0; 8])]);
    add("shape-one", "BadSection", &[packed(), scale(ONE), shape_of("I64", vec![1], vec![2, 0, 0, 0, 0, 0, 0, 0])]);
    add("shape-none", "BadSection", &[packed(), scale(ONE), shape_of("I64", vec![0], vec![])]);
    for (name, bits, expected) in [
        ("nan", 0x7fc0, "Packed"),
        ("infinite", 0x7f80, "Packed"),
        ("minus-infinite", 0xff80, "Packed"),
        ("negative", 0xbf80, "ok"),
        ("zero", 0, "ok"),
        ("subnormal", 1, "ok"),
    ] {
        add(&format!("scale-{name}"), expected, &[packed(), scale(bits), shape(2, 8)]);
    }
    let scales = |dtype, dims, bytes| [packed(), ("w.weight_scale", dtype, dims, bytes), shape(2, 8)];
    add("scale-integers", "BadSection", &scales("I16", vec![2, 1], vec![1; 4]));
    add("scale-one", "BadSection", &scales("BF16", vec![1], halves(&[ONE])));
    add("scale-turned", "BadSection", &scales("BF16", vec![1, 2], halves(&[ONE; 2])));
    add("scale-flat", "ok", &scales("BF16", vec![2], halves(&[ONE; 2])));
    add("scale-rank-3", "BadSection", &scales("BF16", vec![2, 1, 1], halves(&[ONE; 2])));
    add("scale-none", "BadSection", &scales("BF16", vec![0, 0], vec![]));
    let channel = model(&linear("pack-quantized", CHANNEL), &[packed(), scale(ONE)]);
    cases.add("hand-shape-missing-of-channels", "MissingSection", channel);
    // Three bits lie in words without gaps or, in old files, ten to a word: here neither fits.
    let three = linear("pack-quantized", &CHANNEL.replace('4', "3"));
    let parts: [Part; 3] = [("w.weight_packed", "I32", vec![2, 3], vec![0; 24]), scale(ONE), shape(2, 8)];
    cases.add("hand-words-of-neither-layout", "BadSection", model(&three, &parts));
    let bytes = linear("int-quantized", &CHANNEL.replace('4', "8"));
    let of = |dtype| -> [Part; 2] { [("w.weight", dtype, vec![2, 4], vec![0x80; 8]), scale(ONE)] };
    cases.add("hand-bytes-good", "ok", model(&bytes, &of("I8")));
    cases.add("hand-bytes-unsigned", "BadSection", model(&bytes, &of("U8")));
}

/// A tensor without bytes may claim sides of any length.
fn empty_sides(cases: &mut Cases) {
    let far = 1 << 52;
    let none = |name, dtype, dims: [usize; 2]| -> Part { (name, dtype, dims.to_vec(), vec![]) };
    let eight_bits =
        linear("pack-quantized", &GROUP_8.replace("bits\":4", "bits\":8").replace("size\":8", "size\":128"));
    let words = [none("w.weight_packed", "I32", [0, far]), none("w.weight_scale", "BF16", [0, far / 32])];
    cases.add("hand-no-rows-of-words", "BadSection", model(&eight_bits, &words));
    let asymmetric = eight_bits.replace("\"symmetric\":true", "\"symmetric\":false");
    let zeros = none("w.weight_zero_point", "I32", [0, far / 32]);
    let words = [words[0].clone(), words[1].clone(), zeros];
    cases.add("hand-no-rows-of-zero-points", "BadSection", model(&asymmetric, &words));
    let nibbles = [none("w.weight_packed", "U8", [0, 1 << 62]), none("w.weight_scale", "F8_E4M3", [0, 1 << 59])];
    let global: Part = ("w.weight_global_scale", "F32", vec![1], 1_f32.to_le_bytes().into());
    let nibbles = [nibbles[0].clone(), nibbles[1].clone(), global];
    cases.add("hand-no-rows-of-nibbles", "BadSection", model(&linear("nvfp4-pack-quantized", NVFP4), &nibbles));
    let bytes = [none("w.weight", "F8_E4M3", [0, far]), none("w.weight_scale", "BF16", [0, 1])];
    cases.add("hand-no-rows-of-bytes", "BadSection", model(&linear("float-quantized", FP8), &bytes));
    let tensor = FP8.replace("channel", "tensor");
    let scale: Part = ("w.weight_scale", "F32", vec![1], 1_f32.to_le_bytes().into());
    let bytes = [none("w.weight", "F8_E4M3", [far, 0]), scale];
    cases.add("hand-no-columns-of-bytes", "BadSection", model(&linear("float-quantized", &tensor), &bytes));
}

fn zero_points(cases: &mut Cases) {
    let zeros =
        |dtype, dims: &[usize], bytes: &[u8]| -> Part { ("w.weight_zero_point", dtype, dims.to_vec(), bytes.to_vec()) };
    let mut add = |name: &str, expected, args: &str, zeros: Option<Part>| {
        let parts: Vec<Part> = int4().into_iter().chain(zeros).collect();
        cases.add(&format!("hand-{name}"), expected, model(&linear("pack-quantized", args), &parts));
    };
    let word = [0x21, 0, 0, 0];
    add("zeros-good", "ok", ASYMMETRIC, Some(zeros("I32", &[1, 1], &word)));
    add("zeros-missing", "MissingSection", ASYMMETRIC, None);
    add("zeros-rows-more", "BadSection", ASYMMETRIC, Some(zeros("I32", &[2, 1], &[0; 8])));
    add("zeros-columns-more", "BadSection", ASYMMETRIC, Some(zeros("I32", &[1, 2], &[0; 8])));
    add("zeros-flat", "BadSection", ASYMMETRIC, Some(zeros("I32", &[1], &word)));
    add("zeros-none", "BadSection", ASYMMETRIC, Some(zeros("I32", &[0, 1], &[])));
    add("zeros-floats", "BadSection", ASYMMETRIC, Some(zeros("F32", &[1, 1], &word)));
    add("zeros-bytes", "ok", ASYMMETRIC, Some(zeros("I8", &[2, 1], &[0xf8, 7])));
    add("zeros-bytes-too-wide", "BadField", ASYMMETRIC, Some(zeros("I8", &[2, 1], &[8, 0])));
    add("zeros-of-symmetric", "Unsupported", GROUP_8, Some(zeros("I8", &[2, 1], &[0, 1])));
    add("zeros-of-symmetric-all-0", "ok", GROUP_8, Some(zeros("I8", &[2, 1], &[0, 0])));
}

fn permutations(cases: &mut Cases) {
    let args = GROUP_8.replace("size\":8", "size\":4");
    let scales: Part = ("w.weight_scale", "BF16", vec![2, 2], halves(&[ONE; 4]));
    let mut add = |name: &str, expected, dtype, dims: usize, indices: &[i32]| {
        let bytes = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
        let index: Part = ("w.weight_g_idx", dtype, vec![dims], bytes);
        let parts = [packed(), scales.clone(), shape(2, 8), index];
        cases.add(&format!("hand-order-{name}"), expected, model(&linear("pack-quantized", &args), &parts));
    };
    add("good", "ok", "I32", 8, &[1, 0, 1, 0, 1, 0, 1, 0]);
    add("absent", "ok", "I32", 8, &[-1; 8]);
    add("one-group", "ok", "I32", 8, &[1; 8]);
    add("beyond", "BadField", "I32", 8, &[0, 0, 0, 0, 1, 1, 1, 2]);
    add("negative", "BadField", "I32", 8, &[-1, 0, 0, 0, 1, 1, 1, 1]);
    add("least", "BadField", "I32", 8, &[i32::MIN; 8]);
    add("short", "BadSection", "I32", 7, &[0; 7]);
    add("none", "BadSection", "I32", 0, &[]);
    add("floats", "BadSection", "F32", 8, &[0; 8]);
}

fn floats(cases: &mut Cases) {
    let nvfp4 = |scale: u8, global: &[u32]| {
        let mut parts: Vec<Part> = vec![
            ("w.weight_packed", "U8", vec![1, 8], vec![0x72; 8]),
            ("w.weight_scale", "F8_E4M3", vec![1, 1], vec![scale]),
        ];
        if !global.is_empty() {
            let bytes = global.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            parts.push(("w.weight_global_scale", "F32", vec![global.len()], bytes));
        }
        model(&linear("nvfp4-pack-quantized", NVFP4), &parts)
    };
    let one = 1_f32.to_bits();
    cases.add("hand-nvfp4-good", "ok", nvfp4(0x38, &[one]));
    cases.add("hand-nvfp4-scale-nan", "Packed", nvfp4(0x7f, &[one]));
    cases.add("hand-nvfp4-scale-minus-nan", "Packed", nvfp4(0xff, &[one]));
    cases.add("hand-nvfp4-global-missing", "MissingSection", nvfp4(0x38, &[]));
    cases.add("hand-nvfp4-global-two", "BadSection", nvfp4(0x38, &[one; 2]));
    cases.add("hand-nvfp4-global-nan", "Packed", nvfp4(0x38, &[0x7fc0_0000]));
    cases.add("hand-nvfp4-global-infinite", "Packed", nvfp4(0x38, &[0x7f80_0000]));
    // Scales are divided by it.
    cases.add("hand-nvfp4-global-zero", "Packed", nvfp4(0x38, &[0]));
    cases.add("hand-nvfp4-global-subnormal", "Packed", nvfp4(0x38, &[1]));
    cases.add("hand-nvfp4-global-negative", "ok", nvfp4(0x38, &[(-1_f32).to_bits()]));
    let ragged: [Part; 3] = [
        ("w.weight_packed", "U8", vec![1, 9], vec![0x72; 9]),
        ("w.weight_scale", "F8_E4M3", vec![1, 2], vec![0x38; 2]),
        ("w.weight_global_scale", "F32", vec![1], 1_f32.to_le_bytes().into()),
    ];
    cases.add("hand-nvfp4-row-of-18", "RaggedBlocks", model(&linear("nvfp4-pack-quantized", NVFP4), &ragged));
    let mx = NVFP4.replace("tensor_group", "group").replace("16", "32");
    let mxfp4 = |scale: u8| -> [Part; 2] {
        [("w.weight_packed", "U8", vec![1, 16], vec![0x72; 16]), ("w.weight_scale", "U8", vec![1, 1], vec![scale])]
    };
    cases.add("hand-mxfp4-good", "ok", model(&linear("mxfp4-pack-quantized", &mx), &mxfp4(127)));
    cases.add("hand-mxfp4-scale-reserved", "Packed", model(&linear("mxfp4-pack-quantized", &mx), &mxfp4(255)));
    let fp8 = |dtype| -> [Part; 2] { [("w.weight", dtype, vec![2, 4], vec![0x7f; 8]), scale(ONE)] };
    let config = linear("float-quantized", FP8);
    cases.add("hand-fp8-nan-elements", "ok", model(&config, &fp8("F8_E4M3")));
    cases.add("hand-fp8-as-bytes", "BadSection", model(&config, &fp8("U8")));
    cases.add(
        "hand-fp8-asymmetric",
        "Unsupported",
        model(&config.replace("\"float\"", "\"float\",\"symmetric\":false"), &fp8("F8_E4M3")),
    );
}

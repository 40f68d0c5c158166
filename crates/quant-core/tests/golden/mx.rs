//! Microscaling: power-of-two scales.

use crate::vectors::{GoldenFile, byte_codes, codes, encode, encode_rounded, nibbles, open, to_bf16};
use quant_core::{EncodeOptions, Format, FormatGrid, PackedTensor, Rounding, Shaped};

const ELEMENTS: [(&str, &str); 5] = [
    ("f8e4m3fn", "mxfp8-e4m3"),
    ("f8e5m2", "mxfp8-e5m2"),
    ("f6e2m3", "mxfp6-e2m3"),
    ("f6e3m2", "mxfp6-e3m2"),
    ("f4e2m1", "mxfp4"),
];

/// The first rows of a matrix.
fn head(values: &[f32], shape: &[usize], rows: usize) -> (Vec<f32>, [usize; 2]) {
    let rows = rows.min(shape[0]);
    (values[..rows * shape[1]].to_vec(), [rows, shape[1]])
}

#[test]
fn microscaling_agrees_with_torchao_under_every_rule() {
    for file in open("mx_torchao") {
        for (element, stem) in ELEMENTS {
            for rule in ["floor", "ceil", "even", "rceil"] {
                for input in ["main", "edge", "main_bf16"] {
                    let key = |part: &str| format!("{element}/{rule}/{input}/{part}");
                    if !file.has(&key("scale")) {
                        continue;
                    }
                    let name = format!("x/{input}");
                    let x = if input == "main_bf16" { file.bf16(&name) } else { file.f32(&name) };
                    let rows = if input == "edge" { file.finite_edge_rows() } else { usize::MAX };
                    let (x, shape) = head(&x, file.shape(&name), rows);
                    let packed = encode(&format!("{stem}-{rule}"), &x, &shape);
                    let scales = packed.scales();
                    file.codes(&key("scale"), scales, &file.u8(&key("scale"))[..scales.len()]);
                    // While quantizing this peer takes scale code 0 for 2^-126 or 1.
                    let tiny = |i: usize| {
                        (scales[i / 32] == 0 && x[i] != 0.0)
                            .then_some("scale code 0 means something else while quantizing")
                    };
                    let data = file.u8(&key("data"));
                    let data = if element == "f4e2m1" { nibbles(&data, false) } else { data };
                    file.check(&key("data"), &byte_codes(&packed), &data[..x.len()], |a, b| a == b, tiny);
                    if file.has(&key("deq")) {
                        let want = &file.f32(&key("deq"))[..x.len()];
                        file.check(&key("deq"), &packed.decode(), want, |a, b| a == b, tiny);
                    }
                }
            }
        }
        file.finish();
    }
}

#[test]
fn microscaling_agrees_with_compressed_tensors() {
    for file in open("mx_ct") {
        for (peer, format) in [
            ("mxfp4-pack-quantized", "mxfp4-ct"),
            ("mxfp6-pack-quantized", "mxfp6-e2m3-ct"),
            ("mxfp8-quantized", "mxfp8-e4m3-ct"),
        ] {
            for input in ["main", "edge"] {
                let key = |part: &str| format!("{peer}/{input}/{part}");
                let name = format!("x/{input}");
                let (x, shape) = (file.f32(&name), file.shape(&name));
                let names = file.edge_names();
                let packed = encode(format, &x, shape);
                let overflowing = |row: usize| {
                    (input == "edge" && names[row] == "one_max").then_some(
                        "row one_max: the peer's even rule overflows near the largest f32 and falls to code 127",
                    )
                };
                let blocks = shape[1] / 32;
                let by_element = |i: usize| overflowing(i / shape[1]);
                file.check(
                    &key("scale"),
                    packed.scales(),
                    &file.u8(&key("scale")),
                    |a, b| a == b,
                    |i| overflowing(i / blocks),
                );
                let data = file.u8(&key("data"));
                match peer {
                    "mxfp4-pack-quantized" => {
                        file.check(
                            &key("data"),
                            &byte_codes(&packed),
                            &nibbles(&data, false),
                            |a, b| a == b,
                            by_element,
                        );
                    }
                    "mxfp6-pack-quantized" => {
                        // Four codes in three bytes: our very stream.
                        file.check(
                            &key("data"),
                            packed.codes(),
                            &data,
                            |a, b| a == b,
                            |i| overflowing(i / (shape[1] * 3 / 4)),
                        );
                    }
                    _ => file.check(&key("data"), &byte_codes(&packed), &data, |a, b| a == b, by_element),
                }
                let (got, want) = (to_bf16(&packed.decode()), file.bf16(&key("deq_bf16")));
                file.check(&key("deq_bf16"), &got, &want, |a, b| a == b, by_element);
            }
        }
        file.finish();
    }
}

fn microxcaling_rounding(name: &str) -> Rounding {
    match name {
        "even" => Rounding::NearestEven,
        "nearest" => Rounding::NearestAway,
        _ => Rounding::TowardZero,
    }
}

/// Why a block of microxcaling is off, if it is.
fn microxcaling_slips(block: &[f32], flush: bool) -> Option<&'static str> {
    let amax = block.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let mantissa = amax.to_bits() & 0x7f_ffff;
    if amax > f32::MAX / 1.001 {
        Some("block near the largest f32: the peer's exponent is 128 and the block becomes NaN")
    } else if mantissa >= 0x7f_fff0 {
        Some("float32 log2 is one too large for the largest magnitude of the block")
    } else if flush && amax < f32::MIN_POSITIVE {
        Some("the peer was told to flush blocks with exponents below -126")
    } else {
        None
    }
}

#[test]
fn microscaling_agrees_with_microxcaling_but_for_its_float32_logarithms() {
    for file in open("mx_microxcaling") {
        for column in file.stems("") {
            let parts: Vec<&str> = column.split('/').collect();
            let [element, rounding, input] = parts[..] else { continue };
            let stem = match element {
                "fp4_e2m1" => "mxfp4".to_owned(),
                other => format!("mx{}", other.replace('_', "-")),
            };
            let (name, group) = match input {
                "wide_b16" => ("x/wide", 16),
                "wide_b64" => ("x/wide", 64),
                "edge_flush" => ("x/edge", 32),
                other => (&*format!("x/{other}"), 32),
            };
            let format: Format = format!("{stem}-g{group}").parse().unwrap();
            let options = EncodeOptions { rounding: microxcaling_rounding(rounding), seed: 0 };
            let (mut x, mut shape) = (file.f32(name), file.shape(name).to_vec());
            let mut want = file.f32(&column);
            if name == "x/edge" {
                (x, shape) = {
                    let (x, s) = head(&x, &shape, file.finite_edge_rows());
                    (x, s.to_vec())
                };
                want.truncate(x.len());
            }
            let got = if input == "axis0" {
                // Blocks run down the columns: a transposed view.
                let (rows, columns) = (shape[0], shape[1]);
                let view = Shaped::strided(&x, &[columns, rows], &[1, columns.cast_signed()]).unwrap();
                let down = PackedTensor::encode_with(format, &view, options).unwrap().decode();
                (0..x.len()).map(|i| down[i % columns * rows + i / columns]).collect()
            } else {
                PackedTensor::encode_with(format, &Shaped::new(&x, &shape).unwrap(), options).unwrap().decode()
            };
            let columns = shape[1];
            let slip = |i: usize| {
                if name != "x/edge" {
                    return None;
                }
                let start = i / columns * columns + i % columns / group * group;
                // Elements are rounded with the same logarithm.
                let near_power = (x[i].to_bits() & 0x7f_ffff >= 0x7f_fff0)
                    .then_some("float32 log2, or floor(v + 0.5), for an element just below a power of two");
                microxcaling_slips(&x[start..(start + group).min((i / columns + 1) * columns)], input == "edge_flush")
                    .or(near_power)
            };
            file.check(&column, &got, &want, |a, b| a == b, slip);
        }
        file.finish();
    }
}

#[test]
fn fp4_agrees_with_modelopt() {
    for file in open("fp4_modelopt") {
        let (x, shape) = (file.f32("x"), file.shape("x"));
        let packed = encode_rounded("mxfp4-rceil", &x, shape, Rounding::NearestZero);
        file.codes("mxfp4/scale", packed.scales(), &file.u8("mxfp4/scale"));
        let want = nibbles(&file.u8("mxfp4/data"), false);
        let zero = |i: usize| (x[i] == 0.0).then_some("this peer writes every exact zero as -0");
        file.check("mxfp4/data", &byte_codes(&packed), &want, |a, b| a == b, zero);
        file.floats("mxfp4/deq", &packed.decode(), &file.f32("mxfp4/deq"));
        crate::nv::modelopt(&file, &x, shape);
        file.finish();
    }
}

/// The MX modes of MLX.
pub(crate) fn mlx(file: &GoldenFile, x: &[f32], shape: &[usize]) {
    for (mode, format) in [("mxfp4", "mxfp4-rceil"), ("mxfp8", "mxfp8-e4m3-rceil")] {
        let key = |part: &str| format!("{mode}/{part}");
        if !file.has(&key("wq")) {
            continue;
        }
        let packed = encode(format, x, shape);
        let block = |i: usize| &x[i * 32..(i + 1) * 32];
        let zero_block =
            |i: usize| block(i).iter().all(|x| *x == 0.0).then_some("a zero block has scale code 127 in this peer");
        file.check(&key("scales"), packed.scales(), &file.u8(&key("scales")), |a, b| a == b, zero_block);
        let words: Vec<u8> = file.u32(&key("wq")).iter().flat_map(|w| w.to_le_bytes()).collect();
        let want = if mode == "mxfp4" { nibbles(&words, false) } else { words };
        let got = byte_codes(&packed);
        let no_negative_zero = |i: usize| (mode == "mxfp4" && got[i] == 8).then_some("this peer has no -0 in FP4");
        file.check(&key("wq"), &got, &want, |a, b| a == b, no_negative_zero);
        file.floats(&key("deq"), &packed.decode(), &file.f32(&key("deq")));
    }
}

/// The MX formats of "INT v.s. FP".
pub(crate) fn int_vs_fp(file: &GoldenFile, x: &[f32], shape: &[usize]) {
    for (column, rule) in [("ceil", "rceil"), ("floor", "rfloor"), ("round", "rround"), ("ocp", "floor")] {
        let integers = [8, 6, 4, 3, 2].map(|bits| format!("mxint{bits}"));
        let floats = ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4"].map(str::to_owned);
        for stem in integers.iter().chain(&floats) {
            let key = format!("{stem}/{column}");
            if !file.has(&key) {
                continue;
            }
            let packed = encode(&format!("{}-{rule}", stem.replace('_', "-")), x, shape);
            file.floats(&key, &packed.decode(), &file.f32(&key));
        }
    }
}

#[test]
fn a_stored_minus_two_of_mxint8_decodes() {
    let packed = PackedTensor::from_sections(Format::MXINT8, &[1, 1], vec![0x80], vec![127], vec![], vec![]).unwrap();
    assert_eq!(packed.decode(), [-2.0]);
    assert_eq!(codes(&packed), [0x80]);
    let grid = FormatGrid::new(Format::MXINT8, 1.0).unwrap();
    let one = grid.params_from_stored(127, 0.0);
    assert_eq!(grid.encode_one(-2.0, &one, Rounding::NearestEven, 0), 0x81, "the encoder stops at -127/64");
}

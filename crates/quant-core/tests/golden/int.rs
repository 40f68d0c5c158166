//! Integers under float scales, and ONNX's linear quantization.

use crate::vectors::{GoldenFile, codes, encode, nibbles, open, params, signed};
use quant_core::{BlockParams, FloatKind, FormatGrid, Grid, LinearQuantizer, Overflow, bits};

#[test]
fn integers_agree_with_compressed_tensors() {
    for file in open("int_ct") {
        let (w, shape) = (file.f32("w"), file.shape("w"));
        for stem in file.stems("/q") {
            let parts: Vec<&str> = stem.split('/').collect();
            let [element, symmetry, strategy] = parts[..] else { continue };
            let Some(width) = element.strip_prefix("int").and_then(|b| b.parse::<u32>().ok()) else { continue };
            let rule = if symmetry == "sym" { "ctsym" } else { "ctasym" };
            let block = match strategy {
                "tensor" => "tensor",
                "channel" => "row",
                _ => "g32",
            };
            compare_ct(&file, &stem, &encode(&format!("{element}-{rule}-{block}-f32"), &w, shape), width, rule);
        }
        fp8(&file, &w, shape);
        // Everything in bf16, the quotient x/s included.
        let (w, shape) = (file.bf16("bf16/w"), file.shape("bf16/w"));
        let packed = encode("int4-ctsym-g32-bf16", &w, shape);
        let scales: Vec<f32> = params(&packed).iter().map(|p| p.scale).collect();
        file.floats("bf16 scale", &scales, &file.bf16("bf16/int4/sym/group/scale"));
        let got: Vec<i8> = codes(&packed).iter().map(|&c| signed(c, 4)).collect();
        file.codes("bf16 q", &got, &file.i8("bf16/int4/sym/group/q"));
        file.finish();
    }
}

fn compare_ct(file: &GoldenFile, stem: &str, packed: &quant_core::PackedTensor<'_>, width: u32, rule: &str) {
    let key = |part: &str| format!("{stem}/{part}");
    let parameters = params(packed);
    let scales: Vec<f32> = parameters.iter().map(|p| p.scale).collect();
    file.floats(&key("scale"), &scales, &file.f32(&key("scale")));
    // Their asymmetric codes are signed, ours unsigned.
    let half = if rule == "ctasym" { 1_i16 << (width - 1) } else { 0 };
    let to_i8 = |value: i16| i8::try_from(value - half).expect("a signed byte");
    #[expect(clippy::cast_possible_truncation, reason = "integer zero points")]
    let zeros: Vec<i8> = parameters.iter().map(|p| to_i8(p.zero as i16)).collect();
    file.codes(&key("zp"), &zeros, &file.i8(&key("zp")));
    let got: Vec<i8> = codes(packed)
        .iter()
        .map(|&code| if half == 0 { signed(code, width) } else { to_i8(code.cast_signed()) })
        .collect();
    file.codes(&key("q"), &got, &file.i8(&key("q")));
    if file.has(&key("deq")) {
        file.floats(&key("deq"), &packed.decode(), &file.f32(&key("deq")));
    }
}

fn fp8(file: &GoldenFile, w: &[f32], shape: &[usize]) {
    let packed = encode("fp8-e4m3", w, shape);
    let scales: Vec<f32> = params(&packed).iter().map(|p| p.scale).collect();
    let zero_row = |i: usize| {
        let row = &w[i * shape[1]..(i + 1) * shape[1]];
        row.iter().all(|x| *x == 0.0).then_some("a zero row has an epsilon as its scale in this peer, 1 here")
    };
    file.check("fp8 scale", &scales, &file.f32("fp8/channel/scale"), |a, b| a == b, zero_row);
    let got: Vec<u8> = codes(&packed).iter().map(|&c| u8::try_from(c).expect("a byte")).collect();
    file.codes("fp8 q", &got, &file.u8("fp8/channel/q"));
    if file.has("fp8/channel/deq") {
        file.floats("fp8 deq", &packed.decode(), &file.f32("fp8/channel/deq"));
    }
}

#[test]
fn integers_agree_with_gptq_and_awq() {
    for file in open("int_gptq_awq") {
        let (w, shape) = (file.f32("w"), file.shape("w"));
        for stem in file.stems("/scale") {
            let key = |part: &str| format!("{stem}/{part}");
            let parts: Vec<&str> = stem.split('/').collect();
            let [peer, width, mode] = parts[..] else { continue };
            let width = &width[1..];
            let rule = match (peer, mode.trim_end_matches("_mse")) {
                ("gptq", "sym") => "gptq",
                ("gptq", _) => "asym",
                ("awq", "sym") => "awq",
                _ => "awqasym",
            };
            let format = format!("int{width}-{rule}-g32-f32");
            let (parameters, decoded) = if mode.ends_with("_mse") {
                mean_error_search(&format, &w)
            } else {
                let packed = encode(&format, &w, shape);
                (params(&packed), packed.decode())
            };
            let scales: Vec<f32> = parameters.iter().map(|p| p.scale).collect();
            file.floats(&key("scale"), &scales, &file.f32(&key("scale")));
            if file.has(&key("zero")) {
                // GPTQ's symmetric zero point is always the middle code; ours is implied.
                let middle = f32::from(1_u16 << (width.parse::<u32>().unwrap() - 1));
                let zeros: Vec<f32> =
                    parameters.iter().map(|p| if rule == "gptq" { p.zero + middle } else { p.zero }).collect();
                file.floats(&key("zero"), &zeros, &file.f32(&key("zero")));
            }
            file.floats(&key("deq"), &decoded, &file.f32(&key("deq")));
        }
        file.finish();
    }
}

/// GPTQ's search, written by a caller over [`Grid`]: 80 shrunken ranges, the first with the least
/// sum of |error|^2.4.
fn mean_error_search(format: &str, w: &[f32]) -> (Vec<BlockParams>, Vec<f32>) {
    let grid = FormatGrid::new(format.parse().unwrap(), 0.0).unwrap();
    let (mut best_params, mut decoded) = (Vec::new(), Vec::new());
    for group in w.chunks(32) {
        let mut best: Option<(f64, BlockParams)> = None;
        for i in 0..80_u8 {
            #[expect(clippy::cast_possible_truncation, reason = "the factor is rounded to f32 by the peer")]
            let clip = (1.0 - f64::from(i) / 100.0) as f32;
            let params = grid.fit(group, clip).unwrap();
            let error: f64 = group.iter().map(|&x| f64::from((grid.round(x, &params) - x).abs()).powf(2.4)).sum();
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, params));
            }
        }
        let (_, params) = best.unwrap();
        decoded.extend(group.iter().map(|&x| grid.round(x, &params)));
        best_params.push(params);
    }
    (best_params, decoded)
}

#[test]
fn linear_quantization_agrees_with_onnx() {
    for file in open("onnx_qdq") {
        let (x, columns) = (file.f32("x"), file.shape("x")[1]);
        for stem in file.stems("/q") {
            let parts: Vec<&str> = stem.split('/').collect();
            let (element, layout) = (parts[0], parts[1]);
            let overflow = if stem.ends_with("/nosat") { Overflow::NonSaturating } else { Overflow::Saturate };
            let scales = file.f32(&format!("{stem}/scale"));
            let zeros = file.i32(&format!("{stem}/zp"));
            let quantizer = |i: usize| {
                let block = match layout {
                    "tensor" => 0,
                    "axis0" => i / columns,
                    _ => i / 16,
                };
                let (scale, zero) = (scales[block], i16::try_from(zeros[block]).unwrap());
                match element {
                    "f8e4m3fn" => LinearQuantizer::Float { kind: FloatKind::E4m3Fn, overflow, scale },
                    "f8e5m2" => LinearQuantizer::Float { kind: FloatKind::E5m2, overflow, scale },
                    "f8e4m3fnuz" => LinearQuantizer::Float { kind: FloatKind::E4m3Fnuz, overflow, scale },
                    "f4e2m1" => LinearQuantizer::Float { kind: FloatKind::E2m1, overflow, scale },
                    int => {
                        let signed = !int.starts_with('u');
                        let bits = int.trim_start_matches("uint").trim_start_matches("int").parse().unwrap();
                        LinearQuantizer::Int { bits, signed, scale, zero }
                    }
                }
            };
            let got: Vec<u16> = x.iter().enumerate().map(|(i, &x)| quantizer(i).encode(x)).collect();
            let key = format!("{stem}/q");
            if element.starts_with('f') {
                file.codes(
                    &key,
                    &got.iter().map(|&code| u8::try_from(code).unwrap()).collect::<Vec<_>>(),
                    &file.u8(&key),
                );
            } else {
                let value = |&code: &u16| match element.strip_prefix("int") {
                    Some(width) => i16::from(signed(code, width.parse().unwrap())),
                    None => code.cast_signed(),
                };
                let want: Vec<i16> = file.u16(&key).into_iter().map(u16::cast_signed).collect();
                file.codes(&key, &got.iter().map(value).collect::<Vec<_>>(), &want);
            }
            let decoded: Vec<f32> = got.iter().enumerate().map(|(i, &code)| quantizer(i).decode(code)).collect();
            file.floats(&format!("{stem}/deq"), &decoded, &file.f32(&format!("{stem}/deq")));
        }
        if file.has("uint4_pack/values") {
            let values: Vec<u16> = file.u8("uint4_pack/values").into_iter().map(u16::from).collect();
            file.codes("uint4_pack", &bits::pack(4, &values).unwrap(), &file.u8("uint4_pack/raw"));
        }
        file.finish();
    }
}

#[test]
fn every_mode_agrees_with_mlx() {
    for file in open("mlx") {
        let (w, shape) = (file.f32("w"), file.shape("w"));
        for stem in file.stems("/biases") {
            let parts: Vec<&str> = stem.split('/').collect();
            let [mode, width, group] = parts[..] else { continue };
            let key = |part: &str| format!("{stem}/{part}");
            let width: u32 = width[1..].parse().unwrap();
            let half = mode == "affine_f16";
            let x = if half { w.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect() } else { w.clone() };
            let packed = encode(&format!("int{width}-mlx-{group}-{}", if half { "f16" } else { "f32" }), &x, shape);
            let read = |part: &str| if half { file.f16(&key(part)) } else { file.f32(&key(part)) };
            let parameters = params(&packed);
            file.floats(&key("scales"), &parameters.iter().map(|p| p.scale).collect::<Vec<_>>(), &read("scales"));
            file.floats(&key("biases"), &parameters.iter().map(|p| p.zero).collect::<Vec<_>>(), &read("biases"));
            let words: Vec<u8> = file.u32(&key("wq")).iter().flat_map(|w| w.to_le_bytes()).collect();
            file.codes(&key("wq"), packed.codes(), &words);
            if !half {
                file.floats(&key("deq"), &packed.decode(), &file.f32(&key("deq")));
            }
        }
        crate::mx::mlx(&file, &w, shape);
        crate::nv::mlx(&file, &w, shape);
        file.finish();
    }
}

#[test]
fn simulated_quantization_agrees_with_int_vs_fp() {
    for file in open("int_vs_fp") {
        let (x, shape) = (file.f32("x"), file.shape("x"));
        for width in [8, 6, 4, 3, 2] {
            // In f32 arithmetic the code -2^(b-1) never occurs, so that both clips agree.
            for clip in ["sym", "asymclip"] {
                let key = format!("int{width}_g32_{clip}");
                if file.has(&key) {
                    file.floats(&key, &encode(&format!("int{width}-g32-f32"), &x, shape).decode(), &file.f32(&key));
                }
            }
        }
        crate::mx::int_vs_fp(&file, &x, shape);
        crate::nv::int_vs_fp(&file, &x, shape);
        file.leave("the theory has tests of its own", |name| name.starts_with("theory/"));
        file.finish();
    }
}

#[test]
fn unsigned_nibbles_lie_low_first() {
    assert_eq!(nibbles(&bits::pack(4, &[1, 2, 3]).unwrap(), false), [1, 2, 3, 0]);
}

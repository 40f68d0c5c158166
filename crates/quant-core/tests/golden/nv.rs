//! Two-level scales: NVFP4 and NVINT4.

use crate::vectors::{GoldenFile, byte_codes, encode, nibbles, open, to_bf16};
use quant_core::{EncodeOptions, FormatGrid, PackedTensor, Shaped};

/// Encodes on a grid whose tensor scale is given.
fn encode_under(format: &str, second: f32, x: &[f32], shape: &[usize]) -> PackedTensor<'static> {
    let grid = FormatGrid::with_tensor_scale(format.parse().unwrap(), second).unwrap();
    PackedTensor::encode_on(&grid, &Shaped::new(x, shape).unwrap(), EncodeOptions::default()).unwrap()
}

#[test]
fn nvfp4_agrees_with_torchao_with_and_without_a_tensor_scale() {
    for file in open("nvfp4_torchao") {
        for input in ["main", "edge"] {
            let key = |part: &str| format!("{input}/{part}");
            let name = format!("x/{input}");
            let (x, shape) = (file.f32(&name), file.shape(&name));
            let compare = |way: &str, packed: &PackedTensor<'_>| {
                file.codes(&key(&format!("{way}/scale")), packed.scales(), &file.u8(&key(&format!("{way}/scale"))));
                let want = nibbles(&file.u8(&key(&format!("{way}/data"))), false);
                file.codes(&key(&format!("{way}/data")), &byte_codes(packed), &want);
            };
            compare("single", &encode("nvfp4-torchao1", &x, shape));
            let second = file.f32(&key("two/per_tensor_scale"));
            if input == "main" {
                file.floats("per_tensor_scale", encode("nvfp4-torchao", &x, shape).second(), &second);
            }
            let packed = encode_under("nvfp4-torchao", second[0], &x, shape);
            compare("two", &packed);
            file.floats(&key("two/deq"), &packed.decode(), &file.f32(&key("two/deq")));
            // The peer was given the tensor scale of the f32 values here.
            let key = |part: &str| key(&format!("two_bf16/{part}"));
            let (scales, data) = (file.u8(&key("scale")), nibbles(&file.u8(&key("data")), false));
            for (row, values) in to_bf16(&x).chunks_exact(shape[1]).enumerate() {
                // The largest f32 becomes infinite in bf16, which is an error here.
                if values.iter().all(|x| x.is_finite()) {
                    let packed = encode_under("nvfp4-torchao", second[0], values, &[1, shape[1]]);
                    let blocks = shape[1] / 16;
                    file.codes(&key("scale"), packed.scales(), &scales[row * blocks..][..blocks]);
                    file.codes(&key("data"), &byte_codes(&packed), &data[row * shape[1]..][..shape[1]]);
                }
            }
        }
        file.finish();
    }
}

#[test]
fn nvfp4_agrees_with_compressed_tensors() {
    for file in open("nvfp4_ct") {
        let (x, shape) = (file.f32("x"), file.shape("x"));
        let packed = encode("nvfp4-ct", &x, shape);
        file.floats("global_scale", packed.second(), &file.f32("global_scale"));
        file.codes("scale", packed.scales(), &file.u8("scale"));
        file.codes("data", &byte_codes(&packed), &nibbles(&file.u8("data"), false));
        file.floats("deq_bf16", &to_bf16(&packed.decode()), &file.bf16("deq_bf16"));
        file.finish();
    }
}

pub(crate) fn modelopt(file: &GoldenFile, x: &[f32], shape: &[usize]) {
    let packed = encode("nvfp4-modelopt", x, shape);
    file.floats("nvfp4/scale2", packed.second(), &file.f32("nvfp4/scale2"));
    file.codes("nvfp4/scale", packed.scales(), &file.u8("nvfp4/scale"));
    file.codes("nvfp4/data", &byte_codes(&packed), &nibbles(&file.u8("nvfp4/data"), false));
    file.floats("nvfp4/deq", &packed.decode(), &file.f32("nvfp4/deq"));
}

/// The NVFP4 modes of MLX.
pub(crate) fn mlx(file: &GoldenFile, x: &[f32], shape: &[usize]) {
    for (mode, format) in [("nvfp4", "nvfp4-mlx1"), ("nvfp4_global", "nvfp4-mlx")] {
        let key = |part: &str| format!("{mode}/{part}");
        if !file.has(&key("wq")) {
            continue;
        }
        let packed = if mode == "nvfp4" {
            encode(format, x, shape)
        } else {
            encode_under(format, file.f32(&key("global_scale"))[0], x, shape)
        };
        file.codes(&key("scales"), packed.scales(), &file.u8(&key("scales")));
        let words: Vec<u8> = file.u32(&key("wq")).iter().flat_map(|w| w.to_le_bytes()).collect();
        file.codes(&key("wq"), &byte_codes(&packed), &nibbles(&words, false));
        file.floats(&key("deq"), &packed.decode(), &file.f32(&key("deq")));
    }
}

/// NVINT and NVFP4 of "INT v.s. FP", whose effective scale is rounded to bf16.
pub(crate) fn int_vs_fp(file: &GoldenFile, x: &[f32], shape: &[usize]) {
    for stem in ["nvint8", "nvint6", "nvint4", "nvint3", "nvint2", "nvfp4"] {
        if file.has(stem) {
            file.floats(stem, &encode(&format!("{stem}-paper"), x, shape).decode(), &file.f32(stem));
        }
    }
}

//! Whole checkpoints of compressed-tensors: quantizing their bf16 weights again gives what they hold.

use crate::vectors::{GoldenFile, encode, open, params, to_bf16};
use quant_core::{FloatKind, Overflow};

#[test]
fn quantizing_the_weights_of_a_checkpoint_gives_its_decompressed_values() {
    for (folder, format) in [
        ("ct_w4a16_asym_g32", "int4-ctasym-g32-bf16"),
        ("ct_w4a16_sym_g32", "int4-ctsym-g32-bf16"),
        ("ct_w3a16_sym_ch", "int3-ctsym-bf16"),
        ("ct_w8_int_ch", "int8-ctsym-bf16"),
        ("ct_mxfp4", "mxfp4-ct"),
        ("ct_mxfp8", "mxfp8-e4m3-ct"),
    ] {
        for file in open(&format!("files/{folder}/expected")) {
            compare(&file, format);
            file.finish();
        }
    }
}

fn compare(file: &GoldenFile, format: &str) {
    for stem in file.stems("w") {
        let key = |part: &str| format!("{stem}{part}");
        let packed = encode(format, &file.bf16(&key("w")), file.shape(&key("w")));
        file.floats(&key("deq"), &to_bf16(&packed.decode()), &file.bf16(&key("deq")));
    }
}

#[test]
fn an_fp8_checkpoint_differs_only_by_a_quotient_rounded_to_bf16() {
    for file in open("files/ct_fp8_ch/expected") {
        let (w, shape) = (file.bf16("w"), file.shape("w"));
        let packed = encode("fp8-e4m3-bf16", &w, shape);
        let (got, want) = (to_bf16(&packed.decode()), file.bf16("deq"));
        let scales = params(&packed);
        let scale = |i: usize| scales[i / shape[1]].scale;
        let rounded = |i: usize| to_bf16(&[w[i] / scale(i)])[0];
        let moved = |i: usize| (rounded(i) != w[i] / scale(i)).then_some("the peer divides in bf16");
        file.check("deq", &got, &want, |a, b| a == b, moved);
        // With the quotient rounded as the peer rounds it, nothing differs.
        let element = |x: f32| FloatKind::E4m3Fn.decode(FloatKind::E4m3Fn.encode(x, Overflow::Saturate));
        let theirs: Vec<f32> = (0..w.len()).map(|i| element(rounded(i)) * scale(i)).collect();
        file.floats("deq", &to_bf16(&theirs), &want);
        file.finish();
    }
}

#[test]
fn an_nvfp4_checkpoint_differs_only_in_blocks_whose_scale_was_rounded_to_bf16() {
    for file in open("files/ct_nvfp4/expected") {
        let (w, shape) = (file.bf16("w"), file.shape("w"));
        let packed = encode("nvfp4-ct", &w, shape);
        let (got, want) = (to_bf16(&packed.decode()), file.bf16("deq"));
        let moved = |i: usize| {
            let block = &w[i / 16 * 16..][..16];
            let sixth = block.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 6.0;
            let code = FloatKind::E4m3Fn.encode(packed.second()[0] * to_bf16(&[sixth])[0], Overflow::Saturate);
            (code != u16::from(packed.scales()[i / 16])).then_some("the peer rounds amax/6 to bf16")
        };
        file.check("deq", &got, &want, |a, b| a == b, moved);
        file.finish();
    }
}

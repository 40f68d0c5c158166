//! Code books.

use crate::vectors::{byte_codes, codes, encode, nibbles, open, params};
use quant_core::{Codebook, Format, PackedTensor};

#[test]
fn code_books_agree_with_bitsandbytes() {
    for file in open("nf4_bnb") {
        file.floats("code/nf4", Codebook::Nf4.values(), &file.f32("code/nf4"));
        file.floats("code/fp4", Codebook::BnbFp4.values(), &file.f32("code/fp4"));
        // This peer keeps AF4 in descending order.
        let mut descending = *Codebook::Af4.values();
        descending.reverse();
        file.floats("code/af4", &descending, &file.f32("code/af4"));
        file.leave("the unsigned dynamic map belongs to optimizers", |name| name == "code/dynamic8_unsigned");
        let (x, shape) = (file.f32("x"), file.shape("x"));
        for (peer, name) in [("nf4", "nf4"), ("fp4", "bnbfp4")] {
            for block in [64, 128] {
                let key = |part: &str| format!("{peer}/b{block}/{part}");
                if !file.has(&key("packed")) {
                    continue;
                }
                let packed = encode(&format!("{name}-g{block}"), &x, shape);
                let scales: Vec<f32> = params(&packed).iter().map(|p| p.scale).collect();
                file.floats(&key("absmax"), &scales, &file.f32(&key("absmax")));
                file.codes(&key("packed"), &byte_codes(&packed), &nibbles(&file.u8(&key("packed")), true));
                file.floats(&key("deq"), &packed.decode(), &file.f32(&key("deq")));
            }
        }
        double_quantization(&file, &x, shape);
        file.finish();
    }
}

fn double_quantization(file: &crate::vectors::GoldenFile, x: &[f32], shape: &[usize]) {
    let key = |part: &str| format!("nf4_double/b64/{part}");
    let packed = encode("nf4-dq", x, shape);
    file.codes(&key("packed"), &byte_codes(&packed), &nibbles(&file.u8(&key("packed")), true));
    let first_level = params(&encode("nf4", x, shape));
    let magnitudes: Vec<f32> = first_level.iter().map(|p| p.scale).collect();
    // The mean is added up in f64 here. The peer adds in f32, in the order of its vectors: four
    // accumulators of eight lanes, whose sums are then added one by one.
    let offset = file.f32(&key("offset"))[0];
    let lane = |lane: usize| (0..4).map(|i| magnitudes[8 * i + lane]).fold(0.0, |sum: f32, x| sum + x);
    if magnitudes.len() == 32 {
        file.floats(&key("offset"), &[(0..8).map(lane).fold(0.0, |sum: f32, x| sum + x) / 32.0], &[offset]);
    }
    assert!((packed.second()[0] / offset - 1.0).abs() < 1e-6, "{} and {offset}", packed.second()[0]);
    let largest = |block: &[f32]| block.iter().fold(0.0_f32, |m, a| m.max((a - offset).abs()));
    let mut second: Vec<f32> = magnitudes.chunks(256).map(largest).collect();
    file.floats(&key("absmax2"), &second, &file.f32(&key("absmax2")));
    // With the peer's offset the rest agrees.
    second.insert(0, offset);
    let packed = PackedTensor::from_codes(packed.format(), shape, &codes(&packed), &first_level, &second).unwrap();
    file.codes(&key("absmax_q"), packed.scales(), &file.u8(&key("absmax_q")));
    file.floats(&key("deq"), &packed.decode(), &file.f32(&key("deq")));
    // The map itself, read off through a tensor of one block a byte: offset 0, magnitude 1.
    let format: Format = "nf4-g1-dq".parse().unwrap();
    let ones = vec![0xff; 128];
    let every: Vec<u8> = (0..=255).collect();
    let map = PackedTensor::from_sections(format, &[1, 256], ones, every, vec![], vec![0.0, 1.0]).unwrap().decode();
    file.floats(&key("code2"), &map, &file.f32(&key("code2")));
    file.floats("code/dynamic8_signed", &map, &file.f32("code/dynamic8_signed"));
}

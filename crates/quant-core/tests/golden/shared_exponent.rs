//! Block floating point.

use crate::vectors::{encode_rounded, open, params};
use quant_core::Rounding;

#[test]
fn shared_exponents_agree_with_microxcaling() {
    for file in open("bfp_microxcaling") {
        let (x, shape) = (file.f32("x"), file.shape("x"));
        for column in file.stems("") {
            let parts: Vec<&str> = column.split('/').collect();
            match parts[..] {
                [block, "shared_exp"] => {
                    let packed = encode_rounded(&format!("bfp8-g{}", &block[1..]), &x, shape, Rounding::NearestEven);
                    let got: Vec<i32> =
                        params(&packed).iter().map(|p| i32::try_from(p.scale_code).unwrap() - 127).collect();
                    file.codes(&column, &got, &file.i32(&column));
                }
                [block, bits, rounding] => {
                    let rounding = match rounding {
                        "even" => Rounding::NearestEven,
                        "nearest" => Rounding::NearestAway,
                        _ => Rounding::TowardZero,
                    };
                    let format = format!("bfp{}-g{}", &bits[1..], &block[1..]);
                    let packed = encode_rounded(&format, &x, shape, rounding);
                    file.floats(&column, &packed.decode(), &file.f32(&column));
                    if file.has(&column) && x.iter().all(|x| *x == 0.0 || (2e-4..2e4).contains(&x.abs())) {
                        let narrow = encode_rounded(&format.replace("bfp", "sefp"), &x, shape, rounding);
                        file.floats("5-bit exponents", &narrow.decode(), &packed.decode());
                    }
                }
                _ => {}
            }
        }
        file.finish();
    }
}

//! Rows and codes that vectors pack, against the plain definitions.

use kv_cache_quant::*;
use quant_core::kernels::{Isa, with_isa};
use quant_core::{PackedTensor, Shaped};

#[test]
fn rows_are_sealed_to_the_bytes_of_the_packed_tensor() {
    for name in [
        "int2-min",
        "int2-g32-min",
        "int4-min",
        "int4-g32-min",
        "int4-g128-min",
        "int8-min",
        "int8-g16-min",
        "int4-g20-min",
    ] {
        for dim in [64_usize, 80, 96, 100, 112, 128, 256] {
            // The last rows are constant, tiny, coarse, beyond f16.
            for (seed, scale) in [1e-2, 1.0, 97.0, 1e-3, 0.3, 0.0, 1e-9, 1e2, 1e3].into_iter().enumerate() {
                let noise =
                    |i: usize| f32::from(u16::try_from((i * 7919 + seed * 104_729) % 1009).unwrap_or(0)) - 504.0;
                let row: Vec<f32> = (0..3 * dim).map(|i| noise(i) * scale + 0.1).collect();
                let codec = TokenFormat::new(3, dim, name.parse().unwrap()).unwrap();
                let mut unit = vec![0; codec.bytes(0).total()];
                let packed = PackedTensor::encode(codec.format(), &Shaped::new(&row, &[3, dim]).unwrap());
                let expected = packed.map(|packed| [packed.codes(), packed.scales(), packed.zeros()].concat());
                for isa in Isa::ALL {
                    let found = with_isa(isa, || codec.seal(&row, 0, &mut unit)).map(|()| unit.clone());
                    assert_eq!(found.ok(), expected.as_ref().ok().cloned(), "{name}, {dim}, times {scale}, {isa:?}");
                }
            }
        }
    }
}

#[test]
fn values_next_to_thresholds_are_sealed_as_a_division_rounds_them() {
    for (bits, largest) in [(2_u8, 3_u8), (4, 15), (8, 255)] {
        let format = format!("int{bits}-min").parse().unwrap();
        let codec = TokenFormat::new(1, 128, format).unwrap();
        // Steps and least values that f16 holds.
        for (step, min) in [(0.099_975_586_f32, -0.75_f32), (3.0, 1.0), (0.007_812_5, -3.0), (1.234_375, -1000.0)] {
            for first in (0..u16::from(largest)).step_by(25) {
                let threshold = |at: u16| (f32::from((first + at / 5) % u16::from(largest)) + 0.5).mul_add(step, min);
                let near = |at: u16| f32::from_bits(threshold(at).to_bits() + u32::from(at % 5) - 2);
                let mut row: Vec<f32> = (0..128).map(near).collect();
                (row[0], row[127]) = (min, f32::from(largest).mul_add(step, min));
                let packed = PackedTensor::encode(format, &Shaped::new(&row, &[1, 128]).unwrap()).unwrap();
                let expected = [packed.codes(), packed.scales(), packed.zeros()].concat();
                for isa in Isa::ALL {
                    let mut unit = vec![0; codec.bytes(0).total()];
                    with_isa(isa, || codec.seal(&row, 0, &mut unit)).unwrap();
                    assert_eq!(unit, expected, "{bits} bits, step {step}, min {min}, {isa:?}");
                }
            }
        }
    }
}

#[test]
fn halved_codes_follow_the_rule_for_every_pair_of_bytes() {
    let codec = PmKvq::new(1, 64, PmKvqConfig { residual: 1 << 10, ..PmKvqConfig::default() }).unwrap();
    for (stage, width) in [Width::W16, Width::W8, Width::W4].into_iter().enumerate() {
        let (from, to) = (codec.bytes(stage), codec.bytes(stage + 1));
        let (bits, words) = (width.bits(), from.codes / 2);
        for first in (0..=usize::from(u16::MAX)).step_by(words) {
            let word = |at: usize| u16::try_from((first + at) % (1 << 16)).unwrap();
            let mut old: Vec<u8> = (0..words).flat_map(|at| word(at).to_le_bytes()).collect();
            old.resize(from.total(), 7);
            for isa in Isa::ALL {
                let mut new = vec![0; to.total()];
                with_isa(isa, || codec.shrink(&old, stage, &mut new));
                for (at, halved) in new[..words].iter().enumerate() {
                    let code =
                        |k: u32| shrink_code((word(at) >> (k * bits)) & (u16::MAX >> (16 - bits)), width).unwrap();
                    let expected: u16 = (0..16 / bits).map(|k| code(k) << (k * bits / 2)).sum();
                    assert_eq!(u16::from(*halved), expected, "{:04x} from {bits} bits, {isa:?}", word(at));
                }
                assert!(new[words..].iter().all(|byte| *byte == 7), "metadata stays");
            }
        }
    }
}

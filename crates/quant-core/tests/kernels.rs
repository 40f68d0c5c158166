//! Every kernel gives the bytes of the reference.

#![expect(clippy::cast_possible_truncation, reason = "test values are cut on purpose")]

use quant_core::kernels::{Isa, with_isa};
use quant_core::{
    Block, Codebook, Element, EncodeOptions, Error, FloatKind, Format, FormatGrid, Grid, IntRule, Linear, NvRule,
    Overflow, PackedTensor, Scale, ScaleRule, ScaleType, Shaped,
};

/// The formats that kernels cover, and some that they must leave alone.
fn formats() -> Vec<Format> {
    let mut formats: Vec<Format> = Format::named().iter().map(|named| named.format).collect();
    let rules = [
        IntRule::Restricted,
        IntRule::Full,
        IntRule::CtSym,
        IntRule::GptqSym,
        IntRule::AwqSym,
        IntRule::Asymmetric,
        IntRule::CtAsym,
        IntRule::AwqAsym,
        IntRule::FloatMin,
        IntRule::Mlx,
    ];
    let scales = [ScaleType::F16, ScaleType::F32, ScaleType::Bf16];
    let groups = [Block::Row, Block::Group(32), Block::Group(128), Block::Group(40), Block::Group(5), Block::Group(64)];
    for (i, &rule) in rules.iter().enumerate() {
        for bits in 2..=8 {
            let scale = Scale::Float(scales[(i + usize::from(bits)) % 3]);
            let block = groups[(i + usize::from(bits)) % groups.len()];
            formats.push(Format { element: Element::Int { bits, rule }, block, scale });
        }
        for block in groups {
            formats.push(Format {
                element: Element::Int { bits: 4, rule },
                block,
                scale: Scale::Float(ScaleType::F16),
            });
        }
    }
    let block = Block::Group(32);
    let saturating = |kind| Element::Float { kind, overflow: Overflow::Saturate };
    let powers = [
        ScaleRule::Floor,
        ScaleRule::Ceil,
        ScaleRule::Even,
        ScaleRule::EvenCt,
        ScaleRule::RCeil,
        ScaleRule::RFloor,
        ScaleRule::RRound,
    ];
    for rule in powers {
        let scale = Scale::E8m0(rule);
        for kind in FloatKind::ALL.into_iter().filter(|kind| kind.is_mx()) {
            formats.push(Format { element: saturating(kind), block, scale });
        }
        for bits in [4, 5, 8] {
            formats.push(Format { element: Element::Int { bits, rule: IntRule::Restricted }, block, scale });
        }
    }
    for kind in FloatKind::ALL {
        for overflow in [Overflow::Saturate, Overflow::NonSaturating] {
            formats.push(Format { element: Element::Float { kind, overflow }, block: Block::Row, scale: Scale::None });
        }
        for (block, scale) in groups.into_iter().zip(scales.into_iter().cycle()) {
            formats.push(Format { element: saturating(kind), block, scale: Scale::Float(scale) });
        }
    }
    let nested = [
        NvRule::Standard,
        NvRule::TorchAo,
        NvRule::TorchAoSingle,
        NvRule::ModelOpt,
        NvRule::CompressedTensors,
        NvRule::Mlx,
        NvRule::MlxSingle,
        NvRule::PaperBf16,
    ];
    for rule in nested {
        let (block, scale) = (Block::Group(16), Scale::E4m3(rule));
        formats.push(Format { element: saturating(FloatKind::E2m1), block, scale });
        formats.push(Format { element: Element::Int { bits: 4, rule: IntRule::Restricted }, block, scale });
    }
    for book in [Codebook::Nf4, Codebook::Af4, Codebook::BnbFp4] {
        for (block, scale) in groups.into_iter().zip(scales.into_iter().cycle()) {
            formats.push(Format { element: Element::Codebook(book), block, scale: Scale::Float(scale) });
        }
        formats.push(Format { element: Element::Codebook(book), block, scale: Scale::Double });
    }
    formats.push(Format { block: Block::Tile { rows: 2, columns: 64 }, ..Format::INT8 });
    formats.push(Format { block: Block::Tensor, ..Format::INT4_G128 });
    formats.retain(|format| format.validate().is_ok());
    formats
}

/// A small generator, so that the tests name their seeds.
struct Words(u64);

impl Words {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
    }

    fn unit(&mut self) -> f32 {
        (self.next() & 0xff_ffff) as f32 / 8_388_608.0 - 1.0
    }
}

/// Rows of different nature.
fn row(kind: usize, len: usize, words: &mut Words) -> Vec<f32> {
    let specials =
        [0.0, -0.0, 1.0, -1.0, f32::MIN_POSITIVE, -1.0e-45, 1e-45, 65504.0, 65520.0, 448.0, 464.0, -57344.0, 1e-30];
    (0..len)
        .map(|i| match kind {
            0 => words.unit(),
            1 => words.unit() * (words.unit() * 40.0).exp2(),
            // Multiples of a quarter: ties of every format.
            2 => ((words.next() % 129) as f32 - 64.0) / 4.0,
            3 => specials[(words.next() % specials.len() as u64) as usize],
            4 => f32::from_bits((words.next() as u32) & 0x807f_ffff),
            5 => f32::from_bits(words.next() as u32).clamp(-f32::MAX, f32::MAX),
            6 => 0.0_f32.copysign(words.unit()),
            7 => words.unit() * 1e-38,
            8 => words.unit() + 3.0,
            9 => {
                if i % 17 == 0 {
                    1000.0 * words.unit()
                } else {
                    words.unit()
                }
            }
            _ => ((words.next() % 255) as f32 - 127.0) * 0.5,
        })
        .map(|x: f32| if x.is_finite() { x } else { 1.0 })
        .collect()
}

const KINDS: usize = 11;

fn check(isa: Isa, format: Format, x: &[f32], shape: &[usize]) {
    let tensor = Shaped::new(x, shape).expect("the shape fits");
    let expected = with_isa(Isa::Reference, || PackedTensor::encode(format, &tensor));
    let found = with_isa(isa, || PackedTensor::encode(format, &tensor));
    let (expected, found) = match (expected, found) {
        (Ok(expected), Ok(found)) => (expected, found),
        (expected, found) => {
            assert_eq!(expected.err(), found.err(), "{format} {isa:?} {shape:?}");
            return;
        }
    };
    assert_eq!(expected.scales(), found.scales(), "scales of {format} {isa:?} {shape:?} {x:?}");
    assert_eq!(expected.zeros(), found.zeros(), "zeros of {format} {isa:?} {shape:?} {x:?}");
    assert_eq!(expected.second(), found.second(), "second of {format} {isa:?} {shape:?}");
    if expected.codes() != found.codes() {
        let (mut a, mut b) = (vec![0; shape[1]], vec![0; shape[1]]);
        for row in 0..shape[0] {
            expected.row_codes(row, &mut a).expect("the row exists");
            found.row_codes(row, &mut b).expect("the row exists");
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                assert_eq!(
                    a,
                    b,
                    "code of {format} {isa:?} {shape:?} row {row} element {i} = {:e}",
                    x[row * shape[1] + i]
                );
            }
        }
        panic!("padding of {format} {isa:?} {shape:?}");
    }
    let expected_values = with_isa(Isa::Reference, || expected.decode());
    let found_values = with_isa(isa, || expected.decode());
    for (i, (a, b)) in expected_values.iter().zip(&found_values).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "value of {format} {isa:?} {shape:?} element {i}: {a:e} and {b:e}");
    }
}

macro_rules! agrees {
    ($name:ident, $isa:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn rows_of_every_length_give_the_bytes_of_the_reference() {
                if !$isa.is_available() {
                    eprintln!("skipped: the CPU lacks {:?}", $isa);
                    return;
                }
                let mut words = Words(1);
                for format in formats() {
                    for len in 1..=if cfg!(miri) { 35 } else { 131 } {
                        let x = row(len % KINDS, 2 * len, &mut words);
                        check($isa, format, &x, &[2, len]);
                    }
                }
            }

            #[test]
            #[cfg(not(miri))]
            fn rows_that_are_encoded_together_give_the_bytes_of_the_reference() {
                if !$isa.is_available() {
                    eprintln!("skipped: the CPU lacks {:?}", $isa);
                    return;
                }
                let mut words = Words(4);
                for format in formats() {
                    for (rows, len) in [(3000, 1), (700, 7), (300, 8), (40, 48), (9, 512), (5, 576), (5, 1024), (7, 1536)] {
                        let x = row((rows + len) % KINDS, rows * len, &mut words);
                        check($isa, format, &x, &[rows, len]);
                    }
                }
            }

            #[test]
            #[cfg(not(miri))]
            fn values_of_every_nature_give_the_bytes_of_the_reference() {
                if !$isa.is_available() {
                    eprintln!("skipped: the CPU lacks {:?}", $isa);
                    return;
                }
                let mut words = Words(2);
                for format in formats() {
                    for kind in 0..KINDS {
                        for len in [128, 256, 640, 2048, 4099, 5000] {
                            let x = row(kind, len, &mut words);
                            check($isa, format, &x, &[1, len]);
                        }
                    }
                }
            }

            #[test]
            #[cfg(not(miri))]
            fn scales_of_every_binade_give_the_bytes_of_the_reference() {
                if !$isa.is_available() {
                    eprintln!("skipped: the CPU lacks {:?}", $isa);
                    return;
                }
                let mut words = Words(3);
                for format in formats() {
                    for exponent in (-149..=127).step_by(if format.code_bits() < 8 { 3 } else { 5 }) {
                        let scale = 2.0_f64.powi(exponent) * f64::from(1.0 + words.unit().abs());
                        let x: Vec<f32> = row(0, 256, &mut words).iter().map(|&v| (f64::from(v) * scale) as f32).collect();
                        check($isa, format, &x, &[2, 128]);
                    }
                }
            }

            #[test]
            fn the_first_bad_element_is_named_wherever_it_stands() {
                let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                let casts = ["fp8-e4m3-cast", "f16", "bf16"].map(|name| name.parse().expect("the format has a name"));
                let scaled = [Format::INT8, Format::INT4_G128_ASYM, Format::MXFP4, Format::NVFP4, Format::NF4];
                for format in scaled.into_iter().chain(casts) {
                    for position in (0..300).step_by(7) {
                        let mut x = vec![0.5; 400];
                        x[position] = bad[position % 3];
                        x[399] = f32::NAN;
                        let tensor = Shaped::new(&x, &[2, 200]).expect("the shape fits");
                        let found = with_isa($isa, || PackedTensor::encode(format, &tensor));
                        assert!(
                            matches!(found, Err(Error::NonFinite { index, .. }) if index == position),
                            "{format} position {position}: {found:?}"
                        );
                    }
                }
            }

            #[test]
            #[cfg(not(miri))]
            fn large_outputs_are_written_past_the_caches_unchanged() {
                let mut words = Words(4);
                // Rows whose bytes start at every alignment.
                let (rows, columns) = (1060, 1027);
                let x = row(0, rows * columns, &mut words);
                for format in [Format::INT8, Format::FP8_E4M3] {
                    check($isa, format, &x, &[rows, columns]);
                }
                let (rows, columns) = (600, 2080);
                for format in [Format::MXFP4, Format::INT4_G128_ASYM, Format::NF4] {
                    check($isa, format, &x[..rows * 1760], &[rows, 1760]);
                    check($isa, format, &x[..500 * columns], &[500, columns]);
                }
            }

            #[test]
            fn products_give_the_bits_of_the_reference() {
                let mut words = Words(5);
                for columns in [1, 15, 16, 17, 64, 130] {
                    for inputs in [1, 3, 4, 9] {
                        let weights = row(0, 6 * columns, &mut words);
                        let x = row(0, inputs * columns, &mut words);
                        let tensor = Shaped::new(&weights, &[6, columns]).expect("the shape fits");
                        for name in ["int8", "f16", "bf16"] {
                            let format = name.parse().expect("the format has a name");
                            let packed = PackedTensor::encode(format, &tensor).expect("finite");
                            let product = |isa| {
                                let mut y = vec![0.0; inputs * 6];
                                with_isa(isa, || packed.matmul(&x, &mut y)).expect("the slices fit");
                                y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
                            };
                            assert_eq!(product(Isa::Reference), product($isa), "{name}, {columns}, {inputs} inputs");
                        }
                    }
                }
            }
        }
    };
}

agrees!(portable, Isa::Portable);
agrees!(avx2, Isa::Avx2);
agrees!(avx512, Isa::Avx512);

/// Formats with zero points whose rows fit tiles.
fn ranges_with_zero() -> Vec<Format> {
    let mut formats = Vec::new();
    let scales = [ScaleType::F16, ScaleType::Bf16, ScaleType::F32].map(Scale::Float);
    let blocks = [16, 32, 64, 128, 256, 512, 1536].map(Block::Group).into_iter().chain([Block::Row]);
    for (block, scale) in blocks.flat_map(|block| scales.map(|scale| (block, scale))) {
        for bits in [4, 6, 8] {
            formats.push(Format { element: Element::Int { bits, rule: IntRule::Asymmetric }, block, scale });
        }
    }
    formats
}

#[test]
fn ranges_with_zero_give_the_bytes_of_the_reference() {
    let mut words = Words(78);
    for format in ranges_with_zero() {
        let columns = if format.block == Block::Group(512) { 4608 } else { 3072 };
        // Values on one side of zero, about it, far from it, zeros alone, and such that scales are no normal numbers.
        let x: Vec<f32> = (0..2 * columns / 64)
            .flat_map(|_| {
                let (center, width) = (words.unit(), words.unit() * (words.unit() * 16.0 - 8.0).exp2());
                let zeros = words.next().is_multiple_of(8);
                let values = row(0, 64, &mut words);
                values.into_iter().map(move |v| if zeros { 0.0_f32.copysign(v) } else { (center + v) * width })
            })
            .collect();
        for isa in Isa::ALL {
            check(isa, format, &x, &[2, columns]);
        }
    }
}

/// A block of values next to those where the code changes, found by bisection.
fn next_to_thresholds(grid: &FormatGrid, group: usize, words: &mut Words) -> Vec<f32> {
    // Some are far too large for the tensor's scale, where it has one.
    let far = if group == 16 && words.next().is_multiple_of(8) { 1e12 } else { 1.0 };
    let amax = far * words.unit().abs().max(0.01) * (words.unit() * 6.0).exp2() / 64.0;
    let sign = words.unit();
    let mut block = vec![amax.copysign(sign), (amax * words.unit().abs().max(0.01)).copysign(-sign)];
    let params = grid.fit(&block, 1.0).unwrap();
    while block.len() < group {
        let end = block[(words.next() % 2) as usize];
        let code = |bits: u32| grid.encode(&[f32::from_bits(bits).copysign(end)], &params);
        let amax = end.abs();
        let start = words.unit().abs() * amax;
        let (mut low, mut high) = ((0.5 * start).to_bits(), (2.0 * start).min(amax).to_bits());
        while high > low + 1 {
            let middle = low.midpoint(high);
            if code(middle) == code(low) {
                low = middle;
            } else {
                high = middle;
            }
        }
        let value = f32::from_bits((high - 2 + (words.next() % 4) as u32).min(amax.to_bits()));
        block.push(value.copysign(end));
    }
    block
}

#[test]
fn values_next_to_thresholds_give_the_bytes_of_the_reference() {
    let mut words = Words(77);
    let full = |bits, scale| {
        let element = Element::Int { bits, rule: IntRule::Full };
        Format { element, block: Block::Group(64), scale: Scale::Float(scale) }
    };
    let mut formats =
        ["int8-g32", "int4-g32", "int4-g128", "nvfp4", "nvint4"].map(|name| name.parse().unwrap()).to_vec();
    formats.extend([full(8, ScaleType::F16), full(6, ScaleType::F32), full(4, ScaleType::Bf16)]);
    formats.extend(ranges_with_zero().into_iter().filter(|format| format.block == Block::Group(64)));
    for format in formats {
        let Block::Group(group) = format.block else { panic!("{format} has groups") };
        let group = group as usize;
        let grid = FormatGrid::new(format, 1.0).unwrap();
        let x: Vec<f32> = (0..8192 / group).flat_map(|_| next_to_thresholds(&grid, group, &mut words)).collect();
        let tensor = Shaped::new(&x, &[4, 2048]).unwrap();
        let encode = || PackedTensor::encode_on(&grid, &tensor, EncodeOptions::default()).unwrap();
        let expected = with_isa(Isa::Reference, encode);
        for isa in Isa::ALL {
            let found = with_isa(isa, encode);
            assert_eq!(found.scales(), expected.scales(), "{format} {isa:?}");
            assert_eq!(found.codes(), expected.codes(), "{format} {isa:?}");
        }
    }
}

#[test]
fn offsets_into_a_slice_do_not_change_the_bytes() {
    let mut words = Words(6);
    let x = row(0, 64 + 256, &mut words);
    for format in [Format::INT8, Format::MXFP8_E4M3, Format::NVFP4, Format::NF4, Format::INT4_G128] {
        for start in 0..=64 {
            check(Isa::current(), format, &x[start..start + 200], &[1, 200]);
        }
    }
}

#[test]
fn encoding_again_into_the_same_memory_leaves_no_trace_of_the_old_tensor() {
    let mut words = Words(7);
    let (old, new) = (row(1, 3 * 300, &mut words), row(8, 3 * 300, &mut words));
    for format in formats() {
        let Ok(mut packed) = PackedTensor::encode(format, &Shaped::new(&old, &[3, 300]).expect("the shape fits"))
        else {
            continue;
        };
        if packed.second().is_empty() {
            let new = Shaped::new(&new, &[3, 300]).expect("the shape fits");
            packed.encode_again(&new, EncodeOptions::default()).expect("finite");
            assert_eq!(packed, PackedTensor::encode(format, &new).expect("finite"), "{format}");
        }
    }
}

#[test]
fn a_column_is_rounded_as_its_values_are() {
    let mut words = Words(23);
    for format in formats() {
        let Ok(grid) = FormatGrid::new(format, 4.0) else { continue };
        for rows in [1, 63, 64, 130] {
            let params: Vec<_> = (0..rows)
                .map(|row| grid.fit(&[words.unit() * 0.1 * row as f32, words.unit(), 0.3], 1.0).expect("finite"))
                .collect();
            let mut values: Vec<f32> = (0..rows).map(|_| words.unit() * 2.0).collect();
            // Ties, signed zeros, what clamping cuts, and what only the reference decides.
            for (i, (value, params)) in values.iter_mut().zip(&params).enumerate() {
                match i % 9 {
                    0 => *value = params.scale * (f32::from(words.next() as u8) - 127.5),
                    1 => *value = [0.0, -0.0, 1e30, -1e30, 1e-40][i / 9 % 5],
                    2 if rows == 130 && i > 64 => *value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i / 9 % 3],
                    _ => {}
                }
            }
            let codes: Vec<u32> = values.iter().zip(&params).map(|(v, p)| grid.encode(&[*v], p)).collect();
            let mut points = vec![0.0; rows];
            for ((code, params), point) in codes.iter().zip(&params).zip(&mut points) {
                grid.decode(*code, params, std::slice::from_mut(point));
            }
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for isa in Isa::ALL {
                let (mut found, mut rounded) = (vec![0; rows], vec![0.0; rows]);
                with_isa(isa, || grid.round_column(&values, &params, &mut found, &mut rounded));
                assert_eq!(found, codes, "{format}, {isa:?}, {rows} rows");
                assert!(bits(&rounded) == bits(&points), "{format}, {isa:?}, {rows} rows");
            }
        }
    }
}

/// Codes of NaN and infinity come up once among many that are numbers, in outputs within the caches and beyond.
#[test]
fn codes_that_are_no_finite_numbers_are_decoded_as_the_reference_does() {
    const COLUMNS: usize = 4096;
    for (name, specials) in [
        ("f16", &[0x7c00_u16, 0xfc00, 0x7c01, 0x7e00, 0xfe01, 0x7fff][..]),
        ("bf16", &[0x7f80, 0xff80, 0x7f81, 0x7fc0, 0xffc1, 0x7fff]),
        ("fp8-e4m3-cast", &[0x7f, 0xff]),
        ("fp8-e5m2-cast", &[0x7c, 0xfd, 0x7f]),
    ] {
        let format: Format = name.parse().expect("the format has a name");
        for rows in [3, 256] {
            let bytes = format.code_bits() as usize / 8;
            let mut codes: Vec<u8> = (0..rows * COLUMNS * bytes).map(|i| (i * 31 % 0x70) as u8).collect();
            for (i, special) in specials.iter().enumerate() {
                let at = (i * 3181 + 17) % (rows * COLUMNS) * bytes;
                codes[at..at + bytes].copy_from_slice(&special.to_le_bytes()[..bytes]);
            }
            let packed = PackedTensor::from_sections(format, &[rows, COLUMNS], codes, vec![], vec![], vec![]).unwrap();
            let bits = |isa| -> Vec<u32> {
                let values = with_isa(isa, || packed.decode());
                values.iter().map(|x| x.to_bits()).collect()
            };
            let expected = bits(Isa::Reference);
            assert_eq!(
                expected.iter().filter(|&&x| !f32::from_bits(x).is_finite()).count(),
                specials.len(),
                "{name}, {rows} rows"
            );
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert!(bits(isa) == expected, "{name}, {rows} rows, {isa:?}");
            }
        }
    }
}

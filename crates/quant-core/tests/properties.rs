//! Properties of all formats, on random shapes and values.
#![expect(clippy::cast_possible_truncation, reason = "samples and lengths are small")]

use proptest::prelude::*;
use quant_core::{
    Element, EncodeOptions, FloatKind, Format, FormatGrid, Grid, Layout, Overflow, PackedTensor, Rounding, Scale,
    Shaped, bits,
};

/// Names that together use every element, rule, scale and block.
const NAMES: &[&str] = &[
    "int1",
    "int2-g5",
    "int3-full-g7",
    "int4-g32",
    "int5-gptq-tensor",
    "int6-awq-bf16",
    "int7-t3x4-f32",
    "int8",
    "int8-ctsym-f32",
    "int2-asym-g3",
    "int3-ctasym-g16-f32",
    "int4-awqasym-g32",
    "int8-asym-tensor",
    "int2-min-g128",
    "int4-min-f32",
    "int4-mlx-g32",
    "int8-mlx-g64-f32",
    "fp8",
    "fp8-e5m2-t2x3",
    "fp8-e4m3fnuz-g4-bf16",
    "fp8-e5m2fnuz-tensor",
    "fp8-e3m4",
    "fp6-e2m3-g8",
    "fp4-f16",
    "fp8-cast",
    "fp8-e5m2-nonsat",
    "f16",
    "bf16",
    "mxfp8",
    "mxfp8-e5m2-even",
    "mxfp6-e2m3-ct",
    "mxfp6-e3m2-rceil",
    "mxfp4",
    "mxfp4-g5",
    "mxfp4-ceil",
    "mxfp4-rround",
    "mxint8",
    "mxint4-rfloor",
    "mxint2",
    "nvfp4",
    "nvfp4-torchao",
    "nvfp4-torchao1",
    "nvfp4-modelopt",
    "nvfp4-ct",
    "nvfp4-mlx",
    "nvfp4-mlx1",
    "nvfp4-paper",
    "nvint4",
    "nvint8-ct",
    "nf4",
    "nf4-dq",
    "nf4-dq-g3",
    "af4-g7-f16",
    "bnbfp4",
    "bfp7",
    "bfp1-g3",
    "sefp9",
    "sefp3-g16",
    "gse5",
    "ternary",
    "ternary-max-g5",
    "ternary-min-g4-f16",
];

fn parse(name: &str) -> Format {
    name.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn any_format() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(NAMES)
}

/// Values from tame to very small, of both signs, with zeros.
fn any_values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        8 => -4.0_f32..4.0,
        2 => (-1.0_f32..1.0).prop_map(|x| x * x * x * 1e-3),
        1 => Just(0.0_f32),
        1 => -300.0_f32..300.0,
    ];
    proptest::collection::vec(value, len)
}

fn any_matrix() -> impl Strategy<Value = (Vec<f32>, usize, usize)> {
    (1_usize..6, 1_usize..80)
        .prop_flat_map(|(rows, columns)| any_values(rows * columns).prop_map(move |values| (values, rows, columns)))
}

fn encode(format: Format, values: &[f32], rows: usize, columns: usize) -> PackedTensor<'static> {
    PackedTensor::encode(format, &Shaped::new(values, &[rows, columns]).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sections_have_the_lengths_of_the_layout_and_join_again(name in any_format(), (values, rows, columns) in any_matrix()) {
        let format = parse(name);
        let packed = encode(format, &values, rows, columns);
        let layout = Layout::new(format, &[rows, columns]).unwrap();
        prop_assert_eq!(packed.codes().len(), rows * (format.code_bits() as usize * columns).div_ceil(8).min(layout.code_row_bytes));
        let bytes = packed.footprint().total_bytes() as usize;
        prop_assert_eq!(bytes, layout.code_bytes() + layout.scale_bytes() + layout.zero_bytes() + 4 * layout.second_len);
        let joined = PackedTensor::from_sections(
            format, &[rows, columns], packed.codes(), packed.scales(), packed.zeros(), packed.second().to_vec(),
        ).unwrap();
        prop_assert_eq!(joined.decode(), packed.decode());
    }

    #[test]
    fn what_lies_on_a_grid_stays_there(name in any_format(), (values, rows, columns) in any_matrix()) {
        // With the parameters of its block, a decoded value is its own nearest point.
        let packed = encode(parse(name), &values, rows, columns);
        let (layout, grid) = (*packed.layout(), *packed.grid());
        for (i, &value) in packed.decode().iter().enumerate() {
            let params = packed.params(i / columns / layout.block_rows, i % columns / layout.block_columns);
            // The second level of `dq` may make a small magnitude zero or even negative.
            if params.scale > 0.0 || name.contains("mlx") {
                prop_assert_eq!(grid.round(value, &params), value, "{} at {}", name, i);
            }
        }
    }

    #[test]
    fn symmetric_formats_are_symmetric(name in any_format(), values in any_values(40)) {
        let format = parse(name);
        let lopsided = match format.element {
            Element::Int { rule, .. } => !matches!(rule, quant_core::IntRule::Restricted),
            Element::Codebook(_) => true,
            Element::Ternary(rule) => rule == quant_core::TernaryRule::Min,
            _ => false,
        };
        // One-bit codes have no zero, and zeros no sign.
        if lopsided || name == "int1" {
            return Ok(());
        }
        let negated: Vec<f32> = values.iter().map(|x| -x).collect();
        let (plus, minus) = (encode(format, &values, 1, 40).decode(), encode(format, &negated, 1, 40).decode());
        prop_assert!(plus.iter().zip(&minus).all(|(a, b)| *a == -*b), "{}", name);
    }

    #[test]
    fn zeros_stay_zeros(name in any_format(), rows in 1_usize..4, columns in 1_usize..70) {
        let decoded = encode(parse(name), &vec![0.0; rows * columns], rows, columns).decode();
        prop_assert!(decoded.iter().all(|x| *x == 0.0), "{}: {:?}", name, decoded);
    }

    #[test]
    fn a_power_of_two_moves_shared_exponents_and_nothing_else(values in any_values(96), shift in -20_i32..20) {
        for name in ["mxfp4", "mxfp4-even", "mxfp8-ceil", "mxfp6-rceil", "mxfp8-e5m2-rfloor", "mxint8", "mxint4-rround", "bfp5"] {
            let scaled: Vec<f32> = values.iter().map(|x| x * 2_f32.powi(shift)).collect();
            let (a, b) = (encode(parse(name), &values, 1, 96), encode(parse(name), &scaled, 1, 96));
            for (block, (x, y)) in a.scales().iter().zip(b.scales()).enumerate() {
                if values[32 * block..][..32].iter().any(|x| x.abs() > 1e-6) {
                    prop_assert_eq!(i32::from(*x) + shift, i32::from(*y), "{}", name);
                }
            }
            prop_assert_eq!(a.codes(), b.codes(), "{}", name);
        }
    }

    #[test]
    fn scale_rules_are_ordered(amax in prop_oneof![1e-30_f32..1e-20, 1e-3_f32..1e3, 1e20_f32..1e38, (1_u32..1 << 23).prop_map(f32::from_bits)]) {
        for stem in ["mxfp8-e4m3", "mxfp8-e5m2", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp4", "mxint8", "mxint4"] {
            let code = |rule: &str| {
                let grid = FormatGrid::new(parse(&format!("{stem}-{rule}")), amax).unwrap();
                grid.fit(&[amax], 1.0).unwrap().scale_code
            };
            let [floor, even, ceil, rceil, rfloor, rround] = ["floor", "even", "ceil", "rceil", "rfloor", "rround"].map(code);
            prop_assert!(floor <= even && even <= ceil, "{}: {} {} {}", stem, floor, even, ceil);
            prop_assert!(floor <= rceil && rceil <= ceil && ceil <= floor + 1, "{}: {} {} {}", stem, floor, rceil, ceil);
            prop_assert!(rfloor <= rround && rround <= rceil, "{}: {} {} {}", stem, rfloor, rround, rceil);
        }
    }

    #[test]
    fn rounding_up_the_scale_leaves_nothing_to_saturate(values in any_values(32)) {
        for (name, largest) in [("mxfp4-rceil", 6.0), ("mxfp6-e2m3-rceil", 7.5), ("mxfp8-rceil", 448.0)] {
            let grid = FormatGrid::new(parse(name), 0.0).unwrap();
            let params = grid.fit(&values, 1.0).unwrap();
            let beyond = values.iter().any(|x| f64::from(x.abs()) / f64::from(params.scale) > largest * (1.0 + 1e-7));
            prop_assert!(!beyond, "{}", name);
        }
    }

    #[test]
    fn errors_stay_within_half_a_step(values in any_values(64)) {
        for (name, unclipped) in [
            ("int8-f32", true), ("int4-g32-f32", true), ("int4-asym-g16-f32", true), ("int8-asym-f32", true), ("int3-min-g8-f32", true),
            ("mxint8-rceil", true), ("mxint8", false), ("bfp7", false),
        ] {
            let packed = encode(parse(name), &values, 1, 64);
            let decoded = packed.decode();
            for (i, (x, y)) in values.iter().zip(&decoded).enumerate() {
                let params = packed.params(0, i / packed.layout().block_columns);
                let step = match packed.format().element {
                    Element::Int { bits, .. } if matches!(packed.format().scale, Scale::E8m0(_)) => params.scale * 2_f32.powi(2 - i32::from(bits)),
                    _ => params.scale,
                };
                // Rounding the zero point costs an asymmetric block half a step at its ends.
                let zero = if name.contains("asym") { 0.5 } else { 0.0 };
                // Where the last half step below the limit is clipped, a whole step.
                let limit = if unclipped { 0.5 + zero } else { 1.0 };
                prop_assert!((x - y).abs() <= step * limit * 1.0001 + 1e-30, "{} at {}: {} {} step {}", name, i, x, y, step);
            }
        }
    }

    #[test]
    fn truncation_nests(values in any_values(130), stored in 1_u8..=9, group in 1_usize..70) {
        let options = EncodeOptions { rounding: Rounding::TowardZero, seed: 0 };
        let tensor = Shaped::new(&values, &[2, 65]).unwrap();
        for stem in ["sefp", "bfp"] {
            let encode = |bits: u8| PackedTensor::encode_with(parse(&format!("{stem}{bits}-g{group}")), &tensor, options).unwrap();
            let master = encode(stored);
            for bits in 1..=stored {
                prop_assert_eq!(master.truncated(bits).unwrap(), encode(bits), "{}{} to {}", stem, stored, bits);
            }
        }
    }

    #[test]
    fn random_sections_decode_or_are_refused(name in any_format(), seed in any::<u64>(), rows in 1_usize..4, columns in 1_usize..50) {
        let format = parse(name);
        let layout = Layout::new(format, &[rows, columns]).unwrap();
        let mut state = seed | 1;
        let mut byte = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        let mut section = |len: usize| (0..len).map(|_| byte()).collect::<Vec<u8>>();
        let (codes, scales, zeros) = (section(layout.code_bytes()), section(layout.scale_bytes()), section(layout.zero_bytes()));
        let second = vec![0.5; layout.second_len];
        if let Ok(packed) = PackedTensor::from_sections(format, &[rows, columns], codes, scales, zeros, second) {
            prop_assert_eq!(packed.decode().len(), rows * columns);
        }
    }

    #[test]
    fn codes_and_parameters_taken_apart_assemble_again(name in any_format(), (values, rows, columns) in any_matrix()) {
        let packed = encode(parse(name), &values, rows, columns);
        let mut codes = vec![0; rows * columns];
        for (row, out) in codes.chunks_exact_mut(columns).enumerate() {
            packed.row_codes(row, out).unwrap();
        }
        let layout = packed.layout();
        let params: Vec<_> = (0..layout.blocks())
            .map(|i| packed.params(i / layout.block_columns_count(), i % layout.block_columns_count()))
            .collect();
        let again = PackedTensor::from_codes(packed.format(), &[rows, columns], &codes, &params, packed.second()).unwrap();
        prop_assert_eq!(again.decode(), packed.decode(), "{}", name);
        prop_assert_eq!(again.scales(), packed.scales(), "{}", name);
    }

    #[test]
    fn clipping_shrinks_ranges_and_never_breaks(name in any_format(), values in any_values(24), clip in 0.05_f32..1.0) {
        let amax = values.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let grid = FormatGrid::new(parse(name), amax).unwrap();
        let (whole, clipped) = (grid.fit(&values, 1.0).unwrap(), grid.fit(&values, clip).unwrap());
        prop_assert!(clipped.scale.abs() <= whole.scale.abs() * 1.000_001 || name.contains("mlx"), "{}: {:?} {:?}", name, clipped, whole);
        for &x in &values {
            let y = grid.round(x, &clipped);
            prop_assert!(y.is_finite() && grid.round(y, &clipped) == y, "{}: {} {}", name, x, y);
        }
    }

    #[test]
    fn extreme_magnitudes_neither_overflow_nor_panic(name in any_format(), exponent in -149_i32..128, values in any_values(20)) {
        let scaled: Vec<f32> = values.iter().map(|x| ((f64::from(*x) / 300.0) * 2_f64.powi(exponent)) as f32).collect();
        let tensor = Shaped::new(&scaled, &[1, 20]).unwrap();
        match PackedTensor::encode(parse(name), &tensor) {
            Ok(packed) => {
                let amax = scaled.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                for y in packed.decode() {
                    // `full` rules reach half a step beyond; f32's own limit is the one exception.
                    let bound = (f64::from(amax) * 4.1).max(1e-2);
                    prop_assert!(f64::from(y.abs()) <= bound || name.ends_with("nonsat"), "{}: {} of {}", name, y, amax);
                }
            }
            Err(error) => prop_assert!(
                matches!(error, quant_core::Error::ScaleOverflow { .. }), "{}: {}", name, error
            ),
        }
    }
}

#[test]
fn packing_round_trips_for_every_width_and_length() {
    for width in 1..=16_u32 {
        for len in 0..=200_usize {
            let codes: Vec<u16> = (0..len).map(|i| ((i * 40_503) >> 3) as u16 & (u16::MAX >> (16 - width))).collect();
            let bytes = bits::pack(width, &codes).unwrap();
            assert_eq!(bytes.len(), (len * width as usize).div_ceil(8), "{width} × {len}");
            assert_eq!(bits::unpack(width, &bytes, len).unwrap(), codes, "{width} × {len}");
            if let Some(cut) = bytes.len().checked_sub(1) {
                assert!(bits::unpack(width, &bytes[..cut], len).is_err(), "{width} × {len}: one byte short");
            }
        }
    }
    for len in 0..=200_usize {
        let digits: Vec<u16> = (0..len).map(|i| (i * i % 7 % 3) as u16).collect();
        let bytes = bits::pack_trits(&digits);
        assert_eq!(bytes.len(), len.div_ceil(5));
        assert_eq!(bits::unpack_trits(&bytes, len).unwrap(), digits);
    }
    assert!(bits::pack(0, &[]).is_err() && bits::pack(17, &[]).is_err() && bits::unpack(0, &[], 0).is_err());
    assert!(bits::packed_len(16, usize::MAX).is_err(), "a length that overflows");
}

#[test]
fn stochastic_rounding_is_unbiased_up_to_the_bits_it_draws() {
    for n in [1_u8, 4, 8] {
        let all = 1_u32 << n;
        for (x, step) in
            [(1.3_f32, 0.125), (17.9, 2.0), (0.001_7, 1.0 / 512.0), (-2.71, 0.25), (447.0, 32.0), (0.25, 0.031_25)]
        {
            let kind = FloatKind::E4m3Fn;
            let sum: f64 = (0..all)
                .map(|r| kind.decode(kind.encode_rounded(x, Overflow::Saturate, Rounding::Stochastic { bits: n }, r)))
                .map(f64::from)
                .sum();
            let bias = sum / f64::from(all) - f64::from(x);
            assert!(bias.abs() <= step / f64::from(all), "{x} with {n} bits: {bias}");
        }
    }
}

#[test]
fn stochastic_rounding_depends_on_seed_and_place_only() {
    let values: Vec<f32> = (0..1000_u16).map(|i| (f32::from(i) * 0.37).sin()).collect();
    let options = |seed| EncodeOptions { rounding: Rounding::Stochastic { bits: 16 }, seed };
    let encode = |rows: usize, seed| {
        let tensor = Shaped::new(&values, &[rows, 1000 / rows]).unwrap();
        PackedTensor::encode_with(parse("fp8-cast"), &tensor, options(seed)).unwrap()
    };
    assert_eq!(encode(10, 7).codes(), encode(10, 7).codes());
    assert_eq!(encode(10, 7).codes(), encode(1, 7).codes(), "the element's position decides, not its row");
    assert_ne!(encode(10, 7).codes(), encode(10, 8).codes());
}

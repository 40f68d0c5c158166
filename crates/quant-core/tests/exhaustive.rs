//! Every code of every element: closed forms, inverses, midpoints and their neighbours.

use quant_core::{
    Codebook, E8m0, E8m0Rounding, Element, FloatKind, Format, FormatGrid, Overflow, PackedTensor, Rounding, bits,
};

/// What a float kind is made of, written down independently of the crate: exponent bits, mantissa
/// bits, bias, largest finite code, and whether codes above it start with infinity.
fn parts(kind: FloatKind) -> (u32, u32, i32, u16, bool) {
    match kind {
        FloatKind::E4m3Fn => (4, 3, 7, 0x7e, false),
        FloatKind::E5m2 => (5, 2, 15, 0x7b, true),
        FloatKind::E4m3Fnuz => (4, 3, 8, 0x7f, false),
        FloatKind::E5m2Fnuz => (5, 2, 16, 0x7f, false),
        FloatKind::E4m3B11Fnuz => (4, 3, 11, 0x7f, false),
        FloatKind::E4m3 => (4, 3, 7, 0x77, true),
        FloatKind::E3m4 => (3, 4, 3, 0x6f, true),
        FloatKind::E2m3 => (2, 3, 1, 0x1f, false),
        FloatKind::E3m2 => (3, 2, 3, 0x1f, false),
        FloatKind::E2m1 => (2, 1, 1, 0x7, false),
        FloatKind::F16 => (5, 10, 15, 0x7bff, true),
        FloatKind::Bf16 => (8, 7, 127, 0x7f7f, true),
    }
}

fn is_fnuz(kind: FloatKind) -> bool {
    matches!(kind, FloatKind::E4m3Fnuz | FloatKind::E5m2Fnuz | FloatKind::E4m3B11Fnuz)
}

/// The value of a finite code from sign, exponent and mantissa.
fn closed_form(kind: FloatKind, code: u16) -> f64 {
    let (exponent_bits, mantissa_bits, bias, ..) = parts(kind);
    let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    let field = i32::from(code >> mantissa_bits & ((1 << exponent_bits) - 1));
    let value = if field == 0 { fraction * 2_f64.powi(1 - bias) } else { (1.0 + fraction) * 2_f64.powi(field - bias) };
    if code >> (exponent_bits + mantissa_bits) & 1 == 1 { -value } else { value }
}

#[test]
fn every_code_of_every_float_is_its_closed_form() {
    for kind in FloatKind::ALL {
        let (exponent_bits, mantissa_bits, _, max, infinite) = parts(kind);
        let sign = 1_u16 << (exponent_bits + mantissa_bits);
        assert_eq!(kind.bits(), 1 + exponent_bits + mantissa_bits, "{kind:?}");
        for code in 0..=u16::MAX >> (16 - kind.bits()) {
            let value = kind.decode(code);
            let magnitude = code & (sign - 1);
            if is_fnuz(kind) && code == sign || magnitude > max + u16::from(infinite) {
                assert!(value.is_nan(), "{kind:?} {code:#x}");
            } else if magnitude > max {
                assert_eq!(
                    value,
                    if code & sign == 0 { f32::INFINITY } else { f32::NEG_INFINITY },
                    "{kind:?} {code:#x}"
                );
            } else {
                assert_eq!(f64::from(value), closed_form(kind, code), "{kind:?} {code:#x}");
                assert_eq!(value.is_sign_negative(), code & sign != 0, "{kind:?} {code:#x}: sign of zero");
            }
        }
    }
}

#[test]
fn encoding_a_decoded_code_gives_it_back_under_every_rounding() {
    let roundings = [
        Rounding::NearestEven,
        Rounding::NearestAway,
        Rounding::NearestZero,
        Rounding::TowardZero,
        Rounding::Up,
        Rounding::Down,
        Rounding::Stochastic { bits: 8 },
        Rounding::StochasticEven { bits: 8 },
    ];
    for kind in FloatKind::ALL {
        for code in 0..=u16::MAX >> (16 - kind.bits()) {
            let value = kind.decode(code);
            for rounding in roundings {
                for overflow in [Overflow::Saturate, Overflow::NonSaturating] {
                    let back = kind.encode_rounded(value, overflow, rounding, 255);
                    if value.is_nan() {
                        assert!(kind.decode(back).is_nan(), "{kind:?} {code:#x} {rounding:?}");
                    } else if value.is_infinite() && overflow == Overflow::Saturate {
                        assert_eq!(kind.decode(back).abs(), kind.max(), "{kind:?} {code:#x} {rounding:?}");
                    } else {
                        assert_eq!(back, code, "{kind:?} {rounding:?} {overflow:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn midpoints_go_to_even_codes_and_their_neighbours_to_either_side() {
    for kind in FloatKind::ALL {
        let (.., max, _) = parts(kind);
        let encode = |x: f64| kind.encode_f64(x, Overflow::Saturate, Rounding::NearestEven, 0);
        for code in 0..max {
            let middle = f64::midpoint(closed_form(kind, code), closed_form(kind, code + 1));
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(encode(middle), even, "{kind:?} {code:#x}");
            assert_eq!(encode(middle.next_down()), code, "{kind:?} {code:#x}: a hair below");
            assert_eq!(encode(middle.next_up()), code + 1, "{kind:?} {code:#x}: a hair above");
            let away = kind.encode_f64(middle, Overflow::Saturate, Rounding::NearestAway, 0);
            let zero = kind.encode_f64(middle, Overflow::Saturate, Rounding::NearestZero, 0);
            assert_eq!((zero, away), (code, code + 1), "{kind:?} {code:#x}: ties");
            // Every midpoint but those of bf16's subnormals is an f32, too.
            #[expect(clippy::cast_possible_truncation, reason = "checked to be exact")]
            let narrow = middle as f32;
            if f64::from(narrow) == middle {
                assert_eq!(kind.encode(narrow, Overflow::Saturate), even, "{kind:?} {code:#x}");
                assert_eq!(kind.encode(narrow.next_down(), Overflow::Saturate), code, "{kind:?} {code:#x}");
                assert_eq!(kind.encode(narrow.next_up(), Overflow::Saturate), code + 1, "{kind:?} {code:#x}");
            }
        }
    }
}

#[test]
fn encoding_is_monotone_and_symmetric() {
    for kind in FloatKind::ALL {
        let sign = 1_u16 << (kind.bits() - 1);
        let mut last = 0;
        // All exponents, 64 mantissas each.
        for bits in (0..0x7f80_0000_u32).step_by(1 << 17) {
            let x = f32::from_bits(bits);
            let code = kind.encode(x, Overflow::Saturate);
            assert!(code >= last, "{kind:?} at {x:e}");
            let negative = kind.encode(-x, Overflow::Saturate);
            assert_eq!(negative, if is_fnuz(kind) && code == 0 { 0 } else { code | sign }, "{kind:?} at {x:e}");
            last = code;
        }
    }
}

#[test]
fn overflow_begins_where_the_specifications_say() {
    let nonsat = |kind: FloatKind, x: f32| kind.decode(kind.encode(x, Overflow::NonSaturating));
    for (kind, last, first) in [
        (FloatKind::E5m2, 61_439.996_f32, 61_440.0),
        (FloatKind::E4m3, 247.999_98, 248.0),
        (FloatKind::E3m4, 15.749_999, 15.75),
        (FloatKind::F16, 65_519.996, 65_520.0),
    ] {
        assert_eq!(nonsat(kind, last), kind.max(), "{kind:?}");
        assert_eq!(nonsat(kind, first), f32::INFINITY, "{kind:?}");
        assert_eq!(nonsat(kind, -first), f32::NEG_INFINITY, "{kind:?}");
    }
    for (kind, last, first) in [
        (FloatKind::E4m3Fn, 464.0_f32, 464.000_03),
        (FloatKind::E4m3Fnuz, 247.999_98, 248.0),
        (FloatKind::E5m2Fnuz, 61_439.996, 61_440.0),
        (FloatKind::E4m3B11Fnuz, 30.999_998, 31.0),
    ] {
        assert_eq!(nonsat(kind, last), kind.max(), "{kind:?}");
        assert!(nonsat(kind, first).is_nan() && nonsat(kind, f32::INFINITY).is_nan(), "{kind:?}");
        assert_eq!(kind.decode(kind.encode(f32::NEG_INFINITY, Overflow::Saturate)), -kind.max(), "{kind:?}");
    }
    for kind in [FloatKind::E2m3, FloatKind::E3m2, FloatKind::E2m1] {
        assert_eq!(nonsat(kind, f32::INFINITY), kind.max(), "{kind:?} has no infinity");
        assert_eq!(nonsat(kind, f32::NAN), kind.max(), "{kind:?} has no NaN");
    }
}

#[test]
fn every_power_of_two_scale_survives_and_rounds_in_order() {
    for code in 0..=254_u8 {
        let value = E8m0(code).to_f32();
        assert_eq!(f64::from(value), 2_f64.powi(i32::from(code) - 127), "{code}");
        for rounding in [E8m0Rounding::Floor, E8m0Rounding::Ceil, E8m0Rounding::HalfUp] {
            assert_eq!(E8m0::from_f32(value, rounding), Ok(E8m0(code)), "{rounding:?}");
        }
        let up = |x, rounding| E8m0::from_f32_lossy(x, rounding).0;
        assert_eq!(up(value.next_up(), E8m0Rounding::Floor), code, "just above");
        assert_eq!(up(value.next_up(), E8m0Rounding::Ceil), (code + 1).min(254), "just above");
        if code > 0 {
            assert_eq!(up(value.next_down(), E8m0Rounding::Floor), code - 1, "just below");
            assert_eq!(up(value * 1.5, E8m0Rounding::HalfUp), code + 1, "half way");
            assert_eq!(up((value * 1.5).next_down(), E8m0Rounding::HalfUp), code, "below half way");
        }
    }
    assert!(E8m0(255).to_f32().is_nan());
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(E8m0::from_f32(bad, E8m0Rounding::Floor).is_err(), "{bad}");
    }
    assert_eq!(E8m0::from_f32_lossy(0.0, E8m0Rounding::Ceil), E8m0(0));
    assert_eq!(E8m0::from_f32_lossy(-1.0, E8m0Rounding::Ceil), E8m0::NAN);
}

fn grid(name: &str) -> FormatGrid {
    FormatGrid::new(name.parse().unwrap(), 1.0).unwrap()
}

#[test]
fn every_integer_code_of_every_rule_decodes_and_encodes_back() {
    for bits in 1..=8_u32 {
        let levels = (1_u16 << bits) - 1;
        for rule in ["sym", "full", "ctsym", "gptq", "awq", "asym", "ctasym", "awqasym", "min", "mlx"] {
            if bits == 1 && rule == "awq" {
                continue;
            }
            let grid = grid(&format!("int{bits}-{rule}-f32"));
            let (unsigned, float) = (rule.ends_with("asym"), matches!(rule, "min" | "mlx"));
            for scale in [1.0_f32, 0.37, 3.0e-5] {
                let zeros: Vec<f32> = match (unsigned, float) {
                    (true, _) => (0..=levels).map(f32::from).collect(),
                    (_, true) => vec![-1.5, 0.0, 4.0],
                    _ => vec![0.0],
                };
                for zero in zeros {
                    let params = grid.params_from_stored(scale.to_bits(), zero);
                    for code in 0..=levels {
                        let signed = i32::from(code) << (32 - bits) >> (32 - bits);
                        let want = match (unsigned, float) {
                            (true, _) => (f32::from(code) - zero) * scale,
                            (_, true) => f32::from(code) * scale + zero,
                            _ if bits == 1 && rule == "sym" => {
                                if code == 1 {
                                    -scale
                                } else {
                                    scale
                                }
                            }
                            _ => signed as f32 * scale,
                        };
                        assert_eq!(grid.decode_one(code, &params), want, "{bits} {rule} {scale} {zero} {code}");
                        // Only the restricted rule has a code it never writes. With a float zero far
                        // from the step, sums are rounded, so the code need not come back.
                        let reachable = !(rule == "sym" && bits > 1 && signed == -(1 << (bits - 1)));
                        if reachable && !(float && scale < 1e-3) {
                            let back = grid.encode_one(want, &params, Rounding::NearestEven, 0);
                            assert_eq!(back, code, "{bits} {rule} {scale} {zero}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_code_under_every_power_of_two_scale_is_one_exact_product() {
    for name in
        ["mxfp8-e4m3", "mxfp8-e5m2", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp4", "mxint8", "mxint6", "mxint4", "mxint2"]
    {
        let grid = grid(name);
        let format = grid.format();
        for scale in 0..=254_u8 {
            let params = grid.params_from_stored(u32::from(scale), 0.0);
            for code in 0..1_u16 << format.code_bits() {
                let element = match format.element {
                    Element::Float { kind, .. } => f64::from(kind.decode(code)),
                    Element::Int { bits, .. } => {
                        let k = i32::from(code) << (32 - u32::from(bits)) >> (32 - u32::from(bits));
                        f64::from(k) * 2_f64.powi(2 - i32::from(bits))
                    }
                    other => panic!("{other:?}"),
                };
                #[expect(clippy::cast_possible_truncation, reason = "the one rounding, into the subnormals")]
                let want = (element * 2_f64.powi(i32::from(scale) - 127)) as f32;
                let got = grid.decode_one(code, &params);
                assert!(got == want || got.is_nan() && want.is_nan(), "{name} {scale} {code:#x}: {got:e} {want:e}");
                // What f32 holds exactly comes back, but for the code the encoder never writes.
                let exact = f64::from(want) == element * 2_f64.powi(i32::from(scale) - 127);
                let minus_two = matches!(format.element, Element::Int { bits, .. } if code == 1 << (bits - 1));
                if exact && want.is_finite() && !minus_two {
                    assert_eq!(grid.encode_one(want, &params, Rounding::NearestEven, 0), code, "{name} {scale}");
                }
            }
        }
    }
}

#[test]
fn code_books_return_their_entries_and_send_midpoints_down() {
    for book in [Codebook::Nf4, Codebook::Af4, Codebook::BnbFp4] {
        let values = book.values();
        for (code, &value) in values.iter().enumerate() {
            let back = usize::from(book.nearest(value));
            assert_eq!(values[back], value, "{book:?}");
            assert!(back == code || value == 0.0, "{book:?} {code}");
        }
        let mut ascending = *values;
        ascending.sort_by(f32::total_cmp);
        for pair in ascending.windows(2) {
            let middle = (pair[0] + pair[1]) / 2.0;
            assert_eq!(values[usize::from(book.nearest(middle))], pair[0], "{book:?}: a tie goes down");
            assert_eq!(values[usize::from(book.nearest(middle.next_up()))], pair[1], "{book:?}");
            assert_eq!(values[usize::from(book.nearest(middle.next_down()))], pair[0], "{book:?}");
        }
        assert_eq!(values[usize::from(book.nearest(-2.0))], -1.0, "{book:?}");
        assert_eq!(values[usize::from(book.nearest(2.0))], 1.0, "{book:?}");
    }
}

#[test]
fn magnitudes_return_under_every_exponent() {
    for bits in 1..=9_u32 {
        for stem in ["sefp", "bfp"] {
            let grid = grid(&format!("{stem}{bits}"));
            let exponents: Vec<u32> = if stem == "sefp" { (0..=31).collect() } else { (1..=254).collect() };
            for exponent in exponents {
                let params = grid.params_from_stored(exponent, 0.0);
                let bias = if stem == "sefp" { 15 } else { 127 };
                let unit = 2_f64.powi(exponent.cast_signed() - bias - (bits.cast_signed() - 1));
                for code in 0..1_u16 << (bits + 1) {
                    let magnitude = f64::from(code & ((1 << bits) - 1)) * unit;
                    let value = grid.decode_one(code, &params);
                    assert_eq!(f64::from(value.abs()), magnitude, "{stem}{bits} {exponent} {code:#x}");
                    let back = grid.encode_one(value, &params, Rounding::NearestEven, 0);
                    let minus_zero = code == 1 << bits;
                    assert_eq!(back, if minus_zero { 0 } else { code }, "{stem}{bits} {exponent}");
                }
            }
        }
    }
}

#[test]
fn every_byte_of_trits_unpacks_and_those_of_the_packer_return() {
    for byte in 0..=255_u8 {
        let digits = bits::unpack_trits(&[byte], 5).unwrap();
        assert!(digits.iter().all(|&digit| digit < 3), "{byte}");
        if byte < 243 {
            assert_eq!(bits::pack_trits(&digits), [byte]);
        }
    }
    for rule in ["ternary", "ternary-max", "ternary-min"] {
        let format: Format = format!("{rule}-f32").parse().unwrap();
        let zeros = if rule.ends_with("min") { (-1.0_f32).to_le_bytes().to_vec() } else { Vec::new() };
        let scale = 0.5_f32.to_le_bytes().to_vec();
        let packed = PackedTensor::from_sections(format, &[1, 3], vec![3 + 2 * 9], scale, zeros, vec![]).unwrap();
        let want = if rule.ends_with("min") { [-1.0, -0.5, 0.0] } else { [-0.5, 0.0, 0.5] };
        assert_eq!(packed.decode(), want, "{rule}");
    }
}

#[test]
fn half_precision_agrees_with_the_half_crate() {
    // Every 521st f32, NaN and infinity included: eight million values of all exponents.
    for bits in (0..=u32::MAX).step_by(521) {
        let x = f32::from_bits(bits);
        let f16 = FloatKind::F16.encode(x, Overflow::NonSaturating);
        let bf16 = FloatKind::Bf16.encode(x, Overflow::NonSaturating);
        let (want_f16, want_bf16) = (half::f16::from_f32(x), half::bf16::from_f32(x));
        assert!(f16 == want_f16.to_bits() || x.is_nan() && FloatKind::F16.decode(f16).is_nan(), "{bits:#x}");
        assert!(bf16 == want_bf16.to_bits() || x.is_nan() && FloatKind::Bf16.decode(bf16).is_nan(), "{bits:#x}");
    }
}

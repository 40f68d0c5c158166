//! Packed tensors written byte by byte, so that reader and writer cannot share an error.

use super::Cases;
use super::parts::{Part, halves, weights};

const KEY: &str = "leanbits.packed.w";
const VERSION: (&str, &str) = ("leanbits.version", "1");
const INT4: &str = r#"{"format":"int4-g4","shape":[2,8]}"#;
/// 1 in f16.
const ONE: u16 = 0x3c00;

fn described(description: &str, parts: &[Part]) -> Vec<u8> {
    weights(&[VERSION, (KEY, description)], parts)
}

fn codes() -> Part {
    ("w.codes", "U8", vec![2, 4], vec![0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe])
}

fn scales(third: u16) -> Part {
    ("w.scales", "F16", vec![2, 2], halves(&[ONE, ONE, third, ONE]))
}

pub(crate) fn make(cases: &mut Cases) {
    keys(cases);
    shapes(cases);
    sections(cases);
    values(cases);
}

fn keys(cases: &mut Cases) {
    let good = [codes(), scales(ONE)];
    let extra = |key: &str| weights(&[VERSION, (KEY, INT4), (key, "1")], &good);
    cases.add("hand-good", "ok", described(INT4, &good));
    cases.add("hand-version-alone", "ok", weights(&[VERSION], &[]));
    cases.add("hand-key-codebook", "BadField", extra("leanbits.codebook.w"));
    cases.add("hand-key-prefix", "BadField", extra("leanbits."));
    cases.add("hand-key-case", "BadField", extra("leanbits.Packed.w"));
    cases.add("hand-key-foreign", "ok", extra("leanbitsy"));
    cases.add("hand-key-without-version", "BadField", weights(&[("leanbits.new", "1")], &[]));
    let version = |text: &str| weights(&[("leanbits.version", text), (KEY, INT4)], &good);
    cases.add("hand-version-fraction", "UnsupportedVersion", version("1.0"));
    cases.add("hand-version-long", "UnsupportedVersion", version(&"9".repeat(2000)));
    let nameless: [Part; 2] = [(".codes", "U8", vec![1, 1], vec![1]), (".scales", "F16", vec![1, 1], halves(&[ONE]))];
    let text = r#"{"format":"int8","shape":[1]}"#;
    cases.add("hand-name-empty", "ok", weights(&[VERSION, ("leanbits.packed.", text)], &nameless));
    let inner: [Part; 4] = [
        codes(),
        scales(ONE),
        ("w.codes.codes", "U8", vec![1, 1], vec![1]),
        ("w.codes.scales", "F16", vec![1, 1], halves(&[ONE])),
    ];
    let both = weights(&[VERSION, (KEY, INT4), ("leanbits.packed.w.codes", text)], &inner);
    cases.add("hand-section-is-packed-too", "DuplicateKey", both);
}

fn shapes(cases: &mut Cases) {
    let good = [codes(), scales(ONE)];
    let shape = |text: &str| described(&format!(r#"{{"format":"int4-g4","shape":{text}}}"#), &good);
    let format = |name: &str| described(&format!(r#"{{"format":"{name}","shape":[2,8]}}"#), &good);
    for (name, text, expected) in [
        ("rank-3", "[1,2,8]", "ok"),
        ("flat", "[16]", "BadSection"),
        ("turned", "[8,2]", "BadSection"),
        ("split", "[2,2,4]", "BadSection"),
        ("scalar", "[]", "BadSection"),
        ("two-to-58", "[288230376151711744]", "BadSection"),
        ("two-to-58-rows", "[288230376151711744,1]", "BadSection"),
        ("overflow-before-zero", "[4294967296,4294967296,0]", "Overflow"),
        ("zero-before-huge", "[0,4294967296,4294967296]", "Packed"),
        ("over-u64", "[18446744073709551616]", "BadField"),
    ] {
        cases.add(&format!("hand-shape-{name}"), expected, shape(text));
    }
    let ones = |rank: usize| format!("[{}2,8]", "1,".repeat(rank - 2));
    cases.add("hand-shape-rank-32", "ok", shape(&ones(32)));
    cases.add("hand-shape-rank-33", "TooLarge", shape(&ones(33)));
    cases.add("hand-shape-rank-1000", "TooLarge", shape(&ones(1000)));
    cases.add("hand-format-group-2", "BadSection", format("int4-g2"));
    cases.add("hand-format-group-huge", "BadSection", format("int4-g4000000000"));
    cases.add("hand-format-bf16", "BadSection", format("int4-g4-bf16"));
    cases.add("hand-format-asym", "MissingSection", format("int4-g4-asym"));
    cases.add("hand-format-f16", "BadSection", format("f16"));
    cases.add("hand-format-twice", "BadField", described(&INT4.replace('{', "{\"format\":\"int8\","), &good));
    cases.add("hand-format-number", "BadField", described(r#"{"format":4,"shape":[2,8]}"#, &good));
    cases.add("hand-description-null", "BadField", described("null", &good));
    cases.add("hand-description-two", "BadField", described(&format!("{INT4}{{}}"), &good));
    let short: [Part; 2] =
        [("w.codes", "U8", vec![1, 3], vec![0x38; 3]), ("w.scales", "F32", vec![1, 1], 1_f32.to_le_bytes().into())];
    cases.add("hand-group-larger-than-row", "ok", described(r#"{"format":"fp8-g8","shape":[1,3]}"#, &short));
    let scalar: [Part; 2] = [("w.codes", "U8", vec![1, 1], vec![3]), ("w.scales", "F16", vec![1, 1], halves(&[ONE]))];
    cases.add("hand-scalar", "ok", described(r#"{"format":"int8","shape":[]}"#, &scalar));
}

fn sections(cases: &mut Cases) {
    let with_codes = |dtype, shape: &[usize], bytes| {
        let codes: Part = ("w.codes", dtype, shape.to_vec(), bytes);
        described(INT4, &[codes, scales(ONE)])
    };
    let (eight, four) = (|| codes().3, || scales(ONE).3);
    cases.add("hand-codes-long", "BadSection", with_codes("U8", &[2, 5], vec![0; 10]));
    cases.add("hand-codes-row-missing", "BadSection", with_codes("U8", &[1, 4], vec![0; 4]));
    cases.add("hand-codes-turned", "BadSection", with_codes("U8", &[4, 2], eight()));
    cases.add("hand-codes-f4", "BadSection", with_codes("F4", &[2, 8], eight()));
    cases.add("hand-codes-none", "BadSection", with_codes("U8", &[2, 0], vec![]));
    let with_scales = |dtype, shape: &[usize], bytes| {
        let scales: Part = ("w.scales", dtype, shape.to_vec(), bytes);
        described(INT4, &[codes(), scales])
    };
    cases.add("hand-scales-bf16", "BadSection", with_scales("BF16", &[2, 2], four()));
    cases.add("hand-scales-bytes", "BadSection", with_scales("U8", &[2, 4], four()));
    cases.add("hand-scales-turned", "BadSection", with_scales("F16", &[4, 1], four()));
    let rank: Vec<usize> = [2, 2].into_iter().chain([1; 500]).collect();
    cases.add("hand-scales-rank-502", "BadSection", with_scales("F16", &rank, four()));
    let more = |part: Part| described(INT4, &[codes(), scales(ONE), part]);
    cases.add("hand-zeros-superfluous", "BadSection", more(("w.zeros", "U8", vec![2, 1], vec![0; 2])));
    cases.add("hand-second-superfluous", "BadSection", more(("w.second", "F32", vec![1], vec![0; 4])));
    cases.add("hand-sections-missing", "MissingSection", described(INT4, &[]));
}

fn values(cases: &mut Cases) {
    // Negative scales mirror a block and some encoders write them; zero and subnormal ones are small.
    for (name, bits, expected) in [
        ("nan-signalling", 0xfc01, "Packed"),
        ("negative", 0xbc00, "ok"),
        ("minus-zero", 0x8000, "ok"),
        ("largest", 0x7bff, "ok"),
    ] {
        cases.add(&format!("hand-scale-{name}"), expected, described(INT4, &[codes(), scales(bits)]));
    }
    let int8 = |bits: u32| {
        let parts: [Part; 2] =
            [("w.codes", "U8", vec![1, 2], vec![127, 128]), ("w.scales", "F32", vec![1, 1], bits.to_le_bytes().into())];
        described(r#"{"format":"int8-f32","shape":[1,2]}"#, &parts)
    };
    cases.add("hand-scale-f32-subnormal", "ok", int8(1));
    // A finite scale is legal even where its products overflow to infinity.
    cases.add("hand-scale-f32-largest", "ok", int8(0x7f7f_ffff));
    let fours = |format: &str, dtype, scale: u8, second: Option<f32>| {
        let mut parts: Vec<Part> =
            vec![("w.codes", "U8", vec![1, 8], vec![0x21; 8]), ("w.scales", dtype, vec![1, 1], vec![scale])];
        parts.extend(second.map(|x| ("w.second", "F32", vec![1], x.to_le_bytes().into())));
        described(&format!(r#"{{"format":"{format}","shape":[1,16]}}"#), &parts)
    };
    cases.add("hand-scale-e8m0-largest", "ok", fours("mxfp4-g16", "F8_E8M0", 254, None));
    let nvfp4 = |scale, second| fours("nvfp4", "F8_E4M3", scale, Some(second));
    cases.add("hand-nvfp4-good", "ok", nvfp4(0x38, 0.5));
    cases.add("hand-nvfp4-scale-zero", "ok", nvfp4(0, 1.0));
    cases.add("hand-nvfp4-scale-negative", "ok", nvfp4(0xb8, 1.0));
    cases.add("hand-nvfp4-second-zero", "ok", nvfp4(0x38, 0.0));
    cases.add("hand-nvfp4-second-subnormal", "ok", nvfp4(0x38, f32::from_bits(1)));
    // This rule stores a reciprocal.
    cases.add("hand-nvfp4-ct-second-zero", "Packed", fours("nvfp4-ct", "F8_E4M3", 0x38, Some(0.0)));
    cases.add("hand-nvfp4-ct-zero-over-zero", "Packed", fours("nvfp4-ct", "F8_E4M3", 0, Some(0.0)));
    let minimum = |bits: u16| {
        let parts: [Part; 3] = [
            ("w.codes", "U8", vec![1, 1], vec![0x1b]),
            ("w.scales", "F16", vec![1, 1], halves(&[ONE])),
            ("w.zeros", "F16", vec![1, 1], halves(&[bits])),
        ];
        described(r#"{"format":"int2-g4-min","shape":[1,4]}"#, &parts)
    };
    cases.add("hand-zero-good", "ok", minimum(ONE));
    cases.add("hand-zero-infinite", "Packed", minimum(0xfc00));
    let padded: [Part; 2] =
        [("w.codes", "U8", vec![1, 2], vec![0x21, 0xf3]), ("w.scales", "F16", vec![1, 1], halves(&[ONE]))];
    cases.add("hand-padding-bits", "ok", described(r#"{"format":"int4","shape":[1,3]}"#, &padded));
    let fp8: [Part; 2] =
        [("w.codes", "U8", vec![1, 2], vec![0x7f, 0xff]), ("w.scales", "F32", vec![1, 1], 1_f32.to_le_bytes().into())];
    cases.add("hand-element-nan", "ok", described(r#"{"format":"fp8","shape":[1,2]}"#, &fp8));
}

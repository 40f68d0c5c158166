//! The container itself.

use super::Cases;

/// A file of this header text and data.
pub(crate) fn file(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(data);
    bytes
}

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
}

fn one(dtype: &str, shape: &str, begin: u64, end: u64, data: usize) -> Vec<u8> {
    file(format!("{{{}}}", entry("a", dtype, shape, begin, end)), &vec![0; data])
}

fn two(first: (u64, u64), second: (u64, u64), data: usize) -> Vec<u8> {
    let bytes = |(begin, end): (u64, u64)| format!("[{}]", end - begin);
    let a = entry("a", "U8", &bytes(first), first.0, first.1);
    let b = entry("b", "U8", &bytes(second), second.0, second.1);
    file(format!("{{{a},{b}}}"), &vec![0; data])
}

fn length(length: u64) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    bytes
}

pub(crate) fn make(cases: &mut Cases) {
    lengths(cases);
    texts(cases);
    metadata(cases);
    entries(cases);
    numbers(cases);
    sizes(cases);
    ranges(cases);
    names(cases);
}

fn lengths(cases: &mut Cases) {
    cases.add("empty-file", "Truncated", []);
    cases.add("seven-bytes", "Truncated", [0; 7]);
    cases.add("only-a-length", "Truncated", 2_u64.to_le_bytes());
    cases.add("length-zero", "Truncated", [0; 8]);
    cases.add("length-zero-before-json", "Truncated", length(0));
    cases.add("length-one-short", "BadJson", length(1));
    cases.add("length-one-long", "Truncated", length(3));
    cases.add("length-at-cap", "Truncated", length(100_000_000));
    cases.add("length-above-cap", "TooLarge", length(100_000_001));
    cases.add("length-two-to-63", "TooLarge", length(1 << 63));
    cases.add("length-max", "TooLarge", length(u64::MAX));
    cases.add("length-wraps-with-prefix", "TooLarge", length(u64::MAX - 7));
}

fn texts(cases: &mut Cases) {
    cases.add("no-tensors", "ok", file("{}", &[]));
    cases.add("header-ends-with-spaces", "ok", file("{}      ", &[]));
    cases.add("header-begins-with-space", "InvalidStart", file(" {}", &[]));
    cases.add("header-begins-with-newline", "InvalidStart", file("\n{}", &[]));
    cases.add("header-begins-with-byte-order-mark", "InvalidStart", file("\u{feff}{}", &[]));
    cases.add("header-is-an-array", "InvalidStart", file("[]", &[]));
    cases.add("header-is-a-string", "InvalidStart", file("\"a\"", &[]));
    cases.add("header-is-zeros", "InvalidStart", file([0; 16], &[]));
    cases.add("header-not-utf8", "BadUtf8", file(b"{\"\xff\":1}", &[]));
    cases.add("header-utf8-cut", "BadUtf8", file(b"{\"\xf0\x9f\xa6", &[]));
    cases.add("header-not-json", "BadJson", file("{tensor: yes}", &[]));
    cases.add("header-not-closed", "BadJson", file("{\"a\":{\"dtype\":\"U8\"", &[]));
    cases.add("header-trailing-comma", "BadJson", file("{\"__metadata__\":{},}", &[]));
    cases.add("header-two-objects", "BadJson", file("{}{}", &[]));
    cases.add("header-ends-with-nul", "BadJson", file("{}\0", &[]));
    cases.add("header-control-character", "BadJson", file("{\"a\nb\":1}", &[]));
    cases.add("header-lone-surrogate", "BadJson", file("{\"\\ud800\":1}", &[]));
    cases.add("header-deep-arrays", "BadField", file(format!("{{\"a\":{}", "[".repeat(3500)), &[]));
    cases.add("header-deep-objects", "BadJson", file(format!("{{\"a\":{}", "{\"x\":".repeat(700)), &[]));
    let deep_shape = format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":{}", "[".repeat(3000));
    cases.add("header-deep-shape", "BadField", file(deep_shape, &[]));
}

fn metadata(cases: &mut Cases) {
    let with = |text: &str| file(format!("{{\"__metadata__\":{text}}}"), &[]);
    cases.add("metadata-strings", "ok", with("{\"format\":\"pt\",\"\":\"\"}"));
    cases.add("metadata-number", "BadField", with("{\"a\":1}"));
    cases.add("metadata-nested", "BadField", with("{\"a\":{}}"));
    cases.add("metadata-null-value", "BadField", with("{\"a\":null}"));
    cases.add("metadata-null", "BadField", with("null"));
    cases.add("metadata-array", "BadField", with("[]"));
    cases.add("metadata-duplicate-key", "DuplicateKey", with("{\"a\":\"1\",\"a\":\"2\"}"));
    cases.add("metadata-twice", "DuplicateKey", file("{\"__metadata__\":{},\"__metadata__\":{}}", &[]));
    let escaped = "{\"__metadata__\":{},\"\\u005f_metadata__\":{}}";
    cases.add("metadata-twice-escaped", "DuplicateKey", file(escaped, &[]));
    let tensor = format!("{{{}}}", entry("__metadata__", "U8", "[1]", 0, 1));
    cases.add("metadata-as-tensor", "BadField", file(tensor, &[0]));
}

fn entries(cases: &mut Cases) {
    let with = |text: &str| file(format!("{{\"a\":{text}}}"), &[0; 4]);
    cases.add("tensor-good", "ok", with("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}"));
    cases.add(
        "tensor-unknown-field",
        "ok",
        with("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"note\":[{}]}"),
    );
    cases.add("tensor-as-array", "BadField", with("[\"F32\",[1],[0,4]]"));
    cases.add("tensor-as-null", "BadField", with("null"));
    cases.add("tensor-as-number", "BadField", with("7"));
    cases.add("tensor-empty", "BadField", with("{}"));
    cases.add("tensor-no-dtype", "BadField", with("{\"shape\":[1],\"data_offsets\":[0,4]}"));
    cases.add("tensor-no-shape", "BadField", with("{\"dtype\":\"F32\",\"data_offsets\":[0,4]}"));
    cases.add("tensor-no-offsets", "BadField", with("{\"dtype\":\"F32\",\"shape\":[1]}"));
    let twice = "{\"dtype\":\"U8\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}";
    cases.add("tensor-dtype-twice", "BadField", with(twice));
    let dtype = |name: &str| with(&format!("{{\"dtype\":{name},\"shape\":[1],\"data_offsets\":[0,4]}}"));
    cases.add("dtype-unknown", "UnknownDtype", dtype("\"F31\""));
    cases.add("dtype-lower-case", "UnknownDtype", dtype("\"f32\""));
    cases.add("dtype-empty", "UnknownDtype", dtype("\"\""));
    cases.add("dtype-long", "UnknownDtype", dtype(&format!("\"{}\"", "F".repeat(3000))));
    cases.add("dtype-number", "BadField", dtype("32"));
}

fn numbers(cases: &mut Cases) {
    let shape =
        |text: &str| file(format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":{text},\"data_offsets\":[0,1]}}}}"), &[0]);
    cases.add("shape-negative", "BadField", shape("[-1]"));
    cases.add("shape-fraction", "BadField", shape("[1.5]"));
    cases.add("shape-whole-float", "BadField", shape("[1.0]"));
    cases.add("shape-exponent", "BadField", shape("[1e0]"));
    cases.add("shape-two-to-64", "BadField", shape("[18446744073709551616]"));
    cases.add("shape-huge-number", "BadField", shape(&format!("[{}]", "9".repeat(300))));
    cases.add("shape-huge-exponent", "BadJson", shape("[1e999]"));
    cases.add("shape-string", "BadField", shape("[\"1\"]"));
    cases.add("shape-null", "BadField", shape("null"));
    cases.add("shape-scalar", "ok", shape("[]"));
    cases.add("shape-rank-100", "ok", shape(&format!("[{}1]", "1,".repeat(99))));
    let offsets =
        |text: &str| file(format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":{text}}}}}"), &[0]);
    cases.add("offsets-negative", "BadField", offsets("[-1,0]"));
    cases.add("offsets-one", "BadField", offsets("[0]"));
    cases.add("offsets-three", "BadField", offsets("[0,1,2]"));
    cases.add("offsets-fraction", "BadField", offsets("[0,1.0]"));
    cases.add("offsets-two-to-64", "BadField", offsets("[0,18446744073709551616]"));
    cases.add("offsets-object", "BadField", offsets("{\"0\":0,\"1\":1}"));
    cases.add("offsets-max", "SizeMismatch", offsets("[0,18446744073709551615]"));
    cases.add("offsets-at-the-end-of-u64", "Hole", offsets("[18446744073709551614,18446744073709551615]"));
}

fn sizes(cases: &mut Cases) {
    cases.add("size-product-overflows", "Overflow", one("U8", "[4294967296,4294967296]", 0, 0, 0));
    cases.add("size-overflows-by-element", "Overflow", one("F64", "[2305843009213693952]", 0, 0, 0));
    cases.add("size-overflows-before-zero", "Overflow", one("U8", "[9223372036854775808,2,0]", 0, 0, 0));
    cases.add("size-zero-hides-large", "ok", one("U8", "[0,9223372036854775807]", 0, 0, 0));
    cases.add("size-zero-dimension", "ok", one("F32", "[4,0,3]", 0, 0, 0));
    cases.add("size-too-small", "SizeMismatch", one("F32", "[2]", 0, 4, 4));
    cases.add("size-too-large", "SizeMismatch", one("F32", "[1]", 0, 8, 8));
    cases.add("size-claims-a-gigabyte", "Truncated", one("U8", "[1073741824]", 0, 1 << 30, 4));
    cases.add("bits-f4-odd", "MisalignedBits", one("F4", "[3]", 0, 2, 2));
    cases.add("bits-f4-even", "ok", one("F4", "[4]", 0, 2, 2));
    cases.add("bits-f6-e2m3-three", "MisalignedBits", one("F6_E2M3", "[3]", 0, 3, 3));
    cases.add("bits-f6-e3m2-four", "ok", one("F6_E3M2", "[4]", 0, 3, 3));
    cases.add("bool-of-value-two", "ok", file(format!("{{{}}}", entry("a", "BOOL", "[1]", 0, 1)), &[2]));
    cases.add("nan-and-infinity", "ok", file(format!("{{{}}}", entry("a", "F16", "[2]", 0, 4)), &[0, 0x7c, 1, 0x7c]));
}

fn ranges(cases: &mut Cases) {
    cases.add("range-reversed", "ReversedOffsets", one("U8", "[1]", 1, 0, 1));
    cases.add("range-first-not-zero", "Hole", one("U8", "[1]", 1, 2, 2));
    cases.add("range-hole", "Hole", two((0, 2), (3, 5), 5));
    cases.add("range-overlap", "Overlap", two((0, 2), (1, 3), 3));
    cases.add("range-same", "Overlap", two((0, 2), (0, 2), 2));
    cases.add("range-nested", "Overlap", two((0, 8), (2, 4), 8));
    cases.add("range-beyond-data", "Truncated", two((0, 2), (2, 5), 4));
    cases.add("range-trailing-byte", "TrailingBytes", two((0, 2), (2, 4), 5));
    cases.add("range-data-without-tensors", "TrailingBytes", file("{}", &[0]));
    cases.add("range-in-reverse-order", "ok", two((2, 4), (0, 2), 4));
    cases.add("range-zero-sized-at-one-offset", "ok", {
        let list: Vec<String> = (0..20).map(|i| entry(&format!("t{i}"), "F32", "[0]", 0, 0)).collect();
        file(format!("{{{}}}", list.join(",")), &[])
    });
    cases.add("range-zero-sized-between", "ok", {
        let list = [entry("a", "U8", "[2]", 0, 2), entry("z", "U8", "[0]", 2, 2), entry("b", "U8", "[1]", 2, 3)];
        file(format!("{{{}}}", list.join(",")), &[0; 3])
    });
    cases.add("range-zero-sized-inside", "Overlap", two((0, 8), (4, 4), 8));
    cases.add("range-zero-sized-beyond", "Hole", two((0, 8), (9, 9), 8));
}

fn names(cases: &mut Cases) {
    let named = |name: &str| file(format!("{{{}}}", entry(name, "U8", "[1]", 0, 1)), &[0]);
    cases.add("name-empty", "ok", named(""));
    cases.add("name-nul", "ok", named("a\\u0000b"));
    cases.add("name-dot-dot", "ok", named("../../etc/passwd"));
    cases.add("name-long", "ok", named(&"n".repeat(3900)));
    cases.add("name-control-escapes", "ok", named("\\u001b[31m\\n"));
    let twice = [entry("a", "U8", "[0]", 0, 0), entry("a", "U8", "[0]", 0, 0)];
    cases.add("name-twice", "DuplicateKey", file(format!("{{{}}}", twice.join(",")), &[]));
    let escaped = [entry("a", "U8", "[0]", 0, 0), entry("\\u0061", "U8", "[0]", 0, 0)];
    cases.add("name-twice-escaped", "DuplicateKey", file(format!("{{{}}}", escaped.join(",")), &[]));
}

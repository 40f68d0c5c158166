//! GGUF.

use super::Cases;

/// Writes a GGUF file field by field; every field can be wrong.
#[derive(Clone)]
pub(crate) struct Builder {
    version: u32,
    counts: Option<(u64, u64)>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: Vec<u8>,
}

pub(crate) fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = (text.as_ref().len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_ref());
    bytes
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { version: 3, counts: None, entries: Vec::new(), tensors: Vec::new(), alignment: 32, data: Vec::new() }
    }

    pub(crate) fn entry(mut self, key: impl AsRef<[u8]>, kind: u32, value: impl AsRef<[u8]>) -> Self {
        let mut bytes = text(key);
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(value.as_ref());
        self.entries.push(bytes);
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, value.to_le_bytes())
    }

    pub(crate) fn tensor(mut self, name: impl AsRef<[u8]>, dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut bytes = text(name);
        bytes.extend_from_slice(&u32::try_from(dims.len()).unwrap_or(0).to_le_bytes());
        for dim in dims {
            bytes.extend_from_slice(&dim.to_le_bytes());
        }
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    pub(crate) fn data(mut self, len: usize) -> Self {
        self.data = vec![0; len];
        self
    }

    fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    fn counts(mut self, tensors: u64, entries: u64) -> Self {
        self.counts = Some((tensors, entries));
        self
    }

    fn alignment(mut self, alignment: usize) -> Self {
        self.alignment = alignment;
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (tensors, entries) = self.counts.unwrap_or((self.tensors.len() as u64, self.entries.len() as u64));
        let mut bytes = b"GGUF".to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&tensors.to_le_bytes());
        bytes.extend_from_slice(&entries.to_le_bytes());
        bytes.extend(self.entries.iter().flatten());
        bytes.extend(self.tensors.iter().flatten());
        if !self.data.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend_from_slice(&self.data);
        }
        bytes
    }
}

/// A small file with every kind of value and a few kinds of tensor: the start of the truncations.
pub(crate) fn good() -> Vec<u8> {
    let array = |kind: u32, len: u64, items: &[u8]| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(items);
        bytes
    };
    let words = [text("a"), text("bc"), text("")].concat();
    Builder::new()
        .entry("general.architecture", 8, text("test"))
        .entry("a.u8", 0, [1])
        .entry("a.i16", 3, [0xff, 0xff])
        .entry("a.f32", 6, 1.5_f32.to_le_bytes())
        .entry("a.bool", 7, [1])
        .entry("a.i64", 11, (-5_i64).to_le_bytes())
        .entry("a.f64", 12, 2.5_f64.to_le_bytes())
        .entry("a.words", 9, array(8, 3, &words))
        .entry("a.numbers", 9, array(4, 2, &[1, 0, 0, 0, 2, 0, 0, 0]))
        .tensor("one", &[32, 2], 2, 0)
        .tensor("two", &[4], 0, 64)
        .tensor("three", &[32], 8, 96)
        .data(96 + 34)
        .bytes()
}

fn one(dims: &[u64], kind: u32, offset: u64, data: usize) -> Vec<u8> {
    Builder::new().tensor("t", dims, kind, offset).data(data).bytes()
}

pub(crate) fn make(cases: &mut Cases) {
    heads(cases);
    values(cases);
    alignments(cases);
    shapes(cases);
    places(cases);
    architectures(cases);
}

fn heads(cases: &mut Cases) {
    cases.add("good", "ok", good());
    cases.add("good-version-2", "ok", Builder::new().version(2).tensor("t", &[4], 0, 0).data(16).bytes());
    cases.add("no-tensors", "ok", Builder::new().bytes());
    cases.add("only-magic", "Truncated", *b"GGUF");
    cases.add("half-magic", "Truncated", *b"GG");
    cases.add("magic-swapped", "BadMagic", [b"FUGG".as_slice(), &[0; 24]].concat());
    cases.add("magic-old-ggml", "BadMagic", [b"lmgg".as_slice(), &[0; 24]].concat());
    for version in [0, 1, 4, u32::MAX, 3_u32.swap_bytes()] {
        let bytes = Builder::new().version(version).bytes();
        cases.add(&format!("version-{version}"), "UnsupportedVersion", bytes);
    }
    for (name, count) in [("two-to-31", 1 << 31), ("two-to-63", 1 << 63), ("max", u64::MAX)] {
        let counts = |tensors, entries| Builder::new().counts(tensors, entries).data(64).bytes();
        cases.add(&format!("tensor-count-{name}"), "TooLarge", counts(count, 0));
        cases.add(&format!("entry-count-{name}"), "TooLarge", counts(0, count));
    }
    let more = Builder::new().counts(2, 0).tensor("t", &[4], 0, 0).data(64).bytes();
    // The zeros of the padding and the data read as a tensor of rank 0.
    cases.add("tensor-count-one-too-many", "BadRank", more);
}

fn values(cases: &mut Cases) {
    let long = (1_u64 << 63).to_le_bytes();
    let entry = |kind: u32, value: &[u8]| Builder::new().entry("k", kind, value).data(64).bytes();
    let array = |kind: u32, len: u64| entry(9, &[&kind.to_le_bytes()[..], &len.to_le_bytes()].concat());
    let mut key = Builder::new().entry("", 0, [0]);
    key.entries[0][..8].copy_from_slice(&long);
    cases.add("key-length-two-to-63", "Truncated", key.data(64).bytes());
    cases.add("string-length-two-to-63", "Truncated", entry(8, &long));
    cases.add("string-length-max", "Truncated", entry(8, &u64::MAX.to_le_bytes()));
    cases.add("array-of-strings-two-to-63", "Truncated", array(8, 1 << 63));
    cases.add("array-of-bytes-two-to-63", "Truncated", array(0, 1 << 63));
    cases.add("array-of-u64-overflows", "Overflow", array(10, 1 << 61));
    cases.add("array-of-u64-max", "Overflow", array(10, u64::MAX));
    cases.add("array-of-arrays", "BadValueType", array(9, 1));
    cases.add("array-of-arrays-deep", "BadValueType", {
        let level = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
        entry(9, &level.repeat(300))
    });
    cases.add("array-of-unknown", "BadValueType", array(13, 1));
    cases.add("array-empty", "ok", array(4, 0));
    let strings = [&8_u32.to_le_bytes()[..], &5_u64.to_le_bytes(), &[0; 40]].concat();
    cases.add("array-of-empty-strings", "ok", entry(9, &strings));
    cases.add("value-type-13", "BadValueType", entry(13, &[0; 8]));
    cases.add("value-type-max", "BadValueType", entry(u32::MAX, &[0; 8]));
    cases.add("bool-of-value-two", "BadValue", entry(7, &[2]));
    cases.add("value-not-utf8", "BadUtf8", entry(8, &text([0xff, 0xfe])));
    cases.add("key-not-utf8", "BadUtf8", Builder::new().entry([0xc0], 0, [0]).bytes());
    cases.add("key-twice", "DuplicateKey", Builder::new().u32("k", 1).u32("k", 1).bytes());
    cases.add("key-empty", "ok", Builder::new().u32("", 1).bytes());
}

fn alignments(cases: &mut Cases) {
    let with = |value: u32, alignment: usize| {
        let file = Builder::new().u32("general.alignment", value).alignment(alignment);
        file.tensor("t", &[4], 0, 0).data(16).bytes()
    };
    for (value, expected) in [(1, "ok"), (8, "ok"), (64, "ok"), (0, "BadValue"), (3, "BadValue"), (96, "BadValue")] {
        cases.add(&format!("alignment-{value}"), expected, with(value, usize::try_from(value.max(1)).unwrap_or(1)));
    }
    cases.add("alignment-two-to-20", "Truncated", with(1 << 20, 1));
    cases.add("alignment-two-to-21", "BadValue", with(1 << 21, 1));
    cases.add("alignment-two-to-31", "BadValue", with(1 << 31, 1));
    let typed = |kind, value: &[u8]| Builder::new().entry("general.alignment", kind, value).bytes();
    cases.add("alignment-u64", "BadValue", typed(10, &32_u64.to_le_bytes()));
    cases.add("alignment-i32", "BadValue", typed(5, &32_i32.to_le_bytes()));
    cases.add("alignment-text", "BadValue", typed(8, &text("32")));
    let twice = Builder::new().u32("general.alignment", 32).u32("general.alignment", 64).bytes();
    cases.add("alignment-twice", "DuplicateKey", twice);
}

fn shapes(cases: &mut Cases) {
    cases.add("rank-0", "BadRank", one(&[], 0, 0, 64));
    cases.add("rank-4", "ok", one(&[2, 1, 2, 1], 0, 0, 16));
    cases.add("rank-5", "BadRank", one(&[1; 5], 0, 0, 64));
    let mut rank = Builder::new().tensor("t", &[1], 0, 0);
    rank.tensors[0][9..13].copy_from_slice(&u32::MAX.to_le_bytes());
    cases.add("rank-max", "BadRank", rank.data(64).bytes());
    cases.add("dimension-zero", "ZeroDimension", one(&[0], 0, 0, 64));
    cases.add("dimension-zero-of-blocks", "ZeroDimension", one(&[32, 0], 2, 0, 64));
    cases.add("dimension-two-to-40-twice", "Overflow", one(&[1 << 40, 1 << 40], 0, 0, 64));
    cases.add("dimension-two-to-32-twice", "Overflow", one(&[1 << 32, 1 << 32], 2, 0, 64));
    cases.add("dimension-max", "Overflow", one(&[u64::MAX], 0, 0, 64));
    cases.add("dimension-overflows-by-element", "Overflow", one(&[1 << 63], 28, 0, 64));
    cases.add("dimension-max-of-bytes", "Overflow", one(&[u64::MAX], 24, 32, 64));
    cases.add("row-not-of-blocks", "RaggedBlocks", one(&[33], 2, 0, 64));
    cases.add("row-half-a-superblock", "RaggedBlocks", one(&[128, 2], 12, 0, 256));
    for kind in [4, 5, 31, 33, 36, 38, 42, 255, u32::MAX] {
        cases.add(&format!("type-{kind}"), "UnknownGgmlType", one(&[32], kind, 0, 64));
    }
    for (kind, size) in [(16, 66), (17, 74), (18, 98), (19, 50), (21, 110), (22, 82), (29, 56), (9, 36), (15, 292)] {
        let row = if kind == 9 { 32 } else { 256 };
        cases.add(&format!("type-{kind}-not-decodable"), "UndecodableType", one(&[row], kind, 0, size));
    }
    for (kind, row, size) in [(2, 32, 18), (12, 256, 144), (14, 256, 210), (39, 32, 17), (41, 128, 18), (28, 1, 8)] {
        cases.add(&format!("type-{kind}"), "ok", one(&[row], kind, 0, size));
    }
}

fn places(cases: &mut Cases) {
    let two = |first: u64, second: u64, data| {
        Builder::new().tensor("a", &[8], 0, first).tensor("b", &[8], 0, second).data(data).bytes()
    };
    cases.add("offset-odd", "MisalignedOffset", one(&[4], 0, 1, 64));
    cases.add("offset-half-aligned", "MisalignedOffset", one(&[4], 0, 16, 64));
    cases.add("offset-beyond", "Truncated", one(&[4], 0, 1 << 20, 64));
    cases.add("offset-at-end", "Truncated", one(&[4], 0, 64, 64));
    cases.add("offset-wraps", "Overflow", one(&[4], 0, u64::MAX - 31, 64));
    cases.add("offset-wraps-with-size", "Overflow", one(&[1 << 60], 24, u64::MAX - (1 << 59) + 1, 64));
    cases.add("offsets-overlap", "Overlap", two(0, 0, 64));
    cases.add("offsets-partly-overlap", "Overlap", {
        Builder::new().tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(64).bytes()
    });
    cases.add("offsets-in-reverse-order", "ok", two(32, 0, 64));
    cases.add("offsets-with-a-gap", "ok", two(0, 64, 96));
    cases.add("data-missing", "Truncated", one(&[4], 0, 0, 0));
    cases.add("data-one-short", "Truncated", one(&[4], 0, 0, 15));
    cases.add("data-trailing", "ok", one(&[4], 0, 0, 99));
    cases.add("name-twice", "DuplicateKey", {
        Builder::new().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64).bytes()
    });
    cases.add("name-of-64-bytes", "ok", Builder::new().tensor("n".repeat(64), &[4], 0, 0).data(16).bytes());
    cases.add("name-of-65-bytes", "TooLarge", Builder::new().tensor("n".repeat(65), &[4], 0, 0).data(16).bytes());
    cases.add("name-not-utf8", "BadUtf8", Builder::new().tensor([0xff], &[4], 0, 0).data(16).bytes());
    cases.add("name-empty", "ok", Builder::new().tensor("", &[4], 0, 0).data(16).bytes());
}

fn architectures(cases: &mut Cases) {
    let llama = || Builder::new().entry("general.architecture", 8, text("llama"));
    let query = |file: Builder| file.tensor("blk.0.attn_q.weight", &[4, 8], 0, 0).data(128).bytes();
    cases.add("llama-good", "ok", query(llama().u32("llama.attention.head_count", 2)));
    cases.add("llama-no-heads", "BadValue", query(llama()));
    cases.add("llama-zero-heads", "BadValue", query(llama().u32("llama.attention.head_count", 0)));
    cases.add("llama-heads-do-not-divide", "BadValue", query(llama().u32("llama.attention.head_count", 3)));
    cases.add("llama-heads-leave-no-pairs", "BadValue", query(llama().u32("llama.attention.head_count", 8)));
    cases.add("llama-heads-huge", "BadValue", query(llama().u32("llama.attention.head_count", u32::MAX)));
    cases.add("llama-heads-text", "BadValue", query(llama().entry("llama.attention.head_count", 8, text("2"))));
    cases.add("llama-names-collide", "DuplicateKey", {
        let file = llama().tensor("token_embd.weight", &[4], 0, 0);
        file.tensor("model.embed_tokens.weight", &[4], 0, 32).data(48).bytes()
    });
}

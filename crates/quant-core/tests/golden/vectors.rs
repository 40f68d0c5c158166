//! Reading golden files, comparing arrays and keeping count.

use half::bf16;
use quant_core::{BlockParams, EncodeOptions, Format, PackedTensor, Rounding, Shaped};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

struct Array {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// One golden file. Every array has to be used, see [`GoldenFile::finish`].
pub(crate) struct GoldenFile {
    pub(crate) label: String,
    arrays: BTreeMap<String, Array>,
    cases: serde_json::Value,
    used: RefCell<BTreeSet<String>>,
    compared: Cell<usize>,
    values: Cell<usize>,
    excepted: Cell<usize>,
}

/// The file in the reduced set and, where it is present, in the full one.
pub(crate) fn open(name: &str) -> Vec<GoldenFile> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let full = std::env::var_os("LEANBITS_GOLDEN").map_or_else(|| here.join("../../../shared/golden"), PathBuf::from);
    let sets = [("reduced", here.join("tests/golden/vectors")), ("full", full)];
    let files: Vec<GoldenFile> = sets
        .iter()
        .filter_map(|(set, folder)| {
            let path = folder.join(format!("{name}.safetensors"));
            if !path.exists() {
                println!("{set} set: no {name}.safetensors; LEANBITS_GOLDEN names the folder of the full set");
                return None;
            }
            Some(GoldenFile::read(&format!("{set} {name}"), &path))
        })
        .collect();
    files
}

impl GoldenFile {
    fn read(label: &str, path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("readable");
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
        let notes = metadata.metadata().as_ref().and_then(|m| m.get("cases")).map_or("{}", String::as_str);
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let array = |view: safetensors::tensor::TensorView<'_>| Array {
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        Self {
            label: label.to_owned(),
            arrays: file.tensors().into_iter().map(|(name, view)| (name, array(view))).collect(),
            cases: serde_json::from_str(notes).expect("JSON notes"),
            used: RefCell::default(),
            compared: Cell::new(0),
            values: Cell::new(0),
            excepted: Cell::new(0),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    fn array(&self, name: &str) -> &Array {
        self.used.borrow_mut().insert(name.to_owned());
        self.arrays.get(name).unwrap_or_else(|| panic!("{}: no array {name}", self.label))
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.array(name).shape
    }

    fn words<const N: usize>(&self, name: &str) -> impl Iterator<Item = [u8; N]> {
        let bytes = &self.array(name).bytes;
        assert_eq!(bytes.len() % N, 0, "{name} has elements of {N} bytes");
        bytes.as_chunks::<N>().0.iter().copied()
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.words(name).map(f32::from_le_bytes).collect()
    }

    pub(crate) fn f16(&self, name: &str) -> Vec<f32> {
        self.words(name).map(|b| half::f16::from_le_bytes(b).to_f32()).collect()
    }

    pub(crate) fn bf16(&self, name: &str) -> Vec<f32> {
        self.words(name).map(|b| bf16::from_le_bytes(b).to_f32()).collect()
    }

    pub(crate) fn u8(&self, name: &str) -> Vec<u8> {
        self.array(name).bytes.clone()
    }

    pub(crate) fn i8(&self, name: &str) -> Vec<i8> {
        self.words(name).map(i8::from_le_bytes).collect()
    }

    pub(crate) fn u16(&self, name: &str) -> Vec<u16> {
        self.words(name).map(u16::from_le_bytes).collect()
    }

    pub(crate) fn i32(&self, name: &str) -> Vec<i32> {
        self.words(name).map(i32::from_le_bytes).collect()
    }

    pub(crate) fn u32(&self, name: &str) -> Vec<u32> {
        self.words(name).map(u32::from_le_bytes).collect()
    }

    /// The names of arrays that end so, without that ending.
    pub(crate) fn stems(&self, ending: &str) -> Vec<String> {
        self.arrays.keys().filter_map(|name| name.strip_suffix(ending).map(str::to_owned)).collect()
    }

    /// Names of the rows of `edge` inputs.
    pub(crate) fn edge_names(&self) -> Vec<String> {
        let names = self.cases["edge_names"].as_array().expect("names");
        names.iter().map(|name| name.as_str().expect("text").to_owned()).collect()
    }

    pub(crate) fn finite_edge_rows(&self) -> usize {
        self.cases["edge_finite_rows"].as_u64().map_or(usize::MAX, |n| usize::try_from(n).expect("small"))
    }

    /// Marks arrays that this crate has no say in, with the reason.
    pub(crate) fn leave(&self, reason: &str, which: impl Fn(&str) -> bool) {
        let left: Vec<&String> = self.arrays.keys().filter(|name| which(name)).collect();
        if !left.is_empty() {
            println!("{}: {} arrays left: {reason}", self.label, left.len());
        }
        self.used.borrow_mut().extend(left.into_iter().cloned());
    }

    /// Compares floats bit for bit; zeros of either sign are equal, and so are NaNs.
    pub(crate) fn floats(&self, what: &str, got: &[f32], want: &[f32]) {
        self.check(what, got, want, |a, b| a == b || a.is_nan() && b.is_nan(), |_| None);
    }

    /// Compares codes.
    pub(crate) fn codes<T: PartialEq + std::fmt::Debug>(&self, what: &str, got: &[T], want: &[T]) {
        self.check(what, got, want, |a, b| a == b, |_| None);
    }

    /// Compares all elements but those for which `except` gives a reason.
    pub(crate) fn check<T: std::fmt::Debug>(
        &self,
        what: &str,
        got: &[T],
        want: &[T],
        same: impl Fn(&T, &T) -> bool,
        except: impl Fn(usize) -> Option<&'static str>,
    ) {
        assert_eq!(got.len(), want.len(), "{} {what}: lengths", self.label);
        let mut reasons = BTreeMap::new();
        let mut bad = Vec::new();
        for (i, (a, b)) in got.iter().zip(want).enumerate() {
            match except(i) {
                _ if same(a, b) => {}
                Some(reason) => *reasons.entry(reason).or_insert(0) += 1,
                None => bad.push(i),
            }
        }
        for (reason, count) in &reasons {
            println!("{} {what}: {count} of {} differ: {reason}", self.label, got.len());
        }
        assert!(
            bad.is_empty(),
            "{} {what}: {} of {} differ, first at {}: {:?}, expected {:?}",
            self.label,
            bad.len(),
            got.len(),
            bad[0],
            got[bad[0]],
            want[bad[0]]
        );
        self.compared.set(self.compared.get() + 1);
        self.values.set(self.values.get() + got.len());
        self.excepted.set(self.excepted.get() + reasons.values().sum::<usize>());
    }

    /// Fails when an array was not used; prints the tally.
    pub(crate) fn finish(self) {
        let used = self.used.borrow();
        let unused: Vec<&String> = self.arrays.keys().filter(|name| !used.contains(*name)).collect();
        assert!(unused.is_empty(), "{}: unused arrays {unused:?}", self.label);
        assert!(self.compared.get() > 0, "{}: nothing compared", self.label);
        println!(
            "{}: {} arrays, {} comparisons, {} values, {} excepted",
            self.label,
            self.arrays.len(),
            self.compared.get(),
            self.values.get(),
            self.excepted.get()
        );
    }
}

/// Encodes a row-major matrix.
pub(crate) fn encode(format: &str, x: &[f32], shape: &[usize]) -> PackedTensor<'static> {
    encode_rounded(format, x, shape, Rounding::NearestEven)
}

pub(crate) fn encode_rounded(format: &str, x: &[f32], shape: &[usize], rounding: Rounding) -> PackedTensor<'static> {
    let format: Format = format.parse().expect("a format");
    let tensor = Shaped::new(x, shape).expect("a shape");
    PackedTensor::encode_with(format, &tensor, EncodeOptions { rounding, seed: 0 }).expect("finite values")
}

/// All codes in row-major order.
pub(crate) fn codes(packed: &PackedTensor<'_>) -> Vec<u16> {
    let layout = packed.layout();
    let mut codes = vec![0; layout.rows * layout.columns];
    for (row, out) in codes.chunks_exact_mut(layout.columns).enumerate() {
        packed.row_codes(row, out).expect("a row");
    }
    codes
}

/// Codes of at most 8 bits.
pub(crate) fn byte_codes(packed: &PackedTensor<'_>) -> Vec<u8> {
    codes(packed).into_iter().map(|code| u8::try_from(code).expect("a byte")).collect()
}

/// The parameters of all blocks.
pub(crate) fn params(packed: &PackedTensor<'_>) -> Vec<BlockParams> {
    let layout = packed.layout();
    let blocks = (0..layout.block_rows_count()).flat_map(|r| (0..layout.block_columns_count()).map(move |c| (r, c)));
    blocks.map(|(row, column)| packed.params(row, column)).collect()
}

/// Two's complement of so many bits.
pub(crate) fn signed(code: u16, bits: u32) -> i8 {
    let value = i32::from(code) << (32 - bits) >> (32 - bits);
    i8::try_from(value).expect("at most 8 bits")
}

/// Two codes a byte.
pub(crate) fn nibbles(bytes: &[u8], high_first: bool) -> Vec<u8> {
    let pair = |b: &u8| if high_first { [b >> 4, b & 15] } else { [b & 15, b >> 4] };
    bytes.iter().flat_map(pair).collect()
}

pub(crate) fn to_bf16(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
}

//! The file: header, metadata, tensor table, data.

use super::{GgmlType, GgufValue};
use crate::error::shorten;
use crate::{Error, FileBytes};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Most dimensions of a tensor.
const MAX_RANK: u32 = 4;
/// Longest tensor name in bytes.
const MAX_NAME: u64 = 64;
/// Largest alignment that is accepted.
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Bytes the shortest tensor entry takes: name length, rank, one dimension, type, offset.
const LEAST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;
/// Bytes the shortest metadata entry takes: key length, type, one byte.
const LEAST_ENTRY: u64 = 8 + 4 + 1;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: GgmlType,
    /// Its shape with the innermost axis last (files store it first).
    pub shape: Vec<usize>,
    /// Byte range within the file.
    pub range: Range<usize>,
}

/// A GGUF file: its table in memory, its metadata and tensors where they lie in the mapped file.
///
/// ```no_run
/// use quant_io::gguf::GgufFile;
/// let file = GgufFile::open("model.gguf")?;
/// println!("{:?}", file.metadata("general.architecture"));
/// for tensor in file.tensors() {
///     println!("{} {} {:?}", tensor.name, tensor.kind, tensor.shape);
/// }
/// # Ok::<(), quant_io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GgufFile {
    bytes: FileBytes,
    version: u32,
    alignment: u64,
    /// Type and position of each value.
    metadata: BTreeMap<String, (u32, usize)>,
    tensors: Vec<GgufTensor>,
}

impl GgufFile {
    /// As [`FileBytes::release_pages`].
    pub fn release_pages(&self) {
        self.bytes.release_pages();
    }

    /// Maps a file and checks everything but the contents of its tensors.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or what [`GgufFile::from_bytes`] finds.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::from_bytes(FileBytes::map(path)?)
    }

    /// Checks bytes that are mapped or in memory.
    ///
    /// # Errors
    ///
    /// Inside [`Error::InFile`], one variant per defect: [`Error::BadMagic`],
    /// [`Error::UnsupportedVersion`], [`Error::Truncated`], [`Error::TooLarge`], [`Error::BadUtf8`],
    /// [`Error::BadValueType`], [`Error::BadValue`], [`Error::DuplicateKey`], [`Error::BadRank`],
    /// [`Error::ZeroDimension`], [`Error::Overflow`], [`Error::UnknownGgmlType`],
    /// [`Error::RaggedBlocks`], [`Error::MisalignedOffset`], [`Error::Overlap`].
    pub fn from_bytes(bytes: FileBytes) -> Result<Self, Error> {
        let path = bytes.path().to_owned();
        parse(bytes).map_err(|e| e.in_file(&path))
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.bytes.path()
    }

    /// Version of the container, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What tensor positions are a multiple of.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The keys of the metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The value of a key.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<GgufValue<'_>> {
        let (key, &(kind, position)) = self.metadata.get_key_value(key)?;
        GgufValue::read(&mut Cursor::new(self.bytes.get(position..)?), key, kind).ok()
    }

    /// The tensors in the order of the table.
    #[must_use]
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The stored bytes of a tensor of this file.
    #[must_use]
    pub fn tensor_bytes(&self, tensor: &GgufTensor) -> &[u8] {
        self.bytes.get(tensor.range.clone()).unwrap_or_default()
    }
}

fn parse(bytes: FileBytes) -> Result<GgufFile, Error> {
    let mut cursor = Cursor::new(&bytes);
    let magic = cursor.take(4, || "the magic number".to_owned())?;
    if magic != b"GGUF" {
        let found = magic.first_chunk().copied().unwrap_or_default();
        return Err(Error::BadMagic { found });
    }
    let version = cursor.u32("the version")?;
    if version != 2 && version != 3 {
        let known = "2 and 3, little-endian";
        return Err(Error::UnsupportedVersion { what: "GGUF", found: version.to_string(), known });
    }
    let tensor_count = cursor.u64("the tensor count")?;
    let entry_count = cursor.u64("the metadata count")?;
    // Counts that the file cannot hold are refused before anything is sized by them.
    let rest = cursor.rest().len() as u64;
    for (what, value, least) in
        [("the metadata count", entry_count, LEAST_ENTRY), ("the tensor count", tensor_count, LEAST_TENSOR)]
    {
        if value > rest / least {
            return Err(Error::TooLarge { what, value, limit: rest / least });
        }
    }
    let mut metadata = BTreeMap::new();
    let mut alignment = 32;
    for _ in 0..entry_count {
        let key = cursor.text(|| "a metadata key".to_owned())?;
        let kind = cursor.u32("the type of a value")?;
        let position = bytes.len() - cursor.rest().len();
        let value = GgufValue::read(&mut cursor, key, kind)?;
        if metadata.insert(key.to_owned(), (kind, position)).is_some() {
            return Err(Error::DuplicateKey { key: shorten(key) });
        }
        if key == "general.alignment" {
            alignment = read_alignment(kind, &value)?;
        }
    }
    let mut table = Vec::new();
    for _ in 0..tensor_count {
        table.push(RawTensor::read(&mut cursor)?);
    }
    let data_start = (bytes.len() - cursor.rest().len()) as u64;
    let data_start = data_start.next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(table.len());
    for raw in table {
        tensors.push(raw.place(data_start, alignment, bytes.len() as u64)?);
    }
    check_overlap(&tensors)?;
    Ok(GgufFile { version, alignment, metadata, tensors, bytes })
}

fn read_alignment(kind: u32, value: &GgufValue<'_>) -> Result<u64, Error> {
    let wrong = |message: String| Error::BadValue { key: "general.alignment".to_owned(), message };
    match value {
        GgufValue::Unsigned(n) if kind == 4 && n.is_power_of_two() && *n <= MAX_ALIGNMENT => Ok(*n),
        GgufValue::Unsigned(n) if kind == 4 => Err(wrong(format!("{n} is no power of two from 1 to {MAX_ALIGNMENT}"))),
        _ => Err(wrong("it must be of type u32".to_owned())),
    }
}

struct RawTensor<'a> {
    name: &'a str,
    /// Innermost axis last.
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl<'a> RawTensor<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Error> {
        let name = cursor.text(|| "a tensor name".to_owned())?;
        if name.len() as u64 > MAX_NAME {
            let value = name.len() as u64;
            return Err(Error::TooLarge { what: "the length of a tensor name", value, limit: MAX_NAME });
        }
        let rank = cursor.u32("the rank of a tensor")?;
        if rank == 0 || rank > MAX_RANK {
            return Err(Error::BadRank { tensor: shorten(name), rank, limit: MAX_RANK });
        }
        let mut shape = (0..rank).map(|_| cursor.u64("a dimension")).collect::<Result<Vec<u64>, Error>>()?;
        shape.reverse();
        let kind = cursor.u32("the type of a tensor")?;
        let offset = cursor.u64("the offset of a tensor")?;
        Ok(Self { name, shape, kind, offset })
    }

    fn place(self, data_start: u64, alignment: u64, file_len: u64) -> Result<GgufTensor, Error> {
        let name = || shorten(self.name);
        let overflow = || Error::Overflow { what: format!("tensor {:?}", name()), shape: self.shape.clone() };
        let Some(kind) = GgmlType::from_id(self.kind) else {
            return Err(Error::UnknownGgmlType { tensor: name(), id: self.kind });
        };
        if self.shape.contains(&0) {
            return Err(Error::ZeroDimension { tensor: name(), shape: self.shape.clone() });
        }
        let elements = self.shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
        let (block, block_bytes) = kind.block();
        let (block, block_bytes) = (block as u64, block_bytes as u64);
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return Err(Error::RaggedBlocks { tensor: name(), row, block });
        }
        let size = (elements / block).checked_mul(block_bytes).ok_or_else(overflow)?;
        if !self.offset.is_multiple_of(alignment) {
            return Err(Error::MisalignedOffset { tensor: name(), offset: self.offset, alignment });
        }
        let begin = data_start.checked_add(self.offset).ok_or_else(overflow)?;
        let end = begin.checked_add(size).ok_or_else(overflow)?;
        if end > file_len {
            let what = format!("the data of tensor {:?}", name());
            return Err(Error::Truncated { what, needed: end, available: file_len });
        }
        let to_usize = |n: u64| usize::try_from(n).map_err(|_| overflow());
        let shape = self.shape.iter().map(|&d| to_usize(d)).collect::<Result<Vec<_>, _>>()?;
        let range = to_usize(begin)?..to_usize(end)?;
        Ok(GgufTensor { name: self.name.to_owned(), kind, shape, range })
    }
}

fn check_overlap(tensors: &[GgufTensor]) -> Result<(), Error> {
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = order.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::DuplicateKey { key: shorten(&pair[0].name) });
    }
    order.sort_unstable_by_key(|t| (t.range.start, t.range.end));
    for pair in order.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            let (expected, found) = (pair[0].range.end as u64, pair[1].range.start as u64);
            return Err(Error::Overlap { tensor: shorten(&pair[1].name), expected, found });
        }
    }
    Ok(())
}

/// Reads little-endian fields; running out of bytes is an error that names the field.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, count: u64, what: impl FnOnce() -> String) -> Result<&'a [u8], Error> {
        match usize::try_from(count).ok().and_then(|n| self.rest.split_at_checked(n)) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(Error::Truncated { what: what(), needed: count, available: self.rest.len() as u64 }),
        }
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        let bytes = self.take(4, || what.to_owned())?;
        Ok(u32::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        let bytes = self.take(8, || what.to_owned())?;
        Ok(u64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()))
    }

    /// A string whose bytes are not looked at.
    pub(super) fn raw_text(&mut self, what: impl Fn() -> String) -> Result<&'a [u8], Error> {
        let bytes = self.take(8, || format!("the length of {}", what()))?;
        let length = u64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default());
        self.take(length, what)
    }

    pub(super) fn text(&mut self, what: impl Fn() -> String) -> Result<&'a str, Error> {
        let bytes = self.raw_text(&what)?;
        std::str::from_utf8(bytes).map_err(|e| Error::BadUtf8 { what: what(), offset: e.valid_up_to() })
    }
}

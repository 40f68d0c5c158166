//! The crate's error type.

use crate::gguf::GgmlType;
use crate::safetensors::DType;
use std::path::{Path, PathBuf};

/// Why a file was refused, or could not be read or written.
///
/// Parsers work on bytes and know no file; [`Error::InFile`] adds the name. [`Error::root`] strips it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error inside a file.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted: `open`, `write`, `rename` …
        action: &'static str,
        /// The reason given.
        source: std::io::Error,
    },
    /// Another process is writing the same file.
    #[error("{}: another process is writing this file", path.display())]
    Busy {
        /// The file being written.
        path: PathBuf,
    },

    /// The bytes end before what they announce.
    #[error("{what} needs {needed} bytes but only {available} are there; the file is cut short")]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes it takes.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// A size or count exceeds the limit of this reader.
    #[error("{what} is {value}, more than the limit of {limit}")]
    TooLarge {
        /// Which size.
        what: &'static str,
        /// The size found.
        value: u64,
        /// The largest accepted.
        limit: u64,
    },
    /// A safetensors header does not begin with `{`.
    #[error("the header begins with byte {byte:#04x} instead of `{{`; this is no safetensors file")]
    InvalidStart {
        /// The byte found.
        byte: u8,
    },
    /// Text is not UTF-8.
    #[error("{what} is not UTF-8 (byte {offset})")]
    BadUtf8 {
        /// Which text.
        what: String,
        /// Position of the first bad byte within it.
        offset: usize,
    },
    /// Text is not JSON.
    #[error("{what} is not valid JSON: {message}")]
    BadJson {
        /// Which text.
        what: &'static str,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A JSON value has the wrong type or range.
    #[error("{field} is wrong: {message}")]
    BadField {
        /// The entry or field.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// Two entries have the same name.
    #[error("{key:?} appears twice")]
    DuplicateKey {
        /// The name.
        key: String,
    },
    /// An element type that safetensors does not define.
    #[error("tensor {tensor:?} has the unknown dtype {dtype:?}")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// The name of the type.
        dtype: String,
    },
    /// A product or sum of sizes overflows.
    #[error("the size of {what} with shape {shape:?} overflows")]
    Overflow {
        /// The tensor, or another thing with a size.
        what: String,
        /// Its shape or sizes.
        shape: Vec<u64>,
    },
    /// Sub-byte elements do not fill whole bytes.
    #[error("tensor {tensor:?} takes {bits} bits, not a whole number of bytes")]
    MisalignedBits {
        /// The tensor.
        tensor: String,
        /// Bits it takes.
        bits: u64,
    },
    /// The byte range of a tensor ends before it begins.
    #[error("tensor {tensor:?} ends at {end}, before it begins at {begin}")]
    ReversedOffsets {
        /// The tensor.
        tensor: String,
        /// First byte.
        begin: u64,
        /// Byte after the last.
        end: u64,
    },
    /// The byte range of a tensor contradicts its shape.
    #[error("tensor {tensor:?} has {found} bytes but its shape and type need {expected}")]
    SizeMismatch {
        /// The tensor.
        tensor: String,
        /// Bytes by shape and type.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// Bytes between two tensors belong to none.
    #[error("tensor {tensor:?} begins at {found} but the one before ends at {expected}")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Where it should begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// Two tensors share bytes.
    #[error("tensor {tensor:?} begins at {found}, inside the one before that ends at {expected}")]
    Overlap {
        /// The second tensor.
        tensor: String,
        /// Where it should begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// Bytes follow the last tensor.
    #[error("{extra} bytes follow the last tensor")]
    TrailingBytes {
        /// How many.
        extra: u64,
    },

    /// No tensor of this name exists.
    #[error("there is no tensor {name:?}")]
    NoSuchTensor {
        /// The name that was asked for.
        name: String,
    },
    /// Neither a checkpoint file nor a folder with one.
    #[error("{}: no safetensors or GGUF file here; expected model.safetensors, model.safetensors.index.json, or such a file", path.display())]
    NoCheckpoint {
        /// The path that was given.
        path: PathBuf,
    },
    /// A path inside an index leaves the folder.
    #[error("the index names the file {file:?}; only plain file names beside the index are accepted")]
    UnsafePath {
        /// The path found.
        file: String,
    },
    /// A shard that the index names does not exist.
    #[error("the index names the shard {shard:?}, which is not there")]
    MissingShard {
        /// The shard.
        shard: String,
    },
    /// The index places a tensor in a shard that lacks it.
    #[error("the index places tensor {tensor:?} in {shard:?}, which does not hold it")]
    ShardLacksTensor {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// Two shards hold the same tensor.
    #[error("tensor {tensor:?} is in {first:?} and in {second:?}")]
    TensorInTwoShards {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// The total size in an index is not that of the shards.
    #[error("the index says {declared} bytes in total but the shards hold {actual}")]
    TotalSize {
        /// `metadata.total_size`.
        declared: u64,
        /// Sum over all tensors.
        actual: u64,
    },

    /// A GGUF file does not begin with `GGUF`.
    #[error("the file begins with {found:02x?} instead of \"GGUF\"")]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A container of a version this crate does not read.
    #[error("{what} version {found} is not supported; this reader knows {known}")]
    UnsupportedVersion {
        /// Which container.
        what: &'static str,
        /// The version found.
        found: String,
        /// Versions that are read.
        known: &'static str,
    },
    /// A GGUF value of an undefined type, or an array of arrays.
    #[error("GGUF key {key:?} has values of type {id}, which is undefined or not allowed there")]
    BadValueType {
        /// The key.
        key: String,
        /// The type number.
        id: u32,
    },
    /// A GGUF key has a value of the wrong type or range.
    #[error("GGUF key {key:?} has an unusable value: {message}")]
    BadValue {
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A tensor of rank 0 or more than the container allows.
    #[error("tensor {tensor:?} has {rank} dimensions; 1 to {limit} are allowed")]
    BadRank {
        /// The tensor.
        tensor: String,
        /// Its rank.
        rank: u32,
        /// The highest rank.
        limit: u32,
    },
    /// A tensor without elements where none is allowed.
    #[error("tensor {tensor:?} of shape {shape:?} has a dimension of zero")]
    ZeroDimension {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor type that ggml does not define.
    #[error("tensor {tensor:?} has the unknown ggml type {id}")]
    UnknownGgmlType {
        /// The tensor.
        tensor: String,
        /// The type number.
        id: u32,
    },
    /// A ggml type that cannot be decoded here.
    #[error(
        "tensor {tensor:?} is {kind}, whose lattice tables are not part of this crate; convert it with another tool first"
    )]
    UndecodableType {
        /// The tensor.
        tensor: String,
        /// Its type.
        kind: GgmlType,
    },
    /// A row is not a whole number of blocks.
    #[error("tensor {tensor:?} has rows of {row} elements, not a multiple of the block of {block}")]
    RaggedBlocks {
        /// The tensor.
        tensor: String,
        /// Elements of a row.
        row: u64,
        /// Elements of a block.
        block: u64,
    },
    /// A tensor does not begin on the file's alignment.
    #[error("tensor {tensor:?} begins at {offset}, not a multiple of the alignment {alignment}")]
    MisalignedOffset {
        /// The tensor.
        tensor: String,
        /// Its offset.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },

    /// An element type that has no numeric reading here.
    #[error("tensor {tensor:?} has dtype {dtype}, which cannot be read as f32")]
    NotNumeric {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
    },
    /// A tensor is stored as parts that only the method can put together that made them.
    #[error("tensor {tensor:?} is stored in parts of the kind {kind:?}, which are not put together here")]
    Composed {
        /// The tensor.
        tensor: String,
        /// The kind.
        kind: String,
    },
    /// A section of a packed or composed tensor is absent.
    #[error("tensor {tensor:?} lacks its section {section:?}")]
    MissingSection {
        /// The tensor.
        tensor: String,
        /// Name of the section's tensor.
        section: String,
    },
    /// A section of a packed tensor has the wrong shape or type.
    #[error("{section:?} of packed tensor {tensor:?} is {found}, expected {expected}")]
    BadSection {
        /// The tensor.
        tensor: String,
        /// Name of the section's tensor.
        section: String,
        /// Type and shape that were expected.
        expected: String,
        /// Type and shape that were found.
        found: String,
    },
    /// The packed bytes, the format or the shape contradict each other, or a scale is reserved.
    #[error("tensor {tensor:?}: {source}")]
    Packed {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: quant_core::Error,
    },
    /// A layout that is known but not read.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// The tensor, field or layout.
        what: String,
        /// Why.
        reason: String,
    },
    /// No config group covers a compressed module.
    #[error("module {module:?} is stored compressed but no group of quantization_config covers it")]
    NoScheme {
        /// The module.
        module: String,
    },
    /// A pattern of a configuration does not parse.
    #[error("pattern {pattern:?} does not parse: {message}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// The parser's words.
        message: String,
    },
    /// The values of a format do not lie on a grid the target layout can store.
    #[error("tensor {tensor:?} in {format} cannot be stored losslessly as {target}: {reason}")]
    GridMismatch {
        /// The tensor.
        tensor: String,
        /// Its format.
        format: String,
        /// The layout that was asked for.
        target: &'static str,
        /// Why not.
        reason: &'static str,
    },

    /// A tensor was written that the plan does not contain, or twice.
    #[error("tensor {name:?} is not in the plan of this file or was written already")]
    NotPlanned {
        /// The tensor.
        name: String,
    },
    /// A file was finished before all planned tensors were written.
    #[error("tensor {name:?} was planned but never written ({missing} in all)")]
    Unwritten {
        /// The first of them.
        name: String,
        /// How many there are.
        missing: usize,
    },
}

impl Error {
    /// The error without the names of the files around it.
    #[must_use]
    pub fn root(&self) -> &Self {
        let mut error = self;
        while let Self::InFile { source, .. } = error {
            error = source;
        }
        error
    }

    /// The name of the variant of [`Error::root`], for logs and tables of expected errors.
    #[must_use]
    pub fn variant(&self) -> String {
        let text = format!("{:?}", self.root());
        text.chars().take_while(char::is_ascii_alphanumeric).collect()
    }

    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            // These name their path already.
            Self::InFile { .. } | Self::Io { .. } | Self::Busy { .. } | Self::NoCheckpoint { .. } => self,
            other => Self::InFile { path: path.to_owned(), source: Box::new(other) },
        }
    }

    pub(crate) fn packed(tensor: &str) -> impl FnOnce(quant_core::Error) -> Self {
        let tensor = shorten(tensor);
        move |source| Self::Packed { tensor, source }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }
}

/// At most 32 dimensions of a shape from a file: a hostile rank may be as long as the file.
pub(crate) fn shorten_shape<T: Copy>(shape: &[T]) -> Vec<T> {
    shape.iter().take(32).copied().collect()
}

/// At most 200 characters of a name from a file: hostile names may be as long as the file.
pub(crate) fn shorten(name: &str) -> String {
    name.chars().take(200).collect()
}

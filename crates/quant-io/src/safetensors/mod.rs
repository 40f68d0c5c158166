//! The safetensors container: read by memory mapping, written as a stream.
//!
//! Bytes `0..8` hold the header length `N` (little-endian u64), bytes `8..8+N` a JSON object that maps
//! each tensor name to `{"dtype", "shape", "data_offsets": [begin, end)}` relative to byte `8+N`, where
//! the tensors lie without holes, overlaps or trailing bytes. `__metadata__` maps strings to strings.
//!
//! The parser is our own rather than the `safetensors` crate's: we promise one typed error per defect
//! that names the tensor, duplicate names must be refused (a map keeps the last silently), and the
//! writer needs the plan of a file, before any byte of it exists, to stream tensors in any order.

mod dtype;
mod header;
mod read;
mod write;

pub use dtype::DType;
pub use header::{HEADER_LIMIT, Header, TensorInfo};
pub use read::{SafetensorsFile, TensorBytes};
pub use write::{FilePlan, SafetensorsWriter, TensorSpec, serialize};

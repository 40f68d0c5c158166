//! GGUF files, versions 2 and 3: metadata, tensors, and the decoding of ggml's block types.

mod blocks;
mod decode;
mod file;
mod names;
mod value;

pub use blocks::GgmlType;
pub use decode::dequantize;
pub use file::{GgufFile, GgufTensor};
pub use names::{HfName, Permuted, hf_name, unpermute_rows};
pub use value::{GgufArray, GgufValue};

//! Single files: tensors to formats, and back to floats.

mod dequantize;
mod quantize;

pub use dequantize::{DequantizeOptions, DequantizeReport, DequantizedTensor, FloatType, dequantize};
pub use quantize::{QuantizeOptions, QuantizeReport, quantize};

use crate::{Error, NamePattern};
use quant_io::Checkpoint;
use std::path::Path;

/// Refuses an output that exists, unless it may be replaced.
fn check_output(output: &Path, overwrite: bool) -> Result<(), Error> {
    if output.exists() && !overwrite { Err(Error::Exists { path: output.to_owned() }) } else { Ok(()) }
}

/// Refuses patterns that match nothing: they are probably misspelt.
pub(crate) fn check_patterns(checkpoint: &Checkpoint, patterns: &[NamePattern]) -> Result<(), Error> {
    let unmatched = patterns.iter().find(|pattern| !checkpoint.entries().iter().any(|e| pattern.matches(&e.name)));
    unmatched.map_or(Ok(()), |pattern| {
        Err(Error::NoMatch { file: checkpoint.path().to_owned(), pattern: pattern.to_string() })
    })
}

//! Where a decoder takes its weights from.

mod folder;

pub use folder::HfFolder;

use crate::Error;
use quant_core::Linear;
use std::sync::Arc;

/// A set of named weights: a folder, a compressed folder, or something made up by a test.
///
/// A decoder asks for one tensor at a time and keeps nothing of the source.
pub trait WeightSource {
    /// What errors call the source, such as its path.
    fn origin(&self) -> String;

    /// The shape of a tensor stored as plain numbers, without reading it; `None` when there is none of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The values of such a tensor, row-major.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error>;

    /// The compressed weight of a linear, named as its slot (without `.weight`); `None` when it is not compressed.
    ///
    /// # Errors
    ///
    /// When it is compressed but cannot be read.
    fn linear(&self, name: &str) -> Result<Option<Arc<dyn Linear>>, Error>;
}

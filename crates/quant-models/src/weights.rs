//! Where a decoder takes its weights from.

use crate::Error;
use quant_core::Linear;
use quant_io::{Checkpoint, Stored};
use std::sync::Arc;

/// A set of named weights: a folder, compressed or not, or something made up by a test.
///
/// A decoder asks for one tensor at a time and keeps nothing of the source. [`Checkpoint`] is one, so
/// everything that `quant-io` reads can be run: plain folders, packed ones, compressed-tensors.
pub trait WeightSource {
    /// What errors call the source, such as its path.
    fn origin(&self) -> String;

    /// The shape of a tensor, without reading it; `None` when there is none of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The values of a tensor, row-major, decoded if it is compressed.
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

impl WeightSource for Checkpoint {
    fn origin(&self) -> String {
        self.path().display().to_string()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.entry(name).map(|entry| entry.shape.clone())
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        Ok(self.read_f32(name)?)
    }

    fn linear(&self, name: &str) -> Result<Option<Arc<dyn Linear>>, Error> {
        let packed = |name: &&str| matches!(self.entry(name).map(|entry| entry.stored), Some(Stored::Packed(_)));
        // RWKV's low-rank pairs have no `.weight` at their end.
        let weight = format!("{name}.weight");
        let Some(name) = [weight.as_str(), name].into_iter().find(packed) else {
            return Ok(None);
        };
        let packed = self.packed(name)?;
        Ok(packed.map(|packed| Arc::new(packed.into_owned()) as Arc<dyn Linear>))
    }
}

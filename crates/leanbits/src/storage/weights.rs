//! The weights of a folder, whatever method made them.

use super::Compressed;
use crate::Error;
use crate::models::{Error as ModelError, WeightSource};
use quant_core::Linear;
use quant_io::{Checkpoint, Stored};
use std::path::Path;
use std::sync::Arc;

/// A checkpoint whose tensors may be plain, packed, or stored in parts: low-rank pairs, corrected weights, codes of vectors.
///
/// It is what a [`Decoder`](crate::models::Decoder) needs to run a folder that [`compress`](crate::compress()) made.
///
/// ```
/// use leanbits::Weights;
/// use leanbits::models::{Apply, Config, Decoder};
///
/// let folder = std::path::Path::new("../../models/tiny-llama"); // or a compressed one
/// let weights = Weights::open(folder)?;
/// let model = Decoder::from_source(Config::from_folder(folder)?, &weights, Apply::Decoded)?;
/// # assert!(model.slots().count() > 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Weights {
    checkpoint: Checkpoint,
}

impl Weights {
    /// Opens a file or folder.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self { checkpoint: Checkpoint::open(path)? })
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The values of a tensor, row-major.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] as [`Checkpoint::read_f32`], [`Error::Composed`] for parts that do not make up a tensor.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        read_f32(&self.checkpoint, name)
    }

    /// The compressed weight of this name; `None` for tensors that are not compressed, and for compressed ones of other tools that
    /// are not packed.
    ///
    /// # Errors
    ///
    /// As [`Weights::read_f32`].
    pub fn linear(&self, name: &str) -> Result<Option<Arc<dyn Linear>>, Error> {
        Ok(Compressed::read(&self.checkpoint, name)?.map(Arc::from))
    }
}

/// The values of a tensor, however it is stored.
pub(crate) fn read_f32(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, Error> {
    match checkpoint.entry(name).map(|entry| entry.stored) {
        Some(Stored::Composed) => {
            let decoded = match Compressed::read(checkpoint, name)? {
                Some(compressed) => compressed.to_dense(),
                None => Ok(Vec::new()),
            };
            decoded.map_err(|source| Error::Tensor {
                file: checkpoint.path().to_owned(),
                tensor: name.to_owned(),
                source: Box::new(source),
            })
        }
        _ => Ok(checkpoint.read_f32(name)?),
    }
}

impl WeightSource for Weights {
    fn origin(&self) -> String {
        WeightSource::origin(&self.checkpoint)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        WeightSource::shape(&self.checkpoint, name)
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.read_f32(name).map_err(into_model_error)
    }

    fn linear(&self, name: &str) -> Result<Option<Arc<dyn Linear>>, ModelError> {
        let stored = |name: &&str| {
            let stored = self.checkpoint.entry(name).map(|entry| entry.stored);
            matches!(stored, Some(Stored::Packed(_) | Stored::Composed))
        };
        // RWKV's low-rank pairs have no `.weight` at their end.
        let weight = format!("{name}.weight");
        match [weight.as_str(), name].into_iter().find(stored) {
            Some(name) => Self::linear(self, name).map_err(into_model_error),
            None => Ok(None),
        }
    }
}

/// Reading fails in files; whatever else went wrong is told by name.
pub(crate) fn into_model_error(error: Error) -> ModelError {
    match error {
        Error::Io(error) => ModelError::Weights(error),
        Error::Model(error) => error,
        other => ModelError::Source { source: Box::new(other) },
    }
}

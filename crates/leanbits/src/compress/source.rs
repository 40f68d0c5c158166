//! The model that is compressed: what its folder holds, in the basis that the recipe asks for.

use super::rotate::Basis;
use crate::models::{Config, Error as ModelError, WeightSource};
use crate::plan::PlannedTensor;
use crate::storage::{Section, into_model_error};
use crate::{Error, FloatType};
use quant_core::Linear;
use quant_io::{Checkpoint, Entry, Stored};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Name of the tensor of an output head.
pub(super) const HEAD: &str = "lm_head.weight";
/// Name of the tensor of the embedding, and of a head that is tied to it.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// A checkpoint and the change of basis that is applied to what is read from it.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    checkpoint: &'a Checkpoint,
    basis: Option<Basis>,
    /// The tensors of the output: those of the checkpoint, and the head if it is tied no more.
    entries: Vec<Entry>,
}

impl<'a> Source<'a> {
    /// The checkpoint as it is.
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, basis: None, entries: checkpoint.entries().to_vec() }
    }

    /// The checkpoint in another basis. A head that is tied to the embedding becomes a tensor of its own, because norm and
    /// rotation are folded into it but not into the embedding.
    pub(crate) fn rotated(checkpoint: &'a Checkpoint, basis: Basis, config: &Config) -> Self {
        let mut source = Self { basis: Some(basis), ..Self::new(checkpoint) };
        if config.tied_head
            && checkpoint.entry(HEAD).is_none()
            && let Some(embedding) = checkpoint.entry(EMBEDDING)
        {
            let mut head = embedding.clone();
            // Nothing of it was stored before.
            (head.name, head.bytes) = (HEAD.to_owned(), 0);
            source.entries.push(head);
        }
        source
    }

    pub(crate) fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The folder that is read.
    pub(crate) fn path(&self) -> &'a Path {
        self.checkpoint.path()
    }

    /// The tensors of the output.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether the head was tied to the embedding and is not any more.
    pub(crate) fn unties_head(&self) -> bool {
        self.entries.len() > self.checkpoint.entries().len()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The values of a tensor, in the new basis.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>, Error> {
        let stored = if name == HEAD && self.unties_head() { EMBEDDING } else { name };
        let mut values = self.checkpoint.read_f32(stored)?;
        if let Some(basis) = &self.basis {
            let shape = self.shape(name).unwrap_or_default();
            basis.apply(name, &shape, &mut values, &|norm| Ok(self.checkpoint.read_f32(norm)?))?;
        }
        Ok(values)
    }

    /// Whether a tensor gets other values in the new basis.
    pub(crate) fn changes(&self, name: &str) -> bool {
        self.basis.as_ref().is_some_and(|basis| basis.changes(name))
    }

    /// The sections of a tensor that is not quantized.
    pub(crate) fn kept(&self, name: &str) -> Result<Vec<Section<'_>>, Error> {
        if self.changes(name) { self.rewritten(name, &self.read(name)?) } else { Section::kept(self.checkpoint, name) }
    }

    /// The section of a tensor that gets other values, in the type it is stored in.
    pub(crate) fn rewritten(&self, name: &str, values: &[f32]) -> Result<Vec<Section<'static>>, Error> {
        let bytes = self.bytes(name, values)?;
        Ok(vec![Section { name: name.to_owned(), bytes: Cow::Owned(bytes) }])
    }

    /// Rounds values to the type that a tensor is stored in: what is computed with is what is written.
    pub(crate) fn round(&self, name: &str, values: &mut [f32]) -> Result<(), Error> {
        let bytes = self.bytes(name, values)?;
        match bytes.len() / values.len().max(1) {
            4 => {}
            _ if self.float_type(name) == Some(FloatType::F16) => {
                let rounded = bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
                values.iter_mut().zip(rounded).for_each(|(value, rounded)| *value = rounded);
            }
            _ => {
                let rounded = bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
                values.iter_mut().zip(rounded).for_each(|(value, rounded)| *value = rounded);
            }
        }
        Ok(())
    }

    fn float_type(&self, name: &str) -> Option<FloatType> {
        match self.entry(name)?.stored {
            Stored::Plain(dtype) => FloatType::of(dtype),
            _ => None,
        }
    }

    fn bytes(&self, name: &str, values: &[f32]) -> Result<Vec<u8>, Error> {
        let (file, tensor) = (self.path().to_owned(), name.to_owned());
        let Some(float) = self.float_type(name) else {
            return Err(Error::CannotRewrite { file, tensor });
        };
        float.bytes(values).map_err(|index| Error::OutOfRange {
            file,
            tensor,
            index,
            value: values.get(index).copied().unwrap_or(f32::NAN),
            dtype: float.dtype().name(),
        })
    }
}

impl WeightSource for Source<'_> {
    fn origin(&self) -> String {
        self.path().display().to_string()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.entry(name).map(|entry| entry.shape.clone())
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.read(name).map_err(into_model_error)
    }

    fn linear(&self, _name: &str) -> Result<Option<Arc<dyn Linear>>, ModelError> {
        Ok(None)
    }
}

/// The tensors of one layer, while it is changed.
#[derive(Debug)]
pub(super) struct Working<'a> {
    source: &'a Source<'a>,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
struct Tensor {
    values: Vec<f32>,
    /// Whether the values are no longer those of the source.
    changed: bool,
}

impl<'a> Working<'a> {
    /// Reads some tensors of a model.
    pub(super) fn read<'n>(
        source: &'a Source<'a>,
        planned: impl Iterator<Item = &'n PlannedTensor>,
    ) -> Result<Self, Error> {
        let mut tensors = BTreeMap::new();
        for planned in planned {
            let mut values = source.read(&planned.name)?;
            let changed = source.changes(&planned.name);
            if changed && planned.is_kept() {
                source.round(&planned.name, &mut values)?;
            }
            tensors.insert(planned.name.clone(), Tensor { values, changed });
        }
        Ok(Self { source, tensors })
    }

    /// The values of a tensor.
    pub(super) fn values(&self, name: &str) -> Option<&[f32]> {
        self.tensors.get(name).map(|tensor| tensor.values.as_slice())
    }

    /// The values of a tensor, to be changed.
    pub(super) fn change(&mut self, name: &str) -> Option<&mut Vec<f32>> {
        let tensor = self.tensors.get_mut(name)?;
        tensor.changed = true;
        Some(&mut tensor.values)
    }

    /// Rounds a tensor to the type it is stored in.
    pub(super) fn round(&mut self, name: &str) -> Result<(), Error> {
        match self.tensors.get_mut(name) {
            Some(tensor) => self.source.round(name, &mut tensor.values),
            None => Ok(()),
        }
    }

    /// The sections of a tensor that is not quantized.
    pub(super) fn kept(&self, name: &str) -> Result<Vec<Section<'_>>, Error> {
        match self.tensors.get(name) {
            Some(tensor) if tensor.changed => Ok(self.source.rewritten(name, &tensor.values)?),
            _ => self.source.kept(name),
        }
    }
}

impl WeightSource for Working<'_> {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        match self.values(name) {
            Some(values) => Ok(values.to_vec()),
            None => self.source.tensor(name),
        }
    }

    fn linear(&self, _name: &str) -> Result<Option<Arc<dyn Linear>>, ModelError> {
        Ok(None)
    }
}

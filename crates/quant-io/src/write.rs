//! Writing checkpoints: plain and packed tensors, one at a time, to a file or a folder.

use crate::hf::{ShardOptions, ShardPlan, ShardWriter};
use crate::packed;
use crate::safetensors::{DType, TensorSpec};
use crate::{Error, error::shorten};
use quant_core::{Format, PackedTensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A tensor that a checkpoint will hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it will be stored.
    pub stored: PlannedStorage,
}

/// How a tensor will be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlannedStorage {
    /// Element by element.
    Plain(DType),
    /// Packed in this format, in this project's container.
    Packed(Format),
}

impl PlannedTensor {
    /// A tensor stored element by element.
    #[must_use]
    pub fn plain(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), stored: PlannedStorage::Plain(dtype) }
    }

    /// A packed tensor.
    #[must_use]
    pub fn packed(name: impl Into<String>, format: Format, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), stored: PlannedStorage::Packed(format) }
    }
}

/// Files, positions and exact sizes of a checkpoint to be written.
#[derive(Clone, Debug)]
pub struct CheckpointPlan {
    tensors: BTreeMap<String, PlannedTensor>,
    shards: ShardPlan,
    options: ShardOptions,
}

impl CheckpointPlan {
    /// Plans a checkpoint of plain and packed tensors ([`crate::packed`]), in this order over shards.
    ///
    /// `metadata` goes into every file; `format = "pt"` makes PyTorch loaders accept it.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateKey`] when two tensors (or a tensor and a section) have one name, and the
    /// errors of [`packed::specs`] and [`ShardPlan::new`].
    pub fn new(
        tensors: &[PlannedTensor],
        metadata: &BTreeMap<String, String>,
        options: ShardOptions,
    ) -> Result<Self, Error> {
        let mut groups = Vec::with_capacity(tensors.len());
        let mut by_name = BTreeMap::new();
        for tensor in tensors {
            if by_name.insert(tensor.name.clone(), tensor.clone()).is_some() {
                return Err(Error::DuplicateKey { key: shorten(&tensor.name) });
            }
            groups.push(match tensor.stored {
                PlannedStorage::Plain(dtype) => {
                    (vec![TensorSpec::new(&tensor.name, dtype, &tensor.shape)], BTreeMap::new())
                }
                PlannedStorage::Packed(format) => {
                    let specs = packed::specs(&tensor.name, format, &tensor.shape)?;
                    (specs, packed::metadata([(tensor.name.as_str(), format, tensor.shape.as_slice())]))
                }
            });
        }
        let sections: BTreeSet<&str> = groups.iter().flat_map(|(specs, _)| specs).map(|s| s.name.as_str()).collect();
        let is_packed = |t: &&PlannedTensor| matches!(t.stored, PlannedStorage::Packed(_));
        if let Some(tensor) = tensors.iter().filter(is_packed).find(|t| sections.contains(t.name.as_str())) {
            return Err(Error::DuplicateKey { key: shorten(&tensor.name) });
        }
        let shards = ShardPlan::new(&groups, metadata, options)?;
        Ok(Self { tensors: by_name, shards, options })
    }

    /// The files and the distribution of tensors over them.
    #[must_use]
    pub fn shards(&self) -> &ShardPlan {
        &self.shards
    }

    /// Exact bytes of all files, the index included.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.shards.total_bytes()
    }
}

/// Writes a planned checkpoint one tensor at a time, in any order; order of the plan keeps one shard open.
///
/// ```
/// use quant_core::{Format, PackedTensor, Shaped};
/// use quant_io::{Checkpoint, CheckpointPlan, CheckpointWriter, PlannedTensor};
///
/// let folder = std::env::temp_dir().join(format!("quant-io-write-{}", std::process::id()));
/// let weight = PackedTensor::encode(Format::MXFP4, &Shaped::new(&[0.5_f32; 64], &[2, 32])?)?;
/// let planned = [PlannedTensor::packed("w", weight.format(), weight.shape())];
/// let plan = CheckpointPlan::new(&planned, &Default::default(), Default::default())?;
/// println!("{} bytes will be written", plan.total_bytes());
/// let mut writer = CheckpointWriter::create(&folder, plan)?;
/// writer.write_packed("w", &weight)?;
/// writer.finish()?;
///
/// let model = Checkpoint::open(&folder)?;
/// assert_eq!(model.packed("w")?, Some(weight));
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CheckpointWriter {
    tensors: BTreeMap<String, PlannedTensor>,
    shards: ShardWriter,
}

impl CheckpointWriter {
    /// Prepares to write into a folder, or to one file when the target ends in `.safetensors`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Unsupported`] when the plan has several shards but the target is a file.
    pub fn create(target: impl AsRef<Path>, plan: CheckpointPlan) -> Result<Self, Error> {
        let CheckpointPlan { tensors, shards, options } = plan;
        let target = target.as_ref();
        let shards = if target.extension().is_some_and(|e| e == "safetensors") && !target.is_dir() {
            ShardWriter::create_file(target, shards)?
        } else {
            ShardWriter::create(target, shards, options)?
        };
        Ok(Self { tensors, shards })
    }

    /// Whether a tensor is still to be written; false once its shard is complete.
    #[must_use]
    pub fn needs(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|tensor| match tensor.stored {
            PlannedStorage::Plain(_) => self.shards.needs(name),
            PlannedStorage::Packed(_) => self.shards.needs(&format!("{name}.codes")),
        })
    }

    /// Writes a plain tensor's little-endian elements.
    ///
    /// # Errors
    ///
    /// [`Error::NotPlanned`], [`Error::SizeMismatch`], [`Error::Io`].
    pub fn write_plain(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        match self.tensors.get(name) {
            Some(PlannedTensor { stored: PlannedStorage::Plain(_), .. }) => self.shards.write(name, bytes),
            _ => Err(Error::NotPlanned { name: shorten(name) }),
        }
    }

    /// Writes a packed tensor.
    ///
    /// # Errors
    ///
    /// [`Error::NotPlanned`] unless a packed tensor of this name, format and shape was planned;
    /// [`Error::Io`].
    pub fn write_packed(&mut self, name: &str, tensor: &PackedTensor<'_>) -> Result<(), Error> {
        let planned = self.tensors.get(name);
        if planned.is_none_or(|p| p.stored != PlannedStorage::Packed(tensor.format()) || p.shape != tensor.shape()) {
            return Err(Error::NotPlanned { name: shorten(name) });
        }
        for (section, bytes) in packed::sections(name, tensor) {
            self.shards.write(&section, &bytes)?;
        }
        Ok(())
    }

    /// Completes the checkpoint: the last shards and the index appear.
    ///
    /// # Errors
    ///
    /// [`Error::Unwritten`] when a planned tensor is missing, [`Error::Io`].
    pub fn finish(self) -> Result<(), Error> {
        self.shards.finish()
    }

    /// Gives up: removes unfinished files and the shards this writer completed. Dropping the writer
    /// instead keeps completed shards for a later run with [`ShardOptions::keep_finished`].
    pub fn discard(self) {
        self.shards.discard();
    }
}

//! Writing checkpoints: plain and packed tensors, one at a time, to a file or a folder.

use crate::compressed_tensors::{self, ModuleSpec, WriteOptions, module_tensors};
use crate::hf::{ShardOptions, ShardPlan, ShardWriter};
use crate::packed;
use crate::safetensors::{DType, TensorSpec};
use crate::{Error, error::shorten};
use quant_core::{Format, PackedTensor};
use serde_json::Value;
use std::collections::BTreeMap;
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
    /// Packed in this format.
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
    layout: PackedLayout,
    quantization: Option<Value>,
}

/// How packed tensors become tensors of the file.
#[derive(Clone, Copy, Debug)]
enum PackedLayout {
    Leanbits,
    CompressedTensors(WriteOptions),
}

type Groups = Vec<(Vec<TensorSpec>, BTreeMap<String, String>)>;

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
        let mut groups = Groups::with_capacity(tensors.len());
        for tensor in tensors {
            groups.push(match tensor.stored {
                PlannedStorage::Plain(dtype) => (vec![plain_spec(tensor, dtype)], BTreeMap::new()),
                PlannedStorage::Packed(format) => {
                    let specs = packed::specs(&tensor.name, format, &tensor.shape)?;
                    (specs, packed::metadata([(tensor.name.as_str(), format, tensor.shape.as_slice())]))
                }
            });
        }
        Self::of_groups(tensors, groups, metadata, options, PackedLayout::Leanbits, None)
    }

    /// Plans a checkpoint whose packed tensors are stored as compressed-tensors does
    /// ([`crate::compressed_tensors`]); [`CheckpointPlan::quantization_config`] then belongs into config.json.
    ///
    /// Packed tensors must be called `MODULE.weight`. Plain matrices of that name are listed as left alone.
    ///
    /// # Errors
    ///
    /// As [`CheckpointPlan::new`]; [`Error::GridMismatch`] for a format the layout cannot hold or a packed
    /// tensor of another name, [`Error::RaggedBlocks`].
    pub fn compressed_tensors(
        tensors: &[PlannedTensor],
        metadata: &BTreeMap<String, String>,
        options: ShardOptions,
        write: WriteOptions,
    ) -> Result<Self, Error> {
        let (mut modules, mut left_alone) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let module = tensor.name.strip_suffix(".weight");
            match (tensor.stored, module) {
                (PlannedStorage::Packed(format), Some(name)) => {
                    modules.push(ModuleSpec { name, format, shape: &tensor.shape });
                }
                (PlannedStorage::Packed(format), None) => {
                    return Err(Error::GridMismatch {
                        tensor: shorten(&tensor.name),
                        format: format.to_string(),
                        target: "compressed-tensors",
                        reason: "only tensors called MODULE.weight can be compressed",
                    });
                }
                (PlannedStorage::Plain(_), Some(name)) if tensor.shape.len() == 2 => left_alone.push(name),
                (PlannedStorage::Plain(_), _) => {}
            }
        }
        let plan = compressed_tensors::Plan::new(&modules, &left_alone, write)?;
        let mut specs = plan.tensors().iter();
        let mut groups = Groups::with_capacity(tensors.len());
        for tensor in tensors {
            let specs = match tensor.stored {
                PlannedStorage::Plain(dtype) => vec![plain_spec(tensor, dtype)],
                PlannedStorage::Packed(_) => specs.next().cloned().unwrap_or_default(),
            };
            groups.push((specs, BTreeMap::new()));
        }
        let quantization = Some(plan.quantization_config().clone());
        Self::of_groups(tensors, groups, metadata, options, PackedLayout::CompressedTensors(write), quantization)
    }

    fn of_groups(
        tensors: &[PlannedTensor],
        groups: Groups,
        metadata: &BTreeMap<String, String>,
        options: ShardOptions,
        layout: PackedLayout,
        quantization: Option<Value>,
    ) -> Result<Self, Error> {
        let mut by_name = BTreeMap::new();
        for tensor in tensors {
            if by_name.insert(tensor.name.clone(), tensor.clone()).is_some() {
                return Err(Error::DuplicateKey { key: shorten(&tensor.name) });
            }
        }
        // A packed tensor's own name may be that of a section of itself only.
        let mut sections: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, (specs, _)) in tensors.iter().zip(&groups) {
            sections.extend(specs.iter().map(|spec| (spec.name.as_str(), tensor.name.as_str())));
        }
        for tensor in tensors.iter().filter(|t| matches!(t.stored, PlannedStorage::Packed(_))) {
            if sections.get(tensor.name.as_str()).is_some_and(|owner| *owner != tensor.name) {
                return Err(Error::DuplicateKey { key: shorten(&tensor.name) });
            }
        }
        let shards = ShardPlan::new(&groups, metadata, options)?;
        Ok(Self { tensors: by_name, shards, options, layout, quantization })
    }

    /// What config.json must say under `quantization_config`; `None` for this project's own layout.
    #[must_use]
    pub fn quantization_config(&self) -> Option<&Value> {
        self.quantization.as_ref()
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

fn plain_spec(tensor: &PlannedTensor, dtype: DType) -> TensorSpec {
    TensorSpec::new(&tensor.name, dtype, &tensor.shape)
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
    layout: PackedLayout,
    shards: ShardWriter,
}

impl CheckpointWriter {
    /// Prepares to write into a folder, or to one file when the target ends in `.safetensors`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Unsupported`] when the plan has several shards but the target is a file.
    pub fn create(target: impl AsRef<Path>, plan: CheckpointPlan) -> Result<Self, Error> {
        let CheckpointPlan { tensors, shards, options, layout, .. } = plan;
        let target = target.as_ref();
        let shards = if target.extension().is_some_and(|e| e == "safetensors") && !target.is_dir() {
            ShardWriter::create_file(target, shards)?
        } else {
            ShardWriter::create(target, shards, options)?
        };
        Ok(Self { tensors, layout, shards })
    }

    /// Whether a tensor is still to be written; false once its shard is complete.
    #[must_use]
    pub fn needs(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|tensor| match tensor.stored {
            PlannedStorage::Plain(_) => self.shards.needs(name),
            PlannedStorage::Packed(_) => match self.layout {
                PackedLayout::Leanbits => self.shards.needs(&format!("{name}.codes")),
                PackedLayout::CompressedTensors(_) => self.shards.needs(&format!("{name}_scale")),
            },
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
    /// [`Error::GridMismatch`] when compressed-tensors cannot hold its tensor scale exactly; [`Error::Io`].
    pub fn write_packed(&mut self, name: &str, tensor: &PackedTensor<'_>) -> Result<(), Error> {
        let planned = self.tensors.get(name);
        if planned.is_none_or(|p| p.stored != PlannedStorage::Packed(tensor.format()) || p.shape != tensor.shape()) {
            return Err(Error::NotPlanned { name: shorten(name) });
        }
        match self.layout {
            PackedLayout::Leanbits => {
                for (section, bytes) in packed::sections(name, tensor) {
                    self.shards.write(&section, &bytes)?;
                }
            }
            PackedLayout::CompressedTensors(options) => {
                let module = name.strip_suffix(".weight").unwrap_or(name);
                for section in module_tensors(module, tensor, options)? {
                    self.shards.write(&section.spec.name, &section.bytes)?;
                }
            }
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

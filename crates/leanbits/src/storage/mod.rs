//! How compressed tensors become tensors of safetensors files, for either layout.

mod compressed;
mod form;
mod weights;

pub use compressed::ComposedError;
pub(crate) use compressed::Compressed;
pub(crate) use form::{Form, RotationForm, VectorForm, as_matrix};
pub use weights::Weights;
pub(crate) use weights::{into_model_error, read_f32};

use crate::Error;
use crate::plan::stored_name;
use quant_core::Format;
use quant_io::compressed_tensors::{self, ModuleSpec, WriteOptions};
use quant_io::safetensors::TensorSpec;
use quant_io::{Checkpoint, Entry, Stored};
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// How packed tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StorageLayout {
    /// The project's own: every format, nothing stored that is not needed.
    #[default]
    Leanbits,
    /// What vLLM and transformers load; the formats that it knows.
    CompressedTensors,
}

impl fmt::Display for StorageLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leanbits => "leanbits",
            Self::CompressedTensors => "compressed-tensors",
        })
    }
}

impl StorageLayout {
    /// The format to encode in so that this layout holds it; refuses formats that it has no room for.
    pub(crate) fn native_format(self, tensor: &str, format: Format) -> Result<Format, Error> {
        match self {
            Self::Leanbits => Ok(format),
            Self::CompressedTensors => compressed_tensors::native_format(format).ok_or_else(|| Error::Layout {
                tensor: tensor.to_owned(),
                layout: self,
                reason: format!("it has no place for {format}"),
            }),
        }
    }

    /// Name shared by tensors whose scales are made for the largest magnitude of them all.
    pub(crate) fn shared_scale(self, tensor: &str, format: Format) -> Option<String> {
        match self {
            Self::Leanbits => None,
            Self::CompressedTensors => compressed_tensors::shared_scale_key(tensor.strip_suffix(WEIGHT)?, format),
        }
    }
}

const WEIGHT: &str = ".weight";

/// The module that a weight belongs to.
fn module(tensor: &str) -> Result<&str, Error> {
    tensor.strip_suffix(WEIGHT).ok_or_else(|| Error::Layout {
        tensor: tensor.to_owned(),
        layout: StorageLayout::CompressedTensors,
        reason: "it stores weights of modules, whose names end in .weight".to_owned(),
    })
}

/// The `quantization_config` of a compressed-tensors folder. `compressed` has name, format and shape of the weights that are
/// compressed, `left_alone` the names of the other matrices.
pub(crate) fn compressed_tensors_config(
    compressed: &[(&str, Format, &[usize])],
    left_alone: &[&str],
) -> Result<Value, Error> {
    let spec = |&(name, format, shape): &(_, Format, _)| Ok(ModuleSpec { name: module(name)?, format, shape });
    let modules: Vec<ModuleSpec<'_>> = compressed.iter().map(spec).collect::<Result<_, Error>>()?;
    let left_alone: Vec<&str> = left_alone.iter().filter_map(|name| name.strip_suffix(WEIGHT)).collect();
    let plan = compressed_tensors::Plan::new(&modules, &left_alone, WriteOptions::default())?;
    Ok(plan.quantization_config().clone())
}

/// The tensors of a file that one tensor of a model becomes, before its values are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sections {
    pub(crate) specs: Vec<TensorSpec>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Sections {
    /// A tensor that stays as it is.
    pub(crate) fn kept(checkpoint: &Checkpoint, entry: &Entry) -> Result<Self, Error> {
        match entry.stored {
            Stored::Plain(dtype) => {
                let spec = TensorSpec::new(entry.name.clone(), dtype, &entry.shape);
                Ok(Self { specs: vec![spec], metadata: BTreeMap::new() })
            }
            Stored::Packed(format) => {
                Self::new(checkpoint.path(), entry, &Form::Packed(format), StorageLayout::Leanbits)
            }
            Stored::Composed => {
                let form = checkpoint.composed(&entry.name)?.and_then(|composed| Form::of(&composed));
                let unknown = || Error::AlreadyQuantized {
                    file: checkpoint.path().to_owned(),
                    tensor: entry.name.clone(),
                    stored: stored_name(&entry.stored),
                };
                Self::new(checkpoint.path(), entry, &form.ok_or_else(unknown)?, StorageLayout::Leanbits)
            }
            // Blocks of other containers have no place in a safetensors file.
            _ => Err(Error::AlreadyQuantized {
                file: checkpoint.path().to_owned(),
                tensor: entry.name.clone(),
                stored: stored_name(&entry.stored),
            }),
        }
    }

    /// A tensor that is stored in this form; `file` is for messages.
    pub(crate) fn new(file: &Path, entry: &Entry, form: &Form, layout: StorageLayout) -> Result<Self, Error> {
        match (layout, form) {
            (StorageLayout::Leanbits, form) => form.sections(file, &entry.name, &entry.shape),
            (StorageLayout::CompressedTensors, Form::Packed(format)) => {
                let spec = ModuleSpec { name: module(&entry.name)?, format: *format, shape: &entry.shape };
                let plan = compressed_tensors::Plan::new(&[spec], &[], WriteOptions::default())?;
                Ok(Self { specs: plan.tensors().concat(), metadata: BTreeMap::new() })
            }
            (StorageLayout::CompressedTensors, form) => {
                Err(Error::Layout { tensor: entry.name.clone(), layout, reason: format!("it has no place for {form}") })
            }
        }
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> Result<u64, Error> {
        let mut sum = 0;
        for spec in &self.specs {
            sum += spec.bytes()?;
        }
        Ok(sum)
    }
}

/// One tensor of a file: name and bytes.
#[derive(Clone, Debug)]
pub(crate) struct Section<'a> {
    pub(crate) name: String,
    pub(crate) bytes: Cow<'a, [u8]>,
}

impl<'a> Section<'a> {
    /// The sections of a tensor that stays as it is.
    pub(crate) fn kept(checkpoint: &'a Checkpoint, name: &str) -> Result<Vec<Self>, Error> {
        if let Some(plain) = checkpoint.plain(name)? {
            return Ok(vec![Self { name: name.to_owned(), bytes: plain.bytes }]);
        }
        match Compressed::read(checkpoint, name)? {
            Some(compressed) => Self::compressed(name, &compressed, StorageLayout::Leanbits),
            None => Ok(Vec::new()),
        }
    }

    /// The sections of a compressed tensor.
    pub(crate) fn compressed(name: &str, tensor: &Compressed, layout: StorageLayout) -> Result<Vec<Self>, Error> {
        match (layout, tensor) {
            (StorageLayout::Leanbits, tensor) => Ok(tensor.sections(name)),
            (StorageLayout::CompressedTensors, Compressed::Packed(packed)) => {
                let tensors = compressed_tensors::module_tensors(module(name)?, packed, WriteOptions::default())?;
                let owned = |t: compressed_tensors::NamedTensor<'_>| Self {
                    name: t.spec.name,
                    bytes: t.bytes.into_owned().into(),
                };
                Ok(tensors.into_iter().map(owned).collect())
            }
            (StorageLayout::CompressedTensors, _) => Err(Error::Layout {
                tensor: name.to_owned(),
                layout,
                reason: "it has no place for weights in parts".to_owned(),
            }),
        }
    }
}

/// How a tensor is stored, in a few words.
pub(crate) fn stored_form(checkpoint: &Checkpoint, entry: &Entry) -> Result<String, Error> {
    let form = checkpoint.composed(&entry.name)?.and_then(|composed| Form::of(&composed));
    Ok(form.map_or_else(|| stored_name(&entry.stored), |form| form.to_string()))
}

//! One loader over every container.

use crate::error::shorten;
use crate::gguf::GgmlType;
use crate::hf::{self, ModelFolder};
use crate::safetensors::{DType, SafetensorsFile, TensorBytes};
use crate::{Error, FileBytes};
use quant_core::{Format, PackedTensor};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How a checkpoint is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckpointLayout {
    /// Plain safetensors.
    Safetensors,
    /// Safetensors with packed tensors of this project, see [`crate::packed`].
    Leanbits,
    /// Safetensors with a compressed-tensors `quantization_config`, see [`crate::ct`].
    CompressedTensors,
    /// GGUF.
    Gguf,
}

/// How one tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stored {
    /// Element by element.
    Plain(DType),
    /// Packed in a format that [`Checkpoint::packed`] lends.
    Packed(Format),
    /// In blocks of a ggml type; [`Checkpoint::read_f32`] decodes it.
    Gguf(GgmlType),
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// Its name, for GGUF of known architectures the Hugging Face name.
    pub name: String,
    /// Its shape, the innermost axis last.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub stored: Stored,
    /// Bytes it takes in the file, all its sections together.
    pub bytes: u64,
    place: Place,
}

impl Entry {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Where an entry's bytes are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// Tensor `tensor` of safetensors file `file`.
    Safetensors { file: usize, tensor: usize },
}

/// A plain tensor: lent from the mapped file, or owned where its rows had to be put in order.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainTensor<'a> {
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: &'a [usize],
    /// Row-major little-endian elements.
    pub bytes: Cow<'a, [u8]>,
}

/// Any checkpoint: a safetensors or GGUF file, or a Hugging Face folder of either, packed or not.
///
/// Opening reads headers only; tensors are read one at a time from the mapped files.
///
/// ```no_run
/// use quant_io::{Checkpoint, Stored};
/// let model = Checkpoint::open("SmolLM2-135M")?;
/// for entry in model.entries() {
///     match entry.stored {
///         Stored::Packed(format) => println!("{} {:?} packed as {format}", entry.name, entry.shape),
///         _ => println!("{} {:?} {} values", entry.name, entry.shape, model.read_f32(&entry.name)?.len()),
///     }
/// }
/// # Ok::<(), quant_io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    layout: CheckpointLayout,
    config: Option<Value>,
    files: Vec<SafetensorsFile>,
    /// In order of position in the files.
    entries: Vec<Entry>,
    by_name: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens a file or a folder.
    ///
    /// # Errors
    ///
    /// [`Error::NoCheckpoint`] when there is nothing to open, and whatever the container's reader finds,
    /// with the file's name.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        if path.is_dir() {
            let folder = ModelFolder::open(path)?;
            let (config, files) = folder.into_parts();
            return Self::from_safetensors(path, config, files);
        }
        let bytes = FileBytes::map(path)?;
        Self::from_safetensors(path, None, vec![SafetensorsFile::from_bytes(bytes)?])
    }

    fn from_safetensors(path: &Path, config: Option<Value>, files: Vec<SafetensorsFile>) -> Result<Self, Error> {
        let mut entries = Vec::new();
        for (file, safetensors) in files.iter().enumerate() {
            for (tensor, info) in safetensors.header().tensors().iter().enumerate() {
                entries.push(Entry {
                    name: info.name.clone(),
                    shape: info.shape.clone(),
                    stored: Stored::Plain(info.dtype),
                    bytes: info.bytes(),
                    place: Place::Safetensors { file, tensor },
                });
            }
        }
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        let layout = CheckpointLayout::Safetensors;
        Ok(Self { path: path.to_owned(), layout, config, files, entries, by_name })
    }

    /// The path that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is laid out.
    #[must_use]
    pub fn layout(&self) -> CheckpointLayout {
        self.layout
    }

    /// config.json of a folder, if there is one.
    #[must_use]
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The tensors, in order of position in the files: reading them in this order reads the files forward.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of this name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).and_then(|&i| self.entries.get(i))
    }

    /// The files that belong to the model but hold no weights; empty when a single file was opened.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn side_files(&self) -> Result<Vec<PathBuf>, Error> {
        if self.path.is_dir() { hf::side_files(&self.path) } else { Ok(Vec::new()) }
    }

    fn require(&self, name: &str) -> Result<&Entry, Error> {
        self.entry(name).ok_or_else(|| Error::NoSuchTensor { name: shorten(name) }.in_file(&self.path))
    }

    /// Reads a tensor as f32, whatever it is stored in.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`], [`Error::NotNumeric`], [`Error::UndecodableType`], and the errors of
    /// [`Checkpoint::packed`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        let mut out = vec![0.0; self.require(name)?.elements()];
        self.read_f32_into(name, &mut out)?;
        Ok(out)
    }

    /// Reads a tensor as f32 into a slice of exactly its elements.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::read_f32`], and [`Error::SizeMismatch`] (counted in bytes of f32) for a slice
    /// of the wrong length.
    pub fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), Error> {
        let entry = self.require(name)?;
        if out.len() != entry.elements() {
            let (expected, found) = (4 * entry.elements() as u64, 4 * out.len() as u64);
            return Err(Error::SizeMismatch { tensor: shorten(name), expected, found });
        }
        match entry.place {
            Place::Safetensors { file, tensor } => {
                let (path, tensor) = self.lend(file, tensor);
                if !tensor.dtype.decode_f32(tensor.bytes, out) {
                    let error = Error::NotNumeric { tensor: shorten(name), dtype: tensor.dtype };
                    return Err(error.in_file(path));
                }
                Ok(())
            }
        }
    }

    /// Lends a plain tensor's bytes; `None` for tensors that are packed or in ggml blocks.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`].
    pub fn plain(&self, name: &str) -> Result<Option<PlainTensor<'_>>, Error> {
        let entry = self.require(name)?;
        match entry.place {
            Place::Safetensors { file, tensor } => {
                let (_, tensor) = self.lend(file, tensor);
                let bytes = Cow::Borrowed(tensor.bytes);
                Ok(Some(PlainTensor { dtype: tensor.dtype, shape: &entry.shape, bytes }))
            }
        }
    }

    /// Lends a packed tensor; borrowed from the mapped file where its layout is that of
    /// [`PackedTensor`], owned where another tool's layout had to be rearranged. `None` for tensors
    /// that are not packed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`]; [`Error::Packed`] when a scale is not finite or a section has the wrong length.
    pub fn packed(&self, name: &str) -> Result<Option<PackedTensor<'_>>, Error> {
        match self.require(name)?.place {
            Place::Safetensors { .. } => Ok(None),
        }
    }

    fn lend(&self, file: usize, tensor: usize) -> (&Path, TensorBytes<'_>) {
        let file = &self.files[file];
        let info = &file.header().tensors()[tensor];
        (file.path(), file.lend(info))
    }
}

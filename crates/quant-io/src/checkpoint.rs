//! One loader over every container.

use crate::composed::{self, Composed, ComposedInfo, Item};
use crate::compressed_tensors::{Compressed, Weight};
use crate::error::shorten;
use crate::gguf::{self, GgmlType, GgufFile, Permuted};
use crate::hf::{self, ModelFolder};
use crate::packed::{self, PackedInfo};
use crate::safetensors::{DType, SafetensorsFile, TensorBytes};
use crate::{Error, FileBytes};
use quant_core::{Format, PackedTensor};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How a checkpoint is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckpointLayout {
    /// Plain safetensors.
    Safetensors,
    /// Safetensors with packed tensors of this project, see [`crate::packed`].
    Leanbits,
    /// Safetensors with a compressed-tensors `quantization_config`, see [`crate::compressed_tensors`].
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
    /// As several parts that only a method can put together; [`Checkpoint::composed`] lends them.
    Composed,
    /// Integers whose groups follow a permutation of the columns (compressed-tensors' activation
    /// order), which no [`Format`] has; [`Checkpoint::read_f32`] decodes it.
    Reordered,
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
    /// Packed tensor `packed` of the checkpoint, its sections in safetensors file `file`.
    Packed { file: usize, packed: usize },
    /// Composed tensor `composed` of the checkpoint.
    Composed { composed: usize },
    /// The weight of compressed-tensors module `module` of the checkpoint.
    Module { module: usize },
    /// Tensor `tensor` of the GGUF file, whose rows belong to so many permuted heads (0: not permuted).
    Gguf { tensor: usize, heads: usize },
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
    gguf: Option<GgufFile>,
    packed: Vec<PackedInfo>,
    composed: Vec<ComposedInfo>,
    compressed: Option<Compressed>,
    modules: Vec<String>,
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
            return match ModelFolder::open(path) {
                Ok(folder) => {
                    let (config, files) = folder.into_parts();
                    Self::from_safetensors(path, config, files)
                }
                // A folder without safetensors may hold one GGUF file.
                Err(missing @ Error::NoCheckpoint { .. }) => match hf::weight_files(path, "gguf")?.as_slice() {
                    [one] => Self::from_gguf(path, hf::read_config(path)?, GgufFile::open(one)?),
                    _ => Err(missing),
                },
                Err(error) => Err(error),
            };
        }
        let bytes = FileBytes::map(path)?;
        if is_gguf(&bytes) {
            return Self::from_bytes(bytes);
        }
        // Integer codes mean nothing without the configuration that lies beside the file.
        let config = path.parent().map(hf::read_config).transpose()?.flatten();
        let config = config.filter(|config| config.get("quantization_config").is_some());
        Self::from_safetensors(path, config, vec![SafetensorsFile::from_bytes(bytes)?])
    }

    /// Opens a file whose bytes are mapped or in memory; its name decides where its beginning does not.
    ///
    /// # Errors
    ///
    /// Whatever the container's reader finds.
    pub fn from_bytes(bytes: FileBytes) -> Result<Self, Error> {
        let path = &bytes.path().to_owned();
        if is_gguf(&bytes) {
            return Self::from_gguf(path, None, GgufFile::from_bytes(bytes)?);
        }
        Self::from_safetensors(path, None, vec![SafetensorsFile::from_bytes(bytes)?])
    }

    pub(crate) fn from_safetensors(
        path: &Path,
        config: Option<Value>,
        files: Vec<SafetensorsFile>,
    ) -> Result<Self, Error> {
        let mut found = Found::default();
        for (file, safetensors) in files.iter().enumerate() {
            found.add(file, safetensors).map_err(|e| e.in_file(safetensors.path()))?;
        }
        let Found { mut layout, packed, composed, mut entries } = found;
        let compressed = match &config {
            Some(config) => quantization(config).map_err(|e| e.in_file(&config_path(path)))?,
            None => None,
        };
        let mut modules = Vec::new();
        if let Some(compressed) = &compressed {
            layout = CheckpointLayout::CompressedTensors;
            (entries, modules) = join_modules(compressed, entries, &files).map_err(|e| e.in_file(path))?;
        }
        let by_name = index(&entries).map_err(|e| e.in_file(path))?;
        let path = path.to_owned();
        Ok(Self { path, layout, config, files, gguf: None, packed, composed, compressed, modules, entries, by_name })
    }

    fn from_gguf(path: &Path, config: Option<Value>, file: GgufFile) -> Result<Self, Error> {
        let entries = gguf_entries(&file).map_err(|e| e.in_file(file.path()))?;
        let by_name = index(&entries).map_err(|e| e.in_file(path))?;
        let (path, layout, gguf) = (path.to_owned(), CheckpointLayout::Gguf, Some(file));
        let (files, packed, composed, compressed, modules) = (Vec::new(), Vec::new(), Vec::new(), None, Vec::new());
        Ok(Self { path, layout, config, files, gguf, packed, composed, compressed, modules, entries, by_name })
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

    /// config.json of a folder, if there is one; of a single file only when it tells how the file beside
    /// it is quantized.
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

    /// Tells the system that what has been read so far is not needed again soon: a job that walks over a
    /// checkpoint larger than memory calls this after each tensor. See [`FileBytes::release_pages`].
    pub fn release_pages(&self) {
        self.files.iter().for_each(SafetensorsFile::release_pages);
        self.gguf.iter().for_each(GgufFile::release_pages);
    }

    fn require(&self, name: &str) -> Result<&Entry, Error> {
        self.entry(name).ok_or_else(|| Error::NoSuchTensor { name: shorten(name) }.in_file(&self.path))
    }

    /// Reads a tensor as f32, whatever it is stored in.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`], [`Error::NotNumeric`], [`Error::UndecodableType`], [`Error::Composed`], and the errors
    /// of [`Checkpoint::packed`].
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
            }
            Place::Packed { file, packed } => {
                let tensor = self.assemble(file, packed)?;
                tensor.decode_into(out).map_err(Error::packed(name)).map_err(|e| e.in_file(&self.path))?;
            }
            Place::Composed { composed } => {
                let kind = self.composed[composed].description.kind.clone();
                return Err(Error::Composed { tensor: shorten(name), kind }.in_file(&self.path));
            }
            Place::Module { module } => match self.read_module(module)? {
                Weight::Packed(packed) => {
                    packed.decode_into(out).map_err(Error::packed(name)).map_err(|e| e.in_file(&self.path))?;
                }
                Weight::Dense { values, .. } => out.copy_from_slice(&values),
            },
            Place::Gguf { tensor, heads } => {
                let (kind, bytes) = self.gguf_rows(tensor, heads, entry);
                if !gguf::dequantize(kind, &bytes, out) {
                    return Err(Error::UndecodableType { tensor: shorten(name), kind }.in_file(&self.path));
                }
            }
        }
        Ok(())
    }

    /// Lends a plain tensor's bytes; `None` for tensors that are packed or in ggml blocks.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`].
    pub fn plain(&self, name: &str) -> Result<Option<PlainTensor<'_>>, Error> {
        Ok(self.plain_of(self.require(name)?))
    }

    pub(crate) fn plain_of<'a>(&'a self, entry: &'a Entry) -> Option<PlainTensor<'a>> {
        let Stored::Plain(dtype) = entry.stored else { return None };
        let bytes = match entry.place {
            Place::Safetensors { file, tensor } => Cow::Borrowed(self.lend(file, tensor).1.bytes),
            Place::Gguf { tensor, heads } => self.gguf_rows(tensor, heads, entry).1,
            Place::Packed { .. } | Place::Module { .. } | Place::Composed { .. } => return None,
        };
        Some(PlainTensor { dtype, shape: &entry.shape, bytes })
    }

    /// Lends a packed tensor; borrowed from the mapped file where its layout is that of
    /// [`PackedTensor`], owned where another tool's layout had to be rearranged. `None` for tensors
    /// that are not packed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`]; [`Error::Packed`] when a scale is not finite or a section has the wrong length.
    pub fn packed(&self, name: &str) -> Result<Option<PackedTensor<'_>>, Error> {
        self.packed_of(self.require(name)?)
    }

    pub(crate) fn packed_of(&self, entry: &Entry) -> Result<Option<PackedTensor<'_>>, Error> {
        match entry.place {
            Place::Packed { file, packed } => self.assemble(file, packed).map(Some),
            Place::Module { module } => match self.read_module(module)? {
                Weight::Packed(packed) => Ok(Some(packed)),
                Weight::Dense { .. } => Ok(None),
            },
            Place::Safetensors { .. } | Place::Gguf { .. } | Place::Composed { .. } => Ok(None),
        }
    }

    /// Lends a tensor that is stored as several parts; `None` for all others.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`].
    pub fn composed(&self, name: &str) -> Result<Option<Composed<'_>>, Error> {
        Ok(match self.require(name)?.place {
            Place::Composed { composed } => Some(Composed { checkpoint: self, info: &self.composed[composed] }),
            _ => None,
        })
    }

    fn assemble(&self, file: usize, packed: usize) -> Result<PackedTensor<'_>, Error> {
        let section = |tensor| self.lend(file, tensor).1.bytes;
        packed::assemble(&self.packed[packed], section).map_err(|e| e.in_file(self.files[file].path()))
    }

    fn read_module(&self, module: usize) -> Result<Weight<'_>, Error> {
        let module = &self.modules[module];
        let lookup = |name: &str| self.files.iter().find_map(|file| file.get(name));
        match &self.compressed {
            Some(compressed) => compressed.read(module, lookup).map_err(|e| e.in_file(&self.path)),
            None => Err(Error::NoScheme { module: shorten(module) }),
        }
    }

    fn gguf_rows(&self, tensor: usize, heads: usize, entry: &Entry) -> (GgmlType, Cow<'_, [u8]>) {
        let Some(file) = &self.gguf else { return (GgmlType::F32, Cow::Borrowed(&[])) };
        let tensor = &file.tensors()[tensor];
        let bytes = file.tensor_bytes(tensor);
        // A bias is a column: each element is a row of it.
        let rows = entry.shape.first().copied().unwrap_or(0);
        let bytes = if heads == 0 { Cow::Borrowed(bytes) } else { gguf::unpermute_rows(bytes, rows, heads) };
        (tensor.kind, bytes)
    }

    fn lend(&self, file: usize, tensor: usize) -> (&Path, TensorBytes<'_>) {
        let file = &self.files[file];
        let info = &file.header().tensors()[tensor];
        (file.path(), file.lend(info))
    }
}

/// A safetensors file that begins with these bytes would have a header of over a gigabyte.
fn is_gguf(bytes: &FileBytes) -> bool {
    bytes.starts_with(b"GGUF") || bytes.path().extension().is_some_and(|e| e == "gguf")
}

fn config_path(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") }
}

/// The compressed-tensors part of a configuration. Codes of any other method would read as numbers that
/// they are not, so its checkpoints are refused.
pub(crate) fn quantization(config: &Value) -> Result<Option<Compressed>, Error> {
    if let Some(compressed) = Compressed::from_config(config)? {
        return Ok(Some(compressed));
    }
    match config.get("quantization_config").and_then(|q| q.get("quant_method")).and_then(Value::as_str) {
        Some(method) if method != "compressed-tensors" && method != "leanbits" => {
            let reason = "of quantized checkpoints those of compressed-tensors, GGUF and this project are read";
            Err(Error::Unsupported { what: format!("quant_method {:?}", shorten(method)), reason: reason.to_owned() })
        }
        _ => Ok(None),
    }
}

/// Joins the tensors of each compressed-tensors module into one entry at the place of its codes.
fn join_modules(
    compressed: &Compressed,
    entries: Vec<Entry>,
    files: &[SafetensorsFile],
) -> Result<(Vec<Entry>, Vec<String>), Error> {
    let lookup = |name: &str| files.iter().find_map(|file| file.get(name));
    let modules = compressed.modules(entries.iter().map(|entry| entry.name.as_str()))?;
    let mut joined = BTreeMap::new();
    let mut sections = BTreeSet::new();
    for (module, name) in modules.iter().enumerate() {
        let (shape, format) = compressed.describe(name, lookup)?;
        let present: Vec<_> = Compressed::sections(name).filter_map(|section| lookup(&section)).collect();
        let weight = format!("{name}.weight");
        let codes = present.iter().find(|tensor| tensor.name.ends_with(".weight_packed"));
        if codes.is_some() && lookup(&weight).is_some() {
            return Err(Error::DuplicateKey { key: shorten(&weight) });
        }
        let entry = Entry {
            name: weight.clone(),
            shape: shape.to_vec(),
            stored: format.map_or(Stored::Reordered, Stored::Packed),
            bytes: present.iter().map(|tensor| tensor.bytes.len() as u64).sum(),
            place: Place::Module { module },
        };
        sections.extend(present.iter().map(|tensor| tensor.name));
        joined.insert(codes.map_or(weight, |tensor| tensor.name.to_owned()), entry);
    }
    let mut result = Vec::with_capacity(entries.len());
    for entry in entries {
        if let Some(joined) = joined.remove(&entry.name) {
            result.push(joined);
        } else if !sections.contains(entry.name.as_str()) {
            result.push(entry);
        }
    }
    Ok((result, modules))
}

/// What the headers of safetensors files hold.
struct Found {
    layout: CheckpointLayout,
    packed: Vec<PackedInfo>,
    composed: Vec<ComposedInfo>,
    entries: Vec<Entry>,
}

impl Default for Found {
    fn default() -> Self {
        let layout = CheckpointLayout::Safetensors;
        Self { layout, packed: Vec::new(), composed: Vec::new(), entries: Vec::new() }
    }
}

impl Found {
    fn add(&mut self, file: usize, safetensors: &SafetensorsFile) -> Result<(), Error> {
        let header = safetensors.header();
        let infos = packed::find(header)?;
        if infos.is_some() {
            self.layout = CheckpointLayout::Leanbits;
        }
        let mut entries = Vec::with_capacity(header.tensors().len());
        // The section of codes stands for its tensor in the order of positions; other sections vanish.
        let mut owner = BTreeMap::new();
        for info in infos.into_iter().flatten() {
            for (section, position) in info.sections.iter().enumerate() {
                if let Some(position) = position
                    && owner.insert(*position, (section == 0).then_some(self.packed.len())).is_some()
                {
                    return Err(Error::DuplicateKey { key: shorten(&header.tensors()[*position].name) });
                }
            }
            self.packed.push(info);
        }
        for (tensor, info) in header.tensors().iter().enumerate() {
            let entry = match owner.get(&tensor) {
                None => Entry {
                    name: info.name.clone(),
                    shape: info.shape.clone(),
                    stored: Stored::Plain(info.dtype),
                    bytes: info.bytes(),
                    place: Place::Safetensors { file, tensor },
                },
                Some(None) => continue,
                Some(&Some(packed)) => {
                    let info = &self.packed[packed];
                    let bytes = info.sections.iter().flatten().map(|&s| header.tensors()[s].bytes()).sum();
                    Entry {
                        name: info.name.clone(),
                        shape: info.shape.clone(),
                        stored: Stored::Packed(info.format),
                        bytes,
                        place: Place::Packed { file, packed },
                    }
                }
            };
            entries.push(entry);
        }
        for item in composed::gather(composed::find(header)?, entries)? {
            self.entries.push(match item {
                Item::Whole(entry) => entry,
                Item::Composed(info) => {
                    let (name, shape, bytes) = (info.name.clone(), info.shape.clone(), info.bytes());
                    let place = Place::Composed { composed: self.composed.len() };
                    self.composed.push(info);
                    Entry { name, shape, stored: Stored::Composed, bytes, place }
                }
            });
        }
        Ok(())
    }
}

fn index(entries: &[Entry]) -> Result<BTreeMap<String, usize>, Error> {
    let mut by_name = BTreeMap::new();
    for (i, entry) in entries.iter().enumerate() {
        if by_name.insert(entry.name.clone(), i).is_some() {
            return Err(Error::DuplicateKey { key: shorten(&entry.name) });
        }
    }
    Ok(by_name)
}

/// The tensors of a GGUF file under their Hugging Face names where its architecture is known.
fn gguf_entries(file: &GgufFile) -> Result<Vec<Entry>, Error> {
    let architecture = file.metadata("general.architecture").and_then(|v| v.as_text()).unwrap_or_default().to_owned();
    let mut order: Vec<usize> = (0..file.tensors().len()).collect();
    order.sort_by_key(|&i| file.tensors()[i].range.start);
    let entry = |tensor: usize| {
        let info = &file.tensors()[tensor];
        let found = gguf::hf_name(&architecture, &info.name);
        let heads = match found.as_ref().map(|f| f.permuted) {
            None | Some(Permuted::No) => 0,
            Some(Permuted::Queries) => head_count(file, &architecture, &["head_count"], info.shape[0])?,
            Some(Permuted::Keys) => head_count(file, &architecture, &["head_count_kv", "head_count"], info.shape[0])?,
        };
        Ok(Entry {
            name: found.map_or_else(|| info.name.clone(), |f| f.name),
            shape: info.shape.clone(),
            stored: info.kind.plain().map_or(Stored::Gguf(info.kind), Stored::Plain),
            bytes: info.range.len() as u64,
            place: Place::Gguf { tensor, heads },
        })
    };
    order.into_iter().map(entry).collect()
}

/// The number of heads among which `rows` permuted rows are divided: the first key that is there.
fn head_count(file: &GgufFile, architecture: &str, keys: &[&str], rows: usize) -> Result<usize, Error> {
    let keys: Vec<String> = keys.iter().map(|key| format!("{architecture}.attention.{key}")).collect();
    let found = keys.iter().find_map(|key| Some((key, file.metadata(key)?)));
    let bad = |key: &str, message: String| Error::BadValue { key: shorten(key), message };
    let Some((key, value)) = found else {
        return Err(bad(&keys[0], "it is missing, but the order of the query and key rows depends on it".to_owned()));
    };
    let heads = value.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    if heads == 0 || !rows.is_multiple_of(heads.saturating_mul(2)) {
        return Err(bad(
            key,
            format!("{rows} rows cannot be divided among {} heads in pairs", shorten(&format!("{value:?}"))),
        ));
    }
    Ok(heads)
}

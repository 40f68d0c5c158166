//! Plain Hugging Face folders: `model.safetensors`, or shards with an index.

use super::WeightSource;
use crate::Error;
use crate::config::json::{self, Object};
use half::{bf16, f16};
use quant_core::Linear;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Headers beyond this are refused; that of a model of a thousand layers has some hundred kilobytes.
const MAX_HEADER: u64 = 100 << 20;

/// A folder of f32, f16 or bf16 weights in safetensors files.
#[derive(Debug)]
pub struct HfFolder {
    path: PathBuf,
    tensors: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    file: Arc<PathBuf>,
    start: u64,
    info: TensorInfo,
}

impl HfFolder {
    /// Reads the headers of a folder's weight files.
    ///
    /// # Errors
    ///
    /// [`Error::NoWeights`], [`Error::Io`] (a missing shard among others), [`Error::Json`] and
    /// [`Error::BadValue`] for the index, [`Error::Damaged`] for a file that is cut or contradicts itself.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (single, index) = (path.join("model.safetensors"), path.join("model.safetensors.index.json"));
        let files = if index.exists() {
            shards(path, &index)?
        } else if single.exists() {
            BTreeSet::from([single])
        } else {
            return Err(Error::NoWeights { path: path.to_path_buf() });
        };
        let mut tensors = BTreeMap::new();
        for file in files {
            read_header(&file, &mut tensors)?;
        }
        Ok(Self { path: path.to_path_buf(), tensors })
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

/// The shard files that an index names; each must be a plain file name in the folder.
fn shards(folder: &Path, index: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let value = json::read(index)?;
    let top = Object::top(index, &value)?;
    let map = top.required("weight_map", top.get("weight_map"))?;
    let map = map.as_object().ok_or_else(|| top.bad("weight_map", "an object of tensor names and files"))?;
    map.values()
        .map(|file| {
            let name = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
            name.map(|name| folder.join(name)).ok_or_else(|| Error::BadValue {
                file: index.to_path_buf(),
                key: "weight_map".into(),
                value: file.to_string(),
                expected: "names of files in the same folder".into(),
            })
        })
        .collect()
}

fn read_header(path: &Path, tensors: &mut BTreeMap<String, Place>) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let damaged = |reason: String| Error::Damaged { path: path.to_path_buf(), reason };
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size < 8 {
        return Err(damaged(format!("{size} bytes hold no header length")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > size - 8 {
        return Err(damaged(format!("a header of {length} bytes in a file of {size}")));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(io)?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|source| damaged(source.to_string()))?;
    let start = 8 + length;
    let expected = start.checked_add(header.data_len() as u64);
    if expected != Some(size) {
        return Err(damaged(format!(
            "its header describes {} bytes of data, but {} follow",
            header.data_len(),
            size - start
        )));
    }
    let file = Arc::new(path.to_path_buf());
    for (name, info) in header.tensors() {
        tensors.insert(name, Place { file: Arc::clone(&file), start, info: info.clone() });
    }
    Ok(())
}

impl WeightSource for HfFolder {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|place| place.info.shape.clone())
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        let place = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::MissingTensor { origin: self.origin(), name: name.to_owned() })?;
        let (start, end) = place.info.data_offsets;
        let io = |source| Error::Io { path: place.file.to_path_buf(), source };
        let mut bytes = vec![0; end - start];
        let mut file = File::open(&*place.file).map_err(io)?;
        file.seek(SeekFrom::Start(place.start + start as u64)).map_err(io)?;
        file.read_exact(&mut bytes).map_err(io)?;
        match place.info.dtype {
            Dtype::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::BF16 => Ok(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            other => Err(Error::UnsupportedType {
                path: place.file.to_path_buf(),
                name: name.to_owned(),
                dtype: format!("{other:?}"),
            }),
        }
    }

    /// Always `None`: a plain folder compresses nothing.
    fn linear(&self, _name: &str) -> Result<Option<Arc<dyn Linear>>, Error> {
        Ok(None)
    }
}

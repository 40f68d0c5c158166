//! Opening a folder.

use super::index::{INDEX_NAME, Index};
use crate::Error;
use crate::atomic::read_text;
use crate::json::{self, JSON_LIMIT};
use crate::safetensors::SafetensorsFile;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A model folder: its configuration and its mapped weight files.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: Option<Value>,
    shards: Vec<SafetensorsFile>,
}

impl ModelFolder {
    /// Opens a folder that holds `model.safetensors`, or an index with its shards, or exactly one
    /// other `*.safetensors` file.
    ///
    /// # Errors
    ///
    /// [`Error::NoCheckpoint`] when there is none of these, [`Error::MissingShard`], what
    /// [`Index::parse`] and [`Index::check`] find, and every error of a safetensors header;
    /// [`Error::BadJson`] or [`Error::BadField`] for config.json.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let config = read_config(&path)?;
        let (single, index) = (path.join("model.safetensors"), path.join(INDEX_NAME));
        let shards = if single.is_file() {
            vec![SafetensorsFile::open(single)?]
        } else if index.is_file() {
            open_shards(&path, &index).map_err(|e| e.in_file(&index))?
        } else {
            match weight_files(&path, "safetensors")?.as_slice() {
                [one] => vec![SafetensorsFile::open(one)?],
                _ => return Err(Error::NoCheckpoint { path }),
            }
        };
        Ok(Self { path, config, shards })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// config.json, if there is one.
    #[must_use]
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The weight files, in order of their names.
    #[must_use]
    pub fn shards(&self) -> &[SafetensorsFile] {
        &self.shards
    }

    /// Takes the parts.
    #[must_use]
    pub fn into_parts(self) -> (Option<Value>, Vec<SafetensorsFile>) {
        (self.config, self.shards)
    }
}

fn open_shards(folder: &Path, index: &Path) -> Result<Vec<SafetensorsFile>, Error> {
    let index = Index::parse(&read_text(index, "the index", JSON_LIMIT)?)?;
    let mut shards = Vec::new();
    for shard in index.shards() {
        let path = folder.join(shard);
        if !path.is_file() {
            return Err(Error::MissingShard { shard: crate::error::shorten(shard) });
        }
        shards.push(SafetensorsFile::open(path)?);
    }
    index.check(&shards)?;
    Ok(shards)
}

pub(crate) fn read_config(folder: &Path) -> Result<Option<Value>, Error> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config = parse_config(&read_text(&path, "config.json", JSON_LIMIT)?).map_err(|e| e.in_file(&path))?;
    Ok(Some(config))
}

pub(crate) fn parse_config(text: &str) -> Result<Value, Error> {
    let config: Value = json::parse(text, "config.json")?;
    if config.is_object() {
        Ok(config)
    } else {
        Err(Error::BadField { field: "config.json".to_owned(), message: "it is not a JSON object".to_owned() })
    }
}

/// Files of a folder with this extension, sorted.
pub(crate) fn weight_files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, Error> {
    Ok(files(folder)?.into_iter().filter(|f| f.extension().is_some_and(|e| e == extension)).collect())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "open"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The files of a model folder that go along unchanged when its weights are converted: tokenizer,
/// generation settings, templates, licences. Neither weights nor their index nor config.json are listed,
/// nor hidden and temporary files. Sorted by name.
///
/// # Errors
///
/// [`Error::Io`] when the folder cannot be read.
pub fn side_files(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>, Error> {
    const WEIGHTS: [&str; 10] = ["safetensors", "gguf", "bin", "pt", "pth", "h5", "msgpack", "onnx", "tmp", "part"];
    let is_side = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        !name.starts_with('.')
            && name != "config.json"
            && !name.ends_with(".index.json")
            && !WEIGHTS.contains(&extension.as_ref())
    };
    Ok(files(folder.as_ref())?.into_iter().filter(is_side).collect())
}

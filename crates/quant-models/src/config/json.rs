//! Reading keys of a JSON object so that every complaint names the file and the key.

use crate::Error;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// One JSON object of a file, and the keys that lead to it.
pub(crate) struct Object<'a> {
    file: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

/// Reads and parses a JSON file.
pub(crate) fn read(path: &Path) -> Result<Value, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

impl<'a> Object<'a> {
    /// The object at the top of a file.
    pub(crate) fn top(file: &'a Path, value: &'a Value) -> Result<Self, Error> {
        let map = value.as_object().ok_or_else(|| Error::BadValue {
            file: file.to_path_buf(),
            key: "the file".into(),
            value: brief(value),
            expected: "a JSON object".into(),
        })?;
        Ok(Self { file, prefix: String::new(), map })
    }

    /// The file, for errors made elsewhere.
    pub(crate) fn file(&self) -> PathBuf {
        self.file.to_path_buf()
    }

    /// The value of a key; `null` counts as absent, as it does for the tools that write these files.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The error for a value that is there but not as it should be.
    pub(crate) fn bad(&self, key: &str, expected: impl Into<String>) -> Error {
        let value = self.map.get(key).map_or_else(|| "absent".into(), brief);
        Error::BadValue { file: self.file(), key: self.path(key), value, expected: expected.into() }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Object<'a>>, Error> {
        self.read(key, "an object", Value::as_object)
            .map(|found| found.map(|map| Object { file: self.file, prefix: format!("{}.", self.path(key)), map }))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.read(key, "a string", Value::as_str)
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>, Error> {
        self.read(key, "a list", Value::as_array)
    }

    /// A finite number greater than zero.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        self.read(key, "a number above zero", |value| value.as_f64().filter(|v| v.is_finite() && *v > 0.0))
    }

    /// A whole number in `1..=limit`.
    pub(crate) fn count(&self, key: &str, limit: usize) -> Result<Option<usize>, Error> {
        self.read(key, &format!("a whole number from 1 to {limit}"), |value| {
            value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=limit).contains(v))
        })
    }

    pub(crate) fn required<T>(&self, key: &str, found: Option<T>) -> Result<T, Error> {
        found.ok_or_else(|| Error::MissingKey { file: self.file(), key: self.path(key) })
    }

    fn read<T>(&self, key: &str, expected: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| self.bad(key, expected)),
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// A value as JSON, cut so that an error stays one line.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

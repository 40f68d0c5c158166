//! `model.safetensors.index.json`: which shard holds which tensor.

use crate::Error;
use crate::error::shorten;
use crate::json::{self, Object, UniqueMap};
use crate::safetensors::SafetensorsFile;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// File name of the index.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// A parsed index.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Index {
    /// `metadata.total_size`: bytes of all tensors.
    pub total_size: Option<u64>,
    /// Shard of each tensor.
    pub weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: Option<Object<RawMetadata>>,
    weight_map: UniqueMap,
}

#[derive(Deserialize)]
struct RawMetadata {
    #[serde(default)]
    total_size: Option<serde_json::Number>,
}

impl Index {
    /// Parses an index.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`], [`Error::BadField`], [`Error::DuplicateKey`] for a tensor named twice, and
    /// [`Error::UnsafePath`] for a shard that is not a plain file name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let Object(raw) = json::parse::<Object<RawIndex>>(text, "the index")?;
        if let Some(key) = raw.weight_map.duplicate {
            return Err(Error::DuplicateKey { key: shorten(&key) });
        }
        for file in raw.weight_map.entries.values() {
            if !is_plain_name(file) {
                return Err(Error::UnsafePath { file: shorten(file) });
            }
        }
        let total_size = match raw.metadata.and_then(|Object(m)| m.total_size) {
            None => None,
            // Some writers print the sum as a float.
            Some(number) => Some(whole(&number).ok_or_else(|| Error::BadField {
                field: "metadata.total_size".to_owned(),
                message: format!("{number} is no number of bytes"),
            })?),
        };
        Ok(Self { total_size, weight_map: raw.weight_map.entries })
    }

    /// The shards that are named, each once.
    #[must_use]
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// The JSON text, keys sorted.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut index = serde_json::json!({ "metadata": {}, "weight_map": self.weight_map });
        if let Some(total) = self.total_size {
            index["metadata"]["total_size"] = total.into();
        }
        format!("{index:#}\n")
    }

    /// Checks the index against the shards it names.
    ///
    /// # Errors
    ///
    /// [`Error::ShardLacksTensor`], [`Error::TensorInTwoShards`], [`Error::TotalSize`].
    pub fn check(&self, shards: &[SafetensorsFile]) -> Result<(), Error> {
        let name_of = |shard: &SafetensorsFile| {
            shorten(&shard.path().file_name().unwrap_or(shard.path().as_os_str()).to_string_lossy())
        };
        let (mut owner, mut actual) = (BTreeMap::new(), 0_u64);
        for shard in shards {
            let file = name_of(shard);
            for tensor in shard.header().tensors() {
                actual = actual.saturating_add(tensor.bytes());
                if let Some(first) = owner.insert(tensor.name.as_str(), file.clone()) {
                    return Err(Error::TensorInTwoShards { tensor: shorten(&tensor.name), first, second: file });
                }
            }
        }
        for (tensor, shard) in &self.weight_map {
            if owner.get(tensor.as_str()).is_none_or(|found| found != shard) {
                return Err(Error::ShardLacksTensor { tensor: shorten(tensor), shard: shorten(shard) });
            }
        }
        match self.total_size {
            Some(declared) if declared != actual => Err(Error::TotalSize { declared, actual }),
            _ => Ok(()),
        }
    }
}

/// Whether a name denotes a file in the same folder on every platform.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', ':', '\0'])
}

fn whole(number: &serde_json::Number) -> Option<u64> {
    number.as_u64().or_else(|| {
        let value = number.as_f64()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and below 2^53, checked")]
        let bytes = ((0.0..9e15).contains(&value) && value.fract() == 0.0).then_some(value as u64);
        bytes
    })
}

//! Saved caches: a header that says everything decoding depends on, then the bytes as they are held.
//!
//! `leanbitsKV`, format version (u32 LE), length of the header (u32 LE), header (JSON), then for keys and for values:
//! sinks, sealed units, rows in full precision, oldest first. All numbers are little-endian.

use crate::cache::{KeyStorage, QuantizedKv};
use crate::layer::KvCacheLayer;
use crate::positions::{PositionRuns, Run};
use crate::{Error, KvGeometry, KvPolicy};
use std::io::{Read, Write};

const MAGIC: &[u8; 10] = b"leanbitsKV";
const VERSION: u32 = 1;
const LONGEST_HEADER: u64 = 1 << 26;

/// What a saved cache was made with, and how much it holds.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    geometry: KvGeometry,
    /// `post`, or the fingerprint of the rotary table.
    key_storage: String,
    key_codec: String,
    value_codec: String,
    policy: KvPolicy,
    stage: usize,
    /// Sinks, sealed units, rows in full precision and those of them that are not sealed.
    keys: [usize; 4],
    values: [usize; 4],
    positions: Vec<Run>,
}

impl Header {
    fn of(cache: &QuantizedKv) -> Self {
        Self {
            geometry: cache.geometry,
            key_storage: match &cache.storage {
                KeyStorage::PostRope => "post".into(),
                KeyStorage::PreRope(table) => format!("pre {:016x}", table.fingerprint()),
            },
            key_codec: cache.keys.codec().description(),
            value_codec: cache.values.codec().description(),
            policy: cache.policy,
            stage: cache.stage,
            keys: cache.keys.counts(),
            values: cache.values.counts(),
            positions: cache.positions.runs().to_vec(),
        }
    }

    /// Refuses a header of a cache that was made with other parameters.
    fn check(&self, expected: &Self) -> Result<(), Error> {
        let geometry = |g: &KvGeometry| format!("{g:?}");
        let policy = |p: &KvPolicy| format!("{p:?}");
        let fields = [
            ("geometry", geometry(&expected.geometry), geometry(&self.geometry)),
            ("key_storage", expected.key_storage.clone(), self.key_storage.clone()),
            ("key_codec", expected.key_codec.clone(), self.key_codec.clone()),
            ("value_codec", expected.value_codec.clone(), self.value_codec.clone()),
            ("policy", policy(&expected.policy), policy(&self.policy)),
        ];
        match fields.into_iter().find(|(_, expected, found)| expected != found) {
            Some((field, expected, found)) => Err(Error::HeaderMismatch { field, expected, found }),
            None => Ok(()),
        }
    }
}

pub(crate) fn save(cache: &QuantizedKv, to: &mut dyn Write) -> Result<(), Error> {
    let header = serde_json::to_vec(&Header::of(cache)).map_err(std::io::Error::from)?;
    let length =
        u32::try_from(header.len()).map_err(|_| Error::Corrupt { what: "too many runs of positions to save" })?;
    to.write_all(MAGIC)?;
    to.write_all(&VERSION.to_le_bytes())?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&header)?;
    cache.keys.write(cache.stage, to)?;
    cache.values.write(cache.stage, to)
}

pub(crate) fn load(like: &QuantizedKv, from: &mut dyn Read) -> Result<QuantizedKv, Error> {
    let mut start = [0; MAGIC.len() + 8];
    from.read_exact(&mut start)?;
    let (magic, numbers) = start.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Error::Corrupt { what: "it does not start with leanbitsKV" });
    }
    let number = |at: usize| u32::from_le_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]]);
    if number(0) != VERSION {
        let (expected, found) = (VERSION.to_string(), number(0).to_string());
        return Err(Error::HeaderMismatch { field: "version", expected, found });
    }
    let length = u64::from(number(4));
    if length > LONGEST_HEADER {
        return Err(Error::Corrupt { what: "its header is too long" });
    }
    let mut header = Vec::new();
    from.take(length).read_to_end(&mut header)?;
    let header: Header =
        serde_json::from_slice(&header).map_err(|_| Error::Corrupt { what: "its header is not what it should be" })?;
    header.check(&Header::of(like))?;
    let stages = like.keys.codec().stages().max(like.values.codec().stages());
    if header.stage >= stages {
        return Err(Error::Corrupt { what: "its stage does not exist" });
    }
    let mut cache = like.clone();
    cache.reset();
    cache.stage = header.stage;
    cache.keys = like.keys.read_saved(header.keys, header.stage, from)?;
    cache.values = like.values.read_saved(header.values, header.stage, from)?;
    cache.positions =
        PositionRuns::from_runs(header.positions).ok_or(Error::Corrupt { what: "positions beyond 32 bits" })?;
    if cache.keys.len() != cache.values.len() || cache.keys.len() != cache.positions.len() {
        return Err(Error::Corrupt { what: "keys, values and positions are not of the same tokens" });
    }
    cache.new_positions(cache.len(), crate::Positions::At(&cache.positions.of(0..cache.len())))?;
    Ok(cache)
}

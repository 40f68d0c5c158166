//! Tensors that are stored as several others, container version 2.
//!
//! A method may store a weight as parts: two factors, codes and a code book, a packed weight and a correction. A part is an
//! ordinary tensor of the file, plain or packed, named `NAME.PART`. `__metadata__` says for every such weight
//!
//! ```text
//! leanbits.composed.NAME = {"kind":"low-rank","version":1,"shape":[64,64],"parts":["a","b"],"settings":{…}}
//! ```
//!
//! What a kind and its settings mean is for the method to know; this crate checks that the parts are there and lends
//! them. A file with such an entry has the container version `"2"`, so that readers of version 1 refuse it as a whole.

use crate::error::{shorten, shorten_shape};
use crate::json::{self, Object};
use crate::packed::{VERSION_KEY, checked_shape};
use crate::safetensors::Header;
use crate::{Checkpoint, Entry, Error, PlainTensor};
use quant_core::PackedTensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What metadata keys of composed tensors begin with; the tensor's name follows.
pub const COMPOSED_KEY: &str = "leanbits.composed.";
/// The container version of files with composed tensors.
pub const VERSION: &str = "2";

/// Most parts of a tensor.
const MAX_PARTS: u64 = 16;
/// Longest kind and name of a part, in bytes.
const MAX_NAME: usize = 64;
/// Most elements that a composed tensor may claim for each byte that its parts take: more than a pair of rank 1
/// of a 16384 × 16384 matrix in half precision. It bounds what decoding a small file can cost.
const MAX_ELEMENTS_PER_BYTE: u64 = 4096;

/// What the metadata says of a composed tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The kind of composition, known to the method.
    pub kind: String,
    /// Version of the kind.
    pub version: u32,
    /// Shape of the whole.
    pub shape: Vec<u64>,
    /// Names of the parts.
    pub parts: Vec<String>,
    /// What the method needs beside the parts.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub settings: Value,
}

impl Description {
    /// The metadata that goes with a tensor of this name, the container's version among them.
    #[must_use]
    pub fn metadata(&self, name: &str) -> BTreeMap<String, String> {
        // Strings, numbers and a JSON value always have a JSON form.
        let text = serde_json::to_string(self).unwrap_or_default();
        let entry = (format!("{COMPOSED_KEY}{name}"), text);
        BTreeMap::from([entry, (VERSION_KEY.to_owned(), VERSION.to_owned())])
    }
}

/// A composed tensor of a file, its description checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ComposedInfo {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) description: Description,
    /// The entries of its parts, once they were found.
    pub(crate) parts: Vec<Entry>,
}

/// Reads the descriptions of a header, whose version was checked.
pub(crate) fn find(header: &Header) -> Result<Vec<ComposedInfo>, Error> {
    let composed = header.metadata().iter().filter_map(|(key, text)| Some((key.strip_prefix(COMPOSED_KEY)?, text)));
    composed.map(|(name, text)| describe(name, text)).collect()
}

fn describe(name: &str, text: &str) -> Result<ComposedInfo, Error> {
    let bad = |message| Error::BadField { field: format!("{COMPOSED_KEY}{}", shorten(name)), message };
    let Object(description) = serde_json::from_str::<Object<Description>>(text).map_err(|e| bad(json::brief(&e)))?;
    let shape = checked_shape(name, &description.shape)?;
    let count = description.parts.len() as u64;
    if count > MAX_PARTS {
        return Err(Error::TooLarge { what: "the number of parts of a tensor", value: count, limit: MAX_PARTS });
    }
    if count == 0 || shape.is_empty() || shape.contains(&0) {
        return Err(bad("it has no parts or no elements".to_owned()));
    }
    let plain = |word: &String| {
        let letters = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        letters && !word.is_empty() && word.len() <= MAX_NAME
    };
    if let Some(word) = description.parts.iter().chain([&description.kind]).find(|word| !plain(word)) {
        return Err(bad(format!("{:?} is no name of a kind or part", shorten(word))));
    }
    if let Some(twice) = description.parts.iter().enumerate().find(|(at, part)| description.parts[..*at].contains(part))
    {
        return Err(bad(format!("part {:?} is named twice", twice.1)));
    }
    Ok(ComposedInfo { name: name.to_owned(), shape, description, parts: Vec::new() })
}

/// What a file holds, once the parts of composed tensors were put together.
#[allow(clippy::large_enum_variant, reason = "they exist only while a file is opened")]
pub(crate) enum Item {
    /// A tensor that is no part.
    Whole(Entry),
    /// A composed tensor with its parts.
    Composed(ComposedInfo),
}

/// Puts composed tensors in the place of the first of their parts.
pub(crate) fn gather(infos: Vec<ComposedInfo>, entries: Vec<Entry>) -> Result<Vec<Item>, Error> {
    let by_name: BTreeMap<String, usize> = entries.iter().enumerate().map(|(at, e)| (e.name.clone(), at)).collect();
    let mut items: Vec<Option<Item>> = entries.into_iter().map(|entry| Some(Item::Whole(entry))).collect();
    for mut info in infos {
        if by_name.contains_key(&info.name) {
            return Err(Error::DuplicateKey { key: shorten(&info.name) });
        }
        let mut first = usize::MAX;
        for part in &info.description.parts {
            let section = format!("{}.{part}", info.name);
            let found = by_name.get(&section).copied();
            let taken = found.and_then(|at| items.get_mut(at)).and_then(Option::take);
            let (Some(at), Some(Item::Whole(entry))) = (found, taken) else {
                return Err(Error::MissingSection { tensor: shorten(&info.name), section: shorten(&section) });
            };
            info.parts.push(entry);
            first = first.min(at);
        }
        info.check_size()?;
        if let Some(place) = items.get_mut(first) {
            *place = Some(Item::Composed(info));
        }
    }
    Ok(items.into_iter().flatten().collect())
}

impl ComposedInfo {
    fn check_size(&self) -> Result<(), Error> {
        let elements = self.shape.iter().fold(1_u64, |n, &d| n.saturating_mul(d as u64));
        let limit = self.bytes().saturating_mul(MAX_ELEMENTS_PER_BYTE);
        if elements > limit {
            let what = "the number of elements of a composed tensor beside the bytes of its parts";
            return Err(Error::TooLarge { what, value: elements, limit });
        }
        Ok(())
    }

    /// Bytes of all parts.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }
}

/// A composed tensor, lent by [`Checkpoint::composed`].
#[derive(Clone, Copy, Debug)]
pub struct Composed<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) info: &'a ComposedInfo,
}

/// One part of a composed tensor.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one exists at a time, and only for a moment")]
pub enum Part<'a> {
    /// Element by element.
    Plain(PlainTensor<'a>),
    /// In a format.
    Packed(PackedTensor<'a>),
}

impl<'a> Composed<'a> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// Shape of the whole.
    #[must_use]
    pub fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    /// What the metadata says of it.
    #[must_use]
    pub fn description(&self) -> &'a Description {
        &self.info.description
    }

    /// Lends a part; `None` when it has none of this name.
    ///
    /// # Errors
    ///
    /// [`Error::Packed`] as [`Checkpoint::packed`].
    pub fn part(&self, part: &str) -> Result<Option<Part<'a>>, Error> {
        let Some(at) = self.info.description.parts.iter().position(|name| name == part) else { return Ok(None) };
        let Some(entry) = self.info.parts.get(at) else { return Ok(None) };
        if let Some(plain) = self.checkpoint.plain_of(entry) {
            return Ok(Some(Part::Plain(plain)));
        }
        Ok(self.checkpoint.packed_of(entry)?.map(Part::Packed))
    }
}

/// A part in words, for messages of methods that expected another one: its type and shape.
impl std::fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(plain) => write!(f, "{} {:?}", plain.dtype, shorten_shape(plain.shape)),
            Self::Packed(packed) => write!(f, "{} {:?}", packed.format(), shorten_shape(packed.shape())),
        }
    }
}

//! The header: parsed in one streaming pass, then checked as a whole.

use super::DType;
use crate::Error;
use crate::error::{shorten, shorten_shape};
use crate::json::{Object, UniqueMap, brief};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// Longest header that is accepted, in bytes; the container's own limit.
pub const HEADER_LIMIT: u64 = 100_000_000;

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name: any string, never used as a path.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The shape in elements; `[]` is a scalar, dimensions may be 0.
    pub shape: Vec<usize>,
    /// Byte range within the data section.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// Bytes the tensor takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A checked header: the ranges are disjoint, gapless and agree with shapes and types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__`.
    metadata: BTreeMap<String, String>,
    /// In order of position.
    tensors: Vec<TensorInfo>,
    /// Indices into `tensors`, by name.
    by_name: Vec<usize>,
    /// Bytes before the data section.
    data_start: u64,
}

impl Header {
    /// Parses and checks the header of a file of which all bytes are given.
    ///
    /// Memory is proportional to the header's length, whatever it says.
    ///
    /// # Errors
    ///
    /// One variant per defect: [`Error::Truncated`], [`Error::TooLarge`], [`Error::InvalidStart`],
    /// [`Error::BadUtf8`], [`Error::BadJson`], [`Error::BadField`], [`Error::DuplicateKey`],
    /// [`Error::UnknownDtype`], [`Error::Overflow`], [`Error::MisalignedBits`],
    /// [`Error::ReversedOffsets`], [`Error::SizeMismatch`], [`Error::Hole`], [`Error::Overlap`],
    /// [`Error::TrailingBytes`].
    ///
    /// # Examples
    ///
    /// ```
    /// use quant_io::safetensors::Header;
    /// let json = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    /// let mut file = (json.len() as u64).to_le_bytes().to_vec();
    /// file.extend_from_slice(json);
    /// file.extend_from_slice(&1.5_f32.to_le_bytes());
    /// let header = Header::parse(&file)?;
    /// assert_eq!(header.tensors()[0].shape, [1]);
    /// # Ok::<(), quant_io::Error>(())
    /// ```
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        let truncated = |what: &str, needed, available| Error::Truncated { what: what.to_owned(), needed, available };
        let Some((length, rest)) = file.split_first_chunk::<8>() else {
            return Err(truncated("the header length", 8, file.len() as u64));
        };
        let length = u64::from_le_bytes(*length);
        if length > HEADER_LIMIT {
            return Err(Error::TooLarge { what: "the header length", value: length, limit: HEADER_LIMIT });
        }
        let header = usize::try_from(length).ok().and_then(|n| rest.get(..n));
        let header = header.ok_or_else(|| truncated("the header", length, rest.len() as u64))?;
        match header.first() {
            Some(b'{') => {}
            Some(&byte) => return Err(Error::InvalidStart { byte }),
            None => return Err(truncated("the header", 2, 0)),
        }
        let text = std::str::from_utf8(header)
            .map_err(|e| Error::BadUtf8 { what: "the header".to_owned(), offset: e.valid_up_to() })?;
        let Parsed { metadata, mut tensors, .. } = parse_json(text)?;
        tensors.sort_by_key(|t| (t.range.start, t.range.end));
        let data = rest.len() as u64 - length;
        check_ranges(&tensors, data)?;
        let mut header = Self { metadata, tensors, by_name: Vec::new(), data_start: 8 + length };
        header.index()?;
        Ok(header)
    }

    fn index(&mut self) -> Result<(), Error> {
        self.by_name = (0..self.tensors.len()).collect();
        let tensors = &self.tensors;
        self.by_name.sort_unstable_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
        for pair in self.by_name.windows(2) {
            let name = &tensors[pair[0]].name;
            if *name == tensors[pair[1]].name {
                return Err(Error::DuplicateKey { key: shorten(name) });
            }
        }
        Ok(())
    }

    /// A header for tensors that are yet to be written, already in order and placed.
    pub(super) fn planned(
        metadata: BTreeMap<String, String>,
        tensors: Vec<TensorInfo>,
        data_start: u64,
    ) -> Result<Self, Error> {
        let mut header = Self { metadata, tensors, by_name: Vec::new(), data_start };
        header.index()?;
        Ok(header)
    }

    /// The string pairs under `__metadata__`.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors in order of position.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Where the data section begins in the file.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Bytes of the data section.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.tensors.last().map_or(0, |t| t.range.end)
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.position(name).map(|i| &self.tensors[i])
    }

    /// Index of the tensor of this name within [`Header::tensors`].
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name));
        found.ok().map(|k| self.by_name[k])
    }
}

/// Bytes of a tensor of this type and shape.
pub(super) fn tensor_bytes(name: &str, dtype: DType, shape: &[u64]) -> Result<u64, Error> {
    let overflow = || Error::Overflow { what: format!("tensor {:?}", shorten(name)), shape: shorten_shape(shape) };
    let elements = shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    let bits = elements.checked_mul(dtype.bits()).ok_or_else(overflow)?;
    if bits % 8 != 0 {
        return Err(Error::MisalignedBits { tensor: shorten(name), bits });
    }
    Ok(bits / 8)
}

fn check_ranges(tensors: &[TensorInfo], data: u64) -> Result<(), Error> {
    let mut end = 0;
    for tensor in tensors {
        let (tensor_name, found) = (|| shorten(&tensor.name), tensor.range.start);
        if found > end {
            return Err(Error::Hole { tensor: tensor_name(), expected: end, found });
        }
        if found < end {
            return Err(Error::Overlap { tensor: tensor_name(), expected: end, found });
        }
        end = tensor.range.end;
        if end > data {
            let what = format!("the data of tensor {:?}", tensor_name());
            return Err(Error::Truncated { what, needed: end, available: data });
        }
    }
    if end < data {
        return Err(Error::TrailingBytes { extra: data - end });
    }
    Ok(())
}

/// What the streaming pass gathers. A typed error waits in `error` while serde unwinds with its own.
#[derive(Default)]
struct Parsed {
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorInfo>,
    error: Option<Error>,
    /// The entry being read, for messages.
    entry: String,
}

fn parse_json(text: &str) -> Result<Parsed, Error> {
    let mut parsed = Parsed::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let result = HeaderSeed(&mut parsed).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match result {
        Ok(()) => Ok(parsed),
        Err(_) if parsed.error.is_some() => Err(parsed.error.unwrap_or(Error::TrailingBytes { extra: 0 })),
        Err(error) if error.is_data() => {
            Err(Error::BadField { field: format!("header entry {:?}", shorten(&parsed.entry)), message: brief(&error) })
        }
        Err(error) => Err(Error::BadJson { what: "the header", message: brief(&error) }),
    }
}

struct HeaderSeed<'a>(&'a mut Parsed);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    /// A pair; its length is checked here because serde's words for an array too long are misleading.
    data_offsets: Vec<u64>,
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let stop = |error: Error, slot: &mut Option<Error>| {
            *slot = Some(error);
            serde::de::Error::custom("stopped")
        };
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            self.0.entry.clone_from(&name);
            if name == "__metadata__" {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(stop(Error::DuplicateKey { key: name }, &mut self.0.error));
                }
                let metadata = map.next_value::<UniqueMap>()?;
                if let Some(key) = metadata.duplicate {
                    return Err(stop(Error::DuplicateKey { key: shorten(&key) }, &mut self.0.error));
                }
                self.0.metadata = metadata.entries;
                continue;
            }
            let Object(raw) = map.next_value::<Object<RawTensor>>()?;
            let info = check_tensor(name, raw).map_err(|e| stop(e, &mut self.0.error))?;
            self.0.tensors.push(info);
        }
        Ok(())
    }
}

fn check_tensor(name: String, raw: RawTensor) -> Result<TensorInfo, Error> {
    let Some(dtype) = DType::from_name(&raw.dtype) else {
        return Err(Error::UnknownDtype { tensor: shorten(&name), dtype: shorten(&raw.dtype) });
    };
    let expected = tensor_bytes(&name, dtype, &raw.shape)?;
    let [begin, end] = raw.data_offsets[..] else {
        let message = format!("data_offsets has {} numbers instead of 2", raw.data_offsets.len());
        return Err(Error::BadField { field: format!("header entry {:?}", shorten(&name)), message });
    };
    let Some(found) = end.checked_sub(begin) else {
        return Err(Error::ReversedOffsets { tensor: shorten(&name), begin, end });
    };
    if found != expected {
        return Err(Error::SizeMismatch { tensor: shorten(&name), expected, found });
    }
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = shape.ok_or_else(|| Error::Overflow {
        what: format!("tensor {:?}", shorten(&name)),
        shape: shorten_shape(&raw.shape),
    })?;
    Ok(TensorInfo { name, dtype, shape, range: begin..end })
}

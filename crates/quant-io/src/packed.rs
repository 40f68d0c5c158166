//! Packed tensors of this project in safetensors, container version 1.
//!
//! `__metadata__` carries `leanbits.version` = `"1"` and for every packed tensor `NAME` an entry
//! `leanbits.packed.NAME` = `{"format":"int4-g128","shape":[4096,4096]}`. The sections of
//! [`quant_core::Layout`] are tensors of the file, byte for byte, so a mapped file lends a
//! [`PackedTensor`] without a copy:
//!
//! | tensor | dtype | shape |
//! |---|---|---|
//! | `NAME.codes` | `U8` | rows × bytes of a row of codes |
//! | `NAME.scales` | the scale's own: `F32`, `F16`, `BF16`, `F8_E8M0`, `F8_E4M3`; `U8` for codes of exponents and double quantization | block rows × blocks of a row (bytes for `U8`) |
//! | `NAME.zeros` | `U8` for a bit stream of integers, else as `scales` | block rows × bytes or values of a row |
//! | `NAME.second` | `F32` | values of the second level |
//!
//! A section of no bytes is not stored. Tensors that no entry names are plain. Every other key that
//! begins with `leanbits.` is refused: a later version that needs one must raise the version, as [`crate::composed`] does.

use crate::error::{shorten, shorten_shape};
use crate::json::{self, Object};
use crate::safetensors::{DType, Header, TensorSpec};
use crate::{Error, composed};
use quant_core::{Format, Layout, PackedTensor, Scale, ScaleType, ZeroPoint};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Metadata key of the container's version.
pub const VERSION_KEY: &str = "leanbits.version";
/// The version that is written for files with packed tensors only; see [`crate::composed`] for the other one.
pub const VERSION: &str = "1";
/// What metadata keys of packed tensors begin with; the tensor's name follows.
pub const PACKED_KEY: &str = "leanbits.packed.";

/// What messages say that is read.
const KNOWN: &str = "1 and 2";

/// Most dimensions of a packed tensor.
const MAX_RANK: u64 = 32;

const SECTIONS: [&str; 4] = ["codes", "scales", "zeros", "second"];

/// A packed tensor of a file, its sections checked for type and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedInfo {
    /// Its name.
    pub name: String,
    /// Its format.
    pub format: Format,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Positions of the sections `codes`, `scales`, `zeros`, `second` in [`Header::tensors`].
    pub sections: [Option<usize>; 4],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format: String,
    shape: Vec<u64>,
}

/// Finds the packed tensors of a header; `None` for a file without `leanbits.version`.
///
/// # Errors
///
/// [`Error::UnsupportedVersion`], [`Error::BadField`] for an unknown key or a description that does not
/// parse, [`Error::Packed`] for an unknown format or a shape it cannot have, [`Error::Overflow`],
/// [`Error::TooLarge`] for more than 32 dimensions,
/// [`Error::MissingSection`], [`Error::BadSection`].
pub fn find(header: &Header) -> Result<Option<Vec<PackedInfo>>, Error> {
    let metadata = header.metadata();
    let version = metadata.get(VERSION_KEY).map(String::as_str);
    let composed = version == Some(composed::VERSION);
    if let Some(found) = version.filter(|version| *version != VERSION && !composed) {
        return Err(Error::UnsupportedVersion { what: "leanbits container", found: shorten(found), known: KNOWN });
    }
    let known = |key: &str| {
        key == VERSION_KEY || key.starts_with(PACKED_KEY) || (composed && key.starts_with(composed::COMPOSED_KEY))
    };
    if let Some(key) = metadata.keys().find(|key| key.starts_with("leanbits.") && !known(key)) {
        let message = "this version of the container does not define it".to_owned();
        return Err(Error::BadField { field: shorten(key), message });
    }
    if version.is_none() {
        return match metadata.keys().find(|key| key.starts_with(PACKED_KEY)) {
            Some(key) => {
                let message = format!("{VERSION_KEY} is missing");
                Err(Error::BadField { field: shorten(key), message })
            }
            None => Ok(None),
        };
    }
    let packed = metadata.iter().filter_map(|(key, text)| Some((key.strip_prefix(PACKED_KEY)?, text)));
    packed.map(|(name, text)| describe(header, name, text)).collect::<Result<_, _>>().map(Some)
}

fn describe(header: &Header, name: &str, text: &str) -> Result<PackedInfo, Error> {
    let bad = |message| Error::BadField { field: format!("{PACKED_KEY}{}", shorten(name)), message };
    let Object(description) = serde_json::from_str::<Object<Description>>(text).map_err(|e| bad(json::brief(&e)))?;
    let format: Format = description.format.parse().map_err(Error::packed(name))?;
    let shape = checked_shape(name, &description.shape)?;
    let mut sections = [None; 4];
    for (position, spec) in sections.iter_mut().zip(section_specs(name, format, &shape)?) {
        let found = header.position(&spec.name);
        if spec.shape.contains(&0) {
            if let Some(found) = found {
                return Err(bad_section(name, &spec, header, found));
            }
            continue;
        }
        let Some(found) = found else {
            return Err(Error::MissingSection { tensor: shorten(name), section: shorten(&spec.name) });
        };
        let info = &header.tensors()[found];
        if info.dtype != spec.dtype || info.shape != spec.shape {
            return Err(bad_section(name, &spec, header, found));
        }
        *position = Some(found);
    }
    if header.get(name).is_some() {
        return Err(Error::DuplicateKey { key: shorten(name) });
    }
    Ok(PackedInfo { name: name.to_owned(), format, shape, sections })
}

fn bad_section(name: &str, spec: &TensorSpec, header: &Header, found: usize) -> Error {
    let info = &header.tensors()[found];
    Error::BadSection {
        tensor: shorten(name),
        section: shorten(&spec.name),
        expected: format!("{} {:?}", spec.dtype, spec.shape),
        found: format!("{} {:?}", info.dtype, shorten_shape(&info.shape)),
    }
}

/// A shape of reasonable rank whose sections have sizes that fit, whatever the format.
pub(crate) fn checked_shape(name: &str, shape: &[u64]) -> Result<Vec<usize>, Error> {
    if shape.len() as u64 > MAX_RANK {
        let value = shape.len() as u64;
        return Err(Error::TooLarge { what: "the rank of a packed tensor", value, limit: MAX_RANK });
    }
    let overflow = || Error::Overflow { what: format!("packed tensor {:?}", shorten(name)), shape: shape.to_vec() };
    // At most 16 bytes an element: a 2-byte code and an f32 scale, zero and second-level magnitude each.
    let elements = shape.iter().try_fold(16_u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    usize::try_from(elements).ok().and_then(|n| isize::try_from(n).ok()).ok_or_else(overflow)?;
    shape.iter().map(|&d| usize::try_from(d).map_err(|_| overflow())).collect()
}

/// The four possible sections; those that the format does not have come with a shape of zero.
fn section_specs(name: &str, format: Format, shape: &[usize]) -> Result<[TensorSpec; 4], Error> {
    let layout = Layout::new(format, shape).map_err(Error::packed(name))?;
    let float = |kind| match kind {
        ScaleType::F32 => DType::F32,
        ScaleType::F16 => DType::F16,
        ScaleType::Bf16 => DType::BF16,
    };
    let (rows, blocks) = (layout.block_rows_count(), layout.block_columns_count());
    let (scale, scale_columns) = match format.scale {
        Scale::None => (DType::U8, 0),
        Scale::Float(kind) => (float(kind), blocks),
        Scale::E8m0(_) => (DType::F8E8M0, blocks),
        Scale::E4m3(_) => (DType::F8E4M3, blocks),
        Scale::Double | Scale::Exponent(_) => (DType::U8, layout.scale_row_bytes),
    };
    let (zero, zero_columns) = match format.zero_point() {
        ZeroPoint::None => (DType::U8, 0),
        ZeroPoint::Integer { .. } => (DType::U8, layout.zero_row_bytes),
        ZeroPoint::Float(kind) => (float(kind), blocks),
    };
    let spec = |section: &str, dtype, shape: &[usize]| TensorSpec::new(format!("{name}.{section}"), dtype, shape);
    Ok([
        spec(SECTIONS[0], DType::U8, &[layout.rows, layout.code_row_bytes]),
        spec(SECTIONS[1], scale, &[rows, scale_columns]),
        spec(SECTIONS[2], zero, &[rows, zero_columns]),
        spec(SECTIONS[3], DType::F32, &[layout.second_len]),
    ])
}

/// The tensors in which a packed tensor is stored, for the plan of a file.
///
/// # Errors
///
/// [`Error::Packed`] when the format cannot have the shape, [`Error::Overflow`].
pub fn specs(name: &str, format: Format, shape: &[usize]) -> Result<Vec<TensorSpec>, Error> {
    let wide: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    checked_shape(name, &wide)?;
    Ok(section_specs(name, format, shape)?.into_iter().filter(|spec| !spec.shape.contains(&0)).collect())
}

/// The metadata entries that go with packed tensors; the version is among them.
pub fn metadata<'a>(tensors: impl IntoIterator<Item = (&'a str, Format, &'a [usize])>) -> BTreeMap<String, String> {
    let describe = |(name, format, shape): (&str, Format, &[usize])| {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        (format!("{PACKED_KEY}{name}"), format!("{{\"format\":\"{format}\",\"shape\":[{}]}}", shape.join(",")))
    };
    let mut metadata: BTreeMap<String, String> = tensors.into_iter().map(describe).collect();
    metadata.insert(VERSION_KEY.to_owned(), VERSION.to_owned());
    metadata
}

/// The stored sections of a packed tensor: names and bytes.
#[must_use]
pub fn sections<'a>(name: &str, packed: &'a PackedTensor<'_>) -> Vec<(String, Cow<'a, [u8]>)> {
    let second: Vec<u8> = packed.second().iter().flat_map(|x| x.to_le_bytes()).collect();
    let bytes: [Cow<'a, [u8]>; 4] =
        [packed.codes().into(), packed.scales().into(), packed.zeros().into(), second.into()];
    SECTIONS
        .iter()
        .zip(bytes)
        .filter(|(_, bytes)| !bytes.is_empty())
        .map(|(section, bytes)| (format!("{name}.{section}"), bytes))
        .collect()
}

/// Joins the sections of a packed tensor, borrowing codes, scales and zeros.
///
/// # Errors
///
/// [`Error::Packed`] for a section of the wrong length or a scale that is not finite.
pub fn assemble<'a>(info: &PackedInfo, section: impl Fn(usize) -> &'a [u8]) -> Result<PackedTensor<'a>, Error> {
    let bytes = info.sections.map(|position| position.map_or(&[][..], &section));
    let [codes, scales, zeros, second] = bytes;
    let (floats, _) = second.as_chunks::<4>();
    let second = floats.iter().map(|b| f32::from_le_bytes(*b)).collect();
    PackedTensor::from_sections(info.format, &info.shape, codes, scales, zeros, second)
        .map_err(Error::packed(&info.name))
}

//! The textual names of formats.

use crate::element::{BOOK_NAMES, MX_NAMES, NAMES};
use crate::{
    Block, Codebook, Element, Error, FloatKind, Format, IntRule, NamedFormat, NvRule, Overflow, Scale, ScaleRule,
    ScaleType, TernaryRule,
};
use std::fmt;
use std::str::FromStr;

const ALIASES: [(&str, &str); 4] =
    [("fp8", "fp8-e4m3"), ("mxfp8", "mxfp8-e4m3"), ("mxfp6", "mxfp6-e2m3"), ("fp4", "fp4-e2m1")];
const INT_RULES: [(&str, IntRule); 10] = [
    ("sym", IntRule::Restricted),
    ("full", IntRule::Full),
    ("ctsym", IntRule::CtSym),
    ("gptq", IntRule::GptqSym),
    ("awq", IntRule::AwqSym),
    ("asym", IntRule::Asymmetric),
    ("ctasym", IntRule::CtAsym),
    ("awqasym", IntRule::AwqAsym),
    ("min", IntRule::FloatMin),
    ("mlx", IntRule::Mlx),
];
const SCALE_TYPES: [(&str, ScaleType); 3] =
    [("f32", ScaleType::F32), ("f16", ScaleType::F16), ("bf16", ScaleType::Bf16)];
const SCALE_RULES: [(&str, ScaleRule); 7] = [
    ("floor", ScaleRule::Floor),
    ("ceil", ScaleRule::Ceil),
    ("even", ScaleRule::Even),
    ("ct", ScaleRule::EvenCt),
    ("rceil", ScaleRule::RCeil),
    ("rfloor", ScaleRule::RFloor),
    ("rround", ScaleRule::RRound),
];
const NV_RULES: [(&str, NvRule); 8] = [
    ("standard", NvRule::Standard),
    ("torchao", NvRule::TorchAo),
    ("torchao1", NvRule::TorchAoSingle),
    ("modelopt", NvRule::ModelOpt),
    ("ct", NvRule::CompressedTensors),
    ("mlx", NvRule::Mlx),
    ("mlx1", NvRule::MlxSingle),
    ("paper", NvRule::PaperBf16),
];

const TERNARY_RULES: [(&str, TernaryRule); 3] =
    [("mean", TernaryRule::Mean), ("max", TernaryRule::Max), ("min", TernaryRule::Min)];

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
}

fn name_of<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|(_, v)| v == value).map_or("?", |(name, _)| *name)
}

/// The format that a stem such as `int4` or `mxfp8-e4m3` means without modifiers.
fn stem(name: &str) -> Option<Format> {
    let number = |prefix| name.strip_prefix(prefix).filter(|n| n.len() == 1).and_then(|n| n.parse::<u8>().ok());
    let float = |kind| Element::Float { kind, overflow: Overflow::Saturate };
    let int = |bits| Element::Int { bits, rule: IntRule::Restricted };
    let shared = |bits, exponent, group| Format {
        element: Element::Magnitude { bits },
        block: Block::Group(group),
        scale: Scale::Exponent(exponent),
    };
    let (element, block, scale) = if let Some(kind) = find(&NAMES, name) {
        let scale = if kind.bits() > 8 { Scale::None } else { Scale::Float(ScaleType::F32) };
        (float(kind), Block::Row, scale)
    } else if let Some(kind) = find(&MX_NAMES, name) {
        (float(kind), Block::Group(32), Scale::E8m0(ScaleRule::Floor))
    } else if let Some(book) = find(&BOOK_NAMES, name) {
        (Element::Codebook(book), Block::Group(64), Scale::Float(ScaleType::F32))
    } else if let Some(bits) = number("int") {
        (int(bits), Block::Row, Scale::Float(ScaleType::F16))
    } else if let Some(bits) = number("mxint") {
        (int(bits), Block::Group(32), Scale::E8m0(ScaleRule::Floor))
    } else if let Some(bits) = number("nvint") {
        (int(bits), Block::Group(16), Scale::E4m3(NvRule::Standard))
    } else if let Some(bits) = number("bfp") {
        return Some(shared(bits, 8, 32));
    } else if let Some(bits) = number("sefp") {
        return Some(shared(bits, 5, 64));
    } else if let Some(bits) = number("gse") {
        return Some(shared(bits.checked_sub(1)?, 5, 32));
    } else if name == "nvfp4" {
        return Some(Format::NVFP4);
    } else if name == "ternary" {
        return Some(Format::TERNARY);
    } else {
        return None;
    };
    Some(Format { element, block, scale })
}

/// The stem of a format and what that stem means by itself.
fn stem_of(format: &Format) -> (String, Format) {
    let name = match (format.element, format.scale) {
        (Element::Int { bits, .. }, Scale::E8m0(_)) => format!("mxint{bits}"),
        (Element::Int { bits, .. }, Scale::E4m3(_)) => format!("nvint{bits}"),
        (Element::Int { bits, .. }, _) => format!("int{bits}"),
        (Element::Float { kind, .. }, Scale::E8m0(_)) => name_of(&MX_NAMES, &kind).to_owned(),
        (Element::Float { .. }, Scale::E4m3(_)) => "nvfp4".to_owned(),
        (Element::Float { kind, .. }, _) => name_of(&NAMES, &kind).to_owned(),
        (Element::Codebook(book), _) => name_of(&BOOK_NAMES, &book).to_owned(),
        (Element::Magnitude { bits }, Scale::Exponent(5)) => format!("sefp{bits}"),
        (Element::Magnitude { bits }, _) => format!("bfp{bits}"),
        (Element::Ternary(_), _) => "ternary".to_owned(),
    };
    let plain = stem(&name).unwrap_or(*format);
    (name, plain)
}

/// Prints the shortest name that parses to this format.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, plain) = stem_of(self);
        f.write_str(&name)?;
        if self.block != plain.block && self.scale != Scale::None {
            match self.block {
                Block::Tensor => f.write_str("-tensor")?,
                Block::Row => f.write_str("-row")?,
                Block::Group(group) => write!(f, "-g{group}")?,
                Block::Tile { rows, columns } => write!(f, "-t{rows}x{columns}")?,
            }
        }
        if self.element != plain.element {
            match self.element {
                Element::Int { rule, .. } => write!(f, "-{}", name_of(&INT_RULES, &rule))?,
                Element::Ternary(rule) => write!(f, "-{}", name_of(&TERNARY_RULES, &rule))?,
                _ => {}
            }
        }
        if self.scale != plain.scale {
            match self.scale {
                Scale::None => {}
                Scale::Float(kind) => write!(f, "-{}", name_of(&SCALE_TYPES, &kind))?,
                Scale::E8m0(rule) => write!(f, "-{}", name_of(&SCALE_RULES, &rule))?,
                Scale::E4m3(rule) => write!(f, "-{}", name_of(&NV_RULES, &rule))?,
                Scale::Double => f.write_str("-dq")?,
                // The stem says which: `sefp` has 5 bits, `bfp` 8.
                Scale::Exponent(_) => {}
            }
        }
        match (self.element, self.scale) {
            (Element::Float { overflow: Overflow::NonSaturating, .. }, _) => f.write_str("-nonsat"),
            (Element::Float { kind, .. }, Scale::None) if kind.bits() <= 8 => f.write_str("-cast"),
            _ => Ok(()),
        }
    }
}

/// Parses a name: a stem and modifiers in any order, joined by `-`.
///
/// | stem | meaning | defaults |
/// |---|---|---|
/// | `int1` … `int8` | integers | one f16 scale a row, symmetric |
/// | `fp8-e4m3` (`fp8`), `fp8-e5m2`, `fp8-e4m3fnuz`, `fp8-e5m2fnuz`, `fp8-e4m3b11fnuz`, `fp8-e4m3ieee`, `fp8-e3m4`, `fp6-e2m3`, `fp6-e3m2`, `fp4-e2m1` (`fp4`) | floats | one f32 scale a row |
/// | `f16`, `bf16` | 16-bit floats | no scale |
/// | `mxfp8-e4m3` (`mxfp8`), `mxfp8-e5m2`, `mxfp6-e2m3` (`mxfp6`), `mxfp6-e3m2`, `mxfp4`, `mxint2` … `mxint8` | OCP Microscaling | groups of 32, rule `floor` |
/// | `nvfp4`, `nvint2` … `nvint8` | two-level scales | groups of 16 |
/// | `nf4`, `af4`, `bnbfp4` | code books | groups of 64, f32 magnitudes |
/// | `bfp1` … `bfp9` | sign and so many magnitude bits, 8-bit shared exponent | groups of 32 |
/// | `sefp1` … `sefp9`; `gse2` … `gse9` = `sefp(b−1)-g32` | the same with 5-bit exponents | groups of 64 |
/// | `ternary` | three levels | one f32 scale a tensor, the mean magnitude |
///
/// | modifier | meaning |
/// |---|---|
/// | `tensor`, `row`, `gN`, `tRxC` | the elements that share a scale |
/// | `f32`, `f16`, `bf16` | type of float scales |
/// | `sym`, `full`, `ctsym`, `gptq`, `awq`, `asym`, `ctasym`, `awqasym`, `min`, `mlx` | integer rule, see [`IntRule`] |
/// | `mean`, `max`, `min` | rule of three levels, see [`TernaryRule`] |
/// | `floor`, `ceil`, `even`, `ct`, `rceil`, `rfloor`, `rround` | power-of-two rule, see [`ScaleRule`] |
/// | `standard`, `torchao`, `torchao1`, `modelopt`, `ct`, `mlx`, `mlx1`, `paper` | two-level rule, see [`NvRule`] |
/// | `dq` | double-quantized magnitudes of code books |
/// | `cast`, `nonsat` | a float without scale, saturating or not |
impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown = |reason: String| {
            // A hostile name may be long; the message shows its start.
            Error::UnknownFormat { name: name.chars().take(80).collect(), reason }
        };
        let parts: Vec<&str> = name.split('-').collect();
        let stem_parts = |n: usize| {
            let text = parts.get(..n)?.join("-");
            stem(find(&ALIASES, &text).unwrap_or(&text)).map(|format| (format, n))
        };
        let (mut format, used) = stem_parts(2)
            .or_else(|| stem_parts(1))
            .ok_or_else(|| unknown(format!("{:?} is no known stem", parts[0].chars().take(40).collect::<String>())))?;
        let mut seen = [false; 4];
        for part in &parts[used..] {
            let slot = apply(&mut format, part).ok_or_else(|| {
                unknown(format!("modifier {:?} does not apply", part.chars().take(40).collect::<String>()))
            })?;
            if std::mem::replace(&mut seen[slot], true) {
                return Err(unknown(format!("{part:?} contradicts an earlier modifier")));
            }
        }
        format.validate().map_err(|error| match error {
            Error::InvalidFormat { reason, .. } => unknown(reason.to_owned()),
            other => other,
        })?;
        Ok(format)
    }
}

/// Applies one modifier; returns which part of the format it set.
fn apply(format: &mut Format, part: &str) -> Option<usize> {
    const BLOCK: usize = 0;
    const RULE: usize = 1;
    const SCALE: usize = 2;
    const CAST: usize = 3;
    if let Some(block) = parse_block(part) {
        format.block = block;
        return Some(BLOCK);
    }
    match (&mut format.element, &mut format.scale) {
        (Element::Int { rule, .. }, Scale::Float(_)) if find(&INT_RULES, part).is_some() => {
            *rule = find(&INT_RULES, part)?;
            Some(RULE)
        }
        (Element::Ternary(rule), _) if find(&TERNARY_RULES, part).is_some() => {
            *rule = find(&TERNARY_RULES, part)?;
            Some(RULE)
        }
        (_, scale @ (Scale::Float(_) | Scale::Double)) if find(&SCALE_TYPES, part).is_some() => {
            *scale = Scale::Float(find(&SCALE_TYPES, part)?);
            Some(SCALE)
        }
        (Element::Codebook(_), scale) if part == "dq" => {
            *scale = Scale::Double;
            Some(SCALE)
        }
        (_, Scale::E8m0(rule)) => {
            *rule = find(&SCALE_RULES, part)?;
            Some(SCALE)
        }
        (_, Scale::E4m3(rule)) => {
            *rule = find(&NV_RULES, part)?;
            Some(SCALE)
        }
        (Element::Float { overflow, .. }, scale @ (Scale::Float(_) | Scale::None)) => {
            *overflow = match part {
                "cast" => Overflow::Saturate,
                "nonsat" => Overflow::NonSaturating,
                _ => return None,
            };
            *scale = Scale::None;
            Some(CAST)
        }
        _ => None,
    }
}

fn parse_block(part: &str) -> Option<Block> {
    let size = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    match part {
        "tensor" => Some(Block::Tensor),
        "row" => Some(Block::Row),
        _ => {
            if let Some(group) = part.strip_prefix('g') {
                return Some(Block::Group(size(group)?));
            }
            let (rows, columns) = part.strip_prefix('t')?.split_once('x')?;
            Some(Block::Tile { rows: size(rows)?, columns: size(columns)? })
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Format {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Format {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;

        impl serde::de::Visitor<'_> for Name {
            type Value = Format;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a format, such as \"int4-g128\"")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Format, E> {
                name.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Name)
    }
}

impl Format {
    /// The formats that carry a name of their own, with a summary each.
    #[must_use]
    pub const fn named() -> &'static [NamedFormat] {
        &NAMED
    }
}

const fn named(name: &'static str, summary: &'static str, format: Format) -> NamedFormat {
    NamedFormat { name, summary, format }
}

const fn int(bits: u8, block: Block, rule: IntRule) -> Format {
    Format { element: Element::Int { bits, rule }, block, scale: Scale::Float(ScaleType::F16) }
}

const fn fp8(kind: FloatKind, block: Block) -> Format {
    let element = Element::Float { kind, overflow: Overflow::Saturate };
    Format { element, block, scale: Scale::Float(ScaleType::F32) }
}

const fn mx_int(bits: u8) -> Format {
    Format { element: Element::Int { bits, rule: IntRule::Restricted }, ..Format::MXINT8 }
}

const fn codebook(book: Codebook) -> Format {
    Format { element: Element::Codebook(book), ..Format::NF4 }
}

const fn shared_exponent(bits: u8, exponent: u8, group: u32) -> Format {
    let element = Element::Magnitude { bits };
    Format { element, block: Block::Group(group), scale: Scale::Exponent(exponent) }
}

const fn with_scale(format: Format, scale: Scale) -> Format {
    Format { scale, ..format }
}

const fn ternary_min() -> Format {
    let element = Element::Ternary(TernaryRule::Min);
    Format { element, block: Block::Group(128), scale: Scale::Float(ScaleType::F16) }
}

/// Ordered by family, then from many bits to few.
const NAMED: [NamedFormat; 35] = [
    named("int8", "symmetric integers, f16 scale a row", Format::INT8),
    named("int6", "symmetric integers, f16 scale a row", int(6, Block::Row, IntRule::Restricted)),
    named("int4-g32", "symmetric integers, f16 scale for 32", int(4, Block::Group(32), IntRule::Restricted)),
    named("int4-g64", "symmetric integers, f16 scale for 64", int(4, Block::Group(64), IntRule::Restricted)),
    named("int4-g128", "symmetric integers, f16 scale for 128", Format::INT4_G128),
    named("int8-asym", "integers with zero point, f16 scale a row", int(8, Block::Row, IntRule::Asymmetric)),
    named("int4-g32-asym", "integers with zero point, f16 scale for 32", int(4, Block::Group(32), IntRule::Asymmetric)),
    named("int4-g128-asym", "integers with zero point, f16 scale for 128", Format::INT4_G128_ASYM),
    named(
        "int3-g128-asym",
        "integers with zero point, f16 scale for 128",
        int(3, Block::Group(128), IntRule::Asymmetric),
    ),
    named("int2-g32-asym", "integers with zero point, f16 scale for 32", int(2, Block::Group(32), IntRule::Asymmetric)),
    named(
        "int2-g128-min",
        "integers above the least value, f16 both (KV caches)",
        int(2, Block::Group(128), IntRule::FloatMin),
    ),
    named("fp8-e4m3", "OCP FP8, f32 scale a row", Format::FP8_E4M3),
    named(
        "fp8-e4m3-t128x128",
        "OCP FP8, f32 scale a tile of 128×128",
        fp8(FloatKind::E4m3Fn, Block::Tile { rows: 128, columns: 128 }),
    ),
    named("fp8-e5m2", "OCP FP8, f32 scale a row", Format::FP8_E5M2),
    named("mxint8", "OCP Microscaling, integers", Format::MXINT8),
    named("mxfp8-e4m3", "OCP Microscaling", Format::MXFP8_E4M3),
    named("mxfp8-e5m2", "OCP Microscaling", Format::MXFP8_E5M2),
    named("mxfp6-e2m3", "OCP Microscaling", Format::MXFP6_E2M3),
    named("mxfp6-e3m2", "OCP Microscaling", Format::MXFP6_E3M2),
    named("mxint4", "Microscaling, integers", mx_int(4)),
    named("mxfp4", "OCP Microscaling", Format::MXFP4),
    named(
        "mxfp4-even",
        "Microscaling, scale from the rounded maximum",
        with_scale(Format::MXFP4, Scale::E8m0(ScaleRule::Even)),
    ),
    named(
        "mxfp4-rceil",
        "Microscaling, scale rounded up: nothing saturates",
        with_scale(Format::MXFP4, Scale::E8m0(ScaleRule::RCeil)),
    ),
    named("nvfp4", "E2M1 under E4M3 scales and one f32 scale", Format::NVFP4),
    named("nvint4", "±7 under E4M3 scales and one f32 scale", Format::NVINT4),
    named("nf4", "normal quantiles, f32 magnitude for 64", Format::NF4),
    named("nf4-dq", "normal quantiles, magnitudes quantized once more", with_scale(Format::NF4, Scale::Double)),
    named("af4", "abnormal float, f32 magnitude for 64", codebook(Codebook::Af4)),
    named("bnbfp4", "FP4 table of bitsandbytes, f32 magnitude for 64", codebook(Codebook::BnbFp4)),
    named("bfp7", "sign and 7 bits, 8-bit exponent for 32", shared_exponent(7, 8, 32)),
    named("sefp8", "sign and 8 bits that nest, 5-bit exponent for 64", shared_exponent(8, 5, 64)),
    named("sefp4", "sign and 4 bits that nest, 5-bit exponent for 64", shared_exponent(4, 5, 64)),
    named("sefp4-g32", "GSE-INT5: sign and 4 bits, 5-bit exponent for 32", shared_exponent(4, 5, 32)),
    named("ternary", "-1, 0, 1 times the mean magnitude of the tensor", Format::TERNARY),
    named("ternary-g128-min-f16", "least, middle, largest value, f16 scale for 128", ternary_min()),
];

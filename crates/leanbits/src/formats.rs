//! The named formats, described for people and programs.

use crate::table::{Align, Table};
use quant_core::{
    Block, Element, Error, Footprint, Format, IntRule, Layout, NvRule, Overflow, Scale, ScaleRule, ScaleType,
    TernaryRule, ZeroPoint,
};
use serde::Serialize;

/// Shape on which [`FormatInfo::bits_per_weight`] is counted: a common linear of a 7-billion-parameter model.
pub const REFERENCE_SHAPE: [usize; 2] = [4096, 4096];

/// One format in words.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FormatInfo {
    /// Name that every command takes.
    pub name: String,
    /// What it is, in a few words.
    pub summary: String,
    /// What one code means.
    pub element: String,
    /// The elements that share a scale.
    pub block: String,
    /// How the scale is stored.
    pub scale: String,
    /// How the zero point is stored, if there is one.
    pub zero_point: Option<String>,
    /// Bits one code takes before packing.
    pub code_bits: u32,
    /// Bits stored for each weight of a 4096 × 4096 matrix, scales and zero points included.
    pub bits_per_weight: f64,
}

impl FormatInfo {
    /// Describes a format.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidFormat`] when its parts contradict each other.
    pub fn new(format: Format, summary: &str) -> Result<Self, Error> {
        Ok(Self {
            name: format.to_string(),
            summary: summary.to_owned(),
            element: element(&format),
            block: block(format.block),
            scale: scale(format.scale),
            zero_point: match format.zero_point() {
                ZeroPoint::None => None,
                ZeroPoint::Integer { bits } => Some(format!("{bits}-bit integer")),
                ZeroPoint::Float(kind) => Some(scale_type(kind).to_owned()),
            },
            code_bits: format.code_bits(),
            bits_per_weight: footprint(format, &REFERENCE_SHAPE)?.bits_per_element(),
        })
    }
}

/// The named formats, narrowest first.
///
/// ```
/// let formats = leanbits::formats();
/// assert!(formats.iter().any(|format| format.name == "mxfp4" && format.bits_per_weight == 4.25));
/// ```
#[must_use]
pub fn formats() -> Vec<FormatInfo> {
    let mut list: Vec<FormatInfo> =
        Format::named().iter().filter_map(|named| FormatInfo::new(named.format, named.summary).ok()).collect();
    list.sort_by(|a, b| a.bits_per_weight.total_cmp(&b.bits_per_weight).then_with(|| a.name.cmp(&b.name)));
    list
}

/// Bytes a tensor of this shape takes in this format, known without looking at its values.
///
/// # Errors
///
/// [`Error::InvalidFormat`], [`Error::Empty`] for a shape without elements, [`Error::SizeOverflow`].
///
/// ```
/// let bytes = leanbits::footprint(quant_core::Format::INT4_G128, &[4096, 4096])?.total_bytes();
/// assert_eq!(bytes, 4096 * 4096 / 2 + 4096 * 32 * 2);
/// # Ok::<(), quant_core::Error>(())
/// ```
pub fn footprint(format: Format, shape: &[usize]) -> Result<Footprint, Error> {
    let layout = Layout::new(format, shape)?;
    Ok(Footprint {
        elements: layout.rows as u64 * layout.columns as u64,
        codes: layout.code_bytes() as u64,
        scales: layout.scale_bytes() as u64,
        zeros: layout.zero_bytes() as u64,
        other: 4 * layout.second_len as u64,
    })
}

fn element(format: &Format) -> String {
    match format.element {
        Element::Int { bits, rule } => format!("int{bits}{}", int_rule(rule)),
        Element::Float { kind, overflow } => {
            let overflow = if overflow == Overflow::NonSaturating { ", not saturating" } else { "" };
            format!("{}{overflow}", format!("{kind:?}").to_lowercase())
        }
        Element::Codebook(book) => format!("{} code book", format!("{book:?}").to_lowercase()),
        Element::Magnitude { bits } => format!("sign + {bits} magnitude bits"),
        Element::Ternary(TernaryRule::Min) => "3 levels from minimum (5 in a byte)".to_owned(),
        Element::Ternary(TernaryRule::Mean | TernaryRule::Max) => "-1, 0, 1 (5 in a byte)".to_owned(),
    }
}

fn int_rule(rule: IntRule) -> &'static str {
    match rule {
        IntRule::Restricted => "",
        IntRule::Full => " (full range)",
        IntRule::CtSym => " (compressed-tensors)",
        IntRule::GptqSym => " (GPTQ)",
        IntRule::AwqSym => " (AWQ)",
        IntRule::Asymmetric => " (asymmetric)",
        IntRule::CtAsym => " (asymmetric, compressed-tensors)",
        IntRule::AwqAsym => " (asymmetric, AWQ)",
        IntRule::FloatMin => " (from minimum)",
        IntRule::Mlx => " (affine, MLX)",
    }
}

fn block(block: Block) -> String {
    match block {
        Block::Tensor => "tensor".to_owned(),
        Block::Row => "row".to_owned(),
        Block::Group(size) => format!("group of {size}"),
        Block::Tile { rows, columns } => format!("tile of {rows}×{columns}"),
    }
}

fn scale(scale: Scale) -> String {
    match scale {
        Scale::None => "none".to_owned(),
        Scale::Float(kind) => scale_type(kind).to_owned(),
        Scale::E8m0(ScaleRule::Floor) => "e8m0 (power of two)".to_owned(),
        Scale::E8m0(rule) => format!("e8m0 (power of two, {})", format!("{rule:?}").to_lowercase()),
        Scale::E4m3(NvRule::Standard) => "e4m3 + one f32 a tensor".to_owned(),
        Scale::E4m3(rule) => format!("e4m3 + f32 ({})", format!("{rule:?}").to_lowercase()),
        Scale::Double => "8 bits, quantized twice".to_owned(),
        Scale::Exponent(bits) => format!("{bits}-bit exponent"),
    }
}

fn scale_type(kind: ScaleType) -> &'static str {
    match kind {
        ScaleType::F32 => "f32",
        ScaleType::F16 => "f16",
        ScaleType::Bf16 => "bf16",
    }
}

/// The formats as a table for the terminal.
#[must_use]
pub fn formats_table(formats: &[FormatInfo]) -> String {
    let mut table = Table::new(&[
        ("format", Align::Left),
        ("bits/weight", Align::Right),
        ("element", Align::Left),
        ("block", Align::Left),
        ("scale", Align::Left),
        ("zero point", Align::Left),
        ("what it is", Align::Left),
    ]);
    for format in formats {
        table.row(vec![
            format.name.clone(),
            format!("{:.3}", format.bits_per_weight),
            format.element.clone(),
            format.block.clone(),
            format.scale.clone(),
            format.zero_point.clone().unwrap_or_else(|| "-".to_owned()),
            format.summary.clone(),
        ]);
    }
    table.to_text()
}

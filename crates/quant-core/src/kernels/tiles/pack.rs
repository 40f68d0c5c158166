//! The codes of a packed tensor, rearranged.
//!
//! A panel is 16 rows. Its columns are cut at the ends of groups and again every [`CHUNK`] columns; each chunk is filled
//! up to whole units of its kind, with columns whose inputs are zero. Lane `r` of a line, its bytes `4r` to `4r + 3`, is
//! row `r`; in a lane byte `i` holds column `i` of each four:
//!
//! | kind | unit | lines of a unit |
//! |---|---|---|
//! | `Two` | 16 columns | one: bits `2s`, `2s + 1` of byte `i` are column `4s + i` |
//! | `Three` | 32 columns | two like that with the low bits of 16 columns each; one with the high bits, bit `4h + s` for column `16h + 4s + i` |
//! | `Four` | 8 columns | one: bits `4s` to `4s + 3` of byte `i` are column `4s + i` |
//! | `Byte` | 4 columns | one: the number plus 128 |
//! | `Float`, `WideFloat` | 4 columns | one, in words: byte `32h + 2r + i` is column `2h + i` of row `r` |
//!
//! Scales and zero points stand apart, sixteen of a group together, a panel after the other.

use super::{Line, PAIR, ROWS};
use crate::kernels::generated::codes::Kind;
use crate::kernels::generated::lanes::Codec;
use crate::parallel;
use crate::{BlockParams, Element, Error, FloatKind, Footprint, PackedTensor, Scale, ScaleType, ZeroPoint};
use half::f16;

/// Columns of a chunk, at most; what a 32-bit sum of 8-bit products and a scale of 8-bit inputs span.
pub(crate) const CHUNK: usize = 128;

impl Codec {
    fn of(kind: ScaleType) -> Self {
        match kind {
            ScaleType::F32 => Self::F32,
            ScaleType::F16 => Self::F16,
            ScaleType::Bf16 => Self::Bf16,
        }
    }
}

/// What is added besides a scaled code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zeros {
    /// Nothing.
    None,
    /// The zero point is taken from the code before scaling; stored is what is missing from it to [`Tiles::top`].
    Integer,
    /// The zero point is added after scaling.
    Float(Codec),
}

/// The integers that codes stand for, as products of bytes need them: code, byte of the table or code and zero point
/// make the integer plus the offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Integers {
    /// The bytes of codes, where they are not the codes.
    pub(crate) table: Option<[u8; 16]>,
    /// What to take off again.
    pub(crate) offset: i32,
    /// The value of the integer 1, beyond [`Tiles::factor`].
    pub(crate) step: f32,
}

/// Columns that are summed before the scale is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Their group.
    pub(crate) group: usize,
    /// The first of them in the tensor.
    pub(crate) first: usize,
    /// How many.
    pub(crate) columns: usize,
    /// How many with those that fill the last unit.
    pub(crate) padded: usize,
    /// Padded columns before this chunk.
    pub(crate) at: usize,
}

/// A packed tensor as products want it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tiles {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) kind: Kind,
    /// The values of codes of at most four bits, repeated up to sixteen.
    pub(crate) values: [f32; 16],
    /// Absent when the codes do not stand for 8-bit integers times a step.
    pub(crate) integers: Option<Integers>,
    /// What all products are multiplied by.
    pub(crate) factor: f32,
    pub(crate) codec: Codec,
    pub(crate) zeros: Zeros,
    /// What was taken from the codes of formats with zero points, to make them small.
    pub(crate) centre: f32,
    pub(crate) chunks: Vec<Chunk>,
    groups: usize,
    panel_lines: usize,
    codes: Vec<Line>,
    scale_bytes: Vec<u8>,
    zero_bytes: Vec<u8>,
}

impl Tiles {
    /// Rearranges a packed tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Prepare`] when the format has codes or scales that the products do not know.
    pub(crate) fn new(packed: &PackedTensor<'_>) -> Result<Self, Error> {
        let (format, layout) = (packed.format(), packed.layout());
        let refused = |reason| Error::Prepare { format: format.to_string(), reason };
        let meaning = Meaning::of(packed).ok_or_else(|| refused("its codes are neither short nor 8-bit numbers"))?;
        let (codec, scale_factor) = scale_codec(packed);
        let factor = meaning.factor * scale_factor;
        let zeros = match format.zero_point() {
            ZeroPoint::None => Zeros::None,
            ZeroPoint::Integer { .. } => Zeros::Integer,
            ZeroPoint::Float(kind) => Zeros::Float(Codec::of(kind)),
        };
        if !factor.is_normal() || (matches!(zeros, Zeros::Float(_)) && factor.to_bits() != 1.0_f32.to_bits()) {
            return Err(refused("its scales leave the range of the products"));
        }
        let kind = meaning.kind;
        let chunks = chunks(layout.columns, layout.block_columns, kind.columns());
        let padded: usize = chunks.iter().map(|chunk| chunk.padded).sum();
        let panel_lines = padded / kind.columns() * kind.lines();
        let panels = layout.rows.div_ceil(PAIR) * 2;
        let groups = layout.block_columns_count();
        let zero_codec = match zeros {
            Zeros::None => 0,
            Zeros::Integer => Codec::Byte.bytes(),
            Zeros::Float(codec) => codec.bytes(),
        };
        let mut tiles = Self {
            rows: layout.rows,
            columns: layout.columns,
            kind,
            values: meaning.values,
            integers: meaning.integers,
            factor,
            codec,
            zeros,
            centre: f32::from(meaning.centre),
            chunks,
            groups,
            panel_lines,
            codes: vec![Line([0; 64]); panels * panel_lines],
            scale_bytes: vec![0; panels * groups * codec.bytes()],
            zero_bytes: vec![0; panels * groups * zero_codec],
        };
        tiles.fill_codes(packed, &meaning)?;
        tiles.fill_params(packed);
        Ok(tiles)
    }

    fn fill_codes(&mut self, packed: &PackedTensor<'_>, meaning: &Meaning) -> Result<(), Error> {
        let (kind, rows, chunks, columns) = (self.kind, self.rows, &self.chunks, self.columns);
        let panels = self.codes.chunks_mut(self.panel_lines.max(1)).enumerate().collect();
        parallel::for_each(panels, ROWS * columns, |(panel, lines): (usize, &mut [Line])| {
            let mut codes = vec![0_u16; columns];
            for lane in 0..ROWS.min(rows.saturating_sub(ROWS * panel)) {
                packed.row_codes(ROWS * panel + lane, &mut codes)?;
                for chunk in chunks {
                    let first = chunk.at / kind.columns() * kind.lines();
                    let units = lines[first..].chunks_mut(kind.lines());
                    let codes = codes[chunk.first..][..chunk.columns].chunks(kind.columns());
                    for (unit, codes) in units.zip(codes) {
                        for (column, &code) in codes.iter().enumerate() {
                            let Some(stored) = meaning.stored[usize::from(code)] else {
                                let (format, reason) = (packed.format().to_string(), "a code is NaN or infinite");
                                return Err(Error::Prepare { format, reason });
                            };
                            kind.put(unit, lane, column, stored);
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn fill_params(&mut self, packed: &PackedTensor<'_>) {
        let block_rows = packed.layout().block_rows;
        for row in 0..self.rows {
            for group in 0..self.groups {
                let params = packed.params(row / block_rows, group);
                let at = (row / ROWS * self.groups + group, row % ROWS);
                put_scale(self.codec, &params, at, &mut self.scale_bytes);
                match self.zeros {
                    Zeros::None => {}
                    Zeros::Integer => {
                        #[expect(
                            clippy::cast_possible_truncation,
                            clippy::cast_sign_loss,
                            reason = "integer zero points lie in 0..2^bits"
                        )]
                        let zero = params.zero as u8;
                        self.zero_bytes[at.0 * Codec::Byte.bytes() + at.1] = self.top() - zero;
                    }
                    Zeros::Float(codec) => put_float(codec, params.zero, at, &mut self.zero_bytes),
                }
            }
        }
    }

    /// What an integer zero point and what is stored for it add up to.
    pub(super) fn top(&self) -> u8 {
        if self.kind == Kind::Byte { u8::MAX } else { SHORT_TOP }
    }

    /// Padded columns of a row.
    pub(crate) fn padded(&self) -> usize {
        self.chunks.last().map_or(0, |chunk| chunk.at + chunk.padded)
    }

    /// The lines of a panel, from the chunk that starts at a padded column on.
    #[inline(always)]
    pub(super) fn lines(&self, panel: usize, at: usize) -> &[Line] {
        &self.codes[panel * self.panel_lines..][..self.panel_lines][at / self.kind.columns() * self.kind.lines()..]
    }

    /// What products of many rows need after the columns of a panel before `at`; empty when that is all.
    pub(super) fn after(&self, panel: usize, at: usize) -> &[u8] {
        let (panel, at) = if at < self.padded() { (panel, at) } else { (panel + PAIR / ROWS, 0) };
        let line = panel * self.panel_lines + at / self.kind.columns() * self.kind.lines();
        self.codes.get(line).map_or(&[], |line| &line.0)
    }

    /// The stored scales of a group in a panel.
    #[inline(always)]
    pub(super) fn scales(&self, panel: usize, group: usize) -> &[u8] {
        &self.scale_bytes[(panel * self.groups + group) * self.codec.bytes()..][..self.codec.bytes()]
    }

    /// The stored zero points of a group in a panel.
    #[inline(always)]
    pub(super) fn zeros(&self, panel: usize, group: usize, codec: Codec) -> &[u8] {
        &self.zero_bytes[(panel * self.groups + group) * codec.bytes()..][..codec.bytes()]
    }

    /// Every byte that is stored, rows and columns that fill up included.
    pub(crate) fn footprint(&self) -> Footprint {
        Footprint {
            elements: (self.rows * self.columns) as u64,
            codes: size_of_val(self.codes.as_slice()) as u64,
            scales: self.scale_bytes.len() as u64,
            zeros: self.zero_bytes.len() as u64,
            other: 0,
        }
    }
}

/// The chunks of a row.
fn chunks(columns: usize, group: usize, unit: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut at = 0;
    for (index, start) in (0..columns).step_by(group).enumerate() {
        let end = columns.min(start + group);
        for first in (start..end).step_by(CHUNK) {
            let count = CHUNK.min(end - first);
            let padded = count.next_multiple_of(unit);
            chunks.push(Chunk { group: index, first, columns: count, padded, at });
            at += padded;
        }
    }
    chunks
}

/// What the codes of a format stand for before scaling, and what is stored for them.
struct Meaning {
    kind: Kind,
    values: [f32; 16],
    integers: Option<Integers>,
    /// What products with the values are to be multiplied by.
    factor: f32,
    /// What was taken from the codes of formats with integer zero points.
    centre: u8,
    /// What is stored for a code; nothing for those that are NaN or infinite.
    stored: Vec<Option<u8>>,
}

impl Meaning {
    fn of(packed: &PackedTensor<'_>) -> Option<Self> {
        let format = packed.format();
        let bits = format.code_bits();
        let one = BlockParams::plain(1.0, 0.0, 0);
        let centre = match format.zero_point() {
            ZeroPoint::None => 0,
            _ => 1_u8.checked_shl(bits - 1)?,
        };
        let count = 1_u16.checked_shl(bits).filter(|count| *count <= 1 << 10)?;
        let values: Vec<f32> = (0..count).map(|c| packed.grid().decode_one(c, &one) - f32::from(centre)).collect();
        if bits <= 4 {
            let integer_zeros = matches!(format.zero_point(), ZeroPoint::Integer { .. });
            return Some(Self::short(Kind::naming(bits)?, integer_zeros, centre, &values));
        }
        let meaning =
            |kind, factor, stored, integers| Self { kind, values: [0.0; 16], integers, factor, centre, stored };
        if let Some((step, integers)) = as_integers(&values) {
            let stored = integers.iter().map(|n| u8::try_from(n + 128).ok()).collect();
            let integers = Integers { table: None, offset: 128, step: 1.0 };
            return Some(meaning(Kind::Byte, step, stored, Some(integers)));
        }
        let (wide, factor, stored) = as_floats(&values)?;
        Some(meaning(if wide { Kind::WideFloat } else { Kind::Float }, factor, stored, None))
    }

    /// Codes of at most four bits name their values.
    fn short(kind: Kind, integer_zeros: bool, centre: u8, values: &[f32]) -> Self {
        let count = values.len();
        let mut stored: Vec<Option<u8>> = (0..=u8::MAX).take(count).map(Some).collect();
        let mut named: [f32; 16] = std::array::from_fn(|i| values[i % count]);
        let mut integers = None;
        if integer_zeros {
            // The zero point is taken off in bytes, none of which becomes negative when 15 are added.
            integers = Some(Integers { table: None, offset: SHORT_TOP.into(), step: 1.0 });
        } else if let Some((step, whole)) = as_integers(values) {
            let offset = whole.iter().map(|n| -n).max().unwrap_or(0);
            let bytes: Vec<u8> = whole.iter().map(|n| u8::try_from(n + offset).unwrap_or(0)).collect();
            let few = bytes.iter().all(|byte| usize::from(*byte) < 1 << kind.bits());
            if few {
                // Another name for each value spares the table.
                for (i, &byte) in bytes.iter().enumerate() {
                    stored[i] = Some(byte);
                    named.iter_mut().skip(usize::from(byte)).step_by(1 << kind.bits()).for_each(|v| *v = values[i]);
                }
            }
            let table = (!few).then(|| std::array::from_fn(|i| bytes[i % count]));
            integers = Some(Integers { table, offset: offset.into(), step });
        }
        Self { kind, values: named, integers, factor: 1.0, centre, stored }
    }
}

/// What is added to a short code before its zero point is taken from it.
const SHORT_TOP: u8 = 15;

/// The values as multiples, from −128 to 127, of the smallest magnitude among them.
fn as_integers(values: &[f32]) -> Option<(f32, Vec<i16>)> {
    let step = values.iter().map(|v| v.abs()).filter(|v| *v > 0.0).reduce(f32::min)?;
    let mut integers = Vec::with_capacity(values.len());
    for value in values {
        let quotient = value / step;
        if quotient.fract() != 0.0 || !(-128.0..=127.0).contains(&quotient) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "an integer of eight bits")]
        integers.push(quotient as i16);
    }
    Some((step, integers))
}

/// The values as 8-bit floats times a factor.
fn as_floats(values: &[f32]) -> Option<(bool, f32, Vec<Option<u8>>)> {
    for (wide, scale) in [(false, 256.0), (true, 1.0), (false, 128.0), (true, 0.5)] {
        let magnitude = |code: u8| {
            let code = u16::from(code);
            f16::from_bits(if wide { code << 8 } else { code << 7 }).to_f32() * scale
        };
        let magnitudes: Vec<f32> = (0..128).map(magnitude).collect();
        let code = |value: f32| {
            let code = (0_u8..).zip(&magnitudes).find(|(_, m)| m.is_finite() && **m == value.abs())?.0;
            Some(code | if value.is_sign_negative() { 0x80 } else { 0 })
        };
        let stored: Vec<Option<u8>> = values.iter().map(|v| if v.is_finite() { code(*v) } else { None }).collect();
        if values.iter().zip(&stored).all(|(value, stored)| stored.is_some() || !value.is_finite()) {
            return Some((wide, scale, stored));
        }
    }
    None
}

/// How the scales of a tensor are kept, and what they are to be multiplied by then.
fn scale_codec(packed: &PackedTensor<'_>) -> (Codec, f32) {
    let format = packed.format();
    match format.scale {
        Scale::Float(kind) if !matches!(format.element, Element::Ternary(_)) => (Codec::of(kind), 1.0),
        Scale::E8m0(_) => (Codec::E8m0, 1.0),
        Scale::E4m3(_) if packed.scales().iter().any(|code| code & 0x80 != 0) => (Codec::F32, 1.0),
        Scale::E4m3(_) => match nested_factor(packed) {
            Some(factor) => (Codec::E4m3, 256.0 * factor),
            None => (Codec::F32, 1.0),
        },
        _ => (Codec::F32, 1.0),
    }
}

/// What E4M3 scales are multiplied by, when that is the same for all of them up to rounding.
fn nested_factor(packed: &PackedTensor<'_>) -> Option<f32> {
    let scale = |code: u8| packed.grid().params_from_stored(u32::from(code), 0.0).scale;
    let e4m3 = |code: u8| FloatKind::E4m3Fn.decode(u16::from(code));
    // The code of 1.
    let factor = scale(0x38);
    let near = |code: u8| (scale(code) - e4m3(code) * factor).abs() <= 2.5e-7 * scale(code).abs();
    ((256.0 * factor).is_normal() && factor.is_normal() && (0..0x7f).all(near)).then_some(factor)
}

fn put_scale(codec: Codec, params: &BlockParams, at: (usize, usize), out: &mut [u8]) {
    match codec {
        Codec::E8m0 | Codec::E4m3 | Codec::Byte => {
            out[at.0 * codec.bytes() + at.1] = params.scale_code.to_le_bytes()[0];
        }
        Codec::F32 | Codec::F16 | Codec::Bf16 => put_float(codec, params.scale, at, out),
    }
}

/// Stores a float that has been of this type before.
fn put_float(codec: Codec, value: f32, (group, lane): (usize, usize), out: &mut [u8]) {
    let width = codec.bytes() / ROWS;
    let out = &mut out[group * codec.bytes() + lane * width..][..width];
    match codec {
        Codec::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        Codec::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        _ => out.copy_from_slice(&value.to_le_bytes()[..width]),
    }
}

//! Rows of codes and scales into f32.
//!
//! A row is cut into strips; the scales of a strip's blocks are widened together, then each block is
//! decoded. Codes of 4 bits go through a table of 16 values, all others through arithmetic.

use super::ops::{self, BLOCKS, LEAST_GROUP, STRIP, SmallFloat};
use super::{Backend, Isa};
use crate::{Element, FloatKind, Format, FormatGrid, IntRule, Layout, Scale, ScaleType, ZeroPoint};
use std::cell::RefCell;
use std::sync::Arc;

/// Values that are decoded in one go, about.
const TOGETHER: usize = 1 << 16;

/// How a format's rows are decoded; made once a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RowDecoder {
    source: Source,
    finish: Finish,
    scale: Stored,
    zero: ZeroPoint,
    zero_float: Option<SmallFloat>,
    code_bits: u32,
    group: usize,
}

/// How scales are stored.
#[derive(Clone, Debug, PartialEq)]
enum Stored {
    Nothing,
    F32,
    Two(SmallFloat),
    /// The bits of the scale of every byte, the tensor scale included.
    Byte(Arc<[u32; 256]>),
}

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    /// An entry of a table, two codes a byte, low nibble first.
    Nibbles([f32; 16]),
    /// `code·factor`, two's complement in a byte; the factor is a power of two.
    Signed { factor: f32 },
    /// A byte.
    Unsigned,
    /// A float of at most 8 bits; shorter codes are sign-extended to a byte.
    Float(SmallFloat),
    /// A 16-bit float.
    Float16(SmallFloat),
}

/// What becomes of that; every form is the reference's, operation by operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Finish {
    /// `v·scale`.
    Scale,
    /// `(v − zero)·scale`.
    Offset,
    /// `v·scale + zero`.
    Affine,
}

impl RowDecoder {
    /// The decoder of a grid; `None` when only the reference decodes it.
    pub(crate) fn new(grid: &FormatGrid, layout: &Layout) -> Option<Self> {
        let format = grid.format();
        let group = layout.block_columns;
        if !(layout.block_columns_count() == 1 || group.is_multiple_of(LEAST_GROUP)) {
            return None;
        }
        let zero = format.zero_point();
        let zero_float = match zero {
            ZeroPoint::Float(ScaleType::F16) => Some(SmallFloat::new(FloatKind::F16)?),
            ZeroPoint::Float(ScaleType::Bf16) => Some(SmallFloat::new(FloatKind::Bf16)?),
            _ => None,
        };
        let (source, finish) = Self::element(format)?;
        let scale = match format.scale {
            Scale::None => Stored::Nothing,
            Scale::Float(ScaleType::F32) => Stored::F32,
            Scale::Float(ScaleType::F16) => Stored::Two(SmallFloat::new(FloatKind::F16)?),
            Scale::Float(ScaleType::Bf16) => Stored::Two(SmallFloat::new(FloatKind::Bf16)?),
            Scale::E8m0(_) | Scale::E4m3(_) => {
                Stored::Byte(Arc::new(grid.of_scale_bytes(|params| params.scale.to_bits())))
            }
            Scale::Double | Scale::Exponent(_) => return None,
        };
        let group = if scale == Stored::Nothing { STRIP } else { group };
        Some(Self { source, finish, scale, zero, zero_float, code_bits: format.code_bits(), group })
    }

    fn element(format: Format) -> Option<(Source, Finish)> {
        let nibbles = |value: &dyn Fn(u16) -> f32| {
            Source::Nibbles([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15].map(value))
        };
        Some(match format.element {
            Element::Int { bits: 1, .. } => return None,
            Element::Int { bits, rule } => {
                let finish = match rule {
                    IntRule::Asymmetric | IntRule::CtAsym | IntRule::AwqAsym => Finish::Offset,
                    IntRule::FloatMin | IntRule::Mlx => Finish::Affine,
                    _ => Finish::Scale,
                };
                let factor = match format.scale {
                    Scale::E8m0(_) => 1.0 / f32::from(1_u16 << (bits - 2)),
                    _ => 1.0,
                };
                let source = match (finish, bits) {
                    (Finish::Scale, 4) => nibbles(&|code| (f32::from(code ^ 8) - 8.0) * factor),
                    (_, 4) => nibbles(&|code| f32::from(code)),
                    (Finish::Scale, _) => Source::Signed { factor },
                    _ => Source::Unsigned,
                };
                (source, finish)
            }
            Element::Float { kind, .. } => {
                let source = match kind.bits() {
                    16 => Source::Float16(SmallFloat::new(kind)?),
                    4 => nibbles(&|code| kind.decode(code)),
                    _ => Source::Float(SmallFloat::new(kind)?),
                };
                (source, Finish::Scale)
            }
            Element::Codebook(book) => (Source::Nibbles(*book.values()), Finish::Scale),
            Element::Magnitude { .. } | Element::Ternary(_) => return None,
        })
    }

    /// The product of a row of codes with inputs where it need not be decoded first: codes are 16-bit floats.
    pub(crate) fn dot(&self, isa: Isa, x: &[f32], codes: &[u8]) -> Option<f32> {
        match self.source {
            Source::Float16(kind) if self.scale == Stored::Nothing => Some(isa.backend().dot_float16(kind, x, codes)),
            _ => None,
        }
    }

    /// How many rows are best decoded as one, where they lie side by side: the blocks of a row are whole, and rows of codes
    /// begin on bytes.
    pub(crate) fn rows_together(&self, layout: &Layout) -> usize {
        let whole = self.scale == Stored::Nothing
            || (layout.block_columns >= LEAST_GROUP && layout.columns.is_multiple_of(layout.block_columns));
        let zero_bits = match self.zero {
            ZeroPoint::Integer { bits } => layout.block_columns_count() * usize::from(bits),
            _ => 0,
        };
        let bytes = [layout.columns * self.code_bits as usize, zero_bits].iter().all(|bits| bits.is_multiple_of(8));
        if layout.block_rows == 1 && whole && bytes { (TOGETHER / layout.columns.max(1)).max(1) } else { 1 }
    }

    /// Decodes a row of `out.len()` values, or several as one; `stream` stores past the caches.
    pub(crate) fn decode(&self, isa: Isa, row: RowBytes<'_>, out: &mut [f32], stream: bool) {
        SCRATCH.with_borrow_mut(|scratch| self.decode_row(isa.backend(), row, out, stream, scratch));
    }

    fn decode_row(
        &self,
        backend: &dyn Backend,
        row: RowBytes<'_>,
        out: &mut [f32],
        stream: bool,
        scratch: &mut Scratch,
    ) {
        let Scratch { params, bytes, values } = scratch;
        let bits = self.code_bits as usize;
        if self.scale == Stored::Nothing {
            params.scales.fill(1.0);
        }
        if self.zero == ZeroPoint::None {
            let blocks = STRIP.div_ceil(self.group.max(LEAST_GROUP));
            params.zeros[..blocks].fill(0.0);
        }
        let most = if stream { backend.strip_past_caches() } else { STRIP };
        // A strip is a number of whole blocks or a piece of one.
        let group = self.group.min(out.len());
        let (unit, strip) = if group > most { (group, most) } else { (out.len(), most / group * group) };
        for (i, out) in out.chunks_mut(unit).enumerate() {
            for (j, out) in out.chunks_mut(strip).enumerate() {
                let start = i * unit + j * strip;
                if group <= most || j == 0 {
                    self.read_params(backend, row, start / group, out.len().div_ceil(group), params);
                }
                let mut codes = &row.codes[start * bits / 8..][..(out.len() * bits).div_ceil(8)];
                let mut code_bits = self.code_bits;
                if !matches!(bits, 4 | 8 | 16) && !backend.decodes_bits() {
                    let unpacked = &mut bytes[..out.len()];
                    backend.unpack(codes, self.code_bits, unpacked);
                    if self.source != Source::Unsigned {
                        sign_extend(unpacked, self.code_bits);
                    }
                    (codes, code_bits) = (unpacked, 8);
                }
                let Params { scales, zeros } = &*params;
                let (source, finish) = (&self.source, self.finish);
                let strip = Strip { source, finish, codes, bits: code_bits, group, scales, zeros };
                if stream {
                    backend.decode_past_caches(&strip, &mut values[..out.len()], out);
                } else {
                    backend.decode(&strip, out);
                }
            }
        }
        if stream {
            backend.fence();
        }
    }

    /// Reads the parameters of `count` blocks from block `first` of the row on.
    fn read_params(&self, backend: &dyn Backend, row: RowBytes<'_>, first: usize, count: usize, params: &mut Params) {
        let scales = &mut params.scales[..count];
        match &self.scale {
            Stored::Nothing => {}
            Stored::F32 => read_f32(&row.scales[4 * first..], scales),
            Stored::Two(kind) => backend.decode_float16(*kind, &row.scales[2 * first..][..2 * count], scales),
            Stored::Byte(values) => {
                for (scale, &code) in scales.iter_mut().zip(&row.scales[first..]) {
                    *scale = f32::from_bits(values[usize::from(code)]);
                }
            }
        }
        let zeros = &mut params.zeros[..count];
        match (self.zero, self.zero_float) {
            (ZeroPoint::None, _) => {}
            (ZeroPoint::Integer { bits }, _) => {
                let width = usize::from(bits);
                for (i, zero) in zeros.iter_mut().enumerate() {
                    let bit = (first + i) * width;
                    let byte = |k: usize| u16::from(row.zeros.get(bit / 8 + k).copied().unwrap_or(0));
                    let window = (byte(0) | byte(1) << 8) >> (bit % 8);
                    *zero = f32::from(window & ((1 << width) - 1));
                }
            }
            (ZeroPoint::Float(_), Some(kind)) => {
                backend.decode_float16(kind, &row.zeros[2 * first..][..2 * count], zeros);
            }
            (ZeroPoint::Float(_), None) => read_f32(&row.zeros[4 * first..], zeros),
        }
    }
}

fn read_f32(bytes: &[u8], out: &mut [f32]) {
    for (value, &word) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(word);
    }
}

pub(super) fn sign_extend(codes: &mut [u8], bits: u32) {
    let sign = 1 << (bits - 1);
    for code in codes {
        *code = (*code ^ sign).wrapping_sub(sign);
    }
}

/// The bytes of one row and of its row of blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowBytes<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) zeros: &'a [u8],
}

/// Scales and zero points of the blocks of a strip, in whole lines: a store to parts of two waits for all stores past the caches
/// before it, which took a third of the time on Zen 4.
#[repr(align(64))]
struct Params {
    scales: [f32; BLOCKS],
    zeros: [f32; BLOCKS],
}

/// What would otherwise have to be cleared for every row.
struct Scratch {
    params: Params,
    bytes: [u8; STRIP],
    values: [f32; STRIP],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        let params = Params { scales: [1.0; BLOCKS], zeros: [0.0; BLOCKS] };
        RefCell::new(Scratch { params, bytes: [0; STRIP], values: [0.0; STRIP] })
    };
}

/// Codes to decode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip<'a> {
    pub(super) source: &'a Source,
    pub(super) finish: Finish,
    pub(super) codes: &'a [u8],
    /// Of a code: 4, 8 or 16, or what [`Backend::decodes_bits`] promises to take.
    pub(super) bits: u32,
    /// Values in a block; the last may be shorter.
    pub(super) group: usize,
    /// A scale a block.
    pub(super) scales: &'a [f32; BLOCKS],
    /// A zero point a block.
    pub(super) zeros: &'a [f32; BLOCKS],
}

/// See [`Backend::decode`]; `lookup` is [`ops::lookup16`] or does the same.
#[inline(always)]
pub(super) fn decode_strip(strip: &Strip<'_>, out: &mut [f32], lookup: impl Fn(&[u8], &[f32; 16], &mut [f32])) {
    match (*strip.source, strip.finish) {
        (Source::Nibbles(base), finish) => {
            let params = strip.scales.iter().zip(strip.zeros);
            // Blocks but the last are whole bytes.
            let blocks = strip.codes.chunks(strip.group.div_ceil(2)).zip(out.chunks_mut(strip.group));
            for ((codes, out), (&scale, &zero)) in blocks.zip(params) {
                let table = base.map(|v| match finish {
                    Finish::Scale => v * scale,
                    Finish::Offset => (v - zero) * scale,
                    Finish::Affine => v * scale + zero,
                });
                lookup(codes, &table, out);
            }
        }
        (Source::Signed { factor }, _) => {
            decode_bytes(strip, out, |code, scale, _| (f32::from(code.cast_signed()) * factor) * scale);
        }
        (Source::Unsigned, Finish::Affine) => {
            decode_bytes(strip, out, |code, scale, zero| f32::from(code) * scale + zero);
        }
        (Source::Unsigned, _) => decode_bytes(strip, out, |code, scale, zero| (f32::from(code) - zero) * scale),
        (Source::Float(kind), _) => {
            decode_bytes(strip, out, |code, scale, _| kind.decode(u32::from(code) & kind.code_mask()) * scale);
        }
        (Source::Float16(kind), _) => ops::decode_float16(kind, strip.codes, out),
    }
}

#[inline(always)]
fn decode_bytes(strip: &Strip<'_>, out: &mut [f32], value: impl Fn(u8, f32, f32) -> f32) {
    let params = strip.scales.iter().zip(strip.zeros);
    let blocks = strip.codes.chunks(strip.group).zip(out.chunks_mut(strip.group));
    for ((codes, out), (&scale, &zero)) in blocks.zip(params) {
        for (&code, out) in codes.iter().zip(out) {
            *out = value(code, scale, zero);
        }
    }
}

//! Rows of codes and scales into f32.
//!
//! A row is cut into strips; the scales of a strip's blocks are widened together, then each block is
//! decoded. Formats of 4 bits go through a table of 16 values a block, all others through arithmetic.

use super::ops::{self, BLOCKS, LEAST_GROUP, STRIP, SmallFloat};
use super::{Backend, Isa, Job, dispatch};
use crate::{E8m0, Element, FloatKind, Format, FormatGrid, IntRule, Layout, NvRule, Scale, ScaleType, ZeroPoint};

/// How a format's rows are decoded; made once a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowDecoder {
    element: Kind,
    scale: Stored,
    zero: ZeroPoint,
    zero_float: Option<SmallFloat>,
    code_bits: u32,
    group: usize,
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Nothing,
    F32,
    Two(SmallFloat),
    E8m0,
    E4m3 { kind: SmallFloat, second: f32 },
}

/// How codes become values; every form is the reference's, operation by operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// `table[code]·scale`.
    Table([f32; 16]),
    /// `(code·factor)·scale`, two's complement in the upper bits of a byte after `shift`.
    Signed { shift: u32, factor: f32 },
    /// `(code − zero)·scale`.
    Offset,
    /// `code·scale + zero`.
    Affine,
    /// A float of at most 8 bits times the scale.
    Float(SmallFloat),
    /// A 16-bit float.
    Float16(SmallFloat),
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
        let scale = match format.scale {
            Scale::None => Stored::Nothing,
            Scale::Float(ScaleType::F32) => Stored::F32,
            Scale::Float(ScaleType::F16) => Stored::Two(SmallFloat::new(FloatKind::F16)?),
            Scale::Float(ScaleType::Bf16) => Stored::Two(SmallFloat::new(FloatKind::Bf16)?),
            Scale::E8m0(_) => Stored::E8m0,
            Scale::E4m3(NvRule::Standard) => {
                Stored::E4m3 { kind: SmallFloat::new(FloatKind::E4m3Fn)?, second: grid.tensor_scale() }
            }
            Scale::E4m3(_) | Scale::Double | Scale::Exponent(_) => return None,
        };
        let element = Self::element(format)?;
        Some(Self { element, scale, zero, zero_float, code_bits: format.code_bits(), group })
    }

    fn element(format: Format) -> Option<Kind> {
        Some(match format.element {
            Element::Int { bits: 1, .. } => return None,
            Element::Int { bits, rule } => match rule {
                IntRule::Restricted | IntRule::Full | IntRule::CtSym | IntRule::GptqSym | IntRule::AwqSym => {
                    let factor = match format.scale {
                        Scale::E8m0(_) => 1.0 / f32::from(1_u16 << (bits - 2)),
                        _ => 1.0,
                    };
                    if bits == 4 {
                        let value = |code: i8| f32::from(if code < 8 { code } else { code - 16 }) * factor;
                        Kind::Table([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15].map(value))
                    } else {
                        Kind::Signed { shift: 8 - u32::from(bits), factor }
                    }
                }
                IntRule::Asymmetric | IntRule::CtAsym | IntRule::AwqAsym => Kind::Offset,
                IntRule::FloatMin | IntRule::Mlx => Kind::Affine,
            },
            Element::Float { kind, .. } if kind.bits() == 16 => Kind::Float16(SmallFloat::new(kind)?),
            Element::Float { kind, .. } if kind.bits() == 4 => {
                Kind::Table([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15].map(|code| kind.decode(code)))
            }
            Element::Float { kind, .. } => Kind::Float(SmallFloat::new(kind)?),
            Element::Codebook(book) => Kind::Table(*book.values()),
            Element::Magnitude { .. } | Element::Ternary(_) => return None,
        })
    }

    /// Decodes one row of `out.len()` values; `stream` stores past the caches.
    pub(crate) fn decode(&self, isa: Isa, row: RowBytes<'_>, out: &mut [f32], stream: bool) {
        dispatch(isa, DecodeRow { plan: self, row, out, stream });
    }
}

/// The bytes of one row and of its row of blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowBytes<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) zeros: &'a [u8],
}

struct DecodeRow<'a> {
    plan: &'a RowDecoder,
    row: RowBytes<'a>,
    out: &'a mut [f32],
    stream: bool,
}

/// Scales and zero points of the blocks of a strip.
struct Params {
    scales: [f32; BLOCKS],
    zeros: [f32; BLOCKS],
}

impl Job for DecodeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<B: Backend>(self, backend: B) {
        let Self { plan, row, out, stream } = self;
        let mut params = Params { scales: [1.0; BLOCKS], zeros: [0.0; BLOCKS] };
        let bits = plan.code_bits as usize;
        if out.len() <= plan.group || plan.group > STRIP {
            for (i, block) in out.chunks_mut(plan.group).enumerate() {
                plan.read_params(row, i, 1, &mut params);
                for (j, part) in block.chunks_mut(STRIP).enumerate() {
                    let start = (i * plan.group + j * STRIP) * bits / 8;
                    let codes = &row.codes[start..][..(part.len() * bits).div_ceil(8)];
                    decode_strip(backend, plan, codes, &params, part, stream);
                }
            }
        } else {
            let blocks = STRIP / plan.group;
            let strip = blocks * plan.group;
            for (i, part) in out.chunks_mut(strip).enumerate() {
                let start = i * strip * bits / 8;
                let codes = &row.codes[start..][..(part.len() * bits).div_ceil(8)];
                plan.read_params(row, i * blocks, part.len().div_ceil(plan.group), &mut params);
                decode_strip(backend, plan, codes, &params, part, stream);
            }
        }
        if stream {
            backend.fence();
        }
    }
}

impl RowDecoder {
    /// Reads the parameters of `count` blocks from block `first` of the row on.
    #[inline(always)]
    fn read_params(&self, row: RowBytes<'_>, first: usize, count: usize, params: &mut Params) {
        let scales = &mut params.scales[..count];
        match self.scale {
            Stored::Nothing => {}
            Stored::F32 => {
                let words = &row.scales.as_chunks::<4>().0[first..];
                for (scale, &word) in scales.iter_mut().zip(words) {
                    *scale = f32::from_le_bytes(word);
                }
            }
            Stored::Two(kind) => read16(kind, &row.scales[2 * first..], scales),
            Stored::E8m0 => {
                for (scale, &code) in scales.iter_mut().zip(&row.scales[first..]) {
                    *scale = E8m0(code).to_f32();
                }
            }
            Stored::E4m3 { kind, second } => {
                for (scale, &code) in scales.iter_mut().zip(&row.scales[first..]) {
                    *scale = kind.decode(u32::from(code)) * second;
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
            (ZeroPoint::Float(_), Some(kind)) => read16(kind, &row.zeros[2 * first..], zeros),
            (ZeroPoint::Float(_), None) => {
                let words = &row.zeros.as_chunks::<4>().0[first..];
                for (zero, &word) in zeros.iter_mut().zip(words) {
                    *zero = f32::from_le_bytes(word);
                }
            }
        }
    }
}

#[inline(always)]
fn read16(kind: SmallFloat, bytes: &[u8], out: &mut [f32]) {
    for (value, &word) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = kind.decode(u32::from(u16::from_le_bytes(word)));
    }
}

#[inline(always)]
fn decode_strip<B: Backend>(
    backend: B,
    plan: &RowDecoder,
    codes: &[u8],
    params: &Params,
    out: &mut [f32],
    stream: bool,
) {
    if stream {
        let mut values = [0.0; STRIP];
        let values = &mut values[..out.len()];
        decode_values(backend, plan, codes, params, values);
        backend.stream_floats(values, out);
    } else {
        decode_values(backend, plan, codes, params, out);
    }
}

#[inline(always)]
fn decode_values<B: Backend>(backend: B, plan: &RowDecoder, codes: &[u8], params: &Params, out: &mut [f32]) {
    match plan.element {
        Kind::Table(base) => blocks4(plan.group, codes, params, out, |codes, scale, _, out| {
            let mut table = base;
            for value in &mut table {
                *value *= scale;
            }
            backend.lookup16(codes, &table, out);
        }),
        Kind::Offset if plan.code_bits == 4 => blocks4(plan.group, codes, params, out, |codes, scale, zero, out| {
            let mut table = COUNT;
            for value in &mut table {
                *value = (*value - zero) * scale;
            }
            backend.lookup16(codes, &table, out);
        }),
        Kind::Affine if plan.code_bits == 4 => blocks4(plan.group, codes, params, out, |codes, scale, zero, out| {
            let mut table = COUNT;
            for value in &mut table {
                *value = *value * scale + zero;
            }
            backend.lookup16(codes, &table, out);
        }),
        Kind::Float16(kind) => read16(kind, codes, out),
        _ if plan.code_bits == 8 => decode_bytes(plan, codes, params, out),
        _ => {
            let mut bytes = [0; STRIP];
            let bytes = &mut bytes[..out.len()];
            ops::unpack(codes, plan.code_bits, bytes);
            decode_bytes(plan, bytes, params, out);
        }
    }
}

const COUNT: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Decodes codes that have a byte each.
#[inline(always)]
fn decode_bytes(plan: &RowDecoder, codes: &[u8], params: &Params, out: &mut [f32]) {
    match plan.element {
        Kind::Signed { shift, factor } => blocks8(plan.group, codes, params, out, |code, scale, _| {
            (f32::from((code << shift).cast_signed() >> shift) * factor) * scale
        }),
        Kind::Offset => blocks8(plan.group, codes, params, out, |code, scale, zero| (f32::from(code) - zero) * scale),
        Kind::Affine => blocks8(plan.group, codes, params, out, |code, scale, zero| f32::from(code) * scale + zero),
        Kind::Float(kind) if plan.scale == Stored::Nothing => {
            for (&code, value) in codes.iter().zip(out) {
                *value = kind.decode(u32::from(code));
            }
        }
        Kind::Float(kind) => {
            blocks8(plan.group, codes, params, out, |code, scale, _| kind.decode(u32::from(code)) * scale);
        }
        Kind::Table(_) | Kind::Float16(_) => {}
    }
}

/// Cuts a strip of bytes into blocks.
#[inline(always)]
fn blocks8(group: usize, codes: &[u8], params: &Params, out: &mut [f32], value: impl Fn(u8, f32, f32) -> f32) {
    let each = |codes: &[u8], out: &mut [f32], scale: f32, zero: f32| {
        for (&code, out) in codes.iter().zip(out) {
            *out = value(code, scale, zero);
        }
    };
    let params = params.scales.iter().zip(&params.zeros);
    if group == 32 && out.len().is_multiple_of(32) {
        let (codes, out) = (codes.as_chunks::<32>().0, out.as_chunks_mut::<32>().0);
        for ((codes, out), (&scale, &zero)) in codes.iter().zip(out).zip(params) {
            each(codes, out, scale, zero);
        }
    } else {
        for ((codes, out), (&scale, &zero)) in codes.chunks(group).zip(out.chunks_mut(group)).zip(params) {
            each(codes, out, scale, zero);
        }
    }
}

/// Cuts a strip of nibbles into blocks; blocks but the last are whole bytes.
#[inline(always)]
fn blocks4(
    group: usize,
    codes: &[u8],
    params: &Params,
    out: &mut [f32],
    mut block: impl FnMut(&[u8], f32, f32, &mut [f32]),
) {
    let pairs = params.scales.iter().zip(&params.zeros);
    match group {
        16 if out.len().is_multiple_of(16) => {
            let (codes, out) = (codes.as_chunks::<8>().0, out.as_chunks_mut::<16>().0);
            for ((codes, out), (&scale, &zero)) in codes.iter().zip(out).zip(pairs) {
                block(codes, scale, zero, out);
            }
        }
        32 if out.len().is_multiple_of(32) => {
            let (codes, out) = (codes.as_chunks::<16>().0, out.as_chunks_mut::<32>().0);
            for ((codes, out), (&scale, &zero)) in codes.iter().zip(out).zip(pairs) {
                block(codes, scale, zero, out);
            }
        }
        _ => {
            let parts = codes.chunks(group.div_ceil(2)).zip(out.chunks_mut(group));
            for ((codes, out), (&scale, &zero)) in parts.zip(pairs) {
                block(codes, scale, zero, out);
            }
        }
    }
}

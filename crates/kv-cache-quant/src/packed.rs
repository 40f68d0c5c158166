//! How sealed rows lie in bytes, for attention that reads codes instead of decoded rows.

use crate::pages::{Cut, Order, Pieces};
use crate::{Stream, halves};
use quant_core::{Element, FloatKind, Format, IntRule, Layout, NvRule, Overflow, Scale, ScaleType};

/// Where codes, scales and zero points of sealed units lie: what [`Codec::packed`](crate::Codec::packed) tells attention.
///
/// It covers codes that a value follows from by `code · scale + zero`, with codes that are integers of 2, 4, 8 or 16
/// bits, entries of a table of 16, or floats of 4, 8, 16 or 32 bits. Rows are tokens, or channels where a unit is stored
/// transposed.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedRows {
    pub(crate) coding: Coding,
    pub(crate) heads: usize,
    /// Elements of a row that belong to one head; tokens of a unit where it is stored transposed.
    pub(crate) columns: usize,
    /// Elements that share a scale, at most `columns`.
    pub(crate) group: usize,
    /// Rows of a unit.
    pub(crate) rows: usize,
    /// Bytes of the codes of a row, all heads.
    pub(crate) row_bytes: usize,
    pub(crate) unit_bytes: usize,
    pub(crate) meta: Meta,
    /// Rows are channels, `rows / heads` of each head, and hold `columns` tokens.
    pub(crate) transposed: bool,
}

/// What a code is before scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Coding {
    /// 2, 4 or 8 bits, unsigned or two's complement.
    Int {
        bits: u32,
        signed: bool,
    },
    /// E2M1 under scales, counted in steps of 1/2: an integer.
    E2m1,
    /// Unsigned, 16 bits.
    Word,
    /// 4 bits that name an entry.
    Table([f32; 16]),
    E4m3,
    E5m2,
    F16,
    Bf16,
    F32,
}

/// How scales and zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meta {
    /// There are none.
    None,
    /// After the codes of a unit all scales, then all zero points, then perhaps a scale of the unit; everything is
    /// multiplied by `factor`.
    Sections { scale: Stored, zero: Zero, second: bool, factor: f32 },
    /// After the codes of a unit minimum and range of each group, f16; the range is that of so many steps.
    MinRange { steps: f32 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stored {
    Float(ScaleType),
    E8m0,
    E4m3,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Zero {
    None,
    /// The value of code 0, in the type of the scale.
    Float,
    /// The code of value 0: a bit stream a row of one head.
    Code {
        bits: u32,
        row_bytes: usize,
    },
}

/// Scales, and perhaps values of code 0, of a fixed size each: see [`Meta::Sections`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PlainScales {
    pub(crate) scale: Stored,
    pub(crate) second: bool,
    pub(crate) factor: f32,
}

/// Groups of one head that kernels hold in a register.
const MOST_BLOCKS: usize = 16;

/// The integers that codes of a kind stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Integers {
    pub(crate) least: f32,
    /// What they lie around.
    pub(crate) middle: f32,
}

impl Stored {
    /// Bytes of a scale.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Float(kind) => kind.bytes(),
            Self::E8m0 | Self::E4m3 => 1,
        }
    }
}

impl Coding {
    pub(crate) fn bits(self) -> usize {
        match self {
            Self::Int { bits, .. } => bits as usize,
            Self::E2m1 | Self::Table(_) => 4,
            Self::E4m3 | Self::E5m2 => 8,
            Self::Word | Self::F16 | Self::Bf16 => 16,
            Self::F32 => 32,
        }
    }

    /// The sign bits of all codes of a byte: once they are flipped, code 0 stands for the least value.
    pub(crate) fn signs(self) -> u8 {
        match self {
            Self::Int { bits: 2, signed: true } => 0xaa,
            Self::Int { bits: 4, signed: true } => 0x88,
            Self::Int { signed: true, .. } => 0x80,
            _ => 0,
        }
    }

    /// The integers that codes stand for; `None`: they stand for none, or for some of 16 bits.
    pub(crate) fn integers(self) -> Option<Integers> {
        let Self::Int { bits, signed } = self else {
            return (self == Self::E2m1).then_some(Integers { least: -12.0, middle: 0.0 });
        };
        let most = f32::from(u8::MAX >> (8 - bits));
        Some(if signed {
            Integers { least: -(most + 1.0) / 2.0, middle: 0.0 }
        } else {
            Integers { least: 0.0, middle: most / 2.0 }
        })
    }

    /// Whether several codes share a byte.
    pub(crate) fn is_dense(self) -> bool {
        self.bits() < 8
    }
}

impl PackedRows {
    /// Rows of plain floats.
    pub(crate) fn floats(coding: Coding, heads: usize, columns: usize) -> Self {
        let row_bytes = heads * columns * coding.bits() / 8;
        let meta = Meta::None;
        let (rows, unit_bytes) = (1, row_bytes);
        Self { coding, heads, columns, group: columns, rows, row_bytes, unit_bytes, meta, transposed: false }
    }

    /// A format by token, where there are kernels for it: `rows` of the layout are heads.
    pub(crate) fn of_format(format: Format, layout: &Layout, unit_bytes: usize) -> Option<Self> {
        let (coding, factor) = coding_of(format)?;
        let zero = match (format.element, format.scale) {
            (Element::Int { bits, rule }, Scale::Float(_)) => match rule {
                IntRule::FloatMin | IntRule::Mlx => Zero::Float,
                IntRule::Asymmetric | IntRule::CtAsym | IntRule::AwqAsym => {
                    Zero::Code { bits: u32::from(bits), row_bytes: layout.zero_row_bytes }
                }
                _ => Zero::None,
            },
            _ => Zero::None,
        };
        let stored = |scale| Meta::Sections { scale, zero, second: layout.second_len > 0, factor };
        let meta = match format.scale {
            Scale::None => Meta::None,
            Scale::Float(kind) => stored(Stored::Float(kind)),
            Scale::E8m0(_) => stored(Stored::E8m0),
            Scale::E4m3(NvRule::Standard | NvRule::ModelOpt | NvRule::TorchAoSingle | NvRule::MlxSingle) => {
                stored(Stored::E4m3)
            }
            _ => return None,
        };
        let rows = Self {
            coding,
            heads: layout.rows,
            columns: layout.columns,
            group: layout.block_columns,
            rows: 1,
            row_bytes: layout.code_bytes(),
            unit_bytes,
            meta,
            transposed: false,
        };
        (layout.block_rows == 1 && layout.code_row_bytes * 8 == layout.columns * coding.bits() && rows.has_kernels())
            .then_some(rows)
    }

    /// The same bytes as channels of tokens: the layout's rows are channels of all heads.
    pub(crate) fn transposed(self, heads: usize) -> Self {
        let (channels, row_bytes) = (self.heads, self.row_bytes / self.heads);
        Self { heads, rows: channels, row_bytes, transposed: true, ..self }
    }

    /// Whether codes of a head are whole 32-bit words where they share bytes, of which none lies in two groups.
    pub(crate) fn has_kernels(&self) -> bool {
        let word = 32 / self.coding.bits().min(32);
        let whole = !self.coding.is_dense() || self.columns.is_multiple_of(word);
        let lanes = if self.coding.is_dense() { word } else { 16 };
        let one_group = self.group >= self.columns || self.group.is_multiple_of(lanes);
        let word_sums = !matches!(self.coding, Coding::Int { bits: 8, .. }) || self.columns.is_multiple_of(4);
        whole && one_group && word_sums && self.blocks() <= MOST_BLOCKS && self.columns <= 1 << 10
    }

    /// Scales of a row of one head.
    pub(crate) fn blocks(&self) -> usize {
        self.columns.div_ceil(self.group)
    }

    /// Scales of a row, all heads.
    pub(crate) fn row_blocks(&self) -> usize {
        if self.transposed { self.blocks() } else { self.heads * self.blocks() }
    }

    pub(crate) fn has_scales(&self) -> bool {
        self.meta != Meta::None
    }

    pub(crate) fn has_zeros(&self) -> bool {
        match self.meta {
            Meta::None => false,
            Meta::Sections { zero, .. } => zero != Zero::None,
            Meta::MinRange { .. } => true,
        }
    }

    /// The integers that codes stand for, where rows are tokens and the products of a group with numbers of 16 bits add up to 32.
    pub(crate) fn integers(&self) -> Option<Integers> {
        let fits = self.coding.is_dense() || self.group.min(self.columns) <= 256;
        self.coding.integers().filter(|_| fits && !self.transposed)
    }

    /// How scales are stored where kernels take those of many tokens at once: of integers whose zero points are no codes.
    pub(crate) fn plain_scales(&self) -> Option<PlainScales> {
        match self.meta {
            Meta::Sections { scale, zero: Zero::None | Zero::Float, second, factor } => {
                self.integers().map(|_| PlainScales { scale, second, factor })
            }
            _ => None,
        }
    }

    /// How pages of so many units cut units of one row: the codes of each head, then each scale where kernels take those of
    /// many tokens at once, else whatever follows the codes.
    pub(crate) fn cut(&self, stream: Stream, page_units: usize) -> Cut {
        if self.rows != 1 || self.transposed {
            return Cut::default();
        }
        let order = self.order(stream, page_units);
        let mut pieces = vec![Pieces { size: self.head_bytes(), count: self.heads, order }];
        let rest = self.unit_bytes - self.row_bytes;
        if rest > 0 {
            let units = |size, count| Pieces { size, count, order: Order::Units };
            match self.plain_scales() {
                Some(PlainScales { scale, second, .. }) => {
                    pieces.push(units(scale.bytes(), (rest - if second { 4 } else { 0 }) / scale.bytes()));
                    pieces.extend(second.then(|| units(4, 1)));
                }
                None => pieces.push(units(rest, 1)),
            }
        }
        Cut(pieces)
    }

    /// How codes of a head lie in pages: where they are integers, as kernels multiply them, with code 0 for the least value.
    fn order(&self, stream: Stream, page_units: usize) -> Order {
        let fits = self.head_bytes().is_multiple_of(16) && page_units.is_multiple_of(16);
        if !fits || self.integers().is_none() {
            return Order::Units;
        }
        let flip = self.coding.signs();
        match stream {
            Stream::Keys => Order::Sixteens { flip },
            Stream::Values => Order::Fours { flip },
        }
    }

    /// Bytes of the codes of a row of one head.
    pub(crate) fn head_bytes(&self) -> usize {
        self.columns * self.coding.bits() / 8
    }

    /// Reads, from what follows the codes of a unit, scales and the values of code 0 of rows `first..first + count` of a unit, `[count, row_blocks]` and some
    /// values more, so that 16 can be read from anywhere.
    pub(crate) fn read_meta(
        &self,
        bytes: &[u8],
        first: usize,
        count: usize,
        scales: &mut Vec<f32>,
        zeros: &mut Vec<f32>,
    ) {
        let (from, blocks) = (first * self.row_blocks(), count * self.row_blocks());
        let base = scales.len();
        scales.resize(base + blocks, 0.0);
        if self.has_zeros() {
            zeros.resize(base + blocks, 0.0);
        }
        let (scales, all) = (&mut scales[base..], self.rows * self.row_blocks());
        match self.meta {
            Meta::None => {}
            Meta::MinRange { steps } => {
                let zeros = &mut zeros[base..];
                for ((scale, zero), meta) in scales.iter_mut().zip(zeros).zip(bytes.chunks_exact(4).skip(from)) {
                    let mut pair = [0.0; 2];
                    halves::read(meta, &mut pair);
                    (*zero, *scale) = (pair[0], pair[1] / steps);
                }
            }
            Meta::Sections { scale, zero, second, factor } => {
                let width = scale.bytes();
                let (scale_bytes, rest) = bytes.split_at((all * width).min(bytes.len()));
                read_scales(scale, &scale_bytes[from * width..], scales);
                match zero {
                    Zero::None => {}
                    Zero::Float => read_scales(scale, &rest[from * width..], &mut zeros[base..]),
                    Zero::Code { bits, row_bytes } => {
                        // A row of the bit streams is one head of a token, or one channel.
                        let row = self.blocks();
                        let streams = rest.chunks_exact(row_bytes.max(1)).skip(from / row);
                        for ((zeros, scales), stream) in
                            zeros[base..].chunks_mut(row).zip(scales.chunks(row)).zip(streams)
                        {
                            for (at, (zero, scale)) in zeros.iter_mut().zip(scales).enumerate() {
                                *zero = -scale * f32::from(code(stream, bits, at));
                            }
                        }
                    }
                }
                let tail = rest.len().checked_sub(4).and_then(|at| rest.get(at..)).unwrap_or_default();
                let unit_scale = match tail {
                    [a, b, c, d] if second => f32::from_le_bytes([*a, *b, *c, *d]),
                    _ => 1.0,
                };
                if unit_scale * factor != 1.0 {
                    scales.iter_mut().for_each(|scale| *scale = *scale * unit_scale * factor);
                }
            }
        }
    }
}

/// What codes of a format are, and what their values are multiplied by.
fn coding_of(format: Format) -> Option<(Coding, f32)> {
    Some(match format.element {
        Element::Int { bits: bits @ (2 | 4 | 8), rule } => {
            let unsigned = matches!(
                rule,
                IntRule::Asymmetric | IntRule::CtAsym | IntRule::AwqAsym | IntRule::FloatMin | IntRule::Mlx
            );
            // An MX integer of b bits counts in steps of 2^(2 − b).
            let factor = if matches!(format.scale, Scale::E8m0(_)) { 4.0 / f32::from(1_u16 << bits) } else { 1.0 };
            (Coding::Int { bits: u32::from(bits), signed: !unsigned }, factor)
        }
        Element::Codebook(book) => (Coding::Table(*book.values()), 1.0),
        Element::Float { kind: FloatKind::E2m1, .. } if format.scale == Scale::None => {
            (Coding::Table(std::array::from_fn(|code| FloatKind::E2m1.decode(u16::try_from(code).unwrap_or(0)))), 1.0)
        }
        // Counted in steps of 1/2, which is a factor of scales.
        Element::Float { kind: FloatKind::E2m1, .. } => (Coding::E2m1, 0.5),
        // Casts that overflow to NaN are left to the decoder.
        Element::Float { kind: FloatKind::E4m3Fn, overflow: Overflow::Saturate } => (Coding::E4m3, 1.0),
        Element::Float { kind: FloatKind::E5m2, overflow: Overflow::Saturate } => (Coding::E5m2, 1.0),
        Element::Float { kind: FloatKind::F16, .. } => (Coding::F16, 1.0),
        Element::Float { kind: FloatKind::Bf16, .. } => (Coding::Bf16, 1.0),
        _ => return None,
    })
}

fn read_scales(kind: Stored, bytes: &[u8], out: &mut [f32]) {
    match kind {
        Stored::Float(ScaleType::F16) => halves::read(bytes, out),
        Stored::Float(ScaleType::Bf16) => {
            let values =
                bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
        Stored::Float(ScaleType::F32) => {
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
        Stored::E8m0 => out.iter_mut().zip(bytes).for_each(|(out, &code)| {
            // 2^(code − 127); code 0 lies among the subnormal numbers.
            *out = f32::from_bits(if code == 0 { 1 << 22 } else { u32::from(code) << 23 });
        }),
        Stored::E4m3 => {
            out.iter_mut().zip(bytes).for_each(|(out, &code)| *out = FloatKind::E4m3Fn.decode(u16::from(code)));
        }
    }
}

/// One code of a little-endian bit stream.
fn code(stream: &[u8], bits: u32, at: usize) -> u8 {
    let bit = at * bits as usize;
    let byte = |k: usize| u16::from(stream.get(bit / 8 + k).copied().unwrap_or(0));
    let window = (byte(0) | byte(1) << 8) >> (bit % 8);
    window.to_le_bytes()[0] & u8::MAX.checked_shr(8 - bits).unwrap_or(0)
}

//! The loops, written for vectorisers: fixed-size blocks, no branches that depend on values, integer
//! forms of what floats would do conditionally. Every function is `#[inline(always)]` so that it is
//! compiled for the instruction set of its [`Job`](super::Job).
//!
//! No operation here is fused or reordered: each float operation is one of the reference's, or is
//! exact, or its result is proven not to depend on the difference.

use crate::{Codebook, FloatKind};

/// Adding it rounds an f32 below 2^22 to an integer, ties to even, that then stands in the low bits.
pub(crate) const MAGIC: f32 = 12_582_912.0;

const MAGNITUDE: u32 = 0x7fff_ffff;

/// `max` of two numbers in one instruction, which [`f32::max`] is not: NaN needs no care here.
#[inline(always)]
pub(crate) fn fmax(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `min` of two numbers in one instruction.
#[inline(always)]
pub(crate) fn fmin(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Bits of the largest magnitude; `0x7f80_0000` or more when a value is NaN or infinite.
///
/// Bits of magnitudes order as the magnitudes do, and integer maxima may be taken in any order.
#[inline(always)]
pub(crate) fn amax_bits(x: &[f32]) -> u32 {
    const LANES: usize = 32;
    let mut lanes = [0_u32; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = (*lane).max(value.to_bits() & MAGNITUDE);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane = (*lane).max(value.to_bits() & MAGNITUDE);
    }
    reduce(lanes, u32::max)
}

/// Least and largest value, and whether all are finite.
#[inline(always)]
pub(crate) fn range(x: &[f32]) -> (f32, f32, bool) {
    const LANES: usize = 16;
    let (mut least, mut most) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            least[i] = fmin(block[i], least[i]);
            most[i] = fmax(block[i], most[i]);
        }
    }
    for (i, &value) in tail.iter().enumerate() {
        least[i] = fmin(value, least[i]);
        most[i] = fmax(value, most[i]);
    }
    (reduce(least, fmin), reduce(most, fmax), amax_bits(x) < INFINITE)
}

/// Bits of infinity: magnitudes from here on are not finite.
pub(crate) const INFINITE: u32 = 0x7f80_0000;

/// Folds lanes by halves.
#[inline(always)]
fn reduce<T: Copy, const N: usize>(mut lanes: [T; N], f: impl Fn(T, T) -> T) -> T {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Adds products and errors of pairs, lane by lane: Σx², Σy², Σxy, Σ(x−y)², and keeps the largest error.
#[inline(always)]
pub(crate) fn error_sums(x: &[[f32; 8]], y: &[[f32; 8]], sums: &mut [[f64; 8]; 4], most: &mut [f64; 8]) {
    let ([mut xx, mut yy, mut xy, mut errors], mut largest) = (*sums, *most);
    for (x, y) in x.iter().zip(y) {
        for lane in 0..8 {
            let (x, y) = (f64::from(x[lane]), f64::from(y[lane]));
            let error = x - y;
            xx[lane] += x * x;
            yy[lane] += y * y;
            xy[lane] += x * y;
            errors[lane] += error * error;
            largest[lane] = if error.abs() > largest[lane] { error.abs() } else { largest[lane] };
        }
    }
    (*sums, *most) = ([xx, yy, xy, errors], largest);
}

/// See [`Backend::amax_blocks`](super::Backend::amax_blocks).
#[inline(always)]
pub(crate) fn amax_blocks(x: &[f32], group: usize, out: &mut [f32]) {
    for (block, amax) in x.chunks(group).zip(out) {
        *amax = f32::from_bits(amax_bits(block));
    }
}

/// See [`Backend::range_blocks`](super::Backend::range_blocks).
#[inline(always)]
pub(crate) fn range_blocks(x: &[f32], group: usize, least: &mut [f32], most: &mut [f32]) -> bool {
    let mut finite = true;
    for ((block, least), most) in x.chunks(group).zip(least).zip(most) {
        let (low, high, all_finite) = range(block);
        (*least, *most) = (low, high);
        finite &= all_finite;
    }
    finite
}

/// How a value is brought to the unit of its block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unit {
    /// Not at all.
    Keep,
    /// `x·scale`.
    Multiply,
    /// `x / scale`, as the reference does.
    Divide,
}

/// How a value in the unit of its block becomes a code.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a tensor, and it is not moved")]
pub(crate) enum Element {
    /// `clamp(rne(v·factor) + zero, low, high)` with the zero point of the block; `low` is 0 or
    /// nothing has a zero point.
    Int { factor: f32, low: f32, high: f32 },
    /// A float of at most 8 bits.
    Float(SmallFloat),
    /// A code book.
    Book(Bins),
}

/// Blocks to encode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip<'a> {
    /// The values; the last block may be shorter.
    pub(crate) x: &'a [f32],
    /// Values in a block.
    pub(crate) group: usize,
    /// The unit of every block.
    pub(crate) unit: Unit,
    /// −0 counts as 0.
    pub(crate) positive_zero: bool,
    /// The element of every value.
    pub(crate) element: &'a Element,
    /// A scale a block.
    pub(crate) scales: &'a [f32; BLOCKS],
    /// The nearest f32 to the reciprocal of a scale, where units divide.
    pub(crate) high: &'a [f32; BLOCKS],
    /// What is left of the reciprocal.
    pub(crate) low: &'a [f32; BLOCKS],
    /// A zero point a block.
    pub(crate) zeros: &'a [f32; BLOCKS],
    /// No value is larger than so many scales.
    pub(crate) reach: f32,
    /// Bytes between what is worked on and what is asked for.
    pub(crate) ahead: usize,
}

/// The smallest blocks that kernels take.
pub(crate) const LEAST_GROUP: usize = 8;
/// Elements of a strip, at most: 8 KiB of f32.
pub(crate) const STRIP: usize = 2048;
/// Blocks of a strip, at most.
pub(crate) const BLOCKS: usize = STRIP / LEAST_GROUP;

/// See [`Backend::encode_blocks`](super::Backend::encode_blocks).
#[inline(always)]
pub(crate) fn encode_blocks(strip: &Strip<'_>, codes: &mut [u8]) -> bool {
    match strip.unit {
        Unit::Keep => encode_units(strip, codes, |x, _| x),
        Unit::Multiply => encode_units(strip, codes, |x, scale| x * scale),
        Unit::Divide => encode_units(strip, codes, |x, scale| x / scale),
    }
    strip.unit != Unit::Keep || amax_bits(strip.x) < INFINITE
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low byte is the code")]
fn encode_units(strip: &Strip<'_>, codes: &mut [u8], unit: impl Fn(f32, f32) -> f32) {
    let blocks = strip.x.chunks(strip.group).zip(codes.chunks_mut(strip.group));
    let blocks = blocks.zip(strip.scales.iter().zip(strip.zeros));
    match strip.element {
        Element::Int { factor, low, high } => {
            for ((x, codes), (&scale, &zero)) in blocks {
                // Clamping between integers before rounding or after gives the same.
                let (low, high) = (low - zero, high - zero);
                for (&x, code) in x.iter().zip(codes) {
                    let v = fmin(fmax(unit(x, scale) * factor, low), high);
                    *code = ((v + MAGIC) + zero).to_bits() as u8;
                }
            }
        }
        &Element::Float(kind) => {
            // x + 0 is x but for −0, x − 0 is x.
            let zero = if strip.positive_zero { 0.0 } else { -0.0 };
            for ((x, codes), (&scale, _)) in blocks {
                for (&x, code) in x.iter().zip(codes) {
                    *code = kind.encode(unit(x + zero, scale)) as u8;
                }
            }
        }
        Element::Book(bins) => {
            for ((x, codes), (&scale, _)) in blocks {
                for (&x, code) in x.iter().zip(codes) {
                    *code = bins.code(unit(x, scale));
                }
            }
        }
    }
}

/// A small float as the numbers its encoder and decoder need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SmallFloat {
    /// Bits of f32's mantissa that it lacks.
    pub(crate) shift: u32,
    /// Bits of its largest value as f32.
    pub(crate) max: u32,
    /// Bits of its smallest normal value as f32.
    pub(crate) smallest_normal: u32,
    /// Its smallest step.
    step: f32,
    /// Where its sign stands.
    pub(crate) sign: u32,
    /// Magnitudes above it are NaN, or infinite for the first of an IEEE kind.
    pub(crate) max_code: u32,
    ieee: bool,
}

impl SmallFloat {
    /// The numbers of a kind; `None` for those whose −0 is not a value.
    pub(crate) fn new(kind: FloatKind) -> Option<Self> {
        let sign = kind.bits() - 1;
        let negative_zero = kind.decode(1 << sign);
        if negative_zero.is_nan() {
            return None;
        }
        let shift = 23 - kind.mantissa_bits();
        let step = kind.decode(1);
        let smallest_normal = kind.decode(1 << kind.mantissa_bits()).to_bits();
        let max_code = u32::from(kind.encode(f32::MAX, crate::Overflow::Saturate));
        Some(Self {
            shift,
            max: kind.max().to_bits(),
            smallest_normal,
            step,
            sign,
            max_code,
            #[expect(clippy::cast_possible_truncation, reason = "codes have at most 16 bits")]
            ieee: max_code + 1 < 1 << sign && kind.decode((max_code + 1) as u16).is_infinite(),
        })
    }

    /// The code nearest to `x`, ties to even, saturating.
    ///
    /// Adding a power of two 2^(23 − mantissa bits) times the binade of `x` rounds it to the steps of
    /// that binade; the subnormals are a part of the first binade.
    #[inline(always)]
    pub(crate) fn encode(self, x: f32) -> u32 {
        let bits = x.to_bits();
        let magnitude = (bits & MAGNITUDE).min(self.max);
        let binade = (magnitude & 0x7f80_0000).max(self.smallest_normal);
        let magic = binade + (self.shift << 23);
        let steps = (f32::from_bits(magnitude) + f32::from_bits(magic)).to_bits().wrapping_sub(magic);
        let code = ((binade - self.smallest_normal) >> self.shift) + steps;
        code | (bits >> 31) << self.sign
    }

    /// For each binade, by the low five bits of its exponent, the bits of a float: added to a value of
    /// that binade it leaves the code in the low bits of the sum. It is the power of two of
    /// [`SmallFloat::encode`] and, in units of its last place, the first code of the binade.
    pub(crate) fn magic_of_binades(self) -> [u32; 32] {
        let mut table = [0; 32];
        for binade in (self.smallest_normal..=self.max).step_by(1 << 23) {
            let first_code = (binade - self.smallest_normal) >> self.shift;
            table[(binade >> 23 & 31) as usize] = binade + (self.shift << 23) + first_code;
        }
        table
    }

    /// [`SmallFloat::encode`] for 16-bit kinds, where the power of two may overflow: rounds the bits.
    #[inline(always)]
    pub(crate) fn encode16(self, x: f32) -> u32 {
        let bits = x.to_bits();
        let magnitude = (bits & MAGNITUDE).min(self.max);
        // Rounding may carry into the exponent, which gives the first code of the next binade.
        let odd = (magnitude >> self.shift) & 1;
        let below_half = (1 << (self.shift - 1)) - 1;
        let normal = (magnitude + below_half + odd).wrapping_sub(self.smallest_normal - (1 << 23)) >> self.shift;
        let magic = self.step * 8_388_608.0;
        let small = (f32::from_bits(magnitude) + magic).to_bits().wrapping_sub(magic.to_bits());
        let code = if magnitude < self.smallest_normal { small } else { normal };
        code | (bits >> 31) << self.sign
    }

    /// The bits of a code.
    #[inline(always)]
    pub(crate) fn code_mask(self) -> u32 {
        (2 << self.sign) - 1
    }

    /// The value of a code of a positive finite number.
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "a code has at most 15 bits")]
    pub(crate) fn decode_finite(self, code: u32) -> f32 {
        let normal = f32::from_bits((code << self.shift) + (self.smallest_normal - (1 << 23)));
        let small = code.cast_signed() as f32 * self.step;
        if code >> (23 - self.shift) == 0 { small } else { normal }
    }

    /// The value of a code.
    #[inline(always)]
    pub(crate) fn decode(self, code: u32) -> f32 {
        let magnitude = code & ((1 << self.sign) - 1);
        let sign = code >> self.sign << 31;
        let finite = self.decode_finite(magnitude).to_bits() | sign;
        let infinite = self.ieee && magnitude == self.max_code + 1;
        let beyond = if infinite { INFINITE | sign } else { f32::NAN.to_bits() };
        f32::from_bits(if magnitude <= self.max_code { finite } else { beyond })
    }
}

/// Values of 16-bit floats.
#[inline(always)]
pub(crate) fn decode_float16(kind: SmallFloat, codes: &[u8], out: &mut [f32]) {
    for (value, &word) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
        *value = kind.decode(u32::from(u16::from_le_bytes(word)));
    }
}

/// Casts to a 16-bit float; false when a value is not finite.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "codes have 16 bits")]
pub(crate) fn encode_float16(x: &[f32], kind: SmallFloat, codes: &mut [u8]) -> bool {
    for (&x, code) in x.iter().zip(codes.as_chunks_mut::<2>().0) {
        *code = (kind.encode16(x) as u16).to_le_bytes();
    }
    amax_bits(x) < INFINITE
}

/// A code book in ascending order. The code of `v` is the number of edges that `clamp(v, ±1)` exceeds,
/// or what `codes` has there.
#[derive(Clone, Debug)]
pub(crate) struct Bins {
    /// The middle between two neighbours; the last is infinite.
    pub(crate) edges: [f32; 16],
    /// Codes of the entries in ascending order.
    pub(crate) codes: [u8; 16],
    /// A quicker way, if no two edges lie close together.
    pub(crate) cells: Option<Cells>,
}

/// Cells that hold at most one edge: with `cell = rne(v·15.49) mod 32`, as many edges lie below `v` as
/// `first[cell] + (v > edge[cell])`.
#[derive(Clone, Debug)]
pub(crate) struct Cells {
    /// Edges below a cell.
    pub(crate) first: [u32; 32],
    /// The edge in a cell, or infinity.
    pub(crate) edge: [f32; 32],
}

impl Bins {
    /// Cells per unit.
    pub(crate) const CELLS: f32 = 15.49;

    /// The bins of a table.
    pub(crate) fn new(book: Codebook) -> Self {
        let codes = book.ascending();
        let values = codes.map(|code| book.values()[usize::from(code)]);
        let mut edges = [f32::INFINITY; 16];
        for (edge, pair) in edges.iter_mut().zip(values.windows(2)) {
            *edge = (pair[0] + pair[1]) / 2.0;
        }
        Self { edges, codes, cells: Self::cells(&edges[..15]) }
    }

    fn cells(edges: &[f32]) -> Option<Cells> {
        let cell = |v: f32| v.mul_add(Self::CELLS, MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed();
        let mut cells = Cells { first: [0; 32], edge: [f32::INFINITY; 32] };
        for i in -15_i32..=15 {
            let slot = (i & 31).cast_unsigned() as usize;
            let mut inside = edges.iter().filter(|&&edge| cell(edge) == i);
            cells.edge[slot] = inside.next().copied().unwrap_or(f32::INFINITY);
            if inside.next().is_some() {
                return None;
            }
            cells.first[slot] = edges.iter().map(|&edge| u32::from(cell(edge) < i)).sum();
        }
        Some(cells)
    }

    #[inline(always)]
    fn code(&self, v: f32) -> u8 {
        let v = fmin(fmax(v, -1.0), 1.0);
        let mut count = 0_u32;
        for &edge in &self.edges[..15] {
            count += u32::from(v > edge);
        }
        self.codes[(count & 15) as usize]
    }
}

/// Packs codes of `bits` bits, little-endian bit stream; an incomplete last byte is filled with zeros.
#[inline(always)]
pub(crate) fn pack(codes: &[u8], bits: u32, out: &mut [u8]) {
    if bits == 4 {
        let (pairs, last) = codes.as_chunks::<2>();
        for (pair, byte) in pairs.iter().zip(out.iter_mut()) {
            *byte = (pair[0] & 15) | (pair[1] << 4);
        }
        if let ([code], Some(byte)) = (last, out.last_mut()) {
            *byte = code & 15;
        }
        return;
    }
    pack_by(codes, bits, out, |w| gather_bits(w, bits));
}

/// The low `bits` bits of every byte.
#[inline(always)]
fn low_bits(bits: u32) -> u64 {
    ((1 << bits) - 1) * 0x0101_0101_0101_0101
}

/// Packs eight codes at a time; `gather` moves the low bits of each byte together.
#[inline(always)]
pub(crate) fn pack_by(codes: &[u8], bits: u32, out: &mut [u8], gather: impl Fn(u64) -> u64) {
    let width = bits as usize;
    let (eights, tail) = codes.as_chunks::<8>();
    let mut out = out;
    for eight in eights {
        let word = gather(u64::from_le_bytes(*eight)).to_le_bytes();
        // What is written too far is written again.
        match out.first_chunk_mut::<8>() {
            Some(bytes) => *bytes = word,
            None => out[..width].copy_from_slice(&word[..width]),
        }
        out = &mut out[width..];
    }
    if !tail.is_empty() {
        let mut eight = [0; 8];
        eight[..tail.len()].copy_from_slice(tail);
        let word = gather(u64::from_le_bytes(eight)).to_le_bytes();
        out.copy_from_slice(&word[..out.len()]);
    }
}

/// Moves the low `bits` bits of each byte together.
#[inline(always)]
fn gather_bits(w: u64, bits: u32) -> u64 {
    let w = w & low_bits(bits);
    let w = (w & 0x00ff_00ff_00ff_00ff) | (w & 0xff00_ff00_ff00_ff00) >> (8 - bits);
    let w = (w & 0x0000_ffff_0000_ffff) | (w & 0xffff_0000_ffff_0000) >> (16 - 2 * bits);
    (w & 0xffff_ffff) | (w & 0xffff_ffff_0000_0000) >> (32 - 4 * bits)
}

/// Puts each group of `bits` bits into a byte of its own.
#[inline(always)]
fn scatter_bits(w: u64, bits: u32) -> u64 {
    let low = |n: u32| (1_u64 << n) - 1;
    let w = (w & low(4 * bits)) | (w & (low(4 * bits) << (4 * bits))) << (32 - 4 * bits);
    let pairs = low(2 * bits) * 0x0000_0001_0000_0001;
    let w = (w & pairs) | (w & (pairs << (2 * bits))) << (16 - 2 * bits);
    let singles = low(bits) * 0x0001_0001_0001_0001;
    (w & singles) | (w & (singles << bits)) << (8 - bits)
}

/// Unpacks codes of `bits` < 8 bits, the first standing at the start of `bytes`.
#[inline(always)]
pub(crate) fn unpack(bytes: &[u8], bits: u32, codes: &mut [u8]) {
    unpack_by(bytes, bits, codes, |w| scatter_bits(w, bits));
}

/// Unpacks eight codes at a time; `scatter` puts each group of bits into a byte of its own.
#[inline(always)]
pub(crate) fn unpack_by(bytes: &[u8], bits: u32, codes: &mut [u8], scatter: impl Fn(u64) -> u64) {
    let mut bytes = bytes;
    for eight in codes.chunks_mut(8) {
        let mut word = [0; 8];
        match bytes.first_chunk::<8>() {
            Some(chunk) => word = *chunk,
            None => word[..bytes.len()].copy_from_slice(bytes),
        }
        let scattered = scatter(u64::from_le_bytes(word)).to_le_bytes();
        match eight.as_mut_array::<8>() {
            Some(eight) => *eight = scattered,
            None => eight.copy_from_slice(&scattered[..eight.len()]),
        }
        bytes = &bytes[bytes.len().min(bits as usize)..];
    }
}

/// Looks 4-bit codes up, two a byte, low nibble first.
#[inline(always)]
pub(crate) fn lookup16(codes: &[u8], table: &[f32; 16], out: &mut [f32]) {
    let (pairs, last) = out.as_chunks_mut::<2>();
    for (byte, pair) in codes.iter().zip(pairs) {
        *pair = [table[usize::from(byte & 15)], table[usize::from(byte >> 4)]];
    }
    if let ([value], Some(byte)) = (last, codes.last()) {
        *value = table[usize::from(byte & 15)];
    }
}

/// Rounds positive scales to f16 (5 exponent bits) or bf16 as stored, keeping them above zero;
/// writes the codes and gives false when one overflows.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "codes have 16 bits")]
pub(crate) fn store_scales16(scales: &mut [f32], kind: SmallFloat, out: &mut [u8]) -> bool {
    let mut most = 0_u32;
    for (scale, bytes) in scales.iter_mut().zip(out.as_chunks_mut::<2>().0) {
        // Saturation and overflow part half a step above the largest value; both are refused below.
        let above = scale.to_bits().max(kind.max) - kind.max;
        let code = kind.encode16(*scale);
        let code = if code == 0 && *scale != 0.0 { 1 } else { code };
        most = most.max(above);
        *scale = kind.decode_finite(code);
        *bytes = (code as u16).to_le_bytes();
    }
    most == 0
}

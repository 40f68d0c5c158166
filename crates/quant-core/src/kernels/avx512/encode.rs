//! Codes of blocks of values, four vectors at a time.
//!
//! Rows of whole tiles go through in one pass, see [`tiles`]; what is left, and what needs more, strip by strip.

use super::super::RowEncoder;
use super::super::encode::{self as plain, Fitted, Kind};
use super::super::ops::{self, Bins, Cells, Element, SmallFloat, Strip, Unit};
use super::lines::Lines;
use super::{VECTORS, max_of_each, prefetch, spread};
use std::arch::x86_64::*;

/// Scales by which [`quotient`] divides exactly: 2^-60 to 2^60.
const EXACT_SCALES: std::ops::RangeInclusive<f32> = 8.673_617e-19..=1.152_921_5e18;
/// How many scales large a value may be for that.
const EXACT_RANGE: f32 = 65536.0;

const KEEP: u8 = 0;
const MULTIPLY: u8 = 1;
const QUOTIENT: u8 = 2;

const FLOAT: u8 = 0;
/// Two's complement.
const SIGNED: u8 = 1;
/// Codes from 0 on, with a zero point.
const UNSIGNED: u8 = 2;
const BOOK: u8 = 3;

/// As [`plain::fit`]; prepares the reciprocals of scales as well.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn fit(plan: &RowEncoder, fitted: &mut Fitted, count: usize, out: &mut [u8]) -> bool {
    let done = plain::fit(plan, fitted, count, out);
    reciprocals(plan, fitted, count);
    done
}

/// Of scales that values are divided by; others may be far too small.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn reciprocals(plan: &RowEncoder, fitted: &mut Fitted, count: usize) {
    if plan.unit != Unit::Divide {
        return;
    }
    let scales = fitted.scales[..count].iter();
    for ((&scale, high), low) in scales.zip(&mut fitted.high).zip(&mut fitted.low) {
        *high = 1.0 / scale;
        *low = (-*high).mul_add(scale, 1.0) * *high;
    }
}

/// The same for the blocks of a tile, from the lanes of their magnitudes. Counts are constants here, which makes straight
/// lines of loops; the first block stands in for those that are not there, as zero may have a slow reciprocal.
/// Tells whether codes can be made by multiplication; `None` when the reference must decide.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn fit_tile(
    plan: &RowEncoder,
    fitted: &mut Fitted,
    lanes: &[__m512i; TILE / 16],
    count: usize,
    out: &mut [u8],
) -> Option<bool> {
    let sixteens = lanes.as_chunks::<16>().0.iter();
    for (lanes, amax) in sixteens.zip(fitted.scales.as_chunks_mut::<16>().0).take(count.div_ceil(16)) {
        // SAFETY: `amax` is a reference to 16 floats.
        unsafe { _mm512_storeu_si512(amax.as_mut_ptr().cast(), max_of_each(*lanes)) };
    }
    let mut stored = [0; 4 * TILE / 16];
    let by_vectors = |steps: &[f32; 128], codes: &[u8], taken: &mut [f32]| {
        for (codes, taken) in codes.as_chunks().0.iter().zip(taken.as_chunks_mut().0) {
            lookup128(steps, codes, taken);
        }
    };
    let done = match count {
        ..=16 => plain::fit_by(plan, fitted, 16, &mut stored, by_vectors),
        32 => plain::fit_by(plan, fitted, 32, &mut stored, by_vectors),
        _ => plain::fit_by(plan, fitted, 64, &mut stored, by_vectors),
    };
    out.copy_from_slice(&stored[..out.len()]);
    match (plan.unit, &plan.element) {
        _ if !done => None,
        (Unit::Divide, _) => {
            let count = count.next_multiple_of(16);
            reciprocals(plan, fitted, count);
            Some(divides_exactly(&fitted.scales[..count], fitted.reach))
        }
        (_, Kind::Small(Element::Int { .. })) => Some(fitted.reach.is_finite()),
        _ => Some(true),
    }
}

/// The entries of 16 codes below 128 in a table, by permutations, which are quicker than reading them one by one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn lookup128(table: &[f32; 128], codes: &[u8; 16], out: &mut [f32; 16]) {
    let (parts, _) = table.as_chunks::<16>();
    // SAFETY: the loads read 16 bytes and 16 floats of references to as many, and 16 floats are written.
    unsafe {
        let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
        let part = |i: usize| _mm512_loadu_ps(parts[i].as_ptr());
        // Of 32 entries; the low five bits count.
        let of = |i: usize| _mm512_permutex2var_ps(part(2 * i), codes, part(2 * i + 1));
        let bit = |bit: i32| _mm512_test_epi32_mask(codes, _mm512_set1_epi32(bit));
        let (low, high) = (_mm512_mask_blend_ps(bit(32), of(0), of(1)), _mm512_mask_blend_ps(bit(32), of(2), of(3)));
        _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mask_blend_ps(bit(64), low, high));
    }
}

/// See [`Backend::encode_blocks`](super::super::Backend::encode_blocks).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn encode_blocks(strip: &Strip<'_>, codes: &mut [u8]) -> bool {
    match (strip.element, strip.unit) {
        _ if !strip.group.is_multiple_of(16) && strip.group < strip.x.len() => any_blocks(strip, codes),
        (_, Unit::Divide) if !divides_exactly(&strip.scales[..strip.x.len().div_ceil(strip.group)], strip.reach) => {
            any_blocks(strip, codes)
        }
        (Element::Int { .. }, Unit::Multiply) if strip.reach.is_finite() => walk::<MULTIPLY, SIGNED>(strip, codes),
        (Element::Int { low, .. }, Unit::Divide) if *low < 0.0 => walk::<QUOTIENT, SIGNED>(strip, codes),
        (Element::Int { .. }, Unit::Divide) => walk::<QUOTIENT, UNSIGNED>(strip, codes),
        (Element::Float(_), Unit::Keep) => walk::<KEEP, FLOAT>(strip, codes),
        (Element::Float(_), Unit::Multiply) => walk::<MULTIPLY, FLOAT>(strip, codes),
        (Element::Float(_), Unit::Divide) => walk::<QUOTIENT, FLOAT>(strip, codes),
        (Element::Book(Bins { cells: Some(_), .. }), Unit::Multiply) => walk::<MULTIPLY, BOOK>(strip, codes),
        _ => any_blocks(strip, codes),
    }
}

/// Values whose extremes are found together, while codes of those before are made, at most; half as many where blocks are
/// an odd multiple of that.
const TILE: usize = 1024;
/// Bytes between the values whose extremes are found and those that are asked for. With three tiles this fits the
/// first-level cache.
const TILE_AHEAD: usize = 6144;

/// See [`Backend::encode_tiles`](super::super::Backend::encode_tiles).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn encode_tiles(
    plan: &RowEncoder,
    fitted: &mut Fitted,
    x: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
) -> Option<usize> {
    if !Lines::fit(codes, plan.stream) || plan.fits_ranges() || plan.negative_zero.is_some() {
        return Some(0);
    }
    let element = match &plan.element {
        Kind::Float16(kind) => return cast_to_halves(plan, *kind, x, codes),
        Kind::Small(element) => element,
    };
    let group = matches!(plan.group, 16 | 32 | 64 | 128 | 256) || plan.group.is_multiple_of(TILE / 2);
    if !(group || plan.unit == Unit::Keep) || !matches!(plan.code_bits, 4 | 6 | 8) {
        return Some(0);
    }
    match (element, plan.unit) {
        (Element::Int { .. }, Unit::Multiply) => tiles::<MULTIPLY, SIGNED>(plan, element, fitted, x, codes, scales),
        (Element::Int { .. }, Unit::Divide) => tiles::<QUOTIENT, SIGNED>(plan, element, fitted, x, codes, scales),
        (Element::Float(_), Unit::Keep) => tiles::<KEEP, FLOAT>(plan, element, fitted, x, codes, scales),
        (Element::Float(_), Unit::Multiply) => tiles::<MULTIPLY, FLOAT>(plan, element, fitted, x, codes, scales),
        (Element::Float(_), Unit::Divide) => tiles::<QUOTIENT, FLOAT>(plan, element, fitted, x, codes, scales),
        (Element::Book(Bins { cells: Some(_), .. }), Unit::Multiply) => {
            tiles::<MULTIPLY, BOOK>(plan, element, fitted, x, codes, scales)
        }
        _ => Some(0),
    }
}

/// Casts to a 16-bit float by the operations of `SmallFloat::encode16`, for f16 by the instruction.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn cast_to_halves(plan: &RowEncoder, kind: SmallFloat, x: &[f32], codes: &mut [u8]) -> Option<usize> {
    let half = kind.shift == 13;
    let largest = _mm512_set1_ps(f32::from_bits(kind.max));
    let mut most = _mm512_setzero_si512();
    let mut code = |x: &[f32]| {
        // SAFETY: the slice is checked to hold 16 floats.
        let x = unsafe { _mm512_loadu_ps(x[..16].as_ptr()) };
        most = _mm512_max_epu32(most, magnitude(x));
        // The lesser magnitude of the two with the sign of x.
        let x = _mm512_range_ps::<0b0010>(x, largest);
        if half {
            return _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        }
        // All but the lowest binade of bf16 are those of f32, and that one has the same steps.
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
    };
    let pieces = x.as_chunks::<32>().0;
    let mut lines = Lines::new(&mut codes[..64 * pieces.len()], plan.stream);
    for piece in pieces {
        prefetch(piece, plan.ahead);
        prefetch(&piece[16..], plan.ahead);
        lines.push(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(code(piece)), code(&piece[16..])));
    }
    lines.finish();
    (_mm512_reduce_max_epu32(most) < ops::INFINITE).then_some(32 * pieces.len())
}

/// What divides or multiplies the values of a tile, for each vector.
struct Params {
    scales: [f32; TILE / 16],
    high: [f32; TILE / 16],
    low: [f32; TILE / 16],
}

impl Params {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn set<const UNIT: u8>(&mut self, fitted: &Fitted, group: usize) {
        spread(&fitted.scales, group, 1.0, TILE / 16, &mut self.scales);
        if UNIT == QUOTIENT {
            spread(&fitted.high, group, 1.0, TILE / 16, &mut self.high);
            spread(&fitted.low, group, 1.0, TILE / 16, &mut self.low);
        }
    }
}

/// Largest magnitudes of a tile in each lane: of its vectors, of pairs of them or of fours, whichever blocks are made of.
struct Extremes {
    lanes: [__m512i; TILE / 16],
    /// Vectors, pairs or fours of a block of a tile.
    per_block: usize,
    /// Values of a block.
    group: usize,
}

impl Extremes {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn new(group: usize, tile: usize) -> Self {
        Self { lanes: [_mm512_setzero_si512(); TILE / 16], per_block: (group.min(tile) / 64).max(1), group }
    }

    /// Takes 64 values, the `piece`-th of a tile.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn take(&mut self, piece: usize, x: &[f32; 64]) {
        let mut v = [_mm512_setzero_si512(); 4];
        for (v, x) in v.iter_mut().zip(x.as_chunks::<16>().0) {
            // SAFETY: `x` is a reference to 16 floats.
            *v = magnitude(unsafe { _mm512_loadu_ps(x.as_ptr()) });
        }
        let piece = piece % (TILE / 64);
        if self.group == 16 {
            self.lanes.as_chunks_mut::<4>().0[piece] = v;
            return;
        }
        let pairs = [_mm512_max_epu32(v[0], v[1]), _mm512_max_epu32(v[2], v[3])];
        if self.group == 32 {
            self.lanes.as_chunks_mut::<2>().0[piece] = pairs;
        } else {
            self.lanes[piece] = _mm512_max_epu32(pairs[0], pairs[1]);
        }
    }

    /// The lanes of a tile's blocks, then those of the first block again.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn fold(&mut self, blocks: usize) {
        match self.per_block {
            1 => {}
            2 => self.fold_by::<2>(),
            4 => self.fold_by::<4>(),
            8 => self.fold_by::<8>(),
            _ => self.fold_by::<16>(),
        }
        let first = self.lanes[0];
        if blocks < 16 {
            self.lanes[blocks..16].fill(first);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn fold_by<const N: usize>(&mut self) {
        for block in 0..TILE / 64 / N {
            let mut all = self.lanes[N * block];
            for i in 1..N {
                all = _mm512_max_epu32(all, self.lanes[N * block + i]);
            }
            self.lanes[block] = all;
        }
    }
}

/// Three tiles are in work: codes of one are made and the extremes of the next but one are found in one loop, while the
/// scales of that between them are computed. So neither memory nor the core waits for the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn tiles<const UNIT: u8, const KIND: u8>(
    plan: &RowEncoder,
    element: &Element,
    fitted: &mut Fitted,
    x: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
) -> Option<usize> {
    let all = constants(element, plan.positive_zero);
    let group = if UNIT == KEEP { TILE } else { plan.group };
    let tile = if group.is_multiple_of(TILE) || group < TILE / 2 { TILE } else { TILE / 2 };
    // A block is a part of a tile, or several tiles, which then go together.
    let per = group.div_ceil(tile);
    let count = tile / group.min(tile);
    let stored = count * plan.scale_bytes();
    let tiles = x.len() / (per * tile) * per;
    if tiles == 0 {
        return Some(0);
    }
    let tile_of = |i: usize| &x[i * tile..][..tile];
    let mut lines = Lines::new(&mut codes[..tiles * tile / 8 * plan.code_bits as usize], plan.stream);
    let mut extremes = Extremes::new(group, tile);
    let mut params = Params { scales: [1.0; TILE / 16], high: [1.0; TILE / 16], low: [0.0; TILE / 16] };
    let mut largest = _mm512_setzero_si512();
    // What waits for the codes that share its line.
    let mut earlier = _mm512_setzero_si512();
    let mut done = tiles;
    // Of the tiles of a block that is longer than one.
    let mut block = _mm512_setzero_si512();
    if UNIT != KEEP {
        for i in 0..2 * per {
            if i == per {
                if !fit_tile(plan, fitted, &extremes.lanes, count, &mut scales[..stored])? {
                    return Some(0);
                }
                block = _mm512_setzero_si512();
            }
            if i < tiles {
                for (piece, x) in tile_of(i).as_chunks::<64>().0.iter().enumerate() {
                    extremes.take(piece, x);
                }
                extremes.fold(count);
                if per > 1 {
                    block = _mm512_max_epu32(block, extremes.lanes[0]);
                    extremes.lanes[..16].fill(block);
                }
            }
        }
    }
    for i in 0..tiles {
        if i == done {
            break;
        }
        if UNIT != KEEP && i % per == 0 {
            params.set::<UNIT>(fitted, group);
            if let Some(scales) = scales.get_mut((i / per + 1) * stored..).filter(|_| i + per < tiles)
                && !fit_tile(plan, fitted, &extremes.lanes, count, &mut scales[..stored])?
            {
                done = i + per;
            }
            block = _mm512_setzero_si512();
        }
        // After the last there is nothing to find; finding something again spares a branch.
        let next = tile_of(if UNIT != KEEP && i + 2 * per < tiles { i + 2 * per } else { i });
        let pieces = tile_of(i).as_chunks::<64>().0.iter().zip(next.as_chunks::<64>().0);
        let params = params
            .scales
            .as_chunks::<4>()
            .0
            .iter()
            .zip(params.high.as_chunks::<4>().0)
            .zip(params.low.as_chunks::<4>().0);
        for (p, ((x, next), ((scales, high), low))) in pieces.zip(params).enumerate() {
            for line in next.as_chunks::<16>().0 {
                prefetch(line, TILE_AHEAD);
            }
            if UNIT != KEEP {
                extremes.take(p, next);
            }
            let mut code = [_mm512_setzero_si512(); 4];
            for (j, (code, x)) in code.iter_mut().zip(x.as_chunks::<16>().0).enumerate() {
                // SAFETY: `x` is a reference to 16 floats.
                let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
                if UNIT == KEEP {
                    largest = _mm512_max_epu32(largest, magnitude(x));
                }
                let [scale, high, low] = [scales[j], high[j], low[j]].map(|v| _mm512_set1_ps(v));
                *code = sixteen::<UNIT, KIND>(x, Lanes { scale, high, low, zero: all.factor }, all);
            }
            let bytes = bytes::<KIND>(code, all);
            match plan.code_bits {
                8 => lines.push(bytes),
                4 => {
                    if p % 2 != 0 {
                        lines.push(nibbles(earlier, bytes));
                    }
                    earlier = bytes;
                }
                _ => {
                    let sixes = sixes(bytes);
                    if p % 4 != 0 {
                        lines.push(_mm512_permutex2var_epi32(earlier, quarters(p % 4), sixes));
                    }
                    earlier = sixes;
                }
            }
        }
        if UNIT != KEEP {
            extremes.fold(count);
            if per > 1 {
                block = _mm512_max_epu32(block, extremes.lanes[0]);
                extremes.lanes[..16].fill(block);
            }
        }
    }
    lines.finish();
    (_mm512_reduce_max_epu32(largest) < ops::INFINITE).then_some(done * tile)
}

/// Bits of magnitudes; they order as the magnitudes do.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn magnitude(x: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff))
}

/// Packs codes of fewer than 8 bits, see [`ops::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn pack(codes: &[u8], bits: u32, out: &mut [u8]) {
    if bits != 4 {
        let mask = ((1 << bits) - 1) * 0x0101_0101_0101_0101;
        return ops::pack_by(codes, bits, out, |w| _pext_u64(w, mask));
    }
    let (pairs, tail) = codes.as_chunks::<128>();
    let (lines, out_tail) = out.split_at_mut(64 * pairs.len());
    for (pair, line) in pairs.iter().zip(lines.as_chunks_mut::<64>().0) {
        // SAFETY: each load reads 64 of the 128 bytes, and `line` is a reference to 64 bytes.
        unsafe {
            let (first, second) =
                (_mm512_loadu_si512(pair.as_ptr().cast()), _mm512_loadu_si512(pair[64..].as_ptr().cast()));
            _mm512_storeu_si512(line.as_mut_ptr().cast(), nibbles(first, second));
        }
    }
    ops::pack(tail, 4, out_tail);
}

/// Two bytes of codes as one byte each, low nibble first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn nibbles(first: __m512i, second: __m512i) -> __m512i {
    // low + 16·high of every two bytes.
    let words = |v| _mm512_maddubs_epi16(_mm512_and_si512(v, _mm512_set1_epi8(15)), _mm512_set1_epi16(0x1001));
    let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    _mm512_permutexvar_epi64(order, _mm512_packus_epi16(words(first), words(second)))
}

/// The 48 bytes of 64 codes of 6 bits, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn sixes(codes: __m512i) -> __m512i {
    // first + 64·second of every two bytes, first + 4096·second of every two of these.
    let words = _mm512_maddubs_epi16(_mm512_and_si512(codes, _mm512_set1_epi8(63)), _mm512_set1_epi16(0x4001));
    let threes = _mm512_madd_epi16(words, _mm512_set1_epi32(0x1000_0001));
    let lower = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    let order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, _mm512_shuffle_epi8(threes, lower))
}

/// Where the words of the `i`-th line of three come from, made of four times 48 bytes, 1 being the first: the rest of one and
/// the beginning of the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn quarters(i: usize) -> __m512i {
    match i {
        1 => _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19),
        2 => _mm512_setr_epi32(4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23),
        _ => _mm512_setr_epi32(8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27),
    }
}

/// Whether no quotient with such scales overflows and none that matters underflows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn divides_exactly(scales: &[f32], reach: f32) -> bool {
    let exact = |scale: &f32| (EXACT_SCALES.start()..=EXACT_SCALES.end()).contains(&scale);
    scales.iter().fold(reach <= EXACT_RANGE, |all, scale| all & exact(scale))
}

/// What no other function here covers. Not inlined: it is compiled once, not once a caller.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn any_blocks(strip: &Strip<'_>, codes: &mut [u8]) -> bool {
    ops::encode_blocks(strip, codes)
}

/// What the values of one block share, in every lane.
#[derive(Clone, Copy)]
struct Lanes {
    scale: __m512,
    /// The nearest f32 to `1/scale`, and what is left of it.
    high: __m512,
    low: __m512,
    zero: __m512,
}

/// What all values share, in every lane.
#[derive(Clone, Copy)]
struct Constants {
    factor: __m512,
    /// Least and largest code of an integer, in bytes.
    least: __m512i,
    most: __m512i,
    /// Largest value of a float.
    largest: __m512,
    /// Least normal value of a float.
    normal: __m512,
    /// Of a float, what rounds a value of each binade and leaves its code in the low bits, by the low
    /// five bits of the exponent; of a code book, the edge in each cell.
    table: [__m512i; 2],
    /// Of a code book, the edges below each cell.
    first: [__m512i; 2],
    /// The codes of a book in ascending order, in every quarter.
    codes: __m512i,
    /// Where the sign of a value comes to stand, counted from the top, and all below it.
    sign_shift: __m512i,
    magnitude: __m512i,
    /// Added to values for their sign: −0 keeps it.
    sign_of_zero: __m512,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn two<T>(table: &[T; 32]) -> [__m512i; 2] {
    const { assert!(size_of::<T>() == 4, "entries of 32 bits") };
    // SAFETY: each load reads 16 of the 32 entries.
    unsafe { [_mm512_loadu_si512(table.as_ptr().cast()), _mm512_loadu_si512(table[16..].as_ptr().cast())] }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
#[expect(clippy::cast_possible_truncation, reason = "limits of codes of at most 8 bits")]
fn constants(element: &Element, positive_zero: bool) -> Constants {
    let nothing = _mm512_setzero_si512();
    let mut all = Constants {
        factor: _mm512_set1_ps(1.0),
        least: nothing,
        most: nothing,
        largest: _mm512_setzero_ps(),
        normal: _mm512_setzero_ps(),
        table: [nothing; 2],
        first: [nothing; 2],
        codes: nothing,
        sign_shift: nothing,
        magnitude: nothing,
        sign_of_zero: _mm512_set1_ps(if positive_zero { 0.0 } else { -0.0 }),
    };
    match element {
        &Element::Int { factor, low, high } => {
            let byte = |v: f32| _mm512_set1_epi8((v as i16).to_le_bytes()[0].cast_signed());
            all.factor = _mm512_set1_ps(factor);
            (all.least, all.most) = (byte(low), byte(high));
        }
        &Element::Float(kind) => {
            all.largest = _mm512_set1_ps(f32::from_bits(kind.max));
            all.normal = _mm512_set1_ps(f32::from_bits(kind.smallest_normal));
            all.table = two(&kind.magic_of_binades());
            all.sign_shift = _mm512_set1_epi32((31 - kind.sign).cast_signed());
            all.magnitude = _mm512_set1_epi32((1 << kind.sign) - 1);
        }
        Element::Book(Bins { codes, cells, .. }) => {
            if let Some(Cells { first, edge }) = cells {
                all.table = two(edge);
                all.first = two(first);
            }
            // SAFETY: `codes` is a reference to 16 bytes.
            all.codes = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
        }
    }
    all
}

/// The strip in pieces of 64 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn walk<const UNIT: u8, const KIND: u8>(strip: &Strip<'_>, codes: &mut [u8]) -> bool {
    let constants = constants(strip.element, strip.positive_zero);
    let params = |of: &[f32; ops::BLOCKS]| {
        let mut out = [0.0; VECTORS];
        spread(of, strip.group, 1.0, strip.x.len().div_ceil(16), &mut out);
        out
    };
    let scales = if UNIT == KEEP { [0.0; VECTORS] } else { params(strip.scales) };
    let (high, low) =
        if UNIT == QUOTIENT { (params(strip.high), params(strip.low)) } else { ([0.0; VECTORS], [0.0; VECTORS]) };
    let zeros = if KIND == UNSIGNED { params(strip.zeros) } else { [0.0; VECTORS] };
    let (pieces, rest) = strip.x.as_chunks::<64>();
    let (code_pieces, code_rest) = codes.as_chunks_mut::<64>();
    let (mut padded, mut last) = ([0.0; 64], [0; 64]);
    padded[..rest.len()].copy_from_slice(rest);
    let mut largest = _mm512_setzero_si512();
    // One place where a piece is encoded, so that it is inlined there.
    for i in 0..pieces.len() + usize::from(!rest.is_empty()) {
        let (x, codes) = match (pieces.get(i), code_pieces.get_mut(i)) {
            (Some(x), Some(codes)) => (x, codes),
            _ => (&padded, &mut last),
        };
        // Scales were found before, and every other line was asked for then.
        for line in 0..4 {
            if UNIT == KEEP || line % 2 != 0 {
                prefetch(x, strip.ahead + 64 * line);
            }
        }
        let code: [__m512i; 4] = std::array::from_fn(|j| {
            let vector = (4 * i + j) % VECTORS;
            // SAFETY: 16 of the 64 floats are read.
            let x = unsafe { _mm512_loadu_ps(x[16 * j..].as_ptr()) };
            if UNIT == KEEP {
                largest = _mm512_max_epu32(largest, magnitude(x));
            }
            let lanes = Lanes {
                scale: _mm512_set1_ps(scales[vector]),
                high: _mm512_set1_ps(high[vector]),
                low: _mm512_set1_ps(low[vector]),
                zero: _mm512_set1_ps(zeros[vector]),
            };
            sixteen::<UNIT, KIND>(x, lanes, constants)
        });
        // SAFETY: `codes` is a reference to 64 bytes.
        unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), bytes::<KIND>(code, constants)) };
    }
    code_rest.copy_from_slice(&last[..code_rest.len()]);
    _mm512_reduce_max_epu32(largest) < ops::INFINITE
}

/// The bytes of 64 codes in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn bytes<const KIND: u8>(code: [__m512i; 4], all: Constants) -> __m512i {
    let bytes = match KIND {
        // Both packings saturate, which clamps what is far away.
        SIGNED => {
            let words = [_mm512_packs_epi32(code[0], code[1]), _mm512_packs_epi32(code[2], code[3])];
            let bytes = _mm512_packs_epi16(words[0], words[1]);
            _mm512_min_epi8(_mm512_max_epi8(bytes, all.least), all.most)
        }
        UNSIGNED => {
            let words = [_mm512_packs_epi32(code[0], code[1]), _mm512_packs_epi32(code[2], code[3])];
            _mm512_min_epu8(_mm512_packus_epi16(words[0], words[1]), all.most)
        }
        _ => {
            let words = [_mm512_packus_epi32(code[0], code[1]), _mm512_packus_epi32(code[2], code[3])];
            let bytes = _mm512_packus_epi16(words[0], words[1]);
            if KIND == BOOK { _mm512_shuffle_epi8(all.codes, bytes) } else { bytes }
        }
    };
    // Packing works within quarters of vectors.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, bytes)
}

/// Codes of 16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn sixteen<const UNIT: u8, const KIND: u8>(x: __m512, lanes: Lanes, all: Constants) -> __m512i {
    let v = match UNIT {
        KEEP => x,
        MULTIPLY => _mm512_mul_ps(x, lanes.scale),
        _ => quotient(x, lanes),
    };
    match KIND {
        SIGNED => _mm512_cvtps_epi32(if UNIT == MULTIPLY { _mm512_mul_ps(v, all.factor) } else { v }),
        UNSIGNED => _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_cvtps_epi32(lanes.zero)),
        FLOAT => {
            // The least magnitude of the two, without its sign.
            let magnitude = _mm512_range_ps::<0b1010>(v, all.largest);
            // The subnormals are a part of the first binade.
            let exponent = _mm512_srli_epi32::<23>(_mm512_castps_si512(_mm512_max_ps(magnitude, all.normal)));
            let magic = _mm512_castsi512_ps(_mm512_permutex2var_epi32(all.table[0], exponent, all.table[1]));
            let code = _mm512_castps_si512(_mm512_add_ps(magnitude, magic));
            // A quotient may have lost the sign of zero.
            let signed = if UNIT == KEEP { x } else { _mm512_add_ps(x, all.sign_of_zero) };
            let sign = _mm512_srlv_epi32(_mm512_castps_si512(signed), all.sign_shift);
            // magnitude ? code : sign, bit by bit
            _mm512_ternarylogic_epi32::<0xca>(all.magnitude, code, sign)
        }
        _ => {
            // The lesser magnitude of the two with the sign of v.
            let v = _mm512_range_ps::<0b0010>(v, _mm512_set1_ps(1.0));
            // The lookups heed the low five bits of an index only.
            let cell = _mm512_fmadd_ps(v, _mm512_set1_ps(Bins::CELLS), _mm512_set1_ps(ops::MAGIC));
            let cell = _mm512_castps_si512(cell);
            let edge = _mm512_castsi512_ps(_mm512_permutex2var_epi32(all.table[0], cell, all.table[1]));
            let first = _mm512_permutex2var_epi32(all.first[0], cell, all.first[1]);
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, edge);
            _mm512_mask_add_epi32(first, above, first, _mm512_set1_epi32(1))
        }
    }
}

/// `x / scale`, rounded as one division rounds it, but for the sign of zero.
///
/// `high + low` is `1/scale` to 48 bits, so that `near` is one of the two neighbours of the quotient;
/// `rest` is then exact, `high` is the reciprocal correctly rounded, and by Markstein's theorem
/// (Handbook of Floating-Point Arithmetic, "correctly rounded division with an FMA") the last step
/// rounds as a division does. Where something underflows on the way, with scales in
/// [`EXACT_SCALES`], the quotient is below 2^-40 and every element rounds it to zero; nothing
/// overflows within [`EXACT_RANGE`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn quotient(x: __m512, lanes: Lanes) -> __m512 {
    let near = _mm512_fmadd_ps(x, lanes.high, _mm512_mul_ps(x, lanes.low));
    let rest = _mm512_fnmadd_ps(near, lanes.scale, x);
    _mm512_fmadd_ps(rest, lanes.high, near)
}

//! Codes of 16 values, and the bytes of four times as many.

use super::super::super::ops::{self, Bins, Cells, Element};
use std::arch::x86_64::*;

/// Scales by which [`quotient`] divides exactly: 2^-60 to 2^60.
pub(super) const EXACT_SCALES: std::ops::RangeInclusive<f32> = 8.673_617e-19..=1.152_921_5e18;
/// How many scales large a value may be for that.
pub(super) const EXACT_RANGE: f32 = 65536.0;

/// How a value is brought to the unit of its block.
pub(super) const KEEP: u8 = 0;
pub(super) const MULTIPLY: u8 = 1;
/// By [`quotient`].
pub(super) const QUOTIENT: u8 = 2;
/// By the instruction, which takes longer.
pub(super) const DIVIDE: u8 = 3;

/// What codes are.
pub(super) const FLOAT: u8 = 0;
/// Two's complement.
pub(super) const SIGNED: u8 = 1;
/// Codes from 0 on, with a zero point.
pub(super) const UNSIGNED: u8 = 2;
pub(super) const BOOK: u8 = 3;

/// Bits of magnitudes; they order as the magnitudes do.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn magnitude(x: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff))
}

/// The vectors of 64 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn load(x: &[f32; 64]) -> [__m512; 4] {
    // SAFETY: each load reads 16 of the 64 floats.
    [0, 16, 32, 48].map(|at| unsafe { _mm512_loadu_ps(x[at..].as_ptr()) })
}

/// What the values of one block share, in every lane.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    pub(super) scale: __m512,
    /// The nearest f32 to `1/scale`, and what is left of it.
    pub(super) high: __m512,
    pub(super) low: __m512,
    pub(super) zero: __m512,
}

/// What all values share, in every lane.
#[derive(Clone, Copy)]
pub(super) struct Constants {
    pub(super) factor: __m512,
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
    /// Of [`numbers`]: what is added to quotients, and what then stands above their fractions.
    point: __m512,
    base: __m512i,
    /// The 4-bit codes of numbers, by the low six bits of what stands above, and the same times 16.
    nibbles: [__m512i; 2],
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
pub(super) fn constants(element: &Element, positive_zero: bool) -> Constants {
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
        point: _mm512_setzero_ps(),
        base: nothing,
        nibbles: [nothing; 2],
    };
    let mut fixed_point = |point: f32, shift: u32| {
        all.point = _mm512_set1_ps(point);
        all.base = _mm512_set1_epi16((point.to_bits() << shift >> 16) as i16);
    };
    match element {
        &Element::Int { factor, low, high } => {
            let byte = |v: f32| _mm512_set1_epi8((v as i16).to_le_bytes()[0].cast_signed());
            // Codes begin half a code below their numbers; with a zero point they begin at 0.
            let middle = if low < 0.0 { 0.0 } else { (high + 1.0) / 2.0 };
            if high < 64.0 {
                fixed_point(192.5 - middle, 0)
            } else {
                fixed_point(768.5 - middle, 2)
            }
            all.factor = _mm512_set1_ps(factor);
            (all.least, all.most) = (byte(low), byte(high));
        }
        &Element::Float(kind) => {
            fixed_point(48.0, 0);
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
    let code = nibbles_of(element, &all);
    all.nibbles = [code, _mm512_slli_epi16::<4>(code)];
    all
}

/// The entries of [`Constants::nibbles`]: [`fixed_reach`] lets integers pass where numbers are in −30 to 33, floats in −32 to 31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn nibbles_of(element: &Element, all: &Constants) -> __m512i {
    let mut index = [0_u8; 64];
    index.iter_mut().zip(0..).for_each(|(index, i)| *index = i);
    // SAFETY: 64 bytes are read.
    let index = unsafe { _mm512_loadu_si512(index.as_ptr().cast()) };
    let below_zero = _mm512_set1_epi8(if matches!(element, Element::Int { .. }) { 30 } else { 32 });
    let base = _mm512_shuffle_epi8(all.base, _mm512_setzero_si512());
    let above_least = _mm512_add_epi8(_mm512_sub_epi8(index, base), below_zero);
    let number = _mm512_sub_epi8(_mm512_and_si512(above_least, _mm512_set1_epi8(63)), below_zero);
    let code = match element {
        Element::Int { .. } => _mm512_min_epi8(_mm512_max_epi8(number, all.least), all.most),
        _ => e2m1_of_quarters(number),
    };
    _mm512_and_si512(code, _mm512_set1_epi8(15))
}

/// The bytes of 64 codes; packing works within quarters of vectors, so that each quarter holds four of every vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn bytes<const KIND: u8>(code: [__m512i; 4], all: Constants) -> __m512i {
    match KIND {
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
    }
}

/// What [`bytes`] gives, in the order of the values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn in_order(bytes: __m512i) -> __m512i {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, bytes)
}

/// Codes of 16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn sixteen<const UNIT: u8, const KIND: u8>(x: __m512, lanes: Lanes, all: Constants) -> __m512i {
    let v = match UNIT {
        KEEP => x,
        // Adding a zero of the sign that is wanted for −0 changes nothing else.
        MULTIPLY if KIND == FLOAT => _mm512_fmadd_ps(x, lanes.scale, all.sign_of_zero),
        MULTIPLY => _mm512_mul_ps(x, lanes.scale),
        DIVIDE => _mm512_div_ps(x, lanes.scale),
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
            let signed = if UNIT == KEEP || UNIT == MULTIPLY { v } else { _mm512_add_ps(x, all.sign_of_zero) };
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

/// Two bytes of codes as one byte each, low nibble first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn nibbles(first: __m512i, second: __m512i) -> __m512i {
    // low + 16·high of every two bytes.
    let words = |v| _mm512_maddubs_epi16(_mm512_and_si512(v, _mm512_set1_epi8(15)), _mm512_set1_epi16(0x1001));
    let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    _mm512_permutexvar_epi64(order, _mm512_packus_epi16(words(first), words(second)))
}

/// The same of twice what [`bytes`] gives.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn nibbles_of_quarters<const KIND: u8>(first: __m512i, second: __m512i) -> __m512i {
    // Integers have copies of their sign where others have zeros.
    let low = |v| if KIND == SIGNED { _mm512_and_si512(v, _mm512_set1_epi8(15)) } else { v };
    let words = |v| _mm512_maddubs_epi16(low(v), _mm512_set1_epi16(0x1001));
    // Two bytes of every vector in every quarter.
    let vector = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    let vector = _mm512_mullo_epi64(vector, _mm512_set1_epi64(0x0001_0001_0001_0001));
    let order = _mm512_add_epi16(vector, _mm512_set1_epi64(0x0018_0010_0008_0000));
    _mm512_permutexvar_epi16(order, _mm512_packus_epi16(words(first), words(second)))
}

/// The 48 bytes of 64 codes of 6 bits, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn sixes(codes: __m512i) -> __m512i {
    // first + 64·second of every two bytes, first + 4096·second of every two of these.
    let words = _mm512_maddubs_epi16(_mm512_and_si512(codes, _mm512_set1_epi8(63)), _mm512_set1_epi16(0x4001));
    let threes = _mm512_madd_epi16(words, _mm512_set1_epi32(0x1000_0001));
    let lower = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    let order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, _mm512_shuffle_epi8(threes, lower))
}

/// Where the words of the `i`-th line of three come from, made of four times 48 bytes: the rest of one and the beginning of
/// the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn quarters(i: usize) -> __m512i {
    match i {
        0 => _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19),
        1 => _mm512_setr_epi32(4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23),
        _ => _mm512_setr_epi32(8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27),
    }
}

/// How many scales large values of E2M1 may be for [`numbers`]: so that these are below 32 quarters.
pub(super) const FLOAT_REACH: f32 = 8.0_f32.next_down();

/// How many scales large values may be for [`numbers`], and how many wide their ranges; negative for elements that it does not
/// know.
pub(super) fn fixed_reach(element: &Element) -> f32 {
    match element {
        &Element::Int { low, high, .. } if low < 0.0 => {
            if high < 8.0 {
                // So far the tables of 4-bit codes go.
                30.0
            } else if high < 64.0 {
                60.0
            } else {
                240.0
            }
        }
        // Scales of 4-bit codes that are no normal numbers may make ranges twice as wide.
        Element::Int { high, .. } => ops::fmax(high + 1.0, 32.0),
        Element::Float(kind) if kind.max == 6.0_f32.to_bits() && kind.shift == 22 => FLOAT_REACH,
        _ => -1.0,
    }
}

/// Reciprocals of scales for [`numbers`]: of those that [`has_reciprocals`] is for, within (1 + 1/16)·2^-24 of the true ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn near_reciprocals(scale: __m512) -> __m512 {
    // Within 2^-14; a step of Newton's squares that, and its last sum is rounded.
    let rough = _mm512_rcp14_ps(scale);
    let rest = _mm512_fnmadd_ps(rough, scale, _mm512_set1_ps(1.0));
    _mm512_fmadd_ps(rough, rest, rough)
}

/// Whether all scales are in [`EXACT_SCALES`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn has_reciprocals(scale: __m512) -> bool {
    let (least, most) = (_mm512_set1_ps(*EXACT_SCALES.start()), _mm512_set1_ps(*EXACT_SCALES.end()));
    let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scale, least) & _mm512_cmp_ps_mask::<_CMP_LE_OQ>(scale, most);
    inside == u16::MAX
}

/// Quotients as fixed-point numbers, from products with [`near_reciprocals`]; or products with powers of two, which are exact, so
/// that what follows holds the more.
///
/// `x·high + point` has one in its low bits whose fraction is, after a shift, the low 16 bits, and what stands above them tells
/// between which two thresholds of the element it lies. In units of the last place it differs by less than 1 from what the
/// reference compares: the sum is rounded by 1/2 at most; quotients are at most 16 in units of 2^-18, 64 in units of 2^-16 or 256
/// in units of 2^-14 (see [`fixed_reach`]), which is 2^22 units; the reference rounds numbers up to there by 1/8 at most, and
/// `high` is off by 17/16 · 2^-24, which makes 17/64: together 57/64. So where the fraction is not zero, the reference's quotient
/// lies strictly between the same thresholds; where it is, only a division tells.
///
/// The sum stays between the powers of two around `point`, to which zero points are added. Where a zero point was not
/// clamped, it and quotients add up to -1/2 at least and to 1/2 more than the range is wide in scales at most; where it was
/// clamped to the largest code, to less than the width, and to no less below zero than the width is above the largest code. So
/// these numbers lie from -1 to 257 with 8 bits, from -1 to 65 with 6 and from -17 to 33 with 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn numbers<const KIND: u8, const BITS: u32>(
    x: [__m512; 4],
    high: [__m512; 4],
    zero: [__m512; 4],
    all: &Constants,
) -> [__m512i; 4] {
    let number = |i: usize| {
        let point = if KIND == UNSIGNED { _mm512_add_ps(all.point, zero[i]) } else { all.point };
        let sum = _mm512_castps_si512(_mm512_fmadd_ps(x[i], high[i], point));
        if BITS == 8 { _mm512_slli_epi32::<2>(sum) } else { sum }
    };
    [number(0), number(1), number(2), number(3)]
}

/// The lesser halves of [`numbers`]: none is zero if the codes of all are certain.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn least_fractions(n: [__m512i; 4]) -> __m512i {
    // What stands above is never zero.
    _mm512_min_epu16(_mm512_min_epu16(n[0], n[1]), _mm512_min_epu16(n[2], n[3]))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn certain(least_fractions: __m512i) -> bool {
    _mm512_testn_epi16_mask(least_fractions, least_fractions) == 0
}

/// As [`bytes`] of the codes of [`numbers`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn bytes_of_numbers<const KIND: u8>(n: [__m512i; 4], all: &Constants) -> __m512i {
    // The upper half words of two vectors in turn.
    let upper = |a, b| {
        let words = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(a), b);
        _mm512_sub_epi16(words, all.base)
    };
    let words = [upper(n[0], n[1]), upper(n[2], n[3])];
    let bytes = match KIND {
        UNSIGNED => _mm512_min_epu8(_mm512_packus_epi16(words[0], words[1]), all.most),
        SIGNED => {
            let bytes = _mm512_packs_epi16(words[0], words[1]);
            _mm512_min_epi8(_mm512_max_epi8(bytes, all.least), all.most)
        }
        _ => e2m1_of_quarters(_mm512_packs_epi16(words[0], words[1])),
    };
    let order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order))
}

/// The 4-bit codes of twice [`numbers`], packed: by tables, those of even and of odd values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi2")]
pub(super) fn nibbles_of_numbers([a, b]: [[__m512i; 4]; 2], all: &Constants) -> __m512i {
    // Of 16 lanes of two vectors the bytes above the fractions: of even lanes, the same again, of odd ones, the same again.
    const ABOVE: [u8; 64] = {
        let (mut index, mut i) = ([0; 64], 0_u8);
        while i < 64 {
            let (odd, lane) = (i / 32, i % 16);
            index[i as usize] = 64 * (lane / 8) + 8 * (lane % 8) + 4 * odd + 2;
            i += 1;
        }
        index
    };
    // SAFETY: 64 bytes are read.
    let above = unsafe { _mm512_loadu_si512(ABOVE.as_ptr().cast()) };
    let of_two = |a, b| _mm512_permutex2var_epi8(a, above, b);
    let of_four = |n: [__m512i; 4]| _mm512_mask_blend_epi64(0b1100_1100, of_two(n[0], n[1]), of_two(n[2], n[3]));
    let (a, b) = (of_four(a), of_four(b));
    let even = _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b);
    let odd = _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b);
    let [low, high] = all.nibbles;
    _mm512_or_si512(_mm512_permutexvar_epi8(even, low), _mm512_permutexvar_epi8(odd, high))
}

/// The codes of E2M1 from values in quarters, rounded down and in −61 to 60.
///
/// Its thresholds are at 1, 3, 5, 7, 10, 14 and 20 quarters: below 8 a number, above every second tells enough.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn e2m1_of_quarters(quarters: __m512i) -> __m512i {
    let negative = _mm512_movepi8_mask(quarters);
    let magnitude = _mm512_mask_sub_epi8(quarters, negative, _mm512_set1_epi8(-1), quarters);
    // Half of it and 4.
    let coarse = _mm512_min_epu8(_mm512_avg_epu8(magnitude, _mm512_set1_epi8(7)), _mm512_set1_epi8(15));
    let codes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6, 7, 7));
    let code = _mm512_shuffle_epi8(codes, _mm512_min_epu8(magnitude, coarse));
    _mm512_mask_add_epi8(code, negative, code, _mm512_set1_epi8(8))
}

//! Codes of blocks of values, four vectors at a time.

use super::super::ops::{self, Element, SmallFloat, Strip, Unit};
use std::arch::x86_64::*;

/// Scales by which [`quotient`] divides exactly: 2^-60 to 2^60.
const EXACT_SCALES: std::ops::RangeInclusive<f32> = 8.673_617e-19..=1.152_921_5e18;
/// How many scales large a value may be for that.
const EXACT_RANGE: f32 = 65536.0;

const KEEP: u8 = 0;
const MULTIPLY: u8 = 1;
const MULTIPLY_POSITIVE_ZERO: u8 = 2;
const QUOTIENT: u8 = 3;

const FLOAT: u8 = 0;
const INT: u8 = 1;
const INT_OFFSET: u8 = 2;
/// No value of the strip needs clamping.
const INT_INSIDE: u8 = 3;

/// Writes a code a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(super) fn encode_blocks(strip: &Strip<'_>, ahead: usize, codes: &mut [u8]) {
    match (strip.element, strip.unit) {
        _ if !strip.group.is_multiple_of(16) && strip.group < strip.x.len() => any_blocks(strip, codes),
        (_, Unit::Divide) if !divides_exactly(strip) => any_blocks(strip, codes),
        (Element::Int { .. }, Unit::Multiply) => walk::<MULTIPLY, INT>(strip, ahead, codes),
        (Element::Int { low, high, .. }, Unit::Divide) if strip.reach < high.min(-low) + 0.499 => {
            walk::<QUOTIENT, INT_INSIDE>(strip, ahead, codes);
        }
        (Element::Int { low, .. }, Unit::Divide) if low < 0.0 => walk::<QUOTIENT, INT>(strip, ahead, codes),
        (Element::Int { .. }, Unit::Divide) => walk::<QUOTIENT, INT_OFFSET>(strip, ahead, codes),
        (Element::Float(_), Unit::Keep) => walk::<KEEP, FLOAT>(strip, ahead, codes),
        (Element::Float(_), Unit::Multiply) => walk::<MULTIPLY, FLOAT>(strip, ahead, codes),
        (Element::Float(_), Unit::MultiplyPositiveZero) => walk::<MULTIPLY_POSITIVE_ZERO, FLOAT>(strip, ahead, codes),
        (Element::Float(_), Unit::Divide) => walk::<QUOTIENT, FLOAT>(strip, ahead, codes),
        (Element::Int { .. }, _) => any_blocks(strip, codes),
    }
}

/// Casts to a 16-bit float by the operations of `SmallFloat::encode16`, for f16 by the instruction.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(super) fn encode_float16(x: &[f32], kind: SmallFloat, codes: &mut [u8]) {
    let half = kind.shift == 13;
    let largest = _mm512_set1_ps(f32::from_bits(kind.max));
    let (vectors, tail) = x.as_chunks::<16>();
    let (code_vectors, code_tail) = codes.as_chunks_mut::<32>();
    for (x, codes) in vectors.iter().zip(code_vectors) {
        // SAFETY: `x` is a reference to 16 floats.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        // The lesser magnitude of the two with the sign of x.
        let x = _mm512_range_ps::<0b0010>(x, largest);
        let code = if half {
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        } else {
            // All but the lowest binade of bf16 are those of f32, and that one has the same steps.
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
        };
        // SAFETY: `codes` is a reference to 32 bytes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), code) };
    }
    ops::encode_float16(tail, kind, code_tail);
}

/// Whether no quotient of the strip overflows and none that matters underflows.
fn divides_exactly(strip: &Strip<'_>) -> bool {
    // Bits of positive floats order as they do.
    let (mut least, mut most) = (u32::MAX, 0);
    for scale in &strip.scales[..strip.x.len().div_ceil(strip.group)] {
        least = least.min(scale.to_bits());
        most = most.max(scale.to_bits());
    }
    let scales = f32::from_bits(least)..=f32::from_bits(most);
    scales.start() >= EXACT_SCALES.start() && scales.end() <= EXACT_SCALES.end() && strip.reach <= EXACT_RANGE
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
    least: __m512,
    most: __m512,
    /// Least normal value of a float.
    normal: __m512,
    /// What rounds a value of each binade and leaves its code in the low bits, by the low five bits
    /// of the exponent.
    magic: [__m512i; 2],
    sign_shift: __m128i,
    sign: __m512i,
    /// Positions of the lowest and of the highest bytes of the words of two vectors.
    low_bytes: __m512i,
    high_bytes: __m512i,
}

/// What no other function here covers. Not inlined: it is compiled once, not once a caller.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn any_blocks(strip: &Strip<'_>, codes: &mut [u8]) {
    ops::encode_blocks(strip, codes);
}

/// Fewer than 16 values at the end of a block. Not inlined, as above.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn tail_of_block(strip: &Strip<'_>, x: &[f32], block: usize, codes: &mut [u8]) {
    ops::encode_block(strip, x, strip.scales[block], strip.zeros[block], codes);
}

/// The strip in pieces of 64 values where blocks allow it, else of 16, else value by value.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn walk<const UNIT: u8, const KIND: u8>(strip: &Strip<'_>, ahead: usize, codes: &mut [u8]) {
    let constants = constants(strip.element);
    let lanes = |block: usize| Lanes {
        scale: _mm512_set1_ps(strip.scales[block]),
        high: _mm512_set1_ps(strip.high[block]),
        low: _mm512_set1_ps(strip.low[block]),
        zero: _mm512_set1_ps(strip.zeros[block]),
    };
    let mut done = 0;
    match strip.group {
        16 => {
            let chunks = strip.x.as_chunks::<64>().0;
            for (i, (x, codes)) in chunks.iter().zip(codes.as_chunks_mut::<64>().0).enumerate() {
                prefetch(x, ahead);
                let lanes = [lanes(4 * i), lanes(4 * i + 1), lanes(4 * i + 2), lanes(4 * i + 3)];
                sixty_four::<UNIT, KIND>(x, lanes, constants, codes);
            }
            done = 64 * chunks.len();
        }
        32 => {
            let chunks = strip.x.as_chunks::<64>().0;
            for (i, (x, codes)) in chunks.iter().zip(codes.as_chunks_mut::<64>().0).enumerate() {
                prefetch(x, ahead);
                let (first, second) = (lanes(2 * i), lanes(2 * i + 1));
                sixty_four::<UNIT, KIND>(x, [first, first, second, second], constants, codes);
            }
            done = 64 * chunks.len();
        }
        group if group.is_multiple_of(64) || group >= strip.x.len() => {
            for (i, (x, codes)) in strip.x.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
                let shared = lanes(i);
                let chunks = x.as_chunks::<64>().0;
                for (x, codes) in chunks.iter().zip(codes.as_chunks_mut::<64>().0) {
                    prefetch(x, ahead);
                    sixty_four::<UNIT, KIND>(x, [shared; 4], constants, codes);
                }
                // Only the last block may be ragged.
                done += 64 * chunks.len();
            }
        }
        _ => {}
    }
    let (x, codes) = (&strip.x[done..], &mut codes[done..]);
    let (vectors, tail) = x.as_chunks::<16>();
    let (code_vectors, code_tail) = codes.as_chunks_mut::<16>();
    for (i, (x, codes)) in vectors.iter().zip(code_vectors).enumerate() {
        // SAFETY: `x` is a reference to 16 floats.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        let code = sixteen::<UNIT, KIND>(x, lanes((done + 16 * i) / strip.group), constants);
        let mut bytes = _mm512_cvtepi32_epi8(code);
        if KIND == FLOAT {
            let top = _mm512_cvtepi32_epi8(_mm512_srli_epi32::<24>(signed::<UNIT>(x)));
            let signs = _mm_and_si128(_mm_srl_epi16(top, constants.sign_shift), _mm512_castsi512_si128(constants.sign));
            bytes = _mm_or_si128(bytes, signs);
        }
        // SAFETY: `codes` is a reference to 16 bytes.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), bytes) };
    }
    if !tail.is_empty() {
        let block = (strip.x.len() - 1) / strip.group;
        tail_of_block(strip, tail, block, code_tail);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn prefetch(x: &[f32; 64], ahead: usize) {
    for line in 0..4 {
        _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast::<i8>().wrapping_add(ahead + 64 * line));
    }
}

/// The nearest f32 to the reciprocal of each scale, and what is left of it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(super) fn reciprocate(scales: &[f32], high: &mut [f32], low: &mut [f32]) {
    for ((&scale, high), low) in scales.iter().zip(high).zip(low) {
        *high = 1.0 / scale;
        *low = (-*high).mul_add(scale, 1.0) * *high;
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn constants(element: Element) -> Constants {
    // The compiler would split lookups at positions it knows into more and smaller steps.
    let low_bytes = std::hint::black_box(_mm512_set_epi64(
        0x3c38_3430_2c28_2420,
        0x1c18_1410_0c08_0400,
        0x7c78_7470_6c68_6460,
        0x5c58_5450_4c48_4440,
        0x7c78_7470_6c68_6460,
        0x5c58_5450_4c48_4440,
        0x3c38_3430_2c28_2420,
        0x1c18_1410_0c08_0400,
    ));
    let mut all = Constants {
        factor: _mm512_setzero_ps(),
        least: _mm512_setzero_ps(),
        most: _mm512_setzero_ps(),
        normal: _mm512_setzero_ps(),
        magic: [_mm512_setzero_si512(); 2],
        sign_shift: _mm_setzero_si128(),
        sign: _mm512_setzero_si512(),
        low_bytes,
        high_bytes: _mm512_add_epi8(low_bytes, _mm512_set1_epi8(3)),
    };
    match element {
        Element::Int { factor, low, high } => {
            all.factor = _mm512_set1_ps(factor);
            all.least = _mm512_set1_ps(low);
            all.most = _mm512_set1_ps(high);
        }
        Element::Float(kind) => {
            let binades = kind.magic_of_binades();
            all.most = _mm512_set1_ps(f32::from_bits(kind.max));
            all.normal = _mm512_set1_ps(f32::from_bits(kind.smallest_normal));
            // SAFETY: each load reads 16 of the 32 entries.
            all.magic = unsafe {
                [_mm512_loadu_si512(binades.as_ptr().cast()), _mm512_loadu_si512(binades[16..].as_ptr().cast())]
            };
            all.sign_shift = _mm_cvtsi32_si128((7 - kind.sign).cast_signed());
            all.sign = _mm512_set1_epi8(1 << kind.sign);
        }
    }
    all
}

/// Codes of 64 values whose quarters have parameters of their own.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn sixty_four<const UNIT: u8, const KIND: u8>(x: &[f32; 64], lanes: [Lanes; 4], all: Constants, codes: &mut [u8; 64]) {
    // SAFETY: each load reads 16 of the 64 floats.
    let x: [__m512; 4] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(x[16 * i..].as_ptr()) });
    let code = std::array::from_fn(|i| sixteen::<UNIT, KIND>(x[i], lanes[i], all));
    let mut bytes = every_fourth(code, all.low_bytes);
    if KIND == FLOAT {
        let x = std::array::from_fn(|i| signed::<UNIT>(x[i]));
        let signs = _mm512_srl_epi16(every_fourth(x, all.high_bytes), all.sign_shift);
        // bytes | (signs & all.sign)
        bytes = _mm512_ternarylogic_epi32::<0xf8>(bytes, signs, all.sign);
    }
    // SAFETY: `codes` is a reference to 64 bytes.
    unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), bytes) };
}

/// The bytes of 64 words whose positions in two vectors are given.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn every_fourth(v: [__m512i; 4], positions: __m512i) -> __m512i {
    let low = _mm512_permutex2var_epi8(v[0], positions, v[1]);
    let high = _mm512_permutex2var_epi8(v[3], positions, v[2]);
    _mm512_mask_blend_epi64(0b1111_0000, low, high)
}

/// What the sign of a code is taken from: a quotient may have lost that of zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn signed<const UNIT: u8>(x: __m512) -> __m512i {
    let x = if UNIT == MULTIPLY_POSITIVE_ZERO { _mm512_add_ps(x, _mm512_setzero_ps()) } else { x };
    _mm512_castps_si512(x)
}

/// Codes of 16 values in the low bytes, for floats without the sign.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn sixteen<const UNIT: u8, const KIND: u8>(x: __m512, lanes: Lanes, all: Constants) -> __m512i {
    let v = match UNIT {
        KEEP => x,
        MULTIPLY | MULTIPLY_POSITIVE_ZERO => _mm512_mul_ps(x, lanes.scale),
        _ => quotient(x, lanes),
    };
    if KIND == FLOAT {
        // The least magnitude of the two, without its sign.
        let magnitude = _mm512_range_ps::<0b1010>(v, all.most);
        // The subnormals are a part of the first binade.
        let exponent = _mm512_srli_epi32::<23>(_mm512_castps_si512(_mm512_max_ps(magnitude, all.normal)));
        let magic = _mm512_castsi512_ps(_mm512_permutex2var_epi32(all.magic[0], exponent, all.magic[1]));
        return _mm512_castps_si512(_mm512_add_ps(magnitude, magic));
    }
    if KIND == INT_INSIDE {
        return _mm512_castps_si512(_mm512_add_ps(v, _mm512_set1_ps(ops::MAGIC)));
    }
    let v = if UNIT == MULTIPLY { _mm512_mul_ps(v, all.factor) } else { v };
    let (mut least, mut most) = (all.least, all.most);
    if KIND == INT_OFFSET {
        (least, most) = (_mm512_sub_ps(least, lanes.zero), _mm512_sub_ps(most, lanes.zero));
    }
    let v = _mm512_min_ps(_mm512_max_ps(v, least), most);
    let rounded = _mm512_add_ps(v, _mm512_set1_ps(ops::MAGIC));
    _mm512_castps_si512(if KIND == INT_OFFSET { _mm512_add_ps(rounded, lanes.zero) } else { rounded })
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn quotient(x: __m512, lanes: Lanes) -> __m512 {
    let near = _mm512_fmadd_ps(x, lanes.high, _mm512_mul_ps(x, lanes.low));
    let rest = _mm512_fnmadd_ps(near, lanes.scale, x);
    _mm512_fmadd_ps(rest, lanes.high, near)
}

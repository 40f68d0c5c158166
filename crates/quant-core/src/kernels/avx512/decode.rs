//! Values of blocks of codes, a vector of 16 at a time, from the registers to where they go.

use super::super::avx2::bytes_of_mut;
use super::super::decode::{Finish, Source, Strip, decode_strip};
use super::super::ops::{self, SmallFloat};
use super::lines::Lines;
use super::{AHEAD, VECTORS, spread};
use std::arch::x86_64::*;

const NIBBLES: u8 = 0;
const SIGNED: u8 = 1;
const UNSIGNED: u8 = 2;
const FLOAT: u8 = 3;
const HALF: u8 = 4;
const BRAIN: u8 = 5;

const SCALE: u8 = 0;
const OFFSET: u8 = 1;
const AFFINE: u8 = 2;

/// Scales up to here can be multiplied with the factor of a small float or an integer.
const MODERATE: f32 = 1e30;

/// Unpacks codes of fewer than 8 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn unpack(bytes: &[u8], bits: u32, codes: &mut [u8]) {
    let mask = ((1 << bits) - 1) * 0x0101_0101_0101_0101;
    ops::unpack_by(bytes, bits, codes, |w| _pdep_u64(w, mask));
}

/// Values of 16-bit floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn decode_float16(kind: SmallFloat, codes: &[u8], out: &mut [f32]) {
    let source = Source::Float16(kind);
    let (scales, zeros) = (&[1.0; ops::BLOCKS], &[0.0; ops::BLOCKS]);
    decode(&Strip { source: &source, finish: Finish::Scale, codes, group: out.len(), scales, zeros }, out);
}

/// Values of the codes of a strip.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn decode(strip: &Strip<'_>, out: &mut [f32]) {
    if !decode_by::<false>(strip, out) {
        any(strip, out);
    }
}

/// The same past the caches; false when something is out of the ordinary.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn decode_past_caches(strip: &Strip<'_>, out: &mut [f32]) -> bool {
    out.len().is_multiple_of(16) && decode_by::<true>(strip, out)
}

/// What no other function here covers.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn any(strip: &Strip<'_>, out: &mut [f32]) {
    decode_strip(strip, out, ops::lookup16);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn decode_by<const STREAM: bool>(strip: &Strip<'_>, out: &mut [f32]) -> bool {
    let moderate = || {
        strip.scales[..out.len().div_ceil(strip.group)].iter().fold(true, |all, &scale| all & (scale.abs() <= MODERATE))
    };
    match (strip.source, strip.finish) {
        _ if !strip.group.is_multiple_of(16) && strip.group < out.len() => return false,
        (Source::Nibbles(table), Finish::Scale) => walk::<NIBBLES, 8, SCALE, STREAM>(strip, table, 1.0, (0, 0), out),
        (Source::Nibbles(table), Finish::Offset) => walk::<NIBBLES, 8, OFFSET, STREAM>(strip, table, 1.0, (0, 0), out),
        (Source::Nibbles(table), Finish::Affine) => walk::<NIBBLES, 8, AFFINE, STREAM>(strip, table, 1.0, (0, 0), out),
        // The product with a power of two is exact, whichever comes first.
        (&Source::Signed { factor }, _) => walk::<SIGNED, 16, SCALE, STREAM>(strip, &[0.0; 16], factor, (0, 0), out),
        (Source::Unsigned, Finish::Affine) => walk::<UNSIGNED, 16, AFFINE, STREAM>(strip, &[0.0; 16], 1.0, (0, 0), out),
        (Source::Unsigned, _) => walk::<UNSIGNED, 16, OFFSET, STREAM>(strip, &[0.0; 16], 1.0, (0, 0), out),
        (&Source::Float(kind), _) => {
            if kind.shift < 13 || !moderate() || has_specials8(strip.codes, kind) {
                return false;
            }
            // An f16 of the same bits has another bias.
            let factor = f32::from_bits(kind.smallest_normal) * 16384.0;
            walk::<FLOAT, 16, SCALE, STREAM>(strip, &[0.0; 16], factor, (kind.shift - 13, kind.sign), out);
        }
        (&Source::Float16(kind), _) => {
            if has_specials16(strip.codes, kind) {
                return false;
            }
            if kind.shift == 13 {
                walk::<HALF, 32, SCALE, STREAM>(strip, &[0.0; 16], 1.0, (0, 0), out);
            } else {
                walk::<BRAIN, 32, SCALE, STREAM>(strip, &[0.0; 16], 1.0, (0, 0), out);
            }
        }
    }
    true
}

/// Whether a code is NaN or infinite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
#[expect(clippy::cast_possible_truncation, reason = "codes of bytes")]
fn has_specials8(codes: &[u8], kind: SmallFloat) -> bool {
    let magnitude = (1_u8 << kind.sign) - 1;
    codes.iter().fold(0, |most, &code| most.max(code & magnitude)) > kind.max_code as u8
}

/// The same for two bytes a code.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn has_specials16(codes: &[u8], kind: SmallFloat) -> bool {
    let magnitudes = codes.as_chunks::<2>().0.iter().map(|&code| u16::from_le_bytes(code) & 0x7fff);
    u32::from(magnitudes.fold(0, u16::max)) > kind.max_code
}

/// Stores as many values as `to` has room for, which is fewer than 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn store_first(to: &mut [f32], v: __m512) {
    // SAFETY: only values within `to` are written.
    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), (1 << to.len()) - 1, v) };
}

/// Decodes vectors of 16 codes, of `BYTES` bytes. Past the caches, later codes are asked for meanwhile, so that they are near
/// when they are looked through.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn walk<const SOURCE: u8, const BYTES: usize, const FINISH: u8, const STREAM: bool>(
    strip: &Strip<'_>,
    table: &[f32; 16],
    factor: f32,
    (shift, sign): (u32, u32),
    out: &mut [f32],
) {
    // SAFETY: `table` is a reference to 16 floats.
    let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
    let shifted = _mm_cvtsi32_si128(shift.cast_signed());
    // The sign and, from `shift` on, exponent and mantissa.
    let kept = _mm256_set1_epi16(i16::MIN | ((1 << sign) - 1) << shift);
    let count = out.len().div_ceil(16);
    let scales = spread(strip.scales, strip.group, factor, count);
    let zeros = if FINISH == SCALE { [0.0; VECTORS] } else { spread(strip.zeros, strip.group, 1.0, count) };
    let value = |codes: &[u8; BYTES], scale: f32, zero: f32| {
        let v = source::<SOURCE, BYTES>(codes, table, shifted, kept);
        finish::<FINISH>(v, _mm512_set1_ps(scale), _mm512_set1_ps(zero))
    };
    let vectors = strip.codes.as_chunks::<BYTES>().0.iter();
    let vectors = vectors.zip(&scales).zip(&zeros).map(|((codes, &scale), &zero)| (codes, scale, zero));
    if STREAM {
        let mut lines = Lines::new(bytes_of_mut(out), true);
        for (codes, scale, zero) in vectors {
            _mm_prefetch::<_MM_HINT_T0>(codes.as_ptr().cast::<i8>().wrapping_add(AHEAD / 2));
            lines.push(_mm512_castps_si512(value(codes, scale, zero)));
        }
        lines.finish();
    } else {
        let (lines, tail) = out.as_chunks_mut::<16>();
        for (line, (codes, scale, zero)) in lines.iter_mut().zip(vectors) {
            // SAFETY: `line` is a reference to 16 floats.
            unsafe { _mm512_storeu_ps(line.as_mut_ptr(), value(codes, scale, zero)) };
        }
        if !tail.is_empty() {
            let mut padded = [0; BYTES];
            let rest = &strip.codes[lines.len() * BYTES..];
            padded[..rest.len()].copy_from_slice(rest);
            let last = lines.len() % VECTORS;
            store_first(tail, value(&padded, scales[last], zeros[last]));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn finish<const FINISH: u8>(v: __m512, scale: __m512, zero: __m512) -> __m512 {
    match FINISH {
        SCALE => _mm512_mul_ps(v, scale),
        OFFSET => _mm512_mul_ps(_mm512_sub_ps(v, zero), scale),
        _ => _mm512_add_ps(_mm512_mul_ps(v, scale), zero),
    }
}

/// What 16 codes stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn source<const SOURCE: u8, const BYTES: usize>(
    codes: &[u8; BYTES],
    table: __m512,
    shift: __m128i,
    kept: __m256i,
) -> __m512 {
    // SAFETY: the slice is checked to hold what is read.
    let load16 = || unsafe { _mm_loadu_si128(codes[..16].as_ptr().cast()) };
    // SAFETY: as above.
    let load32 = || unsafe { _mm256_loadu_si256(codes[..32].as_ptr().cast()) };
    match SOURCE {
        NIBBLES => {
            let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
            let halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            let word = codes.first_chunk::<8>().map_or(0, |&bytes| i64::from_le_bytes(bytes));
            let both = _mm512_castsi128_si512(_mm_cvtsi64_si128(word));
            // The lookup heeds the low four bits of an index only.
            let index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, both), shifts);
            _mm512_permutexvar_ps(index, table)
        }
        SIGNED => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16())),
        UNSIGNED => _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16())),
        FLOAT => {
            // Exponent and mantissa become the low bits of those of an f16; copies of the sign are cleared.
            let half = _mm256_sll_epi16(_mm256_cvtepi8_epi16(load16()), shift);
            _mm512_cvtph_ps(_mm256_and_si256(half, kept))
        }
        HALF => _mm512_cvtph_ps(load32()),
        _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load32()))),
    }
}

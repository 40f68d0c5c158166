//! The kernels for x86-64 with AVX2.

use super::{decode, ops};
use std::arch::x86_64::*;

/// The bytes of floats.
pub(super) fn bytes_of(x: &[f32]) -> &[u8] {
    // SAFETY: the same memory, borrowed for as long; any bytes are u8.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

/// The bytes of floats, to be written.
pub(super) fn bytes_of_mut(x: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory, borrowed for as long; any bytes are u8 and any four bytes an f32.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), size_of_val(x)) }
}

/// Asks for every other line of what lies `ahead` bytes after `x`.
#[inline(always)]
fn prefetch(x: &[f32], ahead: usize) {
    for pair in x.chunks(32) {
        // SAFETY: a prefetch reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(pair.as_ptr().cast::<i8>().wrapping_add(ahead)) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn encode_blocks(strip: &ops::Strip<'_>, codes: &mut [u8]) -> bool {
    prefetch(strip.x, strip.ahead + 64);
    ops::encode_blocks(strip, codes)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn encode_float16(x: &[f32], kind: ops::SmallFloat, ahead: usize, codes: &mut [u8]) -> bool {
    prefetch(x, ahead + 64);
    ops::encode_float16(x, kind, codes)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn decode(codes: &decode::Strip<'_>, out: &mut [f32]) {
    decode::decode_strip(codes, out, |codes, table, out| lookup16(codes, table, out));
}

/// Whole aligned 32-byte pieces of `to` bypass the caches; what lies before and after does not.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn stream(from: &[u8], to: &mut [u8]) {
    let len = from.len().min(to.len());
    let head = to.as_ptr().align_offset(32).min(len);
    to[..head].copy_from_slice(&from[..head]);
    let (pieces, tail) = to[head..len].as_chunks_mut::<32>();
    let (from_pieces, from_tail) = from[head..len].as_chunks::<32>();
    for (piece, from) in pieces.iter_mut().zip(from_pieces) {
        // SAFETY: both are references to 32 bytes, and `pieces` starts on a multiple of 32.
        unsafe { _mm256_stream_si256(piece.as_mut_ptr().cast(), _mm256_loadu_si256(from.as_ptr().cast())) };
    }
    tail.copy_from_slice(from_tail);
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn amax_blocks(x: &[f32], group: usize, ahead: usize, out: &mut [f32]) {
    prefetch(x, ahead);
    for (block, amax) in x.chunks(group).zip(out) {
        let (vectors, tail) = block.as_chunks::<8>();
        let mut lanes = _mm256_setzero_si256();
        for v in vectors {
            // SAFETY: `v` is a reference to 8 floats.
            let bits = unsafe { _mm256_loadu_si256(v.as_ptr().cast()) };
            lanes = _mm256_max_epu32(lanes, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff)));
        }
        *amax = f32::from_bits(reduce_max(lanes).max(ops::amax_bits(tail)));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn reduce_max(v: __m256i) -> u32 {
    let v = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
    let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
    _mm_cvtsi128_si32(v).cast_unsigned()
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn range_blocks(x: &[f32], group: usize, ahead: usize, least: &mut [f32], most: &mut [f32]) -> bool {
    prefetch(x, ahead);
    let mut largest = _mm256_setzero_si256();
    let mut finite = true;
    for ((block, least), most) in x.chunks(group).zip(least).zip(most) {
        let (vectors, tail) = block.as_chunks::<8>();
        let (mut low, mut high) = (_mm256_set1_ps(f32::INFINITY), _mm256_set1_ps(f32::NEG_INFINITY));
        for v in vectors {
            // SAFETY: `v` is a reference to 8 floats.
            let v = unsafe { _mm256_loadu_ps(v.as_ptr()) };
            low = _mm256_min_ps(v, low);
            high = _mm256_max_ps(v, high);
            let magnitude = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fff_ffff));
            largest = _mm256_max_epu32(largest, magnitude);
        }
        let (mut lows, mut highs) = ([0.0; 8], [0.0; 8]);
        // SAFETY: both arrays hold 8 floats.
        unsafe {
            _mm256_storeu_ps(lows.as_mut_ptr(), low);
            _mm256_storeu_ps(highs.as_mut_ptr(), high);
        }
        let (tail_low, tail_high, tail_finite) = ops::range(tail);
        *least = lows.into_iter().fold(tail_low, ops::fmin);
        *most = highs.into_iter().fold(tail_high, ops::fmax);
        finite &= tail_finite;
    }
    finite && reduce_max(largest) < ops::INFINITE
}

#[inline]
#[target_feature(enable = "avx2")]
fn lookup16(codes: &[u8], table: &[f32; 16], out: &mut [f32]) {
    // SAFETY: each load reads 8 of the 16 floats of `table`.
    let (low, high) = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table[8..].as_ptr())) };
    let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    let (blocks, tail) = out.as_chunks_mut::<8>();
    let (codes, words_tail) = codes.split_at(4 * blocks.len());
    let words = codes.as_chunks::<4>().0;
    for (block, word) in blocks.iter_mut().zip(words) {
        // The lookups heed the low three bits of an index only; the fourth is moved to the sign.
        let index = _mm256_srlv_epi32(_mm256_set1_epi32(i32::from_le_bytes(*word)), shifts);
        let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
        let values =
            _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), upper);
        // SAFETY: `block` is a reference to 8 floats.
        unsafe { _mm256_storeu_ps(block.as_mut_ptr(), values) };
    }
    ops::lookup16(words_tail, table, tail);
}

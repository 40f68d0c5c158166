//! The kernels for x86-64 with AVX-512 F, BW, DQ and VL, and BMI2 (which no CPU with them lacks).

pub(super) mod decode;
pub(super) mod encode;
mod lines;

use super::{AHEAD, ops};
use std::arch::x86_64::*;

/// Asks the second-level cache for the line that lies `ahead` bytes after the start of `x`. Asking the first, encoding took a
/// sixth and more longer on Zen 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn prefetch(x: &[f32], ahead: usize) {
    _mm_prefetch::<_MM_HINT_T1>(x.as_ptr().cast::<i8>().wrapping_add(ahead));
}

/// Vectors of a strip, at most.
const VECTORS: usize = ops::STRIP / 16;

/// A parameter of blocks for each of `count` vectors of them, so that one loop serves blocks of any length.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
#[expect(clippy::cast_possible_truncation, reason = "a lane's number")]
fn spread<const N: usize>(params: &[f32; ops::BLOCKS], group: usize, factor: f32, count: usize, out: &mut [f32; N]) {
    let per = group.div_ceil(16);
    if per >= count {
        out.fill(params[0] * factor);
    } else if per.is_power_of_two() {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let index = _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(per.trailing_zeros().cast_signed()));
        for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().take(count.div_ceil(16)).enumerate() {
            // SAFETY: the slices are checked to hold 16 floats.
            unsafe {
                // A load from parts of two vectors that were just stored would wait for both stores.
                let first = 16 * i / per;
                let part = _mm512_loadu_ps(params[first / 16 * 16..][..16].as_ptr());
                let index = _mm512_add_epi32(index, _mm512_set1_epi32(((first % 16) as u32).cast_signed()));
                let spread = _mm512_permutexvar_ps(index, part);
                _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(spread, _mm512_set1_ps(factor)));
            }
        }
    } else {
        for (out, &param) in out[..count].chunks_mut(per).zip(params) {
            out.fill(param * factor);
        }
    }
}

/// Whole cache lines of `to` bypass the caches; the parts of lines at its ends do not.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn stream(from: &[u8], to: &mut [u8]) {
    let len = from.len().min(to.len());
    let head = to.as_ptr().align_offset(64).min(len);
    to[..head].copy_from_slice(&from[..head]);
    let (lines, tail) = to[head..len].as_chunks_mut::<64>();
    let (from_lines, from_tail) = from[head..len].as_chunks::<64>();
    for (line, from) in lines.iter_mut().zip(from_lines) {
        // SAFETY: both are references to 64 bytes, and `lines` starts on a multiple of 64.
        unsafe { _mm512_stream_si512(line.as_mut_ptr().cast(), _mm512_loadu_si512(from.as_ptr().cast())) };
    }
    tail.copy_from_slice(from_tail);
}

/// Bits of the largest magnitude in each lane of a block of whole vectors; they order as magnitudes do.
/// Every other line that lies ahead is asked for here, the rest while codes are made.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn lanes_amax(block: &[f32], ahead: usize) -> __m512i {
    let mut lanes = [_mm512_setzero_si512(); 2];
    let (pairs, last) = block.as_chunks::<32>();
    let magnitude = |v: &[f32]| {
        // SAFETY: `v` has 16 floats or more.
        let bits = unsafe { _mm512_loadu_si512(v[..16].as_ptr().cast()) };
        _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff))
    };
    for pair in pairs {
        prefetch(pair, ahead);
        lanes[0] = _mm512_max_epu32(lanes[0], magnitude(pair));
        lanes[1] = _mm512_max_epu32(lanes[1], magnitude(&pair[16..]));
    }
    if !last.is_empty() {
        lanes[0] = _mm512_max_epu32(lanes[0], magnitude(last));
    }
    _mm512_max_epu32(lanes[0], lanes[1])
}

/// The maxima of the lanes of 16 vectors, in order: four steps of a transposition.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn max_of_each(v: [__m512i; 16]) -> __m512i {
    let pairs = |i: usize| fold_pairs(fold_words(v[i], v[i + 1]), fold_words(v[i + 2], v[i + 3]));
    fold_quads([pairs(0), pairs(4), pairs(8), pairs(12)])
}

/// The first step: maxima of two lanes each, of two vectors in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn fold_words(a: __m512i, b: __m512i) -> __m512i {
    _mm512_max_epu32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
}

/// The second step: of four lanes, of four vectors in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn fold_pairs(a: __m512i, b: __m512i) -> __m512i {
    _mm512_max_epu32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
}

/// The last two steps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn fold_quads([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let max = |a, b| _mm512_max_epu32(a, b);
    let halves = |a, b| max(_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
    let (low, high) = (halves(a, b), halves(c, d));
    max(_mm512_shuffle_i32x4::<0b10_00_10_00>(low, high), _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn amax_blocks(x: &[f32], group: usize, ahead: usize, out: &mut [f32]) {
    match group {
        16 => amax_blocks_of::<16>(x, ahead, out),
        32 => amax_blocks_of::<32>(x, ahead, out),
        64 => amax_blocks_of::<64>(x, ahead, out),
        128 => amax_blocks_of::<128>(x, ahead, out),
        _ => {
            for (block, amax) in x.chunks(group).zip(out) {
                *amax = amax_of(block, ahead);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn amax_of(block: &[f32], ahead: usize) -> f32 {
    let (whole, tail) = block.split_at(block.len() / 16 * 16);
    let bits = _mm512_reduce_max_epu32(lanes_amax(whole, ahead));
    f32::from_bits(bits.max(ops::amax_bits(tail)))
}

/// Blocks of `G`, a multiple of 16, sixteen at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn amax_blocks_of<const G: usize>(x: &[f32], ahead: usize, out: &mut [f32]) {
    let (blocks, last) = x.as_chunks::<G>();
    let (sixteens, rest) = blocks.as_chunks::<16>();
    let (out_sixteens, out_rest) = out.split_at_mut(16 * sixteens.len());
    for (blocks, out) in sixteens.iter().zip(out_sixteens.as_chunks_mut::<16>().0) {
        let largest = max_of_each(std::array::from_fn(|i| {
            if G == 16 && i % 2 == 0 {
                prefetch(&blocks[i], ahead);
            }
            lanes_amax(&blocks[i], ahead)
        }));
        // SAFETY: `out` is a reference to 16 floats.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), largest) };
    }
    let rest = rest.iter().map(<[f32; G]>::as_slice).chain((!last.is_empty()).then_some(last));
    for (block, amax) in rest.zip(out_rest) {
        *amax = amax_of(block, ahead);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn range_blocks(x: &[f32], group: usize, ahead: usize, least: &mut [f32], most: &mut [f32]) -> bool {
    let mut largest = _mm512_setzero_si512();
    let mut finite = true;
    for ((block, least), most) in x.chunks(group).zip(least).zip(most) {
        let (vectors, tail) = block.as_chunks::<16>();
        let (mut low, mut high) = (_mm512_set1_ps(f32::INFINITY), _mm512_set1_ps(f32::NEG_INFINITY));
        for (i, v) in vectors.iter().enumerate() {
            if i % 2 == 0 {
                prefetch(v, ahead);
            }
            // SAFETY: `v` is a reference to 16 floats.
            let v = unsafe { _mm512_loadu_ps(v.as_ptr()) };
            low = _mm512_min_ps(v, low);
            high = _mm512_max_ps(v, high);
            let magnitude = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fff_ffff));
            largest = _mm512_max_epu32(largest, magnitude);
        }
        let (tail_low, tail_high, tail_finite) = ops::range(tail);
        *least = ops::fmin(_mm512_reduce_min_ps(low), tail_low);
        *most = ops::fmax(_mm512_reduce_max_ps(high), tail_high);
        finite &= tail_finite;
    }
    finite && _mm512_reduce_max_epu32(largest) < ops::INFINITE
}

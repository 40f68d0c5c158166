//! The kernels for x86-64 with AVX-512 F, BW, DQ, VL and VBMI.

mod encode;

use super::{Backend, Job, ops};
use std::arch::x86_64::*;

/// Proof that the running CPU has the features this file enables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The token, when the running CPU has all features.
    pub(crate) fn detect() -> Option<Self> {
        let has = !cfg!(miri)
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi");
        has.then_some(Self(()))
    }

    /// Runs a job compiled for these features.
    pub(crate) fn dispatch<J: Job>(self, job: J) -> J::Output {
        // SAFETY: a value of `Self` exists only after `detect` saw the features on this CPU.
        unsafe { run(self, job) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn run<J: Job>(backend: Avx512, job: J) -> J::Output {
    job.run(backend)
}

impl Backend for Avx512 {
    #[inline(always)]
    fn stream_bytes(self, from: &[u8], to: &mut [u8]) {
        // SAFETY: `self` proves the features.
        unsafe { stream(from, to) }
    }

    #[inline(always)]
    fn stream_floats(self, from: &[f32], to: &mut [f32]) {
        // SAFETY: `self` proves the features; the slices are reinterpreted as the bytes they are.
        unsafe {
            let from = std::slice::from_raw_parts(from.as_ptr().cast(), size_of_val(from));
            let to = std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), size_of_val(to));
            stream(from, to);
        }
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: SSE, which every x86-64 has.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    fn prefetch(self, near: &[f32], bytes: usize) {
        // SAFETY: a prefetch reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(near.as_ptr().cast::<i8>().wrapping_add(bytes)) }
    }

    #[inline(always)]
    fn amax_blocks(self, x: &[f32], group: usize, out: &mut [f32]) {
        // SAFETY: `self` proves the features.
        unsafe { amax_blocks(x, group, out) }
    }

    #[inline(always)]
    fn range_blocks(self, x: &[f32], group: usize, least: &mut [f32], most: &mut [f32]) -> bool {
        // SAFETY: `self` proves the features.
        unsafe { range_blocks(x, group, least, most) }
    }

    #[inline(always)]
    fn reciprocate(self, scales: &[f32], high: &mut [f32], low: &mut [f32]) {
        // SAFETY: `self` proves the features.
        unsafe { encode::reciprocate(scales, high, low) }
    }

    #[inline(always)]
    fn encode_blocks(self, strip: &ops::Strip<'_>, ahead: usize, codes: &mut [u8]) {
        // SAFETY: `self` proves the features.
        unsafe { encode::encode_blocks(strip, ahead, codes) }
    }

    #[inline(always)]
    fn encode_float16(self, x: &[f32], kind: ops::SmallFloat, codes: &mut [u8]) {
        // SAFETY: `self` proves the features.
        unsafe { encode::encode_float16(x, kind, codes) }
    }

    #[inline(always)]
    fn lookup16(self, codes: &[u8], table: &[f32; 16], out: &mut [f32]) {
        // SAFETY: `self` proves the features.
        unsafe { lookup16(codes, table, out) }
    }

    #[inline(always)]
    fn encode_book(self, x: &[f32], reciprocal: f32, bins: &ops::Bins, codes: &mut [u8]) {
        // SAFETY: `self` proves the features.
        unsafe { encode_book(x, reciprocal, bins, codes) }
    }
}

/// Whole cache lines of `to` bypass the caches; the parts of lines at its ends do not.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn stream(from: &[u8], to: &mut [u8]) {
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
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn lanes_amax(block: &[f32]) -> __m512i {
    let mut lanes = [_mm512_setzero_si512(); 2];
    let vectors = block.as_chunks::<16>().0;
    let (pairs, last) = vectors.as_chunks::<2>();
    let magnitude = |v: &[f32; 16]| {
        // SAFETY: `v` is a reference to 16 floats.
        let bits = unsafe { _mm512_loadu_si512(v.as_ptr().cast()) };
        _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff))
    };
    for [first, second] in pairs {
        lanes[0] = _mm512_max_epu32(lanes[0], magnitude(first));
        lanes[1] = _mm512_max_epu32(lanes[1], magnitude(second));
    }
    if let [last] = last {
        lanes[0] = _mm512_max_epu32(lanes[0], magnitude(last));
    }
    _mm512_max_epu32(lanes[0], lanes[1])
}

/// The maxima of the lanes of 16 vectors, in order: four steps of a transposition.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn max_of_each(v: [__m512i; 16]) -> __m512i {
    let max = |a, b| _mm512_max_epu32(a, b);
    let words = |a, b| max(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let pairs = |a, b| max(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let quads: [__m512i; 4] =
        std::array::from_fn(|i| pairs(words(v[4 * i], v[4 * i + 1]), words(v[4 * i + 2], v[4 * i + 3])));
    let halves = |a, b| max(_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
    let (low, high) = (halves(quads[0], quads[1]), halves(quads[2], quads[3]));
    max(_mm512_shuffle_i32x4::<0b10_00_10_00>(low, high), _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn amax_blocks(x: &[f32], group: usize, out: &mut [f32]) {
    match group {
        16 => amax_blocks_of::<16>(x, out),
        32 => amax_blocks_of::<32>(x, out),
        64 => amax_blocks_of::<64>(x, out),
        128 => amax_blocks_of::<128>(x, out),
        _ => {
            for (block, amax) in x.chunks_exact(group).zip(out) {
                let (whole, tail) = block.split_at(group / 16 * 16);
                let bits = _mm512_reduce_max_epu32(lanes_amax(whole));
                *amax = f32::from_bits(bits.max(ops::amax_bits(tail)));
            }
        }
    }
}

/// Blocks of `G`, a multiple of 16, sixteen at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn amax_blocks_of<const G: usize>(x: &[f32], out: &mut [f32]) {
    let (blocks, _) = x.as_chunks::<G>();
    let (sixteens, rest) = blocks.as_chunks::<16>();
    let (out_sixteens, out_rest) = out.split_at_mut(16 * sixteens.len());
    for (blocks, out) in sixteens.iter().zip(out_sixteens.as_chunks_mut::<16>().0) {
        let largest = max_of_each(std::array::from_fn(|i| lanes_amax(&blocks[i])));
        // SAFETY: `out` is a reference to 16 floats.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), largest) };
    }
    for (block, amax) in rest.iter().zip(out_rest) {
        *amax = f32::from_bits(_mm512_reduce_max_epu32(lanes_amax(block)));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn range_blocks(x: &[f32], group: usize, least: &mut [f32], most: &mut [f32]) -> bool {
    let mut largest = _mm512_setzero_si512();
    let mut finite = true;
    for ((block, least), most) in x.chunks(group).zip(least).zip(most) {
        let (vectors, tail) = block.as_chunks::<16>();
        let (mut low, mut high) = (_mm512_set1_ps(f32::INFINITY), _mm512_set1_ps(f32::NEG_INFINITY));
        for v in vectors {
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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn lookup16(codes: &[u8], table: &[f32; 16], out: &mut [f32]) {
    // SAFETY: `table` is a reference to 16 floats.
    let table_lanes = unsafe { _mm512_loadu_ps(table.as_ptr()) };
    let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    let halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    let (blocks, tail) = out.as_chunks_mut::<16>();
    let (codes, bytes_tail) = codes.split_at(8 * blocks.len());
    let bytes = codes.as_chunks::<8>().0;
    for (block, bytes) in blocks.iter_mut().zip(bytes) {
        let both = _mm512_castsi128_si512(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
        // The lookup heeds the low four bits of an index only.
        let index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, both), shifts);
        let values = _mm512_permutexvar_ps(index, table_lanes);
        // SAFETY: `block` is a reference to 16 floats.
        unsafe { _mm512_storeu_ps(block.as_mut_ptr(), values) };
    }
    ops::lookup16(bytes_tail, table, tail);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn encode_book(x: &[f32], reciprocal: f32, bins: &ops::Bins, codes: &mut [u8]) {
    // SAFETY: each load reads 16 of the 32 entries of an array that is borrowed.
    let (low, high, first_low, first_high) = unsafe {
        (
            _mm512_loadu_ps(bins.boundary.as_ptr()),
            _mm512_loadu_ps(bins.boundary[16..].as_ptr()),
            _mm512_loadu_si512(bins.first.as_ptr().cast()),
            _mm512_loadu_si512(bins.first[16..].as_ptr().cast()),
        )
    };
    let (one, minus_one) = (_mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
    let (blocks, tail) = x.as_chunks::<16>();
    let (code_blocks, codes_tail) = codes.as_chunks_mut::<16>();
    for (x, codes) in blocks.iter().zip(code_blocks) {
        // SAFETY: `x` is a reference to 16 floats.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        let v = _mm512_mul_ps(x, _mm512_set1_ps(reciprocal));
        let v = _mm512_min_ps(_mm512_max_ps(v, minus_one), one);
        let scaled = _mm512_mul_ps(v, _mm512_set1_ps(ops::Bins::CELLS));
        // The lookups heed the low five bits of an index only.
        let cell = _mm512_castps_si512(_mm512_add_ps(scaled, _mm512_set1_ps(ops::MAGIC)));
        let boundary = _mm512_permutex2var_ps(low, cell, high);
        let first = _mm512_permutex2var_epi32(first_low, cell, first_high);
        let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, boundary);
        let code = _mm512_mask_add_epi32(first, above, first, _mm512_set1_epi32(1));
        // SAFETY: `codes` is a reference to 16 bytes.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code)) };
    }
    ops::encode_book(tail, reciprocal, bins, codes_tail);
}

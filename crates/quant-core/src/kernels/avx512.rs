//! The kernels for x86-64 with AVX-512 F, BW, DQ, VL and VBMI.

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
        unsafe { _mm_prefetch::<_MM_HINT_T0>(near.as_ptr().cast::<i8>().wrapping_add(bytes)) }
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

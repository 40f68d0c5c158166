//! The kernels for x86-64 with AVX2.

use super::{Backend, Job, ops};
use std::arch::x86_64::*;

/// Proof that the running CPU has AVX2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, when the running CPU has AVX2.
    pub(crate) fn detect() -> Option<Self> {
        (!cfg!(miri) && is_x86_feature_detected!("avx2")).then_some(Self(()))
    }

    /// Runs a job compiled for AVX2.
    pub(crate) fn dispatch<J: Job>(self, job: J) -> J::Output {
        // SAFETY: a value of `Self` exists only after `detect` saw AVX2 on this CPU.
        unsafe { run(self, job) }
    }
}

#[target_feature(enable = "avx2")]
fn run<J: Job>(backend: Avx2, job: J) -> J::Output {
    job.run(backend)
}

impl Backend for Avx2 {
    #[inline(always)]
    fn stream_bytes(self, from: &[u8], to: &mut [u8]) {
        // SAFETY: `self` proves AVX2.
        unsafe { stream(from, to) }
    }

    #[inline(always)]
    fn stream_floats(self, from: &[f32], to: &mut [f32]) {
        // SAFETY: `self` proves AVX2; the slices are reinterpreted as the bytes they are.
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
        // SAFETY: `self` proves AVX2.
        unsafe { lookup16(codes, table, out) }
    }

    #[inline(always)]
    fn encode_book(self, x: &[f32], reciprocal: f32, bins: &ops::Bins, codes: &mut [u8]) {
        ops::encode_book(x, reciprocal, bins, codes);
    }
}

/// Whole aligned 32-byte pieces of `to` bypass the caches; what lies before and after does not.
#[inline]
#[target_feature(enable = "avx2")]
fn stream(from: &[u8], to: &mut [u8]) {
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

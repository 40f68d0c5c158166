//! Vectors written one after the other.

use std::arch::x86_64::*;

/// Memory that is filled a vector of 64 bytes at a time, in order.
///
/// Past the caches whole cache lines are written. They begin elsewhere than vectors do: each is made of parts of two, so that
/// a vector is written when the next one is there.
pub(super) struct Lines<'a> {
    stream: bool,
    /// Before the first line, and whether it is written.
    head: &'a mut [u8],
    begun: bool,
    lines: std::slice::IterMut<'a, [u8; 64]>,
    /// After the last line.
    tail: &'a mut [u8],
    held: __m512i,
    turn: __m512i,
}

impl<'a> Lines<'a> {
    /// Whether memory can be filled so: past the caches vectors are cut between words of four bytes.
    pub(super) fn fit(out: &[u8], stream: bool) -> bool {
        !stream || out.as_ptr().addr().is_multiple_of(4)
    }

    /// `out` holds a number of whole vectors.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn new(out: &'a mut [u8], stream: bool) -> Self {
        let before = if stream { out.as_ptr().align_offset(64) % 64 } else { 0 };
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 16")]
        let turn = _mm512_add_epi32(lanes, _mm512_set1_epi32((before / 4) as i32));
        let (head, rest) = out.split_at_mut(before.min(out.len()));
        let (lines, tail) = rest.as_chunks_mut::<64>();
        Self { stream, head, begun: false, lines: lines.iter_mut(), tail, held: _mm512_setzero_si512(), turn }
    }

    /// Writes a vector; what is left of the memory must hold it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn push(&mut self, v: __m512i) {
        if !self.stream {
            if let Some(line) = self.lines.next() {
                // SAFETY: `line` is a reference to 64 bytes.
                unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), v) };
            }
            return;
        }
        let last = std::mem::replace(&mut self.held, v);
        if !self.begun {
            self.begun = true;
            store_first(self.head, v);
        } else if let Some(line) = self.lines.next() {
            // SAFETY: `line` is a reference to 64 bytes, and lines lie on multiples of 64.
            unsafe { _mm512_stream_si512(line.as_mut_ptr().cast(), _mm512_permutex2var_epi32(last, self.turn, v)) };
        }
    }

    /// Writes what is still held.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    pub(super) fn finish(mut self) {
        if !self.stream || !self.begun {
            return;
        }
        let last = _mm512_permutexvar_epi32(self.turn, self.held);
        match self.lines.next() {
            // SAFETY: as above.
            Some(line) => unsafe { _mm512_stream_si512(line.as_mut_ptr().cast(), last) },
            None => store_first(self.tail, last),
        }
    }
}

/// Stores as many bytes as `to` has room for, which is fewer than 64.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn store_first(to: &mut [u8], v: __m512i) {
    // SAFETY: only bytes within `to` are written.
    unsafe { _mm512_mask_storeu_epi8(to.as_mut_ptr().cast(), (1 << to.len()) - 1, v) };
}

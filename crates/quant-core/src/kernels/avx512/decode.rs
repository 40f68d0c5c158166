//! Values of blocks of codes, a vector of 16 at a time, from the registers to where they go.

use super::super::avx2::bytes_of_mut;
use super::super::decode::{Finish, Source, Strip, decode_strip, sign_extend};
use super::super::ops::{self, SmallFloat};
use super::super::product;
use super::lines::Lines;
use super::{AHEAD, VECTORS, spread};
use std::arch::x86_64::*;

const NIBBLES: u8 = 0;
const SIGNED: u8 = 1;
const UNSIGNED: u8 = 2;
const FLOAT: u8 = 3;
const HALF: u8 = 4;
const BRAIN: u8 = 5;
/// The same in a stream of bits, neither four nor eight a code.
const SIGNED_BITS: u8 = 6;
const UNSIGNED_BITS: u8 = 7;
const FLOAT_BITS: u8 = 8;

const SCALE: u8 = 0;
const OFFSET: u8 = 1;
const AFFINE: u8 = 2;
const PLAIN: u8 = 3;

/// Bytes between what is written and what is asked for.
const OUT_AHEAD: usize = 1024;

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
    decode(&Strip { source: &source, finish: Finish::Scale, codes, bits: 16, group: out.len(), scales, zeros }, out);
}

/// See [`product::dot_float16`]. Weights go from memory into the registers of the product.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn dot_float16(kind: SmallFloat, x: &[f32], weights: &[u8]) -> f32 {
    let (whole, tail) = x.as_chunks::<16>();
    let (codes, codes_tail) = weights.split_at(32 * whole.len());
    let mut sums = _mm512_setzero_ps();
    for (x, codes) in whole.iter().zip(codes.as_chunks::<32>().0) {
        // SAFETY: `codes` has 32 bytes and `x` 16 floats.
        let (codes, x) = unsafe { (_mm256_loadu_si256(codes.as_ptr().cast()), _mm512_loadu_ps(x.as_ptr())) };
        let weights = if kind.shift == 13 {
            _mm512_cvtph_ps(codes)
        } else {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(codes)))
        };
        sums = _mm512_add_ps(sums, _mm512_mul_ps(x, weights));
    }
    let mut lanes = [0.0; 16];
    // SAFETY: `lanes` has 16 floats.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sums) };
    for (lane, (x, &code)) in lanes.iter_mut().zip(tail.iter().zip(codes_tail.as_chunks::<2>().0)) {
        *lane += x * kind.decode(u32::from(u16::from_le_bytes(code)));
    }
    product::fold(lanes)
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
    let mut codes = [0; ops::STRIP];
    let mut strip = *strip;
    if in_bits(&strip) {
        let codes = &mut codes[..out.len()];
        unpack(strip.codes, strip.bits, codes);
        if *strip.source != Source::Unsigned {
            sign_extend(codes, strip.bits);
        }
        (strip.codes, strip.bits) = (codes, 8);
    }
    decode_strip(&strip, out, ops::lookup16);
}

/// Whether codes are neither bytes nor halves nor pairs of bytes.
fn in_bits(strip: &Strip<'_>) -> bool {
    !matches!(strip.bits, 4 | 8 | 16)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn decode_by<const STREAM: bool>(strip: &Strip<'_>, out: &mut [f32]) -> bool {
    if !strip.group.is_multiple_of(16) && strip.group < out.len() {
        return false;
    }
    let bits = in_bits(strip);
    let seen = match (strip.source, strip.finish) {
        (Source::Nibbles(table), finish) => {
            let all = Constants::of_table(table);
            match finish {
                Finish::Scale => walk::<NIBBLES, SCALE, STREAM>(strip, all, out),
                Finish::Offset => walk::<NIBBLES, OFFSET, STREAM>(strip, all, out),
                Finish::Affine => walk::<NIBBLES, AFFINE, STREAM>(strip, all, out),
            }
        }
        (&Source::Signed { factor }, _) => {
            // The product with a power of two is exact, whichever comes first.
            let all = Constants::of_integers(factor, strip.bits);
            if bits {
                walk::<SIGNED_BITS, SCALE, STREAM>(strip, all, out)
            } else {
                walk::<SIGNED, SCALE, STREAM>(strip, all, out)
            }
        }
        (Source::Unsigned, finish) => {
            let all = Constants::of_integers(1.0, strip.bits);
            match (finish, bits) {
                (Finish::Affine, false) => walk::<UNSIGNED, AFFINE, STREAM>(strip, all, out),
                (Finish::Affine, true) => walk::<UNSIGNED_BITS, AFFINE, STREAM>(strip, all, out),
                (_, false) => walk::<UNSIGNED, OFFSET, STREAM>(strip, all, out),
                (_, true) => walk::<UNSIGNED_BITS, OFFSET, STREAM>(strip, all, out),
            }
        }
        (&Source::Float(kind), _) => {
            let scales = &strip.scales[..out.len().div_ceil(strip.group)];
            let moderate = scales.iter().fold(true, |all, &scale| all & (scale.abs() <= MODERATE));
            let no_specials = kind.max_code + 1 == 1 << kind.sign;
            if kind.shift < 13 || !moderate || !(no_specials || (!bits && !has_specials(strip.codes, kind))) {
                return false;
            }
            let all = Constants::of_floats(kind, strip.bits);
            if bits {
                walk::<FLOAT_BITS, SCALE, STREAM>(strip, all, out)
            } else {
                walk::<FLOAT, SCALE, STREAM>(strip, all, out)
            }
        }
        (&Source::Float16(kind), _) => {
            let all = Constants::of_table(&[0.0; 16]);
            if kind.shift == 13 {
                walk::<HALF, PLAIN, STREAM>(strip, all, out)
            } else {
                walk::<BRAIN, PLAIN, STREAM>(strip, all, out)
            }
        }
    };
    match strip.source {
        Source::Float16(kind) => _mm512_reduce_max_epu32(_mm512_cvtepu16_epi32(seen)) <= kind.max_code,
        _ => true,
    }
}

/// Whether a code of a byte is NaN or infinite. Codes are looked through before, as that takes less time than in the same loop;
/// with two bytes a code it takes more.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
#[expect(clippy::cast_possible_truncation, reason = "codes of bytes")]
fn has_specials(codes: &[u8], kind: SmallFloat) -> bool {
    let magnitude = (1_u8 << kind.sign) - 1;
    codes.iter().fold(0, |most, &code| most.max(code & magnitude)) > kind.max_code as u8
}

/// Stores as many values as `to` has room for, which is fewer than 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn store_first(to: &mut [f32], v: __m512) {
    // SAFETY: only values within `to` are written.
    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), (1 << to.len()) - 1, v) };
}

/// What all codes share, in every lane.
#[derive(Clone, Copy)]
struct Constants {
    /// Multiplied with every scale.
    factor: f32,
    table: __m512,
    /// Of a float of a byte: how far its exponent and mantissa move to stand where an f16 has them.
    shift: __m128i,
    /// The bits of an f16 that it fills.
    kept: __m256i,
    /// Of codes in a stream of bits: the two bytes that hold each, and how far it moves to the top of them.
    pair: __m256i,
    to_top: __m256i,
    /// How far it moves back.
    from_top: __m128i,
}

impl Constants {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn of_table(table: &[f32; 16]) -> Self {
        let (none, nothing) = (_mm_setzero_si128(), _mm256_setzero_si256());
        // SAFETY: `table` is a reference to 16 floats.
        let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
        Self { factor: 1.0, table, shift: none, kept: nothing, pair: nothing, to_top: nothing, from_top: none }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn of_integers(factor: f32, bits: u32) -> Self {
        let mut all = Self { factor, ..Self::of_table(&[0.0; 16]) };
        if !bits.is_multiple_of(8) {
            all.find_bits(bits, 16 - bits);
        }
        all
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    fn of_floats(kind: SmallFloat, bits: u32) -> Self {
        let shift = kind.shift - 13;
        // An f16 of the same bits has another bias.
        let factor = f32::from_bits(kind.smallest_normal) * 16384.0;
        // The sign and, from `shift` on, exponent and mantissa.
        let kept = _mm256_set1_epi16(i16::MIN | ((1 << kind.sign) - 1) << shift);
        let shifted = _mm_cvtsi32_si128(shift.cast_signed());
        let mut all = Self { factor, shift: shifted, kept, ..Self::of_table(&[0.0; 16]) };
        if !bits.is_multiple_of(8) {
            all.find_bits(bits, 16 - bits - shift);
        }
        all
    }

    /// Where the bits of 16 codes lie.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
    #[expect(clippy::cast_possible_truncation, reason = "less than 16 bytes")]
    fn find_bits(&mut self, bits: u32, from_top: u32) {
        let (mut pair, mut to_top) = ([0_u8; 32], [0_u16; 16]);
        for ((first, pair), to_top) in (0..).step_by(bits as usize).zip(pair.as_chunks_mut::<2>().0).zip(&mut to_top) {
            *pair = [(first / 8) as u8, (first / 8) as u8 + 1];
            *to_top = 16 - bits as u16 - (first % 8) as u16;
        }
        // SAFETY: both arrays hold 32 bytes.
        unsafe {
            self.pair = _mm256_loadu_si256(pair.as_ptr().cast());
            self.to_top = _mm256_loadu_si256(to_top.as_ptr().cast());
        }
        self.from_top = _mm_cvtsi32_si128(from_top.cast_signed());
    }
}

/// Starts a cache line: see `Params` in `kernels::decode`.
#[repr(align(64))]
struct InLines([f32; VECTORS]);

/// Decodes vectors of 16 codes. Past the caches, later codes are asked for meanwhile; otherwise the lines that are written, as a
/// store waits for its line. Of codes of two bytes, returns the largest magnitudes: what was written is of use only where these
/// are finite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn walk<const SOURCE: u8, const FINISH: u8, const STREAM: bool>(
    strip: &Strip<'_>,
    all: Constants,
    out: &mut [f32],
) -> __m256i {
    let count = out.len().div_ceil(16);
    let (mut scales, mut zeros) = (InLines([0.0; VECTORS]), InLines([0.0; VECTORS]));
    if FINISH != PLAIN {
        spread(strip.scales, strip.group, all.factor, count, &mut scales.0);
    }
    if matches!(FINISH, OFFSET | AFFINE) {
        spread(strip.zeros, strip.group, 1.0, count, &mut zeros.0);
    }
    let mut most = _mm256_setzero_si256();
    let mut value = |codes: &[u8], scale: f32, zero: f32| {
        if matches!(SOURCE, HALF | BRAIN) {
            most = _mm256_max_epu16(most, _mm256_and_si256(load32(codes), _mm256_set1_epi16(i16::MAX)));
        }
        finish::<FINISH>(source::<SOURCE>(codes, all), _mm512_set1_ps(scale), _mm512_set1_ps(zero))
    };
    // Of 16 codes.
    let bytes = match SOURCE {
        NIBBLES => 8,
        SIGNED | UNSIGNED | FLOAT => 16,
        HALF | BRAIN => 32,
        _ => 2 * strip.bits as usize,
    };
    let vectors = strip.codes.chunks_exact(bytes).zip(&scales.0).zip(&zeros.0);
    let vectors = vectors.map(|((codes, &scale), &zero)| (codes, scale, zero));
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
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast::<i8>().wrapping_add(OUT_AHEAD));
            // SAFETY: `line` is a reference to 16 floats.
            unsafe { _mm512_storeu_ps(line.as_mut_ptr(), value(codes, scale, zero)) };
        }
        if !tail.is_empty() {
            let mut padded = [0; 32];
            let rest = &strip.codes[lines.len() * bytes..];
            padded[..rest.len()].copy_from_slice(rest);
            let last = lines.len() % VECTORS;
            store_first(tail, value(&padded[..bytes], scales.0[last], zeros.0[last]));
        }
    }
    most
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn load32(codes: &[u8]) -> __m256i {
    // SAFETY: the slice is checked to hold 32 bytes.
    unsafe { _mm256_loadu_si256(codes[..32].as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn finish<const FINISH: u8>(v: __m512, scale: __m512, zero: __m512) -> __m512 {
    match FINISH {
        SCALE => _mm512_mul_ps(v, scale),
        OFFSET => _mm512_mul_ps(_mm512_sub_ps(v, zero), scale),
        AFFINE => _mm512_add_ps(_mm512_mul_ps(v, scale), zero),
        _ => v,
    }
}

/// What 16 codes stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn source<const SOURCE: u8>(codes: &[u8], all: Constants) -> __m512 {
    // SAFETY: the slice is checked to hold what is read.
    let load16 = || unsafe { _mm_loadu_si128(codes[..16].as_ptr().cast()) };
    // Each code of a stream of bits at the top of a word.
    let at_top = || {
        // SAFETY: as many bytes are read as there are, at most 14.
        let bytes = unsafe { _mm_maskz_loadu_epi8((1 << codes.len()) - 1, codes.as_ptr().cast()) };
        _mm256_sllv_epi16(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), all.pair), all.to_top)
    };
    match SOURCE {
        NIBBLES => {
            let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
            let halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            let word = codes.first_chunk::<8>().map_or(0, |&bytes| i64::from_le_bytes(bytes));
            let both = _mm512_castsi128_si512(_mm_cvtsi64_si128(word));
            // The lookup heeds the low four bits of an index only.
            let index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, both), shifts);
            _mm512_permutexvar_ps(index, all.table)
        }
        SIGNED => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16())),
        UNSIGNED => _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16())),
        FLOAT => {
            // Exponent and mantissa become the low bits of those of an f16; copies of the sign are cleared.
            let half = _mm256_sll_epi16(_mm256_cvtepi8_epi16(load16()), all.shift);
            _mm512_cvtph_ps(_mm256_and_si256(half, all.kept))
        }
        HALF => _mm512_cvtph_ps(load32(codes)),
        BRAIN => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load32(codes)))),
        SIGNED_BITS => _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_sra_epi16(at_top(), all.from_top))),
        UNSIGNED_BITS => _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_srl_epi16(at_top(), all.from_top))),
        // As above: copies of the sign are cleared, and what followed the code.
        _ => _mm512_cvtph_ps(_mm256_and_si256(_mm256_sra_epi16(at_top(), all.from_top), all.kept)),
    }
}

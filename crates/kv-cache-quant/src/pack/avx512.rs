//! Rows of groups of whole vectors, sealed in AVX-512.
#![expect(unsafe_code, reason = "loads and stores through pointers")]

use super::{LEAST_STEP, MinRow, Sections};
use std::arch::x86_64::*;

/// Groups that are sealed together.
const GROUPS: usize = 64;

/// What the values of a group share, as it is stored, and `1/step` in two parts.
struct Params {
    mins: [f32; GROUPS],
    steps: [f32; GROUPS],
    high: [f32; GROUPS],
    low: [f32; GROUPS],
}

/// As [`MinRow::seal`], for rows of whole groups of whole vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(super) fn seal(of: MinRow, row: &[f32], out: Sections<'_>) -> bool {
    let values = GROUPS * of.group;
    let codes = out.codes.chunks_mut(values / 8 * of.bits as usize);
    let meta = out.steps.chunks_mut(2 * GROUPS).zip(out.mins.chunks_mut(2 * GROUPS));
    // Groups that are not there have a range like any other.
    let mut params = Params { mins: [1.0; GROUPS], steps: [1.0; GROUPS], high: [0.0; GROUPS], low: [0.0; GROUPS] };
    for ((values, codes), (steps, mins)) in row.chunks(values).zip(codes).zip(meta) {
        let groups = values.chunks_exact(of.group).zip(params.mins.iter_mut().zip(&mut params.steps));
        groups.for_each(|(values, (least, most))| (*least, *most) = extremes(values));
        if !fit(f32::from(of.largest()), &mut params, steps, mins) {
            return false;
        }
        match of.bits {
            2 => code::<2>(values, of.group, &params, codes),
            4 => code::<4>(values, of.group, &params, codes),
            _ => code::<8>(values, of.group, &params, codes),
        }
    }
    true
}

/// The least and the largest value.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn extremes(values: &[f32]) -> (f32, f32) {
    let (mut least, mut most) = (_mm512_set1_ps(f32::INFINITY), _mm512_set1_ps(f32::NEG_INFINITY));
    for x in values.as_chunks::<16>().0 {
        // SAFETY: `x` is a reference to 16 floats.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        (least, most) = (_mm512_min_ps(least, x), _mm512_max_ps(most, x));
    }
    // From here on the minima of both at once, those of −x in the upper half.
    let most = _mm512_xor_ps(most, _mm512_set1_ps(-0.0));
    let (a, b) =
        (_mm512_shuffle_f32x4::<0b01_00_01_00>(least, most), _mm512_shuffle_f32x4::<0b11_10_11_10>(least, most));
    let m = _mm512_min_ps(a, b);
    let m = _mm512_min_ps(m, _mm512_shuffle_f32x4::<0b10_11_00_01>(m, m));
    let m = _mm512_min_ps(m, _mm512_permute_ps::<0b01_00_11_10>(m));
    let m = _mm512_min_ps(m, _mm512_permute_ps::<0b10_11_00_01>(m));
    (_mm512_cvtss_f32(m), -_mm_cvtss_f32(_mm512_extractf32x4_ps::<2>(m)))
}

/// Stores steps, of largest values as which they come, and least values; false where [`MinRow::seal`] is.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn fit(largest: f32, params: &mut Params, steps_out: &mut [u8], mins_out: &mut [u8]) -> bool {
    let mut all = u16::MAX;
    let lists = params.mins.as_chunks_mut::<16>().0.iter_mut().zip(params.steps.as_chunks_mut::<16>().0);
    let reciprocals = params.high.as_chunks_mut::<16>().0.iter_mut().zip(params.low.as_chunks_mut::<16>().0);
    let outs = steps_out.chunks_mut(32).zip(mins_out.chunks_mut(32));
    for (((mins, steps), (high, low)), (steps_out, mins_out)) in lists.zip(reciprocals).zip(outs) {
        // SAFETY: all loads and stores are of 16 floats by references to as many.
        unsafe {
            let (min, most) = (_mm512_loadu_ps(mins.as_ptr()), _mm512_loadu_ps(steps.as_ptr()));
            let step = _mm512_div_ps(_mm512_sub_ps(most, min), _mm512_set1_ps(largest));
            let step = _mm512_max_ps(step, _mm512_set1_ps(LEAST_STEP));
            let plain = super::PLAIN.map(|x| _mm512_set1_ps(x));
            let magnitude = _mm512_abs_ps(min);
            all &= _mm512_cmp_ps_mask::<_CMP_GE_OQ>(magnitude, plain[0]);
            all &= _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_max_ps(magnitude, step), plain[1]);
            let (step, min) = (stored(step, steps_out), stored(min, mins_out));
            let reciprocal = _mm512_div_ps(_mm512_set1_ps(1.0), step);
            let rest = _mm512_fnmadd_ps(reciprocal, step, _mm512_set1_ps(1.0));
            _mm512_storeu_ps(mins.as_mut_ptr(), min);
            _mm512_storeu_ps(steps.as_mut_ptr(), step);
            _mm512_storeu_ps(high.as_mut_ptr(), reciprocal);
            _mm512_storeu_ps(low.as_mut_ptr(), _mm512_mul_ps(rest, reciprocal));
        }
    }
    all == u16::MAX
}

/// Stores as many values as there is room for as f16, and returns what was stored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn stored(values: __m512, out: &mut [u8]) -> __m512 {
    let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(values);
    let lanes = if out.len() < 32 { (1 << (out.len() / 2)) - 1 } else { u16::MAX };
    // SAFETY: the mask names pairs of bytes that there are.
    unsafe { _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), lanes, halves) };
    _mm512_cvtph_ps(halves)
}

/// Codes of whole groups of whole vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn code<const BITS: u32>(values: &[f32], group: usize, params: &Params, out: &mut [u8]) {
    let bytes = 8 * BITS as usize;
    let (pieces, rest) = values.as_chunks::<64>();
    let (out, out_rest) = out.split_at_mut(bytes * pieces.len());
    let (mut padded, mut last) = ([0.0; 64], [0; 64]);
    padded[..rest.len()].copy_from_slice(rest);
    let whole = pieces.iter().zip(out.chunks_exact_mut(bytes));
    // Divides numbers of vectors by the vectors of a group.
    let per_vector = (1_usize << 32).div_ceil(group / 16);
    for (piece, (x, out)) in whole.chain([(&padded, &mut last[..bytes])]).enumerate() {
        let mut code = [_mm512_setzero_si512(); 4];
        for (vector, (code, x)) in (4 * piece..).zip(code.iter_mut().zip(x.as_chunks::<16>().0)) {
            let at = (vector * per_vector) >> 32;
            // SAFETY: `x` is a reference to 16 floats.
            let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
            let of = |list: &[f32; GROUPS]| _mm512_set1_ps(list[at % GROUPS]);
            let x = _mm512_sub_ps(x, of(&params.mins));
            *code = _mm512_cvtps_epi32(quotient(x, of(&params.steps), of(&params.high), of(&params.low)));
        }
        pack::<BITS>(code, out);
    }
    let count = out_rest.len();
    out_rest.copy_from_slice(&last[..count]);
}

/// `x / step`, rounded as one division rounds it, or both of them less than half of a code: `near` is one of the two
/// neighbours of the quotient, its `rest` is exact, and by Markstein's theorem the last step then rounds as a division does.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn quotient(x: __m512, step: __m512, high: __m512, low: __m512) -> __m512 {
    let near = _mm512_fmadd_ps(x, high, _mm512_mul_ps(x, low));
    let rest = _mm512_fnmadd_ps(near, step, x);
    _mm512_fmadd_ps(rest, high, near)
}

/// Writes 64 codes, those beyond what `BITS` can hold as the nearest that they can.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn pack<const BITS: u32>(code: [__m512i; 4], out: &mut [u8]) {
    assert_eq!(out.len(), 8 * BITS as usize, "the bytes of 64 codes");
    let words = [_mm512_packs_epi32(code[0], code[1]), _mm512_packs_epi32(code[2], code[3])];
    let largest = _mm512_set1_epi8((u8::MAX >> (8 - BITS)).cast_signed());
    let bytes = _mm512_min_epu8(_mm512_packus_epi16(words[0], words[1]), largest);
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let bytes = _mm512_permutexvar_epi32(order, bytes);
    // SAFETY: the three stores write 16, 32 and 64 bytes: as many as there are.
    unsafe {
        match BITS {
            2 => {
                // first + 4·second of every two bytes, first + 16·second of every two of these.
                let pairs = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x0401));
                let fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x0010_0001));
                _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(fours));
            }
            4 => {
                let pairs = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x1001));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(pairs));
            }
            _ => _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes),
        }
    }
}

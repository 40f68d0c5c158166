//! Codes of blocks of values, four vectors at a time.
//!
//! Rows of whole tiles go through in one pass, see [`tiles`]; what is left, and what needs more, strip by strip.

mod codes;
mod extremes;
mod fit;
mod tiles;

use super::super::RowEncoder;
use super::super::encode::{self as plain, Fitted};
use super::super::ops::{self, Bins, Element, Strip, Unit};
use super::{VECTORS, prefetch, spread};
use codes::{BOOK, FLOAT, KEEP, Lanes, MULTIPLY, QUOTIENT, SIGNED, UNSIGNED, magnitude};
use std::arch::x86_64::*;
pub(crate) use tiles::encode_tiles;

/// As [`plain::fit`]; prepares the reciprocals of scales as well.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn fit(plan: &RowEncoder, fitted: &mut Fitted, count: usize, out: &mut [u8]) -> bool {
    let done = plain::fit(plan, fitted, count, out);
    reciprocals(plan, fitted, count);
    done
}

/// Of scales that values are divided by; others may be far too small.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn reciprocals(plan: &RowEncoder, fitted: &mut Fitted, count: usize) {
    if plan.unit != Unit::Divide {
        return;
    }
    let scales = fitted.scales[..count].iter();
    for ((&scale, high), low) in scales.zip(&mut fitted.high).zip(&mut fitted.low) {
        *high = 1.0 / scale;
        *low = (-*high).mul_add(scale, 1.0) * *high;
    }
}

/// See [`Backend::encode_blocks`](super::super::Backend::encode_blocks).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn encode_blocks(strip: &Strip<'_>, codes: &mut [u8]) -> bool {
    match (strip.element, strip.unit) {
        _ if !strip.group.is_multiple_of(16) && strip.group < strip.x.len() => any_blocks(strip, codes),
        (_, Unit::Divide) if !divides_exactly(&strip.scales[..strip.x.len().div_ceil(strip.group)], strip.reach) => {
            any_blocks(strip, codes)
        }
        (Element::Int { .. }, Unit::Multiply) if strip.reach.is_finite() => walk::<MULTIPLY, SIGNED>(strip, codes),
        (Element::Int { low, .. }, Unit::Divide) if *low < 0.0 => walk::<QUOTIENT, SIGNED>(strip, codes),
        (Element::Int { .. }, Unit::Divide) => walk::<QUOTIENT, UNSIGNED>(strip, codes),
        (Element::Float(_), Unit::Keep) => walk::<KEEP, FLOAT>(strip, codes),
        (Element::Float(_), Unit::Multiply) => walk::<MULTIPLY, FLOAT>(strip, codes),
        (Element::Float(_), Unit::Divide) => walk::<QUOTIENT, FLOAT>(strip, codes),
        (Element::Book(Bins { cells: Some(_), .. }), Unit::Multiply) => walk::<MULTIPLY, BOOK>(strip, codes),
        _ => any_blocks(strip, codes),
    }
}

/// Packs codes of fewer than 8 bits, see [`ops::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
pub(crate) fn pack(codes: &[u8], bits: u32, out: &mut [u8]) {
    if bits != 4 {
        let mask = ((1 << bits) - 1) * 0x0101_0101_0101_0101;
        return ops::pack_by(codes, bits, out, |w| _pext_u64(w, mask));
    }
    let (pairs, tail) = codes.as_chunks::<128>();
    let (lines, out_tail) = out.split_at_mut(64 * pairs.len());
    for (pair, line) in pairs.iter().zip(lines.as_chunks_mut::<64>().0) {
        // SAFETY: each load reads 64 of the 128 bytes, and `line` is a reference to 64 bytes.
        unsafe {
            let (first, second) =
                (_mm512_loadu_si512(pair.as_ptr().cast()), _mm512_loadu_si512(pair[64..].as_ptr().cast()));
            _mm512_storeu_si512(line.as_mut_ptr().cast(), codes::nibbles(first, second));
        }
    }
    ops::pack(tail, 4, out_tail);
}

/// Whether no quotient with such scales overflows and none that matters underflows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn divides_exactly(scales: &[f32], reach: f32) -> bool {
    let exact = |scale: &f32| (codes::EXACT_SCALES.start()..=codes::EXACT_SCALES.end()).contains(&scale);
    scales.iter().fold(reach <= codes::EXACT_RANGE, |all, scale| all & exact(scale))
}

/// What no other function here covers. Not inlined: it is compiled once, not once a caller.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn any_blocks(strip: &Strip<'_>, codes: &mut [u8]) -> bool {
    ops::encode_blocks(strip, codes)
}

/// The strip in pieces of 64 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi2")]
fn walk<const UNIT: u8, const KIND: u8>(strip: &Strip<'_>, codes: &mut [u8]) -> bool {
    let constants = codes::constants(strip.element, strip.positive_zero);
    let params = |of: &[f32; ops::BLOCKS]| {
        let mut out = [0.0; VECTORS];
        spread(of, strip.group, 1.0, strip.x.len().div_ceil(16), &mut out);
        out
    };
    let scales = if UNIT == KEEP { [0.0; VECTORS] } else { params(strip.scales) };
    let (high, low) =
        if UNIT == QUOTIENT { (params(strip.high), params(strip.low)) } else { ([0.0; VECTORS], [0.0; VECTORS]) };
    let zeros = if KIND == UNSIGNED { params(strip.zeros) } else { [0.0; VECTORS] };
    let (pieces, rest) = strip.x.as_chunks::<64>();
    let (code_pieces, code_rest) = codes.as_chunks_mut::<64>();
    let (mut padded, mut last) = ([0.0; 64], [0; 64]);
    padded[..rest.len()].copy_from_slice(rest);
    let mut largest = _mm512_setzero_si512();
    // One place where a piece is encoded, so that it is inlined there.
    for i in 0..pieces.len() + usize::from(!rest.is_empty()) {
        let (x, out) = match (pieces.get(i), code_pieces.get_mut(i)) {
            (Some(x), Some(codes)) => (x, codes),
            _ => (&padded, &mut last),
        };
        // Scales were found before, and every other line was asked for then.
        for line in 0..4 {
            if UNIT == KEEP || line % 2 != 0 {
                prefetch(x, strip.ahead + 64 * line);
            }
        }
        let code: [__m512i; 4] = std::array::from_fn(|j| {
            let vector = (4 * i + j) % VECTORS;
            // SAFETY: 16 of the 64 floats are read.
            let x = unsafe { _mm512_loadu_ps(x[16 * j..].as_ptr()) };
            if UNIT == KEEP {
                largest = _mm512_max_epu32(largest, magnitude(x));
            }
            let lanes = Lanes {
                scale: _mm512_set1_ps(scales[vector]),
                high: _mm512_set1_ps(high[vector]),
                low: _mm512_set1_ps(low[vector]),
                zero: _mm512_set1_ps(zeros[vector]),
            };
            codes::sixteen::<UNIT, KIND>(x, lanes, constants)
        });
        let bytes = codes::in_order(codes::bytes::<KIND>(code, constants));
        // SAFETY: `out` is a reference to 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes) };
    }
    code_rest.copy_from_slice(&last[..code_rest.len()]);
    _mm512_reduce_max_epu32(largest) < ops::INFINITE
}

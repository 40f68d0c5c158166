//! Values of 16 bits, f16: stored, read, and what storing makes of others. Finite, and not beyond the range of f16.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls of functions compiled for instruction sets found at run time, masked loads and stores"
    )
)]

use crate::generated::isa::for_each_isa;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Values that are converted at once where the processor does not do so in vectors of 16.
const STRIP: usize = 256;

/// Stores values, little-endian, rounded to nearest even.
pub(crate) fn write(values: &[f32], bytes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_current() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::write(values, bytes) };
    }
    let mut halves = [f16::ZERO; STRIP];
    for (values, bytes) in values.chunks(STRIP).zip(bytes.chunks_mut(2 * STRIP)) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        halves.iter().zip(bytes.as_chunks_mut().0).for_each(|(x, bytes)| *bytes = x.to_le_bytes());
    }
}

/// Reads values.
pub(crate) fn read(bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_current() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::read(bytes, out) };
    }
    read_bits(bytes, out);
}

/// Appends what [`write`] and [`read`] make of values.
pub(crate) fn push_rounded(values: &[f32], out: &mut Vec<f32>) {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_current() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::push_rounded(values, out) };
    }
    let mut bytes = [0; 2 * STRIP];
    for values in values.chunks(STRIP) {
        let (bytes, first) = (&mut bytes[..2 * values.len()], out.len());
        write(values, bytes);
        out.resize(first + values.len(), 0.0);
        read_bits(bytes, &mut out[first..]);
    }
}

for_each_isa! {
    /// [`read`] by operations on integers.
    fn read_bits(bytes: &[u8], out: &mut [f32]) {
        // The exponent of f16 is 112 less than that of f32; the product is exact, for subnormal values too.
        let rebias = f32::from_bits((127 + 112) << 23);
        for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            let bits = u32::from(u16::from_le_bytes([b[0], b[1]]));
            let magnitude = f32::from_bits((bits & 0x7fff) << 13) * rebias;
            *out = f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use quant_core::kernels::Isa;
    use std::arch::x86_64::*;

    pub(super) fn is_current() -> bool {
        Isa::current() == Isa::Avx512
    }

    /// The first lanes.
    fn lanes(count: usize) -> u16 {
        if count < 16 { (1 << count) - 1 } else { u16::MAX }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn halves(x: __m512) -> __m256i {
        _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn write(values: &[f32], bytes: &mut [u8]) {
        let (whole, rest) = values.as_chunks::<16>();
        let (lines, bytes) = bytes.as_chunks_mut::<32>();
        // SAFETY: whole vectors by references to as much, and of the rest what the masks name.
        unsafe {
            for (x, bytes) in whole.iter().zip(lines) {
                _mm256_storeu_si256(bytes.as_mut_ptr().cast(), halves(_mm512_loadu_ps(x.as_ptr())));
            }
            let lanes = lanes(rest.len().min(bytes.len() / 2));
            let x = _mm512_maskz_loadu_ps(lanes, rest.as_ptr());
            _mm256_mask_storeu_epi16(bytes.as_mut_ptr().cast(), lanes, halves(x));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn read(bytes: &[u8], out: &mut [f32]) {
        let (lines, bytes) = bytes.as_chunks::<32>();
        let (whole, rest) = out.as_chunks_mut::<16>();
        // SAFETY: as above.
        unsafe {
            for (bytes, x) in lines.iter().zip(whole) {
                _mm512_storeu_ps(x.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())));
            }
            let lanes = lanes(rest.len().min(bytes.len() / 2));
            let halves = _mm256_maskz_loadu_epi16(lanes, bytes.as_ptr().cast());
            _mm512_mask_storeu_ps(rest.as_mut_ptr(), lanes, _mm512_cvtph_ps(halves));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn push_rounded(values: &[f32], out: &mut Vec<f32>) {
        out.reserve(values.len());
        let (whole, rest) = values.as_chunks::<16>();
        let (whole_out, rest_out) = out.spare_capacity_mut().as_chunks_mut::<16>();
        // The rest of the last vector may lie among whole vectors of the room.
        let (whole_out, last) = whole_out.split_at_mut(whole.len());
        let rest_out = if last.is_empty() { rest_out.as_mut_ptr() } else { last.as_mut_ptr().cast() };
        // SAFETY: as above; there is room for all values, and all of it is written.
        unsafe {
            for (x, out) in whole.iter().zip(whole_out) {
                _mm512_storeu_ps(out.as_mut_ptr().cast(), _mm512_cvtph_ps(halves(_mm512_loadu_ps(x.as_ptr()))));
            }
            let lanes = lanes(rest.len());
            let x = _mm512_maskz_loadu_ps(lanes, rest.as_ptr());
            _mm512_mask_storeu_ps(rest_out.cast(), lanes, _mm512_cvtph_ps(halves(x)));
            out.set_len(out.len() + values.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::kernels::{Isa, with_isa};

    fn finite() -> Vec<f16> {
        (0..=u16::MAX).map(f16::from_bits).filter(|x| x.is_finite()).collect()
    }

    #[test]
    fn every_finite_value_is_read_exactly() {
        let bytes: Vec<u8> = finite().iter().flat_map(|x| x.to_le_bytes()).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for len in (0..40).chain([finite().len()]) {
                let mut out = vec![0.0; len];
                with_isa(isa, || read(&bytes[..2 * len], &mut out));
                for (x, value) in finite().iter().zip(out) {
                    assert_eq!(value.to_bits(), x.to_f32().to_bits(), "{isa:?}, {x:?}");
                }
            }
        }
    }

    #[test]
    fn values_are_rounded_to_nearest_even() {
        // Each value, what lies halfway to the next, and its neighbours.
        let next = |x: f16, y: f16| f32::midpoint(x.to_f32(), y.to_f32());
        let around = |x: f32| [x.next_down(), x, x.next_up()];
        let halfway = finite().windows(2).flat_map(|pair| around(next(pair[0], pair[1]))).collect::<Vec<_>>();
        let values: Vec<f32> =
            finite().iter().map(|x| x.to_f32()).chain(halfway).filter(|x| x.abs() <= 65504.0).collect();
        let expected: Vec<u16> = values.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for len in (0..40).chain([values.len()]) {
                let (mut bytes, mut rounded) = (vec![0; 2 * len], Vec::new());
                with_isa(isa, || {
                    write(&values[..len], &mut bytes);
                    // In two parts, the second behind what is there.
                    let (first, second) = values[..len].split_at(len / 3);
                    push_rounded(first, &mut rounded);
                    push_rounded(second, &mut rounded);
                });
                assert_eq!(rounded.len(), len);
                for ((bits, bytes), rounded) in expected.iter().zip(bytes.as_chunks().0).zip(rounded) {
                    assert_eq!(u16::from_le_bytes(*bytes), *bits, "{isa:?}");
                    assert_eq!(rounded.to_bits(), f16::from_bits(*bits).to_f32().to_bits(), "{isa:?}");
                }
            }
        }
    }
}

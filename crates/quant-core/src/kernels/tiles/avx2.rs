//! Sixteen lanes in two AVX2 registers of eight.

use super::avx512::intrinsics;
use super::lanes::Lanes;
use super::pack::Codec;
use super::{Line, Products};
use std::arch::x86_64::*;

/// Proof that the running CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The products, when the running CPU has all features.
    pub(super) fn detect() -> Option<&'static dyn Products> {
        static TOKEN: Avx2 = Avx2(());
        let has = !cfg!(miri)
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(&TOKEN)
    }
}

type Floats = [__m256; 2];
type Ints = [__m256i; 2];

/// Four signed bytes in each lane times those of `x`: bytes are widened to words, so that nothing saturates.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_half(sum: __m256i, bytes: __m256i, even: __m256i, odd: __m256i) -> __m256i {
    let low = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
    let high = _mm256_srli_epi16::<8>(bytes);
    let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(low, even));
    _mm256_add_epi32(sum, _mm256_madd_epi16(high, odd))
}

/// See [`Lanes::lookup`]: the lookups heed the low three bits of an index only; the fourth is moved to the sign.
#[inline]
#[target_feature(enable = "avx2")]
fn lookup_half(table: Floats, index: __m256i) -> __m256 {
    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
    let (a, b) = (_mm256_permutevar8x32_ps(table[0], index), _mm256_permutevar8x32_ps(table[1], index));
    _mm256_blendv_ps(a, b, upper)
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn small_floats_half(codes: __m256i, wide: bool) -> [Floats; 2] {
    let half = |x| {
        if wide {
            _mm256_and_si256(x, _mm256_set1_epi16(0xff00_u16.cast_signed()))
        } else {
            let magnitude = _mm256_and_si256(_mm256_srli_epi16::<1>(x), _mm256_set1_epi16(0x3f80));
            _mm256_or_si256(magnitude, _mm256_and_si256(x, _mm256_set1_epi16(i16::MIN)))
        }
    };
    let floats = |x| [_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(x))];
    [floats(half(_mm256_slli_epi16::<8>(codes))), floats(half(codes))]
}

impl Lanes for Avx2 {
    type Floats = Floats;
    type Ints = Ints;
    type Table = Floats;
    const WIDE: bool = false;

    intrinsics! {
        fn splat(x: f32) -> Floats = [_mm256_set1_ps(x); 2];
        fn load(x: &[f32; 16]) -> Floats = [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())];
        fn store(x: Floats, out: &mut [f32; 16]) = {
            _mm256_storeu_ps(out.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), x[1]);
        };
        fn add(a: Floats, b: Floats) -> Floats = [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
        fn mul(a: Floats, b: Floats) -> Floats = [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
        fn mul_add(a: Floats, b: Floats, c: Floats) -> Floats =
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];

        fn line(line: &Line) -> Ints =
            [_mm256_load_si256(line.0.as_ptr().cast()), _mm256_load_si256(line.0[32..].as_ptr().cast())];
        fn store_line(x: Ints, out: &mut Line) = {
            _mm256_store_si256(out.0.as_mut_ptr().cast(), x[0]);
            _mm256_store_si256(out.0[32..].as_mut_ptr().cast(), x[1]);
        };
        fn int(x: i32) -> Ints = [_mm256_set1_epi32(x); 2];
        fn plus(a: Ints, b: Ints) -> Ints = [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])];
        fn and(a: Ints, b: Ints) -> Ints = [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])];
        fn select(mask: Ints, a: Ints, b: Ints) -> Ints = {
            let one = |i: usize| _mm256_or_si256(_mm256_and_si256(mask[i], a[i]), _mm256_andnot_si256(mask[i], b[i]));
            [one(0), one(1)]
        };
        fn right(x: Ints, bits: u32) -> Ints = {
            let count = _mm256_set1_epi32(bits.cast_signed());
            [_mm256_srlv_epi32(x[0], count), _mm256_srlv_epi32(x[1], count)]
        };
        fn rotate(x: Ints, bits: u32) -> Ints = {
            let (right, left) = (_mm256_set1_epi32(bits.cast_signed()), _mm256_set1_epi32(32 - bits.cast_signed()));
            let one = |x| _mm256_or_si256(_mm256_srlv_epi32(x, right), _mm256_sllv_epi32(x, left));
            [one(x[0]), one(x[1])]
        };
        fn to_floats(x: Ints) -> Floats = [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])];
        fn signed_byte(x: Ints, index: u32) -> Floats = {
            let count = _mm256_set1_epi32(24 - 8 * index.cast_signed());
            let one = |x| _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_sllv_epi32(x, count)));
            [one(x[0]), one(x[1])]
        };

        fn table(values: &[f32; 16]) -> Floats =
            [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values[8..].as_ptr())];
        fn lookup(table: Floats, index: Ints) -> Floats = [lookup_half(table, index[0]), lookup_half(table, index[1])];
        fn byte_table(values: &[u8; 16]) -> Ints =
            [_mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast())); 2];
        fn lookup_bytes(table: Ints, index: Ints) -> Ints =
            [_mm256_shuffle_epi8(table[0], index[0]), _mm256_shuffle_epi8(table[1], index[1])];
        fn plus_bytes(a: Ints, b: Ints) -> Ints = [_mm256_add_epi8(a[0], b[0]), _mm256_add_epi8(a[1], b[1])];
        fn repeat_bytes(bytes: &[u8; 16]) -> Ints = {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let factor = _mm256_set1_epi32(0x0101_0101);
            let one = |bytes| _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), factor);
            [one(bytes), one(_mm_srli_si128::<8>(bytes))]
        };
        fn dot(sum: Ints, bytes: Ints, x: i32) -> Ints = {
            let x = _mm256_set1_epi32(x);
            let (even, odd) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x));
            [dot_half(sum[0], bytes[0], even, odd), dot_half(sum[1], bytes[1], even, odd)]
        };

        fn small_floats(line: &Line, wide: bool) -> [Floats; 4] = {
            let first = small_floats_half(_mm256_load_si256(line.0.as_ptr().cast()), wide);
            let second = small_floats_half(_mm256_load_si256(line.0[32..].as_ptr().cast()), wide);
            [first[0], first[1], second[0], second[1]]
        };
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], ahead: usize) {
        // SAFETY: a prefetch reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().cast::<i8>().wrapping_add(ahead)) }
    }

    #[inline(always)]
    fn scales(self, codec: Codec, bytes: &[u8]) -> Floats {
        let (first, second) = bytes[..codec.bytes()].split_at(codec.bytes() / 2);
        let half = |bytes: &[u8]| {
            // SAFETY: a value of `Self` proves the features; the slice holds eight scales of this codec.
            unsafe {
                let bytes_wide = || _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().cast()));
                match codec {
                    Codec::F32 => _mm256_loadu_ps(bytes.as_ptr().cast()),
                    Codec::F16 => _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())),
                    Codec::Bf16 => {
                        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                    }
                    Codec::E8m0 => {
                        let power = _mm256_slli_epi32::<23>(bytes_wide());
                        _mm256_castsi256_ps(_mm256_max_epu32(power, _mm256_set1_epi32(1 << 22)))
                    }
                    Codec::E4m3 => {
                        let wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(bytes.as_ptr().cast()));
                        _mm256_cvtph_ps(_mm_slli_epi16::<7>(wide))
                    }
                    Codec::Byte => _mm256_cvtepi32_ps(bytes_wide()),
                }
            }
        };
        [half(first), half(second)]
    }
}

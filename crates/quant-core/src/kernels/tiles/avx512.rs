//! Sixteen lanes in one AVX-512 register.

use super::lanes::Lanes;
use super::pack::Codec;
use super::{Line, Products};
use std::arch::x86_64::*;

/// Proof that the running CPU has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vnni(());

impl Vnni {
    /// The products, when the running CPU has all features.
    pub(super) fn detect() -> Option<&'static dyn Products> {
        static TOKEN: Vnni = Vnni(());
        let has = !cfg!(miri)
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(&TOKEN)
    }
}

/// Methods that are an intrinsic or a few.
macro_rules! intrinsics {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) $(-> $out)? {
            // SAFETY: a value of `Self` proves the features, and references hold what is read or written.
            unsafe { $body }
        }
    )*};
}
pub(super) use intrinsics;

impl Lanes for Vnni {
    type Floats = __m512;
    type Ints = __m512i;
    type Table = __m512;
    const WIDE: bool = true;

    intrinsics! {
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn load(x: &[f32; 16]) -> __m512 = _mm512_loadu_ps(x.as_ptr());
        fn store(x: __m512, out: &mut [f32; 16]) = _mm512_storeu_ps(out.as_mut_ptr(), x);
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);

        fn line(line: &Line) -> __m512i = _mm512_load_si512(line.0.as_ptr().cast());
        fn store_line(x: __m512i, out: &mut Line) = _mm512_store_si512(out.0.as_mut_ptr().cast(), x);
        fn int(x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn plus(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        fn and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        fn select(mask: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_ternarylogic_epi32::<0xca>(mask, a, b);
        fn right(x: __m512i, bits: u32) -> __m512i = _mm512_srlv_epi32(x, _mm512_set1_epi32(bits.cast_signed()));
        fn rotate(x: __m512i, bits: u32) -> __m512i = _mm512_rorv_epi32(x, _mm512_set1_epi32(bits.cast_signed()));
        fn to_floats(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        fn signed_byte(x: __m512i, index: u32) -> __m512 = {
            let top = _mm512_sllv_epi32(x, _mm512_set1_epi32(24 - 8 * index.cast_signed()));
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
        };

        fn table(values: &[f32; 16]) -> __m512 = _mm512_loadu_ps(values.as_ptr());
        fn lookup(table: __m512, index: __m512i) -> __m512 = _mm512_permutexvar_ps(index, table);
        fn byte_table(values: &[u8; 16]) -> __m512i = _mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast()));
        fn lookup_bytes(table: __m512i, index: __m512i) -> __m512i = _mm512_shuffle_epi8(table, index);
        fn plus_bytes(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi8(a, b);
        fn repeat_bytes(bytes: &[u8; 16]) -> __m512i = {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            _mm512_shuffle_epi8(wide, _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0))
        };
        fn dot(sum: __m512i, bytes: __m512i, x: i32) -> __m512i = _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(x));

        fn small_floats(line: &Line, wide: bool) -> [__m512; 4] = {
            let codes = _mm512_load_si512(line.0.as_ptr().cast());
            // Codes in the upper bytes of words, of even and odd columns.
            let (even, odd) = (_mm512_slli_epi16::<8>(codes), codes);
            let half = |x| if wide {
                _mm512_and_si512(x, _mm512_set1_epi16(0xff00_u16.cast_signed()))
            } else {
                let magnitude = _mm512_and_si512(_mm512_srli_epi16::<1>(x), _mm512_set1_epi16(0x3f80));
                _mm512_ternarylogic_epi32::<0xf8>(magnitude, x, _mm512_set1_epi16(i16::MIN))
            };
            let (even, odd) = (half(even), half(odd));
            [
                _mm512_cvtph_ps(_mm512_castsi512_si256(even)),
                _mm512_cvtph_ps(_mm512_castsi512_si256(odd)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(even)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(odd)),
            ]
        };
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], ahead: usize) {
        // SAFETY: a prefetch reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().cast::<i8>().wrapping_add(ahead)) }
    }

    #[inline(always)]
    fn scales(self, codec: Codec, bytes: &[u8]) -> __m512 {
        let bytes = &bytes[..codec.bytes()];
        // SAFETY: a value of `Self` proves the features; the slice holds sixteen scales of this codec.
        unsafe {
            match codec {
                Codec::F32 => _mm512_loadu_ps(bytes.as_ptr().cast()),
                Codec::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())),
                Codec::Bf16 => {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
                Codec::E8m0 => {
                    let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
                    let power = _mm512_slli_epi32::<23>(wide);
                    _mm512_castsi512_ps(_mm512_max_epu32(power, _mm512_set1_epi32(1 << 22)))
                }
                Codec::E4m3 => {
                    let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes.as_ptr().cast()));
                    _mm512_cvtph_ps(_mm256_slli_epi16::<7>(wide))
                }
                Codec::Byte => _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))),
            }
        }
    }
}

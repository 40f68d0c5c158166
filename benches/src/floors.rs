//! The least work: what reads, narrows or widens a stream and does nothing else of use.
//!
//! With AVX-512 where the CPU has it, with stores past the caches and prefetch; otherwise a plain loop.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Bytes between what is worked on and what is asked for.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8192;

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// Reads all of `x`; returns something that depends on it.
#[must_use]
pub fn read(x: &[f32]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the features were just detected.
        return unsafe { read_avx512(x) };
    }
    x.iter().fold(0, |sum, v| sum ^ v.to_bits())
}

/// Reads f32 and writes the top bits of each, a byte each; `out` starts on a multiple of 64.
pub fn narrow8(x: &[f32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the features were just detected.
        return unsafe { narrow_avx512::<8>(x, out) };
    }
    for (x, out) in x.iter().zip(out) {
        *out = x.to_bits().to_le_bytes()[3];
    }
}

/// Reads f32 and writes four bits of each; `out` starts on a multiple of 64.
pub fn narrow4(x: &[f32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the features were just detected.
        return unsafe { narrow_avx512::<4>(x, out) };
    }
    for (pair, out) in x.as_chunks::<2>().0.iter().zip(out) {
        *out = (pair[0].to_le_bytes()[3] >> 4) | (pair[1].to_le_bytes()[3] & 0xf0);
    }
}

/// Reads f32 and writes the upper half of each; `out` starts on a multiple of 64.
pub fn narrow16(x: &[f32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the features were just detected.
        return unsafe { narrow_avx512::<16>(x, out) };
    }
    for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
        let [_, _, low, high] = x.to_le_bytes();
        *out = [low, high];
    }
}

/// Writes an f32 made of each `BITS`-bit code; `out` starts on a multiple of 64. `stream` writes
/// past the caches.
pub fn widen<const BITS: usize>(codes: &[u8], out: &mut [f32], stream: bool) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the features were just detected.
        return unsafe { widen_avx512::<BITS>(codes, out, stream) };
    }
    let _ = stream;
    let per_byte = 8 / BITS.min(8);
    for (values, code) in out.chunks_mut(per_byte).zip(codes.iter().step_by(BITS.div_ceil(8))) {
        values.fill(f32::from_bits(u32::from(*code) << 23));
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn read_avx512(x: &[f32]) -> u32 {
    let mut sums = [_mm512_setzero_si512(); 8];
    for lines in x.as_chunks::<128>().0 {
        for (sum, line) in sums.iter_mut().zip(lines.as_chunks::<16>().0) {
            // SAFETY: `line` is a reference to 64 bytes.
            *sum = _mm512_xor_si512(*sum, unsafe { _mm512_loadu_si512(line.as_ptr().cast()) });
        }
    }
    sums.iter().fold(0, |all, &sum| all ^ _mm512_reduce_or_epi32(sum).cast_unsigned())
}

/// The top bytes of 64 values.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn top_bytes(x: &[f32; 64]) -> __m512i {
    let part = |i: usize| {
        // SAFETY: 16 of the 64 floats are read.
        let v = unsafe { _mm512_loadu_si512(x[16 * i..].as_ptr().cast()) };
        _mm512_cvtepi32_epi8(_mm512_srli_epi32::<24>(v))
    };
    let v = _mm512_castsi128_si512(part(0));
    let v = _mm512_inserti32x4::<1>(v, part(1));
    let v = _mm512_inserti32x4::<2>(v, part(2));
    _mm512_inserti32x4::<3>(v, part(3))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn narrow_avx512<const BITS: usize>(x: &[f32], out: &mut [u8]) {
    assert!(out.as_ptr().align_offset(64) == 0, "the output must start on a cache line");
    assert!(out.len() >= x.len() / 128 * 16 * BITS, "the output must hold all codes");
    for (lines, out) in x.as_chunks::<128>().0.iter().zip(out.chunks_exact_mut(16 * BITS)) {
        for i in 0..8 {
            _mm_prefetch::<_MM_HINT_T0>(lines.as_ptr().cast::<i8>().wrapping_add(AHEAD + 64 * i));
        }
        let put = |at: usize, v: __m512i, out: &mut [u8]| {
            // SAFETY: 64 bytes of `out` from `at` on; it and `at` are multiples of 64.
            unsafe { _mm512_stream_si512(out[at..at + 64].as_mut_ptr().cast(), v) }
        };
        let [first, second] = [0, 64].map(|at| top_bytes(lines[at..].first_chunk().unwrap_or(&[0.0; 64])));
        match BITS {
            4 => {
                let low = _mm512_set1_epi8(15);
                let both = _mm512_or_si512(_mm512_and_si512(first, low), _mm512_andnot_si512(low, second));
                put(0, both, out);
            }
            8 => {
                put(0, first, out);
                put(64, second, out);
            }
            _ => {
                for i in 0..4 {
                    let half = |k: usize| {
                        // SAFETY: 16 of the 128 floats are read.
                        let v = unsafe { _mm512_loadu_si512(lines[32 * i + 16 * k..].as_ptr().cast()) };
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v))
                    };
                    put(64 * i, _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(0)), half(1)), out);
                }
            }
        }
    }
    _mm_sfence();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn widen_avx512<const BITS: usize>(codes: &[u8], out: &mut [f32], stream: bool) {
    assert!(out.as_ptr().align_offset(64) == 0, "the output must start on a cache line");
    for (codes, out) in codes.chunks_exact(8 * BITS).zip(out.as_chunks_mut::<64>().0) {
        for i in 0..4 {
            let v = match BITS {
                16 => {
                    // SAFETY: 32 of the 128 bytes are read.
                    let v = unsafe { _mm256_loadu_si256(codes[32 * i..32 * i + 32].as_ptr().cast()) };
                    _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v))
                }
                8 => {
                    // SAFETY: 16 of the 64 bytes are read.
                    let v = unsafe { _mm_loadu_si128(codes[16 * i..16 * i + 16].as_ptr().cast()) };
                    _mm512_slli_epi32::<23>(_mm512_cvtepu8_epi32(v))
                }
                _ => {
                    // SAFETY: 16 of the 32 bytes are read; each is used twice.
                    let v = unsafe { _mm_loadu_si128(codes[16 * (i / 2)..16 * (i / 2) + 16].as_ptr().cast()) };
                    let v = _mm512_cvtepu8_epi32(v);
                    if i % 2 == 0 { _mm512_slli_epi32::<28>(v) } else { _mm512_slli_epi32::<24>(v) }
                }
            };
            let to = out[16 * i..16 * i + 16].as_mut_ptr().cast();
            // SAFETY: 16 floats of `out`, which starts on a multiple of 64 bytes.
            unsafe {
                if stream {
                    _mm512_stream_si512(to, v);
                } else {
                    _mm512_store_si512(to, v);
                }
            }
        }
    }
    _mm_sfence();
}

/// The part of a buffer that starts on a cache line and holds `len` items.
///
/// # Panics
///
/// When the buffer is not 64 bytes longer than that.
pub fn aligned<T>(buffer: &mut [T], len: usize) -> &mut [T] {
    let start = buffer.as_ptr().align_offset(64);
    &mut buffer[start..start + len]
}

/// Does so many floating-point operations as fused multiply-adds in registers, shared out evenly to the threads of
/// the current rayon pool.
pub fn fma_on_all_threads(operations: f64) {
    let threads = rayon::current_num_threads();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a number of operations"
    )]
    let rounds = (operations / threads as f64 / (2.0 * 16.0 * 12.0)) as u64;
    rayon::broadcast(|_| std::hint::black_box(fma(rounds)));
}

/// Twelve chains of multiply-adds, 16 lanes each.
fn fma(rounds: u64) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the feature was just detected.
        return unsafe { fma_avx512(rounds) };
    }
    let mut sums = [[0.0_f32; 16]; 12];
    let (a, b) = std::hint::black_box((0.5_f32, 1.0_f32));
    for _ in 0..rounds {
        sums.iter_mut().flatten().for_each(|sum| *sum = *sum * a + b);
    }
    sums.iter().flatten().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn fma_avx512(rounds: u64) -> f32 {
    let (a, b) = std::hint::black_box((0.5_f32, 1.0_f32));
    let (a, b) = (_mm512_set1_ps(a), _mm512_set1_ps(b));
    let mut sums = [_mm512_setzero_ps(); 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
}

/// Does so many operations as products of bytes added to 32-bit sums in registers, on this thread.
pub fn byte_products(operations: f64) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of operations")]
    let rounds = (operations / (2.0 * 64.0 * 12.0)) as u64;
    std::hint::black_box(vnni(rounds));
}

/// Does so many operations as fused multiply-adds in registers, on this thread.
pub fn multiply_adds(operations: f64) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of operations")]
    let rounds = (operations / (2.0 * 16.0 * 12.0)) as u64;
    std::hint::black_box(fma(rounds));
}

/// Twelve chains of sums of four products of bytes, 16 lanes each.
fn vnni(rounds: u64) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the features were just detected.
        return unsafe { vnni_avx512(rounds) };
    }
    let mut sums = [[0_i32; 64]; 12];
    let (a, b) = std::hint::black_box((3_i32, 5_i32));
    for _ in 0..rounds {
        sums.iter_mut().flatten().for_each(|sum| *sum = sum.wrapping_add(a * b));
    }
    sums.iter().flatten().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vnni_avx512(rounds: u64) -> i32 {
    let (a, b) = std::hint::black_box((0x0302_0104, 0x05ff_0201));
    let (a, b) = (_mm512_set1_epi32(a), _mm512_set1_epi32(b));
    // Different, or the compiler would find that all chains are one.
    let start: [i32; 12] = std::hint::black_box([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let mut sums = [_mm512_setzero_si512(); 12];
    for (sum, start) in sums.iter_mut().zip(start) {
        *sum = _mm512_set1_epi32(start);
    }
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    sums.iter().fold(0, |all, &sum| all.wrapping_add(_mm512_reduce_add_epi32(sum)))
}

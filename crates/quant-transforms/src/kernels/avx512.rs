//! AVX-512: sixteen values a register, sixteen registers a step.
//!
//! Tiles of 256 neighbours come first: four stages within each register, four between registers. Then sixteen registers
//! that lie 256, 4096 … values apart take four stages at a time, and fewer at the end. A row of 4096 values is read and written
//! twice, in the first-level cache; meanwhile the next row is asked for, half of it in each step, so that memory never waits.

use std::arch::x86_64::*;

/// Values that the first step takes together.
pub(super) const TILE: usize = 256;
const LANES: usize = 16;

/// Transforms each row of `size`, a power of two from [`TILE`] on, and multiplies with `scale`.
#[target_feature(enable = "avx512f")]
pub(super) fn rows(rows: &mut [f32], size: usize, scale: f32) {
    for row in rows.chunks_exact_mut(size) {
        // The last step scales; multiplying with 1 changes no bit.
        let last = |done: usize| if done == size { scale } else { 1.0 };
        let next = row.as_ptr().wrapping_add(size);
        let lines = if size == TILE { LANES } else { LANES / 2 };
        for (i, tile) in row.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
            ask(next, i * lines, lines);
            neighbours(tile, last(TILE));
        }
        let mut distance = TILE;
        while distance < size {
            let step = (size / distance).min(16);
            let next = (distance == TILE).then(|| next.wrapping_add(size / 2));
            match step {
                2 => apart::<2>(row, distance, last(distance * step), next),
                4 => apart::<4>(row, distance, last(distance * step), next),
                8 => apart::<8>(row, distance, last(distance * step), next),
                _ => apart::<16>(row, distance, last(distance * step), next),
            }
            distance *= step;
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(values: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen values are read.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(values: &mut [f32; LANES], register: __m512) {
    // SAFETY: sixteen values are written.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), register) }
}

/// Asks for some lines of what lies at `from`.
#[target_feature(enable = "avx512f")]
#[inline]
fn ask(from: *const f32, first: usize, lines: usize) {
    for line in first..first + lines {
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line * LANES).cast());
    }
}

/// The stages of distances 1 to 128.
#[target_feature(enable = "avx512f")]
#[inline]
fn neighbours(tile: &mut [f32; TILE], scale: f32) {
    let chunks = tile.as_chunks_mut::<LANES>().0;
    let mut registers = [_mm512_setzero_ps(); 16];
    for (register, chunk) in registers.iter_mut().zip(&*chunks) {
        let x = load(chunk);
        let x = swapped(x, _mm512_permute_ps::<0b10_11_00_01>(x), 0b1010_1010_1010_1010);
        let x = swapped(x, _mm512_permute_ps::<0b01_00_11_10>(x), 0b1100_1100_1100_1100);
        let x = swapped(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x), 0b1111_0000_1111_0000);
        *register = swapped(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x), 0b1111_1111_0000_0000);
    }
    butterflies(&mut registers);
    let scale = _mm512_set1_ps(scale);
    for (register, chunk) in registers.iter().zip(chunks) {
        store(chunk, _mm512_mul_ps(*register, scale));
    }
}

/// One stage within a register: sums, and where `high` says so, differences from the partner. A product with ±1 is exact, so
/// that the sum is rounded as any other.
#[target_feature(enable = "avx512f")]
#[inline]
fn swapped(x: __m512, partner: __m512, high: __mmask16) -> __m512 {
    let signs = _mm512_mask_blend_ps(high, _mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
    _mm512_fmadd_ps(x, signs, partner)
}

/// All stages between `N` registers, a power of two up to 16.
#[target_feature(enable = "avx512f")]
#[inline]
fn butterflies<const N: usize>(registers: &mut [__m512; N]) {
    stage::<N, 1>(registers);
    stage::<N, 2>(registers);
    stage::<N, 4>(registers);
    stage::<N, 8>(registers);
}

/// The stage of distance `D`, if there is one; a loop of constant length, so that nothing leaves the registers.
#[target_feature(enable = "avx512f")]
#[inline]
fn stage<const N: usize, const D: usize>(registers: &mut [__m512; N]) {
    if D < N {
        for i in 0..N / 2 {
            let low = i / D * 2 * D + i % D;
            let (a, b) = (registers[low], registers[low + D]);
            registers[low] = _mm512_add_ps(a, b);
            registers[low + D] = _mm512_sub_ps(a, b);
        }
    }
}

/// The stages of distances `distance` to `distance · N / 2`.
#[target_feature(enable = "avx512f")]
#[inline]
fn apart<const N: usize>(row: &mut [f32], distance: usize, scale: f32, next: Option<*const f32>) {
    let scale = _mm512_set1_ps(scale);
    let between = distance / LANES;
    for (i, block) in row.chunks_exact_mut(distance * N).enumerate() {
        let chunks = block.as_chunks_mut::<LANES>().0;
        for first in 0..between {
            if let Some(next) = next {
                ask(next, (i * between + first) * N / 2, N / 2);
            }
            let mut registers = [_mm512_setzero_ps(); N];
            for (index, register) in registers.iter_mut().enumerate() {
                *register = load(&chunks[first + index * between]);
            }
            butterflies(&mut registers);
            for (index, register) in registers.iter().enumerate() {
                store(&mut chunks[first + index * between], _mm512_mul_ps(*register, scale));
            }
        }
    }
}

/// The same products and sums as everywhere, sixteen at a time.
#[target_feature(enable = "avx512f")]
pub(super) fn mix(factor: &[f32], m: usize, block: &mut [f32], strip: &mut [f32]) {
    crate::hadamard::mix(factor, m, block, strip);
}

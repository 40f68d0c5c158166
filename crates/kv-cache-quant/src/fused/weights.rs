//! The weights of attention as integers: products of weights and scales, for [`super::kernels`] to multiply values with.
#![expect(unsafe_code, reason = "loads through pointers, and calls of functions compiled for found instructions")]

use super::avx512::{Avx512, combine_each, store};
use super::ints::{IntPlan, RUN};
use super::kernels::{QUADS, Turned, transpose};
use super::plan::LANES;
use std::arch::x86_64::*;

/// Weights of the rows of a run, and its scales.
pub(super) struct Weights<'a> {
    pub(super) heads: usize,
    pub(super) members: usize,
    /// `[head][member]`, so many from one to the next, for so many rows.
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) count: usize,
    /// `[head][group][RUN]`; no zero points: code 0 stands for the least integer.
    pub(super) scales: &'a [f32],
    pub(super) zeros: &'a [f32],
}

impl Avx512 {
    /// Rounds what [`Self::weigh_integers`] multiplies with: of a run, for all heads.
    pub(super) fn quantize_weights(self, plan: &IntPlan, weights: &Weights<'_>, turned: &mut Turned) {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe { quantize_weights_of(plan, weights, turned) }
    }
}

/// Products of weights and scales as integers, and the part of the values of code 0: of groups of rows of all heads, sixteen at a
/// time, so that none waits for the steps of the one before.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn quantize_weights_of(plan: &IntPlan, weights: &Weights<'_>, turned: &mut Turned) {
    let items = weights.heads * weights.members;
    let sixteens = items.div_ceil(plan.items());
    let item_words = plan.parts * QUADS;
    turned.weights.resize(if plan.blocks == 1 { items } else { sixteens * LANES } * item_words, 0);
    turned.steps.resize(sixteens, [0.0; LANES]);
    turned.parts.resize(items * LANES, 0.0);
    // Rounding counts for what numbers differ from the one in the middle.
    let least = plan.integers.least;
    let middle = plan.integers.middle - least;
    let masks: [u16; RUN / LANES] = std::array::from_fn(|at| {
        let beyond = (at + 1) * LANES - weights.count.clamp(at * LANES, (at + 1) * LANES);
        u16::MAX.checked_shr(u32::try_from(beyond).unwrap_or(0)).unwrap_or(0)
    });
    // Items, groups of theirs, and where scales are.
    let mut groups = Vec::with_capacity(items * plan.blocks);
    for head in 0..weights.heads {
        for item in head * weights.members..(head + 1) * weights.members {
            groups.extend((0..plan.blocks).map(|block| (item, block, (head * plan.blocks + block) * RUN)));
        }
    }
    // Of each group of sixteen; what is left of those before matters to no group.
    let mut products = [[_mm512_setzero_ps(); RUN / LANES]; LANES];
    let mut largest = [_mm512_setzero_ps(); LANES];
    let mut parts = [_mm512_setzero_ps(); LANES];
    let mut words = [[_mm512_setzero_si512(); LANES]; 2];
    for (sixteen, groups) in groups.chunks(plan.items() * plan.blocks).enumerate() {
        for (index, &(item, _, place)) in groups.iter().enumerate() {
            let own = &weights.values[item * weights.stride..][..weights.count];
            let mut part = _mm512_setzero_ps();
            for (at, product) in products[index].iter_mut().enumerate() {
                let (from, mask) = (at * LANES, masks[at]);
                // SAFETY: the mask names weights that there are, and as many scales and zero points.
                unsafe {
                    let own = _mm512_maskz_loadu_ps(mask, own.as_ptr().wrapping_add(from));
                    let scales = &weights.scales[place..place + RUN];
                    *product = _mm512_mul_ps(own, _mm512_maskz_loadu_ps(mask, scales.as_ptr().add(from)));
                    if !weights.zeros.is_empty() {
                        let zeros = &weights.zeros[place..place + RUN];
                        let zeros = _mm512_maskz_loadu_ps(mask, zeros.as_ptr().add(from));
                        part = _mm512_fmadd_ps(own, zeros, part);
                    }
                }
            }
            let [a, b, c, d] = products[index].map(|product| _mm512_abs_ps(product));
            largest[index] = _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
            parts[index] = part;
        }
        let largest = combine_each(&largest, |a, b| _mm512_max_ps(a, b));
        // A step whose reciprocal is not finite belongs to weights that are nothing.
        let most = plan.most_steps();
        let enough = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(largest, _mm512_set1_ps(f32::MIN_POSITIVE * most));
        let step = _mm512_div_ps(largest, _mm512_set1_ps(most));
        let steps = &mut turned.steps[sixteen];
        store(_mm512_maskz_mov_ps(enough, step), steps);
        let mut inverses = [0.0_f32; LANES];
        store(_mm512_maskz_div_ps(enough, _mm512_set1_ps(1.0), step), &mut inverses);
        for index in 0..groups.len() {
            let inverse = _mm512_set1_ps(inverses[index]);
            let n = products[index].map(|product| _mm512_cvtps_epi32(_mm512_mul_ps(product, inverse)));
            if plan.parts == 1 {
                words[0][index] = bytes(n);
            } else {
                [words[0][index], words[1][index]] = split_pairs(n);
            }
            let total = _mm512_add_epi32(_mm512_add_epi32(n[0], n[1]), _mm512_add_epi32(n[2], n[3]));
            let [a, b, c, d] = products[index];
            let mass = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            let lost = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(steps[index]), mass);
            parts[index] = _mm512_fmadd_ps(mass, _mm512_set1_ps(least), parts[index]);
            parts[index] = _mm512_fmadd_ps(lost, _mm512_set1_ps(middle), parts[index]);
        }
        let mut sums = [0.0_f32; LANES];
        store(combine_each(&parts, |a, b| _mm512_add_ps(a, b)), &mut sums);
        for (&(item, block, _), sum) in groups.iter().zip(sums) {
            turned.parts[item * LANES + block] = sum;
        }
        let out = turned.weights[sixteen * LANES * item_words..].as_chunks_mut().0;
        if plan.blocks == 1 {
            for (index, out) in out.chunks_exact_mut(plan.parts).enumerate().take(groups.len()) {
                out.iter_mut().zip(&words).for_each(|(out, words)| store_words(words[index], out));
            }
        } else {
            for (words, out) in words.iter().zip(out.chunks_exact_mut(LANES)).take(plan.parts) {
                transpose(words).into_iter().zip(out).for_each(|(words, out)| store_words(words, out));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_words(words: __m512i, out: &mut [i32; LANES]) {
    // SAFETY: 16 words.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), words) }
}

/// Numbers of 8 bits, in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn bytes(n: [__m512i; RUN / LANES]) -> __m512i {
    let bytes = _mm512_packs_epi16(_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3]));
    // Four of number `4 v + l` are word `v` of quarter `l`.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, bytes)
}

/// High and low bytes of numbers of 16 bits: of each four, the high ones, then the low ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split_pairs(n: [__m512i; RUN / LANES]) -> [__m512i; 2] {
    let words = [_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3])];
    let high = words.map(|x| _mm512_srai_epi16::<8>(_mm512_add_epi16(x, _mm512_set1_epi16(128))));
    // The low byte of what is left is that of the number.
    let low = words.map(|x| _mm512_and_si512(x, _mm512_set1_epi16(0xff)));
    let (high, low) = (_mm512_packs_epi16(high[0], high[1]), _mm512_packus_epi16(low[0], low[1]));
    // Four of number `4 v + l` are word `v` of quarter `l`.
    let first = _mm512_setr_epi32(0, 16, 4, 20, 8, 24, 12, 28, 1, 17, 5, 21, 9, 25, 13, 29);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
    [_mm512_permutex2var_epi32(high, first, low), _mm512_permutex2var_epi32(high, second, low)]
}

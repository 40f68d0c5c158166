//! Scores to weights, relative to the largest score.
#![expect(unsafe_code, reason = "loads through pointers, and calls of functions compiled for found instructions")]

use super::avx512::{Avx512, store};
use super::plan::LANES;
use std::arch::x86_64::*;

impl Avx512 {
    /// Turns scores, of whole sixteens of tokens, into `e^(score − top)`, where `top` is the largest: top and sum of the weights.
    /// Scores of −∞ become 0.
    pub(super) fn weigh_scores(self, scores: &mut [f32]) -> (f32, f32) {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe { weigh_scores_of(scores.as_chunks_mut().0) }
    }
}

#[target_feature(enable = "avx512f,avx512dq")]
fn weigh_scores_of(scores: &mut [[f32; LANES]]) -> (f32, f32) {
    // SAFETY: 16 floats.
    let load = |scores: &[f32; LANES]| unsafe { _mm512_loadu_ps(scores.as_ptr()) };
    let mut tops = _mm512_set1_ps(f32::NEG_INFINITY);
    for scores in &*scores {
        tops = _mm512_max_ps(tops, load(scores));
    }
    let top = _mm512_reduce_max_ps(tops);
    let origin = _mm512_set1_ps(if top == f32::NEG_INFINITY { 0.0 } else { top });
    let mut sums = _mm512_setzero_ps();
    for scores in scores {
        let weights = exp(_mm512_sub_ps(load(scores), origin));
        sums = _mm512_add_ps(sums, weights);
        store(weights, scores);
    }
    (top, _mm512_reduce_add_ps(sums))
}

/// `e^x` for `x ≤ 0`, zero below −87: relative error under 2⁻²².
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp(x: __m512) -> __m512 {
    let all = |x: f32| _mm512_set1_ps(x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        _mm512_max_ps(x, all(-87.0)),
        all(std::f32::consts::LOG2_E),
    ));
    // ln 2 in two parts, of which n times the first is exact.
    let r = _mm512_fnmadd_ps(n, all(0.693_145_75), _mm512_max_ps(x, all(-87.0)));
    let r = _mm512_fnmadd_ps(n, all(1.428_606_8e-6), r);
    let mut p = all(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = _mm512_fmadd_ps(p, r, all(c));
    }
    let near = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, all(-87.0));
    _mm512_maskz_scalef_ps(near, p, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_units_of_the_last_place() {
        let Some(kernels) = Avx512::detect() else { return };
        for first in (0..870_000_u32).step_by(15) {
            // Relative to the first, 0.
            let mut scores = [0.0_f32; LANES];
            #[expect(clippy::cast_possible_truncation, reason = "test points")]
            scores.iter_mut().zip(0..).skip(1).for_each(|(x, i)| *x = -(f64::from(first + i - 1) / 10_000.0) as f32);
            let before = scores;
            kernels.weigh_scores(&mut scores);
            for (x, got) in before.into_iter().zip(scores) {
                let exact = f64::from(x).exp();
                assert!((f64::from(got) - exact).abs() <= exact * 2.4e-7, "{x}: {got} for {exact}");
            }
        }
        let mut far = [0.0; LANES];
        (far[1], far[2]) = (-88.0, f32::NEG_INFINITY);
        kernels.weigh_scores(&mut far);
        assert_eq!(far[..4], [1.0, 0.0, 0.0, 1.0], "what is far below is nothing");
    }

    #[test]
    fn weights_are_relative_to_the_largest_score() {
        let Some(kernels) = Avx512::detect() else { return };
        let mut scores: Vec<f32> = (0..64_u16).map(|i| f32::from(i * 37 % 64) / 8.0).collect();
        scores.iter_mut().skip(1).step_by(3).for_each(|score| *score = f32::NEG_INFINITY);
        let before = scores.clone();
        let (top, sum) = kernels.weigh_scores(&mut scores);
        assert_eq!(top, before.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let expected: Vec<f32> = before.iter().map(|score| (score - top).exp()).collect();
        let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(scores.iter().zip(&expected).all(|(a, b)| close(*a, *b)), "{scores:?} for {expected:?}");
        assert!(close(sum / 20.0, expected.iter().sum::<f32>() / 20.0), "{sum}");
        let mut hidden = [f32::NEG_INFINITY; 32];
        let found = kernels.weigh_scores(&mut hidden);
        assert_eq!((hidden, found), ([0.0; 32], (f32::NEG_INFINITY, 0.0)), "nothing is seen");
    }
}

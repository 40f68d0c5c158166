//! Scores to weights, `[token][member]`, relative to the largest score of each member.
#![expect(unsafe_code, reason = "calls of functions compiled for instruction sets found at run time")]

use super::plan::LANES;
use crate::kernels::for_each_isa;
use quant_core::kernels::Isa;

/// `e^x` for `x ≤ 0`, zero below −87: relative error under 2⁻²².
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding the constant rounds to an integer and leaves it, plus 127, in the low bits.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let kept = if x > -87.0 { x } else { -87.0 };
    let rounded = kept * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (kept - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let power = f32::from_bits(rounded.to_bits() << 23);
    if x > -87.0 { p * power } else { 0.0 }
}

/// Members that share a pack at most.
const MOST_MEMBERS: usize = 4;

for_each_isa! {
    /// Turns scores, of whole sixteens of tokens, into `e^(score − top)`, where `top` is the largest score of the member;
    /// the first `members` of tops and sums count. Scores of −∞ become 0. What is done to a member does not depend on how
    /// many there are.
    fn weigh_scores(scores: &mut [f32], members: usize, tops: &mut [f32; LANES], sums: &mut [f32; LANES]) {
        // Sixteen tokens at a time, which are as many registers as there are members.
        let mut lanes = [[f32::NEG_INFINITY; LANES]; MOST_MEMBERS];
        for tokens in scores.chunks_exact(LANES * members) {
            for (tops, scores) in lanes.iter_mut().zip(tokens.as_chunks::<LANES>().0) {
                tops.iter_mut().zip(scores).for_each(|(top, &score)| *top = if score > *top { score } else { *top });
            }
        }
        combine(&mut lanes, members, f32::max, tops);
        let origins = tops.map(|top| if top == f32::NEG_INFINITY { 0.0 } else { top });
        lanes = [[0.0; LANES]; MOST_MEMBERS];
        for tokens in scores.chunks_exact_mut(LANES * members) {
            for (sums, scores) in lanes.iter_mut().zip(tokens.as_chunks_mut::<LANES>().0) {
                for lane in 0..LANES {
                    scores[lane] = exp(scores[lane] - origins[lane]);
                    sums[lane] += scores[lane];
                }
            }
        }
        combine(&mut lanes, members, |a, b| a + b, sums);
    }
}

/// Combines sixteen tokens of each member, in a fixed order; lane `i` of the result is member `i % members`.
#[inline(always)]
fn combine(
    lanes: &mut [[f32; LANES]; MOST_MEMBERS],
    members: usize,
    both: impl Fn(f32, f32) -> f32,
    out: &mut [f32; LANES],
) {
    let lanes = lanes.as_flattened_mut();
    let mut width = LANES / 2 * members;
    while width >= members {
        for lane in 0..width {
            lanes[lane] = both(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    *out = std::array::from_fn(|lane| lanes[lane % members]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_units_of_the_last_place() {
        for i in 0..870_000_u32 {
            let x = -(f64::from(i) / 10_000.0);
            #[expect(clippy::cast_possible_truncation, reason = "a test point")]
            let (got, exact) = (f64::from(exp(x as f32)), f64::from(x as f32).exp());
            assert!((got - exact).abs() <= exact * 2.4e-7, "{x}: {got} for {exact}");
        }
        assert_eq!([exp(-88.0), exp(f32::NEG_INFINITY)], [0.0; 2], "what is far below is nothing");
    }

    #[test]
    fn weights_of_each_member_are_relative_to_its_largest_score() {
        for members in [1, 2, 4] {
            let mut scores: Vec<f32> = (0..64_u8).map(|i| f32::from(i * 37 % 64) / 8.0).collect();
            scores.iter_mut().skip(members).step_by(members).for_each(|score| *score = f32::NEG_INFINITY);
            let before = scores.clone();
            let (mut tops, mut sums) = ([0.0; LANES], [0.0; LANES]);
            weigh_scores(&mut scores, members, &mut tops, &mut sums);
            for member in 0..members {
                let own = |all: &[f32]| -> Vec<f32> { all.iter().skip(member).step_by(members).copied().collect() };
                let top = own(&before).into_iter().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(tops[member], top, "top of member {member} of {members}");
                let expected: Vec<f32> = own(&before).iter().map(|score| (score - top).exp()).collect();
                let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
                assert!(own(&scores).iter().zip(&expected).all(|(a, b)| close(*a, *b)), "weights of {member}");
                assert!(close(sums[member], expected.iter().sum()), "sum of {member} of {members}");
            }
        }
    }
}

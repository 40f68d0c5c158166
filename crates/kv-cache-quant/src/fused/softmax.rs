//! Scores to weights, relative to the largest score.
#![expect(unsafe_code, reason = "calls of functions compiled for instruction sets found at run time")]

use super::plan::LANES;
use crate::generated::isa::for_each_isa;

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

for_each_isa! {
    /// Turns scores, of whole sixteens of tokens, into `e^(score − top)`, where `top` is the largest. Scores of −∞ become 0.
    fn weigh_scores(scores: &mut [f32], top: &mut f32, sum: &mut f32) {
        let (scores, _) = scores.as_chunks_mut::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for scores in &*scores {
            lanes.iter_mut().zip(scores).for_each(|(top, &score)| *top = if score > *top { score } else { *top });
        }
        *top = combine(lanes, |a, b| if a > b { a } else { b });
        let origin = if *top == f32::NEG_INFINITY { 0.0 } else { *top };
        lanes = [0.0; LANES];
        for scores in scores {
            for lane in 0..LANES {
                scores[lane] = exp(scores[lane] - origin);
                lanes[lane] += scores[lane];
            }
        }
        *sum = combine(lanes, |a, b| a + b);
    }
}

/// Combines lanes in a fixed order.
#[inline(always)]
fn combine(mut lanes: [f32; LANES], both: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = both(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
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
    fn weights_are_relative_to_the_largest_score() {
        let mut scores: Vec<f32> = (0..64_u8).map(|i| f32::from(i * 37 % 64) / 8.0).collect();
        scores.iter_mut().skip(1).step_by(3).for_each(|score| *score = f32::NEG_INFINITY);
        let before = scores.clone();
        let (mut top, mut sum) = (0.0, 0.0);
        weigh_scores(&mut scores, &mut top, &mut sum);
        assert_eq!(top, before.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let expected: Vec<f32> = before.iter().map(|score| (score - top).exp()).collect();
        let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(scores.iter().zip(&expected).all(|(a, b)| close(*a, *b)), "{scores:?} for {expected:?}");
        assert!(close(sum / 20.0, expected.iter().sum::<f32>() / 20.0), "{sum}");
        let mut hidden = [f32::NEG_INFINITY; 32];
        weigh_scores(&mut hidden, &mut top, &mut sum);
        assert_eq!((hidden, top, sum), ([0.0; 32], f32::NEG_INFINITY, 0.0), "nothing is seen");
    }
}

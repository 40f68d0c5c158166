//! Rotary frequencies and turns against closed forms and tables computed by hand.

use quant_models::{Rope, RopeScaling};

fn rope(scaling: RopeScaling) -> Rope {
    Rope { theta: 10_000.0, rotary_dim: 8, scaling }
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "as many frequencies");
    for (f, e) in found.iter().zip(expected) {
        assert!((f / e - 1.0).abs() < 1e-12, "{found:?} instead of {expected:?}");
    }
}

#[test]
fn plain_frequencies_are_powers_of_the_base() {
    close(&rope(RopeScaling::Default).frequencies(100), &[1.0, 0.1, 0.01, 0.001]);
}

#[test]
fn linear_scaling_divides_every_frequency() {
    close(&rope(RopeScaling::Linear { factor: 4.0 }).frequencies(100), &[0.25, 0.025, 0.0025, 0.00025]);
}

#[test]
fn dynamic_scaling_begins_beyond_the_original_length() {
    let rope = rope(RopeScaling::Dynamic { factor: 2.0, original_positions: 100 });
    close(&rope.frequencies(100), &[1.0, 0.1, 0.01, 0.001]);
    // 2·300/100 − 1 = 5, and the exponent is 8/6: the base grows by 5^(4/3), the last frequency falls by 5^(4/3·3/4) = 5.
    let grown = 5.0_f64.powf(1.0 / 3.0);
    close(&rope.frequencies(300), &[1.0, 0.1 / grown, 0.01 / grown.powi(2), 0.001 / 5.0]);
}

#[test]
fn llama3_scaling_keeps_short_waves_divides_long_ones_and_blends_between() {
    let tau = std::f64::consts::TAU;
    // Wavelengths are 2π·10^k: short below 1000/4 = 250, long above 1000/1.
    let rope = rope(RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_positions: 1000,
    });
    let kept = (1000.0 / (tau * 100.0) - 1.0) / 3.0;
    close(&rope.frequencies(4), &[1.0, 0.1, 0.01 * ((1.0 - kept) / 8.0 + kept), 0.001 / 8.0]);
}

#[test]
fn yarn_ramps_between_whole_indices_and_raises_the_temperature() {
    let yarn = |truncate, attention_factor, mscale, mscale_all_dim| {
        rope(RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_positions: 2048,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        })
    };
    // Turn counts 32 and 1 fall on indices ln(2048/(32·2π))/ln(10) = 1.008 and ln(2048/2π)/ln(10) = 2.513: the ramp
    // runs from 1 to 3, so frequency 2 is half kept and half divided.
    close(&yarn(true, None, None, None).frequencies(9), &[1.0, 0.1, 0.01 * (0.5 + 0.125), 0.001 / 4.0]);
    let (low, high) = ((2048.0 / (32.0 * std::f64::consts::TAU)).log10(), (2048.0 / std::f64::consts::TAU).log10());
    let ramp = (2.0 - low) / (high - low);
    close(&yarn(false, None, None, None).frequencies(9), &[1.0, 0.1, 0.01 * (1.0 - ramp + ramp / 4.0), 0.001 / 4.0]);

    let factor = |rope: Rope| rope.attention_factor();
    assert!(
        (factor(yarn(true, None, None, None)) - (0.1 * 4.0_f64.ln() + 1.0)).abs() < 1e-15,
        "derived from the factor"
    );
    assert_eq!(factor(yarn(true, Some(1.5), None, None)), 1.5, "given");
    let both = (0.2 * 4.0_f64.ln() + 1.0) / (0.05 * 4.0_f64.ln() + 1.0);
    assert!((factor(yarn(true, None, Some(2.0), Some(0.5))) - both).abs() < 1e-15, "the quotient of both");
    assert_eq!(factor(rope(RopeScaling::Default)), 1.0, "others leave lengths alone");
}

#[test]
fn a_turn_by_a_right_angle_swaps_the_halves_of_a_head() {
    let rope =
        Rope { theta: 10_000.0, rotary_dim: 2, scaling: RopeScaling::Linear { factor: std::f64::consts::FRAC_2_PI } };
    // One position is π/2 here: (a, b) becomes (−b, a); the third element is outside the rotary part.
    let mut head = [3.0, 5.0, 7.0];
    rope.table(0, 2).turn(1, 3, &mut head);
    assert!((head[0] + 5.0).abs() < 1e-6 && (head[1] - 3.0).abs() < 1e-6, "{head:?}");
    assert_eq!(head[2], 7.0, "elements beyond the rotary part stay");
}

#[test]
fn a_table_that_starts_later_holds_the_same_turns() {
    let rope = rope(RopeScaling::Default);
    let (mut a, mut b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    rope.table(0, 10).turn(9, 8, &mut a);
    rope.table(9, 10).turn(9, 8, &mut b);
    assert_eq!(a, b, "position 9 is the same in both");
}

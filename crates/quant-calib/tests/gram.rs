//! The Gram matrix against the plain sum, and its promises.

use ndarray::Array2;
use proptest::prelude::*;
use quant_calib::{Error, Gram};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.next_u32() as f32 / 4e9 * 4.0 - 2.0).collect()
}

fn gram(rows: &[f32], features: usize, weights: Option<&[f32]>) -> Gram {
    let mut gram = Gram::new(features);
    gram.add(rows, weights).unwrap();
    gram
}

/// Largest error, relative to the geometric mean of the two diagonal elements.
fn error(found: &Array2<f64>, expected: &Array2<f64>) -> f64 {
    let scale = |i: usize, j: usize| (expected[[i, i]] * expected[[j, j]]).sqrt().max(f64::MIN_POSITIVE);
    found.indexed_iter().fold(0.0, |most, ((i, j), v)| most.max((v - expected[[i, j]]).abs() / scale(i, j)))
}

#[test]
fn the_matrix_is_the_plain_sum() {
    for (features, tokens) in [(1, 1), (3, 5), (17, 511), (64, 512), (65, 513), (300, 1300)] {
        let rows = values(features * tokens, 1);
        let expected = Gram::reference(&rows, features, None).unwrap();
        let found = gram(&rows, features, None);
        assert!(error(&found.matrix(), &expected) < 2e-6, "{features} features, {tokens} tokens");
        assert_eq!(found.tokens(), tokens as u64);
        assert_eq!(found.weight_sum(), tokens as f64);
    }
}

#[test]
fn the_matrix_is_symmetric_to_the_bit_and_its_diagonal_is_the_diagonal() {
    let gram = gram(&values(300 * 700, 2), 300, None);
    let matrix = gram.matrix();
    assert_eq!(matrix, matrix.t());
    for (found, expected) in gram.diagonal().iter().zip(matrix.diag()) {
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn weights_multiply_the_products_of_their_token() {
    let (features, tokens) = (20, 600);
    let rows = values(features * tokens, 3);
    let weights: Vec<f32> = values(tokens, 4).iter().map(|w| w.abs()).collect();
    let found = gram(&rows, features, Some(&weights));
    let expected = Gram::reference(&rows, features, Some(&weights)).unwrap();
    assert!(error(&found.matrix(), &expected) < 2e-6, "weighted");
    assert!((found.weight_sum() - weights.iter().map(|&w| f64::from(w)).sum::<f64>()).abs() < 1e-9, "sum of weights");
    assert_eq!(gram(&rows, features, Some(&vec![1.0; tokens])), gram(&rows, features, None));
}

#[test]
fn a_weight_of_two_counts_a_token_twice() {
    let once = gram(&[1.0, -3.0], 2, Some(&[4.0]));
    let twice = gram(&[1.0, -3.0, 1.0, -3.0, 1.0, -3.0, 1.0, -3.0], 2, None);
    assert_eq!(once.matrix(), twice.matrix());
    assert_eq!((once.tokens(), once.weight_sum()), (1, 4.0));
}

#[test]
fn tokens_of_weight_zero_are_counted_and_change_nothing() {
    let mut found = gram(&[1.0, 2.0], 2, None);
    let before = found.matrix();
    found.add(&[9.0, 9.0], Some(&[0.0])).unwrap();
    assert_eq!((found.matrix(), found.tokens(), found.weight_sum()), (before, 2, 1.0));
}

#[test]
fn products_that_overflow_f32_are_right() {
    let rows = [1e30_f32, -2e30, 3e38, 1.0, 0.0, f32::MAX];
    let expected = Gram::reference(&rows, 3, None).unwrap();
    assert!(error(&gram(&rows, 3, None).matrix(), &expected) < 1e-6, "large");
    let rows = [1e-30_f32, -2e-30, 3e-30, 1e-31, 0.0, 1e-29];
    let expected = Gram::reference(&rows, 3, None).unwrap();
    assert!(error(&gram(&rows, 3, None).matrix(), &expected) < 1e-6, "small");
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let rows = values(520 * 1100, 5);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| gram(&rows, 520, None).matrix())
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn merging_adds_what_was_gathered_apart() {
    let (features, tokens) = (40, 1500);
    let rows = values(features * tokens, 6);
    let whole = Gram::reference(&rows, features, None).unwrap();
    for cut in [0, 1, 512, 700, 1024, 1500] {
        let (a, b) = rows.split_at(cut * features);
        let mut merged = gram(a, features, None);
        merged.merge(&gram(b, features, None)).unwrap();
        assert!(error(&merged.matrix(), &whole) < 2e-6, "cut at {cut}");
        assert_eq!((merged.tokens(), merged.weight_sum()), (1500, 1500.0));
    }
}

#[test]
fn channels_without_a_value_are_dead() {
    let mut found = Gram::new(4);
    assert_eq!(found.dead_channels(), [0, 1, 2, 3]);
    found.add(&[0.0, 1.0, 0.0, -1e-20], None).unwrap();
    assert_eq!(found.dead_channels(), [0, 2]);
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let mut found = gram(&[1.0, 2.0], 2, None);
    let before = found.clone();
    let refused = [
        (found.add(&[1.0, 2.0, 3.0], None), Error::Width { features: 2, found: 3 }),
        (found.add(&[1.0, 2.0], Some(&[1.0, 1.0])), Error::WeightCount { rows: 1, found: 2 }),
        (found.add(&[1.0, 2.0], Some(&[-1.0])), Error::Weight { row: 0, value: -1.0 }),
        (found.add(&[1.0, 2.0, 3e38, 1.0], Some(&[1.0, 4.0])), Error::Weight { row: 1, value: 4.0 }),
        (
            found.add(&[1.0, 2.0, 3.0, f32::INFINITY], None),
            Error::NonFinite { row: 1, channel: 1, value: f32::INFINITY },
        ),
        (found.merge(&Gram::new(3)), Error::Features { features: 2, found: 3 }),
        (Gram::new(0).add(&[1.0], None), Error::Width { features: 0, found: 1 }),
    ];
    for (result, expected) in refused {
        assert_eq!(result, Err(expected));
    }
    assert!(matches!(found.add(&[f32::NAN, 0.0], None), Err(Error::NonFinite { row: 0, channel: 0, .. })), "NaN");
    assert_eq!(found, before);
}

#[test]
fn a_matrix_beyond_the_address_space_is_refused() {
    assert_eq!(Gram::new(usize::MAX).add(&[], None), Err(Error::TooLarge { features: usize::MAX }));
}

proptest! {
    #[test]
    fn cutting_the_tokens_into_calls_changes_no_bit(
        features in 1_usize..40,
        cuts in prop::collection::vec(0_usize..700, 1..6),
        seed in any::<u64>(),
        weighted in any::<bool>(),
    ) {
        let tokens: usize = cuts.iter().sum();
        let rows = values(features * tokens, seed);
        let weights: Vec<f32> = values(tokens, seed ^ 1).iter().map(|w| w.abs()).collect();
        let whole = gram(&rows, features, weighted.then_some(&weights));
        let (mut pieces, mut at) = (Gram::new(features), 0);
        for cut in cuts {
            let part = weighted.then(|| &weights[at..at + cut]);
            pieces.add(&rows[at * features..(at + cut) * features], part).unwrap();
            at += cut;
        }
        prop_assert_eq!(whole.matrix(), pieces.matrix());
    }

    #[test]
    fn the_quadratic_form_is_the_energy_of_the_output(features in 1_usize..12, tokens in 1_usize..30, seed in any::<u64>()) {
        let rows = values(features * tokens, seed);
        let w: Vec<f64> = values(features, seed ^ 2).iter().map(|&w| f64::from(w)).collect();
        let outputs = rows.chunks(features).map(|x| x.iter().zip(&w).map(|(&x, w)| f64::from(x) * w).sum::<f64>());
        let energy: f64 = outputs.map(|y| y * y).sum();
        let matrix = gram(&rows, features, None).matrix();
        let form: f64 = matrix.indexed_iter().map(|((i, j), g)| w[i] * g * w[j]).sum();
        prop_assert!((form - energy).abs() <= 1e-5 * (matrix.diag().sum() * w.iter().map(|w| w * w).sum::<f64>()));
    }
}

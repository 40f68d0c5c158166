//! Channels, quantiles, samples and what holds them together.

use proptest::prelude::*;
use quant_calib::{ChannelStats, Error, GatePower, Gram, Needs, QuantileNeeds, QuantileSketch, Reservoir, Statistics};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.next_u32() as f32 / 4e9 * 4.0 - 2.0).collect()
}

fn channels(rows: &[f32], features: usize) -> ChannelStats {
    let mut stats = ChannelStats::new(features);
    stats.add(rows).unwrap();
    stats
}

#[test]
fn variance_survives_a_large_mean() {
    let rows: Vec<f32> = (0..1000).map(|i| 1e6 + (i % 2) as f32).collect();
    let stats = channels(&rows, 1);
    assert_eq!(stats.mean(), [1e6 + 0.5]);
    assert_eq!(stats.variance(), [0.25]);
}

#[test]
fn merged_channels_are_those_of_all_tokens() {
    let rows: Vec<f32> = values(7 * 90, 1).iter().enumerate().map(|(i, v)| v + (i / 300) as f32 * 50.0).collect();
    let whole = channels(&rows, 7);
    for cut in [0, 1, 40, 89, 90] {
        let mut merged = channels(&rows[..7 * cut], 7);
        merged.merge(&channels(&rows[7 * cut..], 7)).unwrap();
        assert_eq!((merged.min(), merged.max(), merged.tokens()), (whole.min(), whole.max(), 90));
        for (found, expected) in [
            (merged.mean(), whole.mean()),
            (merged.abs_mean(), whole.abs_mean()),
            (merged.variance(), whole.variance()),
        ] {
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found} {expected}");
            }
        }
    }
}

#[test]
fn channels_without_tokens_have_no_range_and_no_moments() {
    let stats = ChannelStats::new(2);
    assert_eq!(stats.absmax(), [0.0, 0.0]);
    assert_eq!((stats.mean(), stats.variance()), (vec![0.0, 0.0], vec![0.0, 0.0]));
    assert_eq!(stats.dead_channels(), [0, 1]);
    assert_eq!(stats.min(), [f32::INFINITY; 2]);
}

proptest! {
    #[test]
    fn cutting_the_tokens_changes_no_bit_of_anything(
        features in 1_usize..9,
        cuts in prop::collection::vec(0_usize..40, 1..6),
        seed in any::<u64>(),
    ) {
        let tokens: usize = cuts.iter().sum();
        let rows = values(features * tokens, seed);
        let quantiles = Some(QuantileNeeds { per_channel: true, ..QuantileNeeds::default() });
        let needs = Needs { channels: true, quantiles, reservoir: Some(5), seed, ..Needs::gram() };
        let mut whole = Statistics::new(features, &needs).unwrap();
        whole.add(&rows, None).unwrap();
        let (mut pieces, mut at) = (Statistics::new(features, &needs).unwrap(), 0);
        for cut in cuts {
            pieces.add(&rows[at * features..(at + cut) * features], None).unwrap();
            at += cut;
        }
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values_to_the_stated_error(
        values in prop::collection::vec(prop_oneof![-1e30_f32..1e30, -1.0_f32..1.0, -1e-30_f32..1e-30, Just(0.0)], 1..300),
        q in 0.0_f64..=1.0,
        bits in 0_u32..=12,
    ) {
        let mut sketch = QuantileSketch::of_all(1, bits).unwrap();
        sketch.add(&values).unwrap();
        let nearest = |mut sorted: Vec<f32>| {
            sorted.sort_by(f32::total_cmp);
            let rank = q * sorted.len() as f64;
            let above = (1..sorted.len()).find(|&n| n as f64 >= rank);
            sorted[above.unwrap_or(sorted.len()) - 1]
        };
        let bound = |expected: f32| f64::from(expected.abs()) / f64::from(2_u32 << bits) * 1.000_001 + 1e-44;
        let expected = nearest(values.clone());
        let found = sketch.quantile(0, q).unwrap();
        prop_assert!((f64::from(found) - f64::from(expected)).abs() <= bound(expected), "{} {}", found, expected);
        let expected = nearest(values.iter().map(|v| v.abs()).collect());
        let found = sketch.abs_quantile(0, q).unwrap();
        prop_assert!((f64::from(found) - f64::from(expected)).abs() <= bound(expected), "{} {}", found, expected);
    }

    #[test]
    fn merging_sketches_is_exact(a in prop::collection::vec(-9.0_f32..9.0, 0..60), b in prop::collection::vec(-9.0_f32..9.0, 0..60)) {
        let of = |values: &[f32]| {
            let mut sketch = QuantileSketch::of_all(1, 5).unwrap();
            sketch.add(values).unwrap();
            sketch
        };
        let (mut ab, mut ba) = (of(&a), of(&b));
        ab.merge(&of(&b)).unwrap();
        ba.merge(&of(&a)).unwrap();
        let both = of(&[a, b].concat());
        for q in [0.0, 0.1, 0.5, 0.9, 1.0] {
            prop_assert_eq!(ab.quantile(0, q), both.quantile(0, q));
            prop_assert_eq!(ba.quantile(0, q), both.quantile(0, q));
        }
    }
}

#[test]
fn channels_have_quantiles_of_their_own_where_asked() {
    let rows: Vec<f32> = (0..1000).flat_map(|i| [i as f32, -(i as f32) * 10.0]).collect();
    let mut each = QuantileSketch::of_channels(2, 8).unwrap();
    each.add(&rows).unwrap();
    assert_eq!(each.channels(), 2);
    let near = |found: Option<f32>, expected: f32| (found.unwrap() / expected - 1.0).abs() < 0.003;
    assert!(near(each.quantile(0, 0.5), 499.0), "{:?}", each.quantile(0, 0.5));
    assert!(near(each.quantile(1, 0.01), -9900.0), "{:?}", each.quantile(1, 0.01));
    assert!(near(each.abs_quantile(1, 0.99), 9890.0), "{:?}", each.abs_quantile(1, 0.99));
    assert_eq!((each.quantile(2, 0.5), each.quantile(0, 1.5), each.quantile(0, f64::NAN)), (None, None, None));
}

fn reservoir(rows: &[f32], features: usize, capacity: usize, seed: u64) -> Reservoir {
    let mut reservoir = Reservoir::new(features, capacity, seed);
    reservoir.add(rows, None).unwrap();
    reservoir
}

#[test]
fn a_reservoir_that_is_not_full_holds_every_token_once() {
    let rows: Vec<f32> = (0..20).map(|i| i as f32).collect();
    let mut kept = reservoir(&rows, 1, 64, 3).rows();
    kept.sort_by(f32::total_cmp);
    assert_eq!(kept, rows);
}

#[test]
fn the_first_rows_are_the_sample_of_a_smaller_reservoir() {
    let rows = values(2 * 500, 9);
    let large = reservoir(&rows, 2, 100, 4).rows();
    let small = reservoir(&rows, 2, 30, 4).rows();
    assert_eq!(large[..60], small);
}

#[test]
fn every_token_is_as_likely_to_be_kept() {
    let rows: Vec<f32> = (0..50_u8).map(f32::from).collect();
    let mut hits = [0_u32; 50];
    for seed in 0..4000 {
        for value in reservoir(&rows, 1, 10, seed).rows() {
            let token = rows.iter().position(|row| *row == value).unwrap();
            hits[token] += 1;
        }
    }
    // 4000 draws of chance 1/5: mean 800, standard deviation 25.
    assert!(hits.iter().all(|&n| n.abs_diff(800) < 125), "{hits:?}");
}

#[test]
fn merged_reservoirs_sample_both_parts_alike() {
    let mut from_first = 0_usize;
    for seed in 0..1000 {
        let mut merged = reservoir(&[0.0; 30], 1, 10, 2 * seed);
        merged.merge(&reservoir(&[1.0; 70], 1, 10, 2 * seed + 1)).unwrap();
        assert_eq!((merged.len(), merged.seen()), (10, 100));
        from_first += merged.rows().iter().filter(|v| **v == 0.0).count();
    }
    // Hypergeometric with mean 3 a sample: 3000, standard deviation about 44.
    assert!(from_first.abs_diff(3000) < 220, "{from_first}");
}

#[test]
fn weights_stay_with_their_rows() {
    let mut kept = Reservoir::new(1, 8, 1);
    let rows: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let weights: Vec<f32> = rows.iter().map(|v| v / 100.0).collect();
    kept.add(&rows, Some(&weights)).unwrap();
    assert_eq!(kept.len(), 8);
    assert!(kept.rows().iter().zip(kept.weights()).all(|(row, weight)| row / 100.0 == weight), "{kept:?}");
}

#[test]
fn reservoirs_of_one_seed_are_not_merged() {
    let mut first = reservoir(&[1.0], 1, 4, 5);
    let refused = first.merge(&reservoir(&[2.0], 1, 4, 5));
    assert!(matches!(refused, Err(Error::Settings { .. })), "{refused:?}");
    first.merge(&reservoir(&[2.0], 1, 4, 6)).unwrap();
    let refused = first.merge(&reservoir(&[2.0], 1, 4, 6));
    assert!(matches!(refused, Err(Error::Settings { .. })), "a seed that came by an earlier merge: {refused:?}");
}

#[test]
fn gates_weight_the_gram_matrix_as_the_needs_say() {
    let (rows, gates) = ([1.0, 2.0, -1.0, 3.0], [0.5, 0.25]);
    for (gate_power, weights) in
        [(GatePower::Ignored, None), (GatePower::Linear, Some([0.5, 0.25])), (GatePower::Squared, Some([0.25, 0.0625]))]
    {
        let mut found = Statistics::new(2, &Needs { gate_power, ..Needs::gram() }).unwrap();
        found.add(&rows, Some(&gates)).unwrap();
        let mut expected = Gram::new(2);
        expected.add(&rows, weights.as_ref().map(<[f32; 2]>::as_slice)).unwrap();
        assert_eq!(found.gram(), Some(&expected));
        found.add(&rows, None).unwrap();
        expected.add(&rows, None).unwrap();
        assert_eq!(found.gram(), Some(&expected), "tokens without gates count 1");
    }
}

#[test]
fn only_what_is_needed_is_gathered() {
    let mut found = Statistics::new(2, &Needs::nothing()).unwrap();
    found.add(&[1.0, 2.0], None).unwrap();
    assert!(Needs::nothing().is_nothing() && !Needs::gram().is_nothing(), "nothing");
    assert!(found.gram().is_none() && found.channels().is_none() && found.quantiles().is_none(), "{found:?}");
    assert!(found.reservoir().is_none() && found.dead_channels().is_none(), "{found:?}");
    assert_eq!(found.tokens(), 1);
    assert_eq!(found.require_tokens(1), Ok(()));
    assert_eq!(found.require_tokens(2), Err(Error::TooFewTokens { needed: 2, found: 1 }));
}

#[test]
fn a_refused_batch_changes_nothing() {
    let needs = Needs {
        channels: true,
        quantiles: Some(QuantileNeeds::default()),
        reservoir: Some(4),
        gate_power: GatePower::Linear,
        ..Needs::gram()
    };
    let mut found = Statistics::new(2, &needs).unwrap();
    found.add(&[1.0, 2.0], None).unwrap();
    let before = found.clone();
    assert!(found.add(&[1.0, f32::NAN], None).is_err(), "NaN");
    assert!(found.add(&[1.0], None).is_err(), "half a row");
    assert!(found.add(&[3e38, 1.0], Some(&[2.0])).is_err(), "a weighted row that overflows");
    assert_eq!(found, before);
    let refused =
        Statistics::new(2, &Needs { quantiles: Some(QuantileNeeds { bits: 13, per_channel: false }), ..needs });
    assert_eq!(refused, Err(Error::SketchBits { bits: 13, most: 12 }));
}

#[test]
fn needs_unite_or_say_why_not() {
    let sample = |rows, seed| Needs { seed, ..Needs::reservoir(rows) };
    let united = Needs::gram().union(&sample(8, 3)).unwrap().union(&sample(4, 3)).unwrap();
    assert_eq!(united, Needs { gram: true, ..sample(8, 3) });
    let refused = sample(8, 3).union(&sample(8, 4));
    assert!(matches!(refused, Err(Error::Settings { .. })), "{refused:?}");
    let weighted = Needs { gate_power: GatePower::Linear, ..Needs::gram() };
    let refused = weighted.union(&Needs::gram());
    assert!(matches!(refused, Err(Error::Settings { .. })), "{refused:?}");
    assert_eq!(Needs::channels().union(&weighted).unwrap(), Needs { channels: true, ..weighted });
}

#[test]
fn statistics_of_two_workers_merge() {
    let rows = values(3 * 60, 8);
    let needs = |seed| Needs { channels: true, reservoir: Some(6), seed, ..Needs::gram() };
    let gather = |rows: &[f32], seed| {
        let mut statistics = Statistics::new(3, &needs(seed)).unwrap();
        statistics.add(rows, None).unwrap();
        statistics
    };
    let mut merged = gather(&rows[..90], 1);
    merged.merge(&gather(&rows[90..], 2)).unwrap();
    let whole = gather(&rows, 1);
    assert_eq!((merged.tokens(), merged.gram()), (60, whole.gram()));
    assert_eq!(merged.reservoir().map(Reservoir::len), Some(6));
    let before = merged.clone();
    let other = Statistics::new(3, &Needs::gram()).unwrap();
    assert!(matches!(merged.merge(&other), Err(Error::Settings { .. })), "other needs");
    let other = Statistics::new(4, &needs(3)).unwrap();
    assert!(matches!(merged.merge(&other), Err(Error::Features { features: 3, found: 4 })), "another width");
    assert_eq!(merged, before);
}

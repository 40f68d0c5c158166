//! The knapsack against trying everything.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "test sizes are small")]

use bit_allocation::{Allocation, Choice, Error, Ties, allocate};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::time::Instant;

/// The least loss, by trying all allocations.
fn brute_force(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
    let mut best: Option<f64> = None;
    let mut choices = vec![0; items.len()];
    loop {
        let taken = || items.iter().zip(&choices).map(|(item, &c)| item[c]);
        if taken().map(|c| c.cost).sum::<u64>() <= budget {
            let loss: f64 = taken().map(|c| c.loss).sum();
            best = Some(best.map_or(loss, |b| b.min(loss)));
        }
        let Some(at) = (0..items.len()).find(|&at| choices[at] + 1 < items[at].len()) else { return best };
        choices[at] += 1;
        choices[..at].fill(0);
    }
}

fn agrees_with_brute_force(items: &[Vec<Choice>], budget: u64) -> Result<(), TestCaseError> {
    match (allocate(items, budget), brute_force(items, budget)) {
        (Ok(Allocation { choices, cost, loss }), Some(best)) => {
            let taken = || items.iter().zip(&choices).map(|(item, &c)| item[c]);
            prop_assert_eq!(taken().map(|c| c.cost).sum::<u64>(), cost);
            prop_assert_eq!(taken().map(|c| c.loss).sum::<f64>(), loss);
            prop_assert!(cost <= budget, "{} is over the budget {}", cost, budget);
            let scale: f64 = items.iter().flatten().map(|c| c.loss).sum();
            prop_assert!((loss - best).abs() <= 1e-12 * scale, "{} is not the least, {}", loss, best);
        }
        (Err(Error::Infeasible { smallest, .. }), None) => {
            prop_assert!(smallest > budget, "{} would fit", smallest);
            prop_assert!(brute_force(items, smallest).is_some(), "{} is said to be enough", smallest);
            prop_assert!(brute_force(items, smallest - 1).is_none(), "{} is not the smallest", smallest);
        }
        (found, expected) => prop_assert!(false, "{:?} but brute force says {:?}", found, expected),
    }
    Ok(())
}

fn items(
    costs: std::ops::Range<u64>,
    losses: impl Strategy<Value = f64> + Clone,
) -> impl Strategy<Value = Vec<Vec<Choice>>> {
    let choice = (costs, losses).prop_map(|(cost, loss)| Choice { cost, loss });
    prop::collection::vec(prop::collection::vec(choice, 1..5), 0..7)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn small_costs_and_losses_with_many_ties_are_solved_exactly(
        items in items(0..6, (0_u32..6).prop_map(f64::from)), budget in 0_u64..25,
    ) {
        agrees_with_brute_force(&items, budget)?;
    }

    #[test]
    fn large_costs_are_solved_exactly(items in items(0..1 << 50, 0.0..1e3), part in 0.0..1.0) {
        let most: u64 = items.iter().map(|item| item.iter().map(|c| c.cost).max().unwrap()).sum();
        agrees_with_brute_force(&items, (most as f64 * part) as u64)?;
    }

    #[test]
    fn losses_that_follow_costs_are_solved_exactly(items in items(1..2000, 0.0..1.0), budget in 0_u64..9000) {
        let follow = |c: &Choice| Choice { cost: c.cost, loss: 2000.0 - c.cost as f64 + c.loss };
        let items: Vec<Vec<Choice>> = items.iter().map(|item| item.iter().map(follow).collect()).collect();
        agrees_with_brute_force(&items, budget)?;
    }

    #[test]
    fn costs_with_a_common_divisor_are_solved_exactly(
        items in items(0..5, 0.0..9.0), unit in 1_u64..1000, budget in 0_u64..12, rest in 0_u64..1000,
    ) {
        let scale = |c: &Choice| Choice { cost: c.cost * unit, loss: c.loss };
        let items: Vec<Vec<Choice>> = items.iter().map(|item| item.iter().map(scale).collect()).collect();
        agrees_with_brute_force(&items, budget * unit + rest % unit)?;
    }

    #[test]
    fn a_larger_budget_never_loses_more(items in items(0..50, 0.0..9.0), budget in 0_u64..200, more in 0_u64..50) {
        if let Ok(tight) = allocate(&items, budget) {
            prop_assert!(allocate(&items, budget + more).unwrap().loss <= tight.loss * (1.0 + 1e-12));
        }
    }

    #[test]
    fn tied_items_equal_brute_force_over_their_sums(
        losses in prop::collection::vec(prop::collection::vec(0.0..9.0, 3), 6), budget in 12_u64..48,
    ) {
        let item = |l: &Vec<f64>| (0..3).map(|i| Choice { cost: 2 << i, loss: l[i] }).collect::<Vec<_>>();
        let items: Vec<_> = losses.iter().map(item).collect();
        let ties = Ties::new(6, &[vec![4, 1], vec![3, 2, 5]]).unwrap();
        let joined = ties.join(&items).unwrap();
        prop_assert_eq!(joined.len(), 3);
        agrees_with_brute_force(&joined, budget)?;
        let best = allocate(&joined, budget).unwrap();
        let all = ties.spread(&best.choices).unwrap();
        prop_assert_eq!((all[1], all[2], all[2]), (all[4], all[3], all[5]));
        let loss: f64 = items.iter().zip(&all).map(|(item, &c)| item[c].loss).sum();
        prop_assert!((loss - best.loss).abs() < 1e-9);
    }
}

#[test]
fn greedy_steps_are_not_good_enough() {
    let layer = |losses: [f64; 3]| -> Vec<Choice> {
        [2, 4, 8].into_iter().zip(losses).map(|(cost, loss)| Choice { cost, loss }).collect()
    };
    let best = allocate(&[layer([10.0, 9.0, 0.0]), layer([10.0, 6.0, 5.0])], 10).unwrap();
    assert_eq!((best.choices, best.loss), (vec![2, 0], 10.0));
}

#[test]
fn two_options_of_equal_costs_are_allocated_as_by_sorting() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for upgraded in [0, 1, 17, 499, 500] {
        let items: Vec<Vec<Choice>> = (0..500)
            .map(|_| {
                let (low, high) = (f64::from(random.next_u32()), f64::from(random.next_u32()));
                vec![Choice { cost: 4, loss: low.max(high) }, Choice { cost: 8, loss: low.min(high) }]
            })
            .collect();
        let mut order: Vec<usize> = (0..500).collect();
        order.sort_by(|&a, &b| (items[b][0].loss - items[b][1].loss).total_cmp(&(items[a][0].loss - items[a][1].loss)));
        let best = allocate(&items, 4 * 500 + 4 * upgraded as u64 + 3).unwrap();
        for (rank, &item) in order.iter().enumerate() {
            assert_eq!(best.choices[item], usize::from(rank < upgraded), "item {item} at rank {rank}");
        }
    }
}

#[test]
fn no_items_cost_nothing() {
    assert_eq!(allocate(&[], 0), Ok(Allocation { choices: vec![], cost: 0, loss: 0.0 }));
}

#[test]
fn a_dearer_option_that_loses_more_is_never_taken() {
    let item = vec![Choice { cost: 9, loss: 1.0 }, Choice { cost: 3, loss: 0.5 }, Choice { cost: 3, loss: 0.75 }];
    assert_eq!(allocate(&[item], 100).unwrap().choices, [1]);
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let fine = vec![Choice { cost: 1, loss: 1.0 }];
    for loss in [f64::NAN, f64::INFINITY, -1.0] {
        let bad = vec![Choice { cost: 1, loss: 1.0 }, Choice { cost: 2, loss }];
        let error = allocate(&[fine.clone(), bad], 9).unwrap_err();
        assert!(matches!(error, Error::Loss { item: 1, option: 1, .. }), "{error}");
    }
    assert_eq!(allocate(&[fine.clone(), vec![]], 9), Err(Error::NoOptions { item: 1 }));
    assert_eq!(allocate(&[fine.clone(), fine], 1), Err(Error::Infeasible { smallest: 2, budget: 1 }));
    let large = vec![Choice { cost: u64::MAX, loss: 0.0 }];
    assert_eq!(allocate(&[large.clone(), large], u64::MAX), Err(Error::CostOverflow));
    let huge = vec![Choice { cost: 1, loss: f64::MAX }];
    assert_eq!(allocate(&[huge.clone(), huge], 9), Err(Error::LossOverflow));
}

#[test]
fn bad_ties_are_refused() {
    assert_eq!(Ties::new(2, &[vec![0, 2]]), Err(Error::NoSuchItem { item: 2, items: 2 }));
    assert_eq!(Ties::new(3, &[vec![0, 1], vec![1, 2]]), Err(Error::TiedTwice { item: 1 }));
    assert_eq!(Ties::new(3, &[vec![0, 0]]), Err(Error::TiedTwice { item: 0 }));
    let ties = Ties::new(2, &[vec![0, 1]]).unwrap();
    let choice = Choice { cost: 1, loss: 1.0 };
    assert_eq!(ties.join(&[vec![choice], vec![choice; 2]]), Err(Error::TiedOptions { item: 1, expected: 1, found: 2 }));
    assert_eq!(ties.join(&[vec![choice]]), Err(Error::Count { expected: 2, found: 1 }));
    assert_eq!(ties.spread(&[0, 0]), Err(Error::Count { expected: 1, found: 2 }));
}

/// Thousands of items with ten options, costs alike or all different, losses with and without a pattern.
#[test]
fn thousands_of_items_take_seconds() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut unit = || f64::from(random.next_u32()) / 4_294_967_296.0;
    for (name, count, costs) in
        [("equal costs", 4000, 1_u64), ("large costs", 2000, 1 << 20), ("bytes", 2000, 4096 * 4096)]
    {
        let items: Vec<Vec<Choice>> = (0..count)
            .map(|_| {
                let (size, loss) = (1 + (unit() * costs as f64) as u64, unit());
                (1..=10)
                    .map(|bits| Choice {
                        cost: bits * size,
                        loss: loss * 4_f64.powf(-(bits as f64)) * (0.8 + 0.4 * unit()),
                    })
                    .collect()
            })
            .collect();
        let most: u64 = items.iter().map(|item| item[9].cost).sum();
        for part in [0.11, 0.3, 0.42, 0.77] {
            let start = Instant::now();
            let best = allocate(&items, (most as f64 * part) as u64).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            println!("{count} items, {name}, {part} of the largest cost: {seconds:.3} s, loss {}", best.loss);
            assert!(seconds < 20.0, "{name}, {part}: {seconds} s");
        }
    }
}

//! The product of loss and time against trying everything.
#![expect(clippy::cast_precision_loss, reason = "test sizes are small")]

use bit_allocation::{Error, TimedChoice, allocate_product};
use proptest::prelude::*;

const EXPONENTS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

fn brute_force(items: &[Vec<TimedChoice>], budget: u64, r: f64) -> Option<f64> {
    let count: usize = items.iter().map(Vec::len).product();
    let sums = (0..count).map(|mut number| {
        items.iter().fold((0, 0.0, 0.0), |(cost, loss, time), item| {
            let choice = item[number % item.len()];
            number /= item.len();
            (cost + choice.cost, loss + choice.loss, time + choice.time)
        })
    });
    sums.filter(|&(cost, ..)| cost <= budget)
        .map(|(_, l, t): (u64, f64, f64)| l.powf(r) * t.powf(1.0 - r))
        .reduce(f64::min)
}

fn items(number: impl Strategy<Value = f64> + Clone) -> impl Strategy<Value = Vec<Vec<TimedChoice>>> {
    let choice = (1_u64..9, number.clone(), number).prop_map(|(cost, loss, time)| TimedChoice { cost, loss, time });
    prop::collection::vec(prop::collection::vec(choice, 3), 6)
}

fn agrees_with_brute_force(items: &[Vec<TimedChoice>], budget: u64) -> Result<(), TestCaseError> {
    for r in EXPONENTS {
        match (allocate_product(items, budget, r), brute_force(items, budget, r)) {
            (Ok(found), Some(best)) => {
                let taken = || items.iter().zip(&found.choices).map(|(item, &c)| item[c]);
                prop_assert!(taken().map(|c| c.cost).sum::<u64>() <= budget);
                prop_assert_eq!(taken().map(|c| c.loss).sum::<f64>(), found.loss);
                prop_assert_eq!(taken().map(|c| c.time).sum::<f64>(), found.time);
                prop_assert!(
                    (found.objective - best).abs() <= 1e-9 * best,
                    "{} not {} for r = {}",
                    found.objective,
                    best,
                    r
                );
            }
            (found, best) => {
                prop_assert!(matches!((&found, best), (Err(Error::Infeasible { .. }), None)), "{:?}", found)
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_product_is_least_for_every_exponent(items in items(0.01..10.0), budget in 10_u64..50) {
        agrees_with_brute_force(&items, budget)?;
    }

    #[test]
    fn zeros_and_ties_do_not_hide_the_least_product(items in items((0_u32..4).prop_map(f64::from)), budget in 10_u64..50) {
        agrees_with_brute_force(&items, budget)?;
    }

    #[test]
    fn a_larger_budget_never_has_a_larger_product(items in items(0.01..10.0), budget in 20_u64..50, more in 1_u64..9) {
        for r in EXPONENTS {
            if let Ok(tight) = allocate_product(&items, budget, r) {
                let wide = allocate_product(&items, budget + more, r).unwrap();
                prop_assert!(wide.objective <= tight.objective * (1.0 + 1e-9));
            }
        }
    }
}

#[test]
fn with_one_exponent_at_zero_its_objective_does_not_matter() {
    let choice = |loss, time| TimedChoice { cost: 1, loss, time };
    let items = vec![vec![choice(1.0, 1e9), choice(2.0, 0.0)], vec![choice(5.0, 1.0), choice(3.0, 7.0)]];
    assert_eq!(allocate_product(&items, 2, 1.0).unwrap().choices, [0, 1]);
    assert_eq!(allocate_product(&items, 2, 0.0).unwrap().choices, [1, 0]);
}

#[test]
fn hundreds_of_items_are_walked_quickly() {
    let items: Vec<Vec<TimedChoice>> = (0..384_u64)
        .map(|i| {
            let (loss, time) = (1.0 + (i * 37 % 101) as f64, 1.0 + (i * 53 % 17) as f64);
            let option = |bits: u64| TimedChoice {
                cost: bits * 2816,
                loss: loss * 2_f64.powf(-2.0 * bits as f64),
                time: time * if bits == 8 && i % 3 == 0 { 1.5 } else { bits as f64 },
            };
            [2, 3, 4, 8].into_iter().map(option).collect()
        })
        .collect();
    let best = allocate_product(&items, 384 * 2816 * 5, 0.75).unwrap();
    assert!(best.cost <= 384 * 2816 * 5);
    for bits in 0..3 {
        let uniform = items.iter().map(|item| item[bits]).fold((0.0, 0.0), |(l, t), c| (l + c.loss, t + c.time));
        assert!(best.objective <= uniform.0.powf(0.75) * uniform.1.powf(0.25), "worse than all items at option {bits}");
    }
}

#[test]
fn bad_input_is_refused() {
    let item = vec![vec![TimedChoice { cost: 1, loss: 1.0, time: f64::NAN }]];
    assert!(matches!(allocate_product(&item, 1, 0.5), Err(Error::Time { item: 0, option: 0, .. })));
    let item = vec![vec![TimedChoice { cost: 2, loss: -0.5, time: 1.0 }]];
    assert_eq!(allocate_product(&item, 1, 0.5), Err(Error::Loss { item: 0, option: 0, loss: -0.5 }));
    for exponent in [-0.1, 1.1] {
        assert_eq!(allocate_product(&[], 1, exponent), Err(Error::Exponent { exponent }));
    }
    let item = vec![vec![TimedChoice { cost: 2, loss: 0.5, time: 1.0 }]];
    assert_eq!(allocate_product(&item, 1, 0.5), Err(Error::Infeasible { smallest: 2, budget: 1 }));
}

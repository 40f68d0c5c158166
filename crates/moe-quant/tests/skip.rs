//! Skipping experts: the rule by hand, bounds, and the search against trying every pair.

#![allow(clippy::cast_possible_truncation, reason = "small numbers made up for the tests")]

mod common;

use common::{Random, Toy};
use moe_quant::{
    Activation, Block, BlockLinear, Dispatch, Error, FrontierMode, LayerImportance, MixedExperts, Modality, SkipRule,
    frontier_search, threshold_grid,
};
use quant_core::{Format, PackedTensor, Shaped};
use std::sync::Arc;

fn rule(text: &[f64], tau: f64) -> SkipRule {
    let visual = vec![1.0; text.len()];
    SkipRule { importance: LayerImportance::new(text, &visual).unwrap(), tau_text: tau, tau_visual: 2.0 * tau }
}

#[test]
fn the_bounds_of_a_layer_follow_from_shares_that_sum_to_one() {
    let mut random = Random::new(1);
    let rule_of = |tau| rule(&[1.0, 3.0], tau); // shares 0.25 and 0.75
    for _ in 0..200 {
        let gates: Vec<f32> = (0..4).map(|_| random.uniform() as f32).collect();
        let skip = |layer: usize, tau: f64, modality| {
            let (mut ids, mut gates) = (vec![0, 1, 2, 3], gates.clone());
            rule_of(tau).apply(layer, &[modality], 9, &mut ids, &mut gates).unwrap()
        };
        assert_eq!(skip(0, 0.0, Modality::Text).text, 0, "a threshold of zero skips nothing");
        assert_eq!(skip(0, 0.2501, Modality::Text).text, 4, "above the share of the layer all is skipped");
        assert_eq!(skip(0, 0.2501, Modality::Text).empty_tokens, 1);
        assert!(skip(0, 0.25 / 4.0, Modality::Text).text < 4, "at a k-th of it an expert stays");
        assert_eq!(skip(1, 0.75 / 4.0, Modality::Other), moe_quant::SkipStats { choices: 4, ..Default::default() });
        assert_eq!(
            skip(0, 0.2501, Modality::Visual).visual,
            4,
            "visual tokens have their own share, 0.5, and threshold"
        );
    }
}

#[test]
fn skipped_choices_are_not_computed_and_count_as_gates_of_zero() {
    let toy = Toy::new(2, 6, 3, [32, 32], 50, 0.2);
    let (mut ids, mut gates) = (Vec::new(), Vec::new());
    for token in 0..50 {
        for expert in 0..6 {
            let rows = toy.dispatch.tokens_of(expert).iter().zip(toy.dispatch.gates_of(expert));
            for (_, gate) in rows.filter(|(t, _)| **t == token) {
                ids.push(expert);
                gates.push(*gate);
            }
        }
    }
    let blocks = (0..6).map(|expert| {
        Block::ALL.map(|block| {
            let shape = block.shape([32, 32]);
            let tensor = Shaped::new(&toy.weights[expert][block.index()], &shape).unwrap();
            let packed = PackedTensor::encode("int4-g32-asym".parse::<Format>().unwrap(), &tensor).unwrap();
            BlockLinear { weight: Arc::new(packed), activation: None }
        })
    });
    let experts = MixedExperts::new(blocks.collect(), Activation::Silu).unwrap();
    let all = ids.clone();
    let rule = rule(&[1.0], 0.3);
    let stats = rule.apply(0, &[Modality::Text; 50], 6, &mut ids, &mut gates).unwrap();
    assert!(stats.text > 20 && stats.text < 130, "{stats:?}");
    let skipping = Dispatch::skipping(6, 3, &ids, &gates).unwrap();
    assert_eq!(skipping.counts().iter().sum::<u64>(), 150 - stats.text, "rows are really left out");
    let zeroed = Dispatch::new(6, 3, &all, &gates).unwrap();
    assert_eq!(experts.forward(&toy.x, &skipping).unwrap(), experts.forward(&toy.x, &zeroed).unwrap());
    assert!(matches!(Dispatch::new(6, 3, &ids, &gates), Err(Error::NoSuchExpert { expert: 6, .. })));
}

#[test]
fn importances_are_shares_and_divergences_below_zero_count_as_zero() {
    let importance = LayerImportance::measure(3, true, |layer, modality| {
        Ok::<f64, Error>(match modality {
            Modality::Text => [2.0, -1.0, 6.0][layer],
            _ => 0.0,
        })
    });
    let importance = importance.unwrap();
    assert_eq!([0, 1, 2].map(|layer| importance.of(layer, Modality::Text)), [Some(0.25), Some(0.0), Some(0.75)]);
    assert_eq!(importance.of(0, Modality::Visual), Some(0.0), "no visual token matters, and none is to be kept");
    assert!(LayerImportance::new(&[0.0, 0.0], &[0.0, 0.0]).is_err() && LayerImportance::new(&[1.0], &[]).is_err());
    assert!(LayerImportance::new(&[f64::NAN], &[1.0]).is_err());
}

/// Tables of divergence and share that rise with both thresholds.
fn tables(random: &mut Random, size: usize) -> Vec<Vec<(f64, f64)>> {
    let mut table = vec![vec![(0.0, 0.0); size]; size];
    for i in 0..size {
        for j in 0..size {
            let below = |f: fn((f64, f64)) -> f64| {
                let left = if i > 0 { f(table[i - 1][j]) } else { 0.0 };
                left.max(if j > 0 { f(table[i][j - 1]) } else { 0.0 })
            };
            let (divergence, share) = (below(|p| p.0), below(|p| p.1));
            table[i][j] = (divergence + random.uniform(), share + random.uniform() * 2.0 / size as f64);
        }
    }
    let most = table[size - 1][size - 1].1;
    table.iter_mut().flatten().for_each(|pair| pair.1 /= most);
    table
}

#[test]
fn the_lean_search_finds_what_trying_every_pair_finds() {
    let mut random = Random::new(3);
    let size = 12;
    let grid: Vec<f64> = (0..size).map(|i| i as f64).collect();
    for _ in 0..500 {
        let table = tables(&mut random, size);
        let rho = 0.05 + 0.9 * random.uniform();
        let search = |mode| {
            let look = |t: f64, v: f64| Ok::<_, Error>(table[t as usize][v as usize]);
            frontier_search(&grid, &grid, rho, mode, look).unwrap()
        };
        let [lean, reference, all] =
            [FrontierMode::Lean, FrontierMode::Reference, FrontierMode::Exhaustive].map(search);
        assert_eq!((lean.divergence, reference.divergence), (all.divergence, all.divergence));
        assert_eq!((lean.tau_text, lean.tau_visual), (all.tau_text, all.tau_visual));
        assert!(lean.evaluated <= 2 * size && reference.evaluated < 3 * size, "{lean:?}, {reference:?}");
        assert_eq!((all.evaluated, all.violations), (size * size, 0));
    }
}

#[test]
fn grids_and_refusals() {
    let grid = threshold_grid(100, 0.71);
    assert_eq!((grid.len(), grid[0]), (101, 0.0));
    assert!((grid[1] - 9.080e-5).abs() < 1e-8 && (grid[100] - 0.10431).abs() < 1e-5, "{} {}", grid[1], grid[100]);
    assert!(grid.windows(2).all(|pair| pair[0] < pair[1]));
    let search = |text: &[f64], rho| {
        frontier_search(text, &[0.0], rho, FrontierMode::Lean, |t, _| Ok::<_, Error>((t, t)))
            .map(|found| found.tau_text)
    };
    assert_eq!(search(&[0.0, 0.2, 0.4, 0.6], 0.3), Ok(0.4));
    for (text, rho) in
        [(&[][..], 0.3), (&[0.4, 0.2][..], 0.3), (&[-0.1, 0.5][..], 0.3), (&[0.5][..], 0.0), (&[0.5][..], 1.5)]
    {
        assert!(matches!(search(text, rho), Err(Error::Setting { .. })), "{text:?}, {rho}");
    }
    let refused = search(&[0.0, 0.2], 0.5).unwrap_err();
    assert!(refused.to_string().contains("skip 0.2"), "{refused}");
    let refuse = |tau: f64, layer: usize, gates: &mut [f32]| {
        rule(&[1.0], tau).apply(layer, &[Modality::Text], 4, &mut [0, 1], gates).unwrap_err()
    };
    assert!(matches!(refuse(-1.0, 0, &mut [0.5, 0.5]), Error::Setting { .. }));
    assert!(matches!(refuse(0.1, 1, &mut [0.5, 0.5]), Error::Length { .. }));
    assert!(matches!(refuse(0.1, 0, &mut [0.5]), Error::Length { .. }));
    assert!(matches!(refuse(0.1, 0, &mut [0.5, f32::NAN]), Error::Gate { .. }));
}

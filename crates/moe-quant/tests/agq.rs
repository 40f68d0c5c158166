//! Weighted Hessians: identities, what they buy, experts without tokens.
#![allow(clippy::cast_possible_truncation, reason = "small numbers made up for the tests")]

mod common;

use common::Random;
use moe_quant::{Dispatch, Error, ExpertGrams, HessianSource, UnseenExpert};
use quant_calib::{GatePower, Gram};
use quant_core::{Format, Shaped};
use weight_quant::gptq::{GptqConfig, gptq};
use weight_quant::{AwqConfig, RtnConfig, rtn};

const FEATURES: usize = 16;
const ROWS: usize = 8;

fn values(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.normal() as f32).collect()
}

fn format() -> Format {
    "int3-g16-asym".parse().unwrap()
}

#[test]
fn gates_of_one_are_plain_gptq_to_the_bit() {
    let mut random = Random::new(1);
    let (x, w) = (values(&mut random, 64 * FEATURES), values(&mut random, ROWS * FEATURES));
    let weight = Shaped::new(&w, &[ROWS, FEATURES]).unwrap();
    let mut plain = Gram::new(FEATURES);
    plain.add(&x, None).unwrap();
    let expected = gptq(&weight, &plain, format(), &GptqConfig::default()).unwrap();
    for power in [GatePower::Ignored, GatePower::Linear, GatePower::Squared] {
        let mut grams = ExpertGrams::new(1, FEATURES, power);
        grams.add(0, &x, &[1.0; 64]).unwrap();
        let (found, source) =
            grams.gptq(0, &weight, format(), &GptqConfig::default(), UnseenExpert::default()).unwrap();
        assert_eq!((found, source), (expected.clone(), HessianSource::Own), "{power:?}");
    }
}

#[test]
fn weights_scale_out_zeros_drop_tokens_and_the_sum_is_that_of_the_definition() {
    let mut random = Random::new(2);
    let (x, w) = (values(&mut random, 64 * FEATURES), values(&mut random, ROWS * FEATURES));
    let weight = Shaped::new(&w, &[ROWS, FEATURES]).unwrap();
    let gates: Vec<f32> = (0..64).map(|_| random.uniform() as f32).collect();
    let quantized = |x: &[f32], gates: &[f32]| {
        let mut grams = ExpertGrams::new(1, FEATURES, GatePower::Linear);
        grams.add(0, x, gates).unwrap();
        let config = GptqConfig::default();
        grams.gptq(0, &weight, format(), &config, UnseenExpert::Error).unwrap().0.packed
    };
    let quarter: Vec<f32> = gates.iter().map(|gate| 0.25 * gate).collect();
    assert_eq!(quantized(&x, &gates), quantized(&x, &quarter), "a constant");

    let zeros: Vec<f32> = (0..64).map(|t| if t % 3 == 0 { 0.0 } else { 1.0 }).collect();
    let kept: Vec<f32> =
        x.chunks(FEATURES).enumerate().filter(|(t, _)| t % 3 != 0).flat_map(|(_, row)| row.to_vec()).collect();
    assert_eq!(quantized(&x, &zeros), quantized(&kept, &vec![1.0; kept.len() / FEATURES]), "zeros drop tokens");

    for (power, p) in [(GatePower::Ignored, 0), (GatePower::Linear, 1), (GatePower::Squared, 2)] {
        let mut grams = ExpertGrams::new(1, FEATURES, power);
        grams.add(0, &x, &gates).unwrap();
        let powers: Vec<f32> = gates.iter().map(|gate| gate.powi(p)).collect();
        let expected = Gram::reference(&x, FEATURES, Some(&powers)).unwrap();
        let found = grams.own(0).unwrap().matrix();
        let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * largest), "power {p}");
    }
}

#[test]
fn weighting_lowers_the_weighted_error_and_raises_the_plain_one() {
    // Many tokens of small gates along some directions, few of large gates along others.
    let mut random = Random::new(3);
    let (mut weighted_wins, mut plain_wins) = (0, 0);
    for _ in 0..10 {
        let (mut x, mut gates) = (Vec::new(), Vec::new());
        for token in 0..400 {
            let strong = token % 10 == 0;
            let row = (0..FEATURES).map(|i| {
                let along = if strong { i < FEATURES / 2 } else { i >= FEATURES / 2 };
                (random.normal() * if along { 1.0 } else { 0.05 }) as f32
            });
            x.extend(row.collect::<Vec<f32>>());
            gates.push(if strong { 0.95 } else { 0.05 });
        }
        // Directions that do not lie along the axes, so that columns can help each other.
        let mix = values(&mut random, FEATURES * FEATURES);
        let x: Vec<f32> = x
            .chunks(FEATURES)
            .flat_map(|row| {
                let mixed = |i: usize| row.iter().zip(&mix[i * FEATURES..]).map(|(a, b)| a * b).sum::<f32>();
                (0..FEATURES).map(mixed).collect::<Vec<f32>>()
            })
            .collect();
        let w = values(&mut random, ROWS * FEATURES);
        let weight = Shaped::new(&w, &[ROWS, FEATURES]).unwrap();
        let errors = |power: GatePower| {
            let mut grams = ExpertGrams::new(1, FEATURES, power);
            grams.add(0, &x, &gates).unwrap();
            let config = GptqConfig::default();
            let (found, _) = grams.gptq(0, &weight, format(), &config, UnseenExpert::Error).unwrap();
            let decoded = found.packed.decode();
            let (mut weighted, mut plain) = (0.0, 0.0);
            for (row, gate) in x.chunks(FEATURES).zip(&gates) {
                for (w, q) in w.chunks(FEATURES).zip(decoded.chunks(FEATURES)) {
                    let d: f64 = row.iter().zip(w.iter().zip(q)).map(|(x, (w, q))| f64::from(x * (w - q))).sum();
                    weighted += (f64::from(*gate) * d).powi(2);
                    plain += d * d;
                }
            }
            (weighted, plain)
        };
        let (plain, linear, squared) =
            (errors(GatePower::Ignored), errors(GatePower::Linear), errors(GatePower::Squared));
        weighted_wins += u32::from(squared.0 < plain.0) + u32::from(linear.0 < plain.0);
        plain_wins += u32::from(squared.1 > plain.1) + u32::from(linear.1 > plain.1);
    }
    assert!(weighted_wins >= 18 && plain_wins >= 18, "{weighted_wins} and {plain_wins} of 20");
}

#[test]
fn experts_without_tokens_follow_the_policy_and_are_never_zeroed() {
    let mut random = Random::new(4);
    let dispatch = Dispatch::new(3, 1, &[0; 40], &[0.5; 40]).unwrap();
    let mut grams = ExpertGrams::new(3, FEATURES, GatePower::Linear);
    grams.add_routed(&values(&mut random, 40 * FEATURES), &dispatch).unwrap();
    // Tokens whose gates are zero are none.
    grams.add(2, &values(&mut random, 4 * FEATURES), &[0.0; 4]).unwrap();
    let w = values(&mut random, ROWS * FEATURES);
    let weight = Shaped::new(&w, &[ROWS, FEATURES]).unwrap();
    let config = GptqConfig::default();
    let nearest = rtn(&weight, format(), &RtnConfig::default()).unwrap();
    for expert in [1, 2] {
        let of = |policy| grams.gptq(expert, &weight, format(), &config, policy);
        assert_eq!(of(UnseenExpert::Error), Err(Error::Uncalibrated { expert }));
        let (found, source) = of(UnseenExpert::Rtn).unwrap();
        assert_eq!((&found.packed, source), (&nearest, HessianSource::Nothing));
        assert!(found.report.fallback.is_some(), "the report says so");
        let (found, source) = of(UnseenExpert::SharedHessian).unwrap();
        assert_eq!(source, HessianSource::Shared);
        let own = grams.gptq(0, &weight, format(), &config, UnseenExpert::Error).unwrap().0;
        assert_eq!(found.packed, own.packed, "all tokens are those of expert 0");
        let (scales, packed, source) = grams
            .awq(expert, std::slice::from_ref(&weight), format(), &AwqConfig::default(), UnseenExpert::Rtn)
            .unwrap();
        assert_eq!((scales, packed, source), (vec![1.0; FEATURES], vec![nearest.clone()], HessianSource::Nothing));
        assert!(packed_is_alive(&found.packed.decode()));
    }
    let (_, packed, source) = grams
        .awq(1, std::slice::from_ref(&weight), format(), &AwqConfig::default(), UnseenExpert::SharedHessian)
        .unwrap();
    assert!(source == HessianSource::Shared && packed_is_alive(&packed[0].decode()));
    let refused = grams.gptq(3, &weight, format(), &config, UnseenExpert::Rtn);
    assert!(matches!(refused, Err(Error::NoSuchExpert { expert: 3, .. })), "{refused:?}");
    assert!(matches!(grams.add(0, &[1.0; FEATURES], &[-1.0]), Err(Error::Calib(_))), "a negative gate");
}

fn packed_is_alive(decoded: &[f32]) -> bool {
    decoded.chunks(FEATURES).all(|row| row.iter().any(|w| *w != 0.0))
}

#[test]
fn balanced_calibration_helps_the_rare_experts() {
    // The same number of tokens, skewed to expert 0 or even over four experts.
    let mut random = Random::new(5);
    let directions = values(&mut random, FEATURES * FEATURES);
    let token = |random: &mut Random| -> Vec<f32> {
        let latent = values(random, FEATURES);
        let strong = |i: usize| if i.is_multiple_of(5) { 3.0 } else { 0.3 };
        (0..FEATURES)
            .map(|o| (0..FEATURES).map(|i| strong(i) * latent[i] * directions[o * FEATURES + i]).sum())
            .collect()
    };
    let weights: Vec<Vec<f32>> = (0..4).map(|_| values(&mut random, ROWS * FEATURES)).collect();
    let held_out: Vec<Vec<f32>> = (0..200).map(|_| token(&mut random)).collect();
    let mut worst = |shares: [usize; 4]| {
        let mut grams = ExpertGrams::new(4, FEATURES, GatePower::Linear);
        for (expert, share) in shares.into_iter().enumerate() {
            for _ in 0..share {
                grams.add(expert, &token(&mut random), &[0.5]).unwrap();
            }
        }
        let error = |expert: usize| {
            let w = &weights[expert];
            let weight = Shaped::new(w, &[ROWS, FEATURES]).unwrap();
            let (config, policy) = (GptqConfig::default(), UnseenExpert::Rtn);
            let decoded = grams.gptq(expert, &weight, format(), &config, policy).unwrap().0.packed.decode();
            let difference: Vec<f32> = w.iter().zip(&decoded).map(|(a, b)| a - b).collect();
            let of = |x: &Vec<f32>| -> f64 {
                let dot = |row: &[f32]| row.iter().zip(x).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                difference.chunks(FEATURES).map(|row| dot(row).powi(2)).sum()
            };
            held_out.iter().map(of).sum::<f64>()
        };
        (1..4).map(error).fold(0.0, f64::max)
    };
    let (skewed, even) = (worst([509, 2, 1, 0]), worst([128; 4]));
    assert!(even < 0.6 * skewed, "{even} against {skewed}");
}

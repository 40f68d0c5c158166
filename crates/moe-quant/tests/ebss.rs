//! Sampling balanced text: closed forms, ordinary beam search as a limit, a toy model with a biased router.
#![allow(clippy::cast_possible_truncation, reason = "small numbers made up for the tests")]

use moe_quant::{
    Counters, Ebss, EbssConfig, EbssError, Error, Filters, ModelError, RoutedModel, Step, ebss, imbalance,
};
use quant_calib::ExpertCounts;

const VOCABULARY: u32 = 24;
const EXPERTS: u32 = 8;

/// A model of random transitions; token `t` goes to experts `t % 8` and one more, and low tokens are likelier.
struct Toy {
    logits: Vec<Vec<f32>>,
}

impl Toy {
    fn new() -> Self {
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
        let row = |from: u32| {
            (0..VOCABULARY).map(move |to| 2.0 * noise(from * 97 + to * 31 + 5) - 0.12 * (to % EXPERTS) as f32)
        };
        Self { logits: (0..VOCABULARY).map(|from| row(from).collect()).collect() }
    }
}

impl RoutedModel for Toy {
    type Past = Vec<u32>;

    fn vocabulary(&self) -> usize {
        VOCABULARY as usize
    }

    fn mixtures(&self) -> Vec<(usize, usize)> {
        vec![(EXPERTS as usize, 2); 2]
    }

    fn begin(&self) -> Result<Vec<u32>, ModelError> {
        Ok(Vec::new())
    }

    fn fork(&self, past: &Vec<u32>) -> Result<Vec<u32>, ModelError> {
        Ok(past.clone())
    }

    fn step(&self, past: &mut Vec<u32>, token: u32) -> Result<Step, ModelError> {
        past.push(token);
        let expert = token % EXPERTS;
        let pair = |shift: u32| vec![expert, (expert + shift) % EXPERTS];
        Ok(Step { log_probs: self.logits[token as usize].clone(), experts: vec![pair(1), pair(2)] })
    }
}

fn config() -> EbssConfig {
    EbssConfig { sequences: 6, length: 64, ..EbssConfig::default() }
}

fn run(config: &EbssConfig) -> Ebss {
    ebss(&Toy::new(), config, &mut |_| {}).unwrap()
}

#[test]
fn imbalance_has_its_closed_forms() {
    for experts in [8_u32, 64] {
        let e = f64::from(experts);
        let counts = |choices: Vec<u32>| {
            let mut counts = ExpertCounts::new(experts as usize, 1).unwrap();
            counts.add(&choices, None).unwrap();
            imbalance(&[counts])
        };
        assert!(counts((0..experts).collect()) < 1e-15, "even use");
        assert!((counts(vec![3; 10]) - 1.0 / e.sqrt()).abs() < 1e-12, "one expert");
        assert!((counts((0..experts / 2).collect()) - 1.0 / (e * (e - 1.0)).sqrt()).abs() < 1e-12, "half of them");
    }
    assert_eq!(imbalance(&[]), 0.0);
}

/// Beam search by length-normalized likelihood, written plainly.
fn beam(first: u32, width: usize, length: usize) -> Vec<u32> {
    let toy = Toy::new();
    let log_probs = |token: u32| {
        let logits = &toy.logits[token as usize];
        let norm = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        logits.iter().map(|l| f64::from(*l) - norm).collect::<Vec<f64>>()
    };
    let mut branches = vec![(0.0, vec![first])];
    for _ in 1..length {
        let mut all = Vec::new();
        for (score, tokens) in &branches {
            for (next, p) in log_probs(tokens[tokens.len() - 1]).into_iter().enumerate() {
                all.push((score + p, [tokens.clone(), vec![u32::try_from(next).unwrap()]].concat()));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all.truncate(width);
        branches = all;
    }
    branches.swap_remove(0).1
}

#[test]
fn an_infinite_temperature_is_ordinary_beam_search() {
    let found = run(&EbssConfig { tau: f64::INFINITY, ..config() });
    for window in found.set.windows() {
        assert_eq!(window, &beam(window[0], 4, 64));
    }
    let greedy = run(&EbssConfig { tau: f64::INFINITY, width: 1, ..config() });
    for window in greedy.set.windows() {
        assert_eq!(window, &beam(window[0], 1, 64));
    }
}

#[test]
fn lower_temperatures_balance_more_at_a_price_in_perplexity() {
    for counters in [Counters::Set, Counters::Sequence] {
        let of = |tau: f64| run(&EbssConfig { tau, counters, ..config() }).report;
        let reports = [f64::INFINITY, 1.0, 0.2, 0.02].map(of);
        let sigma: Vec<f64> = reports.iter().map(|report| report.imbalance).collect();
        assert!(sigma[3] < 0.5 * sigma[0], "{counters:?}: {sigma:?}");
        assert!(sigma[1] <= sigma[0] && sigma[3] < sigma[1], "{counters:?}: {sigma:?}");
        assert!(reports[1].perplexity < 1.1 * reports[0].perplexity, "{counters:?}");
        assert!(reports[3].perplexity > reports[0].perplexity, "{counters:?}");
    }
}

#[test]
fn sampled_text_is_less_balanced_than_searched_text_and_skewed_text_least() {
    let sigma = |tokens: &[u32]| {
        let mut layers = vec![ExpertCounts::new(EXPERTS as usize, 2).unwrap(); 2];
        for &token in tokens {
            let expert = token % EXPERTS;
            layers[0].add(&[expert, (expert + 1) % EXPERTS], None).unwrap();
            layers[1].add(&[expert, (expert + 2) % EXPERTS], None).unwrap();
        }
        imbalance(&layers)
    };
    // What the model writes when the next token is drawn by its probability.
    let toy = Toy::new();
    let (mut token, mut sampled) = (0_u32, Vec::new());
    for i in 0..6 * 64_u32 {
        let weights: Vec<f64> = toy.logits[token as usize].iter().map(|l| f64::from(*l).exp()).collect();
        let mut left = f64::from(i.wrapping_mul(2_654_435_769)) / 2.0_f64.powi(32) * weights.iter().sum::<f64>();
        token = 0;
        while left >= weights[token as usize] && token + 1 < VOCABULARY {
            left -= weights[token as usize];
            token += 1;
        }
        sampled.push(token);
    }
    // Without filters a beam search goes round in circles, which is anything but balanced.
    let filters = Filters { most_equal: Some(2), no_repeat: Some(3), ..Filters::default() };
    let balanced = run(&EbssConfig { tau: 0.005, filters, ..config() });
    let (searched, sampled, skewed) = (sigma(&balanced.set.windows().concat()), sigma(&sampled), sigma(&[0, 8, 16, 1]));
    assert!((searched - balanced.report.imbalance).abs() < 1e-12, "the report tells the truth");
    assert!(searched < sampled && sampled < skewed, "{searched}, {sampled}, {skewed}");
}

#[test]
fn the_same_seed_gives_the_same_tokens_for_any_number_of_threads_and_they_survive_being_saved() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| run(&config()));
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(|| run(&config()));
    assert_eq!(one, three);
    let saved = serde_json::to_string(&one).unwrap();
    let read: Ebss = serde_json::from_str(&saved).unwrap();
    assert_eq!((read.set, read.config), (one.set.clone(), one.config.clone()));
    assert_ne!(run(&EbssConfig { seed: 1, ..config() }).set, one.set, "another seed");
    assert!(serde_json::from_str::<Ebss>(&saved.replacen("\"windows\":[[", "\"windows\":[[1,", 1)).is_err(), "forged");
}

#[test]
fn filters_are_kept_and_reported() {
    let filters = Filters { top_tokens: Some(6), most_equal: Some(2), no_repeat: Some(3), banned: vec![0, 7] };
    let found = run(&EbssConfig { tau: f64::INFINITY, filters, ..config() });
    for window in found.set.windows() {
        assert!(window.iter().all(|token| ![0, 7].contains(token)), "banned");
        assert!(window.windows(3).all(|w| w[0] != w[1] || w[1] != w[2]), "three in a row");
        let mut triples: Vec<&[u32]> = window.windows(3).collect();
        triples.sort_unstable();
        assert!(triples.windows(2).all(|pair| pair[0] != pair[1]), "a triple occurs twice");
    }
    let left_out = found.report.left_out;
    assert!(left_out.banned > 0 && left_out.no_repeat > 0, "{left_out:?}");
}

#[test]
fn impossible_settings_and_models_are_refused() {
    let refused = |config: EbssConfig| match ebss(&Toy::new(), &config, &mut |_| {}) {
        Err(EbssError::Refused(Error::Setting { name, .. })) => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(EbssConfig { tau: 0.0, ..config() }), "tau");
    assert_eq!(refused(EbssConfig { tau: f64::NAN, ..config() }), "tau");
    assert_eq!(refused(EbssConfig { width: 0, ..config() }), "width");
    assert_eq!(refused(EbssConfig { sequences: 0, ..config() }), "sequences");
    assert_eq!(refused(EbssConfig { length: 1, ..config() }), "length");
    let all = Filters { banned: (0..VOCABULARY).collect(), ..Filters::default() };
    assert_eq!(refused(EbssConfig { filters: all, ..config() }), "vocabulary");
    let strict = Filters { banned: (1..VOCABULARY).collect(), most_equal: Some(2), ..Filters::default() };
    let found = ebss(&Toy::new(), &EbssConfig { filters: strict, ..config() }, &mut |_| {});
    assert!(matches!(found, Err(EbssError::DeadEnd { position: 2 })), "{found:?}");
    let broken = Toy { logits: vec![vec![f32::NAN; VOCABULARY as usize]; VOCABULARY as usize] };
    let found = ebss(&broken, &config(), &mut |_| {});
    assert!(matches!(found, Err(EbssError::Step { .. })), "{found:?}");
}

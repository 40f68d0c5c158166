//! Sampling balanced text: closed forms, ordinary beam search as a limit, a toy model with a biased router.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "small numbers made up for the tests")]

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
fn searched_text_is_more_balanced_than_sampled_text_of_its_perplexity_and_skewed_text_least() {
    let mean = |config: &EbssConfig| {
        let reports: Vec<_> = (0..6).map(|seed| run(&EbssConfig { seed, ..config.clone() }).report).collect();
        let of = |f: fn(&moe_quant::EbssReport) -> f64| reports.iter().map(f).sum::<f64>() / reports.len() as f64;
        (of(|report| report.perplexity), of(|report| report.imbalance))
    };
    for (tau, counters) in [(0.05, Counters::Set), (0.005, Counters::Set), (0.05, Counters::Sequence)] {
        let (perplexity, searched) = mean(&EbssConfig { tau, counters, ..config() });
        let drawn = |temperature: f64| mean(&EbssConfig { temperature: Some(temperature), ..config() });
        let (mut low, mut high) = (0.05, 2.0);
        for _ in 0..10 {
            let middle = f64::midpoint(low, high);
            *(if drawn(middle).0 < perplexity { &mut low } else { &mut high }) = middle;
        }
        let (found, sampled) = drawn(high);
        assert!((found / perplexity - 1.0).abs() < 0.02, "{found} and {perplexity}");
        assert!(searched < 0.9 * sampled, "tau {tau}, {counters:?}: {searched} and {sampled}");
        assert!(sampled < 0.18, "less than when all goes to experts 0 to 2 of 8");
    }
}

#[test]
fn drawn_text_follows_the_model_and_its_temperature() {
    let of = |temperature: f64| run(&EbssConfig { temperature: Some(temperature), ..config() });
    // Next to nothing is left but the likeliest token.
    let greedy = run(&EbssConfig { tau: f64::INFINITY, width: 1, ..config() }).set.windows()[0].clone();
    let cold = of(1e-6).set.windows()[0].clone();
    assert_eq!(cold, greedy);
    let perplexities = [1e-6, 0.5, 1.0, 4.0].map(|temperature| of(temperature).report.perplexity);
    assert!(perplexities.is_sorted(), "{perplexities:?}");
    // At temperature 1 the mean of −log p is the entropy of the model.
    let long = run(&EbssConfig { temperature: Some(1.0), sequences: 1, length: 20_000, ..config() });
    let toy = Toy::new();
    let entropy = |token: u32| -> f64 {
        let logits = &toy.logits[token as usize];
        let norm = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        logits.iter().map(|l| (f64::from(*l) - norm).exp() * (norm - f64::from(*l))).sum()
    };
    let window = &long.set.windows()[0];
    let expected = window[..window.len() - 1].iter().map(|t| entropy(*t)).sum::<f64>() / (window.len() - 1) as f64;
    assert!((long.report.perplexity.ln() - expected).abs() < 0.03, "{} and {expected}", long.report.perplexity.ln());
    let filters = Filters { top_tokens: Some(3), ..Filters::default() };
    let few = run(&EbssConfig { temperature: Some(4.0), filters, ..config() });
    assert!(few.report.perplexity < perplexities[3], "filters hold for drawn text too");
    assert!(few.set != of(4.0).set && of(4.0) == of(4.0));
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
    assert_eq!(refused(EbssConfig { temperature: Some(0.0), ..config() }), "temperature");
    assert_eq!(refused(EbssConfig { temperature: Some(f64::NAN), ..config() }), "temperature");
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

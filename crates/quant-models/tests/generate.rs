//! Writing text.

mod common;

use common::{all_logits, config, random_model, some_tokens};
use quant_models::{Decoder, Error, Generate, KvState, Sampler, Sampling, generate};
use serde_json::json;
use std::ops::ControlFlow;

fn write(model: &Decoder, prompt: &[u32], options: &Generate) -> Vec<u32> {
    generate(model, prompt, &mut KvState::plain(model.config()), options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, top_k: None, top_p: None, seed }
}

#[test]
fn greedy_text_takes_the_likeliest_token_each_time() {
    let model = random_model(&config(json!({})), 1);
    let prompt = some_tokens(6, 40, 1);
    let options = Generate { max_tokens: 12, sampling: Sampling::GREEDY, stop: vec![] };
    let found = write(&model, &prompt, &options);
    let mut text = prompt.clone();
    for _ in 0..12 {
        let logits = all_logits(&model, &text);
        let last = &logits[(text.len() - 1) * 40..];
        text.push((0..40).max_by(|a, b| last[*a as usize].total_cmp(&last[*b as usize])).unwrap());
    }
    assert_eq!(found, text[6..], "as without a cache");
}

#[test]
fn a_seed_decides_the_text() {
    let model = random_model(&config(json!({})), 2);
    let prompt = some_tokens(4, 40, 2);
    let with = |seed| write(&model, &prompt, &Generate { max_tokens: 30, sampling: sampled(seed), stop: vec![] });
    assert_eq!(with(1), with(1), "the same again");
    assert_ne!(with(1), with(2), "another seed, another text");
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let logits = [1.0_f32, 0.0, 2.0, -1.0].map(|x| x * 0.7);
    for (temperature, top_k, top_p) in
        [(1.0, None, None), (0.5, None, None), (1.0, Some(2), None), (1.0, None, Some(0.7))]
    {
        let sampling = Sampling { temperature, top_k, top_p, seed: 5 };
        let mut weights = logits.map(|x| (f64::from(x) / temperature).exp());
        match (top_k, top_p) {
            (Some(2), _) => (weights[1], weights[3]) = (0.0, 0.0),
            // The two likeliest hold 0.53 + 0.26 of the probability: both are needed for 0.7.
            (_, Some(_)) => (weights[1], weights[3]) = (0.0, 0.0),
            _ => {}
        }
        let total: f64 = weights.iter().sum();
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            counts[sampler.choose(&logits).unwrap() as usize] += 1.0;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let (share, expected) = (count / 20_000.0, weight / total);
            // Four standard deviations of 20,000 draws.
            let bound = 4.0 * (expected * (1.0 - expected) / 20_000.0_f64).sqrt();
            assert!((share - expected).abs() <= bound, "{sampling:?}: {share} instead of {expected}");
        }
    }
}

#[test]
fn the_narrowest_sampling_is_greedy() {
    let logits = [0.0, 3.0, 3.0, -1.0];
    for sampling in
        [Sampling::GREEDY, Sampling { top_k: Some(1), ..sampled(3) }, Sampling { top_p: Some(1e-9), ..sampled(3) }]
    {
        let mut sampler = Sampler::new(sampling).unwrap();
        assert!((0..50).all(|_| sampler.choose(&logits).unwrap() == 1), "the first of equals: {sampling:?}");
    }
}

#[test]
fn text_ends_at_a_stop_token_at_the_limit_or_when_told() {
    let model = random_model(&config(json!({})), 3);
    let prompt = some_tokens(5, 40, 3);
    let free = Generate { max_tokens: 20, sampling: sampled(8), stop: vec![] };
    let whole = write(&model, &prompt, &free);
    assert_eq!(whole.len(), 20, "the limit");
    let stop = whole[7];
    let first = whole.iter().position(|token| *token == stop).unwrap();
    let stopped = write(&model, &prompt, &Generate { stop: vec![stop], ..free.clone() });
    assert_eq!(stopped, whole[..first], "the stop token is not part of the text");
    let mut shown = Vec::new();
    let mut cache = KvState::plain(model.config());
    let broken = generate(&model, &prompt, &mut cache, &free, &mut |token| {
        shown.push(token);
        if shown.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((broken.unwrap(), shown.as_slice()), (whole[..3].to_vec(), &whole[..3]), "what was shown was written");
    assert_eq!(cache.len(), 5 + 2, "the last token is not in the cache yet");
    assert!(write(&model, &prompt, &Generate { max_tokens: 0, ..free }).is_empty(), "nothing is asked for");
}

#[test]
fn settings_outside_their_range_are_refused() {
    let cases = [
        (Sampling { temperature: -0.1, ..sampled(0) }, "temperature"),
        (Sampling { temperature: f64::NAN, ..sampled(0) }, "temperature"),
        (Sampling { top_k: Some(0), ..sampled(0) }, "top_k"),
        (Sampling { top_p: Some(0.0), ..sampled(0) }, "top_p"),
        (Sampling { top_p: Some(1.1), ..sampled(0) }, "top_p"),
        (Sampling { top_p: Some(f64::NAN), ..sampled(0) }, "top_p"),
    ];
    for (sampling, expected) in cases {
        let error = Sampler::new(sampling).unwrap_err();
        assert!(matches!(error, Error::BadSetting { name, .. } if name == expected), "{error}");
    }
    let mut sampler = Sampler::new(sampled(0)).unwrap();
    assert!(matches!(sampler.choose(&[0.0, f32::NAN]), Err(Error::NonFiniteLogits { .. })));
    assert!(matches!(sampler.choose(&[]), Err(Error::NonFiniteLogits { .. })));
}

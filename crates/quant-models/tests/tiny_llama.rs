//! The project's own model against the figures of transformers that lie beside it.

#![allow(clippy::cast_possible_truncation, reason = "token ids are small and f32 is what is compared")]

mod common;

use common::largest_difference;
use quant_models::eval::{Score, WindowOptions, Windows, log_softmax, perplexity};
use quant_models::{Decoder, Generate, KvState, Sampling, Text, generate};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

fn model() -> Decoder {
    Decoder::open(&models().join("tiny-llama")).unwrap()
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(models().join("tiny-llama/golden.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn the_logits_of_the_prompt_are_those_of_transformers() {
    let (model, golden) = (model(), golden());
    let text = Text::open(&models().join("tiny-llama"), model.config()).unwrap();
    let ids = text.encode(golden["prompt"].as_str().unwrap().as_bytes()).unwrap().ids;
    assert_eq!(ids.iter().map(|id| *id as f32).collect::<Vec<_>>(), numbers(&golden["ids"]), "a byte is a token");
    let hidden = model.hidden(&[&ids], None).unwrap();
    let logits = model.logits(&hidden, 0..ids.len()).unwrap();
    let last = &logits[(ids.len() - 1) * 256..];
    let difference = largest_difference(last, &numbers(&golden["last_logits"]));
    assert!(difference < 1e-4, "logits differ by {difference}");
    let top = |row: &[f32]| (0..256).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as f32;
    let tops: Vec<f32> = logits.chunks(256).map(top).collect();
    assert_eq!(tops, numbers(&golden["all_positions_argmax"]), "the likeliest byte everywhere");
    let nll: f64 = (1..ids.len()).map(|t| -log_softmax(&logits[(t - 1) * 256..t * 256], ids[t] as usize)).sum();
    let expected = golden["nll_sum"].as_f64().unwrap();
    println!("logits differ by {difference:.1e}, nll by {:.1e} of {expected}", (nll - expected).abs());
    assert!((nll - expected).abs() < 1e-3, "{nll} instead of {expected}");
}

fn score(max_tokens: Option<usize>) -> Score {
    let text = Text::Bytes.encode(&std::fs::read(models().join("heldout.txt")).unwrap()).unwrap();
    let options = WindowOptions { max_tokens, ..WindowOptions::new(512) };
    let windows = Windows::of_text(&text, options).unwrap();
    let started = std::time::Instant::now();
    let score = perplexity(&model(), &windows, &mut |_| {}).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let rows: usize = windows.list().iter().map(|window| window.tokens.len() - 1).sum();
    println!("{:.4} in {seconds:.2} s, {:.0} tokens/s", score.perplexity(), rows as f64 / seconds);
    score
}

fn check(found: Score, expected: &Value) {
    assert_eq!(found.tokens as u64, expected["bytes_scored"].as_u64().unwrap(), "the same bytes are scored");
    let error = (found.nll / expected["nll_sum"].as_f64().unwrap() - 1.0).abs();
    assert!(error < 1e-6, "negative log likelihood differs by {error} of itself");
    let bits = found.bits_per_byte();
    assert!((bits - expected["bits_per_byte"].as_f64().unwrap()).abs() < 1e-5, "{bits} bits a byte");
}

#[test]
fn the_first_windows_of_the_held_out_text_score_as_in_transformers() {
    check(score(Some(4096)), &golden()["heldout_4096"]);
}

#[test]
fn the_whole_held_out_text_scores_as_in_transformers() {
    check(score(None), &golden()["heldout_all"]);
}

#[test]
fn it_writes_what_it_finds_likeliest() {
    let (model, golden) = (model(), golden());
    let prompt = golden["prompt"].as_str().unwrap();
    let ids = Text::Bytes.encode(prompt.as_bytes()).unwrap().ids;
    let options = Generate { max_tokens: 60, sampling: Sampling::GREEDY, stop: vec![] };
    let mut cache = KvState::plain(model.config());
    let written = generate(&model, &ids, &mut cache, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    println!("{prompt}{}", Text::Bytes.decode(&written).unwrap());
    // Read at once, each byte is the likeliest after the ones before.
    let whole = [ids.as_slice(), &written].concat();
    let hidden = model.hidden(&[&whole], None).unwrap();
    for (t, byte) in written.iter().enumerate() {
        let row = ids.len() + t - 1;
        let logits = model.logits(&hidden, row..row + 1).unwrap();
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(best - logits[*byte as usize] < 1e-3, "byte {t}");
    }
}

//! The project's own models beside `tiny-llama` against the figures that lie beside them: of transformers for `tiny-qwen`
//! and `tiny-moe`, of a numpy recurrence for `tiny-rwkv7`.

#![allow(clippy::cast_possible_truncation, reason = "token ids are small and f32 is what is compared")]

mod common;

use common::largest_difference;
use quant_models::eval::{WindowOptions, Windows, log_softmax, perplexity};
use quant_models::{Decoder, KeyValues, KvState, Observer, Routing, Text};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(models().join(name).join("golden.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// Logits of the prompt, at once and byte by byte, and the score of the first held-out windows.
fn check(name: &str) -> Decoder {
    let (model, golden) = (Decoder::open(&models().join(name)).unwrap(), golden(name));
    let ids: Vec<u32> = numbers(&golden["ids"]).iter().map(|id| *id as u32).collect();
    let hidden = model.hidden(&[&ids], None).unwrap();
    let logits = model.logits(&hidden, 0..ids.len()).unwrap();
    let expected = numbers(&golden["last_logits"]);
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let difference = largest_difference(&logits[(ids.len() - 1) * 256..], &expected);
    println!("{name}: logits up to {largest:.2} differ by {difference:.1e}");
    assert!(difference < 1e-5 * largest, "{name}: logits up to {largest} differ by {difference}");
    let top = |row: &[f32]| (0..256).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as f32;
    let tops: Vec<f32> = logits.chunks(256).map(top).collect();
    assert_eq!(tops, numbers(&golden["all_positions_argmax"]), "the likeliest byte everywhere");
    let nll: f64 = (1..ids.len()).map(|t| -log_softmax(&logits[(t - 1) * 256..t * 256], ids[t] as usize)).sum();
    let expected = golden["nll_sum"].as_f64().unwrap();
    assert!((nll / expected - 1.0).abs() < 1e-5, "{name}: {nll} instead of {expected}");

    let mut cache = KvState::plain(model.config());
    for (t, id) in ids.iter().enumerate() {
        let hidden = model.extend(&[*id], &mut cache, None).unwrap();
        let row = model.logits(&hidden, 0..1).unwrap();
        let difference = largest_difference(&row, &logits[t * 256..(t + 1) * 256]);
        assert!(difference < 2e-5 * largest, "{name}: byte {t} read alone differs by {difference}");
    }

    let expected = &golden["heldout_4096"];
    let text = Text::Bytes.encode(&std::fs::read(models().join("heldout.txt")).unwrap()).unwrap();
    let window = expected["window"].as_u64().unwrap() as usize;
    let windows =
        Windows::of_text(&text, WindowOptions { max_tokens: Some(4096), ..WindowOptions::new(window) }).unwrap();
    let score = perplexity(&model, &windows, &mut |_| {}).unwrap();
    assert_eq!(score.tokens as u64, expected["bytes_scored"].as_u64().unwrap(), "the same bytes are scored");
    let error = (score.nll / expected["nll_sum"].as_f64().unwrap() - 1.0).abs();
    println!(
        "{name}: {:.5} bits a byte, negative log likelihood differs by {error:.1e} of itself",
        score.bits_per_byte()
    );
    assert!(error < 2e-6, "{name}: negative log likelihood differs by {error} of itself");
    model
}

/// Mean magnitudes of keys and values by layer, and how often each expert is taken.
#[derive(Default)]
struct Means {
    keys: Vec<f32>,
    values: Vec<f32>,
    counts: Vec<Vec<u64>>,
}

fn mean_abs(x: &[f32]) -> f32 {
    (x.iter().map(|v| f64::from(v.abs())).sum::<f64>() / x.len() as f64) as f32
}

impl Observer for Means {
    fn input(&mut self, _slot: &str, _features: usize, _input: &[f32]) {}
    fn key_values(&mut self, rows: &KeyValues<'_>) {
        self.keys.push(mean_abs(rows.keys));
        self.values.push(mean_abs(rows.values));
    }
    fn routing(&mut self, routing: &Routing<'_>) {
        if self.counts.len() <= routing.layer {
            self.counts.resize(routing.layer + 1, vec![0; routing.experts]);
        }
        self.counts[routing.layer].iter_mut().zip(routing.counts()).for_each(|(sum, count)| *sum += count);
    }
}

fn check_keys_and_values(name: &str, model: &Decoder) {
    let golden = golden(name);
    let ids: Vec<u32> = numbers(&golden["ids"]).iter().map(|id| *id as u32).collect();
    let mut seen = Means::default();
    model.hidden(&[&ids], Some(&mut seen)).unwrap();
    for (found, key) in [(&seen.keys, "key_mean_abs"), (&seen.values, "value_mean_abs")] {
        for (layer, (found, expected)) in found.iter().zip(numbers(&golden[key])).enumerate() {
            assert!((found / expected - 1.0).abs() < 1e-5, "{name}: {key} of layer {layer}: {found} not {expected}");
        }
        assert_eq!(found.len(), model.config().layers, "one a layer");
    }
}

#[test]
fn tiny_qwen_agrees_with_transformers() {
    let model = check("tiny-qwen");
    check_keys_and_values("tiny-qwen", &model);
    assert!(model.config().qkv_bias && model.config().kv_heads < model.config().heads, "biases and grouped heads");
}

#[test]
fn tiny_moe_agrees_with_transformers_and_takes_the_same_experts() {
    let model = check("tiny-moe");
    check_keys_and_values("tiny-moe", &model);
    let golden = golden("tiny-moe");
    let text = std::fs::read(models().join("heldout.txt")).unwrap();
    let window = golden["heldout_all"]["window"].as_u64().unwrap() as usize;
    let mut seen = Means::default();
    for part in text.chunks_exact(window).collect::<Vec<_>>().chunks(4) {
        let texts: Vec<Vec<u32>> = part.iter().map(|text| text.iter().map(|byte| u32::from(*byte)).collect()).collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        model.hidden(&texts, Some(&mut seen)).unwrap();
    }
    let (mut moved, mut all) = (0, 0);
    for (found, expected) in seen.counts.iter().zip(golden["expert_counts_heldout"].as_array().unwrap()) {
        for (found, expected) in found.iter().zip(expected.as_array().unwrap()) {
            moved += found.abs_diff(expected.as_u64().unwrap());
            all += found;
        }
    }
    println!("tiny-moe: {moved} of {all} choices of experts differ");
    // Logits that are equal but for rounding may fall either way.
    assert!(all > 0 && moved * 10_000 < all, "{moved} of {all} choices of experts differ");
}

#[test]
fn tiny_rwkv7_agrees_with_the_recurrence_in_numpy() {
    let model = check("tiny-rwkv7");
    assert!(model.config().rwkv.is_some(), "a recurrence");
}

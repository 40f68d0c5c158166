//! Logits, caches and perplexities against figures of PyTorch and transformers, for models that are at hand.

#![allow(clippy::cast_possible_truncation, reason = "token ids are small and f32 is what is compared")]

mod common;

use common::{downloaded, shared};
use quant_models::eval::{WindowOptions, Windows, log_softmax, perplexity};
use quant_models::{BoxError, Decoder, KvCache, KvRows, KvScratch, KvState, PlainKvCache, Text, Tokens};
use serde_json::Value;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A cache that also shows its rows to the test.
#[derive(Debug)]
struct Watched(PlainKvCache, Arc<Mutex<Vec<f32>>>);

impl KvCache for Watched {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn append<'a>(&'a mut self, new: KvRows<'_>, scratch: &'a mut KvScratch) -> Result<KvRows<'a>, BoxError> {
        let rows = self.0.append(new, scratch)?;
        *self.1.lock().unwrap() = [rows.keys, rows.values].map(mean_abs).to_vec();
        Ok(rows)
    }
    fn reset(&mut self) {
        self.0.reset();
    }
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}

fn mean_abs(x: &[f32]) -> f32 {
    (x.iter().map(|v| f64::from(v.abs())).sum::<f64>() / x.len() as f64) as f32
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Compares everything that a golden file holds; returns the largest difference of its logits.
fn compare_with_golden(folder: &Path, golden: &Path, tolerance: f64) {
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let ids: Vec<u32> = numbers(&golden["ids"]).iter().map(|v| *v as u32).collect();
    let model = Decoder::open(folder).unwrap();
    let vocab = model.config().vocab_size;
    let seen: Vec<_> = (0..model.config().layers).map(|_| Arc::new(Mutex::new(Vec::new()))).collect();
    let mut cache = KvState::with(model.config(), |layer, geometry| {
        Box::new(Watched(PlainKvCache::new(geometry), Arc::clone(&seen[layer])))
    });
    let hidden = model.extend(&ids, &mut cache, None).unwrap();
    let logits = model.logits(&hidden, 0..ids.len()).unwrap();

    let mut worst = 0.0_f64;
    let last = &logits[(ids.len() - 1) * vocab..];
    let mut order: Vec<usize> = (0..vocab).collect();
    order.sort_by(|a, b| last[*b].total_cmp(&last[*a]));
    for (rank, pair) in golden["last_top10"].as_array().unwrap().iter().enumerate() {
        let pair = numbers(pair);
        assert_eq!(order[rank], pair[0] as usize, "token of rank {rank}");
        worst = worst.max((f64::from(last[order[rank]]) - pair[1]).abs());
    }
    let mean = logits.iter().map(|v| f64::from(*v)).sum::<f64>() / logits.len() as f64;
    worst = worst.max((mean - golden["logits_mean"].as_f64().unwrap()).abs());
    let nll: f64 = (1..ids.len()).map(|t| -log_softmax(&logits[(t - 1) * vocab..t * vocab], ids[t] as usize)).sum();
    let nll_error = (nll - golden["nll_sum"].as_f64().unwrap()).abs();
    let mut cache_error = 0.0_f64;
    for (at, key) in ["key_mean_abs", "value_mean_abs"].iter().enumerate() {
        for (layer, expected) in numbers(&golden[key]).iter().enumerate() {
            cache_error = cache_error.max((f64::from(seen[layer].lock().unwrap()[at]) - expected).abs());
        }
    }
    println!(
        "{}: logits differ by {worst:.1e}, nll by {nll_error:.1e} of {nll:.3}, cache means by {cache_error:.1e}",
        folder.display()
    );
    assert!(worst < tolerance, "logits differ by {worst}");
    assert!(nll_error < tolerance * 10.0, "negative log likelihood differs by {nll_error}");
    assert!(cache_error < tolerance, "means of keys and values differ by {cache_error}");
}

/// The rows of WikiText joined by blank lines, as papers on quantization evaluate it.
fn wikitext(path: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(path).unwrap();
    let rows: Vec<&str> = text.split_inclusive('\n').map(|row| if row.trim().is_empty() { "" } else { row }).collect();
    rows.join("\n\n").into_bytes()
}

fn stories(folder: &Path, text: &Path, context: usize) -> (usize, f64) {
    let model = Decoder::open(folder).unwrap();
    let encoder = Text::open(folder, model.config()).unwrap();
    let text = std::fs::read_to_string(text).unwrap();
    let documents = text.split("<|endoftext|>").map(str::trim).filter(|document| !document.is_empty());
    let documents: Vec<Tokens> = documents.map(|document| encoder.encode(document.as_bytes()).unwrap()).collect();
    let options = WindowOptions { bos: model.config().bos, max_tokens: Some(20480), ..WindowOptions::new(context) };
    let windows = Windows::of_documents(&documents, options).unwrap();
    let started = std::time::Instant::now();
    let score = perplexity(&model, &windows, &mut |_| {}).unwrap();
    println!("{}: {:.4} over {} tokens in {:?}", folder.display(), score.perplexity(), score.tokens, started.elapsed());
    (score.tokens, score.perplexity())
}

fn close(found: f64, expected: f64) -> bool {
    (found / expected - 1.0).abs() < 5e-5
}

#[test]
fn stories260k_gives_the_logits_of_pytorch() {
    let Some(data) = shared() else { return };
    compare_with_golden(&data.join("stories260k"), &data.join("golden/stories260k.json"), 2e-5);
}

#[test]
fn stories260k_has_the_perplexity_of_pytorch() {
    let Some(data) = shared() else { return };
    let (tokens, found) = stories(&data.join("stories260k"), &data.join("text/tinystories-slice.txt"), 512);
    assert_eq!(tokens, 20_416, "the same tokens are scored");
    assert!(close(found, 3.6545), "{found}");
}

#[test]
fn stories15m_gives_the_logits_and_perplexity_of_pytorch() {
    let (Some(data), Some(folder)) = (shared(), downloaded("stories15m")) else { return };
    compare_with_golden(&folder, &data.join("golden/stories15m.json"), 1e-4);
    let (tokens, found) = stories(&folder, &data.join("text/tinystories-slice.txt"), 256);
    assert_eq!(tokens, 20_296, "the same tokens are scored");
    assert!(close(found, 3.5856), "{found}");
}

#[test]
fn smollm2_gives_the_logits_and_perplexity_of_pytorch() {
    let Some(data) = shared() else { return };
    if let Some(folder) = downloaded("smollm2-f32") {
        compare_with_golden(&folder, &data.join("golden/smollm2-f32.json"), 5e-4);
    }
    let Some(folder) = downloaded("smollm2") else { return };
    let model = Decoder::open(&folder).unwrap();
    let encoder = Text::open(&folder, model.config()).unwrap();
    let tokens = encoder.encode(&wikitext(&data.join("text/wikitext2-test.raw"))).unwrap();
    assert_eq!(tokens.len(), 304_978, "tokens of the joined text");
    let options = WindowOptions { max_tokens: Some(20480), ..WindowOptions::new(2048) };
    let windows = Windows::of_text(&tokens, options).unwrap();
    let started = std::time::Instant::now();
    let score = perplexity(&model, &windows, &mut |p| println!("{p:?}")).unwrap();
    println!("{:.4} over {} tokens in {:?}", score.perplexity(), score.tokens, started.elapsed());
    assert_eq!(score.tokens, 20_470, "the same tokens are scored");
    assert!(close(score.perplexity(), 19.9232), "{}", score.perplexity());
}

//! How fast a model folder runs on this machine, beside what its memory could do.

use crate::compress::activations;
use crate::table::{Align, Table};
use crate::{Error, Progress, Weights};
use quant_models::{Apply, Config, Decoder, KvState};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BenchOptions {
    /// Tokens of the prompt; at most half of what the model was trained for.
    pub prompt: usize,
    /// Tokens generated after it, one at a time.
    pub tokens: usize,
    /// How often each way runs; the fastest run counts.
    pub rounds: usize,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { prompt: 128, tokens: 32, rounds: 3 }
    }
}

/// What [`bench()`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BenchReport {
    /// Threads of the pool.
    pub threads: usize,
    /// What these threads together read from memory, GB/s, measured in the same run.
    pub read_gb_per_second: f64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// The ways in which the weights were applied.
    pub ways: Vec<BenchWay>,
}

/// One way to apply the weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BenchWay {
    /// `packed`: compressed weights in their fast arrangement. `f32`: all weights as f32, which is the only way of a
    /// folder that was never compressed.
    pub name: &'static str,
    /// Tokens of the prompt a second, all in one pass.
    pub prefill_tokens_per_second: f64,
    /// Tokens a second, one at a time after the prompt.
    pub decode_tokens_per_second: f64,
    /// Bytes of weights that one token reads: of the linears that ran, experts that were not chosen left out.
    pub bytes_per_token: u64,
    /// These bytes times the tokens a second, as a share of what memory gives. Above 1 weights came from caches.
    pub share_of_bandwidth: f64,
}

/// Times a model folder: a prompt in one pass, then token by token, with compressed weights as they are and as f32.
///
/// The tokens are made up; the time does not depend on them, but for the experts that they choose. Whichever way is
/// not measured does nothing meanwhile; the ways take turns.
///
/// # Errors
///
/// [`Error::Io`] and [`Error::Model`] for folders that cannot be loaded or run.
pub fn bench(
    model: impl AsRef<Path>,
    options: &BenchOptions,
    progress: &mut dyn Progress,
) -> Result<BenchReport, Error> {
    let model = model.as_ref();
    let weights = Weights::open(model)?;
    let config = Config::from_folder(model)?;
    let prompt = options.prompt.clamp(1, (config.max_positions / 2).max(1));
    let tokens = options.tokens.clamp(1, config.max_positions.saturating_sub(prompt).max(1));
    let rounds = options.rounds.max(1);
    progress.begin("timing", (2 * rounds * (prompt + tokens)) as u64);

    let mut decoders = vec![("f32", Decoder::from_source(config.clone(), &weights, Apply::Decoded)?)];
    if decoders[0].1.slots().any(|slot| slot.linear().is_some()) {
        decoders.insert(0, ("packed", Decoder::from_source(config, &weights, Apply::Prepared)?));
    }
    let input = activations(model, weights.checkpoint().config())?;
    let mut ways = Vec::new();
    for (name, decoder) in &mut decoders {
        if let Some(format) = input {
            let compressed = decoder.slots().filter(|slot| slot.linear().is_some());
            for slot in compressed.map(|slot| slot.name().to_owned()).collect::<Vec<_>>() {
                decoder.slot_mut(&slot)?.set_input_format(Some(format))?;
            }
        }
        let bytes_per_token = bytes_per_token(decoder)?;
        ways.push(BenchWay {
            name,
            prefill_tokens_per_second: 0.0,
            decode_tokens_per_second: 0.0,
            bytes_per_token,
            share_of_bandwidth: 0.0,
        });
    }
    let memory = vec![1_u64; READ_BYTES / 8];
    let mut read: f64 = 0.0;
    for _ in 0..rounds {
        read = read.max(read_rate(&memory));
        for ((name, decoder), way) in decoders.iter().zip(&mut ways) {
            let (prefill, decode) = run(decoder, prompt, tokens)?;
            way.prefill_tokens_per_second = way.prefill_tokens_per_second.max(rate(prompt, prefill));
            way.decode_tokens_per_second = way.decode_tokens_per_second.max(rate(tokens, decode));
            progress.advance((prompt + tokens) as u64, name);
        }
    }
    progress.end();
    for way in &mut ways {
        #[expect(clippy::cast_precision_loss, reason = "bytes of a model")]
        let bytes = way.bytes_per_token as f64;
        way.share_of_bandwidth = bytes * way.decode_tokens_per_second / 1e9 / read;
    }
    Ok(BenchReport { threads: rayon::current_num_threads(), read_gb_per_second: read, prompt, tokens, ways })
}

#[expect(clippy::cast_precision_loss, reason = "a number of tokens")]
fn rate(tokens: usize, seconds: f64) -> f64 {
    tokens as f64 / seconds.max(1e-9)
}

/// Made-up tokens.
fn token(decoder: &Decoder, index: usize) -> u32 {
    u32::try_from(index * 7919 % decoder.config().vocab_size.max(1)).unwrap_or(0)
}

/// Seconds of the prompt and of the tokens after it.
fn run(decoder: &Decoder, prompt: usize, tokens: usize) -> Result<(f64, f64), Error> {
    let mut cache = KvState::plain(decoder.config());
    let text: Vec<u32> = (0..prompt).map(|i| token(decoder, i)).collect();
    let start = Instant::now();
    let hidden = decoder.extend(&text, &mut cache, None)?;
    // Only the last token's logits are wanted, as when text is generated.
    decoder.logits(&hidden, prompt - 1..prompt)?;
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for i in 0..tokens {
        let hidden = decoder.extend(&[token(decoder, prompt + i)], &mut cache, None)?;
        decoder.logits(&hidden, 0..1)?;
    }
    Ok((prefill, start.elapsed().as_secs_f64()))
}

/// Bytes of the linears that one token passes.
fn bytes_per_token(decoder: &Decoder) -> Result<u64, Error> {
    let mut ran = BTreeSet::new();
    let mut observer = |slot: &str, _: usize, _: &[f32]| {
        ran.insert(slot.to_owned());
    };
    let hidden = decoder.extend(&[0], &mut KvState::plain(decoder.config()), Some(&mut observer))?;
    decoder.logits_observed(&hidden, 0..1, Some(&mut observer))?;
    Ok(decoder.slots().filter(|slot| ran.contains(slot.name())).map(quant_models::Slot::bytes_read).sum())
}

/// More than caches hold.
const READ_BYTES: usize = 256 << 20;

/// GB/s that all threads together read.
fn read_rate(memory: &[u64]) -> f64 {
    let start = Instant::now();
    let sum = |part: &[u64]| part.iter().fold(0_u64, |sum, x| sum.wrapping_add(*x));
    std::hint::black_box(memory.par_chunks(1 << 17).map(sum).reduce(|| 0, u64::wrapping_add));
    #[expect(clippy::cast_precision_loss, reason = "bytes of a buffer")]
    let gigabytes = size_of_val(memory) as f64 / 1e9;
    gigabytes / start.elapsed().as_secs_f64()
}

impl BenchReport {
    /// The figures for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let headings = [
            ("weights", Align::Left),
            ("prefill, tokens/s", Align::Right),
            ("decode, tokens/s", Align::Right),
            ("MB a token", Align::Right),
            ("share of bandwidth", Align::Right),
        ];
        let mut table = Table::new(&headings);
        for way in &self.ways {
            #[expect(clippy::cast_precision_loss, reason = "bytes of a model")]
            let megabytes = way.bytes_per_token as f64 / 1e6;
            table.row(vec![
                way.name.to_owned(),
                format!("{:.1}", way.prefill_tokens_per_second),
                format!("{:.1}", way.decode_tokens_per_second),
                format!("{megabytes:.2}"),
                format!("{:.2}", way.share_of_bandwidth),
            ]);
        }
        format!(
            "{} threads; memory read at {:.1} GB/s; a prompt of {} tokens, then {} one by one\n\n{}",
            self.threads,
            self.read_gb_per_second,
            self.prompt,
            self.tokens,
            table.to_text()
        )
    }
}

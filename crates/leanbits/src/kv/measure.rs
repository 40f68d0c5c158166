//! What a cache takes and how fast it is, whatever the text.

use super::caches::Caches;
use crate::Error;
use crate::models::{Config, Decoder, KeyValues, Observer};
use crate::recipe::KeyPlace;
use kv_cache_quant::{
    Attention, Factors, FullPrecision, KeyStorage, KvCacheLayer, KvPolicy, KvRows, Positions, QuantizedKv, Workspace,
};
use std::sync::Arc;
use std::time::Instant;

/// Lengths at which bytes are counted.
pub(super) const MARKS: [usize; 3] = [1024, 8192, 32768];
/// Tokens over which attention is timed.
const ATTENDED: usize = MARKS[1];
/// Tokens that are appended one by one, and the first of them that is timed: windows are full by then.
const SINGLE: (usize, usize) = (1024, 256);
/// Tokens of an append after that.
const CHUNK: usize = 256;
/// Times attention is timed; the median counts.
const REPEATS: usize = 7;

/// Rows of one layer of a model that read a text, to fill caches with.
#[derive(Debug, Default)]
pub(super) struct Sample {
    layer: usize,
    before: Vec<f32>,
    after: Vec<f32>,
    values: Vec<f32>,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Measured {
    /// Bits of a sealed element, scales and the like included.
    pub(super) bits: f64,
    /// Bytes of all layers, for a token; `None` at lengths that the budget does not allow.
    pub(super) bytes_per_token: [Option<f64>; 3],
    pub(super) attend_speedup: f64,
    pub(super) append_gb_s: f64,
}

impl Observer for Sample {
    fn input(&mut self, _slot: &str, _features: usize, _input: &[f32]) {}

    fn key_values(&mut self, rows: &KeyValues<'_>) {
        if rows.layer == self.layer {
            self.before.extend_from_slice(rows.keys_before_turn);
            self.after.extend_from_slice(rows.keys);
            self.values.extend_from_slice(rows.values);
        }
    }
}

impl Sample {
    /// The rows of the layer in the middle.
    pub(super) fn new(decoder: &Decoder, text: &[u32]) -> Result<Self, Error> {
        let mut sample = Self { layer: decoder.config().layers / 2, ..Self::default() };
        decoder.hidden(&[text], Some(&mut sample))?;
        Ok(sample)
    }

    /// `count` tokens from `first` on; the text starts over when it ends.
    pub(super) fn rows(&self, place: KeyPlace, widths: [usize; 2], first: usize, count: usize) -> [Vec<f32>; 2] {
        let keys = match place {
            KeyPlace::AfterRope => &self.after,
            KeyPlace::BeforeRope => &self.before,
        };
        let take = |rows: &[f32], width: usize| {
            let tokens = (rows.len() / width.max(1)).max(1);
            let row = |at: usize| rows.get(at % tokens * width..).and_then(|rest| rest.get(..width));
            (first..first + count).filter_map(row).flatten().copied().collect()
        };
        [take(keys, widths[0]), take(&self.values, widths[1])]
    }
}

/// A full-precision cache to compare with.
pub(super) struct Baseline {
    cache: QuantizedKv,
    queries: Vec<f32>,
}

impl Baseline {
    pub(super) fn new(config: &Config, sample: &Sample) -> Result<Self, Error> {
        let geometry = super::caches::geometry(config);
        let refused = |source| Error::KvCache { what: "f16".to_owned(), source: Box::new(source) };
        let codec = |heads, dim| kv_cache_quant::Plain::new(heads, dim, FullPrecision::F16).map(Arc::new);
        let (keys, values) = (codec(geometry.kv_heads, geometry.dim_k), codec(geometry.kv_heads, geometry.dim_v));
        let policy = KvPolicy::default();
        let mut cache =
            QuantizedKv::new(geometry, KeyStorage::PostRope, keys.map_err(refused)?, values.map_err(refused)?, policy)
                .map_err(refused)?;
        let widths = [geometry.key_width(), geometry.value_width()];
        let [keys, values] = sample.rows(KeyPlace::AfterRope, widths, 0, ATTENDED);
        cache.append(KvRows { keys: &keys, values: &values }, Positions::Next).map_err(refused)?;
        let queries = keys.iter().copied().cycle().take(geometry.q_heads * geometry.dim_k).collect();
        Ok(Self { cache, queries })
    }

    /// How many times faster a cache attends than this one does over as many tokens; by turns, so that other work on
    /// the machine slows both.
    fn speedup(&self, cache: &QuantizedKv, factors: Factors) -> Result<f64, kv_cache_quant::Error> {
        let mut baseline = self.cache.clone();
        baseline.truncate(cache.len().min(ATTENDED))?;
        let geometry = cache.geometry();
        let (mut out, mut workspace) = (vec![0.0; geometry.q_heads * geometry.dim_v], Workspace::default());
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..=REPEATS {
            for (cache, times) in [&baseline, cache].into_iter().zip(&mut times) {
                let start = Instant::now();
                cache.attend(&Attention::of(&self.queries).with_factors(factors), &mut out, &mut workspace)?;
                if round > 0 {
                    times.push(start.elapsed().as_secs_f64());
                }
            }
        }
        let [plain, packed] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[REPEATS / 2]
        });
        Ok(plain / packed)
    }
}

/// Fills one layer's cache — one for each budget, where layers have budgets — and counts and times.
pub(super) fn measure(caches: &Caches, sample: &Sample, baseline: &Baseline) -> Result<Measured, Error> {
    let mut measured = Measured { bytes_per_token: [Some(0.0); 3], ..Measured::default() };
    let mut kinds: Vec<(&QuantizedKv, u32)> = Vec::new();
    for layer in &caches.layers {
        match kinds.iter_mut().find(|(cache, _)| cache.policy() == layer.policy()) {
            Some((_, count)) => *count += 1,
            None => kinds.push((layer, 1)),
        }
    }
    let layers: f64 = kinds.iter().map(|(_, count)| f64::from(*count)).sum();
    for (at, (cache, count)) in kinds.into_iter().enumerate() {
        let place = if caches.turn.is_some() { KeyPlace::BeforeRope } else { KeyPlace::AfterRope };
        let found = fill(cache.clone(), place, sample, (at == 0).then_some((baseline, caches.factors)))
            .map_err(|source| Error::KvCache { what: caches.name.clone(), source: Box::new(source) })?;
        measured.bits += found.bits * f64::from(count) / layers;
        for (sum, bytes) in measured.bytes_per_token.iter_mut().zip(found.bytes_per_token) {
            *sum = sum.zip(bytes).map(|(sum, bytes)| sum + f64::from(count) * bytes);
        }
        if at == 0 {
            (measured.attend_speedup, measured.append_gb_s) = (found.attend_speedup, found.append_gb_s);
        }
    }
    Ok(measured)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of one layer, for people")]
fn fill(
    mut cache: QuantizedKv,
    place: KeyPlace,
    sample: &Sample,
    baseline: Option<(&Baseline, Factors)>,
) -> Result<Measured, kv_cache_quant::Error> {
    let geometry = cache.geometry();
    let widths = [geometry.key_width(), geometry.value_width()];
    let mut measured = Measured::default();
    let (mut timed, mut seconds) = (0_u32, 0.0);
    let mut chunk = 1;
    while cache.len() < MARKS[2] {
        if cache.len() >= SINGLE.0 && chunk == 1 && measured.bytes_per_token[0].is_some() {
            chunk = CHUNK;
        }
        let [keys, values] = sample.rows(place, widths, cache.len(), chunk);
        let start = Instant::now();
        match cache.append(KvRows { keys: &keys, values: &values }, Positions::Next) {
            Ok(()) => {}
            Err(kv_cache_quant::Error::Budget { .. }) => break,
            Err(error) => return Err(error),
        }
        if cache.len() > SINGLE.1 && chunk == 1 {
            seconds += start.elapsed().as_secs_f64();
            timed += 1;
        }
        if let Some(mark) = MARKS.iter().position(|mark| *mark == cache.len()) {
            let report = cache.bytes();
            measured.bytes_per_token[mark] = Some(report.total() as f64 / cache.len() as f64);
        }
        if cache.len() == ATTENDED
            && let Some((baseline, factors)) = baseline
        {
            measured.attend_speedup = baseline.speedup(&cache, factors)?;
        }
    }
    if let Some((baseline, factors)) = baseline.filter(|_| cache.len() < ATTENDED && !cache.is_empty()) {
        measured.attend_speedup = baseline.speedup(&cache, factors)?;
    }
    let (report, (keys, values)) = (cache.bytes(), cache.sealed());
    let sealed = (keys * widths[0] + values * widths[1]).max(1);
    measured.bits = 8.0 * (report.codes + report.metadata) as f64 / sealed as f64;
    measured.append_gb_s = f64::from(timed) * 4.0 * (widths[0] + widths[1]) as f64 / seconds.max(1e-9) / 1e9;
    Ok(measured)
}

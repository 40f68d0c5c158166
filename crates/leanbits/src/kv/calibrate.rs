//! Statistics of keys and values over a calibration text.

use crate::Error;
use crate::models::{Config, Decoder, KeyValues, Layer, Layers, Observer, Stream};
use crate::recipe::KeyPlace;
use kv_cache_quant::{ChannelAffine, KvMethod, Pair, StreamStatistics};
use quant_calib::{KvStatistics, KvStream, Needs, Statistics};
use std::sync::Arc;

/// First tokens of every text that are left out: attention rests on them, and their keys and values are unlike others.
const SINKS: usize = 4;
/// Tokens that are run together.
const BATCH_TOKENS: usize = 2048;

/// What calibration says about one layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerStatistics {
    pub(crate) before: Option<StreamStatistics>,
    pub(crate) after: Option<StreamStatistics>,
    pub(crate) values: StreamStatistics,
}

impl LayerStatistics {
    /// Keys as they are kept; `None` where they were not gathered.
    pub(crate) fn keys(&self, keys: KeyPlace) -> Option<&StreamStatistics> {
        match keys {
            KeyPlace::AfterRope => self.after.as_ref(),
            KeyPlace::BeforeRope => self.before.as_ref(),
        }
    }

    /// Takes shifts and scales that were learned.
    pub(crate) fn learn(&mut self, keys: KeyPlace, learned: &Pair<ChannelAffine>) {
        let of_keys = match keys {
            KeyPlace::AfterRope => self.after.as_mut(),
            KeyPlace::BeforeRope => self.before.as_mut(),
        };
        if let Some(of_keys) = of_keys {
            of_keys.affine = Some(Arc::new(learned.keys.clone()));
        }
        self.values.affine = Some(Arc::new(learned.values.clone()));
    }

    /// The same, and values.
    pub(crate) fn pair(&self, keys: KeyPlace) -> Option<Pair<StreamStatistics>> {
        self.keys(keys).map(|keys| Pair { keys: keys.clone(), values: self.values.clone() })
    }
}

/// Rows of each layer that a method searches on: SKVQ for clip factors, CSKV for latents.
pub(crate) fn rows_needed(method: &KvMethod) -> usize {
    let name = method.to_string();
    if name.starts_with("skvq") {
        512
    } else if name.starts_with("cskv") {
        4096
    } else {
        0
    }
}

/// Adds up what flows into the caches.
pub(crate) struct Gather {
    layers: Vec<KvStatistics>,
    refused: Option<(usize, quant_calib::Error)>,
}

impl Gather {
    /// Of all layers of a model, with a sample of `rows` tokens of each.
    pub(crate) fn new(config: &Config, rows: usize) -> Result<Self, Error> {
        let needs = Needs { channels: true, reservoir: (rows > 0).then_some(rows), ..Needs::default() };
        let of = |layer| {
            let refused = |source| Error::Calibration { what: cache_of(layer), source };
            KvStatistics::new(config.kv_heads, config.head_dim, &needs).map_err(refused)
        };
        Ok(Self { layers: (0..config.layers).map(of).collect::<Result<_, _>>()?, refused: None })
    }

    /// What was gathered.
    pub(crate) fn finish(self) -> Result<Vec<LayerStatistics>, Error> {
        if let Some((layer, source)) = self.refused {
            return Err(Error::Calibration { what: cache_of(layer), source });
        }
        let of = |kv: &KvStatistics| LayerStatistics {
            before: Some(statistics(kv.stream(KvStream::KeysBeforeRope))),
            after: Some(statistics(kv.stream(KvStream::KeysAfterRope))),
            values: statistics(kv.stream(KvStream::Values)),
        };
        Ok(self.layers.iter().map(of).collect())
    }
}

fn cache_of(layer: usize) -> String {
    format!("the key-value cache of layer {layer}")
}

impl Observer for Gather {
    fn input(&mut self, _slot: &str, _features: usize, _input: &[f32]) {}

    fn key_values(&mut self, rows: &KeyValues<'_>) {
        let Some(kv) = self.layers.get_mut(rows.layer) else { return };
        let (keys, values) = (rows.geometry.key_width(), rows.geometry.value_width());
        let streams = [
            (KvStream::KeysBeforeRope, rows.keys_before_turn, keys),
            (KvStream::KeysAfterRope, rows.keys, keys),
            (KvStream::Values, rows.values, values),
        ];
        for (stream, rows_of, width) in streams {
            let kept = rows.positions.iter().zip(rows_of.chunks_exact(width)).filter(|(at, _)| **at >= SINKS);
            let kept: Vec<f32> = kept.flat_map(|(_, row)| row).copied().collect();
            if let Err(error) = kv.add(stream, &kept) {
                self.refused.get_or_insert((rows.layer, error));
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounded to f32 once")]
fn statistics(of: &Statistics) -> StreamStatistics {
    let narrow = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect();
    let rows = of.reservoir().map(quant_calib::Reservoir::rows).unwrap_or_default();
    match of.channels() {
        None => StreamStatistics { rows, ..StreamStatistics::default() },
        Some(seen) => StreamStatistics {
            min: seen.min().to_vec(),
            max: seen.max().to_vec(),
            mean: narrow(seen.mean()),
            deviation: narrow(seen.variance().into_iter().map(f64::sqrt).collect()),
            rows,
            adapter: None,
            affine: None,
        },
    }
}

/// Runs a model that is in memory over texts.
pub(crate) fn run(
    decoder: &Decoder,
    texts: &[Vec<u32>],
    rows: usize,
    mut done: impl FnMut(usize),
) -> Result<Vec<LayerStatistics>, Error> {
    let mut gather = Gather::new(decoder.config(), rows)?;
    for batch in batches(texts) {
        decoder.hidden(&batch, Some(&mut gather))?;
        done(batch.iter().map(|text| text.len()).sum());
    }
    gather.finish()
}

/// Runs one layer over what enters it.
pub(crate) fn of_layer<'a>(
    layer: &Layer,
    config: &Config,
    streams: impl Iterator<Item = &'a Stream>,
) -> Result<Option<LayerStatistics>, Error> {
    let mut gather = Gather::new(config, 0)?;
    for stream in streams {
        layer.forward(stream, Some(&mut gather))?;
    }
    Ok(gather.finish()?.into_iter().nth(layer.index()))
}

/// Runs a model over texts with one layer of it in memory; each is prepared first.
pub(crate) fn run_by_layer(
    layers: &Layers<'_>,
    texts: &[Vec<u32>],
    rows: usize,
    prepare: impl Fn(&mut Layer) -> Result<(), Error>,
) -> Result<Vec<LayerStatistics>, Error> {
    let mut gather = Gather::new(layers.config(), rows)?;
    let embedding = layers.embedding()?;
    let mut streams = batches(texts).iter().map(|batch| embedding.stream(batch)).collect::<Result<Vec<_>, _>>()?;
    for index in 0..layers.len() {
        let mut layer = layers.layer(index)?;
        prepare(&mut layer)?;
        for stream in &mut streams {
            *stream = layer.forward(stream, Some(&mut gather))?;
        }
    }
    gather.finish()
}

fn batches(texts: &[Vec<u32>]) -> Vec<Vec<&[u32]>> {
    let mut batches: Vec<Vec<&[u32]>> = Vec::new();
    let mut held = usize::MAX;
    for text in texts {
        if held.saturating_add(text.len()) > BATCH_TOKENS {
            batches.push(Vec::new());
            held = 0;
        }
        held += text.len();
        if let Some(batch) = batches.last_mut() {
            batch.push(text);
        }
    }
    batches
}

//! WKVQuant: what the weights of a layer and its cache are rounded with, learned on what the layers behind it make of it.
//!
//! 1. The layers behind are in memory in full precision, and so is what the last of them gives in the original model: the
//!    target.
//! 2. The layer reads what the rounded layers before it gave. With its weights rounded, statistics of keys and values give the
//!    shifts and scales of the closed form.
//! 3. Clips, shifts and scales are learned ([`RoundedBlock::reconstruct`]), the weights encoded, and the texts read through
//!    layer and cache.

use super::gather::{self, Batch};
use super::layers::Job;
use super::structure::LayerShape;
use crate::models::{
    Config, Error as ModelError, Layer, Layers, PastRounding, Reconstruction, RoundedBlock, Stream, StreamRounding,
};
use crate::recipe::{KvCacheChoice, Method, Recipe};
use crate::{Error, Progress, kv};
use kv_cache_quant::{ChannelAffine, Pair, StreamStatistics, TwoDimConfig};
use std::path::Path;

/// Refuses models that the method is not for, before any work.
pub(super) fn check(recipe: &Recipe, model: &Path) -> Result<(), Error> {
    if !matches!(recipe.method, Method::Wkvquant(_)) {
        return Ok(());
    }
    let config = Config::from_folder(model)?;
    match config.rwkv.is_some() || config.mixture.is_some() {
        true => Err(ModelError::NotDifferentiable { family: config.family }.into()),
        false => Ok(()),
    }
}

/// The layers that the outputs of the next one count through, in full precision.
pub(super) struct Ahead<'a> {
    settings: &'a Reconstruction,
    choice: &'a KvCacheChoice,
    layers: &'a Layers<'a>,
    /// The layer in turn and those behind it.
    held: Vec<Layer>,
    /// Number of the first layer that is not held.
    next: usize,
    /// What the last layer that is held gives in the original model.
    targets: Vec<Batch>,
}

impl<'a> Ahead<'a> {
    /// Runs the original model up to the last layer that counts for the layer `first`; `None` for other methods.
    pub(super) fn new(
        job: &Job<'a>,
        layers: &'a Layers<'a>,
        embedded: Vec<Batch>,
        first: usize,
    ) -> Result<Option<Self>, Error> {
        let (Method::Wkvquant(settings), Some(choice)) = (&job.recipe.method, &job.recipe.kv_cache) else {
            return Ok(None);
        };
        let mut ahead = Self { settings, choice, layers, held: Vec::new(), next: 0, targets: embedded };
        while ahead.next < first.saturating_add(settings.blocks).min(layers.len()) {
            ahead.advance()?;
            if ahead.next <= first {
                ahead.held.clear();
            }
        }
        Ok(Some(ahead))
    }

    /// Takes one more layer, if there is one.
    fn advance(&mut self) -> Result<(), Error> {
        if self.next < self.layers.len() {
            let layer = self.layers.layer(self.next)?;
            self.targets = gather::forward(&layer, &self.targets)?;
            self.held.push(layer);
            self.next += 1;
        }
        Ok(())
    }

    /// Learns what a layer and its cache are rounded with, and goes on to the next layer.
    pub(super) fn learn(
        &mut self,
        job: &Job<'_>,
        layer: &Layer,
        shape: &LayerShape,
        batches: &[Batch],
        progress: &mut dyn Progress,
    ) -> Result<Learned, Error> {
        let planned =
            |name: &str| job.plan.get(name).filter(|tensor| matches!(tensor.treatment.method, Method::Wkvquant(_)));
        let formats = shape.slots.iter().filter_map(|slot| {
            let tensor = planned(&slot.origin.tensor).filter(|tensor| !tensor.treatment.whole)?;
            Some((slot.name.clone(), tensor.packed_format()?))
        });
        let block = RoundedBlock::new(layer, &formats.collect::<Vec<_>>())?;
        let past = self.closed_form(block.layer(), batches)?;
        let mut block = block.with_past(past)?;
        let streams = |batches: &[Batch]| batches.iter().map(|batch| batch.stream.clone()).collect::<Vec<Stream>>();
        let behind = self.held.get(1..).unwrap_or_default();
        let found = block.reconstruct(behind, &streams(batches), &streams(&self.targets), self.settings)?;
        let note =
            format!("loss {:.4e} over {} layers, {:.4e} after learning", found.before, self.held.len(), found.after);
        progress.note(&format!("layer {}: {note}", layer.index()));
        if !self.held.is_empty() {
            self.held.remove(0);
        }
        self.advance()?;
        let past = block
            .past()
            .cloned()
            .ok_or_else(|| self.refused(kv_cache_quant::Error::Statistics { stream: kv_cache_quant::Stream::Keys }))?;
        let affine = |of: &StreamRounding| {
            ChannelAffine::new(of.shift.clone(), of.scale.clone()).map_err(|source| self.refused(source))
        };
        let affine = Pair { keys: affine(&past.keys)?, values: affine(&past.values)? };
        Ok(Learned { block, past, affine, note })
    }

    /// Shifts and scales by statistics of keys and values that the rounded layer makes.
    fn closed_form(&self, layer: &Layer, batches: &[Batch]) -> Result<PastRounding, Error> {
        let method = &self.choice.method;
        let seen = kv::of_layer(layer, self.layers.config(), batches.iter().map(|batch| &batch.stream))?;
        let seen = seen.and_then(|seen| seen.pair(self.choice.keys));
        let (Some(codes), Some(seen)) = (method.two_dim(), seen) else {
            return Err(Error::NeedsCalibration { what: format!("the cache {method}") });
        };
        let of = |codes: &TwoDimConfig, seen: &StreamStatistics| {
            let affine = method.affine(seen).map_err(|source| self.refused(source))?;
            let (shift, scale) = (affine.shift().to_vec(), affine.scale().to_vec());
            Ok::<_, Error>(StreamRounding { format: codes.format(), shift, scale })
        };
        let policy = self.choice.policy();
        Ok(PastRounding {
            keys: of(&codes.keys, &seen.keys)?,
            values: of(&codes.values, &seen.values)?,
            sinks: policy.sinks,
            window: policy.window,
        })
    }

    fn refused(&self, source: kv_cache_quant::Error) -> Error {
        Error::KvCache { what: self.choice.method.to_string(), source: Box::new(source) }
    }
}

/// What was learned for one layer.
pub(super) struct Learned {
    block: RoundedBlock,
    past: PastRounding,
    /// Shifts and scales of its cache.
    pub(super) affine: Pair<ChannelAffine>,
    /// The loss before and after, in words.
    pub(super) note: String,
}

impl Learned {
    /// A linear's weight with its groups clipped; `None` where none was learned.
    pub(super) fn clipped(&self, slot: &str) -> Option<Vec<f32>> {
        self.block.clipped(slot)
    }

    /// What the layer, as it is stored, gives through its cache.
    pub(super) fn forward(&self, layer: &Layer, batches: &[Batch]) -> Result<Vec<Batch>, Error> {
        let next = |batch: &Batch| {
            let stream = self.past.forward(layer, &batch.stream)?;
            Ok(Batch { first_window: batch.first_window, stream })
        };
        batches.iter().map(next).collect()
    }
}

/// Shifts and scales of keys, then of values, layer after layer.
pub(super) fn flat(learned: &[Pair<ChannelAffine>]) -> Vec<f32> {
    let of = |affine: &ChannelAffine| [affine.shift(), affine.scale()].concat();
    learned.iter().flat_map(|pair| [of(&pair.keys), of(&pair.values)].concat()).collect()
}

/// The same back from the list.
pub(super) fn from_flat(flat: &[f32], config: &Config) -> Result<Vec<Pair<ChannelAffine>>, Error> {
    let refused = |source| Error::KvCache { what: "an interrupted run".to_owned(), source: Box::new(source) };
    let channels = (config.kv_heads * config.head_dim).max(1);
    let affine = |of: &[f32]| {
        let (shift, scale) = of.split_at(channels);
        ChannelAffine::new(shift.to_vec(), scale.to_vec()).map_err(refused)
    };
    let pair = |of: &[f32]| {
        let (keys, values) = of.split_at(2 * channels);
        Ok(Pair { keys: affine(keys)?, values: affine(values)? })
    };
    flat.chunks_exact(4 * channels).map(pair).collect()
}

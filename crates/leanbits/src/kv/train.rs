//! Maps of CSKV that are trained for the format of their latents, stream by stream.
//!
//! Attention goes on with exact keys and values of recent tokens, and no layer sees what another one lost: each stream of
//! each layer is a least-squares problem of its own, on the sample of rows that calibration kept.

use super::calibrate::LayerStatistics;
use crate::models::Config;
use crate::recipe::{KeyPlace, KvCacheChoice};
use crate::{Error, Progress};
use kv_cache_quant::{Adapter, FullPrecision, LatentCode, Stream, StreamStatistics};
use low_rank::{LatentFormat, Optimizer, RowMaps, Training};
use rayon::prelude::*;
use std::sync::Arc;

/// Each map in turn by its closed form: every row gets the best latent for the map that rebuilds, rows that are unlike
/// the sample too. Steps of AdamW lose less on the sample, and magnify what is rare in it: on models they lose more.
const OPTIMIZER: Optimizer = Optimizer::Alternating;
/// Passes over the sample.
const EPOCHS: usize = 15;
/// Seed of the rotation that training starts from.
const SEED: u64 = 0;

/// Whether a choice asks for trained maps that some statistics lack.
pub(super) fn is_needed(choice: &KvCacheChoice, seen: &[LayerStatistics]) -> bool {
    let Some((codes, _)) = choice.method.latents() else { return false };
    let lacks = |seen: &LayerStatistics| {
        let keys = seen.keys(choice.keys).is_some_and(|keys| keys.adapter.is_none());
        (codes.keys.trained && keys) || (codes.values.trained && seen.values.adapter.is_none())
    };
    seen.iter().any(lacks)
}

/// The statistics with the maps that a choice asks for.
pub(super) fn train(
    choice: &KvCacheChoice,
    config: &Config,
    seen: &[LayerStatistics],
    progress: &mut dyn Progress,
) -> Result<Vec<LayerStatistics>, Error> {
    let mut seen = seen.to_vec();
    let Some((codes, blocks)) = choice.method.latents() else { return Ok(seen) };
    let what = |layer: usize, stream: Stream| format!("{stream} of layer {layer}");
    progress.begin("training", seen.len() as u64);
    let streams = |(layer, seen): (usize, &mut LayerStatistics)| -> Result<(), Error> {
        let LayerStatistics { before, after, values } = seen;
        let keys = match choice.keys {
            KeyPlace::BeforeRope => before,
            KeyPlace::AfterRope => after,
        };
        let streams = [(Stream::Keys, codes.keys, keys.as_mut()), (Stream::Values, codes.values, Some(values))];
        for (stream, code, statistics) in streams {
            if let Some(statistics) = statistics.filter(|_| code.trained) {
                let name = || format!("{} ({})", choice.method, what(layer, stream));
                statistics.adapter = Some(Arc::new(adapter(stream, code, blocks, config, statistics, name)?));
            }
        }
        Ok(())
    };
    seen.par_iter_mut().enumerate().try_for_each(streams)?;
    progress.advance(seen.len() as u64, "");
    progress.end();
    Ok(seen)
}

fn adapter(
    stream: Stream,
    code: LatentCode,
    blocks: bool,
    config: &Config,
    statistics: &StreamStatistics,
    name: impl Fn() -> String,
) -> Result<Adapter, Error> {
    let refused = |source| Error::KvCache { what: name(), source: Box::new(source) };
    let (heads, dim) = (config.kv_heads, config.head_dim);
    let width = heads * code.width.per_head(dim).map_err(refused)?;
    let latents = code.latents(stream, dim, blocks).map_err(refused)?;
    let latents = latents.map(|(format, block)| LatentFormat { format, block });
    let training = Training { optimizer: OPTIMIZER, epochs: EPOCHS, latents };
    let maps = RowMaps::train(&statistics.rows, heads * dim, width, SEED, &training)
        .map_err(|source| Error::KvTraining { what: name(), source: Box::new(source) })?;
    Adapter::new(&maps.compress, &maps.rebuild, maps.shift, width, FullPrecision::F16).map_err(refused)
}

//! PM-KVQ under a budget: how much each layer loses at each width, who gets which, and when they shrink.

use super::caches::geometry;
use super::calibrate::LayerStatistics;
use super::measure::Sample;
use crate::Error;
use crate::models::Config;
use crate::recipe::{KeyPlace, KvCacheChoice};
use kv_cache_quant::{
    Codec, KvCacheLayer, KvRows, PmKvq, PmKvqConfig, Positions, QuantizedKv, Sensitivity, Width, layer_bytes,
};
use serde::Serialize;

/// Widths that a layer may end at.
pub(super) const WIDTHS: [Width; 4] = [Width::W2, Width::W4, Width::W8, Width::W16];

/// The final width of every layer, and the bytes it may take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Budgets {
    pub(crate) widths: Vec<Width>,
    pub(crate) bytes: Vec<u64>,
}

/// What becomes of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KvLayerSchedule {
    /// The layer, from 0.
    pub layer: usize,
    /// Bits of a code when the budget is used up.
    pub final_bits: u32,
    /// Bytes it may take.
    pub bytes: u64,
    /// When its codes become narrower.
    pub shrinks: Vec<KvShrink>,
}

/// A step down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KvShrink {
    /// Tokens held after which codes have so many bits.
    pub tokens: usize,
    /// Bits of a code from then on.
    pub bits: u32,
}

fn refused(source: kv_cache_quant::Error) -> Error {
    Error::KvCache { what: "pm-kvq".to_owned(), source: Box::new(source) }
}

/// Rows as codes of a width make them.
pub(super) fn rounded(rows: &[f32], heads: usize, dim: usize, width: Width) -> Result<Vec<f32>, Error> {
    let channels = heads * dim;
    // One token a unit: the range is that of a head of a token, whatever the unit.
    let codec = PmKvq::new(heads, dim, PmKvqConfig { residual: 1, ..PmKvqConfig::default() }).map_err(refused)?;
    let stage = Width::LADDER.iter().filter(|finer| **finer > width).count();
    let mut unit = vec![0; codec.bytes(stage).total()];
    let mut out = vec![0.0; rows.len()];
    for (row, out) in rows.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        codec
            .seal(row, stage, &mut unit)
            .and_then(|()| codec.open(&unit, stage, out))
            .map_err(|e| refused(e.into()))?;
    }
    Ok(out)
}

/// What layers lose without knowing what the model makes of it: the mean magnitude of the errors of keys and values.
pub(super) fn without_gradients(seen: &[LayerStatistics], config: &Config) -> Result<Sensitivity, Error> {
    let of = |rows: &[f32], width: Width| {
        let rounded = rounded(rows, config.kv_heads, config.head_dim, width)?;
        let sum: f64 = rows.iter().zip(&rounded).map(|(x, y)| f64::from((x - y).abs())).sum();
        #[expect(clippy::cast_precision_loss, reason = "rows of a sample")]
        let count = rows.len().max(1) as f64;
        Ok::<_, Error>(sum / count)
    };
    let layer = |seen: &LayerStatistics| {
        let keys = seen.after.as_ref().map(|keys| keys.rows.as_slice()).unwrap_or_default();
        WIDTHS.iter().map(|width| Ok(of(keys, *width)? + of(&seen.values.rows, *width)?)).collect()
    };
    Ok(Sensitivity { widths: WIDTHS.to_vec(), loss: seen.iter().map(layer).collect::<Result<_, Error>>()? })
}

/// Distributes a budget so that `tokens` tokens fit.
pub(super) fn distribute(
    choice: &KvCacheChoice,
    config: &Config,
    sensitivity: &Sensitivity,
    total: u64,
    tokens: usize,
) -> Result<Budgets, Error> {
    let bytes = |width: &Width| {
        layer_bytes(geometry(config), &PmKvqConfig::default(), choice.policy(), tokens, *width).map_err(refused)
    };
    let of_width: Vec<u64> = sensitivity.widths.iter().map(bytes).collect::<Result<_, _>>()?;
    let widths = sensitivity.allocate(&of_width, total).map_err(refused)?;
    let place = |width: &Width| sensitivity.widths.iter().position(|w| w == width);
    let bytes = widths.iter().filter_map(place).filter_map(|at| of_width.get(at)).copied().collect();
    Ok(Budgets { widths, bytes })
}

/// When each layer shrinks, by filling it; layers of the same budget shrink together.
pub(super) fn schedule(
    layers: &[QuantizedKv],
    budgets: &Budgets,
    sample: &Sample,
    tokens: usize,
) -> Result<Vec<KvLayerSchedule>, Error> {
    let mut known: Vec<(u64, Vec<KvShrink>)> = Vec::new();
    let mut lines = Vec::new();
    for (layer, ((cache, width), bytes)) in layers.iter().zip(&budgets.widths).zip(&budgets.bytes).enumerate() {
        let shrinks = match known.iter().find(|(of, _)| of == bytes) {
            Some((_, shrinks)) => shrinks.clone(),
            None => {
                let shrinks = shrinks(cache.clone(), sample, tokens)?;
                known.push((*bytes, shrinks.clone()));
                shrinks
            }
        };
        lines.push(KvLayerSchedule { layer, final_bits: width.bits(), bytes: *bytes, shrinks });
    }
    Ok(lines)
}

fn shrinks(mut cache: QuantizedKv, sample: &Sample, tokens: usize) -> Result<Vec<KvShrink>, Error> {
    let geometry = cache.geometry();
    let widths = [geometry.key_width(), geometry.value_width()];
    let (mut stage, mut shrinks) = (0, Vec::new());
    while cache.len() < tokens {
        let [keys, values] = sample.rows(KeyPlace::AfterRope, widths, cache.len(), 1);
        cache.append(KvRows { keys: &keys, values: &values }, Positions::Next).map_err(refused)?;
        if cache.stage() != stage {
            stage = cache.stage();
            let bits = Width::LADDER.get(stage).map_or(0, |width| width.bits());
            shrinks.push(KvShrink { tokens: cache.len(), bits });
        }
    }
    Ok(shrinks)
}

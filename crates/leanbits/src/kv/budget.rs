//! PM-KVQ under a budget: how much each layer loses at each width, who gets which, and when they shrink.

use super::caches::geometry;
use super::calibrate::{self, LayerStatistics};
use super::measure::Sample;
use crate::models::{Config, Decoder, Error as ModelError, kv_gradients};
use crate::recipe::{KeyPlace, KvCacheChoice};
use crate::{Error, Progress};
use kv_cache_quant::{
    Codec, KvCacheLayer, KvRows, PmKvq, PmKvqConfig, Positions, QuantizedKv, Sensitivity, Width, layer_bytes,
};
use serde::Serialize;

/// Widths that a layer may end at.
const WIDTHS: [Width; 4] = [Width::W2, Width::W4, Width::W8, Width::W16];

/// What becomes of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KvLayerSchedule {
    /// The layer, from 0.
    pub layer: usize,
    /// Bits of a code when all tokens that the budget is for are held.
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
fn rounded(rows: &[f32], heads: usize, dim: usize, width: Width) -> Result<Vec<f32>, Error> {
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

/// Rows of each layer on which errors are formed where there are no gradients.
const ROWS: usize = 1024;
/// Windows whose gradients are formed: a pass forwards and back costs as much as three forwards.
const WINDOWS: usize = 8;
/// How far positions are stretched at most.
const STRETCH: usize = 4;

/// What layers lose at each width: equation 5 of the paper, `‖G_K ⊙ ΔK‖₁ + ‖G_V ⊙ ΔV‖₁` with the gradients of the loss,
/// as means over elements and texts. Gradients and keys of a layer are taken together by its index. Positions are
/// stretched up to fourfold, as far as the model was trained.
///
/// Models without gradients get the mean magnitudes of the errors alone, and a note.
pub(super) fn sensitivities(
    decoder: &Decoder,
    texts: &[Vec<u32>],
    progress: &mut dyn Progress,
) -> Result<Sensitivity, Error> {
    let config = decoder.config();
    let mut loss = vec![vec![0.0; WIDTHS.len()]; config.layers];
    let some = &texts[..texts.len().min(WINDOWS)];
    progress.begin("differentiating", some.iter().map(|text| text.len() as u64).sum());
    for text in some {
        let stretch = (config.max_positions / text.len().max(1)).clamp(1, STRETCH);
        let found = match kv_gradients(decoder, text, stretch) {
            Err(ModelError::NotDifferentiable { .. }) => {
                progress.end();
                progress
                    .note("no gradients for this family: layers are weighed by the errors of keys and values alone");
                return without_gradients(&calibrate::run(decoder, texts, ROWS, |_| {})?, config);
            }
            found => found?,
        };
        for (sums, layer) in loss.iter_mut().zip(&found.layers) {
            for (sum, width) in sums.iter_mut().zip(WIDTHS) {
                *sum += weighed(&layer.keys, &layer.key_gradients, config, width)?
                    + weighed(&layer.values, &layer.value_gradients, config, width)?;
            }
        }
        progress.advance(text.len() as u64, "");
    }
    progress.end();
    Ok(Sensitivity { widths: WIDTHS.to_vec(), loss })
}

/// Mean of `|g · (x − Q(x))|`.
fn weighed(rows: &[f32], gradients: &[f32], config: &Config, width: Width) -> Result<f64, Error> {
    let rounded = rounded(rows, config.kv_heads, config.head_dim, width)?;
    let terms = rows.iter().zip(&rounded).zip(gradients);
    let sum: f64 = terms.map(|((x, y), g)| (f64::from(*g) * (f64::from(*x) - f64::from(*y))).abs()).sum();
    #[expect(clippy::cast_precision_loss, reason = "elements of a text")]
    let count = rows.len().max(1) as f64;
    Ok(sum / count)
}

/// What layers lose without knowing what the model makes of it: the mean magnitude of the errors of keys and values.
fn without_gradients(seen: &[LayerStatistics], config: &Config) -> Result<Sensitivity, Error> {
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

/// The bytes that each layer may take, so that `tokens` tokens fit a budget and layers lose least.
pub(super) fn distribute(
    choice: &KvCacheChoice,
    config: &Config,
    sensitivity: &Sensitivity,
    total: u64,
    tokens: usize,
) -> Result<Vec<u64>, Error> {
    let bytes = |width: &Width| {
        layer_bytes(geometry(config), &PmKvqConfig::default(), choice.policy(), tokens, *width).map_err(refused)
    };
    let of_width: Vec<u64> = sensitivity.widths.iter().map(bytes).collect::<Result<_, _>>()?;
    let widths = sensitivity.allocate(&of_width, total).map_err(refused)?;
    let place = |width: &Width| sensitivity.widths.iter().position(|w| w == width);
    Ok(widths.iter().filter_map(place).filter_map(|at| of_width.get(at)).copied().collect())
}

/// Refuses budgets that the least width does not fit either.
pub(super) fn check(choice: &KvCacheChoice, config: &Config, total: u64, tokens: usize) -> Result<(), Error> {
    let any = Sensitivity { widths: WIDTHS.to_vec(), loss: vec![vec![0.0; WIDTHS.len()]; config.layers] };
    distribute(choice, config, &any, total, tokens).map(|_| ())
}

/// When each layer shrinks, by filling it; layers of the same budget shrink together.
pub(super) fn schedule(
    layers: &[QuantizedKv],
    budgets: &[u64],
    sample: &Sample,
    tokens: usize,
) -> Result<Vec<KvLayerSchedule>, Error> {
    let mut known: Vec<(u64, Vec<KvShrink>)> = Vec::new();
    let mut lines = Vec::new();
    for (layer, (cache, &bytes)) in layers.iter().zip(budgets).enumerate() {
        let shrinks = match known.iter().find(|(of, _)| *of == bytes) {
            Some((_, shrinks)) => shrinks.clone(),
            None => {
                let shrinks = shrinks(cache.clone(), sample, tokens)?;
                known.push((bytes, shrinks.clone()));
                shrinks
            }
        };
        let final_bits = shrinks.last().map_or(Width::W16.bits(), |last| last.bits);
        lines.push(KvLayerSchedule { layer, final_bits, bytes, shrinks });
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

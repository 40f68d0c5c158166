//! The cache that a compressed folder names, and the file with its parameters.
//!
//! `quantization_config.kv_cache` of config.json has the keys of a recipe's `[kv_cache]`, `layer_budgets` where there is a
//! budget, and `parameters`, the name of a safetensors file, where the method needs statistics.

use super::calibrate::{self, LayerStatistics};
use super::{budget, caches, train};
use crate::models::{Apply, Config, Decoder, Layers};
use crate::recipe::{KeyPlace, KvCacheChoice};
use crate::{Error, Weights};
use kv_cache_quant::{Adapter, ChannelAffine, FullPrecision, KvMethod, Pair, StreamStatistics};
use quant_io::safetensors::{DType, SafetensorsFile, TensorSpec, serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The file beside the weights.
pub(crate) const PARAMETERS: &str = "kv_cache.safetensors";
/// Key of `quantization_config`.
pub(crate) const KV_CACHE: &str = "kv_cache";
/// Its version, in its metadata under [`VERSION_KEY`].
const VERSION: &str = "1";
const VERSION_KEY: &str = "kv_cache.version";
/// Most rows of a layer that are believed.
const MAX_ROWS: usize = 1 << 16;

/// A folder's own cache.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) choice: KvCacheChoice,
    pub(crate) budgets: Option<Vec<u64>>,
    pub(crate) statistics: Option<Vec<LayerStatistics>>,
}

/// Refuses what cannot be done with a model, before any work.
pub(crate) fn check(choice: &KvCacheChoice, config: &Config, model: &Path) -> Result<(), Error> {
    caches::check_model(config, model)?;
    let stream = |width: usize| {
        // Rows that are not all alike; what matters is whether the method takes the geometry.
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let rows: Vec<f32> = (0..64 * width).map(|at| (at * 37 % 251) as f32 / 64.0 - 2.0).collect();
        StreamStatistics::of(&rows, width).ok()
    };
    let geometry = caches::geometry(config);
    let layer = stream(geometry.key_width())
        .zip(stream(geometry.value_width()))
        .map(|(keys, values)| LayerStatistics { before: Some(keys.clone()), after: Some(keys), values });
    let statistics: Option<Vec<LayerStatistics>> = layer.map(|layer| vec![layer; config.layers.min(1)]);
    let mut one = config.clone();
    one.layers = config.layers.min(1);
    // Maps are not trained for this; those of the closed form have the same shape.
    let untrained = KvCacheChoice { method: choice.method.untrained(), ..choice.clone() };
    caches::Caches::new(&untrained, &one, one.max_positions.min(1 << 12), statistics.as_deref(), None)?;
    if let Some(total) = choice.budget {
        budget::check(choice, config, total, choice.tokens.unwrap_or(config.max_positions))?;
    }
    Ok(())
}

/// Gathers what a cache needs on a finished model, writes it beside the weights, and returns what config.json is to say.
pub(crate) fn store(
    choice: &KvCacheChoice,
    config: &Config,
    output: &Path,
    texts: &[Vec<u32>],
    activations: Option<quant_core::Format>,
    learned: &[Pair<ChannelAffine>],
) -> Result<Value, Error> {
    let mut told = serde_json::to_value(choice).map_err(|source| Error::Json { source })?;
    let weights = Weights::open(output)?;
    let checkpoint = weights.checkpoint();
    if choice.method.needs_statistics() {
        let layers = Layers::new(config.clone(), &weights, Apply::Decoded);
        let prepare = |layer: &mut crate::models::Layer| {
            crate::evaluate::round_inputs(layer.slots_mut(), checkpoint, activations)
        };
        let mut seen = calibrate::run_by_layer(&layers, texts, calibrate::rows_needed(&choice.method), prepare)?;
        if train::is_needed(choice, &seen) {
            seen = train::train(choice, config, &seen, &mut crate::Silent)?;
        }
        for (seen, learned) in seen.iter_mut().zip(learned) {
            seen.learn(choice.keys, learned);
        }
        quant_io::write_atomically(output.join(PARAMETERS), &to_bytes(choice.keys, &seen)?)?;
        told["parameters"] = json!(PARAMETERS);
    }
    if let Some(total) = choice.budget {
        let mut decoder = Decoder::from_source(config.clone(), &weights, Apply::Decoded)?;
        for layer in decoder.layers_mut() {
            crate::evaluate::round_inputs(layer.slots_mut(), checkpoint, activations)?;
        }
        let lost = budget::sensitivities(&decoder, texts, &mut crate::Silent)?;
        let tokens = choice.tokens.unwrap_or(config.max_positions);
        told["layer_budgets"] = json!(budget::distribute(choice, config, &lost, total, tokens)?);
    }
    Ok(told)
}

/// The parts of a stream's statistics: names of tensors, and values.
fn parts(of: &StreamStatistics) -> [(&'static str, &Vec<f32>); 5] {
    [("min", &of.min), ("max", &of.max), ("mean", &of.mean), ("deviation", &of.deviation), ("rows", &of.rows)]
}

fn to_bytes(place: KeyPlace, layers: &[LayerStatistics]) -> Result<Vec<u8>, Error> {
    let mut tensors = Vec::new();
    for (layer, seen) in layers.iter().enumerate() {
        let Some(pair) = seen.pair(place) else { continue };
        for (stream, of) in [("keys", &pair.keys), ("values", &pair.values)] {
            let channels = of.min.len().max(1);
            let mut push = |part: &str, values: &[f32], shape: &[usize]| {
                let spec = TensorSpec::new(format!("layers.{layer}.{stream}.{part}"), DType::F32, shape);
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                if !bytes.is_empty() {
                    tensors.push((spec, bytes));
                }
            };
            for (part, values) in parts(of) {
                match (part, &of.adapter) {
                    // They are what the maps were trained on, and nothing else reads them.
                    ("rows", Some(_)) => {}
                    ("rows", None) => push(part, values, &[values.len() / channels, channels]),
                    _ => push(part, values, &[values.len()]),
                }
            }
            if let Some(maps) = &of.adapter {
                push("compress", &maps.compressing().unwrap_or_default(), &[channels, maps.width()]);
                push("rebuild", &maps.rebuild(), &[maps.width(), channels]);
                push("shift", maps.shift(), &[channels]);
            }
            if let Some(affine) = &of.affine {
                push("learned.shift", affine.shift(), &[channels]);
                push("learned.scale", affine.scale(), &[channels]);
            }
        }
    }
    let lent: Vec<(TensorSpec, &[u8])> = tensors.iter().map(|(spec, bytes)| (spec.clone(), bytes.as_slice())).collect();
    Ok(serialize(&lent, BTreeMap::from([(VERSION_KEY.to_owned(), VERSION.to_owned())]))?)
}

impl Stored {
    /// The cache that a folder names, if it names one.
    pub(crate) fn open(folder: &Path, json: Option<&Value>, config: &Config) -> Result<Option<Self>, Error> {
        let quantization = json.and_then(|json| json.get("quantization_config"));
        let ours = |q: &&Value| q.get("quant_method").and_then(Value::as_str) == Some("leanbits");
        let Some(named) = quantization.filter(ours).and_then(|q| q.get(KV_CACHE)) else { return Ok(None) };
        let bad = |reason: String| Error::Config {
            path: folder.join("config.json"),
            reason: format!("quantization_config.{KV_CACHE}: {reason}"),
        };
        let mut named = named.clone();
        let fields = named.as_object_mut().ok_or_else(|| bad("it is no object".to_owned()))?;
        let (budgets, parameters) = (fields.remove("layer_budgets"), fields.remove("parameters"));
        let choice: KvCacheChoice = serde_json::from_value(named).map_err(|error| bad(error.to_string()))?;
        choice.validate().map_err(|error| bad(error.to_string()))?;
        caches::check_model(config, folder)?;
        let budgets: Option<Vec<u64>> = match budgets {
            None if choice.budget.is_some() => return Err(bad("layer_budgets is missing".to_owned())),
            None => None,
            Some(value) => Some(serde_json::from_value(value).map_err(|error| bad(format!("layer_budgets: {error}")))?),
        };
        if let Some(found) = budgets.as_ref().map(Vec::len).filter(|found| *found != config.layers) {
            return Err(bad(format!("layer_budgets has {found} entries, the model {} layers", config.layers)));
        }
        let statistics = match parameters {
            None if choice.method.needs_statistics() => return Err(bad("parameters is missing".to_owned())),
            None => None,
            Some(name) if name == PARAMETERS => Some(read(&folder.join(PARAMETERS), choice.keys, config)?),
            Some(name) => return Err(bad(format!("parameters is {name}, expected {PARAMETERS:?}"))),
        };
        Ok(Some(Self { choice, budgets, statistics }))
    }

    /// Statistics of this method with parameters that were learned: no calibration gives them again.
    pub(crate) fn learned(&self, method: &KvMethod, keys: KeyPlace) -> Option<&[LayerStatistics]> {
        let same = self.choice.method == *method && self.choice.keys == keys;
        let statistics = self.statistics.as_deref().filter(|_| same)?;
        statistics.iter().any(|seen| seen.values.affine.is_some()).then_some(statistics)
    }

    /// The caches themselves, for texts of up to so many tokens.
    pub(crate) fn caches(&self, config: &Config, positions: usize) -> Result<caches::Caches, Error> {
        let statistics = self.statistics.as_deref();
        caches::Caches::new(&self.choice, config, positions, statistics, self.budgets.as_deref())
    }
}

/// Reads the file of parameters; everything in it is checked.
fn read(path: &Path, place: KeyPlace, config: &Config) -> Result<Vec<LayerStatistics>, Error> {
    let bad = |reason: String| Error::KvParameters { path: path.to_owned(), reason };
    if !path.is_file() {
        return Err(bad("config.json names this file, but it is missing".to_owned()));
    }
    let file = SafetensorsFile::open(path)?;
    match file.header().metadata().get(VERSION_KEY).map(String::as_str) {
        Some(VERSION) => {}
        found => return Err(bad(format!("{VERSION_KEY} is {found:?}, expected {VERSION:?}"))),
    }
    let geometry = caches::geometry(config);
    let stream = |layer: usize, stream: &str, channels: usize| {
        let part = |part: &str| -> Result<Vec<f32>, Error> {
            let name = format!("layers.{layer}.{stream}.{part}");
            let Some(tensor) = file.get(&name) else {
                let may_lack = matches!(part, "rows" | "rebuild" | "learned.shift");
                return if may_lack { Ok(Vec::new()) } else { Err(bad(format!("tensor {name} is missing"))) };
            };
            let values = tensor.to_f32()?;
            let fits = match part {
                "rows" => values.len().is_multiple_of(channels) && values.len() / channels <= MAX_ROWS,
                "compress" | "rebuild" => values.len().is_multiple_of(channels) && values.len() <= channels * channels,
                _ => values.len() == channels,
            };
            if !fits {
                return Err(bad(format!("tensor {name} has {} elements for {channels} channels", values.len())));
            }
            match values.iter().position(|x| !x.is_finite() || (part == "deviation" && *x < 0.0)) {
                Some(at) => Err(bad(format!("tensor {name}: element {at} is {}", values[at]))),
                None => Ok(values),
            }
        };
        let (min, max) = (part("min")?, part("max")?);
        if let Some(at) = min.iter().zip(&max).position(|(min, max)| min > max) {
            return Err(bad(format!("layers.{layer}.{stream}: the least value of channel {at} is above its largest")));
        }
        let adapter = match part("rebuild")? {
            rebuild if rebuild.is_empty() => None,
            rebuild => {
                let (compress, width) = (part("compress")?, rebuild.len() / channels);
                let maps = Adapter::new(&compress, &rebuild, part("shift")?, width, FullPrecision::F16);
                Some(Arc::new(maps.map_err(|source| bad(format!("layers.{layer}.{stream}: its maps: {source}")))?))
            }
        };
        let affine = match part("learned.shift")? {
            shift if shift.is_empty() => None,
            shift => {
                let affine = ChannelAffine::new(shift, part("learned.scale")?);
                Some(Arc::new(affine.map_err(|source| bad(format!("layers.{layer}.{stream}: {source}")))?))
            }
        };
        let (mean, deviation, rows) = (part("mean")?, part("deviation")?, part("rows")?);
        Ok(StreamStatistics { min, max, mean, deviation, rows, adapter, affine })
    };
    let layer = |layer: usize| {
        let keys = Some(stream(layer, "keys", geometry.key_width())?);
        let values = stream(layer, "values", geometry.value_width())?;
        Ok(match place {
            KeyPlace::AfterRope => LayerStatistics { before: None, after: keys, values },
            KeyPlace::BeforeRope => LayerStatistics { before: keys, after: None, values },
        })
    };
    (0..config.layers).map(layer).collect()
}

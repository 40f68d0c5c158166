//! From a method's name to empty caches of all layers.

use super::calibrate::LayerStatistics;
use super::slot::{Meter, Slot};
use crate::Error;
use crate::models::{Config, Decoder, Error as ModelError, Hidden, KvState, RopeScaling, eval::Predictor};
use crate::recipe::{KeyPlace, KvCacheChoice};
use kv_cache_quant::{Factors, KeyStorage, KvGeometry, KvPolicy, QuantizedKv, RopePairing, RopeTable};
use std::path::Path;
use std::sync::Arc;

/// Empty caches of all layers, to be cloned for every text.
#[derive(Clone, Debug)]
pub(crate) struct Caches {
    pub(crate) name: String,
    pub(crate) layers: Vec<QuantizedKv>,
    /// Takes keys back to before the rotary turn, where they are kept so.
    pub(crate) turn: Option<Arc<RopeTable>>,
    /// How attention rounds queries and weights.
    pub(crate) factors: Factors,
}

/// The sizes of one layer's cache, in the terms of the cache's crate.
pub(crate) fn geometry(config: &Config) -> KvGeometry {
    let of = config.kv_geometry();
    KvGeometry { kv_heads: of.kv_heads, q_heads: of.q_heads, dim_k: of.dim_k, dim_v: of.dim_v }
}

/// Refuses models that keep no keys and values.
pub(crate) fn check_model(config: &Config, path: &Path) -> Result<(), Error> {
    match config.rwkv {
        None => Ok(()),
        Some(_) => Err(Error::NoKvCache { path: path.to_owned() }),
    }
}

impl Caches {
    /// Caches for texts of up to `positions` tokens; `budgets` has the bytes of each layer.
    pub(crate) fn new(
        choice: &KvCacheChoice,
        config: &Config,
        positions: usize,
        statistics: Option<&[LayerStatistics]>,
        budgets: Option<&[u64]>,
    ) -> Result<Self, Error> {
        let name = choice.method.to_string();
        let refused = |source| Error::KvCache { what: name.clone(), source: Box::new(source) };
        let turn = match choice.keys {
            KeyPlace::AfterRope => None,
            KeyPlace::BeforeRope => Some(Arc::new(rotary_table(config, positions, &name)?)),
        };
        let layer = |layer: usize| {
            let storage = match &turn {
                None => KeyStorage::PostRope,
                Some(table) => KeyStorage::PreRope(Arc::clone(table)),
            };
            let seen = statistics.and_then(|all| all.get(layer)).and_then(|seen| seen.pair(choice.keys));
            if seen.is_none() && choice.method.needs_statistics() {
                return Err(Error::NeedsCalibration { what: format!("the cache {name}") });
            }
            let policy = KvPolicy { budget: budgets.and_then(|b| b.get(layer)).copied(), ..choice.policy() };
            choice.method.cache(geometry(config), storage, policy, seen.as_ref()).map_err(refused)
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_, _>>()?;
        Ok(Self { name, layers, turn, factors: Factors::default() })
    }

    /// Caches for one text.
    pub(crate) fn state(&self, config: &Config, meter: Option<&Arc<Meter>>) -> KvState {
        KvState::with(config, |layer, _| {
            let cache = self.layers[layer].clone();
            Box::new(Slot::new(layer, cache, self.turn.clone(), self.factors, meter.cloned()))
        })
    }
}

fn rotary_table(config: &Config, positions: usize, name: &str) -> Result<RopeTable, Error> {
    let refused = |source| Error::KvCache { what: name.to_owned(), source: Box::new(source) };
    if matches!(config.rope.scaling, RopeScaling::Dynamic { .. }) {
        return Err(refused(kv_cache_quant::Error::Unsupported {
            what: "rotary scaling of keys kept before the turn",
            found: "dynamic".to_owned(),
            supported: "scalings that do not depend on the length of the text",
        }));
    }
    let table = config.rope.table(0, positions);
    let (cos, sin) = (table.cosines().to_vec(), table.sines().to_vec());
    RopeTable::new(RopePairing::Half, config.rope.rotary_dim, cos, sin).map_err(refused)
}

/// A model that reads every text through caches of its own, as if token by token.
pub(crate) struct Cached<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) caches: &'a Caches,
    pub(crate) meter: Option<Arc<Meter>>,
    /// Is told how many tokens were read.
    pub(crate) told: Option<&'a dyn Fn(u64)>,
}

impl Predictor for Cached<'_> {
    fn decoder(&self) -> &Decoder {
        self.decoder
    }

    fn hidden(&self, texts: &[&[u32]]) -> Result<Hidden, ModelError> {
        let mut parts = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            if text.is_empty() {
                return Err(ModelError::EmptySequence { index });
            }
            let mut state = self.caches.state(self.decoder.config(), self.meter.as_ref());
            parts.push(self.decoder.extend(text, &mut state, None)?);
            if let Some(told) = self.told {
                told(text.len() as u64);
            }
        }
        Hidden::join(&parts)
    }
}

//! The slot of the key-value cache.

use crate::{BoxError, Config, Error};
use std::fmt::Debug;

/// The sizes of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvGeometry {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Query heads that read them; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Elements of a key head.
    pub dim_k: usize,
    /// Elements of a value head.
    pub dim_v: usize,
}

impl KvGeometry {
    /// Elements of one token's keys.
    #[must_use]
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.dim_k
    }

    /// Elements of one token's values.
    #[must_use]
    pub fn value_width(&self) -> usize {
        self.kv_heads * self.dim_v
    }
}

/// Keys and values of some tokens: row-major `[tokens, kv_heads, dim]`, keys after the rotary turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvRows<'a> {
    /// `[tokens, kv_heads, dim_k]`.
    pub keys: &'a [f32],
    /// `[tokens, kv_heads, dim_v]`.
    pub values: &'a [f32],
}

/// Buffers a cache may decode into; one for all layers, so that nothing is allocated per step.
#[derive(Clone, Debug, Default)]
pub struct KvScratch {
    /// For keys.
    pub keys: Vec<f32>,
    /// For values.
    pub values: Vec<f32>,
}

/// One layer's memory of the past.
///
/// A decoder calls [`KvCache::append`] once a layer and pass with the new tokens — one when it
/// generates, many when it reads a prompt, also onto a cache that is not empty — and lets attention
/// read what comes back. That is the whole contract, so a cache is free to keep codes, to hand the new
/// tokens back in full precision, or to keep a full-precision window.
pub trait KvCache: Debug + Send {
    /// Tokens held.
    fn len(&self) -> usize;

    /// Whether no token is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds tokens and returns what attention is to read: rows for all [`KvCache::len`] tokens, the new ones last.
    ///
    /// # Errors
    ///
    /// Whatever the cache cannot do; nothing may have been added then.
    fn append<'a>(&'a mut self, new: KvRows<'_>, scratch: &'a mut KvScratch) -> Result<KvRows<'a>, BoxError>;

    /// Forgets all tokens.
    fn reset(&mut self);

    /// Bytes that all held tokens take.
    fn bytes(&self) -> u64;
}

/// The cache that keeps every row as f32.
#[derive(Clone, Debug)]
pub struct PlainKvCache {
    geometry: KvGeometry,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl PlainKvCache {
    /// An empty cache.
    #[must_use]
    pub fn new(geometry: KvGeometry) -> Self {
        Self { geometry, keys: Vec::new(), values: Vec::new() }
    }
}

impl KvCache for PlainKvCache {
    fn len(&self) -> usize {
        self.keys.len() / self.geometry.key_width().max(1)
    }

    fn append<'a>(&'a mut self, new: KvRows<'_>, _scratch: &'a mut KvScratch) -> Result<KvRows<'a>, BoxError> {
        let tokens = new.keys.len() / self.geometry.key_width().max(1);
        if new.keys.len() != tokens * self.geometry.key_width()
            || new.values.len() != tokens * self.geometry.value_width()
        {
            return Err(format!(
                "{} key and {} value elements are not rows of the same tokens for {:?}",
                new.keys.len(),
                new.values.len(),
                self.geometry
            )
            .into());
        }
        self.keys.extend_from_slice(new.keys);
        self.values.extend_from_slice(new.values);
        Ok(KvRows { keys: &self.keys, values: &self.values })
    }

    fn reset(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    fn bytes(&self) -> u64 {
        (size_of_val(self.keys.as_slice()) + size_of_val(self.values.as_slice())) as u64
    }
}

/// The caches of all layers of one text.
#[derive(Debug)]
pub struct KvState {
    layers: Vec<Box<dyn KvCache>>,
    scratch: KvScratch,
}

impl KvState {
    /// Plain f32 caches for a model.
    #[must_use]
    pub fn plain(config: &Config) -> Self {
        Self::with(config, |_, geometry| Box::new(PlainKvCache::new(geometry)))
    }

    /// Caches of any kind; `make` is called with each layer's index and sizes.
    pub fn with(config: &Config, mut make: impl FnMut(usize, KvGeometry) -> Box<dyn KvCache>) -> Self {
        let geometry = config.kv_geometry();
        Self { layers: (0..config.layers).map(|layer| make(layer, geometry)).collect(), scratch: KvScratch::default() }
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len())
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The caches, first layer first.
    #[must_use]
    pub fn layers(&self) -> &[Box<dyn KvCache>] {
        &self.layers
    }

    /// Bytes of all layers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes()).sum()
    }

    /// Forgets all tokens; also the way out after a pass failed half-way through the layers.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.reset());
    }

    /// Refuses caches that belong to another model or were left uneven by a failed pass.
    pub(crate) fn check(&self, config: &Config) -> Result<(), Error> {
        let held = self.len();
        if self.layers.len() != config.layers {
            let source = format!("{} layers, but the model has {}", self.layers.len(), config.layers).into();
            return Err(Error::Cache { layer: self.layers.len(), source });
        }
        match self.layers.iter().position(|layer| layer.len() != held) {
            None => Ok(()),
            Some(layer) => {
                let source =
                    format!("holds {} tokens, the first layer {held}; reset it", self.layers[layer].len()).into();
                Err(Error::Cache { layer, source })
            }
        }
    }

    /// Appends to one layer and checks that what comes back has the promised sizes.
    pub(crate) fn append(&mut self, layer: usize, geometry: KvGeometry, new: KvRows<'_>) -> Result<KvRows<'_>, Error> {
        let error = |source: BoxError| Error::Cache { layer, source };
        let Some(cache) = self.layers.get_mut(layer) else {
            return Err(error("there is no such layer".into()));
        };
        let tokens = cache.len() + new.keys.len() / geometry.key_width();
        let rows = cache.append(new, &mut self.scratch).map_err(error)?;
        if rows.keys.len() != tokens * geometry.key_width() || rows.values.len() != tokens * geometry.value_width() {
            let (keys, values) = (rows.keys.len(), rows.values.len());
            return Err(error(format!("gave back {keys} key and {values} value elements for {tokens} tokens").into()));
        }
        Ok(rows)
    }
}

impl Config {
    /// The sizes of each layer's key-value cache.
    #[must_use]
    pub fn kv_geometry(&self) -> KvGeometry {
        KvGeometry { kv_heads: self.kv_heads, q_heads: self.heads, dim_k: self.head_dim, dim_v: self.head_dim }
    }
}

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

/// One token on its way through attention and into a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvStep<'a> {
    /// The token's queries, `[q_heads, dim_k]`, after the rotary turn. Query head `h` reads key-value head
    /// `h / (q_heads / kv_heads)`.
    pub queries: &'a [f32],
    /// Its keys and values.
    pub new: KvRows<'a>,
    /// Tokens it looks back on, itself included; all if `None`.
    pub window: Option<usize>,
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
///
/// A cache that computes attention on its codes says so with [`KvCache::attends`]. It is then given the tokens of a pass
/// one after the other, layer by layer: reading a text at once is then the same as decoding it token by token, with all
/// linears still applied to the whole pass.
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

    /// Whether it brings attention of its own; [`KvCache::attend`] is then called in place of [`KvCache::append`].
    fn attends(&self) -> bool {
        false
    }

    /// Attention of one token over the tokens held and itself, into `out` `[q_heads, dim_v]`; then adds the token. Scores
    /// are scaled by `1/√dim_k`.
    ///
    /// # Errors
    ///
    /// Whatever the cache cannot do. As long as it is not written, that it has no attention of its own.
    fn attend(&mut self, step: KvStep<'_>, out: &mut [f32]) -> Result<(), BoxError> {
        let _ = (step, out);
        Err("the cache has no attention of its own".into())
    }

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

/// What one layer of a recurrent model remembers of a text: as much for a long one as for a short one.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentState {
    pub(crate) tokens: usize,
    pub(crate) mixer_shift: Vec<f32>,
    pub(crate) channel_shift: Vec<f32>,
    pub(crate) matrices: Vec<f32>,
}

impl RecurrentState {
    /// The state before the first token: zeros.
    pub(crate) fn new(config: &Config) -> Self {
        let zeros = || vec![0.0; config.hidden_size];
        let matrices = vec![0.0; config.heads * config.head_dim * config.head_dim];
        Self { tokens: 0, mixer_shift: zeros(), channel_shift: zeros(), matrices }
    }

    /// Tokens read.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Each head's matrix, row-major `[heads, size, size]`: rows are values and columns keys in RWKV-7, the other way
    /// round in RWKV-6.
    #[must_use]
    pub fn matrices(&self) -> &[f32] {
        &self.matrices
    }

    fn bytes(&self) -> u64 {
        (size_of::<f32>() * (self.mixer_shift.len() + self.channel_shift.len() + self.matrices.len())) as u64
    }
}

/// What all layers remember of one text: a cache each, or the state of a recurrence.
#[derive(Debug)]
pub struct KvState {
    layers: Vec<Box<dyn KvCache>>,
    scratch: KvScratch,
    recurrent: Vec<RecurrentState>,
}

impl KvState {
    /// Plain f32 caches for a model.
    #[must_use]
    pub fn plain(config: &Config) -> Self {
        Self::with(config, |_, geometry| Box::new(PlainKvCache::new(geometry)))
    }

    /// Caches of any kind; `make` is called with each layer's index and sizes. A recurrent model has no caches: its
    /// states are f32, and `make` is not called.
    pub fn with(config: &Config, mut make: impl FnMut(usize, KvGeometry) -> Box<dyn KvCache>) -> Self {
        let (geometry, scratch) = (config.kv_geometry(), KvScratch::default());
        if config.rwkv.is_some() {
            let recurrent = (0..config.layers).map(|_| RecurrentState::new(config)).collect();
            return Self { layers: Vec::new(), scratch, recurrent };
        }
        Self { layers: (0..config.layers).map(|layer| make(layer, geometry)).collect(), scratch, recurrent: Vec::new() }
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.layers.first() {
            Some(layer) => layer.len(),
            None => self.recurrent.first().map_or(0, RecurrentState::tokens),
        }
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The caches, first layer first; none for a recurrent model.
    #[must_use]
    pub fn layers(&self) -> &[Box<dyn KvCache>] {
        &self.layers
    }

    /// The states of a recurrent model, first layer first.
    #[must_use]
    pub fn recurrent(&self) -> &[RecurrentState] {
        &self.recurrent
    }

    /// Bytes of all layers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let caches: u64 = self.layers.iter().map(|layer| layer.bytes()).sum();
        caches + self.recurrent.iter().map(RecurrentState::bytes).sum::<u64>()
    }

    /// Forgets all tokens; also the way out after a pass failed half-way through the layers.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.reset());
        for state in &mut self.recurrent {
            state.tokens = 0;
            for values in [&mut state.mixer_shift, &mut state.channel_shift, &mut state.matrices] {
                values.fill(0.0);
            }
        }
    }

    /// Refuses caches that belong to another model or were left uneven by a failed pass.
    pub(crate) fn check(&self, config: &Config) -> Result<(), Error> {
        let held = self.len();
        let (caches, states) = match config.rwkv {
            None => (config.layers, 0),
            Some(_) => (0, config.layers),
        };
        if (self.layers.len(), self.recurrent.len()) != (caches, states) {
            let (found, recurrent) = (self.layers.len(), self.recurrent.len());
            let source = format!(
                "{found} layers of caches and {recurrent} of recurrent states, but the model has {caches} and {states}"
            );
            return Err(Error::Cache { layer: found.max(recurrent), source: source.into() });
        }
        let fresh = RecurrentState::new(config);
        let fits = |state: &RecurrentState| {
            (state.mixer_shift.len(), state.matrices.len()) == (fresh.mixer_shift.len(), fresh.matrices.len())
        };
        if let Some(layer) = self.recurrent.iter().position(|state| !fits(state)) {
            return Err(Error::Cache { layer, source: "the state has other heads than the model".into() });
        }
        let lengths = self.layers.iter().map(|layer| layer.len());
        let mut lengths = lengths.chain(self.recurrent.iter().map(RecurrentState::tokens)).enumerate();
        match lengths.find(|(_, length)| *length != held) {
            None => Ok(()),
            Some((layer, length)) => {
                let source = format!("holds {length} tokens, the first layer {held}; reset it").into();
                Err(Error::Cache { layer, source })
            }
        }
    }

    /// The state of one layer.
    pub(crate) fn recurrent_state(&self, layer: usize) -> Result<&RecurrentState, Error> {
        let missing = || Error::Cache { layer, source: "there is no such layer".into() };
        self.recurrent.get(layer).ok_or_else(missing)
    }

    /// The state of one layer, to be replaced.
    pub(crate) fn recurrent_state_mut(&mut self, layer: usize) -> Result<&mut RecurrentState, Error> {
        let missing = || Error::Cache { layer, source: "there is no such layer".into() };
        self.recurrent.get_mut(layer).ok_or_else(missing)
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

    /// Whether a layer's cache computes attention itself.
    pub(crate) fn attends(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(|cache| cache.attends())
    }

    /// Lets one layer's cache attend from one token and add it.
    pub(crate) fn attend(&mut self, layer: usize, step: KvStep<'_>, out: &mut [f32]) -> Result<(), Error> {
        let error = |source: BoxError| Error::Cache { layer, source };
        let Some(cache) = self.layers.get_mut(layer) else {
            return Err(error("there is no such layer".into()));
        };
        let before = cache.len();
        cache.attend(step, out).map_err(error)?;
        match cache.len() {
            after if after == before + 1 => Ok(()),
            after => Err(error(format!("holds {after} tokens after one was added to {before}").into())),
        }
    }
}

impl Config {
    /// The sizes of each layer's key-value cache.
    #[must_use]
    pub fn kv_geometry(&self) -> KvGeometry {
        KvGeometry { kv_heads: self.kv_heads, q_heads: self.heads, dim_k: self.head_dim, dim_v: self.head_dim }
    }
}

//! The cache of one layer: two streams, positions, a budget.

use crate::codec::Codec;
use crate::layer::{ByteReport, Capabilities, KvCacheLayer, Rollback};
use crate::positions::{PositionRuns, Positions};
use crate::side::Side;
use crate::{Attention, Error, FullPrecision, KvGeometry, KvRows, RopeTable, Stream, Workspace};
use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Arc;

/// What of a cache stays in full precision, and how it is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvPolicy {
    /// First tokens that are never sealed: attention rests on them out of proportion.
    pub sinks: usize,
    /// Newest tokens that are not sealed yet.
    pub window: usize,
    /// The same for values, where it differs.
    pub value_window: Option<usize>,
    /// Newest sealed tokens whose originals are kept too, so that rolling back so many is exact.
    pub spare: usize,
    /// Type of all rows that are not sealed.
    pub precision: FullPrecision,
    /// Tokens of a page of sealed ones, rounded up to whole units.
    pub page_tokens: usize,
    /// Bytes that the layer may take, everything counted. Codecs with stages lower their precision to stay within it;
    /// when the last stage does not fit either, tokens are refused.
    pub budget: Option<u64>,
}

impl Default for KvPolicy {
    fn default() -> Self {
        Self {
            sinks: 0,
            window: 0,
            value_window: None,
            spare: 0,
            precision: FullPrecision::F16,
            page_tokens: 64,
            budget: None,
        }
    }
}

/// How keys are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum KeyStorage {
    /// As attention reads them: given after the rotary turn.
    #[default]
    PostRope,
    /// Before the rotary turn: given so, and turned whenever they are read. Channels keep their means, which
    /// per-channel methods live on, and positions can be shifted.
    PreRope(Arc<RopeTable>),
}

/// One layer's cache of one sequence, with any codecs.
///
/// ```
/// use kv_cache_quant::*;
/// use std::sync::Arc;
///
/// let geometry = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: 64, dim_v: 64 };
/// let keys = Arc::new(TokenFormat::new(2, 64, "int4-min".parse()?)?);
/// let values = Arc::new(TokenFormat::new(2, 64, "int2-g32-min".parse()?)?);
/// let policy = KvPolicy { sinks: 4, window: 32, ..KvPolicy::default() };
/// let mut cache = QuantizedKv::new(geometry, KeyStorage::PostRope, keys, values, policy)?;
///
/// let row: Vec<f32> = (0..100 * 128).map(|i| (i % 17) as f32 - 8.0).collect();
/// cache.append(KvRows { keys: &row, values: &row }, Positions::Next)?;
/// assert_eq!((cache.len(), cache.bytes().full_precision), (100, 2 * 36 * 128 * 2));
///
/// let mut out = vec![0.0; 4 * 64];
/// let queries = vec![0.1; 4 * 64];
/// cache.attend(&Attention::of(&queries), &mut out, &mut Workspace::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct QuantizedKv {
    pub(crate) geometry: KvGeometry,
    pub(crate) storage: KeyStorage,
    pub(crate) policy: KvPolicy,
    pub(crate) keys: Side,
    pub(crate) values: Side,
    pub(crate) positions: PositionRuns,
    pub(crate) stage: usize,
}

impl QuantizedKv {
    /// An empty cache.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a geometry without heads, units or pages beyond reason, or heads shorter than the
    /// rotary dimension; [`Error::Width`] when a codec is made for other heads.
    pub fn new(
        geometry: KvGeometry,
        storage: KeyStorage,
        keys: Arc<dyn Codec>,
        values: Arc<dyn Codec>,
        policy: KvPolicy,
    ) -> Result<Self, Error> {
        geometry.check()?;
        for (what, codec, expected) in
            [("codec of keys", &keys, geometry.key_width()), ("codec of values", &values, geometry.value_width())]
        {
            if codec.width() != expected {
                return Err(Error::Width { what, expected, found: codec.width() });
            }
        }
        let value_window = policy.value_window.unwrap_or(policy.window);
        let value_policy = KvPolicy { window: value_window, ..policy };
        let tokens =
            [policy.sinks, policy.window, value_window, policy.spare, policy.page_tokens, keys.unit(), values.unit()];
        if policy.page_tokens == 0 || tokens.into_iter().any(|t| t > 1 << 20) || keys.unit() == 0 || values.unit() == 0
        {
            return Err(Error::Unsupported {
                what: "policy",
                found: format!("{policy:?}"),
                supported: "at least one token a page, and at most 2^20 tokens in each number",
            });
        }
        if let KeyStorage::PreRope(table) = &storage
            && table.rotary() > geometry.dim_k
        {
            return Err(Error::Unsupported {
                what: "rotary dimension",
                found: format!("{} in heads of {}", table.rotary(), geometry.dim_k),
                supported: "at most the elements of a key head",
            });
        }
        Ok(Self {
            geometry,
            storage,
            policy,
            keys: Side::new(Stream::Keys, keys, policy),
            values: Side::new(Stream::Values, values, value_policy),
            positions: PositionRuns::default(),
            stage: 0,
        })
    }

    /// What stays in full precision.
    #[must_use]
    pub fn policy(&self) -> KvPolicy {
        self.policy
    }

    /// The stage that progressive codecs are at; 0 is the finest.
    #[must_use]
    pub fn stage(&self) -> usize {
        self.stage
    }

    /// Tokens whose keys and values are sealed.
    #[must_use]
    pub fn sealed(&self) -> (usize, usize) {
        (self.keys.sealed(), self.values.sealed())
    }

    /// Whether attention multiplies with sealed codes as they are stored, which takes a codec that says how they lie
    /// ([`Codec::packed`]), keys after the rotary turn, and AVX-512 with VNNI. Otherwise it decodes a page at a time.
    #[must_use]
    pub fn attends_on_codes(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return crate::fused::covers(self);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Bytes of a cache like this one with `tokens` tokens in one run of positions, its codecs at `stage`.
    pub(crate) fn bytes_for(&self, tokens: usize, stage: usize) -> u64 {
        let (keys, values) = (self.keys.emptied(), self.values.emptied());
        let runs = size_of::<crate::positions::Run>() as u64;
        keys.bytes_after(tokens, stage) + values.bytes_after(tokens, stage) + runs
    }

    fn stages(&self) -> usize {
        self.keys.codec().stages().max(self.values.codec().stages())
    }

    fn position_limit(&self) -> usize {
        match &self.storage {
            KeyStorage::PostRope => u32::MAX as usize,
            KeyStorage::PreRope(table) => table.positions(),
        }
    }

    /// The finest stage, not finer than the present one, at which tokens at these positions fit the budget too.
    fn stage_after(&self, positions: &[u32]) -> Result<usize, Error> {
        let Some(have) = self.policy.budget else { return Ok(self.stage) };
        let (count, runs) = (positions.len(), self.positions.bytes_after(positions) as u64);
        let need = |stage| self.keys.bytes_after(count, stage) + self.values.bytes_after(count, stage) + runs;
        let last = self.stages() - 1;
        (self.stage..=last).find(|&stage| need(stage) <= have).ok_or_else(|| Error::Budget { need: need(last), have })
    }

    fn check_tokens(&self, tokens: &Range<usize>) -> Result<(), Error> {
        let len = self.len();
        if tokens.start <= tokens.end && tokens.end <= len {
            return Ok(());
        }
        Err(Error::Tokens { start: tokens.start, end: tokens.end, len })
    }

    /// Turns decoded keys of some tokens where they are kept before the turn.
    pub(crate) fn turn(&self, keys: &mut [f32], positions: &[u32]) -> Result<(), Error> {
        if let KeyStorage::PreRope(table) = &self.storage {
            for (row, &position) in keys.chunks_exact_mut(self.geometry.key_width()).zip(positions) {
                table.rotate(row, self.geometry.dim_k, position)?;
            }
        }
        Ok(())
    }

    pub(crate) fn new_positions(&self, count: usize, at: Positions<'_>) -> Result<Vec<u32>, Error> {
        self.positions.next(count, at, self.position_limit())
    }
}

impl KvCacheLayer for QuantizedKv {
    fn geometry(&self) -> KvGeometry {
        self.geometry
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            key_unit: self.keys.codec().unit(),
            value_unit: self.values.codec().unit(),
            shift: matches!(self.storage, KeyStorage::PreRope(_)),
            progressive: self.policy.budget.is_some() && self.stages() > 1,
        }
    }

    fn append(&mut self, rows: KvRows<'_>, positions: Positions<'_>) -> Result<(), Error> {
        let count = rows.tokens(&self.geometry, self.policy.precision)?;
        let positions = self.new_positions(count, positions)?;
        let stage = self.stage_after(&positions)?;
        let keys = self.keys.prepare(rows.keys, stage)?;
        let values = self.values.prepare(rows.values, stage)?;
        for from in self.stage..stage {
            self.keys.shrink(from);
            self.values.shrink(from);
        }
        self.stage = stage;
        self.keys.commit(rows.keys, &keys, stage);
        self.values.commit(rows.values, &values, stage);
        self.positions.extend(&positions);
        Ok(())
    }

    fn attend(&self, request: &Attention<'_>, out: &mut [f32], workspace: &mut Workspace) -> Result<(), Error> {
        crate::attend::attend(self, request, out, workspace)
    }

    fn dequantize(&self, tokens: Range<usize>, keys: &mut [f32], values: &mut [f32]) -> Result<(), Error> {
        self.check_tokens(&tokens)?;
        let expected = [tokens.len() * self.geometry.key_width(), tokens.len() * self.geometry.value_width()];
        for ((what, expected), found) in
            [("keys", expected[0]), ("values", expected[1])].into_iter().zip([keys.len(), values.len()])
        {
            if expected != found {
                return Err(Error::Shape { what, expected, found });
            }
        }
        self.keys.read(tokens.clone(), self.stage, keys)?;
        self.values.read(tokens.clone(), self.stage, values)?;
        self.turn(keys, &self.positions.of(tokens))
    }

    fn truncate(&mut self, len: usize) -> Result<Rollback, Error> {
        self.check_tokens(&(len..self.len()))?;
        let same_stage = self.stage == 0 || len == self.len() || len == 0;
        let (keys, values) = (self.keys.truncate(len, self.stage)?, self.values.truncate(len, self.stage)?);
        self.positions.truncate(len);
        if len == 0 {
            self.stage = 0;
        }
        Ok(if same_stage && keys && values { Rollback::Exact } else { Rollback::Approximate })
    }

    fn exact_rollback_depth(&self) -> usize {
        // A precision once lowered is not raised again.
        if self.stage > 0 { 0 } else { self.keys.exact_depth().min(self.values.exact_depth()) }
    }

    fn evict(&mut self, tokens: Range<usize>) -> Result<(), Error> {
        self.check_tokens(&tokens)?;
        self.keys.check_evict(&tokens)?;
        self.values.check_evict(&tokens)?;
        self.keys.evict(&tokens, self.stage)?;
        self.values.evict(&tokens, self.stage)?;
        self.positions.evict(tokens);
        Ok(())
    }

    fn shift(&mut self, tokens: Range<usize>, delta: i64) -> Result<(), Error> {
        self.check_tokens(&tokens)?;
        if !self.capabilities().shift {
            return Err(Error::Unsupported {
                what: "shift of keys",
                found: "kept after the rotary turn".into(),
                supported: "keys kept before it",
            });
        }
        self.positions = self.positions.shifted(tokens, delta, self.position_limit())?;
        Ok(())
    }

    fn fork(&self) -> Box<dyn KvCacheLayer> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> ByteReport {
        let mut report = self.keys.bytes(self.stage) + self.values.bytes(self.stage);
        report.bookkeeping += self.positions.bytes() as u64;
        report
    }

    fn save(&self, to: &mut dyn Write) -> Result<(), Error> {
        crate::save::save(self, to)
    }

    fn load(&mut self, from: &mut dyn Read) -> Result<(), Error> {
        *self = crate::save::load(self, from)?;
        Ok(())
    }

    fn reset(&mut self) {
        self.keys = self.keys.emptied();
        self.values = self.values.emptied();
        self.positions = PositionRuns::default();
        self.stage = 0;
    }
}

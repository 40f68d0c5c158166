//! What an engine sees of one layer's cache.

use crate::{Attention, Error, KvGeometry, KvRows, Positions, Workspace};
use std::fmt::Debug;
use std::io::{Read, Write};
use std::iter::Sum;
use std::ops::{Add, Range};

/// One layer's cache of one sequence. Object-safe, so that layers with different codecs live in one list.
///
/// Every method that returns an error has then changed nothing.
pub trait KvCacheLayer: Debug + Send + Sync {
    /// The sizes it was made for.
    fn geometry(&self) -> KvGeometry;

    /// Tokens held.
    fn len(&self) -> usize;

    /// Whether no token is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Adds tokens: one, a whole prompt, or any number onto what is there.
    ///
    /// The state afterwards depends on the tokens, not on how they were split into calls.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::NonFinite`], [`Error::OutOfRange`], [`Error::Position`], [`Error::Encode`],
    /// [`Error::Budget`].
    fn append(&mut self, rows: KvRows<'_>, positions: Positions<'_>) -> Result<(), Error>;

    /// Attention of some queries over the tokens held and, unquantized, those in
    /// [`Attention::fresh`]; `out` is `[queries, q_heads, dim_v]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::NonFinite`], [`Error::Position`].
    fn attend(&self, request: &Attention<'_>, out: &mut [f32], workspace: &mut Workspace) -> Result<(), Error>;

    /// Decodes tokens into `[tokens, kv_heads, dim]`, keys as attention reads them, after the rotary turn. For engines
    /// that bring their own attention, and for looking.
    ///
    /// # Errors
    ///
    /// [`Error::Tokens`] and [`Error::Shape`].
    fn dequantize(&self, tokens: Range<usize>, keys: &mut [f32], values: &mut [f32]) -> Result<(), Error>;

    /// Forgets all tokens from `len` on. Always possible; exact for cuts of at most
    /// [`KvCacheLayer::exact_rollback_depth`] tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Tokens`] when fewer are held.
    fn truncate(&mut self, len: usize) -> Result<Rollback, Error>;

    /// How many of the newest tokens can be cut off now so that the state is, bit for bit, as if they had never come.
    fn exact_rollback_depth(&self) -> usize;

    /// Removes tokens anywhere; the others keep their positions.
    ///
    /// # Errors
    ///
    /// [`Error::Tokens`], and [`Error::Granularity`] when the range cuts tokens that were sealed together.
    fn evict(&mut self, tokens: Range<usize>) -> Result<(), Error>;

    /// Moves tokens to other positions, which turns their keys: only where keys are kept before the rotary turn.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for keys kept after the rotary turn, [`Error::Tokens`], [`Error::Position`].
    fn shift(&mut self, tokens: Range<usize>, delta: i64) -> Result<(), Error>;

    /// An independent copy that shares sealed tokens until one of the two changes them.
    fn fork(&self) -> Box<dyn KvCacheLayer>;

    /// Every byte that is held.
    fn bytes(&self) -> ByteReport;

    /// Writes everything that [`KvCacheLayer::load`] needs.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn save(&self, to: &mut dyn Write) -> Result<(), Error>;

    /// Replaces the tokens held by those of a saved cache that was made with the same parameters.
    ///
    /// # Errors
    ///
    /// [`Error::HeaderMismatch`] naming the first parameter that differs, [`Error::Corrupt`], [`Error::Io`].
    fn load(&mut self, from: &mut dyn Read) -> Result<(), Error>;

    /// Forgets all tokens.
    fn reset(&mut self);
}

/// What a cache can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Tokens whose keys are sealed together, and so evicted together.
    pub key_unit: usize,
    /// Tokens whose values are sealed together.
    pub value_unit: usize,
    /// Whether positions can be shifted.
    pub shift: bool,
    /// Whether the precision of sealed tokens is lowered when the budget is reached.
    pub progressive: bool,
}

/// What became of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// The state is as if the tokens had never come.
    Exact,
    /// The remaining tokens are right in number and order, but some are quantized, or at a lower precision, that would
    /// not be had the others never come. Of a unit that was cut, tokens live on as what they decode to.
    Approximate,
}

/// Bytes of a cache, by kind. Without `shared`, the fields add up to what the cache takes from the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct ByteReport {
    /// Codes of sealed tokens.
    pub codes: u64,
    /// Their scales, zero points and the like.
    pub metadata: u64,
    /// Rows in full precision: sinks, window, tokens that wait for their unit, originals for rollbacks.
    pub full_precision: u64,
    /// Allocated, but not used yet.
    pub padding: u64,
    /// Static data of the codecs: permutations, scales of channels.
    pub auxiliary: u64,
    /// Lists and counts.
    pub bookkeeping: u64,
    /// The part of pages that forks hold too; contained in the other fields.
    pub shared: u64,
}

impl ByteReport {
    /// All bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.codes + self.metadata + self.full_precision + self.padding + self.auxiliary + self.bookkeeping
    }
}

impl Add for ByteReport {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            codes: self.codes + other.codes,
            metadata: self.metadata + other.metadata,
            full_precision: self.full_precision + other.full_precision,
            padding: self.padding + other.padding,
            auxiliary: self.auxiliary + other.auxiliary,
            bookkeeping: self.bookkeeping + other.bookkeeping,
            shared: self.shared + other.shared,
        }
    }
}

impl Sum for ByteReport {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

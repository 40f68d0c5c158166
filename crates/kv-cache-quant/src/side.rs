//! One stream of one layer: the state machine that every codec fits into.
//!
//! In the order of tokens: `sinks | sealed | waiting + window`. Of `T` tokens after the sinks,
//! `⌊max(T − window, 0) / unit⌋ · unit` are sealed, however they arrived: one by one, all at once, or in any pieces.

use crate::codec::{Codec, Cskv};
use crate::pages::{Order, Pages};
use crate::ring::Ring;
use crate::{ByteReport, Error, FullPrecision, KvPolicy, Stream};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Keys or values of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    stream: Stream,
    codec: Arc<dyn Codec>,
    policy: KvPolicy,
    /// The first tokens in full precision.
    sinks: Vec<u8>,
    pages: Pages,
    ring: Ring,
}

/// How many new tokens become sinks, and the units the others complete; nothing can fail any more.
#[derive(Debug)]
pub(crate) struct Prepared {
    sinks: usize,
    sealed: Vec<u8>,
}

/// A stretch of tokens that lie together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) tokens: Range<usize>,
    place: Place,
}

impl Chunk {
    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self.place, Place::Page(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Sinks,
    Page(usize),
    /// From this row of those not sealed.
    Ring(usize),
}

/// Rows that lie together, as bytes.
#[derive(Clone, Debug)]
pub(crate) struct Span<'a> {
    pub(crate) kind: SpanKind,
    pub(crate) tokens: Range<usize>,
    pub(crate) bytes: &'a [u8],
    /// Where units are cut into pieces: units that there is room for, and how codes lie.
    pub(crate) cut: Option<(usize, Order)>,
}

/// How the rows of a span are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanKind {
    /// As units of the codec.
    Sealed,
    /// In the policy's precision.
    Exact,
    /// As f32, not in the cache.
    Fresh,
}

/// Rows of a chunk of the ring.
const RING_CHUNK: usize = 64;
/// Elements below which sealing is not spread over threads.
const LEAST_ELEMENTS: usize = 1 << 15;

impl Side {
    pub(crate) fn new(stream: Stream, codec: Arc<dyn Codec>, policy: KvPolicy) -> Self {
        let (unit, width) = (codec.unit(), codec.width());
        let page_units = policy.page_tokens.div_ceil(unit).max(1);
        let ring = Ring::new(policy.precision, width, policy.window + policy.spare + unit - 1);
        let cut = if codec.stages() == 1 { codec.packed(0).map(|rows| rows.cut(stream, page_units)) } else { None };
        Self { stream, codec, policy, sinks: Vec::new(), pages: Pages::new(page_units, cut.unwrap_or_default()), ring }
    }

    pub(crate) fn codec(&self) -> &dyn Codec {
        self.codec.as_ref()
    }

    pub(crate) fn emptied(&self) -> Self {
        Self::new(self.stream, self.codec.clone(), self.policy)
    }

    fn stage(&self, stage: usize) -> usize {
        stage.min(self.codec.stages() - 1)
    }

    fn unit_bytes(&self, stage: usize) -> usize {
        self.codec.bytes(self.stage(stage)).total()
    }

    fn row_bytes(&self) -> usize {
        self.ring.row_bytes()
    }

    pub(crate) fn sinks(&self) -> usize {
        self.sinks.len() / self.row_bytes()
    }

    pub(crate) fn sealed(&self) -> usize {
        self.pages.len() * self.codec.unit()
    }

    pub(crate) fn len(&self) -> usize {
        self.sinks() + self.sealed() + self.ring.live()
    }

    /// How many of `count` new tokens become sinks.
    fn new_sinks(&self, count: usize) -> usize {
        if self.pages.len() == 0 && self.ring.live() == 0 {
            count.min(self.policy.sinks.saturating_sub(self.sinks()))
        } else {
            0
        }
    }

    /// Units that are complete, and behind the window, once `count` tokens have come.
    fn new_units(&self, count: usize) -> usize {
        let waiting = self.ring.live() + count - self.new_sinks(count);
        waiting.saturating_sub(self.policy.window) / self.codec.unit()
    }

    /// Seals the units that rows complete, without changing anything yet.
    pub(crate) fn prepare(&self, rows: &[f32], stage: usize) -> Result<Prepared, Error> {
        let width = self.codec.width();
        let tokens = rows.len() / width;
        let sinks = self.new_sinks(tokens);
        let mut sealed = vec![0; self.new_units(tokens) * self.unit_bytes(stage)];
        self.seal(&rows[sinks * width..], stage, &mut sealed)?;
        Ok(Prepared { sinks, sealed })
    }

    /// Seals units of waiting and new rows, each unit by itself.
    fn seal(&self, new: &[f32], stage: usize, sealed: &mut [u8]) -> Result<(), Error> {
        let (unit, width) = (self.codec.unit(), self.codec.width());
        let (live, stage) = (self.ring.live(), self.stage(stage));
        let seal_unit = |rows: &mut Vec<f32>, index: usize, out: &mut [u8]| {
            rows.clear();
            for at in index * unit..(index + 1) * unit {
                if at < live {
                    let first = rows.len();
                    rows.resize(first + width, 0.0);
                    self.ring.read_live(at, &mut rows[first..]);
                } else {
                    self.policy.precision.push_rounded(&new[(at - live) * width..][..width], rows);
                }
            }
            self.codec.seal(rows, stage, out)
        };
        let unit_bytes = self.unit_bytes(stage);
        let count = sealed.len() / unit_bytes;
        let failed = if count > 1 && count * unit * width >= LEAST_ELEMENTS && rayon::current_num_threads() > 1 {
            let units = sealed.par_chunks_exact_mut(unit_bytes).enumerate();
            let seal = |rows: &mut Vec<f32>, (index, out): (usize, &mut [u8])| seal_unit(rows, index, out).err();
            units.map_init(Vec::new, seal).find_map_first(|error| error)
        } else {
            let mut rows = Vec::new();
            let mut units = sealed.chunks_exact_mut(unit_bytes).enumerate();
            units.find_map(|(index, out)| seal_unit(&mut rows, index, out).err())
        };
        failed.map_or(Ok(()), |source| Err(Error::Encode { stream: self.stream, source }))
    }

    /// Takes rows in that were prepared.
    pub(crate) fn commit(&mut self, rows: &[f32], new: &Prepared, stage: usize) {
        let precision = self.policy.precision;
        let (sinks, rows) = rows.split_at(new.sinks * self.codec.width());
        if new.sinks > 0 {
            let held = self.sinks.len();
            self.sinks.reserve_exact(self.policy.sinks * self.row_bytes() - held);
            self.sinks.resize(held + new.sinks * self.row_bytes(), 0);
            precision.write(sinks, &mut self.sinks[held..]);
        }
        let unit_bytes = self.unit_bytes(stage);
        let units = new.sealed.len() / unit_bytes;
        self.pages.push(&new.sealed, unit_bytes);
        let rows = rows.chunks_exact(self.codec.width());
        let live = self.ring.live() + rows.len() - units * self.codec.unit();
        if rows.len() > 0 {
            self.ring.push(rows, live, |row, slot| precision.write(row, slot));
        }
    }

    pub(crate) fn shrink(&mut self, from: usize) {
        if from + 1 < self.codec.stages() {
            self.pages.shrink(self.codec.as_ref(), from);
        }
    }

    /// How codes of sealed tokens lie in pages.
    pub(crate) fn order(&self) -> Order {
        self.pages.order()
    }

    pub(crate) fn precision(&self) -> FullPrecision {
        self.policy.precision
    }

    /// The bytes of all tokens, in order.
    pub(crate) fn spans(&self) -> Vec<Span<'_>> {
        let mut spans = Vec::with_capacity(self.pages.page_count() + 3);
        let mut first = 0;
        let mut push = |kind, count: usize, bytes| {
            if count > 0 {
                spans.push(Span { kind, tokens: first..first + count, bytes, cut: None });
            }
            first += count;
        };
        push(SpanKind::Exact, self.sinks(), self.sinks.as_slice());
        for page in 0..self.pages.page_count() {
            let (units, bytes) = (self.pages.page_units(page), self.pages.raw(page));
            push(SpanKind::Sealed, units * self.codec.unit(), bytes);
        }
        self.ring.live_parts().into_iter().for_each(|rows| push(SpanKind::Exact, rows.len() / self.row_bytes(), rows));
        if self.pages.is_cut() {
            let sealed = spans.iter_mut().filter(|span| span.kind == SpanKind::Sealed);
            sealed.for_each(|span| span.cut = Some((self.pages.page_capacity(), self.pages.order())));
        }
        spans
    }

    /// All stretches of tokens, in order.
    pub(crate) fn chunks(&self) -> Vec<Chunk> {
        let mut chunks = Vec::with_capacity(self.pages.page_count() + 2);
        let mut first = 0;
        let mut push = |count: usize, place| {
            if count > 0 {
                chunks.push(Chunk { tokens: first..first + count, place });
            }
            first += count;
        };
        push(self.sinks(), Place::Sinks);
        for page in 0..self.pages.page_count() {
            push(self.pages.page_units(page) * self.codec.unit(), Place::Page(page));
        }
        for row in (0..self.ring.live()).step_by(RING_CHUNK) {
            push(RING_CHUNK.min(self.ring.live() - row), Place::Ring(row));
        }
        chunks
    }

    /// Decodes a stretch into `[tokens, width]`.
    pub(crate) fn decode(&self, chunk: &Chunk, stage: usize, out: &mut [f32]) -> Result<(), Error> {
        let width = self.codec.width();
        match chunk.place {
            Place::Sinks => self.policy.precision.read(&self.sinks, out),
            Place::Page(page) => {
                let units = self.pages.page_bytes(page, self.unit_bytes(stage));
                self.codec.open(&units, self.stage(stage), out)?;
            }
            Place::Ring(row) => {
                out.chunks_exact_mut(width).enumerate().for_each(|(at, out)| self.ring.read_live(row + at, out));
            }
        }
        Ok(())
    }

    /// The latents of a stretch of sealed tokens, `[tokens, width of a latent]`.
    pub(crate) fn decode_latents(&self, chunk: &Chunk, codec: &Cskv, out: &mut [f32]) -> Result<(), Error> {
        let Place::Page(page) = chunk.place else { return Ok(()) };
        Ok(codec.open_latents(&self.pages.page_bytes(page, self.unit_bytes(0)), out)?)
    }

    /// Decodes any range of tokens.
    pub(crate) fn read(&self, tokens: Range<usize>, stage: usize, out: &mut [f32]) -> Result<(), Error> {
        let width = self.codec.width();
        let mut rows = Vec::new();
        for chunk in self.chunks() {
            let from = tokens.start.max(chunk.tokens.start);
            let to = tokens.end.min(chunk.tokens.end);
            if from < to {
                rows.resize(chunk.tokens.len() * width, 0.0);
                self.decode(&chunk, stage, &mut rows)?;
                out[(from - tokens.start) * width..(to - tokens.start) * width]
                    .copy_from_slice(&rows[(from - chunk.tokens.start) * width..(to - chunk.tokens.start) * width]);
            }
        }
        Ok(())
    }

    /// Tokens that a cache of `body` tokens after the sinks has sealed.
    fn rule(&self, body: usize) -> usize {
        let unit = self.codec.unit();
        body.saturating_sub(self.policy.window) / unit * unit
    }

    /// How many of the newest tokens can be cut off so that the rest is as if they had never come.
    pub(crate) fn exact_depth(&self) -> usize {
        let (sealed, live) = (self.sealed(), self.ring.live());
        let first_held = sealed + live - self.ring.held();
        if first_held == 0 || (self.codec.unit() == 1 && self.policy.window == 0) {
            return self.len();
        }
        // The rule must not ask for fewer sealed tokens than there are originals behind.
        let least = first_held.next_multiple_of(self.codec.unit()) + self.policy.window;
        (sealed + live).saturating_sub(least)
    }

    /// Cuts down to `len` tokens; whether the rest is as if the others had never come.
    pub(crate) fn truncate(&mut self, len: usize, stage: usize) -> Result<bool, Error> {
        let (sinks, unit) = (self.sinks(), self.codec.unit());
        if len <= sinks {
            self.sinks.truncate(len * self.row_bytes());
            self.pages.truncate(0);
            self.ring.pop(self.ring.held(), 0);
            return Ok(true);
        }
        let (body, sealed) = (len - sinks, self.sealed());
        let cut = self.len() - len;
        let first_held = sealed + self.ring.live() - self.ring.held();
        let target = self.rule(body).min(sealed);
        // Sealed tokens that stay: as the rule says, or as close to it as the originals allow.
        let kept =
            if target == sealed || target == body { target } else { target.max(first_held.next_multiple_of(unit)) };
        if kept.min(sealed) <= body {
            let kept = kept.min(sealed);
            self.pages.truncate(kept / unit);
            self.ring.pop(cut, body - kept);
            return Ok(kept == target);
        }
        // The cut goes through a unit whose originals are gone: its first tokens live on as what they decode to.
        let whole = body / unit;
        let unit_bytes = self.unit_bytes(stage);
        let mut rows = vec![0.0; unit * self.codec.width()];
        if let Some(bytes) = self.pages.unit(whole, unit_bytes) {
            self.codec.open(&bytes, self.stage(stage), &mut rows)?;
        }
        let limit = self.policy.precision.limit();
        rows.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
        let mut rounded = vec![0; (body - whole * unit) * self.row_bytes()];
        self.policy.precision.write(&rows, &mut rounded);
        self.pages.truncate(whole);
        self.ring.replace(&rounded);
        Ok(false)
    }

    /// The sealed tokens among some, as units; refuses to cut a unit.
    fn units_of(&self, tokens: &Range<usize>) -> Result<Range<usize>, Error> {
        let (unit, first) = (self.codec.unit(), self.sinks());
        let place = |token: usize| token.clamp(first, first + self.sealed()) - first;
        let (start, end) = (place(tokens.start), place(tokens.end));
        if start < end && !(start.is_multiple_of(unit) && end.is_multiple_of(unit)) {
            return Err(Error::Granularity { start: tokens.start, end: tokens.end, unit, first });
        }
        Ok(start / unit..end / unit)
    }

    pub(crate) fn check_evict(&self, tokens: &Range<usize>) -> Result<(), Error> {
        self.units_of(tokens).map(|_| ())
    }

    /// Removes tokens; checked before.
    pub(crate) fn evict(&mut self, tokens: &Range<usize>, stage: usize) -> Result<(), Error> {
        let units = self.units_of(tokens)?;
        let (row_bytes, sinks) = (self.row_bytes(), self.sinks());
        let waiting = sinks + self.sealed();
        let unit_bytes = self.unit_bytes(stage);
        self.pages.evict(units, unit_bytes);
        self.sinks.drain(tokens.start.min(sinks) * row_bytes..tokens.end.min(sinks) * row_bytes);
        self.ring.forget_sealed();
        if tokens.end > waiting {
            let gone = |at: &usize| !tokens.contains(&(waiting + at));
            let kept: Vec<u8> =
                (0..self.ring.live()).filter(gone).flat_map(|at| self.ring.bytes(at).to_vec()).collect();
            self.ring.replace(&kept);
        }
        Ok(())
    }

    pub(crate) fn bytes(&self, stage: usize) -> ByteReport {
        let unit = self.codec.bytes(self.stage(stage));
        let pages = self.pages.count(unit.total());
        let rows = self.sinks.len() + self.ring.held() * self.row_bytes();
        let units = self.pages.len();
        let as_u64 = |bytes: usize| bytes as u64;
        ByteReport {
            codes: as_u64(units * unit.codes),
            metadata: as_u64(units * unit.metadata),
            full_precision: as_u64(rows),
            padding: as_u64(pages.allocated - pages.used + self.sinks.capacity() + self.ring.allocated_bytes() - rows),
            auxiliary: self.codec.auxiliary_bytes(),
            bookkeeping: as_u64(pages.overhead),
            shared: as_u64(pages.shared),
        }
    }

    /// Bytes that it will take, padding and bookkeeping included, when `count` tokens more have come.
    pub(crate) fn bytes_after(&self, count: usize, stage: usize) -> u64 {
        let pages = self.pages.bytes_after(self.new_units(count), self.unit_bytes(stage));
        let sinks = if self.sinks() + self.new_sinks(count) > 0 { self.policy.sinks * self.row_bytes() } else { 0 };
        let ring =
            if count > self.new_sinks(count) || self.ring.allocated_bytes() > 0 { self.ring.full_bytes() } else { 0 };
        (pages + sinks + ring) as u64 + self.codec.auxiliary_bytes()
    }

    // What a saved cache consists of.

    pub(crate) fn counts(&self) -> [usize; 4] {
        [self.sinks(), self.pages.len(), self.ring.held(), self.ring.live()]
    }

    pub(crate) fn write(&self, stage: usize, out: &mut dyn std::io::Write) -> Result<(), Error> {
        out.write_all(&self.sinks)?;
        for page in 0..self.pages.page_count() {
            out.write_all(&self.pages.page_bytes(page, self.unit_bytes(stage)))?;
        }
        (0..self.ring.held()).try_for_each(|at| out.write_all(self.ring.bytes(at)))?;
        Ok(())
    }

    pub(crate) fn read_saved(
        &self,
        [sinks, units, held, live]: [usize; 4],
        stage: usize,
        from: &mut dyn std::io::Read,
    ) -> Result<Self, Error> {
        let mut side = self.emptied();
        let capacity = self.policy.window + self.policy.spare + self.codec.unit() - 1;
        if sinks > self.policy.sinks || held > capacity || live > held {
            return Err(Error::Corrupt { what: "more rows in full precision than the policy keeps" });
        }
        let row_bytes = self.row_bytes();
        let mut rows = vec![0; sinks * row_bytes];
        from.read_exact(&mut rows)?;
        self.check_rows(&rows)?;
        side.sinks.reserve_exact(if sinks > 0 { self.policy.sinks * row_bytes } else { 0 });
        side.sinks.extend_from_slice(&rows);
        let unit_bytes = self.unit_bytes(stage);
        let (mut unit, mut decoded) = (vec![0; unit_bytes], vec![0.0; self.codec.unit() * self.codec.width()]);
        for _ in 0..units {
            from.read_exact(&mut unit)?;
            self.codec.open(&unit, self.stage(stage), &mut decoded)?;
            if decoded.iter().any(|x| !x.is_finite()) {
                return Err(Error::Corrupt { what: "a unit does not decode to finite values" });
            }
            side.pages.push(&unit, unit_bytes);
        }
        let mut rows = vec![0; held * row_bytes];
        from.read_exact(&mut rows)?;
        self.check_rows(&rows)?;
        if !rows.is_empty() {
            side.ring.push(rows.chunks_exact(row_bytes), live, |row, slot| slot.copy_from_slice(row));
        }
        Ok(side)
    }

    fn check_rows(&self, rows: &[u8]) -> Result<(), Error> {
        let mut values = vec![0.0; rows.len() / self.policy.precision.bytes()];
        self.policy.precision.read(rows, &mut values);
        let fine = values.iter().all(|x| x.is_finite());
        if fine { Ok(()) } else { Err(Error::Corrupt { what: "a row in full precision holds NaN or infinity" }) }
    }
}

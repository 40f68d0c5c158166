//! Sealed units in pages of fixed size, shared between forks until one of them is written to.
//!
//! Units that attention reads head by head are cut into pieces, the codes of each head and perhaps each scale, and a page
//! holds the first piece of all its units, then the second, and so on: what is read after each other lies so. Outside of
//! pages, in saved caches too, the bytes of a unit are together.

use crate::codec::Codec;
use crate::lines::Lines;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Some sealed units.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Room for all units of a page, allocated at once.
    bytes: Lines,
    units: usize,
}

/// Pages of at most `units` units each, all at the same stage.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    units: usize,
    cut: Cut,
    list: Vec<Arc<Page>>,
}

/// The pieces of a unit: how many bytes, and how many pieces of so many. None: a unit is one piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut(pub(crate) Vec<[usize; 2]>);

impl Cut {
    /// Calls with where each piece starts in a unit, and its bytes.
    fn each(&self, unit_bytes: usize, mut call: impl FnMut(usize, usize)) {
        let whole = [[unit_bytes, 1]];
        let mut from = 0;
        for &[size, count] in if self.0.is_empty() { whole.as_slice() } else { &self.0 } {
            for _ in 0..count {
                call(from, size);
                from += size;
            }
        }
    }
}

/// Copies a piece, the common sizes without a call.
fn copy(to: &mut [u8], from: &[u8]) {
    match (to.as_mut_array::<2>(), from.as_array::<2>()) {
        (Some(to), Some(from)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}

/// What a page takes beside its bytes: the structure, the two counts of its `Arc`, a pointer.
const PAGE_OVERHEAD: usize = size_of::<Page>() + 3 * size_of::<usize>();

impl Page {
    fn new(units: usize, unit_bytes: usize) -> Self {
        Self { bytes: Lines::zeros(units * unit_bytes), units: 0 }
    }
}

impl Pages {
    pub(crate) fn new(units: usize, cut: Cut) -> Self {
        Self { units, cut, list: Vec::new() }
    }

    /// Units that a page has room for.
    pub(crate) fn page_capacity(&self) -> usize {
        self.units
    }

    pub(crate) fn is_cut(&self) -> bool {
        !self.cut.0.is_empty()
    }

    /// A page as it is, with room for more.
    pub(crate) fn raw(&self, page: usize) -> &[u8] {
        &self.list[page].bytes
    }

    /// Units in all pages.
    pub(crate) fn len(&self) -> usize {
        self.list.iter().map(|page| page.units).sum()
    }

    pub(crate) fn page_count(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn page_units(&self, page: usize) -> usize {
        self.list[page].units
    }

    /// The bytes of the units of a page, unit after unit.
    pub(crate) fn page_bytes(&self, page: usize, unit_bytes: usize) -> Cow<'_, [u8]> {
        let page = &self.list[page];
        if !self.is_cut() {
            return Cow::Borrowed(&page.bytes[..page.units * unit_bytes]);
        }
        let mut out = vec![0; page.units * unit_bytes];
        self.cut.each(unit_bytes, |from, size| {
            let pieces = page.bytes[from * self.units..].chunks_exact(size);
            for (out, piece) in out.chunks_exact_mut(unit_bytes).zip(pieces) {
                copy(&mut out[from..from + size], piece);
            }
        });
        Cow::Owned(out)
    }

    /// Used, allocated and shared bytes of units, and what the pages take beside them.
    pub(crate) fn count(&self, unit_bytes: usize) -> PageCount {
        let mut count = PageCount::default();
        for page in &self.list {
            count.used += page.units * unit_bytes;
            count.allocated += page.bytes.allocated();
            count.overhead += PAGE_OVERHEAD;
            if Arc::strong_count(page) > 1 {
                count.shared += page.bytes.allocated();
            }
        }
        count.overhead += (self.list.capacity() - self.list.len()) * size_of::<usize>();
        count
    }

    /// Bytes that pages will take, overhead included, with `more` units and units of `unit_bytes`.
    pub(crate) fn bytes_after(&self, more: usize, unit_bytes: usize) -> usize {
        let room = self.list.last().map_or(0, |page| self.units - page.units);
        let pages = self.list.len() + more.saturating_sub(room).div_ceil(self.units);
        pages * (Lines::allocated_for(self.units * unit_bytes) + PAGE_OVERHEAD)
    }

    /// Adds sealed units.
    pub(crate) fn push(&mut self, units: &[u8], unit_bytes: usize) {
        let mut units = units;
        while !units.is_empty() {
            if self.list.last().is_none_or(|page| page.units == self.units) {
                self.list.reserve_exact(1);
                self.list.push(Arc::new(Page::new(self.units, unit_bytes)));
            }
            let Some(page) = self.list.last_mut() else { return };
            let page = Arc::make_mut(page);
            let count = (units.len() / unit_bytes).min(self.units - page.units);
            let (some, rest) = units.split_at(count * unit_bytes);
            self.cut.each(unit_bytes, |from, size| {
                let pieces = page.bytes[from * self.units + page.units * size..].chunks_exact_mut(size);
                for (unit, piece) in some.chunks_exact(unit_bytes).zip(pieces) {
                    copy(piece, &unit[from..from + size]);
                }
            });
            page.units += count;
            units = rest;
        }
    }

    /// The bytes of one unit.
    pub(crate) fn unit(&self, unit: usize, unit_bytes: usize) -> Option<Vec<u8>> {
        let mut before = 0;
        for page in &self.list {
            if unit < before + page.units {
                let (at, mut out) = (unit - before, vec![0; unit_bytes]);
                self.cut.each(unit_bytes, |from, size| {
                    copy(&mut out[from..from + size], &page.bytes[from * self.units + at * size..][..size]);
                });
                return Some(out);
            }
            before += page.units;
        }
        None
    }

    pub(crate) fn truncate(&mut self, units: usize) {
        let mut surplus = self.len() - units.min(self.len());
        while surplus > 0 {
            let Some(last) = self.list.last_mut() else { break };
            if last.units <= surplus {
                surplus -= last.units;
                self.list.pop();
            } else {
                Arc::make_mut(last).units -= surplus;
                surplus = 0;
            }
        }
        self.list.shrink_to_fit();
    }

    /// Removes some units. Pages that lose all of theirs are dropped without being read; the others stay where they
    /// are.
    pub(crate) fn evict(&mut self, units: Range<usize>, unit_bytes: usize) {
        let mut before = 0;
        self.list.retain_mut(|page| {
            let first = units.start.clamp(before, before + page.units) - before;
            let end = units.end.clamp(before, before + page.units) - before;
            before += page.units;
            if first == 0 && end == page.units {
                return false;
            }
            if first < end {
                let page = Arc::make_mut(page);
                self.cut.each(unit_bytes, |from, size| {
                    let from = from * self.units;
                    page.bytes.copy_within(from + end * size..from + page.units * size, from + first * size);
                });
                page.units -= end - first;
            }
            true
        });
        self.list.shrink_to_fit();
    }

    /// Lowers the precision of every unit by one stage. A page that a fork shares is left to the fork.
    pub(crate) fn shrink(&mut self, codec: &dyn Codec, stage: usize) {
        let (from, to) = (codec.bytes(stage).total(), codec.bytes(stage + 1).total());
        for page in &mut self.list {
            let mut shrunk = Page { units: page.units, ..Page::new(self.units, to) };
            for (old, new) in page.bytes.chunks_exact(from).zip(shrunk.bytes.chunks_exact_mut(to)).take(page.units) {
                codec.shrink(old, stage, new);
            }
            *page = Arc::new(shrunk);
        }
    }
}

/// What pages take, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PageCount {
    pub(crate) used: usize,
    pub(crate) allocated: usize,
    pub(crate) shared: usize,
    pub(crate) overhead: usize,
}

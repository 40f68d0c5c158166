//! Sealed units in pages of fixed size, shared between forks until one of them is written to.

use crate::codec::Codec;
use std::ops::Range;
use std::sync::Arc;

/// Some sealed units.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Room for all units of a page, allocated at once.
    bytes: Vec<u8>,
    units: usize,
}

/// Pages of at most `units` units each, all at the same stage.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    units: usize,
    list: Vec<Arc<Page>>,
}

/// What a page takes beside its bytes: the structure, the two counts of its `Arc`, a pointer.
const PAGE_OVERHEAD: usize = size_of::<Page>() + 3 * size_of::<usize>();

impl Page {
    fn new(units: usize, unit_bytes: usize) -> Self {
        Self { bytes: vec![0; units * unit_bytes], units: 0 }
    }
}

impl Pages {
    pub(crate) fn new(units: usize) -> Self {
        Self { units, list: Vec::new() }
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

    /// The bytes of the units of a page.
    pub(crate) fn page_bytes(&self, page: usize, unit_bytes: usize) -> &[u8] {
        let page = &self.list[page];
        &page.bytes[..page.units * unit_bytes]
    }

    /// Used, allocated and shared bytes of units, and what the pages take beside them.
    pub(crate) fn count(&self, unit_bytes: usize) -> PageCount {
        let mut count = PageCount::default();
        for page in &self.list {
            count.used += page.units * unit_bytes;
            count.allocated += page.bytes.capacity();
            count.overhead += PAGE_OVERHEAD;
            if Arc::strong_count(page) > 1 {
                count.shared += page.bytes.capacity();
            }
        }
        count.overhead += (self.list.capacity() - self.list.len()) * size_of::<usize>();
        count
    }

    /// Bytes that pages will take, overhead included, with `more` units and units of `unit_bytes`.
    pub(crate) fn bytes_after(&self, more: usize, unit_bytes: usize) -> usize {
        let room = self.list.last().map_or(0, |page| self.units - page.units);
        let pages = self.list.len() + more.saturating_sub(room).div_ceil(self.units);
        pages * (self.units * unit_bytes + PAGE_OVERHEAD)
    }

    /// Adds sealed units.
    pub(crate) fn push(&mut self, units: &[u8], unit_bytes: usize) {
        for unit in units.chunks_exact(unit_bytes) {
            if self.list.last().is_none_or(|page| page.units == self.units) {
                self.list.reserve_exact(1);
                self.list.push(Arc::new(Page::new(self.units, unit_bytes)));
            }
            if let Some(page) = self.list.last_mut() {
                let page = Arc::make_mut(page);
                page.bytes[page.units * unit_bytes..][..unit_bytes].copy_from_slice(unit);
                page.units += 1;
            }
        }
    }

    /// The bytes of one unit.
    pub(crate) fn unit(&self, unit: usize, unit_bytes: usize) -> Option<&[u8]> {
        let mut before = 0;
        for page in &self.list {
            if unit < before + page.units {
                return page.bytes.get((unit - before) * unit_bytes..(unit - before + 1) * unit_bytes);
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
                page.bytes.copy_within(end * unit_bytes..page.units * unit_bytes, first * unit_bytes);
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
            let mut shrunk = Page { bytes: vec![0; self.units * to], units: page.units };
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

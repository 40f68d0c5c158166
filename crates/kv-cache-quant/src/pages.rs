//! Sealed units in pages of fixed size, shared between forks until one of them is written to.
//!
//! Units that attention reads head by head are cut into pieces, the codes of each head and perhaps each scale, and a page
//! holds the first piece of all its units, then the second, and so on: what is read after each other lies so. Codes that are
//! multiplied as integers lie as the instructions for that want them, bytes of several units side by side. Outside of
//! pages, in saved caches too, the bytes of a unit are together.

use crate::codec::Codec;
use crate::kernels::merge_bytes;
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

/// The pieces of a unit, in their order. None: a unit is one piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut(pub(crate) Vec<Pieces>);

/// Pieces of equal size that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// Bytes of each.
    pub(crate) size: usize,
    pub(crate) count: usize,
    pub(crate) order: Order,
}

/// How the same piece of many units lies in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Unit after unit.
    Units,
    /// Sixteen units side by side, four bytes of each at a time. Bits of `flip` are inverted in every byte.
    Sixteens { flip: u8 },
    /// Four units side by side, byte by byte.
    Fours { flip: u8 },
}

impl Order {
    /// Units that lie side by side.
    pub(crate) fn units(self) -> usize {
        match self {
            Self::Units => 1,
            Self::Sixteens { .. } => 16,
            Self::Fours { .. } => 4,
        }
    }

    /// Writes the piece of a unit to where those of all units are.
    fn write(self, pieces: &mut [u8], unit: usize, from: &[u8]) {
        Pieces { size: from.len(), count: 1, order: self }.write(pieces, unit, from);
    }

    /// Reads the piece of a unit.
    pub(crate) fn read(self, pieces: &[u8], unit: usize, to: &mut [u8]) {
        let (units, size) = (self.units(), to.len());
        let tile = &pieces[unit / units * units * size..][..units * size];
        let lane = unit % units;
        match self {
            Self::Units => copy(to, tile),
            Self::Sixteens { flip } => gather::<4, 64>(tile, lane, to, flip),
            Self::Fours { flip } => gather::<1, 4>(tile, lane, to, flip),
        }
    }

    /// The pieces of some units as if the first of them were the first of a page.
    pub(crate) fn realigned(self, pieces: &[u8], size: usize, units: Range<usize>) -> Vec<u8> {
        let mut out = vec![0; units.len().next_multiple_of(self.units()) * size];
        let mut piece = vec![0; size];
        for (at, unit) in units.enumerate() {
            self.read(pieces, unit, &mut piece);
            self.write(&mut out, at, &piece);
        }
        out
    }
}

impl Pieces {
    /// Writes those of a unit to where those of all units are.
    fn write(self, all: &mut [u8], unit: usize, from: &[u8]) {
        let (size, units) = (self.size, self.order.units());
        let (tile, lane) = (unit / units * units * size, unit % units);
        let stride = all.len() / self.count;
        let pieces = all.chunks_exact_mut(stride);
        match self.order {
            Order::Units => match size {
                1 => write_each::<1>(pieces, unit, from),
                2 => write_each::<2>(pieces, unit, from),
                4 => write_each::<4>(pieces, unit, from),
                _ => {
                    pieces.zip(from.chunks_exact(size)).for_each(|(to, from)| to[tile..][..size].copy_from_slice(from));
                }
            },
            Order::Sixteens { flip } => {
                for (piece, from) in pieces.zip(from.chunks_exact(size)) {
                    scatter(piece[tile..][..units * size].as_chunks_mut().0, lane, from, flip);
                }
            }
            Order::Fours { flip } => merge_bytes(all, stride, tile, lane, size, from, flip),
        }
    }
}

/// Writes the piece of a unit to each of those of all units, `N` bytes, without calls.
fn write_each<'a, const N: usize>(pieces: impl Iterator<Item = &'a mut [u8]>, unit: usize, from: &[u8]) {
    let pieces = pieces.map(|piece| &mut piece.as_chunks_mut::<N>().0[unit]);
    pieces.zip(from.as_chunks::<N>().0).for_each(|(to, from)| *to = *from);
}

/// Writes four bytes to every line.
fn scatter(lines: &mut [[u8; 64]], lane: usize, from: &[u8], flip: u8) {
    for (line, from) in lines.iter_mut().zip(from.as_chunks::<4>().0) {
        line[4 * lane..][..4].copy_from_slice(&from.map(|byte| byte ^ flip));
    }
}

/// Reads `W` bytes at a time, one of them every `S`.
fn gather<const W: usize, const S: usize>(tile: &[u8], lane: usize, to: &mut [u8], flip: u8) {
    let (steps, _) = tile.as_chunks::<S>();
    for (from, to) in steps.iter().zip(to.as_chunks_mut::<W>().0) {
        to.copy_from_slice(&from[lane * W..][..W]);
        to.iter_mut().for_each(|byte| *byte ^= flip);
    }
}

impl Cut {
    fn pieces(&self, unit_bytes: usize) -> Cow<'_, [Pieces]> {
        let whole = || vec![Pieces { size: unit_bytes, count: 1, order: Order::Units }];
        if self.0.is_empty() { Cow::Owned(whole()) } else { Cow::Borrowed(&self.0) }
    }

    /// Calls with where each piece starts in a unit, its bytes, and how it lies in pages.
    fn each(&self, unit_bytes: usize, mut call: impl FnMut(usize, usize, Order)) {
        let mut from = 0;
        for &Pieces { size, count, order } in self.pieces(unit_bytes).iter() {
            for _ in 0..count {
                call(from, size, order);
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

    /// How the first pieces lie, the codes of a head.
    pub(crate) fn order(&self) -> Order {
        self.cut.0.first().map_or(Order::Units, |pieces| pieces.order)
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
        self.cut.each(unit_bytes, |from, size, order| {
            let pieces = &page.bytes[from * self.units..][..size * self.units];
            for (unit, out) in out.chunks_exact_mut(unit_bytes).enumerate() {
                order.read(pieces, unit, &mut out[from..from + size]);
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
            let mut first = 0;
            for &pieces in self.cut.pieces(unit_bytes).iter() {
                let size = pieces.size * pieces.count;
                let all = &mut page.bytes[first * self.units..][..size * self.units];
                for (at, unit) in (page.units..).zip(some.chunks_exact(unit_bytes)) {
                    pieces.write(all, at, &unit[first..][..size]);
                }
                first += size;
            }
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
                self.cut.each(unit_bytes, |from, size, order| {
                    order.read(&page.bytes[from * self.units..][..size * self.units], at, &mut out[from..from + size]);
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
                self.cut.each(unit_bytes, |from, size, order| {
                    let pieces = &mut page.bytes[from * self.units..][..size * self.units];
                    if order == Order::Units {
                        pieces.copy_within(end * size..page.units * size, first * size);
                        return;
                    }
                    let mut piece = vec![0; size];
                    for (to, from) in (first..).zip(end..page.units) {
                        order.read(pieces, from, &mut piece);
                        order.write(pieces, to, &piece);
                    }
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

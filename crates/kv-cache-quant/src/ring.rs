//! The newest rows in full precision: those that wait to be sealed, and originals of some that were.

use crate::FullPrecision;

/// A ring of rows. The last [`Ring::live`] of them are not sealed; those before are originals of the newest sealed
/// tokens, kept so that a rollback can restore them.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    precision: FullPrecision,
    width: usize,
    capacity: usize,
    /// Allocated for all of `capacity` when the first row comes.
    data: Vec<u8>,
    first: usize,
    held: usize,
    live: usize,
}

impl Ring {
    pub(crate) fn new(precision: FullPrecision, width: usize, capacity: usize) -> Self {
        Self { precision, width, capacity, data: Vec::new(), first: 0, held: 0, live: 0 }
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.width * self.precision.bytes()
    }

    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Bytes that it takes once rows were pushed.
    pub(crate) fn full_bytes(&self) -> usize {
        self.capacity * self.row_bytes()
    }

    pub(crate) fn allocated_bytes(&self) -> usize {
        self.data.capacity()
    }

    /// The bytes of the `at`-th row held, oldest first.
    pub(crate) fn bytes(&self, at: usize) -> &[u8] {
        let slot = (self.first + at) % self.capacity.max(1);
        &self.data[slot * self.row_bytes()..][..self.row_bytes()]
    }

    /// The bytes of all rows that are not sealed, in their order: two parts where the ring wraps.
    pub(crate) fn live_parts(&self) -> [&[u8]; 2] {
        let (row_bytes, capacity) = (self.row_bytes(), self.capacity.max(1));
        let first = (self.first + self.held - self.live) % capacity;
        let before_wrap = self.live.min(capacity - first);
        let slots = |from: usize, count: usize| self.data.get(from * row_bytes..(from + count) * row_bytes);
        [slots(first, before_wrap), slots(0, self.live - before_wrap)].map(Option::unwrap_or_default)
    }

    /// Decodes the `at`-th of the rows that are not sealed.
    pub(crate) fn read_live(&self, at: usize, out: &mut [f32]) {
        self.precision.read(self.bytes(self.held - self.live + at), out);
    }

    /// Adds rows as `write` does, of which and of those before `live` are not sealed afterwards.
    pub(crate) fn push<T>(
        &mut self,
        rows: impl ExactSizeIterator<Item = T>,
        live: usize,
        write: impl Fn(T, &mut [u8]),
    ) {
        self.data.reserve_exact(self.full_bytes() - self.data.len());
        self.data.resize(self.full_bytes(), 0);
        let row_bytes = self.row_bytes();
        let skipped = rows.len().saturating_sub(self.capacity);
        for row in rows.skip(skipped) {
            if self.held == self.capacity {
                self.first = (self.first + 1) % self.capacity;
                self.held -= 1;
            }
            let slot = (self.first + self.held) % self.capacity;
            write(row, &mut self.data[slot * row_bytes..][..row_bytes]);
            self.held += 1;
        }
        self.live = live;
    }

    /// Drops the newest rows; of the others the last `live` are not sealed.
    pub(crate) fn pop(&mut self, count: usize, live: usize) {
        self.held -= count.min(self.held);
        self.live = live;
    }

    /// Holds these rows only, none of them sealed.
    pub(crate) fn replace(&mut self, rows: &[u8]) {
        (self.first, self.held, self.live) = (0, 0, 0);
        let rows = rows.chunks_exact(self.row_bytes());
        self.push(rows.clone(), rows.len(), |row, slot| slot.copy_from_slice(row));
    }

    /// Forgets the originals of sealed tokens.
    pub(crate) fn forget_sealed(&mut self) {
        let sealed = self.held - self.live;
        self.first = (self.first + sealed) % self.capacity.max(1);
        self.held = self.live;
    }
}

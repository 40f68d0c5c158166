//! Several sequences at once, of any lengths.

use crate::layer::{ByteReport, KvCacheLayer};
use crate::{Attention, Error, KvRows, Positions, Workspace};
use rayon::prelude::*;

/// One layer's caches of the sequences of a batch.
///
/// Each sequence has a cache of its own: nothing is padded, and no range or group is shared between
/// sequences, so that a sequence gets the same bits in any company.
#[derive(Debug, Default)]
pub struct KvBatch {
    sequences: Vec<Box<dyn KvCacheLayer>>,
}

impl KvBatch {
    /// A batch of these.
    #[must_use]
    pub fn new(sequences: Vec<Box<dyn KvCacheLayer>>) -> Self {
        Self { sequences }
    }

    /// The caches.
    #[must_use]
    pub fn sequences(&self) -> &[Box<dyn KvCacheLayer>] {
        &self.sequences
    }

    /// The caches, to change one.
    pub fn sequences_mut(&mut self) -> &mut [Box<dyn KvCacheLayer>] {
        &mut self.sequences
    }

    /// Adds to each sequence its rows, of any number of tokens or none. One result a sequence: what one refuses is no
    /// reason to keep the others waiting, and a sequence that refused has not changed.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] when there are not as many rows as sequences.
    pub fn append(&mut self, rows: &[KvRows<'_>]) -> Result<Vec<Result<(), Error>>, Error> {
        self.check(rows.len())?;
        let work = self.sequences.par_iter_mut().zip(rows);
        Ok(work.map(|(sequence, rows)| sequence.append(*rows, Positions::Next)).collect())
    }

    /// Attention of each sequence; `out[i]` as [`KvCacheLayer::attend`] wants it.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] when there are not as many requests and outputs as sequences; otherwise as
    /// [`KvCacheLayer::attend`] for the first sequence that fails.
    pub fn attend(&self, requests: &[Attention<'_>], out: &mut [&mut [f32]]) -> Result<(), Error> {
        self.check(requests.len())?;
        self.check(out.len())?;
        let work = self.sequences.par_iter().zip(requests).zip(out);
        let failed = work
            .map_init(Workspace::default, |workspace, ((sequence, request), out)| {
                sequence.attend(request, out, workspace).err()
            })
            .find_map_first(|error| error);
        failed.map_or(Ok(()), Err)
    }

    /// The sequences with these indices, in this order, repeated where an index is: beam search, dropping finished
    /// sequences. Sealed tokens are shared, not copied.
    ///
    /// # Errors
    ///
    /// [`Error::Tokens`] for an index beyond the batch.
    pub fn select(&self, indices: &[usize]) -> Result<Self, Error> {
        let len = self.sequences.len();
        let pick = |&at: &usize| {
            let sequence = self.sequences.get(at).ok_or(Error::Tokens { start: at, end: at + 1, len })?;
            Ok(sequence.fork())
        };
        Ok(Self { sequences: indices.iter().map(pick).collect::<Result<_, Error>>()? })
    }

    /// Every byte that is held, pages that sequences share counted in each.
    #[must_use]
    pub fn bytes(&self) -> ByteReport {
        self.sequences.iter().map(|sequence| sequence.bytes()).sum()
    }

    fn check(&self, found: usize) -> Result<(), Error> {
        let expected = self.sequences.len();
        if found == expected { Ok(()) } else { Err(Error::Shape { what: "sequences of a batch", expected, found }) }
    }
}

//! The position of every token, kept as runs of consecutive ones.

use crate::Error;
use std::ops::Range;

/// Where appended tokens stand in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Positions<'a> {
    /// One after the last token held, or from 0.
    #[default]
    Next,
    /// Given, one for each token.
    At(&'a [u32]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Run {
    pub(crate) first: u32,
    pub(crate) len: usize,
}

/// Positions of the tokens held.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct PositionRuns {
    runs: Vec<Run>,
}

impl PositionRuns {
    pub(crate) fn from_runs(runs: Vec<Run>) -> Option<Self> {
        let fits =
            |run: &Run| run.len > 0 && u32::try_from(run.len - 1).is_ok_and(|n| run.first.checked_add(n).is_some());
        runs.iter().all(fits).then_some(Self { runs })
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(crate) fn len(&self) -> usize {
        self.runs.iter().map(|run| run.len).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Run>()
    }

    /// The same once tokens at these positions were added.
    pub(crate) fn bytes_after(&self, positions: &[u32]) -> usize {
        let last = self.runs.last().map(|run| u64::from(run.first) + run.len as u64);
        let starts = |(at, &position): (usize, &u32)| {
            let follows = match at.checked_sub(1) {
                None => last == Some(u64::from(position)),
                Some(before) => positions[before].checked_add(1) == Some(position),
            };
            usize::from(!follows)
        };
        let more: usize = positions.iter().enumerate().map(starts).sum();
        self.runs.capacity().max(self.runs.len() + more) * size_of::<Run>()
    }

    /// The positions that `count` more tokens take; all below `limit`.
    pub(crate) fn next(&self, count: usize, at: Positions<'_>, limit: usize) -> Result<Vec<u32>, Error> {
        let positions: Vec<u32> = match at {
            Positions::At(given) if given.len() == count => given.to_vec(),
            Positions::At(given) => {
                return Err(Error::Shape { what: "positions", expected: count, found: given.len() });
            }
            Positions::Next => {
                let first = self.runs.last().map_or(0, |run| run.first as usize + run.len);
                let position = |at: usize| {
                    let position = i64::try_from(at).unwrap_or(i64::MAX);
                    u32::try_from(at).map_err(|_| Error::Position { position, limit })
                };
                (first..first + count).map(position).collect::<Result<_, _>>()?
            }
        };
        match positions.iter().find(|&&position| position as usize >= limit) {
            Some(&position) => Err(Error::Position { position: i64::from(position), limit }),
            None => Ok(positions),
        }
    }

    pub(crate) fn extend(&mut self, positions: &[u32]) {
        for &position in positions {
            match self.runs.last_mut() {
                Some(run) if u64::from(run.first) + run.len as u64 == u64::from(position) => run.len += 1,
                _ => {
                    self.runs.reserve_exact(1);
                    self.runs.push(Run { first: position, len: 1 });
                }
            }
        }
    }

    /// The positions of some tokens.
    pub(crate) fn of(&self, tokens: Range<usize>) -> Vec<u32> {
        let mut out = Vec::with_capacity(tokens.len());
        let mut start = 0;
        for run in &self.runs {
            let (from, to) = (tokens.start.clamp(start, start + run.len), tokens.end.clamp(start, start + run.len));
            #[expect(clippy::cast_possible_truncation, reason = "runs end within u32")]
            out.extend((from..to).map(|token| run.first + (token - start) as u32));
            start += run.len;
        }
        out
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        let mut left = len;
        self.runs.retain_mut(|run| {
            run.len = run.len.min(left);
            left -= run.len;
            run.len > 0
        });
    }

    pub(crate) fn evict(&mut self, tokens: Range<usize>) {
        let mut kept = self.of(0..tokens.start);
        kept.extend(self.of(tokens.end..self.len()));
        *self = Self::default();
        self.extend(&kept);
    }

    /// Moves some tokens to other positions, all of them within `0..limit`.
    pub(crate) fn shifted(&self, tokens: Range<usize>, delta: i64, limit: usize) -> Result<Self, Error> {
        let mut all = self.of(0..self.len());
        for position in &mut all[tokens] {
            let moved = i64::from(*position).saturating_add(delta);
            let inside = u32::try_from(moved).ok().filter(|&p| (p as usize) < limit);
            *position = inside.ok_or(Error::Position { position: moved, limit })?;
        }
        let mut shifted = Self::default();
        shifted.extend(&all);
        Ok(shifted)
    }
}

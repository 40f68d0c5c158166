//! Sorting the rows of a batch by expert.

use crate::Error;
use rayon::prelude::*;
use std::ops::Range;

/// Elements below which gathering and scattering stay on one thread.
const PARALLEL: usize = 1 << 15;
/// The sorted row of a choice that was skipped.
const NOWHERE: usize = usize::MAX;

/// The choices of a router for a batch, sorted by expert and, within an expert, by token.
///
/// Sorted row `r` is a choice; expert `e` owns the rows [`rows_of(e)`](Self::rows_of), perhaps none.
///
/// ```
/// use moe_quant::Dispatch;
/// // Three tokens, two of four experts each.
/// let dispatch = Dispatch::new(4, 2, &[3, 0, 0, 1, 3, 1], &[0.5, 0.25, 1.0, 0.5, 2.0, 1.0])?;
/// assert_eq!(dispatch.counts(), [2, 2, 0, 2]);
/// assert_eq!(dispatch.tokens_of(3), [0, 2]);
///
/// let x = [1.0, 10.0, 100.0]; // tokens of one feature
/// let sorted = dispatch.gather(&x, 1)?;
/// assert_eq!(sorted, [1.0, 10.0, 10.0, 100.0, 1.0, 100.0]);
/// // Were all experts the identity, a token would come back times the sum of its gates.
/// let mut y = [0.0; 3];
/// dispatch.scatter_add(&sorted, &mut y)?;
/// assert_eq!(y, [0.75, 15.0, 300.0]);
/// # Ok::<(), moe_quant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    tokens: usize,
    top_k: usize,
    /// Where the rows of each expert begin, and the end.
    starts: Vec<usize>,
    /// The token of each sorted row.
    rows: Vec<usize>,
    /// The gate of each sorted row.
    gates: Vec<f32>,
    /// The sorted rows of each token, `[tokens, top_k]`, rising; those that were skipped come last.
    places: Vec<usize>,
}

impl Dispatch {
    /// Sorts choices `ids` `[tokens, top_k]` with their `gates`.
    ///
    /// # Errors
    ///
    /// [`Error::Mixture`] unless `1 ≤ top_k ≤ experts`, [`Error::Length`] for choices that are not whole tokens or gates of
    /// another number, [`Error::NoSuchExpert`], [`Error::Gate`].
    pub fn new(experts: usize, top_k: usize, ids: &[usize], gates: &[f32]) -> Result<Self, Error> {
        if let Some((choice, &expert)) = ids.iter().enumerate().find(|(_, id)| **id == experts) {
            return Err(Error::NoSuchExpert { choice, expert, experts });
        }
        Self::skipping(experts, top_k, ids, gates)
    }

    /// As [`Dispatch::new`], where a choice of the expert `experts`, one past the last, is no choice: its row does not
    /// exist, and the token gets nothing for it.
    ///
    /// # Errors
    ///
    /// As [`Dispatch::new`].
    pub fn skipping(experts: usize, top_k: usize, ids: &[usize], gates: &[f32]) -> Result<Self, Error> {
        if top_k == 0 || top_k > experts {
            return Err(Error::Mixture { experts, top_k, hidden: 1, inner: 1 });
        }
        let tokens = ids.len() / top_k;
        if tokens * top_k != ids.len() {
            return Err(Error::Length { what: "choices", expected: tokens * top_k, found: ids.len() });
        }
        if gates.len() != ids.len() {
            return Err(Error::Length { what: "gates", expected: ids.len(), found: gates.len() });
        }
        if let Some((choice, &expert)) = ids.iter().enumerate().find(|(_, id)| **id > experts) {
            return Err(Error::NoSuchExpert { choice, expert, experts });
        }
        if let Some((choice, &value)) = gates.iter().enumerate().find(|(_, g)| !g.is_finite() || **g < 0.0) {
            return Err(Error::Gate { choice, value });
        }
        let mut starts = vec![0; experts + 1];
        let kept = || ids.iter().filter(|id| **id < experts);
        kept().for_each(|id| starts[id + 1] += 1);
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let count = kept().count();
        let (mut rows, mut sorted, mut places) = (vec![0; count], vec![0.0; count], vec![NOWHERE; ids.len()]);
        for (choice, (&id, &gate)) in ids.iter().zip(gates).enumerate().filter(|(_, (id, _))| **id < experts) {
            let row = next[id];
            next[id] += 1;
            (rows[row], sorted[row], places[choice]) = (choice / top_k, gate, row);
        }
        places.chunks_exact_mut(top_k).for_each(<[usize]>::sort_unstable);
        Ok(Self { tokens, top_k, starts, rows, gates: sorted, places })
    }

    /// Tokens of the batch.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Experts a token.
    #[must_use]
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Number of experts.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// The sorted rows of an expert; none for an expert that does not exist.
    #[must_use]
    pub fn rows_of(&self, expert: usize) -> Range<usize> {
        let at = |index: usize| self.starts.get(index).copied().unwrap_or(self.rows.len());
        at(expert)..at(expert + 1)
    }

    /// The tokens of an expert, rising.
    #[must_use]
    pub fn tokens_of(&self, expert: usize) -> &[usize] {
        &self.rows[self.rows_of(expert)]
    }

    /// The gates of an expert's tokens.
    #[must_use]
    pub fn gates_of(&self, expert: usize) -> &[f32] {
        &self.gates[self.rows_of(expert)]
    }

    /// Rows of each expert.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.starts.windows(2).map(|pair| (pair[1] - pair[0]) as u64).collect()
    }

    /// The rows of `x` `[tokens, width]`, sorted: `[rows, width]`, where all but skipped choices are rows.
    ///
    /// # Errors
    ///
    /// [`Error::Length`].
    pub fn gather(&self, x: &[f32], width: usize) -> Result<Vec<f32>, Error> {
        let mut sorted = vec![0.0; self.rows.len() * width];
        self.gather_into(x, width, &mut sorted)?;
        Ok(sorted)
    }

    /// [`Dispatch::gather`] into memory that is there, `[rows, width]`.
    ///
    /// # Errors
    ///
    /// [`Error::Length`].
    pub fn gather_into(&self, x: &[f32], width: usize, sorted: &mut [f32]) -> Result<(), Error> {
        check("the batch", x.len(), self.tokens * width)?;
        check("the sorted rows", sorted.len(), self.rows.len() * width)?;
        if width == 0 {
            return Ok(());
        }
        let copy = |(out, &token): (&mut [f32], &usize)| out.copy_from_slice(&x[token * width..(token + 1) * width]);
        if sorted.len() < PARALLEL {
            sorted.chunks_exact_mut(width).zip(&self.rows).for_each(copy);
        } else {
            sorted.par_chunks_exact_mut(width).zip(&self.rows).for_each(copy);
        }
        Ok(())
    }

    /// Adds sorted rows `y` `[rows, width]`, each times its gate, to the tokens `out` `[tokens, width]` they
    /// belong to, in the order of experts.
    ///
    /// # Errors
    ///
    /// [`Error::Length`].
    pub fn scatter_add(&self, y: &[f32], out: &mut [f32]) -> Result<(), Error> {
        let width = out.len().checked_div(self.tokens).unwrap_or(0);
        check("the outputs", out.len(), self.tokens * width)?;
        check("the sorted rows", y.len(), self.rows.len() * width)?;
        if width == 0 {
            return Ok(());
        }
        let add = |(out, places): (&mut [f32], &[usize])| {
            for &row in places.iter().take_while(|row| **row != NOWHERE) {
                let gate = self.gates[row];
                out.iter_mut().zip(&y[row * width..(row + 1) * width]).for_each(|(out, y)| *out += gate * y);
            }
        };
        if out.len() < PARALLEL {
            out.chunks_exact_mut(width).zip(self.places.chunks_exact(self.top_k)).for_each(add);
        } else {
            out.par_chunks_exact_mut(width).zip(self.places.par_chunks_exact(self.top_k)).for_each(add);
        }
        Ok(())
    }
}

fn check(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}

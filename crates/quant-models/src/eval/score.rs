//! Scoring the tokens of windows.

use super::{Predictor, Progress, Window, Windows};
use crate::{Error, Hidden};
use rayon::prelude::*;

/// Tokens run through the layers together.
const BATCH_TOKENS: usize = 2048;
/// Logits held at once, which bounds memory for large vocabularies.
const LOGITS: usize = 1 << 22;

/// How well a model predicted some tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// `−Σ ln p(token)`.
    pub nll: f64,
    /// Tokens predicted.
    pub tokens: usize,
    /// Bytes of text that these tokens stand for.
    pub bytes: u64,
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
impl Score {
    /// `exp(nll / tokens)`.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.tokens as f64).exp()
    }

    /// `nll / (ln 2 · bytes)`: comparable between models of different vocabularies.
    #[must_use]
    pub fn bits_per_byte(&self) -> f64 {
        self.nll / (std::f64::consts::LN_2 * self.bytes as f64)
    }
}

/// How a model differs from a reference on the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// How well the reference predicted the text.
    pub reference: Score,
    /// How well the model did.
    pub model: Score,
    /// Mean over tokens of `KL(reference ‖ model) = Σ p ln(p/q)`, in nats.
    pub kl: f64,
    /// The largest divergence but one in a thousand (the 99.9th percentile).
    pub kl_p999: f64,
    /// The largest divergence.
    pub kl_max: f64,
    /// Share of tokens for which both models' likeliest token is the same.
    pub top1: f64,
}

/// What was seen at each predicted token, in the order of the text.
#[derive(Debug, Default)]
struct Seen {
    nll: Vec<f64>,
    reference_nll: Vec<f64>,
    kl: Vec<f64>,
    agreed: usize,
}

/// One row of logits against its target.
struct Row {
    nll: f64,
    log_sum: f64,
    top: usize,
}

/// One batch on its way through a model.
struct Walk<'a> {
    model: &'a dyn Predictor,
    hidden: Hidden,
}

/// Perplexity of a model over windows.
///
/// # Errors
///
/// As [`Predictor::hidden`]; [`Error::NonFiniteLogits`].
pub fn perplexity(
    model: &dyn Predictor,
    windows: &Windows,
    progress: &mut dyn FnMut(Progress),
) -> Result<Score, Error> {
    let mut seen = Seen::default();
    for batch in windows.batches(BATCH_TOKENS) {
        let walk = Walk::new(model, batch)?;
        for chunk in chunks(batch, model) {
            let logits = walk.logits(&chunk)?;
            seen.nll.extend(rows(&logits, &chunk)?.iter().map(|row| row.nll));
        }
        progress(seen.progress(windows));
    }
    Ok(seen.score(windows, &seen.nll))
}

/// Walks models and a reference over the same windows together; no logits are kept.
///
/// # Errors
///
/// As [`perplexity`]; [`Error::VocabularyMismatch`].
pub fn compare(
    reference: &dyn Predictor,
    models: &[&dyn Predictor],
    windows: &Windows,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Comparison>, Error> {
    for model in models {
        same_vocabulary(reference.decoder().config().vocab_size, *model)?;
    }
    let mut seen: Vec<Seen> = models.iter().map(|_| Seen::default()).collect();
    for batch in windows.batches(BATCH_TOKENS) {
        let walk = Walk::new(reference, batch)?;
        let others = models.iter().map(|model| Walk::new(*model, batch)).collect::<Result<Vec<_>, _>>()?;
        for chunk in chunks(batch, reference) {
            let expected = walk.logits(&chunk)?;
            let expected_rows = rows(&expected, &chunk)?;
            for (other, seen) in others.iter().zip(&mut seen) {
                seen.compare(&expected, &expected_rows, &other.logits(&chunk)?, &chunk)?;
            }
        }
        if let Some(seen) = seen.last() {
            progress(seen.progress(windows));
        }
    }
    Ok(seen.iter().map(|seen| seen.comparison(windows)).collect())
}

/// A reference's logits on some windows, kept to compare model after model with.
///
/// Takes `4 · vocabulary` bytes for each predicted token ([`Recording::bytes`]): right for small
/// vocabularies; use [`compare`] for large ones.
#[derive(Clone, Debug)]
pub struct Recording {
    windows: Windows,
    vocab: usize,
    logits: Vec<f32>,
    score: Score,
}

impl Recording {
    /// Runs the reference.
    ///
    /// # Errors
    ///
    /// As [`perplexity`].
    pub fn new(reference: &dyn Predictor, windows: Windows, progress: &mut dyn FnMut(Progress)) -> Result<Self, Error> {
        let mut seen = Seen::default();
        let mut kept = Vec::new();
        for batch in windows.batches(BATCH_TOKENS) {
            let walk = Walk::new(reference, batch)?;
            for chunk in chunks(batch, reference) {
                let logits = walk.logits(&chunk)?;
                seen.nll.extend(rows(&logits, &chunk)?.iter().map(|row| row.nll));
                kept.extend_from_slice(&logits);
            }
            progress(seen.progress(&windows));
        }
        let score = seen.score(&windows, &seen.nll);
        Ok(Self { windows, vocab: reference.decoder().config().vocab_size, logits: kept, score })
    }

    /// How well the reference predicted the text.
    #[must_use]
    pub fn score(&self) -> Score {
        self.score
    }

    /// Memory that the logits take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        size_of_val(self.logits.as_slice()) as u64
    }

    /// Runs a model over the same windows and compares.
    ///
    /// # Errors
    ///
    /// As [`compare`].
    pub fn compare(&self, model: &dyn Predictor, progress: &mut dyn FnMut(Progress)) -> Result<Comparison, Error> {
        same_vocabulary(self.vocab, model)?;
        let mut seen = Seen::default();
        let mut rest = self.logits.as_slice();
        for batch in self.windows.batches(BATCH_TOKENS) {
            let walk = Walk::new(model, batch)?;
            for chunk in chunks(batch, model) {
                let (expected, after) = rest.split_at(chunk.len() * self.vocab);
                rest = after;
                seen.compare(expected, &rows(expected, &chunk)?, &walk.logits(&chunk)?, &chunk)?;
            }
            progress(seen.progress(&self.windows));
        }
        Ok(seen.comparison(&self.windows))
    }
}

fn same_vocabulary(reference: usize, model: &dyn Predictor) -> Result<(), Error> {
    let model = model.decoder().config().vocab_size;
    if model == reference { Ok(()) } else { Err(Error::VocabularyMismatch { reference, model }) }
}

impl<'a> Walk<'a> {
    fn new(model: &'a dyn Predictor, batch: &[Window]) -> Result<Self, Error> {
        // The last token of a window predicts nothing.
        let texts: Vec<&[u32]> = batch.iter().map(|window| &window.tokens[..window.tokens.len() - 1]).collect();
        Ok(Self { model, hidden: model.hidden(&texts)? })
    }

    fn logits(&self, chunk: &[Target]) -> Result<Vec<f32>, Error> {
        match (chunk.first(), chunk.last()) {
            (Some(first), Some(last)) => self.model.decoder().logits(&self.hidden, first.row..last.row + 1),
            _ => Ok(Vec::new()),
        }
    }
}

/// A token to be predicted, and the row of the batch that predicts it.
#[derive(Clone, Copy, Debug)]
struct Target {
    row: usize,
    token: u32,
}

/// The targets of a batch, in pieces of consecutive rows that are put through the head together.
fn chunks(batch: &[Window], model: &dyn Predictor) -> Vec<Vec<Target>> {
    let limit = (LOGITS / model.decoder().config().vocab_size).max(1);
    let mut out: Vec<Vec<Target>> = Vec::new();
    let mut first = 0;
    for window in batch {
        for index in window.scored.clone() {
            let target = Target { row: first + index - 1, token: window.tokens[index] };
            match out.last_mut() {
                Some(chunk) if chunk.len() < limit && chunk[chunk.len() - 1].row + 1 == target.row => {
                    chunk.push(target)
                }
                _ => out.push(vec![target]),
            }
        }
        first += window.tokens.len() - 1;
    }
    out
}

fn rows(logits: &[f32], chunk: &[Target]) -> Result<Vec<Row>, Error> {
    let vocab = logits.len() / chunk.len().max(1);
    let row = |(logits, target): (&[f32], &Target)| {
        let (top, log_sum) = log_sum(logits).ok_or(Error::NonFiniteLogits { row: target.row })?;
        let vocab = logits.len();
        let logit = logits.get(target.token as usize);
        let logit = logit.ok_or(Error::TokenRange { index: target.row + 1, id: target.token, vocab })?;
        Ok(Row { nll: log_sum - f64::from(*logit), log_sum, top })
    };
    logits.par_chunks_exact(vocab.max(1)).zip(chunk).map(row).collect()
}

/// The first largest logit and `ln Σ e^x`; `None` when a logit is not finite.
pub(crate) fn log_sum(logits: &[f32]) -> Option<(usize, f64)> {
    let mut top = 0;
    let mut finite = true;
    for (index, logit) in logits.iter().enumerate() {
        finite &= logit.is_finite();
        if *logit > logits[top] {
            top = index;
        }
    }
    let largest = f64::from(*logits.get(top)?);
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    finite.then_some((top, largest + sum.ln()))
}

/// `ln p(token)` under the softmax of one row of logits, in f64.
///
/// NaN when a logit is not finite or there is no such token.
#[must_use]
pub fn log_softmax(logits: &[f32], token: usize) -> f64 {
    match (log_sum(logits), logits.get(token)) {
        (Some((_, log_sum)), Some(logit)) => f64::from(*logit) - log_sum,
        _ => f64::NAN,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
impl Seen {
    fn compare(
        &mut self,
        expected: &[f32],
        expected_rows: &[Row],
        found: &[f32],
        chunk: &[Target],
    ) -> Result<(), Error> {
        let vocab = found.len() / chunk.len().max(1);
        let found_rows = rows(found, chunk)?;
        let logits = expected.par_chunks_exact(vocab.max(1)).zip(found.par_chunks_exact(vocab.max(1)));
        let kl: Vec<f64> = logits
            .zip(expected_rows.par_iter().zip(&found_rows))
            .map(|((p, q), (p_row, q_row))| {
                let shift = q_row.log_sum - p_row.log_sum;
                let terms = p.iter().zip(q).map(|(p, q)| {
                    let (p, q) = (f64::from(*p), f64::from(*q));
                    (p - p_row.log_sum).exp() * (p - q + shift)
                });
                terms.sum()
            })
            .collect();
        self.kl.extend(kl);
        self.nll.extend(found_rows.iter().map(|row| row.nll));
        self.reference_nll.extend(expected_rows.iter().map(|row| row.nll));
        self.agreed += expected_rows.iter().zip(&found_rows).filter(|(p, q)| p.top == q.top).count();
        Ok(())
    }

    fn progress(&self, windows: &Windows) -> Progress {
        let scored = self.nll.len();
        let perplexity = (self.nll.iter().sum::<f64>() / scored as f64).exp();
        Progress { scored, total: windows.scored(), perplexity }
    }

    fn score(&self, windows: &Windows, nll: &[f64]) -> Score {
        let bytes = windows.list().iter().map(|window| window.bytes).sum();
        Score { nll: nll.iter().sum(), tokens: nll.len(), bytes }
    }

    fn comparison(&self, windows: &Windows) -> Comparison {
        let tokens = self.kl.len();
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        // Nearest rank: the smallest value that at least 99.9 % of the tokens do not exceed.
        let rank = (tokens * 999).div_ceil(1000).saturating_sub(1);
        Comparison {
            reference: self.score(windows, &self.reference_nll),
            model: self.score(windows, &self.nll),
            kl: self.kl.iter().sum::<f64>() / tokens as f64,
            kl_p999: sorted.get(rank).copied().unwrap_or(f64::NAN),
            kl_max: sorted.last().copied().unwrap_or(f64::NAN),
            top1: self.agreed as f64 / tokens as f64,
        }
    }
}

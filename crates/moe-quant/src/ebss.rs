//! Expert-balanced self-sampling (MoEQuant, arXiv 2505.03804, section 3.2): the model writes its own calibration text by a
//! beam search that trades likelihood against balance of its experts.
//!
//! 1. A sequence begins with a random token.
//! 2. For every branch `S` with accumulated log-probability `R` over `n` tokens and every next token `v`,
//!    `cost = −(R + log P(v | S)) / (n + 1) + σ(S) / τ`. The imbalance is that of the parent: the routing of `v` is known
//!    only once it is fed.
//! 3. The `width` smallest costs become the branches; their tokens are fed, and the routing is counted.
//! 4. At full length the branch with the smallest cost, its own imbalance included, is the sequence.

use crate::Error;
use quant_calib::{CalibrationSet, ExpertCounts};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Why a model could not go on.
pub type ModelError = Box<dyn std::error::Error + Send + Sync>;

/// A language model whose routing can be seen.
pub trait RoutedModel: Sync {
    /// What it remembers of a text.
    type Past: Send + Sync;

    /// Number of tokens there are.
    fn vocabulary(&self) -> usize;

    /// Experts and choices a token of each mixture layer.
    fn mixtures(&self) -> Vec<(usize, usize)>;

    /// The past of an empty text.
    ///
    /// # Errors
    ///
    /// Whatever keeps the model from starting.
    fn begin(&self) -> Result<Self::Past, ModelError>;

    /// A copy of a past, which goes on by itself.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being copied.
    fn fork(&self, past: &Self::Past) -> Result<Self::Past, ModelError>;

    /// Appends a token to a past.
    ///
    /// # Errors
    ///
    /// Whatever keeps the model from going on.
    fn step(&self, past: &mut Self::Past, token: u32) -> Result<Step, ModelError>;
}

/// What a model says after a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Logarithms of the probabilities of all next tokens, or logits: they are normalized here.
    pub log_probs: Vec<f32>,
    /// The experts chosen for the token, by mixture layer.
    pub experts: Vec<Vec<u32>>,
}

/// How text is sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EbssConfig {
    /// Temperature of the imbalance; infinite is ordinary beam search.
    pub tau: f64,
    /// Branches.
    pub width: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens of a sequence, the first random one included.
    pub length: usize,
    /// What the imbalance is counted over.
    pub counters: Counters,
    /// What keeps text from going round in circles.
    pub filters: Filters,
    /// Seed of the first tokens, and of all where they are drawn.
    pub seed: u64,
    /// Draws each token by its probability to the power of `1/temperature` in place of searching: ordinary sampled text, to
    /// set beside. `tau` and `width` then say nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
}

impl Default for EbssConfig {
    /// The paper's: τ = 1.2, four branches, 128 sequences of 512 tokens.
    fn default() -> Self {
        Self {
            tau: 1.2,
            width: 4,
            sequences: 128,
            length: 512,
            counters: Counters::default(),
            filters: Filters::default(),
            seed: 0,
            temperature: None,
        }
    }
}

/// What the imbalance of a branch is counted over; the paper's text leaves it open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counters {
    /// All sequences finished before, and the branch: gives the global balance that the paper reports.
    #[default]
    Set,
    /// The branch alone.
    Sequence,
}

/// Continuations that are left out. None by default; the report counts what each left out, since they change perplexity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filters {
    /// Only so many of the likeliest next tokens of a branch.
    pub top_tokens: Option<usize>,
    /// Most equal tokens in a row.
    pub most_equal: Option<usize>,
    /// No sequence of so many tokens occurs twice.
    pub no_repeat: Option<usize>,
    /// Tokens that are never written: special ones, ends of text.
    pub banned: Vec<u32>,
}

/// Sampled text and what is to be said about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ebss {
    /// The sequences as token ids; text would not give the same tokens back.
    pub set: CalibrationSet,
    /// How they were sampled.
    pub config: EbssConfig,
    /// What came of it.
    pub report: EbssReport,
}

/// What came of sampling.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EbssReport {
    /// Perplexity of the sequences, their first tokens left out.
    pub perplexity: f64,
    /// Imbalance σ of the whole set, mean over layers.
    pub imbalance: f64,
    /// Tokens each expert saw, by layer.
    pub experts: Vec<Vec<u64>>,
    /// Continuations that filters left out.
    pub left_out: LeftOut,
}

/// Continuations left out, by filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// By [`Filters::most_equal`].
    pub most_equal: u64,
    /// By [`Filters::no_repeat`].
    pub no_repeat: u64,
    /// By [`Filters::banned`].
    pub banned: u64,
}

/// Mean over layers of the imbalance `σ = √(Σ (u_e − 1/E)² / (E − 1))`, `u_e` an expert's share of all choices.
///
/// 0 for even use, `1/√E` when all tokens go to one expert, `1/√(E(E − 1))` when half of the experts share them evenly.
///
/// ```
/// use quant_calib::ExpertCounts;
/// let mut counts = ExpertCounts::new(4, 1)?;
/// counts.add(&[2, 2, 2], None)?;
/// assert_eq!(moe_quant::imbalance(&[counts]), 0.5);
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[must_use]
pub fn imbalance(layers: &[ExpertCounts]) -> f64 {
    let sum: f64 = layers.iter().map(ExpertCounts::imbalance).sum();
    if layers.is_empty() { 0.0 } else { sum / layers.len() as f64 }
}

/// Samples calibration text from a model. `progress` is told the number of sequences that are finished.
///
/// Token ids are the same for any number of threads. Ties of costs go to the earlier branch, then to the lower token.
///
/// ```
/// use moe_quant::{EbssConfig, ModelError, RoutedModel, Step, ebss};
///
/// /// Tokens 0 to 7; the next one is likely a little higher, and even tokens go to expert 0.
/// struct Toy;
///
/// impl RoutedModel for Toy {
///     type Past = ();
///     fn vocabulary(&self) -> usize { 8 }
///     fn mixtures(&self) -> Vec<(usize, usize)> { vec![(2, 1)] }
///     fn begin(&self) -> Result<(), ModelError> { Ok(()) }
///     fn fork(&self, (): &()) -> Result<(), ModelError> { Ok(()) }
///     fn step(&self, (): &mut (), token: u32) -> Result<Step, ModelError> {
///         let log_probs = (0..8).map(|next| -(((next + 8 - token) % 8) as f32 - 2.0).abs()).collect();
///         Ok(Step { log_probs, experts: vec![vec![token % 2]] })
///     }
/// }
///
/// let config = EbssConfig { sequences: 2, length: 32, ..EbssConfig::default() };
/// let plain = ebss(&Toy, &EbssConfig { tau: f64::INFINITY, ..config.clone() }, &mut |_| {})?;
/// let balanced = ebss(&Toy, &EbssConfig { tau: 0.05, ..config }, &mut |_| {})?;
/// // The likeliest text goes up in steps of two and stays with one expert.
/// assert!(balanced.report.imbalance < 0.5 * plain.report.imbalance);
/// assert_eq!(balanced.set.tokens(), 64);
/// # Ok::<(), moe_quant::EbssError>(())
/// ```
///
/// # Errors
///
/// [`EbssError`]: settings that make no sense, a model that fails or says something impossible, filters that leave nothing.
pub fn ebss<M: RoutedModel>(
    model: &M,
    config: &EbssConfig,
    progress: &mut dyn FnMut(usize),
) -> Result<Ebss, EbssError> {
    check(model, config)?;
    let fresh = || model.mixtures().into_iter().map(|(experts, top_k)| ExpertCounts::new(experts, top_k));
    let mut counts: Vec<ExpertCounts> = fresh().collect::<Result<_, _>>().map_err(Error::from)?;
    let empty = counts.clone();
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let (mut windows, mut log_prob, mut left_out) = (Vec::new(), 0.0, LeftOut::default());
    for sequence in 0..config.sequences {
        let first = first_token(&mut rng, model.vocabulary(), &config.filters.banned);
        let start = if config.counters == Counters::Set { &counts } else { &empty };
        let search = Search { model, config, left_out: &mut left_out };
        let found = match config.temperature {
            None => search.sequence(first, start)?,
            Some(temperature) => search.drawn(first, start, temperature, &mut rng)?,
        };
        match config.counters {
            Counters::Set => counts = found.counts,
            Counters::Sequence => {
                for (sum, counts) in counts.iter_mut().zip(&found.counts) {
                    sum.merge(counts).map_err(Error::from)?;
                }
            }
        }
        log_prob += found.log_prob;
        windows.push(found.tokens);
        progress(sequence + 1);
    }
    let predicted = config.sequences * (config.length - 1);
    let source = match config.temperature {
        None => format!("ebss, tau {}, width {}, seed {}", config.tau, config.width, config.seed),
        Some(temperature) => format!("drawn at temperature {temperature}, seed {}", config.seed),
    };
    Ok(Ebss {
        set: CalibrationSet::new(source, windows).map_err(Error::from)?,
        config: config.clone(),
        report: EbssReport {
            perplexity: (-log_prob / predicted.max(1) as f64).exp(),
            imbalance: imbalance(&counts),
            experts: counts.iter().map(|layer| layer.counts().to_vec()).collect(),
            left_out,
        },
    })
}

/// Why no text was sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EbssError {
    /// A setting or a statistic was refused.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The model failed.
    #[error("the model failed at token {position} of a sequence")]
    Model {
        /// Tokens before.
        position: usize,
        /// What it said.
        source: ModelError,
    },
    /// The model said something impossible.
    #[error("the model is wrong at token {position} of a sequence: {what}")]
    Step {
        /// Tokens before.
        position: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Filters left no continuation.
    #[error("the filters leave no continuation after {position} tokens; loosen them")]
    DeadEnd {
        /// Tokens before.
        position: usize,
    },
}

fn check<M: RoutedModel>(model: &M, config: &EbssConfig) -> Result<(), Error> {
    let bad = |name, value: String, expected| Err(Error::Setting { name, value, expected });
    if config.tau.is_nan() || config.tau <= 0.0 {
        return bad("tau", config.tau.to_string(), "above 0");
    }
    if config.temperature.is_some_and(|temperature| !temperature.is_finite() || temperature <= 0.0) {
        return bad("temperature", "not a number above 0".into(), "above 0");
    }
    for (name, value) in [("width", config.width), ("sequences", config.sequences)] {
        if value == 0 {
            return bad(name, "0".into(), "at least 1");
        }
    }
    if config.length < 2 {
        return bad("length", config.length.to_string(), "at least 2");
    }
    if config.filters.top_tokens == Some(0) || config.filters.most_equal == Some(0) {
        return bad("a filter", "0".into(), "at least 1");
    }
    if config.filters.no_repeat.is_some_and(|n| n < 2) {
        return bad("no_repeat", "below 2".into(), "at least 2");
    }
    let allowed = allowed(model.vocabulary(), &config.filters.banned).count();
    if allowed == 0 || u32::try_from(model.vocabulary()).is_err() {
        return bad("vocabulary", model.vocabulary().to_string(), "at least one token that is not banned");
    }
    if model.mixtures().is_empty() {
        return bad("mixtures", "none".into(), "a model with a mixture of experts");
    }
    Ok(())
}

fn allowed(vocabulary: usize, banned: &[u32]) -> impl Iterator<Item = u32> {
    (0..u32::try_from(vocabulary).unwrap_or(u32::MAX)).filter(|token| !banned.contains(token))
}

fn first_token(rng: &mut ChaCha8Rng, vocabulary: usize, banned: &[u32]) -> u32 {
    let tokens: Vec<u32> = allowed(vocabulary, banned).collect();
    #[expect(clippy::cast_possible_truncation, reason = "below the number of tokens")]
    let index = ((u128::from(rng.next_u64()) * tokens.len() as u128) >> 64) as usize;
    tokens.get(index).copied().unwrap_or(0)
}

/// A number from 0 to below 1.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

struct Branch<P> {
    tokens: Vec<u32>,
    past: P,
    /// Sum over all tokens but the first.
    log_prob: f64,
    /// Of the next token.
    next: Vec<f64>,
    counts: Vec<ExpertCounts>,
}

impl<P> Branch<P> {
    fn cost(&self, log_prob: f64, predicted: usize, tau: f64) -> f64 {
        -log_prob / predicted as f64 + imbalance(&self.counts) / tau
    }
}

struct Finished {
    tokens: Vec<u32>,
    log_prob: f64,
    counts: Vec<ExpertCounts>,
}

/// A continuation of a branch.
#[derive(Clone, Copy)]
struct Candidate {
    cost: f64,
    branch: usize,
    token: u32,
    log_prob: f64,
}

/// The search for one sequence.
struct Search<'a, M> {
    model: &'a M,
    config: &'a EbssConfig,
    left_out: &'a mut LeftOut,
}

impl<M: RoutedModel> Search<'_, M> {
    /// A branch of one token.
    fn start(&self, first: u32, counts: &[ExpertCounts]) -> Result<Branch<M::Past>, EbssError> {
        let past = self.model.begin().map_err(|source| EbssError::Model { position: 0, source })?;
        let mut branch = Branch { tokens: Vec::new(), past, log_prob: 0.0, next: Vec::new(), counts: counts.to_vec() };
        feed(self.model, &mut branch, first, 0.0)?;
        Ok(branch)
    }

    /// One branch whose tokens are drawn. Log-probabilities stay those of the model.
    fn drawn(
        mut self,
        first: u32,
        counts: &[ExpertCounts],
        temperature: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<Finished, EbssError> {
        let mut branch = self.start(first, counts)?;
        while branch.tokens.len() < self.config.length {
            let tokens = self.kept(&branch);
            let log_prob = |token: &u32| branch.next[*token as usize];
            let largest = tokens.iter().map(log_prob).fold(f64::NEG_INFINITY, f64::max);
            let weights = tokens.iter().map(|token| ((log_prob(token) - largest) / temperature).exp());
            let weights: Vec<f64> = weights.collect();
            let mut left = unit(rng) * weights.iter().sum::<f64>();
            let drawn = tokens.iter().zip(&weights).find(|(_, weight)| {
                left -= **weight;
                left < 0.0
            });
            // Rounding may leave a hair over all of them.
            let Some(&token) = drawn.map(|(token, _)| token).or(tokens.last()) else {
                return Err(EbssError::DeadEnd { position: branch.tokens.len() });
            };
            let log_prob = branch.next[token as usize];
            feed(self.model, &mut branch, token, log_prob)?;
        }
        let Branch { tokens, log_prob, counts, .. } = branch;
        Ok(Finished { tokens, log_prob, counts })
    }

    fn sequence(mut self, first: u32, counts: &[ExpertCounts]) -> Result<Finished, EbssError> {
        let mut branches = vec![self.start(first, counts)?];
        while branches[0].tokens.len() < self.config.length {
            let chosen = self.candidates(&branches)?;
            let grown = chosen.into_par_iter().map(|candidate| {
                let parent = &branches[candidate.branch];
                let position = parent.tokens.len();
                let past = self.model.fork(&parent.past).map_err(|source| EbssError::Model { position, source })?;
                let mut branch = Branch {
                    tokens: parent.tokens.clone(),
                    past,
                    log_prob: parent.log_prob,
                    next: Vec::new(),
                    counts: parent.counts.clone(),
                };
                feed(self.model, &mut branch, candidate.token, candidate.log_prob)?;
                Ok(branch)
            });
            let grown: Vec<Result<Branch<M::Past>, EbssError>> = grown.collect();
            branches = grown.into_iter().collect::<Result<_, _>>()?;
        }
        let cost = |branch: &Branch<M::Past>| branch.cost(branch.log_prob, self.config.length - 1, self.config.tau);
        let best = branches
            .into_iter()
            .map(|branch| (cost(&branch), branch))
            .reduce(|best, next| if next.0 < best.0 { next } else { best });
        match best {
            Some((_, Branch { tokens, log_prob, counts, .. })) => Ok(Finished { tokens, log_prob, counts }),
            None => Err(EbssError::DeadEnd { position: self.config.length }),
        }
    }

    /// The continuations with the smallest costs.
    fn candidates(&mut self, branches: &[Branch<M::Past>]) -> Result<Vec<Candidate>, EbssError> {
        let position = branches[0].tokens.len();
        let mut all = Vec::new();
        for (index, branch) in branches.iter().enumerate() {
            let kept = self.kept(branch);
            let balance = branch.cost(0.0, 1, self.config.tau);
            all.extend(kept.into_iter().map(|token| {
                let log_prob = branch.next[token as usize];
                // `position` tokens stand before, of which all but the first were predicted.
                let cost = -(branch.log_prob + log_prob) / position as f64 + balance;
                Candidate { cost, branch: index, token, log_prob }
            }));
        }
        let rank = |a: &Candidate, b: &Candidate| {
            a.cost.total_cmp(&b.cost).then(a.branch.cmp(&b.branch)).then(a.token.cmp(&b.token))
        };
        let width = self.config.width;
        if all.len() > width {
            all.select_nth_unstable_by(width - 1, rank);
            all.truncate(width);
        }
        all.sort_by(rank);
        if all.is_empty() { Err(EbssError::DeadEnd { position }) } else { Ok(all) }
    }

    /// The next tokens that the filters leave.
    fn kept(&mut self, branch: &Branch<M::Past>) -> Vec<u32> {
        let filters = &self.config.filters;
        let mut tokens: Vec<u32> = (0..).take(branch.next.len()).collect();
        // What cannot follow is not left out by a filter.
        tokens.retain(|&token| branch.next[token as usize] > f64::NEG_INFINITY);
        let count = |tokens: &mut Vec<u32>, keep: &dyn Fn(u32) -> bool| {
            let before = tokens.len();
            tokens.retain(|&token| keep(token));
            (before - tokens.len()) as u64
        };
        self.left_out.banned += count(&mut tokens, &|token| !filters.banned.contains(&token));
        if let Some(most) = filters.most_equal {
            let tail = branch.tokens.len().checked_sub(most).map(|start| &branch.tokens[start..]);
            self.left_out.most_equal +=
                count(&mut tokens, &|token| !tail.is_some_and(|tail| tail.iter().all(|t| *t == token)));
        }
        if let Some(n) = filters.no_repeat {
            let tail = branch.tokens.len().checked_sub(n - 1).map(|start| &branch.tokens[start..]);
            let repeats = |token: u32| {
                let same = |window: &[u32]| tail.is_some_and(|tail| window[..n - 1] == *tail) && window[n - 1] == token;
                branch.tokens.windows(n).any(same)
            };
            self.left_out.no_repeat += count(&mut tokens, &|token| !repeats(token));
        }
        if let Some(top) = filters.top_tokens.filter(|top| *top < tokens.len()) {
            tokens.sort_by(|a, b| branch.next[*b as usize].total_cmp(&branch.next[*a as usize]).then(a.cmp(b)));
            tokens.truncate(top);
        }
        tokens
    }
}

/// Appends a token to a branch, counts its routing and learns what may follow.
fn feed<M: RoutedModel>(model: &M, branch: &mut Branch<M::Past>, token: u32, log_prob: f64) -> Result<(), EbssError> {
    let position = branch.tokens.len();
    let wrong = |what| EbssError::Step { position, what };
    let step = model.step(&mut branch.past, token).map_err(|source| EbssError::Model { position, source })?;
    if step.log_probs.len() != model.vocabulary() {
        return Err(wrong("it does not give one probability for each token"));
    }
    if step.log_probs.iter().any(|p| p.is_nan() || *p == f32::INFINITY) {
        return Err(wrong("a probability is not a number"));
    }
    if step.experts.len() != branch.counts.len() {
        return Err(wrong("it does not give choices for each mixture layer"));
    }
    for (counts, experts) in branch.counts.iter_mut().zip(&step.experts) {
        if experts.len() != counts.top_k() {
            return Err(wrong("it chose another number of experts than it has"));
        }
        counts.add(experts, None).map_err(Error::from)?;
    }
    branch.next = normalized(&step.log_probs).ok_or(wrong("nothing can follow"))?;
    branch.log_prob += log_prob;
    branch.tokens.push(token);
    Ok(())
}

/// Logits less the logarithm of the sum of their exponentials.
fn normalized(logits: &[f32]) -> Option<Vec<f64>> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |most, logit| most.max(f64::from(*logit)));
    if largest == f64::NEG_INFINITY {
        return None;
    }
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    let norm = largest + sum.ln();
    Some(logits.iter().map(|logit| f64::from(*logit) - norm).collect())
}

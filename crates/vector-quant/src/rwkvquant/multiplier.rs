//! Element-wise weights `mu` of `x ⊙ mu`: a code book that minimises `Σ_j X_j² (mu_j − q(mu_j))²`.
//!
//! `X_j` is the mean over calibration samples of `|x_j|`, after each sample was clipped to its own percentiles, so that
//! one spike in one sample cannot take the code book over. The paper does not say which percentiles; the default
//! is 1 % and 99 %. The published code weights by the mean instead of its square, does not clip, and ignores the
//! weights when it assigns.

use crate::error::{Error, finite, within};
use crate::{BookType, Books, KMeans, LearnedBook, LearnedBooks, VectorCodec, VqLinear, Weights, kmeans};
use serde::{Deserialize, Serialize};

/// The mean magnitude of what a multiplier is multiplied with, channel by channel.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiplierStats {
    clip: (f64, f64),
    sums: Vec<f64>,
    tokens: u64,
}

impl MultiplierStats {
    /// Empty statistics; each sample is clipped to these percentiles of its own values, for example `(0.01, 0.99)`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when they are no rising shares.
    pub fn new(channels: usize, clip: (f64, f64)) -> Result<Self, Error> {
        within("lower percentile", clip.0, 0.0, 1.0)?;
        within("upper percentile", clip.1, clip.0, 1.0)?;
        Ok(Self { clip, sums: vec![0.0; channels], tokens: 0 })
    }

    /// Adds a sample `[tokens, channels]`.
    ///
    /// # Errors
    ///
    /// [`Error::NotDivisible`] when it is not whole rows, [`Error::NonFinite`].
    pub fn update(&mut self, sample: &[f32]) -> Result<(), Error> {
        let channels = self.sums.len();
        if channels == 0 || !sample.len().is_multiple_of(channels) {
            return Err(Error::NotDivisible { what: "a sample", len: sample.len(), dim: channels });
        }
        finite("activation", sample)?;
        if sample.is_empty() {
            return Ok(());
        }
        let mut sorted = sample.to_vec();
        sorted.sort_unstable_by(f32::total_cmp);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into the sample")]
        let at = |share: f64| sorted[(share * (sorted.len() - 1) as f64).round() as usize];
        let (least, most) = (at(self.clip.0), at(self.clip.1));
        for row in sample.chunks_exact(channels) {
            self.sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.clamp(least, most).abs()));
        }
        self.tokens += (sample.len() / channels) as u64;
        Ok(())
    }

    /// `X_j²`. Channels that are never used get a millionth of the mean, so that their values are still coded; all
    /// weights are 1 when none is used.
    #[must_use]
    pub fn weights(&self) -> Vec<f32> {
        let tokens = (self.tokens as f64).max(1.0);
        let squares: Vec<f64> = self.sums.iter().map(|sum| (sum / tokens).powi(2)).collect();
        let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
        if mean == 0.0 {
            return vec![1.0; squares.len()];
        }
        #[expect(clippy::cast_possible_truncation, reason = "weights are used as f32")]
        let relative = |square: f64| (square / mean).max(1e-6) as f32;
        squares.into_iter().map(relative).collect()
    }
}

/// How a multiplier is coded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiplierConfig {
    /// Bits of a code.
    pub bits: u32,
    /// Consecutive values that share a code book.
    pub group: usize,
    /// Type of the values of the code book.
    pub values: BookType,
    /// Most iterations of the clustering.
    pub iterations: usize,
    /// Of the clustering.
    pub seed: u64,
}

impl Default for MultiplierConfig {
    /// Three bits, code books of 8 one-byte values for 64 weights (the published code).
    fn default() -> Self {
        Self { bits: 3, group: 64, values: BookType::Int8, iterations: 100, seed: 0 }
    }
}

/// A coded multiplier.
#[derive(Clone, Debug)]
pub struct Multiplier {
    /// As a matrix of one row.
    pub codes: VqLinear,
    /// `Σ X_j² (mu_j − q(mu_j))²`, of the stored values.
    pub loss: f64,
}

/// Codes a multiplier; without statistics all channels count alike.
///
/// # Errors
///
/// [`Error::Count`] when the statistics have other channels, [`Error::TooFewPoints`] when a group is smaller than its code
/// book, [`Error::Setting`], [`Error::NonFinite`].
pub fn quantize_multiplier(
    mu: &[f32],
    stats: Option<&MultiplierStats>,
    config: &MultiplierConfig,
) -> Result<Multiplier, Error> {
    quantize_multiplier_weighted(mu, stats.map(MultiplierStats::weights).as_deref(), config)
}

/// The same with the `X_j²` themselves, for a part of a multiplier whose statistics were gathered as a whole.
///
/// # Errors
///
/// As [`quantize_multiplier`].
pub fn quantize_multiplier_weighted(
    mu: &[f32],
    weights: Option<&[f32]>,
    config: &MultiplierConfig,
) -> Result<Multiplier, Error> {
    within("bits of a code", f64::from(config.bits), 1.0, 8.0)?;
    let weights = weights.map_or_else(|| vec![1.0; mu.len()], <[f32]>::to_vec);
    if weights.len() != mu.len() {
        return Err(Error::Count { what: "channels of the statistics", expected: mu.len(), found: weights.len() });
    }
    let group = config.group.clamp(1, mu.len().max(1));
    let kmeans_config =
        KMeans { centroids: 1 << config.bits, iterations: config.iterations, seed: config.seed, ..KMeans::default() };
    let (mut books, mut codes) = (Vec::new(), Vec::with_capacity(mu.len()));
    for (values, weights) in mu.chunks(group).zip(weights.chunks(group)) {
        let found = kmeans(values, 1, Weights::PerPoint(weights), &kmeans_config)?;
        let book = LearnedBook::new(&found.centroids, 1, config.values)?;
        codes.extend(values.iter().map(|value| book.encode(&[*value])));
        books.push(book);
    }
    let books = Books::Learned(LearnedBooks { rows: 1, columns: group, books });
    let codes = VqLinear::new([1, mu.len()], books, &codes, Vec::new())?;
    let back = quant_core::Linear::to_dense(&codes)?;
    let error = |((m, b), w): ((&f32, &f32), &f32)| f64::from(*w) * (f64::from(*m) - f64::from(*b)).powi(2);
    let loss = mu.iter().zip(&back).zip(&weights).map(error).sum();
    Ok(Multiplier { codes, loss })
}

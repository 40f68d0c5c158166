//! Ranges and moments of each channel.

use crate::Error;
use crate::rows::Rows;

/// Range, means and variance of each channel of an input.
///
/// Sums are made in f64, one token after the other, about the first token, so that a large mean costs no digits: the
/// bits do not depend on how the tokens were split into calls. Tokens are not weighted.
///
/// # Examples
///
/// ```
/// use quant_calib::ChannelStats;
/// let mut stats = ChannelStats::new(2);
/// stats.add(&[1.0, -8.0, 3.0, 2.0])?; // two tokens of two channels
/// assert_eq!((stats.min(), stats.max()), (&[1.0, -8.0][..], &[3.0, 2.0][..]));
/// assert_eq!(stats.absmax(), [3.0, 8.0]);
/// assert_eq!(stats.mean(), [2.0, -3.0]);
/// assert_eq!(stats.abs_mean(), [2.0, 5.0]);
/// assert_eq!(stats.variance(), [1.0, 25.0]);
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelStats {
    pub(crate) tokens: u64,
    pub(crate) min: Vec<f32>,
    pub(crate) max: Vec<f32>,
    /// The first token, about which powers are summed.
    pub(crate) shift: Vec<f64>,
    /// `Σ (x − shift)`.
    pub(crate) sum: Vec<f64>,
    /// `Σ (x − shift)²`.
    pub(crate) square_sum: Vec<f64>,
    /// `Σ |x|`.
    pub(crate) abs_sum: Vec<f64>,
}

impl ChannelStats {
    /// Starts with no tokens.
    #[must_use]
    pub fn new(features: usize) -> Self {
        Self {
            tokens: 0,
            min: vec![f32::INFINITY; features],
            max: vec![f32::NEG_INFINITY; features],
            shift: vec![0.0; features],
            sum: vec![0.0; features],
            square_sum: vec![0.0; features],
            abs_sum: vec![0.0; features],
        }
    }

    /// Adds tokens `rows` `[tokens, features]`.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] and [`Error::NonFinite`] for bad input. Nothing is added on error.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), Error> {
        self.add_rows(&Rows::new(rows, self.features(), None)?);
        Ok(())
    }

    pub(crate) fn add_rows(&mut self, rows: &Rows<'_>) {
        if let (0, Some(first)) = (self.tokens, rows.iter().next()) {
            self.shift = first.iter().map(|&x| f64::from(x)).collect();
        }
        for x in rows.iter() {
            for (min, &x) in self.min.iter_mut().zip(x) {
                *min = min.min(x);
            }
            for (max, &x) in self.max.iter_mut().zip(x) {
                *max = max.max(x);
            }
            for (sum, &x) in self.abs_sum.iter_mut().zip(x) {
                *sum += f64::from(x.abs());
            }
            let powers = self.sum.iter_mut().zip(&mut self.square_sum);
            for ((sum, square_sum), (&x, &shift)) in powers.zip(x.iter().zip(&self.shift)) {
                let d = f64::from(x) - shift;
                *sum += d;
                *square_sum += d * d;
            }
        }
        self.tokens += rows.len() as u64;
    }

    /// Adds what was gathered elsewhere; exact for given parts in a given order.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] for another width. Nothing is added on error.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        if self.features() != other.features() {
            return Err(Error::Features { features: self.features(), found: other.features() });
        }
        if self.tokens == 0 {
            *self = other.clone();
            return Ok(());
        }
        if other.tokens == 0 {
            return Ok(());
        }
        let count = count(other.tokens);
        for channel in 0..self.features() {
            self.min[channel] = self.min[channel].min(other.min[channel]);
            self.max[channel] = self.max[channel].max(other.max[channel]);
            self.abs_sum[channel] += other.abs_sum[channel];
            // With d = x − b and c = b − a: Σ (x − a) = Σ d + n c, Σ (x − a)² = Σ d² + 2 c Σ d + n c².
            let c = other.shift[channel] - self.shift[channel];
            let sum = other.sum[channel];
            self.sum[channel] += sum + count * c;
            self.square_sum[channel] += other.square_sum[channel] + c * (2.0 * sum + count * c);
        }
        self.tokens += other.tokens;
        Ok(())
    }

    /// Width of the input.
    #[must_use]
    pub fn features(&self) -> usize {
        self.min.len()
    }

    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Least value of each channel; +∞ before the first token.
    #[must_use]
    pub fn min(&self) -> &[f32] {
        &self.min
    }

    /// Largest value of each channel; −∞ before the first token.
    #[must_use]
    pub fn max(&self) -> &[f32] {
        &self.max
    }

    /// Largest magnitude of each channel; 0 before the first token.
    #[must_use]
    pub fn absmax(&self) -> Vec<f32> {
        if self.tokens == 0 {
            return vec![0.0; self.features()];
        }
        self.min.iter().zip(&self.max).map(|(min, max)| min.abs().max(max.abs())).collect()
    }

    /// Mean of each channel; 0 before the first token.
    #[must_use]
    pub fn mean(&self) -> Vec<f64> {
        let count = count(self.tokens).max(1.0);
        self.shift.iter().zip(&self.sum).map(|(shift, sum)| shift + sum / count).collect()
    }

    /// Mean magnitude of each channel, `Σ |x| / n`, what AWQ scales by; 0 before the first token.
    #[must_use]
    pub fn abs_mean(&self) -> Vec<f64> {
        let count = count(self.tokens).max(1.0);
        self.abs_sum.iter().map(|sum| sum / count).collect()
    }

    /// Variance of each channel, `Σ (x − mean)² / n`; 0 before the first token.
    #[must_use]
    pub fn variance(&self) -> Vec<f64> {
        let count = count(self.tokens).max(1.0);
        let of = |(sum, square_sum): (&f64, &f64)| ((square_sum - sum * sum / count) / count).max(0.0);
        self.sum.iter().zip(&self.square_sum).map(of).collect()
    }

    /// Channels that were zero in every token, in order.
    #[must_use]
    pub fn dead_channels(&self) -> Vec<usize> {
        self.absmax().iter().enumerate().filter(|(_, most)| **most == 0.0).map(|(channel, _)| channel).collect()
    }
}

/// A number of tokens as a divisor.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 tokens")]
pub(crate) fn count(tokens: u64) -> f64 {
    tokens as f64
}

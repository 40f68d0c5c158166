//! Quantiles of a stream, to a stated relative error.

use crate::Error;
use crate::channels::count;
use crate::rows::Rows;

/// Bits of the significand that tell buckets apart, unless said otherwise: quantiles to 1.6 %.
pub(crate) const SKETCH_BITS: u32 = 5;
/// The most bits a sketch may have.
const MOST_BITS: u32 = 12;
/// Bits of a significand that are stored in an f32.
pub(crate) const SIGNIFICAND: u32 = 23;

/// Quantiles of each channel of an input, or of all its values together, to a relative error of `2^-(bits + 1)`.
///
/// A value falls into the bucket of its sign, its exponent and the top `bits` bits of its significand, a histogram in
/// the manner of DDSketch (arXiv 1908.10693) whose buckets are read off the float. Buckets count, so the sketch does not
/// depend on the order of the values, and merging is exact.
///
/// # Examples
///
/// ```
/// use quant_calib::QuantileSketch;
/// let mut sketch = QuantileSketch::of_all(2, 5)?; // one distribution for both channels
/// let values: Vec<f32> = (0..10_000).map(|i| i as f32 - 5000.0).collect();
/// sketch.add(&values)?;
/// let p99 = sketch.quantile(0, 0.99).unwrap_or(0.0);
/// assert!((p99 / 4900.0 - 1.0).abs() < 1.0 / 64.0);
/// assert_eq!(sketch.quantile(0, 1.0), Some(4999.0));
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct QuantileSketch {
    pub(crate) features: usize,
    pub(crate) bits: u32,
    pub(crate) per_channel: bool,
    pub(crate) tokens: u64,
    /// One for each channel, or one for all.
    pub(crate) histograms: Vec<Histogram>,
}

/// Counts of the buckets of one distribution.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    pub(crate) negative: Buckets,
    pub(crate) zeros: u64,
    pub(crate) positive: Buckets,
    /// All values.
    pub(crate) total: u64,
    pub(crate) min: f32,
    pub(crate) max: f32,
}

/// Counts of a run of buckets, in order of magnitude.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Buckets {
    pub(crate) first: u32,
    pub(crate) counts: Vec<u64>,
}

impl QuantileSketch {
    /// A distribution for each channel.
    ///
    /// # Errors
    ///
    /// [`Error::SketchBits`] for more than 12 bits.
    pub fn of_channels(features: usize, bits: u32) -> Result<Self, Error> {
        Self::new(features, bits, true)
    }

    /// One distribution for the values of all channels.
    ///
    /// # Errors
    ///
    /// [`Error::SketchBits`] for more than 12 bits.
    pub fn of_all(features: usize, bits: u32) -> Result<Self, Error> {
        Self::new(features, bits, false)
    }

    pub(crate) fn new(features: usize, bits: u32, per_channel: bool) -> Result<Self, Error> {
        if bits > MOST_BITS {
            return Err(Error::SketchBits { bits, most: MOST_BITS });
        }
        let histograms = vec![Histogram::default(); if per_channel { features } else { 1 }];
        Ok(Self { features, bits, per_channel, tokens: 0, histograms })
    }

    /// Adds tokens `rows` `[tokens, features]`.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] and [`Error::NonFinite`] for bad input. Nothing is added on error.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), Error> {
        self.add_rows(&Rows::new(rows, self.features, None)?);
        Ok(())
    }

    pub(crate) fn add_rows(&mut self, rows: &Rows<'_>) {
        let shift = SIGNIFICAND - self.bits;
        for x in rows.iter() {
            for (channel, &x) in x.iter().enumerate() {
                self.histograms[if self.per_channel { channel } else { 0 }].add(x, shift);
            }
        }
        self.tokens += rows.len() as u64;
    }

    /// Adds what was gathered elsewhere; exact, in any order.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] for another width, [`Error::Settings`] for another number of bits or another division into
    /// channels. Nothing is added on error.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        if self.features != other.features {
            return Err(Error::Features { features: self.features, found: other.features });
        }
        let settings = |sketch: &Self| (sketch.bits, sketch.per_channel);
        if settings(self) != settings(other) {
            let name = |sketch: &Self| format!("{} bits, per channel {}", sketch.bits, sketch.per_channel);
            return Err(Error::Settings { what: "quantile sketches differ", left: name(self), right: name(other) });
        }
        for (histogram, other) in self.histograms.iter_mut().zip(&other.histograms) {
            histogram.merge(other);
        }
        self.tokens += other.tokens;
        Ok(())
    }

    /// The value below or at which the share `q` of the values of `channel` lies (nearest rank); exact at 0 and 1, to a
    /// relative `2^-(bits + 1)` between. `None` without values, for a channel that does not exist, and for `q` outside
    /// 0 to 1. A sketch of all channels has the one channel 0.
    #[must_use]
    pub fn quantile(&self, channel: usize, q: f64) -> Option<f32> {
        let histogram = self.histograms.get(channel).filter(|histogram| histogram.total > 0)?;
        (0.0..=1.0).contains(&q).then(|| histogram.quantile(q, SIGNIFICAND - self.bits))
    }

    /// The magnitude below or at which the share `q` of the values of `channel` lies; as [`quantile`](Self::quantile).
    #[must_use]
    pub fn abs_quantile(&self, channel: usize, q: f64) -> Option<f32> {
        let folded = self.histograms.get(channel)?.folded();
        (folded.total > 0 && (0.0..=1.0).contains(&q)).then(|| folded.quantile(q, SIGNIFICAND - self.bits))
    }

    /// Width of the input.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// Distributions kept: the number of channels, or 1.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.histograms.len()
    }

    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

impl Histogram {
    fn add(&mut self, x: f32, shift: u32) {
        if self.total == 0 {
            (self.min, self.max) = (x, x);
        }
        self.total += 1;
        self.min = self.min.min(x);
        self.max = self.max.max(x);
        let bucket = (x.to_bits() & 0x7fff_ffff) >> shift;
        if x > 0.0 {
            self.positive.add(bucket, 1);
        } else if x < 0.0 {
            self.negative.add(bucket, 1);
        } else {
            self.zeros += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        if other.total == 0 {
            return;
        }
        if self.total == 0 {
            (self.min, self.max) = (other.min, other.max);
        }
        self.total += other.total;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.zeros += other.zeros;
        self.negative.merge(&other.negative);
        self.positive.merge(&other.positive);
    }

    /// The distribution of the magnitudes.
    fn folded(&self) -> Self {
        let mut positive = self.positive.clone();
        positive.merge(&self.negative);
        let most = self.min.abs().max(self.max.abs());
        let least = if self.zeros > 0 { 0.0 } else { self.min.max(-self.max).max(0.0) };
        Self { negative: Buckets::default(), zeros: self.zeros, positive, total: self.total, min: least, max: most }
    }

    fn quantile(&self, q: f64, shift: u32) -> f32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and the number of values"
        )]
        let mut rank = ((q * count(self.total)).ceil() as u64).max(1);
        if rank == 1 && q == 0.0 {
            return self.min;
        }
        if rank >= self.total {
            return self.max;
        }
        // The largest magnitude of the negative values comes first.
        for (bucket, counted) in self.negative.iter().rev() {
            if rank <= counted {
                return (-middle(bucket, shift)).clamp(self.min, self.max);
            }
            rank -= counted;
        }
        if rank <= self.zeros {
            return 0.0;
        }
        rank -= self.zeros;
        for (bucket, counted) in self.positive.iter() {
            if rank <= counted {
                return middle(bucket, shift).clamp(self.min, self.max);
            }
            rank -= counted;
        }
        self.max
    }
}

/// The middle of a bucket, whose ends are at most a relative `2^-bits` apart.
fn middle(bucket: u32, shift: u32) -> f32 {
    f32::from_bits((bucket << shift) | (1 << (shift - 1)))
}

impl Buckets {
    fn add(&mut self, bucket: u32, count: u64) {
        if self.counts.is_empty() {
            self.first = bucket;
        }
        if bucket < self.first {
            let missing = (self.first - bucket) as usize;
            self.counts.splice(0..0, std::iter::repeat_n(0, missing));
            self.first = bucket;
        }
        let position = (bucket - self.first) as usize;
        if position >= self.counts.len() {
            self.counts.resize(position + 1, 0);
        }
        self.counts[position] += count;
    }

    fn merge(&mut self, other: &Self) {
        for (bucket, count) in other.iter().filter(|(_, count)| *count > 0) {
            self.add(bucket, count);
        }
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = (u32, u64)> {
        #[expect(clippy::cast_possible_truncation, reason = "there are fewer than 2^31 buckets")]
        self.counts.iter().enumerate().map(|(position, &count)| (self.first + position as u32, count))
    }
}

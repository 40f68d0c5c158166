//! How far decoded values are from the original ones, and what the original ones look like.
//!
//! Every sum is made in f64 over eight lanes: element `i` of a stream goes to lane `i mod 8`, the
//! lanes are added by a fixed tree at the end. A result therefore depends on the order of the
//! elements only, not on where a stream was cut or on the instruction set.
//!
//! ```
//! use quant_core::metrics::{ErrorStats, sqnr_db};
//! let (x, y) = ([1.0_f32, -2.0, 3.0, -4.0], [1.0_f32, -2.0, 3.0, -4.5]);
//! assert_eq!(sqnr_db(&x, &y)?, 10.0 * (30.0_f64 / 0.25).log10());
//!
//! // The same in two pieces, as a reader of large files does it.
//! let mut stats = ErrorStats::default();
//! stats.push(&x[..1], &y[..1])?;
//! stats.push(&x[1..], &y[1..])?;
//! assert_eq!(stats.sqnr_db(), sqnr_db(&x, &y)?);
//! # Ok::<(), quant_core::Error>(())
//! ```

use crate::Error;
use crate::kernels::Isa;

const LANES: usize = 8;

/// Partial sums, element `i` of the stream in lane `i mod 8`.
type Lanes = [f64; LANES];

fn total(lanes: &Lanes) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The errors of one tensor, gathered in one pass.
///
/// [`push`](Self::push) continues the stream; cutting it elsewhere changes no bit.
/// [`merge`](Self::merge) joins what was gathered apart, by threads or over tensors; for given parts in a
/// given order its result is exact to the bit as well, but may differ from that of one pass in the
/// last digits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErrorStats {
    count: u64,
    /// Σx², Σy², Σxy, Σ(x−y)².
    sums: [Lanes; 4],
    max_abs: f64,
}

impl ErrorStats {
    /// Gathers the errors of one pair of slices.
    ///
    /// # Errors
    ///
    /// As [`ErrorStats::push`], and [`Error::Empty`] for empty slices.
    pub fn of(original: &[f32], decoded: &[f32]) -> Result<Self, Error> {
        let mut stats = Self::default();
        stats.push(original, decoded)?;
        if stats.count == 0 { Err(Error::Empty { shape: vec![0] }) } else { Ok(stats) }
    }

    /// Adds the next elements of the stream.
    ///
    /// # Errors
    ///
    /// [`Error::LengthMismatch`] when the slices differ in length, [`Error::NonFinite`] naming the
    /// first bad element of this piece. Nothing is added on error.
    pub fn push(&mut self, original: &[f32], decoded: &[f32]) -> Result<(), Error> {
        if original.len() != decoded.len() {
            return Err(Error::LengthMismatch { left: original.len(), right: decoded.len() });
        }
        let (mut sums, mut max) = (self.sums, [self.max_abs; LANES]);
        let backend = Isa::current().backend();
        // Fewer values than there are lanes, beside pairs of zeros, which add nothing.
        let few = |first: usize, values: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[first..first + values.len()].copy_from_slice(values);
            [lanes]
        };
        let (first, head) = lane_and_head(self.count, original.len());
        let mut add = |x: &[[f32; LANES]], y: &[[f32; LANES]]| backend.error_sums(x, y, &mut sums, &mut max);
        add(&few(first, &original[..head]), &few(first, &decoded[..head]));
        let (x_body, x_tail) = original[head..].as_chunks::<LANES>();
        let (y_body, y_tail) = decoded[head..].as_chunks::<LANES>();
        add(x_body, y_body);
        add(&few(0, x_tail), &few(0, y_tail));
        // Squares of finite f32 values cannot overflow f64, so only a bad element spoils a sum.
        if !(total(&sums[0]) + total(&sums[1])).is_finite() {
            return Err(first_non_finite(original).or_else(|| first_non_finite(decoded)).unwrap_or(TOO_LONG));
        }
        self.count += original.len() as u64;
        self.sums = sums;
        self.max_abs = max.into_iter().fold(0.0, f64::max);
        Ok(())
    }

    /// Adds what was gathered elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        merge_lanes(&mut self.sums, &other.sums);
        self.max_abs = self.max_abs.max(other.max_abs);
    }

    /// Elements seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Energy of the original, `Σ x²`.
    #[must_use]
    pub fn signal(&self) -> f64 {
        total(&self.sums[0])
    }

    /// Energy of the error, `Σ (x − y)²`.
    #[must_use]
    pub fn noise(&self) -> f64 {
        total(&self.sums[3])
    }

    /// Mean squared error, `Σ (x − y)² / n`; 0 for no elements.
    #[must_use]
    pub fn mse(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.noise() / self.count as f64 }
    }

    /// Relative error in the Frobenius norm, `√(Σ (x − y)² / Σ x²)`; 0 without error, infinite when
    /// only the original is zero.
    #[must_use]
    pub fn relative_frobenius(&self) -> f64 {
        if self.noise() == 0.0 { 0.0 } else { (self.noise() / self.signal()).sqrt() }
    }

    /// Signal to quantization noise, `10·log10(Σ x² / Σ (x − y)²)` in dB; infinite without error,
    /// −∞ when only the original is zero.
    #[doc(alias = "qsnr")]
    #[must_use]
    pub fn sqnr_db(&self) -> f64 {
        if self.noise() == 0.0 { f64::INFINITY } else { 10.0 * (self.signal() / self.noise()).log10() }
    }

    /// Cosine of the angle between both, `Σ xy / √(Σ x² · Σ y²)`; NaN when one of them is zero.
    #[must_use]
    pub fn cosine(&self) -> f64 {
        total(&self.sums[2]) / (self.signal().sqrt() * total(&self.sums[1]).sqrt())
    }

    /// Largest error, `max |x − y|`; 0 for no elements.
    #[must_use]
    pub fn max_abs_error(&self) -> f64 {
        self.max_abs
    }
}

/// The distribution of one tensor, gathered in one pass.
///
/// [`push`](Self::push) and [`merge`](Self::merge) promise what those of [`ErrorStats`] do. Powers
/// are summed about the first element, so that a large mean costs no digits.
///
/// ```
/// use quant_core::metrics::Stats;
/// let stats = Stats::of(&[1.0, -1.0, 1.0, -5.0])?;
/// assert_eq!((stats.min(), stats.max(), stats.mean()), (-5.0, 1.0, -1.0));
/// assert_eq!(stats.crest_factor(), 5.0 / 7.0_f64.sqrt());
/// # Ok::<(), quant_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    count: u64,
    /// The first element, about which powers are summed.
    shift: f64,
    /// Σ(x−shift)ᵏ for k = 1…4, and Σx².
    sums: [Lanes; 5],
    min: f32,
    max: f32,
}

impl Stats {
    /// Gathers the distribution of one slice.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] naming the first bad element, [`Error::Empty`] for an empty slice.
    pub fn of(values: &[f32]) -> Result<Self, Error> {
        let mut stats = Self::default();
        stats.push(values)?;
        if stats.count == 0 { Err(Error::Empty { shape: vec![0] }) } else { Ok(stats) }
    }

    /// Adds the next elements of the stream.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] naming the first bad element of this piece. Nothing is added on error.
    pub fn push(&mut self, values: &[f32]) -> Result<(), Error> {
        let Some(&first_value) = values.first() else { return Ok(()) };
        let (shift, least, largest) = match self.count {
            0 => (f64::from(first_value), first_value, first_value),
            _ => (self.shift, self.min, self.max),
        };
        let mut sums = self.sums;
        let (mut min, mut max) = ([least; LANES], [largest; LANES]);
        let mut add = |lane: usize, x: f32| {
            min[lane] = min[lane].min(x);
            max[lane] = max[lane].max(x);
            let x = f64::from(x);
            let d = x - shift;
            let d2 = d * d;
            sums[0][lane] += d;
            sums[1][lane] += d2;
            sums[2][lane] += d2 * d;
            sums[3][lane] += d2 * d2;
            sums[4][lane] += x * x;
        };
        let (first, head) = lane_and_head(self.count, values.len());
        for (i, &x) in values[..head].iter().enumerate() {
            add(first + i, x);
        }
        let (body, tail) = values[head..].as_chunks::<LANES>();
        for x in body {
            for (lane, &x) in x.iter().enumerate() {
                add(lane, x);
            }
        }
        for (lane, &x) in tail.iter().enumerate() {
            add(lane, x);
        }
        if !total(&sums[4]).is_finite() {
            return Err(first_non_finite(values).unwrap_or(TOO_LONG));
        }
        self.count += values.len() as u64;
        (self.shift, self.sums) = (shift, sums);
        self.min = min.into_iter().fold(least, f32::min);
        self.max = max.into_iter().fold(largest, f32::max);
        Ok(())
    }

    /// Adds what was gathered elsewhere.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = other.clone();
            return;
        }
        // Moves the other sums from their shift to ours by the binomial theorem; lane by lane, so
        // that equal shifts change nothing.
        let t = other.shift - self.shift;
        let mut moved = other.sums;
        if t != 0.0 {
            for lane in 0..LANES {
                let n = lane_count(other.count, lane);
                let [s1, s2, s3, s4, _] = other.sums.map(|lanes| lanes[lane]);
                moved[0][lane] = s1 + n * t;
                moved[1][lane] = s2 + 2.0 * t * s1 + n * t * t;
                moved[2][lane] = s3 + 3.0 * t * s2 + 3.0 * t * t * s1 + n * t * t * t;
                moved[3][lane] = s4 + 4.0 * t * s3 + 6.0 * t * t * s2 + 4.0 * t * t * t * s1 + n * t * t * t * t;
            }
        }
        merge_lanes(&mut self.sums, &moved);
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Elements seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Least value; 0 for no elements.
    #[must_use]
    pub fn min(&self) -> f32 {
        self.min
    }

    /// Largest value; 0 for no elements.
    #[must_use]
    pub fn max(&self) -> f32 {
        self.max
    }

    /// Largest magnitude, `max |x|`; 0 for no elements.
    #[must_use]
    pub fn max_abs(&self) -> f32 {
        self.max.abs().max(self.min.abs())
    }

    /// Mean; NaN for no elements.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.shift + self.moment(0)
    }

    /// Variance, `Σ (x − mean)² / n`; NaN for no elements.
    #[must_use]
    pub fn variance(&self) -> f64 {
        let m = self.moment(0);
        (self.moment(1) - m * m).max(0.0)
    }

    /// Root of the mean square, `√(Σ x² / n)`; NaN for no elements.
    #[must_use]
    pub fn rms(&self) -> f64 {
        self.moment(4).sqrt()
    }

    /// Crest factor, `max |x| / √(Σ x² / n)`: 1 for constant magnitudes, at most `√n`; NaN when all
    /// values are zero.
    #[must_use]
    pub fn crest_factor(&self) -> f64 {
        f64::from(self.max_abs()) / self.rms()
    }

    /// Kurtosis, the fourth central moment over the squared variance: 3 for normal values, 6 for
    /// Laplace ones; NaN when all values are equal.
    #[must_use]
    pub fn kurtosis(&self) -> f64 {
        let [m1, m2, m3, m4] = [0, 1, 2, 3].map(|k| self.moment(k));
        let fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1 * m1 * m1 * m1;
        let variance = self.variance();
        fourth / (variance * variance)
    }

    fn moment(&self, k: usize) -> f64 {
        total(&self.sums[k]) / self.count as f64
    }
}

/// Mean squared error, `Σ (x − y)² / n`.
///
/// # Errors
///
/// As [`ErrorStats::of`].
pub fn mse(original: &[f32], decoded: &[f32]) -> Result<f64, Error> {
    ErrorStats::of(original, decoded).map(|s| s.mse())
}

/// Relative error in the Frobenius norm, see [`ErrorStats::relative_frobenius`].
///
/// # Errors
///
/// As [`ErrorStats::of`].
pub fn relative_frobenius(original: &[f32], decoded: &[f32]) -> Result<f64, Error> {
    ErrorStats::of(original, decoded).map(|s| s.relative_frobenius())
}

/// Signal to quantization noise in dB, called QSNR in "INT v.s. FP"; see [`ErrorStats::sqnr_db`].
///
/// # Errors
///
/// As [`ErrorStats::of`].
#[doc(alias = "qsnr")]
pub fn sqnr_db(original: &[f32], decoded: &[f32]) -> Result<f64, Error> {
    ErrorStats::of(original, decoded).map(|s| s.sqnr_db())
}

/// Cosine of the angle between both, see [`ErrorStats::cosine`].
///
/// # Errors
///
/// As [`ErrorStats::of`].
pub fn cosine(original: &[f32], decoded: &[f32]) -> Result<f64, Error> {
    ErrorStats::of(original, decoded).map(|s| s.cosine())
}

/// Largest error, `max |x − y|`.
///
/// # Errors
///
/// As [`ErrorStats::of`].
pub fn max_abs_error(original: &[f32], decoded: &[f32]) -> Result<f64, Error> {
    ErrorStats::of(original, decoded).map(|s| s.max_abs_error())
}

/// Norm of the error, `(Σ |x − y|^p)^(1/p)`.
///
/// `p = 1` and `p = 2` are the same on every machine; other powers go through the system's `pow`
/// and may differ in the last digit between platforms.
///
/// # Errors
///
/// As [`ErrorStats::of`], and [`Error::NormOrder`] unless `p` is finite and at least 1.
///
/// # Examples
///
/// ```
/// use quant_core::metrics::lp_error;
/// assert_eq!(lp_error(&[3.0, 0.0], &[0.0, 4.0], 1.0)?, 7.0);
/// assert_eq!(lp_error(&[3.0, 0.0], &[0.0, 4.0], 2.0)?, 5.0);
/// # Ok::<(), quant_core::Error>(())
/// ```
pub fn lp_error(original: &[f32], decoded: &[f32], p: f64) -> Result<f64, Error> {
    if !(p.is_finite() && p >= 1.0) {
        return Err(Error::NormOrder { p });
    }
    let stats = ErrorStats::of(original, decoded)?;
    if p == 2.0 {
        return Ok(stats.noise().sqrt());
    }
    // Relative to the largest error, so that high powers neither overflow nor vanish.
    let largest = stats.max_abs_error();
    if largest == 0.0 {
        return Ok(0.0);
    }
    let mut lanes = [0.0; LANES];
    for (i, (&x, &y)) in original.iter().zip(decoded).enumerate() {
        let error = (f64::from(x) - f64::from(y)).abs();
        lanes[i % LANES] += if p == 1.0 { error } else { (error / largest).powf(p) };
    }
    let sum = total(&lanes);
    Ok(if p == 1.0 { sum } else { largest * sum.powf(1.0 / p) })
}

/// Crest factor of a block, see [`Stats::crest_factor`].
///
/// # Errors
///
/// As [`Stats::of`].
pub fn crest_factor(values: &[f32]) -> Result<f64, Error> {
    Stats::of(values).map(|s| s.crest_factor())
}

/// Kurtosis, see [`Stats::kurtosis`].
///
/// # Errors
///
/// As [`Stats::of`].
pub fn kurtosis(values: &[f32]) -> Result<f64, Error> {
    Stats::of(values).map(|s| s.kurtosis())
}

/// Least and largest value.
///
/// # Errors
///
/// As [`Stats::of`].
pub fn range(values: &[f32]) -> Result<(f32, f32), Error> {
    Stats::of(values).map(|s| (s.min(), s.max()))
}

/// Said when sums overflow without a bad element, which needs more elements than memory can hold.
const TOO_LONG: Error = Error::SizeOverflow { shape: Vec::new() };

/// The lane of the next element, and how many of `len` elements it takes to get back to lane 0.
fn lane_and_head(count: u64, len: usize) -> (usize, usize) {
    #[expect(clippy::cast_possible_truncation, reason = "below LANES")]
    let first = (count % LANES as u64) as usize;
    (first, len.min((LANES - first) % LANES))
}

/// Elements of a stream of `count` that went to `lane`.
fn lane_count(count: u64, lane: usize) -> f64 {
    (count / LANES as u64 + u64::from((lane as u64) < count % LANES as u64)) as f64
}

fn merge_lanes<const N: usize>(into: &mut [Lanes; N], other: &[Lanes; N]) {
    for (a, b) in into.as_flattened_mut().iter_mut().zip(other.as_flattened()) {
        *a += b;
    }
}

fn first_non_finite(values: &[f32]) -> Option<Error> {
    let index = values.iter().position(|x| !x.is_finite())?;
    Some(Error::NonFinite { index, value: f64::from(values[index]) })
}

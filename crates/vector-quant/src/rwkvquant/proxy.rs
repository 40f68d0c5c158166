//! Two numbers that say how far weights are from evenly spaced.
//!
//! ```text
//! g_i = w_(i+1) − w_(i)  of the sorted weights,  g'_i = g_i / Σ g,  i = 1…n
//! coarse  P_c = ln n + Σ g'_i ln g'_i                                     0 for even spacing, at most ln n
//! fine    P_f = Σ_(k=2..K) |mean_i d_i^k| / (k(k−1)),  d_i = n g'_i − 1
//! ```
//!
//! `P_c` is the series of `P_f` without the absolute values, summed to infinity with alternating signs. The
//! moments are formed from `d_i`: the paper's `n^k M_k` overflows and cancels.

use crate::error::{Error, finite, within};
use half::f16;
use serde::{Deserialize, Serialize};

/// Which gaps count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "mode", deny_unknown_fields)]
pub enum Gaps {
    /// All of them, as the paper writes. For continuous weights they are exponential: i.i.d. uniform weights give
    /// `P_c = 1 − γ = 0.4228`, and `P_f` diverges with their number for Gaussian ones; in 16-bit weights ties dominate.
    Literal,
    /// The distinct non-zero gaps of the weights in f16, which is what the published code measures; the published
    /// thresholds (1.54 to 1.78 and 30 to 136) belong to it. Depends on the scale and the number of the weights.
    DistinctF16,
    /// The gaps between evenly ranked order statistics, this many plus one: an extension. Does not depend on the
    /// number of weights and hardly on their type; thresholds are shares (see [`Policy`](super::Policy)).
    Quantile {
        /// Gaps.
        gaps: usize,
    },
}

impl Default for Gaps {
    /// 1024 quantile gaps.
    fn default() -> Self {
        Self::Quantile { gaps: 1024 }
    }
}

/// The proxies of one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Uniformity {
    /// Relative entropy of the gaps.
    pub coarse: f64,
    /// Sum of their central moments.
    pub fine: f64,
    /// Gaps that were looked at.
    pub gaps: usize,
}

/// Measures how evenly weights are spaced; `order` is the highest moment (4 in the paper, 2 to 6).
///
/// Weights that are all equal have no gaps: both proxies are 0.
///
/// # Errors
///
/// [`Error::TooFewPoints`] for fewer than 3 weights, [`Error::NonFinite`], [`Error::Setting`].
///
/// # Examples
///
/// ```
/// use vector_quant::rwkvquant::{Gaps, uniformity};
/// let even: Vec<f32> = (0..4097).map(|i| i as f32 / 4096.0).collect();
/// let proxies = uniformity(&even, Gaps::default(), 4)?;
/// assert!(proxies.coarse.abs() < 1e-12 && proxies.fine.abs() < 1e-12);
/// # Ok::<(), vector_quant::Error>(())
/// ```
pub fn uniformity(weights: &[f32], gaps: Gaps, order: u32) -> Result<Uniformity, Error> {
    if weights.len() < 3 {
        return Err(Error::TooFewPoints { points: weights.len(), centroids: 3 });
    }
    finite("weight", weights)?;
    within("order of the moments", f64::from(order), 2.0, 6.0)?;
    let mut sorted: Vec<f64> = match gaps {
        Gaps::DistinctF16 => weights.iter().map(|w| f16::from_f32(*w).to_f64()).collect(),
        Gaps::Literal | Gaps::Quantile { .. } => weights.iter().map(|w| f64::from(*w)).collect(),
    };
    if let Some(index) = sorted.iter().position(|w| !w.is_finite()) {
        return Err(Error::NonFinite { what: "weight in f16", index, value: weights[index] });
    }
    sorted.sort_unstable_by(f64::total_cmp);
    if let Gaps::Quantile { gaps } = gaps {
        within("gaps", gaps as f64, 2.0, 1e6)?;
        let last = sorted.len() - 1;
        let gaps = gaps.min(last);
        sorted = (0..=gaps).map(|i| sorted[(i * last + gaps / 2) / gaps]).collect();
    }
    let mut steps: Vec<f64> = sorted.windows(2).map(|pair| pair[1] - pair[0]).collect();
    if gaps == Gaps::DistinctF16 {
        steps.retain(|step| *step > 0.0);
        steps.sort_unstable_by(f64::total_cmp);
        steps.dedup();
    }
    Ok(proxies(&steps, order))
}

fn proxies(steps: &[f64], order: u32) -> Uniformity {
    let (total, n): (f64, f64) = (steps.iter().sum(), steps.len() as f64);
    if total <= 0.0 {
        return Uniformity { coarse: 0.0, fine: 0.0, gaps: steps.len() };
    }
    let share = |step: &f64| step / total;
    let entropy: f64 = steps.iter().map(share).filter(|g| *g > 0.0).map(|g| g * (n * g).ln()).sum();
    let moment = |k: i32| steps.iter().map(|step| (n * share(step) - 1.0).powi(k)).sum::<f64>() / n;
    let term = |k: u32| moment(k.cast_signed()).abs() / f64::from(k * (k - 1));
    Uniformity { coarse: entropy.max(0.0), fine: (2..=order).map(term).sum(), gaps: steps.len() }
}

/// `max |W| · √(elements) / ‖W‖`: the rule by which the published code decides (vector codes above 8); about 5 for a
/// Gaussian matrix, 0 for a matrix of zeros.
///
/// # Errors
///
/// [`Error::NonFinite`].
pub fn incoherence(weights: &[f32]) -> Result<f64, Error> {
    finite("weight", weights)?;
    let largest = weights.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
    let energy: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
    Ok(if energy == 0.0 { 0.0 } else { f64::from(largest) * (weights.len() as f64).sqrt() / energy.sqrt() })
}

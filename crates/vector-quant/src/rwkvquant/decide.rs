//! Scalar or vector codes, matrix by matrix.

use super::Uniformity;
use crate::error::{Error, within};
use serde::{Deserialize, Serialize};

/// How a matrix is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// Scalar codes (GPTQ).
    Scalar,
    /// Vector codes (GPTVQ).
    Vector,
}

/// The rule of the choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "rule", deny_unknown_fields)]
pub enum Policy {
    /// Scalar codes where both proxies are below their thresholds (the paper; its values depend on how gaps are
    /// measured, see [`Gaps`](super::Gaps)).
    Thresholds {
        /// For the coarse proxy.
        coarse: f64,
        /// For the fine proxy.
        fine: f64,
    },
    /// Scalar codes for this share of the matrices, the most evenly spaced ones: those whose worse rank by the two
    /// proxies is lowest. The paper tunes its thresholds, model by model, to a share of about 0.9.
    ScalarShare {
        /// From 0 to 1.
        share: f64,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Self::ScalarShare { share: 0.9 }
    }
}

/// Chooses for each matrix; equal ones keep their order.
///
/// # Errors
///
/// [`Error::Setting`] for a share outside 0..=1 or thresholds that are not numbers.
pub fn decide(proxies: &[Uniformity], policy: Policy) -> Result<Vec<Choice>, Error> {
    match policy {
        Policy::Thresholds { coarse, fine } => {
            within("coarse threshold", coarse, 0.0, f64::MAX)?;
            within("fine threshold", fine, 0.0, f64::MAX)?;
            let even = |p: &Uniformity| p.coarse < coarse && p.fine < fine;
            Ok(proxies.iter().map(|p| if even(p) { Choice::Scalar } else { Choice::Vector }).collect())
        }
        Policy::ScalarShare { share } => {
            within("share", share, 0.0, 1.0)?;
            let (coarse, fine) = (ranks(proxies, |p| p.coarse), ranks(proxies, |p| p.fine));
            let mut order: Vec<usize> = (0..proxies.len()).collect();
            order.sort_by_key(|i| (coarse[*i].max(fine[*i]), *i));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the matrices")]
            let scalar = (share * proxies.len() as f64).round() as usize;
            let mut choices = vec![Choice::Vector; proxies.len()];
            order.iter().take(scalar).for_each(|i| choices[*i] = Choice::Scalar);
            Ok(choices)
        }
    }
}

/// The place of each matrix when they are sorted by a proxy.
fn ranks(proxies: &[Uniformity], proxy: impl Fn(&Uniformity) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..proxies.len()).collect();
    order.sort_by(|a, b| proxy(&proxies[*a]).total_cmp(&proxy(&proxies[*b])).then(a.cmp(b)));
    let mut ranks = vec![0; proxies.len()];
    order.iter().enumerate().for_each(|(rank, i)| ranks[*i] = rank);
    ranks
}

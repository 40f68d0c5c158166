//! FWSVD: rows or columns weighted by Fisher information (arXiv 2207.00112).

use crate::asvd::column_importance;
use crate::metric::diagonal;
use crate::{Calibration, Error, Method, Metric, Metrics, Truncation};
use quant_calib::Needs;
use serde::{Deserialize, Serialize};

/// Truncates `D W` (the paper) or `W D` (the code of ASVD), `D` the diagonal of the roots of summed Fisher information.
///
/// Fisher information weights single elements, and a truncation weighted so has no closed form; rows or columns
/// have. It is read from [`Calibration::fisher`](crate::Calibration), since it needs gradients. Importances
/// below 10⁻⁶ of their mean are raised to that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fwsvd {
    /// Which side is weighted.
    pub axis: FisherAxis,
    /// Exponent of the importance.
    pub alpha: f64,
    /// How large, how found, how stored.
    pub truncation: Truncation,
}

impl Default for Fwsvd {
    fn default() -> Self {
        Self { axis: FisherAxis::Rows, alpha: 1.0, truncation: Truncation::default() }
    }
}

/// Which side FWSVD weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FisherAxis {
    /// Outputs, by `sqrt(Σ_j F_ij)`.
    #[default]
    Rows,
    /// Inputs, by `sqrt(mean_i F_ij)`.
    Columns,
}

const LEAST_IMPORTANCE: f64 = 1e-6;

impl Method for Fwsvd {
    fn needs(&self) -> Needs {
        Needs::nothing()
    }

    fn truncation(&self) -> &Truncation {
        &self.truncation
    }

    fn metrics(&self, shape: (usize, usize), calibration: &Calibration<'_>) -> Result<Metrics, Error> {
        let fisher = calibration.require_fisher("FWSVD", shape)?;
        let weigh = |importance: &[f64]| diagonal(importance, self.alpha, LEAST_IMPORTANCE, "Fisher informations");
        match self.axis {
            FisherAxis::Rows => {
                let rows: Vec<f64> = fisher.rows().iter().map(|sum| sum.sqrt()).collect();
                Ok(Metrics { left: Some(weigh(&rows)?), right: Metric::Identity })
            }
            FisherAxis::Columns => Ok(Metrics::right(Metric::Diagonal(weigh(&column_importance(fisher))?))),
        }
    }
}

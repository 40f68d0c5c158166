//! Plain truncated SVD: the best approximation of the weight itself (Eckart and Young, 1936).

use crate::{Calibration, Error, Method, Metric, Metrics, Truncation};
use quant_calib::Needs;
use serde::{Deserialize, Serialize};

/// Truncates `W = U Σ Vᵀ`. Every other method is compared with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlainSvd {
    /// How large, how found, how stored.
    pub truncation: Truncation,
}

impl Method for PlainSvd {
    fn needs(&self) -> Needs {
        Needs::nothing()
    }

    fn truncation(&self) -> &Truncation {
        &self.truncation
    }

    fn metrics(&self, _: (usize, usize), _: &Calibration<'_>) -> Result<Metrics, Error> {
        Ok(Metrics::right(Metric::Identity))
    }
}

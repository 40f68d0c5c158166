//! A method chosen by name.

use crate::{Asvd, Calibration, Error, Fwsvd, Method, Metrics, PlainSvd, SvdLlm, Truncation};
use quant_calib::Needs;
use serde::{Deserialize, Serialize};

/// Any of the methods that factor a weight as a whole, as recipes name them.
///
/// # Examples
///
/// ```
/// use low_rank::{AnyMethod, Method, Ratio, Size};
/// let text = r#"{ "method": "asvd", "alpha": 1.0, "truncation": { "size": { "ratio": { "kept": 0.8 } } } }"#;
/// let method: AnyMethod = serde_json::from_str(text)?;
/// assert!(method.needs().channels);
/// assert_eq!(method.truncation().size, Size::Ratio(Ratio::Kept(0.8)));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum AnyMethod {
    /// `svd`
    Svd(PlainSvd),
    /// `asvd`
    Asvd(Asvd),
    /// `svd-llm`
    SvdLlm(SvdLlm),
    /// `fwsvd`
    Fwsvd(Fwsvd),
}

impl Method for AnyMethod {
    fn needs(&self) -> Needs {
        match self {
            Self::Svd(method) => method.needs(),
            Self::Asvd(method) => method.needs(),
            Self::SvdLlm(method) => method.needs(),
            Self::Fwsvd(method) => method.needs(),
        }
    }

    fn truncation(&self) -> &Truncation {
        match self {
            Self::Svd(method) => method.truncation(),
            Self::Asvd(method) => method.truncation(),
            Self::SvdLlm(method) => method.truncation(),
            Self::Fwsvd(method) => method.truncation(),
        }
    }

    fn metrics(&self, shape: (usize, usize), calibration: &Calibration<'_>) -> Result<Metrics, Error> {
        match self {
            Self::Svd(method) => method.metrics(shape, calibration),
            Self::Asvd(method) => method.metrics(shape, calibration),
            Self::SvdLlm(method) => method.metrics(shape, calibration),
            Self::Fwsvd(method) => method.metrics(shape, calibration),
        }
    }
}

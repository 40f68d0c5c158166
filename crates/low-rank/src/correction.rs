//! Low-rank correction of a quantization error: `W ≈ Q + A B`.

use crate::decompose::{Errors, store_pair};
use crate::linear::shape;
use crate::matrix::{read, stored};
use crate::{Calibration, Decomposition, Error, Factor, LowRank, Method, Sum};
use quant_core::Linear;
use serde::Serialize;

/// Adds to `base`, which is a rounded `weight`, two factors for what the rounding lost, `W − Q`.
///
/// The method says in which norm the factors are the best ones and how large and how stored they are: [`PlainSvd`](crate::PlainSvd) is LoRC
/// (ZeroQuant-V2, arXiv 2303.08302), [`Asvd`](crate::Asvd) with `alpha = 1` L²QER (LQER, arXiv 2402.02446), [`SvdLlm`](crate::SvdLlm) the
/// optimum of the output error on calibration (QERA, arXiv 2410.06040). The weight behind `base` is not touched.
///
/// # Errors
///
/// [`Error::Mismatch`] when `base` has another shape than the weight, and as [`Method::compress`].
///
/// # Examples
///
/// ```
/// use low_rank::{Calibration, PlainSvd, Size, Truncation, correct};
/// use quant_core::{Format, Linear, PackedTensor, Shaped};
///
/// let values: Vec<f32> = (0..64 * 128).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
/// let weight = Shaped::new(&values, &[64, 128])?;
/// let packed = PackedTensor::encode(Format::INT4_G128, &weight)?;
/// let bytes = packed.footprint().total_bytes();
///
/// let method = PlainSvd { truncation: Truncation { size: Size::Rank(4), ..Truncation::default() } };
/// let corrected = correct(&weight, packed, &method, &Calibration::default())?;
/// assert_eq!(corrected.report.bytes, bytes + 2 * 4 * (64 + 128));
/// assert!(corrected.report.weight_error < corrected.report.base_weight_error);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn correct<L: Linear>(
    weight: &impl quant_core::Tensor,
    base: L,
    method: &impl Method,
    calibration: &Calibration<'_>,
) -> Result<Corrected<L>, Error> {
    let w = read(weight)?;
    if shape(&base) != w.dim() {
        return Err(Error::Mismatch { left: w.dim(), right: shape(&base) });
    }
    let truncation = method.truncation();
    let rank = truncation.size.rank(w.nrows(), w.ncols(), truncation.align)?;
    let before = Errors::new(&w, &base, calibration)?;
    let error = &w - &stored(&base)?;
    let decomposition = Decomposition::new(&error, method.metrics(w.dim(), calibration)?, truncation.solver, rank)?;
    let (a, b) = decomposition.factors(rank, truncation.sigma)?;
    let linear = Sum::new(base, store_pair(&a, &b, truncation.storage)?)?;
    let after = Errors::new(&w, &linear, calibration)?;
    let report = CorrectionReport {
        rank,
        bytes: linear.footprint().total_bytes(),
        spectrum: decomposition.spectrum().to_vec(),
        base_weight_error: before.weight,
        weight_error: after.weight,
        base_output_error: before.output,
        output_error: after.output,
    };
    Ok(Corrected { linear, report })
}

/// A rounded weight with its correction, and its account.
#[derive(Clone, Debug, PartialEq)]
pub struct Corrected<L> {
    /// `Q + A B`.
    pub linear: Sum<L, LowRank<Factor, Factor>>,
    /// What it costs and loses.
    pub report: CorrectionReport,
}

/// What a corrected weight costs and loses. Errors are relative, as in [`Report`](crate::Report).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CorrectionReport {
    /// Rank of the correction.
    pub rank: usize,
    /// Bytes of both terms.
    pub bytes: u64,
    /// Singular values of the rounding error in the scaled space.
    pub spectrum: Vec<f64>,
    /// Error of the weight before the correction.
    pub base_weight_error: f64,
    /// Error of the weight after it.
    pub weight_error: f64,
    /// Error of the output before the correction; needs the Gram matrix.
    pub base_output_error: Option<f64>,
    /// Error of the output after it.
    pub output_error: Option<f64>,
}

//! The one decomposition behind all methods, its truncation and its report.

use crate::matrix::{narrow, output_energy, read, squared_norm, stored};
use crate::{Calibration, Error, Factored, LowRank, Metrics, Size, Storage, pair_parameters};
use ndarray::{Array1, Array2, Axis, Slice};
use quant_calib::Needs;
use quant_core::{Format, Linear};
use quant_linalg::{RandomizedSvd, Svd, randomized_svd_f32};
use serde::{Deserialize, Serialize};

/// What all methods have in common: how large, how found, how stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Truncation {
    /// How large the factors become.
    pub size: Size,
    /// Ranks that follow from a ratio are multiples of this.
    pub align: usize,
    /// Which factor takes the singular values.
    pub sigma: SigmaFuse,
    /// How the singular values are found.
    pub solver: Solver,
    /// How the factors are stored.
    pub storage: Storage,
}

impl Default for Truncation {
    /// 90 % kept, no alignment, singular values shared, exact, f16: ASVD's defaults.
    fn default() -> Self {
        Self {
            size: Size::Ratio(crate::Ratio::Kept(0.9)),
            align: 1,
            sigma: SigmaFuse::Both,
            solver: Solver::Exact,
            storage: Storage::Packed(F16),
        }
    }
}

const F16: Format = Format {
    element: quant_core::Element::Float { kind: quant_core::FloatKind::F16, overflow: quant_core::Overflow::Saturate },
    block: quant_core::Block::Row,
    scale: quant_core::Scale::None,
};

/// Which factor takes the singular values: `A = D⁻¹ U Σ^a`, `B = Σ^(1−a) Vᵀ S⁻¹`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SigmaFuse {
    /// `A` takes them all.
    U,
    /// `B` takes them all.
    V,
    /// Each takes their square roots, which balances the ranges of the two.
    #[default]
    Both,
}

/// How singular values are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Solver {
    /// All of them.
    #[default]
    Exact,
    /// The largest ones, nearly: [`quant_linalg::randomized_svd_f32`]. Much faster when the rank is a small part of a large matrix.
    Randomized {
        /// Columns of the random projection beyond the rank.
        oversample: usize,
        /// Power iterations.
        power_iterations: usize,
        /// Seed of the projection.
        seed: u64,
    },
}

/// A way to choose the metric: one of the papers.
///
/// Only [`Method::needs`], [`Method::truncation`] and [`Method::metrics`] differ between them.
pub trait Method {
    /// What calibration has to gather.
    fn needs(&self) -> Needs;

    /// How large, how found, how stored.
    fn truncation(&self) -> &Truncation;

    /// The metrics for a weight of this shape `(out, in)`.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Features`], [`Error::Statistic`] and [`Error::AllZero`] for the statistics,
    /// [`Error::Setting`] for the configuration.
    fn metrics(&self, shape: (usize, usize), calibration: &Calibration<'_>) -> Result<Metrics, Error>;

    /// Decomposes a weight `[out, in]` once; the result can be cut to any rank up to `most`, or up to the smaller side with the exact
    /// solver. For searches that try many ranks.
    ///
    /// # Errors
    ///
    /// As [`Method::metrics`]; [`Error::NotAMatrix`], [`Error::Core`] for elements that are not finite, [`Error::Linalg`].
    fn decompose(
        &self,
        weight: &impl quant_core::Tensor,
        calibration: &Calibration<'_>,
        most: usize,
    ) -> Result<Decomposition, Error> {
        let w = read(weight)?;
        Decomposition::new(&w, self.metrics(w.dim(), calibration)?, self.truncation().solver, most)
    }

    /// Factors a weight `[out, in]`.
    ///
    /// Where two factors would take no fewer bytes than the weight in the same storage, the weight is kept whole, and the
    /// report says so.
    ///
    /// # Errors
    ///
    /// As [`Method::decompose`]; [`Error::Rank`], [`Error::Ratio`] and [`Error::Unreachable`] for the size,
    /// [`Error::FactorRange`] for a storage that cannot hold the factors.
    fn compress(&self, weight: &impl quant_core::Tensor, calibration: &Calibration<'_>) -> Result<Compressed, Error> {
        let truncation = self.truncation();
        let w = read(weight)?;
        let (rows, columns) = w.dim();
        let rank = truncation.size.rank(rows, columns, truncation.align)?;
        let metrics = self.metrics(w.dim(), calibration)?;
        let decomposition = Decomposition::new(&w, metrics, truncation.solver, rank)?;
        let linear = decomposition.store(&w, rank, truncation)?;
        let report = Report::new(&w, &linear, &decomposition, rank, calibration)?;
        Ok(Compressed { linear, report })
    }
}

/// A weight and its account.
#[derive(Clone, Debug, PartialEq)]
pub struct Compressed {
    /// The factors.
    pub linear: Factored,
    /// What they cost and lose.
    pub report: Report,
}

/// `D W S = U Σ Vᵀ`, with the metrics undone on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Decomposition {
    /// `D⁻¹ U`, `[m, r]`.
    left: Array2<f64>,
    /// Singular values in the scaled space, descending, `[r]`.
    values: Array1<f64>,
    /// `Vᵀ S⁻¹`, `[r, n]`.
    right: Array2<f64>,
    /// `‖D W S‖²`.
    energy: f64,
    metrics: Metrics,
}

impl Decomposition {
    /// 1. Scale: `D W S`. 2. Decompose. 3. Undo the scales on the factors.
    pub(crate) fn new(w: &Array2<f64>, metrics: Metrics, solver: Solver, most: usize) -> Result<Self, Error> {
        let scaled = metrics.scale(w.clone());
        let Svd { u, s, vt } = match solver {
            Solver::Exact => quant_linalg::svd(scaled.view())?,
            Solver::Randomized { oversample, power_iterations, seed } => {
                let config = RandomizedSvd { rank: most, oversample, power_iterations, seed };
                randomized_svd_f32(scaled.view(), config)?
            }
        };
        let energy = squared_norm(&scaled);
        Ok(Self { left: metrics.unscale_left(u), values: s, right: metrics.right.unscale(vt)?, energy, metrics })
    }

    /// Singular values in the scaled space, descending: all of them, or those a randomized solver was asked for.
    #[must_use]
    pub fn spectrum(&self) -> &[f64] {
        self.values.as_slice().unwrap_or(&[])
    }

    /// The metrics that were used.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// `‖D (W − W') S‖²` after the cut to `rank`: the sum of the squares of the values that are dropped (Eckart–Young). With whitening
    /// it is the mean over tokens of the squared output error.
    #[must_use]
    pub fn dropped(&self, rank: usize) -> f64 {
        let known: f64 = self.values.iter().skip(rank).map(|value| value * value).sum();
        if self.values.len() == self.left.nrows().min(self.right.ncols()) {
            return known;
        }
        let head: f64 = self.values.iter().take(rank).map(|value| value * value).sum();
        (self.energy - head).max(known)
    }

    /// `‖D W S‖²`.
    #[must_use]
    pub fn energy(&self) -> f64 {
        self.energy
    }

    /// The factors `A` `[m, rank]` and `B` `[rank, n]`, not yet rounded.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] when the rank is 0 or was not computed.
    pub fn factors(&self, rank: usize, sigma: SigmaFuse) -> Result<(Array2<f64>, Array2<f64>), Error> {
        if rank == 0 || rank > self.values.len() {
            return Err(Error::Rank { rank, rows: self.left.nrows(), columns: self.right.ncols() });
        }
        let first = Slice::from(..rank);
        let values = self.values.slice_axis(Axis(0), first);
        let share = |power: f64| values.mapv(|value| value.powf(power));
        let (left, right) = match sigma {
            SigmaFuse::U => (share(1.0), share(0.0)),
            SigmaFuse::V => (share(0.0), share(1.0)),
            SigmaFuse::Both => (share(0.5), share(0.5)),
        };
        let a = &self.left.slice_axis(Axis(1), first) * &left;
        let b = &self.right.slice_axis(Axis(0), first) * &right.insert_axis(Axis(1));
        Ok((a, b))
    }

    /// Rounds the factors to their storage, or the whole weight where the factors would not be smaller.
    pub(crate) fn store(&self, w: &Array2<f64>, rank: usize, truncation: &Truncation) -> Result<Factored, Error> {
        let ((rows, columns), storage) = (w.dim(), truncation.storage);
        if pair_bytes(storage, rows, columns, rank)? >= storage.bytes(rows, columns)? {
            return Ok(Factored::Dense(storage.store(narrow(w), rows, columns)?));
        }
        let (a, b) = self.factors(rank, truncation.sigma)?;
        store_pair(&a, &b, storage).map(Factored::Pair)
    }
}

/// Rounds two factors to their storage.
pub(crate) fn store_pair(
    a: &Array2<f64>,
    b: &Array2<f64>,
    storage: Storage,
) -> Result<LowRank<crate::Factor, crate::Factor>, Error> {
    let a = storage.store(narrow(a), a.nrows(), a.ncols())?;
    let b = storage.store(narrow(b), b.nrows(), b.ncols())?;
    LowRank::new(a, b)
}

/// Bytes of two factors in one storage.
pub(crate) fn pair_bytes(storage: Storage, rows: usize, columns: usize, rank: usize) -> Result<u64, Error> {
    Ok(storage.bytes(rows, rank)? + storage.bytes(rank, columns)?)
}

/// What a factored weight costs and loses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Rank of the factors; where the weight was kept whole, the rank that was asked for.
    pub rank: usize,
    /// Whether the weight was kept whole because two factors of this rank would not be smaller.
    pub kept_dense: bool,
    /// Parameters stored over parameters of the weight.
    pub kept: f64,
    /// Bytes stored.
    pub bytes: u64,
    /// Singular values in the scaled space, as many as were computed.
    pub spectrum: Vec<f64>,
    /// Share of `‖D W S‖` that the truncation drops, before the factors are rounded; 0 where the weight was kept.
    pub dropped: f64,
    /// `‖W − W'‖ / ‖W‖` of what is stored.
    pub weight_error: f64,
    /// `sqrt(Σ ‖(W − W') x‖² / Σ ‖W x‖²)` over calibration, of what is stored; needs the Gram matrix.
    pub output_error: Option<f64>,
}

impl Report {
    fn new(
        w: &Array2<f64>,
        linear: &Factored,
        decomposition: &Decomposition,
        rank: usize,
        calibration: &Calibration<'_>,
    ) -> Result<Self, Error> {
        let kept_dense = matches!(linear, Factored::Dense(_));
        let (rows, columns) = w.dim();
        let parameters = pair_parameters(rows, columns, rank) as f64 / (rows as f64 * columns as f64);
        let errors = Errors::new(w, linear, calibration)?;
        Ok(Self {
            rank,
            kept_dense,
            kept: if kept_dense { 1.0 } else { parameters },
            bytes: linear.footprint().total_bytes(),
            spectrum: decomposition.spectrum().to_vec(),
            dropped: if kept_dense { 0.0 } else { relative(decomposition.dropped(rank), decomposition.energy()) },
            weight_error: errors.weight,
            output_error: errors.output,
        })
    }
}

/// Relative errors of what is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Errors {
    pub(crate) weight: f64,
    pub(crate) output: Option<f64>,
}

impl Errors {
    pub(crate) fn new(w: &Array2<f64>, linear: &impl Linear, calibration: &Calibration<'_>) -> Result<Self, Error> {
        let error = w - &stored(linear)?;
        let weight = relative(squared_norm(&error), squared_norm(w));
        let output = calibration
            .mean_gram(w.ncols())?
            .map(|gram| relative(output_energy(error.view(), gram.view()), output_energy(w.view(), gram.view())));
        Ok(Self { weight, output })
    }
}

/// Root of a ratio of energies; an error beside nothing is infinite.
fn relative(error: f64, signal: f64) -> f64 {
    if error == 0.0 { 0.0 } else { (error / signal).sqrt() }
}

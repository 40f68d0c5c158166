//! One plan a layer under a budget of bytes: whole, factored, or rounded with a correction.

use crate::decompose::{Errors, pair_bytes, store_pair};
use crate::matrix::{narrow, read, stored};
use crate::{Calibration, Decomposition, Error, Factored, Method, Ratio, Storage, Sum, rank_for_ratio};
use bit_allocation::Choice;
use ndarray::Array2;
use quant_core::Linear;
use serde::{Deserialize, Serialize};

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Plan {
    /// Whole.
    Dense {
        /// How.
        storage: Storage,
    },
    /// Two factors.
    LowRank {
        /// Their rank.
        rank: usize,
        /// How both are stored.
        storage: Storage,
    },
    /// Whole, rounded, and two factors for the rounding error.
    Corrected {
        /// How the whole weight is stored.
        base: Storage,
        /// Rank of the correction.
        rank: usize,
        /// How its factors are stored.
        storage: Storage,
    },
}

/// What plans are tried for each layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Menu {
    /// Storages of whole weights.
    pub dense: Vec<Storage>,
    /// Kept shares of factored weights, each in each of `factors`.
    pub kept: Vec<f64>,
    /// Storages of factors.
    pub factors: Vec<Storage>,
    /// Storages of whole weights that are corrected, each with each rank of `correction_ranks`.
    pub corrected: Vec<Storage>,
    /// Ranks of corrections; those above the smaller side of a layer are left out there.
    pub correction_ranks: Vec<usize>,
    /// Storage of the factors of corrections.
    pub correction: Storage,
}

impl Default for Menu {
    /// Whole in f16, and factored to 0.1, 0.2, …, 0.9 of the parameters in f16: the grid of the ASVD paper.
    fn default() -> Self {
        let f16 = crate::Truncation::default().storage;
        Self {
            dense: vec![f16],
            kept: (1..10).map(|tenth| f64::from(tenth) / 10.0).collect(),
            factors: vec![f16],
            corrected: Vec::new(),
            correction_ranks: Vec::new(),
            correction: f16,
        }
    }
}

/// A plan, what it takes and what it loses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerOption {
    /// The plan.
    pub plan: Plan,
    /// Bytes stored.
    pub bytes: u64,
    /// `Σ ‖(W − W') x‖² / Σ ‖W x‖²` over calibration, of what is stored.
    pub loss: f64,
}

/// A layer whose plans share the expensive parts: its decomposition, and those of rounding errors.
#[derive(Debug)]
struct Layer<'a, 'c, M: Method> {
    w: Array2<f64>,
    method: &'a M,
    calibration: &'a Calibration<'c>,
    decomposition: Option<Decomposition>,
}

impl<'a, 'c, M: Method> Layer<'a, 'c, M> {
    fn new(weight: &impl quant_core::Tensor, method: &'a M, calibration: &'a Calibration<'c>) -> Result<Self, Error> {
        Ok(Self { w: read(weight)?, method, calibration, decomposition: None })
    }

    fn decompose(&self, w: &Array2<f64>, most: usize) -> Result<Decomposition, Error> {
        let metrics = self.method.metrics(w.dim(), self.calibration)?;
        Decomposition::new(w, metrics, self.method.truncation().solver, most)
    }

    fn whole(&self, storage: Storage) -> Result<crate::Factor, Error> {
        storage.store(narrow(&self.w), self.w.nrows(), self.w.ncols())
    }

    fn build(&self, plan: Plan) -> Result<Factored, Error> {
        let sigma = self.method.truncation().sigma;
        match plan {
            Plan::Dense { storage } => self.whole(storage).map(Factored::Dense),
            Plan::LowRank { rank, storage } => {
                let fresh;
                let decomposition = match &self.decomposition {
                    Some(decomposition) => decomposition,
                    None => {
                        fresh = self.decompose(&self.w, rank)?;
                        &fresh
                    }
                };
                let (a, b) = decomposition.factors(rank, sigma)?;
                store_pair(&a, &b, storage).map(Factored::Pair)
            }
            Plan::Corrected { base, rank, storage } => {
                let base = self.whole(base)?;
                let error = &self.w - &stored(&base)?;
                let (a, b) = self.decompose(&error, rank)?.factors(rank, sigma)?;
                Ok(Factored::Corrected(Sum::new(base, store_pair(&a, &b, storage)?)?))
            }
        }
    }

    fn option(&self, plan: Plan) -> Result<LayerOption, Error> {
        let linear = self.build(plan)?;
        let errors = Errors::new(&self.w, &linear, self.calibration)?;
        let error = errors.output.ok_or(Error::Missing { method: "allocation", what: "the Gram matrix" })?;
        Ok(LayerOption { plan, bytes: linear.footprint().total_bytes(), loss: error * error })
    }
}

/// Builds every plan of the menu for one weight and measures it in closed form from the Gram matrix. The method
/// gives the metric and the solver; its size and storage are not read.
///
/// Factored plans that take no fewer bytes than the whole weight in the same storage are left out.
///
/// # Errors
///
/// As [`Method::compress`]; [`Error::Missing`] without a Gram matrix.
pub fn options(
    weight: &impl quant_core::Tensor,
    method: &impl Method,
    calibration: &Calibration<'_>,
    menu: &Menu,
) -> Result<Vec<LayerOption>, Error> {
    let mut layer = Layer::new(weight, method, calibration)?;
    let (rows, columns) = layer.w.dim();
    let mut plans: Vec<Plan> = menu.dense.iter().map(|&storage| Plan::Dense { storage }).collect();
    let mut most = 0;
    for &kept in &menu.kept {
        // A share too small for rank 1 is no plan of this layer.
        let rank = match rank_for_ratio(rows, columns, Ratio::Kept(kept), method.truncation().align) {
            Err(Error::Unreachable { .. }) => continue,
            rank => rank?,
        };
        for &storage in &menu.factors {
            if pair_bytes(storage, rows, columns, rank)? < storage.bytes(rows, columns)? {
                plans.push(Plan::LowRank { rank, storage });
                most = most.max(rank);
            }
        }
    }
    for &base in &menu.corrected {
        let ranks = menu.correction_ranks.iter().filter(|&&rank| rank <= rows.min(columns));
        plans.extend(ranks.map(|&rank| Plan::Corrected { base, rank, storage: menu.correction }));
    }
    if most > 0 {
        layer.decomposition = Some(layer.decompose(&layer.w, most)?);
    }
    plans.into_iter().map(|plan| layer.option(plan)).collect()
}

/// One plan for every layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// Plans, in the order of the layers.
    pub plans: Vec<Plan>,
    /// Bytes of all.
    pub bytes: u64,
    /// Sum of losses.
    pub loss: f64,
}

/// Takes the option of every layer with which the sum of losses is least within `budget` bytes; exact.
///
/// Losses of layers are added as they are. To count one layer more than another, multiply its losses.
///
/// # Errors
///
/// [`Error::Allocation`]: a layer without options, or a budget below the smallest plans.
///
/// # Examples
///
/// ```
/// use low_rank::{LayerOption, Plan, Storage, allocate};
/// let option = |rank, bytes, loss| LayerOption { plan: Plan::LowRank { rank, storage: Storage::F32 }, bytes, loss };
/// let layers = [vec![option(1, 10, 0.5), option(2, 20, 0.4)], vec![option(1, 10, 0.9), option(2, 20, 0.1)]];
/// let best = allocate(&layers, 30)?;
/// assert_eq!(best.plans, [layers[0][0].plan, layers[1][1].plan]);
/// # Ok::<(), low_rank::Error>(())
/// ```
pub fn allocate(layers: &[Vec<LayerOption>], budget: u64) -> Result<Allocation, Error> {
    let choice = |option: &LayerOption| Choice { cost: option.bytes, loss: option.loss };
    let items: Vec<Vec<Choice>> = layers.iter().map(|options| options.iter().map(choice).collect()).collect();
    let best = bit_allocation::allocate(&items, budget)?;
    let plans = layers.iter().zip(&best.choices).map(|(options, &at)| options[at].plan).collect();
    Ok(Allocation { plans, bytes: best.cost, loss: best.loss })
}

/// Builds what a plan says. The same weight, method and calibration as in [`options`] give the same bytes and values that were
/// measured there, with the exact solver.
///
/// # Errors
///
/// As [`Method::compress`].
pub fn realize(
    plan: Plan,
    weight: &impl quant_core::Tensor,
    method: &impl Method,
    calibration: &Calibration<'_>,
) -> Result<Factored, Error> {
    Layer::new(weight, method, calibration)?.build(plan)
}

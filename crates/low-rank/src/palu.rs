//! Palu: key and value projections factored by groups of heads (arXiv 2407.21118).

use crate::decompose::Errors;
use crate::factor::product_rows;
use crate::matrix::{narrow, read, stored};
use crate::ratio::floor;
use crate::{Calibration, Decomposition, Error, Factor, Metric, Metrics, Ratio, SigmaFuse, Solver, Storage, Whitening};
use ndarray::{Array2, Axis, Slice};
use quant_calib::Needs;
use quant_core::{Footprint, Linear};
use quant_transforms::Hadamard;
use serde::{Deserialize, Serialize};

/// Factors the rows of each group of heads by themselves, all with the whitening of their common input.
///
/// One head a group is the paper's M-LRD, all heads J-LRD, the default of four G-LRD. What a cache keeps of a token is the latent
/// `B x`, the concatenation of the groups' latents; a head is rebuilt from its group's part alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Palu {
    /// Key-value heads of the projection.
    pub heads: usize,
    /// Heads factored together; more than there are means all.
    pub heads_per_group: usize,
    /// Share of the projection's outputs that the latent keeps: what the cache shrinks to. The paper's `param_ratio_target` counts
    /// parameters instead, which for wide, short projections is another number.
    pub width: Ratio,
    /// Widths of groups are multiples of this.
    pub multiple_of: usize,
    /// Rotates each latent by a Hadamard matrix, which spreads outliers before the cache rounds it; widths of groups must be orders of
    /// [`quant_transforms::Hadamard`]: powers of two, and 12, 20, 28, … times such.
    pub hadamard: bool,
    /// Share of the mean diagonal that is added to the Gram matrix.
    pub damping: f64,
    /// How the singular values are found.
    pub solver: Solver,
    /// How the factors are stored.
    pub storage: Storage,
}

impl Default for Palu {
    fn default() -> Self {
        Self {
            heads: 1,
            heads_per_group: 4,
            width: Ratio::Kept(0.5),
            multiple_of: 1,
            hadamard: false,
            damping: 0.0,
            solver: Solver::Exact,
            storage: crate::Truncation::default().storage,
        }
    }
}

/// A weight factored by groups of rows, and its account.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouped {
    /// The factors.
    pub linear: GroupedLowRank,
    /// What they cost and lose.
    pub report: GroupedReport,
}

/// What a weight factored by groups costs and loses. Errors are relative, as in [`Report`](crate::Report).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupedReport {
    /// Width of each group's latent.
    pub ranks: Vec<usize>,
    /// Width of the latent over the outputs of the projection: what a cache keeps.
    pub width: f64,
    /// Bytes stored.
    pub bytes: u64,
    /// Singular values of each group in the scaled space.
    pub spectra: Vec<Vec<f64>>,
    /// Error of the weight.
    pub weight_error: f64,
    /// Error of the output.
    pub output_error: Option<f64>,
}

impl Palu {
    /// What calibration has to gather.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs::gram()
    }

    /// Factors a projection `[heads · head_dim, in]`, every group to the same width.
    ///
    /// # Errors
    ///
    /// [`Error::Heads`] when the rows are not whole groups, [`Error::Unreachable`] when the width leaves a group nothing,
    /// [`Error::Hadamard`], and as [`SvdLlm`](crate::SvdLlm).
    pub fn compress(&self, weight: &impl quant_core::Tensor, calibration: &Calibration<'_>) -> Result<Grouped, Error> {
        let view = weight.view();
        let groups = self.groups(view.rows())?;
        let (rows, kept) = (view.rows() / groups, self.width.kept()?);
        if self.multiple_of == 0 {
            return Err(Error::Setting { setting: "multiple_of", value: 0.0, expected: "a positive number" });
        }
        let rank = floor(rows as f64 * kept).min(view.row_len()) / self.multiple_of * self.multiple_of;
        if rank == 0 {
            return Err(Error::Unreachable { kept, smallest: self.multiple_of.min(rows) as f64 / rows as f64 });
        }
        self.compress_to(weight, calibration, &vec![rank; groups])
    }

    /// Factors a projection with a width for each group.
    ///
    /// # Errors
    ///
    /// As [`Palu::compress`]; [`Error::Rank`] for a width of 0 or above the rows of a group, [`Error::Heads`] for another number of widths.
    pub fn compress_to(
        &self,
        weight: &impl quant_core::Tensor,
        calibration: &Calibration<'_>,
        ranks: &[usize],
    ) -> Result<Grouped, Error> {
        let w = read(weight)?;
        let groups = self.groups(w.nrows())?;
        if ranks.len() != groups {
            return Err(Error::Heads { rows: w.nrows(), heads: ranks.len(), group: self.heads_per_group });
        }
        let rows = w.nrows() / groups;
        let gram = calibration.require_gram("Palu", w.ncols())?;
        let metrics = Metrics::right(Metric::Whitening(Whitening::new(gram.view(), self.damping)?));
        let (mut lefts, mut rights, mut spectra) = (Vec::new(), Vec::new(), Vec::new());
        for (group, &rank) in ranks.iter().enumerate() {
            if rank == 0 || rank > rows.min(w.ncols()) {
                return Err(Error::Rank { rank, rows, columns: w.ncols() });
            }
            let part = w.slice_axis(Axis(0), Slice::from(group * rows..(group + 1) * rows)).to_owned();
            let decomposition = Decomposition::new(&part, metrics.clone(), self.solver, rank)?;
            let (mut a, mut b) = decomposition.factors(rank, SigmaFuse::Both)?;
            if self.hadamard {
                fold_hadamard(&mut a, &mut b)?;
            }
            spectra.push(decomposition.spectrum().to_vec());
            lefts.push(a);
            rights.push(b);
        }
        let linear = GroupedLowRank::new(&lefts, &rights, self.storage)?;
        let errors = Errors::new(&w, &linear, calibration)?;
        let report = GroupedReport {
            ranks: ranks.to_vec(),
            width: ranks.iter().sum::<usize>() as f64 / w.nrows() as f64,
            bytes: linear.footprint().total_bytes(),
            spectra,
            weight_error: errors.weight,
            output_error: errors.output,
        };
        Ok(Grouped { linear, report })
    }

    fn groups(&self, rows: usize) -> Result<usize, Error> {
        let group = self.heads_per_group.min(self.heads);
        if group == 0 || rows == 0 || !self.heads.is_multiple_of(group) || !rows.is_multiple_of(self.heads) {
            return Err(Error::Heads { rows, heads: self.heads, group: self.heads_per_group });
        }
        Ok(self.heads / group)
    }
}

/// `W` whose group `g` of rows is `A_g B_g`: the `B_g` are stored one below the other, the `A_g` on their own.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedLowRank {
    groups: Vec<Factor>,
    latent: Factor,
}

impl GroupedLowRank {
    fn new(lefts: &[Array2<f64>], rights: &[Array2<f64>], storage: Storage) -> Result<Self, Error> {
        let columns = rights.first().map_or(0, Array2::ncols);
        let stacked: Vec<f32> = rights.iter().flat_map(narrow).collect();
        let width = rights.iter().map(Array2::nrows).sum();
        let groups = lefts.iter().map(|a| storage.store(narrow(a), a.nrows(), a.ncols()));
        Ok(Self { groups: groups.collect::<Result<_, _>>()?, latent: storage.store(stacked, width, columns)? })
    }

    /// The left factors `[rows of the group, width of the group]`, in order.
    #[must_use]
    pub fn groups(&self) -> &[Factor] {
        &self.groups
    }

    /// The right factors `[width, in]`: gives what a cache keeps of a token.
    #[must_use]
    pub fn latent(&self) -> &Factor {
        &self.latent
    }

    /// Applies the left factors to latents `[rows, width]`, for `y` `[rows, out]`: how a cache rebuilds keys or values.
    ///
    /// # Errors
    ///
    /// As [`Linear::matmul`].
    pub fn rebuild(&self, latents: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        let (width, outputs) = (self.latent.out_features(), self.out_features());
        if !latents.len().is_multiple_of(width) {
            return Err(quant_core::Error::Features { in_features: width, found: latents.len() });
        }
        let rows = latents.len() / width;
        if y.len() != rows * outputs {
            return Err(quant_core::Error::OutputLen { expected: rows * outputs, found: y.len() });
        }
        let (mut column, mut output) = (0, 0);
        for group in &self.groups {
            let (rank, size) = (group.in_features(), group.out_features());
            let part: Vec<f32> = latents.chunks_exact(width).flat_map(|t| &t[column..column + rank]).copied().collect();
            let mut product = vec![0.0; rows * size];
            group.matmul(&part, &mut product)?;
            for (y, product) in y.chunks_exact_mut(outputs).zip(product.chunks_exact(size)) {
                y[output..output + size].copy_from_slice(product);
            }
            (column, output) = (column + rank, output + size);
        }
        Ok(())
    }
}

impl Linear for GroupedLowRank {
    fn in_features(&self) -> usize {
        self.latent.in_features()
    }

    fn out_features(&self) -> usize {
        self.groups.iter().map(Linear::out_features).sum()
    }

    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        let rows = product_rows(self, x, y)?;
        let mut latents = vec![0.0; rows * self.latent.out_features()];
        self.latent.matmul(x, &mut latents)?;
        self.rebuild(&latents, y)
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        let latent = stored(&self.latent)?;
        let (mut dense, mut column) = (Vec::new(), 0);
        for group in &self.groups {
            let b = latent.slice_axis(Axis(0), Slice::from(column..column + group.in_features()));
            dense.extend(narrow(&quant_linalg::matmul(stored(group)?.view(), b)));
            column += group.in_features();
        }
        Ok(dense)
    }

    fn footprint(&self) -> Footprint {
        let elements = self.in_features() as u64 * self.out_features() as u64;
        let parts = self.groups.iter().map(Linear::footprint).sum::<Footprint>() + self.latent.footprint();
        Footprint { elements, ..parts }
    }
}

/// Replaces `A`, `B` by `A Hᵀ`, `H B` with `H` an orthonormal Hadamard matrix: their product stays, and outlying channels of the latent are
/// spread over all.
///
/// # Errors
///
/// [`Error::Hadamard`] when no matrix of this order is known; [`Error::Mismatch`] when the factors do not fit.
pub fn fold_hadamard(a: &mut Array2<f64>, b: &mut Array2<f64>) -> Result<(), Error> {
    let width = b.nrows();
    if a.ncols() != width {
        return Err(Error::Mismatch { left: a.dim(), right: b.dim() });
    }
    if !width.is_power_of_two() {
        return Err(Error::Hadamard { width });
    }
    let turn = Hadamard::new(width).map_err(|_| Error::Hadamard { width })?;
    // Rows of A and columns of B: rows of memory.
    let mut rows = a.as_standard_layout().into_owned();
    let mut columns = b.t().as_standard_layout().into_owned();
    for values in [rows.as_slice_mut(), columns.as_slice_mut()].into_iter().flatten() {
        turn.apply(values).map_err(|_| Error::Hadamard { width })?;
    }
    (*a, *b) = (rows, columns.reversed_axes());
    Ok(())
}

/// Shares a total rank out in proportion to importance (Palu's `fisher_uniform`), in multiples of `multiple_of`, each between `min` and its `max`.
///
/// Every step gives `multiple_of` to the entry that lies furthest below its share, so that, unlike rounding each
/// entry by itself, the total is met to less than one multiple.
///
/// # Errors
///
/// [`Error::TotalRank`] when `total` lies outside the sums of minima and maxima, [`Error::Statistic`] for an importance that is negative or
/// not finite, [`Error::AllZero`], [`Error::Setting`] for a multiple of 0, [`Error::Features`] when the lengths differ.
///
/// # Examples
///
/// ```
/// assert_eq!(low_rank::allocate_ranks(&[3.0, 1.0], 128, 32, 32, &[128, 128])?, [96, 32]);
/// # Ok::<(), low_rank::Error>(())
/// ```
pub fn allocate_ranks(
    importance: &[f64],
    total: usize,
    multiple_of: usize,
    min: usize,
    max: &[usize],
) -> Result<Vec<usize>, Error> {
    let what = "importances";
    if importance.len() != max.len() {
        return Err(Error::Features { what, expected: max.len(), found: importance.len() });
    }
    if multiple_of == 0 {
        return Err(Error::Setting { setting: "multiple_of", value: 0.0, expected: "a positive number" });
    }
    if let Some((index, &value)) =
        importance.iter().enumerate().find(|(_, value)| !(value.is_finite() && **value >= 0.0))
    {
        return Err(Error::Statistic { what, index, value });
    }
    let sum: f64 = importance.iter().sum();
    if sum <= 0.0 {
        return Err(Error::AllZero { what });
    }
    let first = min.next_multiple_of(multiple_of);
    let mut ranks: Vec<usize> = max.iter().map(|&max| first.min(max)).collect();
    let (least, most) = (ranks.iter().sum(), max.iter().sum());
    if total < least || total > most {
        return Err(Error::TotalRank { total, least, most });
    }
    let mut left = total - least;
    while left >= multiple_of {
        let lacks = |i: usize| importance[i] / sum * total as f64 - ranks[i] as f64;
        let room = (0..ranks.len()).filter(|&i| ranks[i] + multiple_of <= max[i]);
        // Of equals the first.
        let Some(next) = room.rev().max_by(|&i, &j| lacks(i).total_cmp(&lacks(j))) else { break };
        ranks[next] += multiple_of;
        left -= multiple_of;
    }
    Ok(ranks)
}

/// The left factors of values folded into the output projection, so that attention never rebuilds values: `O_h A_g` for every query head
/// `h` of the group `g` of its value head.
///
/// `output` is `[out, query heads · head_dim]`; the result is `[out, Σ_h width of h's group]`, and what it multiplies is, for each query head in
/// turn, its probabilities times the latents of its group.
///
/// # Errors
///
/// [`Error::Mismatch`] when the heads of the two do not fit.
pub fn fold_output(
    output: &impl quant_core::Tensor,
    values: &GroupedLowRank,
    heads: usize,
) -> Result<Array2<f64>, Error> {
    let o = read(output)?;
    let (rows, group_count) = (values.out_features(), values.groups.len());
    let mismatch = || Error::Mismatch { left: o.dim(), right: (rows, values.in_features()) };
    let head_dim = if heads > 0 && rows.is_multiple_of(heads) { rows / heads } else { 0 };
    if head_dim == 0 || !o.ncols().is_multiple_of(rows) || !heads.is_multiple_of(group_count) {
        return Err(mismatch());
    }
    let (repeats, per_group) = (o.ncols() / rows, heads / group_count);
    let mut parts = Vec::new();
    for query in 0..heads * repeats {
        let value_head = query / repeats;
        let a = stored(&values.groups[value_head / per_group])?;
        let first = value_head % per_group * head_dim;
        let a_head = a.slice_axis(Axis(0), Slice::from(first..first + head_dim));
        let o_head = o.slice_axis(Axis(1), Slice::from(query * head_dim..(query + 1) * head_dim));
        parts.push(quant_linalg::matmul(o_head, a_head));
    }
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    ndarray::concatenate(Axis(1), &views).map_err(|_| mismatch())
}

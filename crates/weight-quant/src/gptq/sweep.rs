//! The sweep: round column by column, push each error into the columns to come.
//!
//! With `U` the factor of the inverse Hessian, for each column `i` in turn (GPTQ, algorithm 1):
//!
//! 1. `ŵ = round(w_i)`, all rows at once;
//! 2. `e_i = (w_i − ŵ) / U_ii`;
//! 3. `w_j −= e_i · U_ij` for all `j > i`.
//!
//! Step 3 is delayed: inside a block of columns it is done at once, beyond it with one matrix product for many
//! columns. The reference does so for blocks of 128; here a span of columns is halved again and again, the left half's
//! errors are applied to the right half in one product, and spans are cut at the ends of groups, so that a group is
//! always fitted to columns which have received every update. The cuts change no code beyond the rounding of sums.
//!
//! Rows are independent. They are worked on in panels, each with its columns side by side in memory; a column that is
//! done leaves its errors in the place of its weights. Then `D = W − Ŵ = e·U` and the loss is `Σ e² = tr(D H Dᵀ)`.

use super::Factor;
use crate::{Error, blocks};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use rayon::prelude::*;
use std::ops::Range;

/// What columns are rounded to: the state of one panel of rows while the sweep passes over it.
///
/// Positions count columns in the order of quantization. Slices hold columns one after the other, each with the rows of
/// the panel. [`GridColumns`](super::GridColumns) rounds to a [`quant_core::Grid`]; code books that are learned
/// for the rows of a panel, or vectors across rows, implement this trait themselves.
pub trait ColumnRounder: Send {
    /// Why rounding may fail.
    type Error: From<Error> + Send;

    /// Columns that are rounded together; groups hold a multiple of it.
    fn width(&self) -> usize {
        1
    }

    /// Called before the first column of each group is rounded, with the group's columns as they are then.
    ///
    /// # Errors
    ///
    /// Whatever makes a group impossible to fit.
    fn begin_group(&mut self, group: Range<usize>, values: &[f32]) -> Result<(), Self::Error>;

    /// Rounds the [`width`](Self::width) columns from `position` on.
    ///
    /// # Errors
    ///
    /// Whatever makes values impossible to round.
    fn round(&mut self, position: usize, values: &[f32], rounded: &mut [f32]) -> Result<(), Self::Error>;
}

/// How a sweep is cut into pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepPlan {
    /// Where groups end, in the order of quantization; the last end is the number of columns.
    pub group_ends: Vec<usize>,
    /// Rows of a panel; what a rounder sees at once.
    pub panel_rows: usize,
    /// Columns that are rounded together, see [`ColumnRounder::width`]; groups hold a multiple of it.
    pub width: usize,
    /// Columns whose updates are not delayed, at most.
    pub block: usize,
}

impl SweepPlan {
    /// The cuts for a weight of `rows` rows: the groups of the factor's order, panels of a multiple of `row_multiple`
    /// rows.
    #[must_use]
    pub fn new(factor: &Factor, rows: usize, row_multiple: usize) -> Self {
        // Some panels for each of many threads, yet enough rows to make products of.
        let panel_rows = rows.div_ceil(16).next_multiple_of(16).clamp(32, 256).next_multiple_of(row_multiple.max(1));
        Self { group_ends: factor.group_ends().to_vec(), panel_rows, width: 1, block: 16 }
    }
}

/// What a sweep leaves behind.
#[derive(Clone, Debug)]
pub struct Swept<R> {
    /// The rounders of all panels, from the first row on.
    pub rounders: Vec<R>,
    /// `d (H + λI) dᵀ` for the error `d` of each row, without dead columns.
    pub row_losses: Vec<f64>,
}

/// Sweeps over a weight `[out, in]`; `start` makes the rounder of a panel from its range of rows.
///
/// Panels run in parallel on the current rayon pool; the result does not depend on the number of threads.
///
/// # Errors
///
/// [`Error::Features`] when factor and weight differ in width, [`Error::Groups`] when the plan's groups do not rise to
/// the number of columns, [`Error::Width`] for groups that are not whole vectors, [`Error::Diverged`] when compensated
/// weights leave the range of f32, and the errors of the rounder; of several panels the first one's.
pub fn sweep<R: ColumnRounder>(
    weight: ArrayView2<'_, f32>,
    factor: &Factor,
    plan: &SweepPlan,
    start: impl Fn(Range<usize>) -> R + Sync,
) -> Result<Swept<R>, R::Error> {
    let (rows, columns) = weight.dim();
    if factor.features() != columns {
        return Err(
            Error::Features { what: "the factored Hessian", expected: columns, found: factor.features() }.into()
        );
    }
    let width = plan.width.max(1);
    check_groups(&plan.group_ends, columns, width)?;
    let cuts = Cuts { upper: factor.upper(), ends: &plan.group_ends, block: plan.block.max(1).next_multiple_of(width) };
    let tree = cuts.span(0..columns);
    let panel_rows = plan.panel_rows.max(1);
    let one = |panel: usize| {
        let range = panel * panel_rows..rows.min((panel + 1) * panel_rows);
        let mut rounder = start(range.clone());
        let losses = sweep_panel(weight, range, factor, &tree, &mut rounder)?;
        Ok((rounder, losses))
    };
    let panels: Vec<Result<Panel<R>, R::Error>> = (0..rows.div_ceil(panel_rows)).into_par_iter().map(one).collect();
    let mut swept = Swept { rounders: Vec::with_capacity(panels.len()), row_losses: Vec::with_capacity(rows) };
    for panel in panels {
        let (rounder, losses) = panel?;
        swept.rounders.push(rounder);
        swept.row_losses.extend(losses);
    }
    Ok(swept)
}

/// A panel's rounder and the losses of its rows.
type Panel<R> = (R, Vec<f64>);

fn check_groups(ends: &[usize], columns: usize, width: usize) -> Result<(), Error> {
    let mut start = 0;
    for &end in ends {
        if end <= start {
            return Err(Error::Groups { expected: columns, found: end });
        }
        if !(end - start).is_multiple_of(width) {
            return Err(Error::Width { start, end, width });
        }
        start = end;
    }
    if start == columns { Ok(()) } else { Err(Error::Groups { expected: columns, found: start }) }
}

fn sweep_panel<R: ColumnRounder>(
    weight: ArrayView2<'_, f32>,
    range: Range<usize>,
    factor: &Factor,
    tree: &Span,
    rounder: &mut R,
) -> Result<Vec<f64>, R::Error> {
    let (rows, width) = (range.len(), rounder.width().max(1));
    let mut panel = gather(blocks::part(weight, range.clone(), 0..weight.ncols()), factor.order());
    let mut pass = Pass { rows, rounded: vec![0.0; width * rows] };
    pass.span(tree, &mut panel, rounder)?;

    let mut losses = vec![0.0; rows];
    for (errors, _) in panel.chunks_exact(rows).zip(factor.dead()).filter(|(_, dead)| !**dead) {
        for (loss, &e) in losses.iter_mut().zip(errors) {
            *loss += f64::from(e) * f64::from(e);
        }
    }
    for (row, loss) in losses.iter_mut().enumerate() {
        if !loss.is_finite() {
            return Err(Error::Diverged { row: range.start + row }.into());
        }
        *loss *= factor.unit();
    }
    Ok(losses)
}

/// The columns of some rows in the order of quantization, one after the other.
fn gather(weight: ArrayView2<'_, f32>, order: &[usize]) -> Vec<f32> {
    let mut panel = vec![0.0; weight.nrows() * order.len()];
    gather_into(weight, order, &mut panel);
    panel
}

fn gather_into(weight: ArrayView2<'_, f32>, order: &[usize], panel: &mut [f32]) {
    /// Columns written at a time, so that their cache lines stay.
    const STRIP: usize = 32;
    let rows = weight.nrows();
    for (strip, columns) in panel.chunks_mut(STRIP * rows).zip(order.chunks(STRIP)) {
        for (r, row) in weight.outer_iter().enumerate() {
            for (at, &column) in columns.iter().enumerate() {
                strip[at * rows + r] = row[column];
            }
        }
    }
}

/// A copy of the transposed matrix, row-major.
fn transposed(matrix: ArrayView2<'_, f32>) -> Array2<f32> {
    let (rows, columns) = matrix.dim();
    let order: Vec<usize> = (0..columns).collect();
    let mut out = Array2::zeros((columns, rows));
    if let Some(out) = out.as_slice_mut() {
        gather_into(matrix, &order, out);
    }
    out
}

/// A range of columns and how it is worked on.
struct Span {
    range: Range<usize>,
    is_group: bool,
    work: Work,
}

enum Work {
    /// Column by column, with the span's own block of `U`.
    Columns(Array2<f32>),
    /// First the left half, then its updates to the right half through `U[left, right]`, then the right half.
    ///
    /// The block of `U` is held transposed: what a sum of the product runs over lies side by side. Rows of `U` as they
    /// are would be read across, a few values a page, and made the products three times as slow.
    Halves { left: Box<Span>, transposed: Array2<f32>, right: Box<Span> },
}

/// Where spans are cut.
struct Cuts<'a> {
    upper: ArrayView2<'a, f32>,
    ends: &'a [usize],
    block: usize,
}

impl Cuts<'_> {
    fn span(&self, range: Range<usize>) -> Span {
        let work = match self.cut(&range) {
            None => Work::Columns(blocks::part(self.upper, range.clone(), range.clone()).to_owned()),
            Some(middle) => {
                let (left, right) = (range.start..middle, middle..range.end);
                let transposed = transposed(blocks::part(self.upper, left.clone(), right.clone()));
                Work::Halves { left: Box::new(self.span(left)), transposed, right: Box::new(self.span(right)) }
            }
        };
        Span { is_group: self.is_group(&range), range, work }
    }

    fn is_group(&self, range: &Range<usize>) -> bool {
        let group = self.ends.partition_point(|end| *end < range.end);
        let start = if group == 0 { 0 } else { self.ends[group - 1] };
        self.ends.get(group) == Some(&range.end) && start == range.start
    }

    /// At the end of a group near the middle; inside a group at a whole block; a block is not cut.
    fn cut(&self, range: &Range<usize>) -> Option<usize> {
        let middle = range.start + range.len() / 2;
        let after = self.ends.partition_point(|end| *end <= middle);
        let ends = [after.checked_sub(1), Some(after)].into_iter().flatten().filter_map(|i| self.ends.get(i).copied());
        let inside = ends.filter(|end| range.start < *end && *end < range.end);
        if let Some(end) = inside.min_by_key(|end| end.abs_diff(middle)) {
            return Some(end);
        }
        (range.len() > self.block).then(|| range.start + (range.len() / 2).next_multiple_of(self.block))
    }
}

/// One pass over the columns of one panel.
struct Pass {
    rows: usize,
    /// The rounded columns of one vector.
    rounded: Vec<f32>,
}

impl Pass {
    /// Quantizes the columns of a span, which have received the updates of all columns before it.
    fn span<R: ColumnRounder>(&mut self, span: &Span, values: &mut [f32], rounder: &mut R) -> Result<(), R::Error> {
        if span.is_group {
            rounder.begin_group(span.range.clone(), values)?;
        }
        match &span.work {
            Work::Columns(upper) => self.columns(span.range.start, upper.view(), values, rounder),
            Work::Halves { left, transposed, right } => {
                let (errors, later) = values.split_at_mut(left.range.len() * self.rows);
                self.span(left, errors, rounder)?;
                self.update(later, transposed.view(), errors);
                self.span(right, later, rounder)
            }
        }
    }

    /// `later −= Uᵀ · errors`, all columns of the right half at once.
    fn update(&self, later: &mut [f32], transposed: ArrayView2<'_, f32>, errors: &[f32]) {
        let (to, from) = transposed.dim();
        let errors = ArrayView2::from_shape((from, self.rows), errors);
        let later = ArrayViewMut2::from_shape((to, self.rows), later);
        debug_assert!(errors.is_ok() && later.is_ok(), "a span holds its columns times the rows of the panel");
        if let (Ok(errors), Ok(later)) = (errors, later) {
            quant_linalg::add_matmul(later, -1.0, transposed, errors);
        }
    }

    /// Steps 1 to 3 for the columns of a block that starts at `start`.
    fn columns<R: ColumnRounder>(
        &mut self,
        start: usize,
        upper: ArrayView2<'_, f32>,
        values: &mut [f32],
        rounder: &mut R,
    ) -> Result<(), R::Error> {
        let (rows, width) = (self.rows, rounder.width().max(1));
        for first in (0..upper.nrows()).step_by(width) {
            rounder.round(start + first, &values[first * rows..(first + width) * rows], &mut self.rounded)?;
            for (column, rounded) in (first..).zip(self.rounded.chunks_exact(rows)) {
                let (done, later) = values.split_at_mut((column + 1) * rows);
                let errors = &mut done[column * rows..];
                let upper = upper.row(column);
                let diagonal = upper[column];
                for (w, q) in errors.iter_mut().zip(rounded) {
                    *w = (*w - q) / diagonal;
                }
                for (later, &u) in later.chunks_exact_mut(rows).zip(upper.iter().skip(column + 1)) {
                    for (w, e) in later.iter_mut().zip(&*errors) {
                        *w -= u * e;
                    }
                }
            }
        }
        Ok(())
    }
}

//! Rounding the columns of a panel to a grid.

use super::{ColumnRounder, Factor, HessianClip};
use crate::{Error, MseClip, blocks, mse};
use ndarray::{Array2, ArrayView2};
use quant_core::Grid;
use std::ops::Range;

/// How the parameters of groups are found.
#[derive(Clone, Copy, Debug)]
pub enum Fit<'a, P> {
    /// From the columns as they are when the sweep reaches the group.
    Dynamic(Search),
    /// They were fitted before, to the original weight: by block row and block column.
    Static(&'a [P]),
}

/// How the range of a group is searched.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Search {
    /// The range of the values.
    None,
    /// The range with the least error of the weights.
    Mse(MseClip),
    /// The range with the least error of the outputs.
    Hessian(HessianClip),
}

/// How the rows and columns of a weight form blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Rows of a block.
    pub rows: usize,
    /// Columns of a block.
    pub columns: usize,
}

/// Rounds the columns of a panel of rows to a [`Grid`] and gathers codes and parameters.
#[derive(Clone, Debug)]
pub struct GridColumns<'a, G: Grid> {
    grid: &'a G,
    fit: Fit<'a, G::Params>,
    block: BlockSize,
    factor: &'a Factor,
    rows: Range<usize>,
    /// By position divided by the width, then row of the panel.
    codes: Vec<Vec<u32>>,
    /// By block column, then block row of the panel.
    params: Vec<Vec<G::Params>>,
}

impl<'a, G: Grid> GridColumns<'a, G> {
    /// The rounder of the panel of `rows`, which starts on a whole block.
    pub fn new(grid: &'a G, fit: Fit<'a, G::Params>, block: BlockSize, factor: &'a Factor, rows: Range<usize>) -> Self {
        let block_columns = factor.features().div_ceil(block.columns);
        let mut params = vec![Vec::new(); block_columns];
        if let Fit::Static(all) = fit {
            for block_row in rows.start / block.rows..rows.end.div_ceil(block.rows) {
                for (column, params) in params.iter_mut().enumerate() {
                    params.push(all[block_row * block_columns + column].clone());
                }
            }
        }
        let codes = vec![Vec::new(); factor.features().div_ceil(grid.width())];
        Self { grid, fit, block, factor, rows, codes, params }
    }

    /// The codes of one column, row by row; `index` counts columns in the order of quantization, vectors of them where
    /// the grid has such.
    #[must_use]
    pub fn codes(&self, index: usize) -> &[u32] {
        &self.codes[index]
    }

    /// The parameters of the groups in one block column, one a block row.
    #[must_use]
    pub fn params(&self, block_column: usize) -> &[G::Params] {
        &self.params[block_column]
    }

    /// The rows of the panel.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The ranges of panel rows that share parameters.
    fn block_rows(&self) -> impl Iterator<Item = Range<usize>> + use<G> {
        let (rows, step) = (self.rows.len(), self.block.rows);
        (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
    }

    fn locate(&self, error: quant_core::Error, group: usize, block_row: usize) -> Error {
        if matches!(error, quant_core::Error::NonFinite { .. }) {
            return Error::Diverged { row: self.rows.start + block_row * self.block.rows };
        }
        let block_row = self.rows.start / self.block.rows + block_row;
        blocks::at_block(error, block_row * self.params.len() + group).into()
    }

    fn fit_each(
        &self,
        group: usize,
        values: &[f32],
        fit: impl Fn(&[f32]) -> Result<G::Params, quant_core::Error>,
    ) -> Result<Vec<G::Params>, Error> {
        let mut block = Vec::new();
        let mut params = Vec::new();
        for (block_row, rows) in self.block_rows().enumerate() {
            collect(values, self.rows.len(), rows, &mut block);
            params.push(fit(&block).map_err(|error| self.locate(error, group, block_row))?);
        }
        Ok(params)
    }

    /// The range with the least `‖(q − w) U⁻¹‖²` over the columns of the group, `U` its block of the factor: the error
    /// of the outputs when rounding to nearest inside the group, given that all later columns will make up for it.
    fn hessian_search(
        &self,
        clip: &HessianClip,
        group: usize,
        span: Range<usize>,
        values: &[f32],
    ) -> Result<Vec<G::Params>, Error> {
        let rows = self.rows.len();
        let upper = blocks::part(self.factor.upper(), span.clone(), span).mapv(f64::from);
        #[expect(clippy::cast_possible_truncation, reason = "errors are f32")]
        let inverse = quant_linalg::invert_lower(upper.t())?.mapv(|x| x as f32);
        let mut best: Vec<(f64, Option<G::Params>)> = vec![(f64::INFINITY, None); self.block_rows().count()];
        let mut codes = vec![0; rows];
        let mut differences = Array2::zeros((inverse.nrows(), rows));
        for factor in mse::shrinks(clip.grid, clip.max_shrink) {
            let params = self.fit_each(group, values, |block| self.grid.fit(block, factor))?;
            if let Some(differences) = differences.as_slice_mut() {
                let columns = values.chunks(rows * self.grid.width());
                for (values, out) in columns.zip(differences.chunks_mut(rows * self.grid.width())) {
                    self.round_column(values, &params, out, &mut codes);
                    out.iter_mut().zip(values).for_each(|(q, w)| *q -= w);
                }
            }
            let errors = quant_linalg::matmul(inverse.view(), differences.view());
            for ((best, params), rows) in best.iter_mut().zip(params).zip(self.block_rows()) {
                let loss = square_sum(blocks::part(errors.view(), 0..errors.nrows(), rows));
                if best.1.is_none() || loss < best.0 {
                    *best = (loss, Some(params));
                }
            }
        }
        Ok(best.into_iter().filter_map(|(_, params)| params).collect())
    }

    /// Rounds one vector of columns for all rows of the panel; `codes` has a place a row.
    fn round_column(&self, values: &[f32], params: &[G::Params], rounded: &mut [f32], codes: &mut [u32]) {
        let (rows, width, step) = (self.rows.len(), self.grid.width(), self.block.rows);
        if width == 1 && step == 1 {
            return self.grid.round_column(values, params, codes, rounded);
        }
        let (mut x, mut q) = (vec![0.0; width], vec![0.0; width]);
        for (row, code) in codes.iter_mut().enumerate() {
            for (k, x) in x.iter_mut().enumerate() {
                *x = values[k * rows + row];
            }
            let params = &params[row / step];
            *code = self.grid.encode(&x, params);
            self.grid.decode(*code, params, &mut q);
            for (k, q) in q.iter().enumerate() {
                rounded[k * rows + row] = *q;
            }
        }
    }
}

impl<G> ColumnRounder for GridColumns<'_, G>
where
    G: Grid + Sync,
    G::Params: PartialEq,
{
    type Error = Error;

    fn width(&self) -> usize {
        self.grid.width()
    }

    fn begin_group(&mut self, span: Range<usize>, values: &[f32]) -> Result<(), Error> {
        let Fit::Dynamic(search) = self.fit else { return Ok(()) };
        let group = self.factor.order()[span.start] / self.block.columns;
        self.params[group] = match search {
            Search::None => self.fit_each(group, values, |block| self.grid.fit(block, 1.0))?,
            Search::Mse(clip) => self.fit_each(group, values, |block| clip.fit(self.grid, block))?,
            Search::Hessian(clip) => self.hessian_search(&clip, group, span, values)?,
        };
        Ok(())
    }

    fn round(&mut self, position: usize, values: &[f32], rounded: &mut [f32]) -> Result<(), Error> {
        let column = self.factor.order()[position];
        let mut codes = vec![0; self.rows.len()];
        self.round_column(values, &self.params[column / self.block.columns], rounded, &mut codes);
        self.codes[position / self.grid.width()] = codes;
        Ok(())
    }
}

/// The values of some rows, row by row, from columns of `height` rows.
fn collect(values: &[f32], height: usize, rows: Range<usize>, out: &mut Vec<f32>) {
    out.clear();
    for row in rows {
        out.extend(values.iter().skip(row).step_by(height));
    }
}

fn square_sum(errors: ArrayView2<'_, f32>) -> f64 {
    errors.iter().map(|&e| f64::from(e) * f64::from(e)).sum()
}

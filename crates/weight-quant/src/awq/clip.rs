//! The search for clips of groups.

use crate::loss::row_sums;
use crate::{Error, OutputError, blocks, mse};
use ndarray::{Array2, ArrayView2};
use quant_core::{EncodeOptions, Format, FormatGrid, Grid, Layout, PackedTensor, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Which clips are tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipSearch {
    /// Steps in which the whole range would be used up.
    pub grid: u32,
    /// Share of the range that may be cut off, in [0, 1).
    pub max_shrink: f64,
}

impl Default for ClipSearch {
    fn default() -> Self {
        Self { grid: 20, max_shrink: 0.5 }
    }
}

/// A clipped and rounded weight.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Clipped {
    /// The weight.
    pub packed: PackedTensor<'static>,
    /// The share of the range that each group kept, by row and group.
    pub kept: Vec<f32>,
}

/// Clips each group of a weight `[out, in]` to the range with the least error of its share of the outputs, and rounds.
///
/// For `i = 0 … grid·max_shrink − 1`: clamp the group to `±m(1 − i/grid)`, `m` its largest magnitude, and round; the
/// error is `d G dᵀ` with `d` the difference from the unclamped group and `G` the group's block of the mean Gram
/// matrix. Where scales were folded into the weight, `inputs` are those divided by them ([`OutputError::scaled`]).
///
/// # Errors
///
/// [`Error::BlocksSpanRows`], [`Error::Features`] when widths differ, [`Error::Config`], [`Error::Core`] for what the
/// format refuses.
pub fn search_clips(
    weight: &impl Tensor,
    inputs: &OutputError,
    format: Format,
    config: &ClipSearch,
) -> Result<Clipped, Error> {
    mse::check_shrink(config.grid, config.max_shrink)?;
    let shape = weight.view().shape().to_vec();
    let layout = Layout::new(format, &shape)?;
    if layout.block_rows > 1 {
        return Err(Error::BlocksSpanRows { format: format.to_string() });
    }
    if inputs.features() != layout.columns {
        return Err(Error::Features { what: "the Gram matrix", expected: layout.columns, found: inputs.features() });
    }
    let mut values = blocks::read(weight)?;
    // The tensor scale, where there is one, is that of the whole range.
    let grid = FormatGrid::new(format, blocks::largest(&values))?;
    let one = |group: usize| {
        let columns = group * layout.block_columns..layout.columns.min((group + 1) * layout.block_columns);
        let gram = blocks::part(inputs.mean_gram(), columns.clone(), columns.clone());
        search_group(blocks::part(ArrayView2::from(&values), 0..layout.rows, columns), gram, &grid, config)
            .map_err(|(row, error)| blocks::at_block(error, row * layout.block_columns_count() + group).into())
    };
    let found = (0..layout.block_columns_count()).into_par_iter().map(one).collect::<Vec<Result<Vec<f32>, Error>>>();
    let by_group = blocks::first_error(found)?;
    let mut kept = Vec::with_capacity(layout.blocks());
    for (row, mut values) in values.outer_iter_mut().enumerate() {
        for (group, kept_of) in by_group.iter().enumerate() {
            let columns = group * layout.block_columns..layout.columns.min((group + 1) * layout.block_columns);
            clamp(values.iter_mut().skip(columns.start).take(columns.len()), kept_of[row]);
            kept.push(kept_of[row]);
        }
    }
    let options = EncodeOptions::default();
    let shaped = values.into_shape_with_order(shape);
    let packed = match &shaped {
        Ok(values) => PackedTensor::encode_on(&grid, values, options)?,
        Err(_) => return Err(quant_core::Error::Empty { shape: Vec::new() }.into()),
    };
    Ok(Clipped { packed, kept })
}

/// The best share of the range for each row of one group of columns.
fn search_group(
    values: ArrayView2<'_, f32>,
    gram: ArrayView2<'_, f32>,
    grid: &FormatGrid,
    config: &ClipSearch,
) -> Result<Vec<f32>, (usize, quant_core::Error)> {
    let mut best = vec![(f64::INFINITY, 1.0); values.nrows()];
    let mut differences = Array2::zeros(values.raw_dim());
    for kept in mse::shrinks(config.grid, config.max_shrink) {
        for (row, (values, mut out)) in values.outer_iter().zip(differences.outer_iter_mut()).enumerate() {
            let mut clamped = values.to_vec();
            clamp(clamped.iter_mut(), kept);
            let params = grid.fit(&clamped, 1.0).map_err(|error| (row, error))?;
            for ((out, &clamped), &w) in out.iter_mut().zip(&clamped).zip(values) {
                *out = grid.round(clamped, &params) - w;
            }
        }
        let product = quant_linalg::matmul(ArrayView2::from(&differences), gram);
        for (best, loss) in best.iter_mut().zip(row_sums(&differences, &product)) {
            if loss < best.0 {
                *best = (loss, kept);
            }
        }
    }
    Ok(best.into_iter().map(|(_, kept)| kept).collect())
}

/// Clamps values to a share of their largest magnitude.
fn clamp<'a>(values: impl Iterator<Item = &'a mut f32>, kept: f32) {
    let values: Vec<&mut f32> = values.collect();
    let limit = values.iter().fold(0.0_f32, |m, w| m.max(w.abs())) * kept;
    for w in values {
        *w = w.clamp(-limit, limit);
    }
}

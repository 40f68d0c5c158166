//! The blocks of a weight: fitting and rounding all of them by themselves.

use crate::Error;
use ndarray::{Array2, ArrayView2, Axis, Slice};
use quant_core::{BlockParams, FormatGrid, Layout, PackedTensor, Rounding, Scale, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// A weight as f32, `[out, in]`; leading axes together are rows.
pub(crate) fn read(weight: &impl Tensor) -> Result<Array2<f32>, Error> {
    let view = weight.view();
    let (rows, columns) = (view.rows(), view.row_len());
    let mut values = Array2::zeros((rows, columns));
    if columns > 0 {
        for (row, mut out) in values.outer_iter_mut().enumerate() {
            // Rows of a fresh array lie side by side.
            if let Some(out) = out.as_slice_mut() {
                view.read_row(row, out)?;
            }
        }
    }
    Ok(values)
}

/// Some rows and columns of a matrix.
pub(crate) fn part<T>(mut matrix: ArrayView2<'_, T>, rows: Range<usize>, columns: Range<usize>) -> ArrayView2<'_, T> {
    matrix.slice_axis_inplace(Axis(0), Slice::from(rows));
    matrix.slice_axis_inplace(Axis(1), Slice::from(columns));
    matrix
}

/// The largest magnitude of a weight, which fixes the tensor scale of formats that have one.
pub(crate) fn largest(weight: &Array2<f32>) -> f32 {
    weight.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Fits every block by itself; parameters by block row and block column.
pub(crate) fn fit(
    weight: &Array2<f32>,
    layout: &Layout,
    fit: impl Fn(&[f32]) -> Result<BlockParams, quant_core::Error> + Sync,
) -> Result<Vec<BlockParams>, Error> {
    let per_row = layout.block_columns_count();
    let one = |block: usize| {
        let (first_row, first_column) = (block / per_row * layout.block_rows, block % per_row * layout.block_columns);
        let rows = first_row..layout.rows.min(first_row + layout.block_rows);
        let columns = first_column..layout.columns.min(first_column + layout.block_columns);
        let values: Vec<f32> = part(ArrayView2::from(weight), rows, columns).iter().copied().collect();
        fit(&values).map_err(|error| at_block(error, block).into())
    };
    first_error((0..layout.blocks()).into_par_iter().map(one).collect())
}

/// All results, or the error of the first that failed, whatever the order in which they came.
pub(crate) fn first_error<T, E>(results: Vec<Result<T, E>>) -> Result<Vec<T>, E> {
    results.into_iter().collect()
}

/// Gives the error of one block its index in the tensor.
pub(crate) fn at_block(error: quant_core::Error, block: usize) -> quant_core::Error {
    match error {
        quant_core::Error::ScaleOverflow { value, .. } => quant_core::Error::ScaleOverflow { block, value },
        other => other,
    }
}

/// Rounds every value under the parameters of its block and packs the codes.
pub(crate) fn pack(
    weight: &Array2<f32>,
    shape: &[usize],
    grid: &FormatGrid,
    layout: &Layout,
    params: &[BlockParams],
) -> Result<PackedTensor<'static>, Error> {
    let mut codes = vec![0_u16; layout.rows * layout.columns];
    codes.par_chunks_exact_mut(layout.columns).enumerate().for_each(|(row, codes)| {
        let params = &params[row / layout.block_rows * layout.block_columns_count()..];
        for (column, (code, &x)) in codes.iter_mut().zip(weight.row(row)).enumerate() {
            *code = grid.encode_one(x, &params[column / layout.block_columns], Rounding::NearestEven, 0);
        }
    });
    Ok(PackedTensor::from_codes(grid.format(), shape, &codes, params, &second(grid, layout))?)
}

/// The section `second` that belongs to a grid; empty for double quantization, whose second level is found from the
/// parameters.
pub(crate) fn second(grid: &FormatGrid, layout: &Layout) -> Vec<f32> {
    if layout.second_len > 0 && grid.format().scale != Scale::Double { vec![grid.tensor_scale()] } else { Vec::new() }
}

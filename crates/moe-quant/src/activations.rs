//! Rounding of inputs, token by token.

use crate::Error;
use quant_core::{Block, Format, Scale, Shaped, fake_quantize};
use rayon::prelude::*;

/// Rounds each row of `width` elements as a tensor of its own, so that a token does not depend on its batch.
pub(crate) fn round_rows(format: Format, x: &[f32], width: usize) -> Result<Vec<f32>, Error> {
    let rows = x.len() / width.max(1);
    let scales_within_rows =
        matches!(format.block, Block::Row | Block::Group(_)) && !matches!(format.scale, Scale::E4m3(_) | Scale::Double);
    if rows == 0 {
        return Ok(Vec::new());
    }
    if scales_within_rows {
        return Ok(fake_quantize(format, &Shaped::new(x, &[rows, width])?)?);
    }
    let row = |row: &[f32]| Ok(fake_quantize(format, &Shaped::new(row, &[1, width])?)?);
    let rounded: Vec<Result<Vec<f32>, Error>> = x.par_chunks_exact(width).map(row).collect();
    Ok(rounded.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

//! One tensor from values to codes, with the error that this made.

use crate::Error;
use quant_core::metrics::ErrorStats;
use quant_core::{EncodeOptions, Format, FormatGrid, Linear, PackedTensor, Shaped};
use rayon::prelude::*;
use std::path::Path;
use weight_quant::{MseClip, RtnConfig, rtn};

/// Rows that are decoded and compared together. Fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 64;

/// Rounds a tensor to a format and measures the error; `file` and `name` are for messages.
///
/// `amax` is the largest magnitude that the scale of the whole tensor is made for, where a format has one and it is
/// not that of this tensor.
pub(crate) fn encode(
    file: &Path,
    name: &str,
    values: &[f32],
    shape: &[usize],
    format: Format,
    amax: Option<f32>,
) -> Result<(PackedTensor<'static>, ErrorStats), Error> {
    let encoded = Shaped::new(values, shape).and_then(|tensor| {
        let packed = match amax {
            None => PackedTensor::encode(format, &tensor)?,
            Some(amax) => PackedTensor::encode_on(&FormatGrid::new(format, amax)?, &tensor, EncodeOptions::default())?,
        };
        let errors = measure(values, &packed)?;
        Ok((packed, errors))
    });
    encoded.map_err(|source| Error::Tensor { file: file.to_owned(), tensor: name.to_owned(), source: source.into() })
}

/// The same after a search for the range of each block that makes the error least.
pub(crate) fn encode_searched(
    file: &Path,
    name: &str,
    values: &[f32],
    shape: &[usize],
    format: Format,
    clip: &MseClip,
) -> Result<(PackedTensor<'static>, ErrorStats), Error> {
    let method = |source| Error::Method { file: file.to_owned(), tensor: name.to_owned(), source: Box::new(source) };
    let tensor = Shaped::new(values, shape).map_err(|error| method(error.into()))?;
    let config = RtnConfig { clip: Some(*clip) };
    let packed = rtn(&tensor, format, &config).map_err(method)?;
    let errors = measure(values, &packed).map_err(|error| method(error.into()))?;
    Ok((packed, errors))
}

/// Compares values with their packed form, some rows at a time: the decoded tensor is never whole in memory.
pub(crate) fn measure(values: &[f32], packed: &PackedTensor<'_>) -> Result<ErrorStats, quant_core::Error> {
    let columns = packed.layout().columns;
    in_bands(values, columns, |row, decoded| packed.decode_row(row, decoded))
}

/// Compares values with what a compressed weight in any form decodes to.
pub(crate) fn measure_linear(values: &[f32], linear: &dyn Linear) -> Result<ErrorStats, quant_core::Error> {
    let (columns, dense) = (linear.in_features(), linear.to_dense()?);
    in_bands(values, columns, |row, decoded| {
        let found = dense.get(row * columns..).and_then(|rest| rest.get(..columns));
        decoded.copy_from_slice(found.ok_or(quant_core::Error::Row { row, rows: linear.out_features() })?);
        Ok(())
    })
}

/// Compares values with decoded rows, band by band.
fn in_bands(
    values: &[f32],
    columns: usize,
    row: impl Fn(usize, &mut [f32]) -> Result<(), quant_core::Error> + Sync,
) -> Result<ErrorStats, quant_core::Error> {
    let parts = values.par_chunks((ROWS * columns).max(1)).enumerate().map(|(part, values)| {
        let (mut stats, mut decoded) = (ErrorStats::default(), vec![0.0; columns]);
        for (at, values) in values.chunks_exact(columns.max(1)).enumerate() {
            row(part * ROWS + at, &mut decoded)?;
            stats.push(values, &decoded)?;
        }
        Ok(stats)
    });
    let parts: Result<Vec<ErrorStats>, quant_core::Error> = parts.collect();
    let mut all = ErrorStats::default();
    for part in parts? {
        all.merge(&part);
    }
    Ok(all)
}

/// Largest magnitude; values that are not finite do not count, encoding refuses them.
pub(crate) fn largest_magnitude(values: &[f32]) -> f32 {
    values.iter().map(|x| x.abs()).filter(|x| x.is_finite()).fold(0.0, f32::max)
}

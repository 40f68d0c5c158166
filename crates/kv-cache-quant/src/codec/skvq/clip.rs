//! The clip factor of each group.

use super::{ReorderPlan, SkvqConfig, encode, fit};
use crate::Error;

/// For every group the factor of `grid` whose codes come closest to the rows, by the sum of squared errors over all
/// tokens; of equals the largest. `rows` is `[tokens, channels]`; a few hundred tokens do.
///
/// The paper minimises the error of the attention output, see
/// [`search_clip_by_attention`](super::search_clip_by_attention); its code has a constant per run. This is the squared
/// error of the rows with scales as they will be stored.
///
/// # Errors
///
/// [`Error::Shape`] when the rows are not whole tokens, [`Error::Unsupported`] when the grid is empty or leaves (0, 1],
/// [`Error::Format`] when a scale cannot be stored.
pub fn search_clip(rows: &[f32], plan: &ReorderPlan, config: SkvqConfig, grid: &[f32]) -> Result<Vec<f32>, Error> {
    let channels = plan.channels();
    if !rows.len().is_multiple_of(channels) {
        return Err(Error::Shape { what: "rows to clip", expected: channels, found: rows.len() });
    }
    let grid = descending(config, grid)?;
    let search = |range: std::ops::Range<usize>| {
        let group = &plan.order()[range];
        let mut best = (1.0, f64::INFINITY);
        for &alpha in &grid {
            let error = error(rows, channels, group, config, alpha)?;
            if error < best.1 {
                best = (alpha, error);
            }
        }
        Ok(best.0)
    };
    plan.ranges().map(search).collect()
}

/// The checked factors, the largest first.
pub(super) fn descending(config: SkvqConfig, grid: &[f32]) -> Result<Vec<f32>, Error> {
    if grid.is_empty() || grid.iter().any(|alpha| !(*alpha > 0.0 && *alpha <= 1.0)) {
        let found = format!("{grid:?}");
        return Err(Error::Unsupported {
            what: "grid of clip factors",
            found,
            supported: "numbers above 0, at most 1",
        });
    }
    config.levels.check()?;
    let mut grid = grid.to_vec();
    grid.sort_by(|a, b| b.total_cmp(a));
    Ok(grid)
}

fn error(rows: &[f32], channels: usize, group: &[u32], config: SkvqConfig, alpha: f32) -> Result<f64, Error> {
    let (mut meta, max) = (vec![0; 2 * config.meta.bytes()], config.levels.max_code());
    let (mut values, mut sum) = (Vec::with_capacity(group.len()), 0.0);
    for row in rows.chunks_exact(channels) {
        values.clear();
        values.extend(group.iter().map(|&channel| row[channel as usize]));
        let (scale, zero) = fit(config, &values, alpha, &mut meta)?;
        for &x in &values {
            let decoded = f32::from(encode(x, scale, zero, max)) * scale + zero;
            sum += (f64::from(x) - f64::from(decoded)).powi(2);
        }
    }
    Ok(sum)
}

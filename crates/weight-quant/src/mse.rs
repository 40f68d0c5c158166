//! Clip search by weight error: the range of a group is shrunk step by step, the range with the least error wins.
//!
//! For `i = 0, 1, …`: `p = 1 − i/grid`, fit the group with its range times `p`, `error = Σ |ŵ − w|^norm`; keep the
//! first `p` with the least error. The `--mse` option of GPTQ (arXiv 2210.17323, reference code), which is also the
//! `w_clip` of QuaRot; `max_shrink` 0.2 with `patience` 5 is the observer of llm-compressor.

use crate::Error;
use quant_core::Grid;
use serde::{Deserialize, Serialize};

/// Which shrunken ranges are tried and how their errors are measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MseClip {
    /// Steps in which the whole range would be used up.
    pub grid: u32,
    /// Share of the range that may be cut off, in [0, 1).
    pub max_shrink: f64,
    /// Exponent of the error.
    pub norm: f64,
    /// Steps without improvement after which the search ends; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
}

impl Default for MseClip {
    fn default() -> Self {
        Self { grid: 100, max_shrink: 0.8, norm: 2.4, patience: None }
    }
}

impl MseClip {
    /// Checks the ranges of the options.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        check_shrink(self.grid, self.max_shrink)?;
        if !(self.norm.is_finite() && self.norm > 0.0) {
            return Err(Error::Config { option: "norm", value: self.norm, limits: "finite and above 0" });
        }
        Ok(())
    }

    /// Fits a group of values to a grid under the best range.
    ///
    /// The group is cut into vectors of [`Grid::width`] values; it holds whole ones.
    ///
    /// ```
    /// use quant_core::{Format, FormatGrid, Grid};
    /// use weight_quant::MseClip;
    /// let grid = FormatGrid::new("int2-full-f32".parse()?, 0.0)?;
    /// // One outlier: giving it up serves the others.
    /// let group = [1.6, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5];
    /// let (plain, clipped) = (grid.fit(&group, 1.0)?, MseClip::default().fit(&grid, &group)?);
    /// assert!(clipped.scale < plain.scale);
    /// # Ok::<(), quant_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Grid::fit`].
    pub fn fit<G>(&self, grid: &G, group: &[f32]) -> Result<G::Params, quant_core::Error>
    where
        G: Grid,
        G::Params: PartialEq,
    {
        let mut best = grid.fit(group, 1.0)?;
        let mut least = self.error(grid, group, &best, f64::INFINITY);
        let mut last = best.clone();
        let mut since_best = 0;
        for clip in shrinks(self.grid, self.max_shrink).skip(1) {
            if self.patience.is_some_and(|patience| since_best >= patience) {
                break;
            }
            since_best += 1;
            let params = grid.fit(group, clip)?;
            // Power-of-two scales stay the same over many steps.
            if params == last {
                continue;
            }
            let error = self.error(grid, group, &params, least);
            if error < least {
                (best, least, since_best) = (params.clone(), error, 0);
            }
            last = params;
        }
        Ok(best)
    }

    /// `Σ |ŵ − w|^norm`, or infinity as soon as it is known not to be below `limit`.
    fn error<G: Grid>(&self, grid: &G, group: &[f32], params: &G::Params, limit: f64) -> f64 {
        /// Values after which the sum is compared with the limit.
        const STRETCH: usize = 16;
        let width = grid.width();
        let mut rounded = vec![0.0; width];
        let mut sum = 0.0;
        for stretch in group.chunks(STRETCH * width) {
            for x in stretch.chunks_exact(width) {
                grid.decode(grid.encode(x, params), params, &mut rounded);
                for (x, q) in x.iter().zip(&rounded) {
                    sum += power(f64::from((q - x).abs()), self.norm);
                }
            }
            if sum >= limit {
                return f64::INFINITY;
            }
        }
        sum
    }
}

fn power(x: f64, norm: f64) -> f64 {
    if norm == 2.0 { x * x } else { x.powf(norm) }
}

/// The factors `1 − i/grid` for `i < grid·max_shrink`, at least the factor 1.
pub(crate) fn shrinks(grid: u32, max_shrink: f64) -> impl Iterator<Item = f32> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most `grid`")]
    let steps = ((f64::from(grid) * max_shrink) as u32).max(1);
    #[expect(clippy::cast_possible_truncation, reason = "the factor is an f32, as in the reference")]
    (0..steps).map(move |i| (1.0 - f64::from(i) / f64::from(grid)) as f32)
}

pub(crate) fn check_shrink(grid: u32, max_shrink: f64) -> Result<(), Error> {
    if grid == 0 {
        return Err(Error::Config { option: "grid", value: 0.0, limits: "at least 1" });
    }
    if !(0.0..1.0).contains(&max_shrink) {
        return Err(Error::Config { option: "max_shrink", value: max_shrink, limits: "at least 0 and below 1" });
    }
    Ok(())
}

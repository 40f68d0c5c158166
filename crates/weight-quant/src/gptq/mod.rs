//! GPTQ (arXiv 2210.17323): rounding that pushes the error of each column into the columns to come.
//!
//! | file | what |
//! |---|---|
//! | `hessian.rs` | steps 1–2 and 4–6: Hessian, dead columns, order, damping, factor |
//! | `order.rs` | the orders of columns |
//! | `sweep.rs` | step 7: the sweep over columns, for anything that rounds columns |
//! | `columns.rs` | rounding columns to a [`quant_core::Grid`], fitting groups |

mod columns;
mod hessian;
mod order;
mod sweep;

pub use columns::{BlockSize, Fit, GridColumns, Search};
pub use hessian::{Factor, Fallback, Hessian};
pub use order::Order;
pub use sweep::{ColumnRounder, SweepPlan, Swept, sweep};

use crate::{Error, MseClip, RtnConfig, blocks, mse, rtn};
use ndarray::{Array2, ArrayView2};
use quant_calib::{Gram, Needs};
use quant_core::{Block, BlockParams, Format, FormatGrid, Layout, PackedTensor, Scale, Tensor};
use serde::{Deserialize, Serialize};

/// When the scales of groups are fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Groups {
    /// When the sweep reaches the group, to the weights as they are then (the paper).
    #[default]
    Dynamic,
    /// Before the sweep, to the original weight.
    Static,
}

/// How the range of a group is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Clip {
    /// The range of the values.
    #[default]
    None,
    /// Clip search by the error of the weights.
    Mse(MseClip),
    /// Clip search by the error of the outputs.
    Hessian(HessianClip),
}

/// Clip search by the error of the outputs, as in the GPTQ script of Marlin (IST-DASLab/marlin): for each shrunken
/// range the group is rounded to nearest, and the error `‖(q − w)·U⁻¹‖²` decides, `U` the group's block of the factor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HessianClip {
    /// Steps in which the whole range would be used up.
    pub grid: u32,
    /// Share of the range that may be cut off, in [0, 1).
    pub max_shrink: f64,
}

impl Default for HessianClip {
    fn default() -> Self {
        Self { grid: 100, max_shrink: 0.75 }
    }
}

/// How GPTQ quantizes a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GptqConfig {
    /// Share of the mean diagonal of the Hessian that is added to its diagonal, 0 to 1.
    pub damp: f64,
    /// The order in which columns are quantized.
    pub order: Order,
    /// When scales are fitted. Scales of the whole tensor and double-quantized magnitudes are always fitted before.
    pub groups: Groups,
    /// How the range of a group is chosen.
    pub clip: Clip,
    /// Tokens below which a weight is rounded to nearest instead.
    pub min_tokens: u64,
}

impl Default for GptqConfig {
    fn default() -> Self {
        Self { damp: 0.01, order: Order::Natural, groups: Groups::Dynamic, clip: Clip::None, min_tokens: 1 }
    }
}

impl GptqConfig {
    /// The statistics it needs: the Gram matrix of the inputs.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs::gram()
    }

    /// Checks the ranges of the options.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        hessian::check_damp(self.damp)?;
        match &self.clip {
            Clip::None => Ok(()),
            Clip::Mse(clip) => clip.validate(),
            Clip::Hessian(clip) => mse::check_shrink(clip.grid, clip.max_shrink),
        }
    }

    /// Checks that a weight of `columns` columns in a format can be quantized this way, without data.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], [`Error::NeedsGroupIndex`], [`Error::ClipNeedsDynamicGroups`], and those of
    /// [`Layout::new`].
    pub fn check(&self, format: Format, columns: usize) -> Result<(), Error> {
        self.validate()?;
        let layout = Layout::new(format, &[1, columns])?;
        if self.order == Order::ActOrder
            && layout.block_columns_count() > 1
            && self.groups_of(format) == Groups::Dynamic
        {
            return Err(Error::NeedsGroupIndex { order: self.order, format: format.to_string() });
        }
        if matches!(self.clip, Clip::Hessian(_)) && self.groups_of(format) == Groups::Static {
            return Err(Error::ClipNeedsDynamicGroups { format: format.to_string() });
        }
        Ok(())
    }

    /// When the scales of a format are fitted under this configuration.
    #[must_use]
    pub fn groups_of(&self, format: Format) -> Groups {
        if format.block == Block::Tensor || format.scale == Scale::Double { Groups::Static } else { self.groups }
    }
}

/// A quantized weight and what is to be said about it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gptq {
    /// The weight.
    pub packed: PackedTensor<'static>,
    /// What happened.
    pub report: GptqReport,
}

/// What happened while a weight was quantized.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GptqReport {
    /// `tr(D (H + λI) Dᵀ)` with `D = W − Ŵ` and `H` the mean of `x xᵀ`: the mean squared error of the outputs of a
    /// token, summed over outputs, and the damping's share. Dead columns cost nothing. With the reference's
    /// `H = 2·mean(x xᵀ)` this is the loss it prints. Absent after a fallback.
    pub loss: Option<f64>,
    /// The share of the mean diagonal that was added in the end; absent after a fallback.
    pub damp: Option<f64>,
    /// Input channels that were always zero; their weights were rounded to nearest.
    pub dead_columns: usize,
    /// Why the whole weight was rounded to nearest, if it was.
    pub fallback: Option<Fallback>,
}

/// Quantizes a weight `[out, in]` to a format by GPTQ, given the Gram matrix of its inputs.
///
/// Weights without enough tokens are rounded to nearest, with the clip search by weight error if one is configured; the
/// report says so. Weights that share inputs share the work of [`Hessian::prepare`] through [`gptq_prepared`].
///
/// Departures from the reference code: see [`Factor`]; groups smaller than the reference's block of 128 are
/// fitted to columns that have received every update; the sums are made in another order.
///
/// ```
/// use quant_calib::Gram;
/// use quant_core::{Format, Shaped};
/// use weight_quant::gptq::{GptqConfig, gptq};
/// // Two inputs that always go together: what one weight loses the other gains.
/// let mut gram = Gram::new(2);
/// gram.add(&[1.0, 1.0, -2.0, -2.0, 0.5, 0.4], None)?;
/// let weight = Shaped::new(&[0.4_f32, 0.4, 7.0, 0.3], &[2, 2])?;
/// let format: Format = "int4-tensor-f32".parse()?;
///
/// let result = gptq(&weight, &gram, format, &GptqConfig::default())?;
/// assert_eq!(result.packed.decode(), [0.0, 1.0, 7.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// Those of [`GptqConfig::check`], [`Hessian::prepare`] and [`sweep()`], [`Error::Features`] when Gram matrix and
/// weight differ in width, and [`Error::Core`] for weights or scales that cannot be quantized.
pub fn gptq(weight: &impl Tensor, gram: &Gram, format: Format, config: &GptqConfig) -> Result<Gptq, Error> {
    let (expected, found) = (weight.view().row_len(), gram.features());
    if expected != found {
        return Err(Error::Features { what: "the Gram matrix", expected, found });
    }
    config.check(format, expected)?;
    gptq_prepared(weight, &Hessian::prepare(gram, format, config)?, format, config)
}

/// As [`gptq()`], with a Hessian that was prepared for this format and configuration.
///
/// # Errors
///
/// As [`gptq()`], and [`Error::Groups`] when the Hessian was prepared for other groups in the order `group-aware`.
pub fn gptq_prepared(
    weight: &impl Tensor,
    hessian: &Hessian,
    format: Format,
    config: &GptqConfig,
) -> Result<Gptq, Error> {
    config.check(format, weight.view().row_len())?;
    let factor = match hessian {
        Hessian::Factored(factor) => factor,
        Hessian::Fallback(reason) => return fall_back(weight, *reason, format, config),
    };
    let shape = weight.view().shape().to_vec();
    let layout = Layout::new(format, &shape)?;
    let values = blocks::read(weight)?;
    let setting = Setting::new(&values, &shape, &layout, format, config)?;
    let fit = match (&setting.fixed, config.clip) {
        (Some(params), _) => Fit::Static(params.as_slice()),
        (None, Clip::None) => Fit::Dynamic(Search::None),
        (None, Clip::Mse(clip)) => Fit::Dynamic(Search::Mse(clip)),
        (None, Clip::Hessian(clip)) => Fit::Dynamic(Search::Hessian(clip)),
    };
    let block = BlockSize { rows: layout.block_rows, columns: layout.block_columns };
    // Panels hold whole blocks, or lie inside the only one.
    let row_multiple = if layout.block_rows_count() == 1 && setting.fixed.is_some() { 1 } else { block.rows };
    let mut plan = SweepPlan::new(factor, layout.rows, row_multiple);
    if setting.fixed.is_some() {
        plan.group_ends = vec![layout.columns];
    } else {
        // A natural order serves any groups, an order of groups only its own.
        plan.group_ends = config.order.group_ends(factor.order(), layout.block_columns);
        if plan.group_ends.len() != layout.block_columns_count() {
            return Err(Error::Groups { expected: layout.block_columns_count(), found: plan.group_ends.len() });
        }
    }
    let swept = sweep(ArrayView2::from(&values), factor, &plan, |rows| {
        GridColumns::new(&setting.grid, fit, block, factor, rows)
    })?;

    let report = GptqReport {
        loss: Some(swept.row_losses.iter().sum()),
        damp: Some(factor.damp()),
        dead_columns: factor.dead().iter().filter(|dead| **dead).count(),
        fallback: None,
    };
    let params = match &setting.fixed {
        Some(params) => params.clone(),
        None => by_block_row(&swept.rounders, &layout),
    };
    let codes = by_row(&swept.rounders, factor.order(), &layout);
    let packed = PackedTensor::from_codes(format, &shape, &codes, &params, &setting.second)?;
    Ok(Gptq { packed, report })
}

/// The grid of a weight and, where groups are static, the parameters of all blocks.
struct Setting {
    grid: FormatGrid,
    fixed: Option<Vec<BlockParams>>,
    second: Vec<f32>,
}

impl Setting {
    fn new(
        weight: &Array2<f32>,
        shape: &[usize],
        layout: &Layout,
        format: Format,
        config: &GptqConfig,
    ) -> Result<Self, Error> {
        let grid = FormatGrid::new(format, blocks::largest(weight))?;
        if config.groups_of(format) == Groups::Dynamic {
            return Ok(Self { grid, fixed: None, second: blocks::second(&grid, layout) });
        }
        let fitted = match &config.clip {
            Clip::Mse(clip) => blocks::fit(weight, layout, |group| clip.fit(&grid, group))?,
            _ => blocks::fit(weight, layout, |group| quant_core::Grid::fit(&grid, group, 1.0))?,
        };
        if format.scale != Scale::Double {
            return Ok(Self { grid, fixed: Some(fitted), second: blocks::second(&grid, layout) });
        }
        // The second level is found first, so that codes are chosen under the magnitudes that are stored.
        let packed = blocks::pack(weight, shape, &grid, layout, &fitted)?;
        let per_row = layout.block_columns_count();
        let stored = (0..layout.blocks()).map(|block| {
            let scale = packed.params(block / per_row, block % per_row).scale;
            grid.params_from_stored(scale.to_bits(), 0.0)
        });
        Ok(Self { grid, fixed: Some(stored.collect()), second: packed.second().to_vec() })
    }
}

fn fall_back(weight: &impl Tensor, reason: Fallback, format: Format, config: &GptqConfig) -> Result<Gptq, Error> {
    let clip = if let Clip::Mse(clip) = config.clip { Some(clip) } else { None };
    let packed = rtn(weight, format, &RtnConfig { clip })?;
    let dead_columns = if reason == Fallback::ZeroInputs { weight.view().row_len() } else { 0 };
    Ok(Gptq { packed, report: GptqReport { dead_columns, fallback: Some(reason), ..GptqReport::default() } })
}

/// The codes of all panels, row-major.
fn by_row(panels: &[GridColumns<'_, FormatGrid>], order: &[usize], layout: &Layout) -> Vec<u16> {
    /// Columns read at a time, so that their cache lines stay.
    const STRIP: usize = 32;
    let mut codes = vec![0; layout.rows * layout.columns];
    for panel in panels {
        for (strip, columns) in order.chunks(STRIP).enumerate() {
            let strip: Vec<&[u32]> = (0..columns.len()).map(|at| panel.codes(strip * STRIP + at)).collect();
            for (at, row) in panel.rows().enumerate() {
                let out = &mut codes[row * layout.columns..][..layout.columns];
                for (&column, codes) in columns.iter().zip(&strip) {
                    #[expect(clippy::cast_possible_truncation, reason = "codes of formats have at most 16 bits")]
                    let code = codes[at] as u16;
                    out[column] = code;
                }
            }
        }
    }
    codes
}

/// The parameters of all panels by block row and block column.
fn by_block_row(panels: &[GridColumns<'_, FormatGrid>], layout: &Layout) -> Vec<BlockParams> {
    let mut params = Vec::with_capacity(layout.blocks());
    for panel in panels {
        for block_row in 0..panel.rows().len().div_ceil(layout.block_rows) {
            params.extend((0..layout.block_columns_count()).map(|column| panel.params(column)[block_row]));
        }
    }
    params
}

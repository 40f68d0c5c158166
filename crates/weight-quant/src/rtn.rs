//! Round to nearest: every weight by itself, under the scale of its block.

use crate::{Error, MseClip, blocks};
use quant_core::{Format, FormatGrid, Layout, PackedTensor, Tensor};
use serde::{Deserialize, Serialize};

/// How round-to-nearest chooses the range of a block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RtnConfig {
    /// Search for a smaller range than that of the values; absent: the range of the values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<MseClip>,
}

impl RtnConfig {
    /// The statistics it needs: none.
    #[must_use]
    pub fn needs(&self) -> quant_calib::Needs {
        quant_calib::Needs::nothing()
    }
}

/// Rounds a weight `[out, in]` to the nearest codes of a format.
///
/// Without a clip search this is [`PackedTensor::encode`]. With one the range of each block is the one with the least
/// error ([`MseClip`]); formats with a tensor scale keep that of the whole range.
///
/// ```
/// use quant_core::{Format, Shaped, metrics::ErrorStats};
/// use weight_quant::{MseClip, RtnConfig, rtn};
/// let values: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0).powi(3)).collect();
/// let weight = Shaped::new(&values, &[2, 128])?;
/// let format: Format = "int3-g128-asym-f32".parse()?;
///
/// let plain = rtn(&weight, format, &RtnConfig::default())?;
/// let clip = MseClip { norm: 2.0, ..MseClip::default() };
/// let clipped = rtn(&weight, format, &RtnConfig { clip: Some(clip) })?;
/// let noise = |decoded: &[f32]| ErrorStats::of(&values, decoded).map(|stats| stats.noise());
/// assert!(noise(&clipped.decode())? <= noise(&plain.decode())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Core`] for what [`PackedTensor::encode`] refuses, [`Error::Config`].
pub fn rtn(weight: &impl Tensor, format: Format, config: &RtnConfig) -> Result<PackedTensor<'static>, Error> {
    let Some(clip) = &config.clip else {
        return Ok(PackedTensor::encode(format, weight)?);
    };
    clip.validate()?;
    let shape = weight.view().shape().to_vec();
    let layout = Layout::new(format, &shape)?;
    let values = blocks::read(weight)?;
    let grid = FormatGrid::new(format, blocks::largest(&values))?;
    let params = blocks::fit(&values, &layout, |group| clip.fit(&grid, group))?;
    blocks::pack(&values, &shape, &grid, &layout, &params)
}

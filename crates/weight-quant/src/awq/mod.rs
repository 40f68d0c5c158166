//! AWQ (arXiv 2306.00978): scales salient input channels up before rounding, then searches clips.
//!
//! | file | what |
//! |---|---|
//! | `scale.rs` | the search for channel scales |
//! | `clip.rs` | the search for clips of groups |

mod clip;
mod scale;

pub use clip::{ClipSearch, Clipped, search_clips};
pub use scale::{ScaleSearch, Scales, gram_loss, search_scales};

use crate::smoothquant::fold_scales;
use crate::{Error, OutputError};
use quant_calib::{Gram, Needs};
use quant_core::{Format, PackedTensor, Shaped, Tensor};
use serde::{Deserialize, Serialize};

/// How AWQ quantizes weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AwqConfig {
    /// The search for channel scales.
    pub scale: ScaleSearch,
    /// The search for clips; absent: no clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipSearch>,
}

impl Default for AwqConfig {
    fn default() -> Self {
        Self { scale: ScaleSearch::default(), clip: Some(ClipSearch::default()) }
    }
}

impl AwqConfig {
    /// The statistics it needs: mean magnitudes of channels and the Gram matrix of the inputs.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs { channels: true, ..Needs::gram() }
    }
}

/// Linear layers that share their input, quantized by AWQ.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Awq {
    /// What the input channels are to be divided by, and how that was found.
    pub scales: Scales,
    /// The weights, already multiplied by the scales.
    pub packed: Vec<PackedTensor<'static>>,
    /// `Σ mean ‖(W − Ŵ) x‖²` of the result.
    pub loss: f64,
}

/// Quantizes linear layers `[out, in]` that share their input: scale search by the error of their own outputs, folding,
/// clip search, rounding.
///
/// The steps are public by themselves, for the cases where the paper does otherwise: the scales of `q`, `k`, `v` and of
/// `gate`, `up` are judged by the output of the whole attention block or MLP ([`search_scales`] with a loss of the
/// caller's), and `q` and `k` are not clipped.
///
/// Departure from the paper: errors are those over all calibration tokens, through the Gram matrix, where the reference
/// takes a sample of at most 512.
///
/// ```
/// use quant_calib::{ChannelStats, Gram};
/// use quant_core::{Format, Shaped};
/// use weight_quant::awq::{AwqConfig, awq};
/// // The first channel is an outlier.
/// let outlier = |i| if i % 8 == 0 { 50.0 } else { 1.0 };
/// let rows: Vec<f32> = (0..64 * 8).map(|i| ((i * 7 % 13) as f32 - 6.0) * outlier(i)).collect();
/// let mut gram = Gram::new(8);
/// gram.add(&rows, None)?;
/// let mut channels = ChannelStats::new(8);
/// channels.add(&rows)?;
/// let values: Vec<f32> = (0..32).map(|i| ((i * 5 % 11) as f32 - 5.0) * 0.1).collect();
/// let weight = Shaped::new(&values, &[4, 8])?;
/// let result = awq(&[weight], &gram, &channels.abs_mean(), "int3-g8-asym".parse::<Format>()?, &AwqConfig::default())?;
/// assert!(result.loss < result.scales.losses[0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// Those of [`search_scales`], [`search_clips`] and [`PackedTensor::encode`]; [`Error::NoTokens`].
pub fn awq<W: Tensor>(
    weights: &[W],
    gram: &Gram,
    abs_mean: &[f64],
    format: Format,
    config: &AwqConfig,
) -> Result<Awq, Error> {
    let inputs = OutputError::new(gram)?;
    let scales = search_scales(weights, abs_mean, format, &config.scale, gram_loss(weights, &inputs))?;
    let scaled_inputs = inputs.scaled(&scales.scales);
    let (mut packed, mut loss) = (Vec::with_capacity(weights.len()), 0.0);
    for weight in weights {
        let folded = fold_scales(weight, &scales.scales)?;
        let shape = weight.view().shape().to_vec();
        let tensor = Shaped::new(&folded, &shape)?;
        let result = match &config.clip {
            Some(clip) => search_clips(&tensor, &scaled_inputs, format, clip)?.packed,
            None => PackedTensor::encode(format, &tensor)?,
        };
        loss += scaled_inputs.between(&folded, &result.decode())?;
        packed.push(result);
    }
    Ok(Awq { scales, packed, loss })
}

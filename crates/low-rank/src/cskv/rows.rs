//! Training of the maps of a cache that is given keys and values, not the inputs they come from.

use super::{KvAdapter, Training, train};
use crate::matrix::narrow;
use crate::{Calibration, Error, SvdLlm, TrainLog};
use ndarray::{Array2, Axis};
use quant_calib::Gram;
use quant_core::Shaped;

/// Rows of a batch of training.
const BATCH: usize = 512;

/// The two maps of a cache that is given rows: `c = (row − shift) P`, `row ≈ c B + shift`.
#[derive(Clone, Debug, PartialEq)]
pub struct RowMaps {
    /// `P`, `[channels, width]`, row-major.
    pub compress: Vec<f32>,
    /// `B`, `[width, channels]`, row-major.
    pub rebuild: Vec<f32>,
    /// The mean of the rows.
    pub shift: Vec<f32>,
    /// What training did to the mean squared error of an element.
    pub log: TrainLog,
}

impl RowMaps {
    /// Maps for rows `[tokens, channels]` whose latents of `width` channels are to be stored as `config` says.
    ///
    /// They start from the closed form, turned by a random orthogonal matrix of the seed, and [`train`] goes on from there
    /// with the rows as inputs and the identity as weight. Without a format of latents nothing is left to train: the closed
    /// form is the least there is. Where latents are quantized by channel over a block, consecutive rows share ranges.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] for rows that are not whole or none, [`Error::Core`] for such that are not finite, [`Error::Rank`] for a width of 0 or above the channels, and
    /// as [`train`].
    ///
    /// # Examples
    ///
    /// ```
    /// use low_rank::{LatentFormat, RowMaps, Training};
    /// let rows: Vec<f32> = (0..512 * 8).map(|i| ((i * i + 3 * (i % 8)) % 31) as f32).collect();
    /// let latents = LatentFormat { format: "int4-min".parse()?, block: None };
    /// let config = Training { latents: Some(latents), epochs: 4, ..Training::default() };
    /// let maps = RowMaps::train(&rows, 8, 6, 0, &config)?;
    /// assert_eq!((maps.compress.len(), maps.rebuild.len(), maps.shift.len()), (48, 48, 8));
    /// assert!(maps.log.after <= maps.log.before);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn train(rows: &[f32], channels: usize, width: usize, seed: u64, config: &Training) -> Result<Self, Error> {
        let uneven = || Error::Features { what: "elements of rows", expected: channels, found: rows.len() };
        if channels == 0 || rows.is_empty() || !rows.len().is_multiple_of(channels) {
            return Err(uneven());
        }
        if let Some(index) = rows.iter().position(|x| !x.is_finite()) {
            return Err(quant_core::Error::NonFinite { index, value: f64::from(rows[index]) }.into());
        }
        let wide = rows.iter().map(|&x| f64::from(x)).collect();
        let mut wide = Array2::from_shape_vec((rows.len() / channels, channels), wide).map_err(|_| uneven())?;
        let mean = wide.mean_axis(Axis(0)).ok_or_else(uneven)?;
        wide -= &mean;

        let mut gram = Gram::new(channels);
        gram.add(&narrow(&wide), None).map_err(|_| uneven())?;
        let identity = narrow(&Array2::eye(channels));
        let identity = Shaped::new(&identity, &[channels, channels])?;
        let calibration = Calibration { gram: Some(&gram), ..Calibration::default() };
        let mut maps = KvAdapter::new(&SvdLlm::default(), &identity, &calibration, width)?.rotated(seed)?;

        let batches: Vec<_> = wide.axis_chunks_iter(Axis(0), BATCH).collect();
        let log = train(&identity, &batches, &mut maps, config)?;
        let shift = narrow(&mean.insert_axis(Axis(0)));
        Ok(Self { compress: narrow(&maps.a), rebuild: narrow(&maps.b), shift, log })
    }
}

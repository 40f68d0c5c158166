//! The code book of PCDVQ: direction and length of an 8-vector are coded apart (arXiv 2506.05432).
//!
//! ```text
//! i = argmax_i ⟨x, D_i⟩                       direction, out of 2^a
//! j = argmin_j |ℓ − c_j|                      length, out of 2^b;  ℓ = |x|, or ⟨x, D_i⟩ under `Projected`
//! x̂ = c_j D_i                                 code = i | j << a
//! ```
//!
//! Nearest direction and independent length leave a bias: the length along `D_i` is shorter than `|x|` by the
//! cosine between them. Taking the projected length, which the paper does not, lowers the error at no cost.
//!
//! Directions come from [`Directions`] and follow from the settings in whole numbers, so that a model stores nothing of
//! them. Lengths come from [`chi_lloyd_max`], whose last bits depend on the machine's `exp` and `ln`: they are stored.

use crate::directions::Directions;
use crate::error::{Error, finite, within};
use crate::magnitude::chi_lloyd_max;
use crate::nearest::SearchTable;
use crate::{VectorCodec, codec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Which length is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Magnitude {
    /// That of the vector, as in the paper.
    Independent,
    /// That of the projection on the chosen direction: the least-squares length.
    #[default]
    Projected,
}

/// Settings of the code book.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolarConfig {
    /// Bits of the direction.
    pub direction_bits: u32,
    /// Bits of the length.
    pub magnitude_bits: u32,
    /// Which length is rounded.
    pub magnitude: Magnitude,
    /// Candidates for directions: points of E8 up to this squared norm.
    pub max_squared_norm: u32,
}

impl Default for PolarConfig {
    /// 14 + 2 bits, two bits a weight; candidates up to squared norm 16.
    fn default() -> Self {
        Self { direction_bits: 14, magnitude_bits: 2, magnitude: Magnitude::Projected, max_squared_norm: 16 }
    }
}

/// The code book.
#[derive(Clone, Debug)]
pub struct PolarCodec {
    config: PolarConfig,
    directions: Arc<Directions>,
    table: Arc<SearchTable>,
    lengths: Vec<f32>,
}

/// Direction code books made so far: choosing 2^14 of 337,920 takes seconds.
static MADE: Mutex<BTreeMap<(u32, u32), Arc<Directions>>> = Mutex::new(BTreeMap::new());

fn directions(bits: u32, max_squared_norm: u32) -> Result<Arc<Directions>, Error> {
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = made.get(&(bits, max_squared_norm)) {
        return Ok(Arc::clone(found));
    }
    let new = Arc::new(Directions::greedy(bits, max_squared_norm)?);
    made.insert((bits, max_squared_norm), Arc::clone(&new));
    Ok(new)
}

impl PolarCodec {
    /// Makes the code book; the first of its kind in a process takes a while (seconds for 14 bits).
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for direction bits outside 4..=16 or more than 6 bits of length, [`Error::Candidates`].
    pub fn new(config: PolarConfig) -> Result<Self, Error> {
        within("direction bits", f64::from(config.direction_bits), 4.0, 16.0)?;
        let lengths = chi_lloyd_max(8, config.magnitude_bits)?.centers;
        let directions = directions(config.direction_bits, config.max_squared_norm)?;
        let table = Arc::new(SearchTable::new(directions.units().as_flattened(), 8, |_| 0.0));
        #[expect(clippy::cast_possible_truncation, reason = "lengths are used as f32")]
        let mut lengths: Vec<f32> = lengths.into_iter().map(|c| c as f32).collect();
        if config.magnitude == Magnitude::Projected {
            // The projected length is shorter by the mean cosine, which the directions at hand determine.
            let shrink = mean_cosine(&table, &directions);
            lengths.iter_mut().for_each(|c| *c *= shrink);
        }
        Ok(Self { config, directions, table, lengths })
    }

    /// The code book with lengths that were stored.
    ///
    /// # Errors
    ///
    /// As [`PolarCodec::new`]; [`Error::Count`] for another number of lengths, [`Error::NonFinite`].
    pub fn with_lengths(config: PolarConfig, lengths: Vec<f32>) -> Result<Self, Error> {
        let mut codec = Self::new(PolarConfig { magnitude: Magnitude::Independent, ..config })?;
        let (expected, found) = (codec.lengths.len(), lengths.len());
        if expected != found {
            return Err(Error::Count { what: "lengths of a polar code book", expected, found });
        }
        finite("length", &lengths)?;
        (codec.config, codec.lengths) = (config, lengths);
        Ok(codec)
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> PolarConfig {
        self.config
    }

    /// The directions.
    #[must_use]
    pub fn directions(&self) -> &Directions {
        &self.directions
    }

    /// The lengths, ascending.
    #[must_use]
    pub fn lengths(&self) -> &[f32] {
        &self.lengths
    }

    /// The code of `x` once its direction is known.
    #[expect(clippy::cast_possible_truncation, reason = "at most 64 lengths")]
    fn complete(&self, x: &[f32], direction: u32) -> u32 {
        let unit = &self.directions.units()[direction as usize];
        let length = match self.config.magnitude {
            Magnitude::Independent => x.iter().map(|v| v * v).sum::<f32>().sqrt(),
            Magnitude::Projected => x.iter().zip(unit).map(|(x, d)| x * d).sum(),
        };
        let nearest = |best: usize, j: usize| {
            if (length - self.lengths[j]).abs() < (length - self.lengths[best]).abs() { j } else { best }
        };
        let magnitude = (1..self.lengths.len()).fold(0, nearest);
        direction | ((magnitude as u32) << self.config.direction_bits)
    }
}

/// The mean cosine between Gaussian vectors and their nearest direction, over a fixed sample.
fn mean_cosine(table: &SearchTable, directions: &Directions) -> f32 {
    let sample = codec_sample();
    let mut nearest = vec![0; sample.len() / 8];
    table.search(&sample, &mut nearest);
    let cosine = |(x, n): (&[f32], &u32)| {
        let dot: f64 = x.iter().zip(&directions.units()[*n as usize]).map(|(x, d)| f64::from(x * d)).sum();
        dot / x.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt()
    };
    let sum: f64 = sample.chunks_exact(8).zip(&nearest).map(cosine).sum();
    #[expect(clippy::cast_possible_truncation, reason = "a cosine")]
    let mean = (sum / nearest.len() as f64) as f32;
    mean
}

/// 4096 Gaussian 8-vectors.
fn codec_sample() -> Vec<f32> {
    codec::gaussian(8 * 4096, 0x1eaf)
}

impl VectorCodec for PolarCodec {
    fn dim(&self) -> usize {
        8
    }

    fn bits(&self) -> u32 {
        self.config.direction_bits + self.config.magnitude_bits
    }

    fn encode(&self, x: &[f32]) -> u32 {
        self.complete(x, self.table.search_one(x))
    }

    fn encode_all(&self, xs: &[f32], codes: &mut [u32]) {
        self.table.search(xs, codes);
        xs.chunks_exact(8).zip(codes).for_each(|(x, code)| *code = self.complete(x, *code));
    }

    fn decode(&self, code: u32, out: &mut [f32]) {
        let mask = (1_u32 << self.config.direction_bits) - 1;
        let unit = &self.directions.units()[(code & mask) as usize];
        let length = self.lengths[(code >> self.config.direction_bits) as usize & (self.lengths.len() - 1)];
        out.iter_mut().zip(unit).for_each(|(out, d)| *out = length * d);
    }

    fn planes(&self) -> Vec<u32> {
        match (self.config.direction_bits, self.config.magnitude_bits) {
            (a, b) if a + b <= 16 => vec![a + b],
            (a, b) => vec![a, b],
        }
    }
}

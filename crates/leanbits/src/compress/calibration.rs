//! The windows of a calibration text.

use super::folder::checksum;
use crate::Error;
use crate::evaluate::cut;
use crate::models::eval::WindowOptions;
use crate::models::{Config, Text};
use crate::recipe::Calibration;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use std::path::Path;

/// The windows that a method sees.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    pub(crate) texts: Vec<Vec<u32>>,
    pub(crate) report: CalibrationReport,
}

/// What a model was calibrated on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CalibrationReport {
    /// Windows that were used.
    pub windows: usize,
    /// Windows that the text has.
    pub available: usize,
    /// Tokens in all windows that were used.
    pub tokens: usize,
    /// Tokens of a window.
    pub context: usize,
    /// Checksum of the tokens, in hexadecimal.
    pub hash: String,
}

impl Windows {
    /// Cuts a text into windows and draws those that are used.
    pub(crate) fn open(model: &Path, config: &Config, text: &Path, wanted: &Calibration) -> Result<Self, Error> {
        let bytes = std::fs::read(text).map_err(|source| Error::file(text, "read", source))?;
        let bos = match wanted.bos {
            true => Some(config.bos.ok_or_else(|| Error::NoBos { path: model.to_owned() })?),
            false => None,
        };
        let context = wanted.tokens.min(config.max_positions);
        if text.extension().is_some_and(|extension| extension == "json") {
            return Self::sampled(&bytes, config, text, wanted);
        }
        let options = WindowOptions { bos, ..WindowOptions::new(context) };
        let short = |tokens| Error::ShortCalibration { path: text.to_owned(), tokens, needed: context };
        let reader = Text::open(model, config)?;
        let windows = match cut(&reader, &bytes, wanted.split.as_deref(), options) {
            Ok(windows) => windows,
            Err(Error::Model(crate::models::Error::TooFewTokens { found, .. })) => return Err(short(found)),
            Err(error) => return Err(error),
        };
        let texts: Vec<Vec<u32>> = windows.list().iter().map(|window| window.tokens.clone()).collect();
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        // Documents may be shorter than a window, but a text that is cut into windows fills them.
        if wanted.split.is_none() && longest < context {
            return Err(short(longest));
        }
        Ok(Self::drawn(texts, context, wanted))
    }

    /// The windows of a file that [`crate::sample_calibration`] made; they are as long as they are.
    fn sampled(bytes: &[u8], config: &Config, text: &Path, wanted: &Calibration) -> Result<Self, Error> {
        let set = crate::ebss::parse(bytes).map_err(|source| Error::Json { source })?.set;
        let refused = |source| Error::Calibration { what: text.display().to_string(), source };
        set.check_vocabulary(config.vocab_size).map_err(refused)?;
        let texts: Vec<Vec<u32>> = set.windows().to_vec();
        let context = texts.iter().map(Vec::len).max().unwrap_or(0);
        if context > config.max_positions {
            return Err(Error::ShortCalibration {
                path: text.to_owned(),
                tokens: config.max_positions,
                needed: context,
            });
        }
        Ok(Self::drawn(texts, context, wanted))
    }

    fn drawn(mut texts: Vec<Vec<u32>>, context: usize, wanted: &Calibration) -> Self {
        let available = texts.len();
        draw(&mut texts, wanted.windows, wanted.seed);
        let tokens = texts.iter().map(Vec::len).sum();
        let ids: Vec<u8> =
            texts.iter().flat_map(|t| t.iter().chain([&u32::MAX])).flat_map(|id| id.to_le_bytes()).collect();
        let hash = format!("{:016x}", checksum([&*ids]));
        Self { report: CalibrationReport { windows: texts.len(), available, tokens, context, hash }, texts }
    }

    /// Consecutive windows that are run together: about `tokens` of them, but at least one window.
    pub(super) fn batches(&self, tokens: usize) -> Vec<&[Vec<u32>]> {
        let mut batches = Vec::new();
        let mut rest = self.texts.as_slice();
        while !rest.is_empty() {
            let mut held = 0;
            let fits = rest.iter().take_while(|text| {
                held += text.len();
                held <= tokens
            });
            let (batch, after) = rest.split_at(fits.count().max(1));
            batches.push(batch);
            rest = after;
        }
        batches
    }
}

/// Keeps `wanted` of the windows, drawn without putting back, in the order of the text.
fn draw(texts: &mut Vec<Vec<u32>>, wanted: usize, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut left, mut needed) = (texts.len() as u64, wanted.min(texts.len()) as u64);
    texts.retain(|_| {
        // Selection sampling: a window is taken with the share of what is still needed among what is left.
        let take = u128::from(random.next_u64()) * u128::from(left) < u128::from(needed) << 64;
        left -= 1;
        needed -= u64::from(take);
        take
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_takes_as_many_windows_as_are_wanted_in_their_order() {
        let all: Vec<Vec<u32>> = (0..50).map(|i| vec![i]).collect();
        for (wanted, seed) in [(0, 1), (1, 1), (20, 1), (20, 2), (50, 3), (80, 3)] {
            let mut drawn = all.clone();
            draw(&mut drawn, wanted, seed);
            assert_eq!(drawn.len(), wanted.min(50), "{wanted}");
            assert!(drawn.is_sorted(), "{wanted}");
        }
        let drawn = |seed| {
            let mut drawn = all.clone();
            draw(&mut drawn, 20, seed);
            drawn
        };
        assert_eq!(drawn(1), drawn(1), "a seed gives the same windows");
        assert_ne!(drawn(1), drawn(2), "another seed gives others");
    }
}

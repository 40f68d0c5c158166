//! The text that calibration runs on.

use crate::Error;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::hash::Hasher;
use twox_hash::XxHash3_64;

/// Windows of tokens that calibration runs on, where they come from, and a hash of both.
///
/// The hash is XXH3 (64 bits, seed 0) of the length of the description and its bytes, and for each window the number of tokens
/// and the tokens, all as little-endian u64 and u32. It tells sets apart; it does not keep a forger out.
///
/// # Examples
///
/// ```
/// use quant_calib::{CalibrationSet, WindowConfig};
/// let text: Vec<u32> = (0..1000).collect();
/// let config = WindowConfig { length: 100, count: Some(4), ..WindowConfig::default() };
/// let set = CalibrationSet::cut("numbers", &text, &config)?;
/// assert_eq!((set.windows().len(), set.tokens()), (4, 400));
/// assert_ne!(set.hash(), CalibrationSet::cut("other numbers", &text, &config)?.hash());
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct CalibrationSet {
    source: String,
    windows: Vec<Vec<u32>>,
    hash: u64,
}

/// How windows are cut from one long text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WindowConfig {
    /// Tokens of a window.
    pub length: usize,
    /// Number of windows; for none, as many as the text has whole windows.
    pub count: Option<usize>,
    /// Where they begin.
    pub choice: WindowChoice,
    /// Seed of random windows.
    pub seed: u64,
}

/// Where windows begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowChoice {
    /// At uniformly drawn places, as GPTQ does; they may overlap.
    #[default]
    Random,
    /// One after the other from the beginning.
    Consecutive,
}

impl Default for WindowConfig {
    /// GPTQ's 128 random windows of 2048 tokens, seed 0.
    fn default() -> Self {
        Self { length: 2048, count: Some(128), choice: WindowChoice::Random, seed: 0 }
    }
}

impl CalibrationSet {
    /// A set of given windows; `source` says where they come from.
    ///
    /// # Errors
    ///
    /// [`Error::EmptySet`] without windows and for a window without tokens.
    pub fn new(source: impl Into<String>, windows: Vec<Vec<u32>>) -> Result<Self, Error> {
        let source = source.into();
        if let Some(window) = windows.iter().position(Vec::is_empty).or(windows.is_empty().then_some(0)) {
            return Err(Error::EmptySet { window });
        }
        let hash = hash(&source, &windows);
        Ok(Self { source, windows, hash })
    }

    /// Cuts windows from the tokens of one text. Random places are drawn with ChaCha8, each as the upper half of the
    /// product of a 64-bit number and the number of places.
    ///
    /// # Errors
    ///
    /// [`Error::ShortText`] when the text is shorter than one window, or than all consecutive windows asked for;
    /// [`Error::EmptySet`] for windows of no tokens, or none of them.
    pub fn cut(source: impl Into<String>, text: &[u32], config: &WindowConfig) -> Result<Self, Error> {
        let WindowConfig { length, count, choice, seed } = *config;
        if length == 0 || count == Some(0) {
            return Err(Error::EmptySet { window: 0 });
        }
        let windows = count.unwrap_or((text.len() / length).max(1));
        let needed = match choice {
            WindowChoice::Random => length,
            WindowChoice::Consecutive => windows.saturating_mul(length),
        };
        if text.len() < needed {
            return Err(Error::ShortText { windows, length, needed, found: text.len() });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut start = |window: usize| match choice {
            WindowChoice::Consecutive => window * length,
            WindowChoice::Random => below(&mut rng, text.len() - length + 1),
        };
        let cut = (0..windows).map(|window| text[start(window)..].iter().take(length).copied().collect());
        Self::new(source, cut.collect())
    }

    /// Where the windows come from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The windows.
    #[must_use]
    pub fn windows(&self) -> &[Vec<u32>] {
        &self.windows
    }

    /// Tokens of all windows.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|window| window.len() as u64).sum()
    }

    /// The hash of windows and source.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Refuses tokens that a model of so many does not know.
    ///
    /// # Errors
    ///
    /// [`Error::Token`] naming the first.
    pub fn check_vocabulary(&self, vocabulary: usize) -> Result<(), Error> {
        for (window, tokens) in self.windows.iter().enumerate() {
            if let Some((position, &token)) = tokens.iter().enumerate().find(|(_, t)| **t as usize >= vocabulary) {
                return Err(Error::Token { window, position, token, vocabulary });
            }
        }
        Ok(())
    }
}

/// A number below `limit`, which is not zero.
fn below(rng: &mut ChaCha8Rng, limit: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "below `limit`")]
    let number = ((u128::from(rng.next_u64()) * limit as u128) >> 64) as usize;
    number
}

fn hash(source: &str, windows: &[Vec<u32>]) -> u64 {
    let mut hasher = XxHash3_64::with_seed(0);
    hasher.write(&(source.len() as u64).to_le_bytes());
    hasher.write(source.as_bytes());
    for window in windows {
        hasher.write(&(window.len() as u64).to_le_bytes());
        for token in window {
            hasher.write(&token.to_le_bytes());
        }
    }
    hasher.finish()
}

/// A set as it is serialized; the hash is checked when it is read.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    source: String,
    hash: u64,
    windows: Vec<Vec<u32>>,
}

impl From<CalibrationSet> for Stored {
    fn from(set: CalibrationSet) -> Self {
        Self { source: set.source, hash: set.hash, windows: set.windows }
    }
}

impl TryFrom<Stored> for CalibrationSet {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self, Error> {
        let set = Self::new(stored.source, stored.windows)?;
        if set.hash == stored.hash { Ok(set) } else { Err(Error::Hash { expected: stored.hash, found: set.hash }) }
    }
}

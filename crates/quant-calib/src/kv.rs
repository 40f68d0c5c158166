//! What flows into a key-value cache.

use crate::{Error, Needs, Statistics};
use serde::{Deserialize, Serialize};

/// One of the streams of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvStream {
    /// Keys as the projection gives them, before rotary positions (what SKVQ and KVQuant store).
    KeysBeforeRope,
    /// Keys after rotary positions (what KIVI, PM-KVQ and plain caches store).
    KeysAfterRope,
    /// Values.
    Values,
}

impl KvStream {
    /// All streams.
    pub const ALL: [Self; 3] = [Self::KeysBeforeRope, Self::KeysAfterRope, Self::Values];
}

/// Statistics of the keys and values of one layer, `[tokens, heads · head_dim]` each.
///
/// # Examples
///
/// ```
/// use quant_calib::{KvStatistics, KvStream, Needs};
/// let mut kv = KvStatistics::new(1, 2, &Needs::channels())?;
/// kv.add(KvStream::KeysAfterRope, &[1.0, -4.0, 0.5, 3.0])?; // two tokens, one head of two channels
/// let keys = kv.stream(KvStream::KeysAfterRope).channels();
/// assert_eq!(keys.map(|keys| keys.absmax()), Some(vec![1.0, 4.0]));
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct KvStatistics {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) streams: [Statistics; 3],
}

impl KvStatistics {
    /// Starts with no tokens; the same is gathered of each stream. Reservoirs of the three sample the same tokens.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] when `heads · head_dim` overflows; else as [`Statistics::new`].
    pub fn new(heads: usize, head_dim: usize, needs: &Needs) -> Result<Self, Error> {
        let features = heads.checked_mul(head_dim).ok_or(Error::TooLarge { features: usize::MAX })?;
        let stream = Statistics::new(features, needs)?;
        Ok(Self { heads, head_dim, streams: [stream.clone(), stream.clone(), stream] })
    }

    /// Adds tokens `rows` `[tokens, heads · head_dim]` of a stream.
    ///
    /// # Errors
    ///
    /// As [`Statistics::add`]. Nothing is added on error.
    pub fn add(&mut self, stream: KvStream, rows: &[f32]) -> Result<(), Error> {
        self.streams[stream as usize].add(rows, None)
    }

    /// Adds what was gathered elsewhere.
    ///
    /// # Errors
    ///
    /// [`Error::Settings`] for other heads; else as [`Statistics::merge`]. Nothing is changed on error.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        let settings = |kv: &Self| (kv.heads, kv.head_dim);
        if settings(self) != settings(other) {
            let name = |kv: &Self| format!("{} heads of {}", kv.heads, kv.head_dim);
            return Err(Error::Settings { what: "heads differ", left: name(self), right: name(other) });
        }
        let mut merged = self.streams.clone();
        for (stream, other) in merged.iter_mut().zip(&other.streams) {
            stream.merge(other)?;
        }
        self.streams = merged;
        Ok(())
    }

    /// Key-value heads.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Channels of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Statistics of a stream.
    #[must_use]
    pub fn stream(&self, stream: KvStream) -> &Statistics {
        &self.streams[stream as usize]
    }
}

//! Which channels rotary positions turn into each other.

use crate::Error;

/// How rotary positions pair the channels of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopePairing {
    /// `i` with `i + rotary / 2` (Llama, Qwen, Mistral in Hugging Face folders).
    #[default]
    Halves,
    /// `2 i` with `2 i + 1` (GPT-J, the original Llama).
    Interleaved,
}

/// Rotary positions on the first `rotary` channels of each head; the others are not turned.
///
/// # Examples
///
/// ```
/// use quant_transforms::{Rope, RopePairing};
/// let rope = Rope { pairing: RopePairing::Halves, rotary: 4 };
/// assert_eq!([0, 1, 2, 3, 4].map(|channel| rope.partner(channel)), [Some(2), Some(3), Some(0), Some(1), None]);
/// let mut scales = [1.0, 2.0, 4.0, 1.0, 9.0];
/// rope.tie(&mut scales, 5)?;
/// assert_eq!(scales, [4.0, 2.0, 4.0, 2.0, 9.0]);
/// # Ok::<(), quant_transforms::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rope {
    /// How channels are paired.
    pub pairing: RopePairing,
    /// Channels of a head that are turned, an even number.
    pub rotary: usize,
}

impl Rope {
    /// The channel, within the head, that is turned together with `channel`.
    #[must_use]
    pub fn partner(&self, channel: usize) -> Option<usize> {
        let half = self.rotary / 2;
        if channel >= 2 * half {
            return None;
        }
        Some(match self.pairing {
            RopePairing::Halves => (channel + half) % (2 * half),
            RopePairing::Interleaved => channel ^ 1,
        })
    }

    /// Gives both channels of each pair the larger of their scales `[heads · head_dim]`, as PM-KVQ and QServe do.
    ///
    /// # Errors
    ///
    /// [`Error::Rows`] when the scales are not whole heads.
    pub fn tie(&self, scales: &mut [f32], head_dim: usize) -> Result<(), Error> {
        for head in heads(scales.len(), head_dim)? {
            for channel in 0..head_dim {
                let partner = self.partner(channel).filter(|partner| *partner < head_dim).unwrap_or(channel);
                let most = scales[head + channel].max(scales[head + partner]);
                (scales[head + channel], scales[head + partner]) = (most, most);
            }
        }
        Ok(())
    }

    /// Refuses scales `[heads · head_dim]` that differ within a pair.
    ///
    /// # Errors
    ///
    /// [`Error::RopePair`] naming the first such pair, [`Error::Rows`] when the scales are not whole heads.
    pub fn check(&self, scales: &[f32], head_dim: usize) -> Result<(), Error> {
        for head in heads(scales.len(), head_dim)? {
            for channel in 0..head_dim {
                let partner = self.partner(channel).filter(|partner| *partner < head_dim).unwrap_or(channel);
                let (first, second) = (head + channel, head + partner);
                let (a, b) = (scales[first], scales[second]);
                if a != b {
                    return Err(Error::RopePair { first, second, a, b });
                }
            }
        }
        Ok(())
    }
}

/// The first channel of each head.
fn heads(channels: usize, head_dim: usize) -> Result<impl Iterator<Item = usize>, Error> {
    if head_dim == 0 || !channels.is_multiple_of(head_dim) {
        return Err(Error::Rows { size: head_dim, found: channels });
    }
    Ok((0..channels).step_by(head_dim))
}

//! How rows become bytes: one file a codec.

mod affine;
mod channel;
mod cskv;
mod hadamard;
mod kivi;
mod map;
mod plain;
mod pmkvq;
mod skvq;
mod token;
mod wkvquant;

pub use affine::ChannelAffine;
pub use channel::ChannelFormat;
pub use cskv::{Adapter, Cskv, LatentCode, LatentWidth};
pub use hadamard::Hadamard;
pub use kivi::KiviConfig;
pub use map::{Mapped, RowMap};
pub use plain::Plain;
pub use pmkvq::{PmKvq, PmKvqConfig, Sensitivity, Width, layer_bytes, shrink_code, stretched_positions};
pub use skvq::{
    AttentionSample, ClipMode, Levels, MetaFormat, ReorderPlan, Skvq, SkvqConfig, attention_errors, search_clip,
    search_clip_by_attention,
};
pub use token::TokenFormat;
pub use wkvquant::{Projection, TwoDimConfig, fold_key_scales, fold_values};

use crate::Error;
use crate::packed::PackedRows;
use std::fmt::Debug;

/// Bytes of one sealed unit of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UnitBytes {
    /// Codes, padding to whole bytes included.
    pub codes: usize,
    /// Scales, zero points and the like.
    pub metadata: usize,
}

impl UnitBytes {
    /// All bytes.
    #[must_use]
    pub fn total(self) -> usize {
        self.codes + self.metadata
    }
}

/// A way of storing rows of one stream, keys or values, of one layer.
///
/// A codec knows rows and bytes; which tokens are sealed and when is the business of the [cache](crate::QuantizedKv).
/// Tokens are sealed [`Codec::unit`] at a time into a fixed number of bytes, never to be read back and written again. A
/// codec that can lower its precision afterwards has more than one *stage*; the others ignore the argument.
pub trait Codec: Debug + Send + Sync {
    /// Channels of a token: heads times elements of a head.
    fn width(&self) -> usize;

    /// Tokens that are sealed together.
    fn unit(&self) -> usize {
        1
    }

    /// Number of precisions, finest first.
    fn stages(&self) -> usize {
        1
    }

    /// Bytes of a sealed unit.
    fn bytes(&self, stage: usize) -> UnitBytes;

    /// Encodes `[unit, width]` finite values into [`Codec::bytes`] bytes.
    ///
    /// # Errors
    ///
    /// [`quant_core::Error`] when the values cannot be stored, such as a scale beyond its type.
    fn seal(&self, rows: &[f32], stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error>;

    /// Decodes one or more units that [`Codec::seal`] wrote, one after the other.
    ///
    /// # Errors
    ///
    /// [`quant_core::Error`] when the bytes are not units of this codec.
    fn open(&self, units: &[u8], stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error>;

    /// Turns a unit at `stage` into one at the next stage, without the values it was made from. Codecs of one stage
    /// leave `out` alone.
    fn shrink(&self, unit: &[u8], stage: usize, out: &mut [u8]) {
        let _ = (unit, stage, out);
    }

    /// Bytes of static data: permutations, scales of channels.
    fn auxiliary_bytes(&self) -> u64 {
        0
    }

    /// Where codes and scales of sealed units lie, for codecs whose products attention can form without decoding them;
    /// what it says must agree with [`Codec::open`] up to [`Codec::maps`].
    fn packed(&self, stage: usize) -> Option<PackedRows> {
        let _ = stage;
        None
    }

    /// The maps that rows went through, in order, before they were stored as [`Codec::packed`] says.
    fn maps(&self) -> Vec<&dyn RowMap> {
        Vec::new()
    }

    /// For codecs that keep latents from which rows are rebuilt linearly: what attention needs to add up latents in place
    /// of rows.
    fn latent(&self) -> Option<&Cskv> {
        None
    }

    /// Everything that decoding depends on, for the header of saved caches: the name, the configuration and, where
    /// there is static data, its fingerprint. Two codecs with equal descriptions read each other's bytes.
    fn description(&self) -> String;
}

/// FNV-1a over the bits of static data.
pub(crate) fn fingerprint(values: impl Iterator<Item = f32>) -> u64 {
    values
        .flat_map(|x| x.to_bits().to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Refuses heads that no cache has.
pub(crate) fn check_heads(heads: usize, dim: usize) -> Result<(), Error> {
    if (1..=1 << 12).contains(&heads) && (1..=1 << 14).contains(&dim) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "heads of a codec",
        found: format!("{heads} of {dim} elements"),
        supported: "1 to 4096 heads of 1 to 16384 elements",
    })
}

//! Codecs of rows that were changed by an invertible map: scaled, shifted, rotated.

use crate::Error;
use crate::codec::{Codec, UnitBytes};
use crate::packed::PackedRows;
use std::fmt::Debug;
use std::sync::Arc;

/// An invertible map of a token's row.
pub trait RowMap: Debug + Send + Sync {
    /// Channels of a row.
    fn width(&self) -> usize;

    /// Maps a row that is to be stored.
    fn forward(&self, row: &mut [f32]);

    /// Undoes [`RowMap::forward`].
    fn inverse(&self, row: &mut [f32]);

    /// For maps whose inverse is `L x + b`, `L` of a block a head: turns a row `q` into `Lᵀ q` and returns true. Attention
    /// then works on the rows as they are stored.
    fn transpose(&self, row: &mut [f32]) -> bool {
        let _ = row;
        false
    }

    /// Bytes of static data.
    fn auxiliary_bytes(&self) -> u64;

    /// Everything that decoding depends on, as [`Codec::description`].
    fn description(&self) -> String;
}

/// A codec that stores mapped rows in another codec. Maps stack: a mean is removed, what is left is rotated, and that
/// is stored.
#[derive(Clone, Debug)]
pub struct Mapped {
    map: Arc<dyn RowMap>,
    inner: Arc<dyn Codec>,
    /// Whether the map's inverse is affine.
    affine: bool,
}

impl Mapped {
    /// Rows go through `map`, then into `inner`.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] when the two are made for different rows.
    pub fn new(map: Arc<dyn RowMap>, inner: Arc<dyn Codec>) -> Result<Self, Error> {
        if map.width() != inner.width() {
            return Err(Error::Width { what: "map of rows", expected: inner.width(), found: map.width() });
        }
        let affine = map.transpose(&mut vec![0.0; map.width()]);
        Ok(Self { map, inner, affine })
    }
}

impl Codec for Mapped {
    fn width(&self) -> usize {
        self.inner.width()
    }

    fn unit(&self) -> usize {
        self.inner.unit()
    }

    fn stages(&self) -> usize {
        self.inner.stages()
    }

    fn bytes(&self, stage: usize) -> UnitBytes {
        self.inner.bytes(stage)
    }

    fn seal(&self, rows: &[f32], stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error> {
        let mut rows = rows.to_vec();
        rows.chunks_exact_mut(self.width()).for_each(|row| self.map.forward(row));
        self.inner.seal(&rows, stage, out)
    }

    fn open(&self, units: &[u8], stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error> {
        self.inner.open(units, stage, rows)?;
        rows.chunks_exact_mut(self.width()).for_each(|row| self.map.inverse(row));
        Ok(())
    }

    fn shrink(&self, unit: &[u8], stage: usize, out: &mut [u8]) {
        self.inner.shrink(unit, stage, out);
    }

    fn packed(&self, stage: usize) -> Option<PackedRows> {
        // Where rows are channels, no map of tokens can wait until they are added up.
        self.inner.packed(stage).filter(|rows| self.affine && !rows.transposed)
    }

    fn maps(&self) -> Vec<&dyn RowMap> {
        let mut maps = vec![self.map.as_ref()];
        maps.extend(self.inner.maps());
        maps
    }

    fn auxiliary_bytes(&self) -> u64 {
        self.map.auxiliary_bytes() + self.inner.auxiliary_bytes()
    }

    fn description(&self) -> String {
        format!("{}, then {}", self.map.description(), self.inner.description())
    }
}

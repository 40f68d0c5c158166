//! How rows are kept that are not sealed: attention sinks, the window, tokens that wait for their unit.

use crate::halves;
use crate::kernels::largest_bits;
use crate::packed::Coding;
use half::{bf16, f16};

/// The type of rows that are not sealed. Rows are rounded to it when they arrive, and sealed from what it holds, so
/// that nothing depends on whether a token waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FullPrecision {
    /// Four bytes: nothing is rounded.
    F32,
    /// Two bytes, magnitudes up to 65504.
    #[default]
    F16,
    /// Two bytes, the range of f32.
    Bf16,
}

impl FullPrecision {
    /// Bytes an element takes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The largest magnitude that does not become infinite.
    #[must_use]
    pub fn limit(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32(),
            Self::Bf16 => bf16::MAX.to_f32(),
        }
    }

    /// Whether all magnitudes are within [`Self::limit`]; otherwise where the first is not.
    pub(crate) fn check(self, values: &[f32]) -> Result<(), usize> {
        // Bits of magnitudes order as these do, and those of NaN come last.
        let limit = self.limit().to_bits();
        let mut largest = 0;
        largest_bits(values, &mut largest);
        let beyond = || values.iter().position(|x| x.abs().to_bits() > limit);
        if largest > limit { beyond().map_or(Ok(()), Err) } else { Ok(()) }
    }

    pub(crate) fn coding(self) -> Coding {
        match self {
            Self::F32 => Coding::F32,
            Self::F16 => Coding::F16,
            Self::Bf16 => Coding::Bf16,
        }
    }

    /// Stores elements, little-endian, rounded to nearest even.
    pub(crate) fn write(self, values: &[f32], out: &mut [u8]) {
        match self {
            Self::F32 => {
                values.iter().zip(out.chunks_exact_mut(4)).for_each(|(x, o)| o.copy_from_slice(&x.to_le_bytes()))
            }
            Self::F16 => halves::write(values, out),
            Self::Bf16 => values
                .iter()
                .zip(out.chunks_exact_mut(2))
                .for_each(|(x, o)| o.copy_from_slice(&bf16::from_f32(*x).to_le_bytes())),
        }
    }

    /// Appends what storing elements and reading them back makes of them.
    pub(crate) fn push_rounded(self, values: &[f32], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend_from_slice(values),
            Self::F16 => halves::push_rounded(values, out),
            Self::Bf16 => out.extend(values.iter().map(|x| bf16::from_f32(*x).to_f32())),
        }
    }

    /// Reads elements back.
    pub(crate) fn read(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => out
                .iter_mut()
                .zip(bytes.chunks_exact(4))
                .for_each(|(o, b)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Self::F16 => halves::read(bytes, out),
            Self::Bf16 => out
                .iter_mut()
                .zip(bytes.chunks_exact(2))
                .for_each(|(o, b)| *o = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        }
    }
}

//! Any number format of quant-core, token by token: the round-to-nearest baseline.

use crate::Error;
use crate::codec::{Codec, UnitBytes, check_heads};
use quant_core::{Format, Layout, PackedTensor, Shaped};

/// Stores each token as a tensor `[heads, dim]` in a [`Format`]: INT1–8, FP8, FP4, MX, NVFP4, NF4, block floating point,
/// ternary.
///
/// Groups run along the elements of a head and never span heads; a head that is no multiple of the group ends in a
/// shorter one. `int4-min` (one group a head) with `x ≈ q·s + lo` is the round-to-nearest baseline of the
/// papers on caches. The tensor scale of NVFP4 becomes a scale of the token.
///
/// Bytes of a token: codes, scales, zero points, tensor scale, each as [`Layout`] says.
///
/// ```
/// use kv_cache_quant::{Codec, TokenFormat};
/// let codec = TokenFormat::new(8, 128, "int2-g128-min".parse()?)?;
/// let bytes = codec.bytes(0);
/// assert_eq!(bytes.total() * 8, 8 * 128 * 9 / 4, "2 bits, and an f16 scale and minimum for 128: 2.25");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenFormat {
    shape: [usize; 2],
    format: Format,
    layout: Layout,
}

impl TokenFormat {
    /// For rows of `heads` heads of `dim` elements.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] when the format contradicts itself, [`Error::Unsupported`] for no heads.
    pub fn new(heads: usize, dim: usize, format: Format) -> Result<Self, Error> {
        check_heads(heads, dim)?;
        Self::of_shape([heads, dim], format)
    }

    pub(crate) fn of_shape(shape: [usize; 2], format: Format) -> Result<Self, Error> {
        Ok(Self { shape, format, layout: Layout::new(format, &shape)? })
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    fn packed<'a>(&self, unit: &'a [u8]) -> Result<PackedTensor<'a>, quant_core::Error> {
        let layout = &self.layout;
        let (codes, rest) = unit.split_at(layout.code_bytes().min(unit.len()));
        let (scales, rest) = rest.split_at(layout.scale_bytes().min(rest.len()));
        let (zeros, second) = rest.split_at(layout.zero_bytes().min(rest.len()));
        let second = second.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        PackedTensor::from_sections(self.format, &self.shape, codes, scales, zeros, second)
    }
}

impl Codec for TokenFormat {
    fn width(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn bytes(&self, _stage: usize) -> UnitBytes {
        let layout = &self.layout;
        UnitBytes {
            codes: layout.code_bytes(),
            metadata: layout.scale_bytes() + layout.zero_bytes() + 4 * layout.second_len,
        }
    }

    fn seal(&self, rows: &[f32], _stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error> {
        let packed = PackedTensor::encode(self.format, &Shaped::new(rows, &self.shape)?)?;
        let second = packed.second().iter().flat_map(|x| x.to_le_bytes());
        let sections = packed.codes().iter().chain(packed.scales()).chain(packed.zeros()).copied();
        out.iter_mut().zip(sections.chain(second)).for_each(|(out, byte)| *out = byte);
        Ok(())
    }

    fn open(&self, unit: &[u8], _stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error> {
        self.packed(unit)?.decode_into(rows)
    }

    fn description(&self) -> String {
        format!("{} of [{}, {}]", self.format, self.shape[0], self.shape[1])
    }
}

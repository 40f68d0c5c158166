//! Formats as data: what a code means, which elements share a scale, how the scale is found and stored.

use crate::{Codebook, Error, FloatKind};

/// How a tensor is stored: element × block × scale.
///
/// A format is a value with a textual name that parses, prints and round-trips:
///
/// ```
/// use quant_core::Format;
/// let format: Format = "int4-g128-asym".parse()?;
/// assert_eq!(format.to_string(), "int4-g128-asym");
/// assert_eq!(format.code_bits(), 4);
/// # Ok::<(), quant_core::Error>(())
/// ```
///
/// The grammar of names is described at [`Format::from_str`](#impl-FromStr-for-Format).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    /// What one code means before the scale.
    pub element: Element,
    /// The elements that share a scale.
    pub block: Block,
    /// How the scale of a block is chosen and stored.
    pub scale: Scale,
}

/// What one code means before the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// `bits`-bit integers, 1 to 8. Symmetric rules store two's complement, asymmetric ones unsigned codes.
    Int {
        /// Bits a code, 1 to 8.
        bits: u8,
        /// How scale and zero point follow from the values of a block.
        rule: IntRule,
    },
    /// A small float.
    Float {
        /// The float format.
        kind: FloatKind,
        /// What becomes of values beyond the largest finite one.
        overflow: Overflow,
    },
    /// One of 16 table entries, scaled by the largest magnitude of the block.
    Codebook(Codebook),
    /// A sign and `bits` magnitude bits under a shared exponent (block floating point).
    Magnitude {
        /// Magnitude bits, 1 to 9, the leading one included.
        bits: u8,
    },
    /// Three levels, five codes a byte.
    Ternary(TernaryRule),
}

/// How the scale of three levels follows from the values of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TernaryRule {
    /// −1, 0, 1 times the mean magnitude: `s = 1/max(mean|x|, 1e-5)`, codes `clamp(rne(x·s), ±1)` (BitNet b1.58).
    #[default]
    Mean,
    /// −1, 0, 1 times the largest magnitude.
    Max,
    /// Least value, middle and largest value: `s = max((hi − lo)/2, 1e-5)`, `x ≈ q·s + lo` (SKVQ's "1.5 bit").
    Min,
}

/// How the scale (and zero point) of an integer block follows from its values.
///
/// `Q = 2^(b−1) − 1`; `lo`, `hi` are the least and largest value, `rne` rounds to nearest, ties to even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IntRule {
    /// `s = max|x| / Q`, codes clamped to ±Q (`-2^(b−1)` never occurs). One bit: sign times mean magnitude.
    Restricted,
    /// `s = max|x| / ((2^b − 1)/2)`, codes in `[−2^(b−1), 2^(b−1) − 1]`.
    Full,
    /// As `Full` in the arithmetic of compressed-tensors: the quotient `x/s` too is rounded to the
    /// type of the scale, and a zero scale becomes the epsilon of that type.
    CtSym,
    /// GPTQ's symmetric rule: as `Full`, but a block without negative values keeps `lo = 0`.
    GptqSym,
    /// AWQ's symmetric rule: `s = max(max|x|, 1e-5) / Q`, codes down to `−2^(b−1)`.
    AwqSym,
    /// `s = (hi − lo) / (2^b − 1)` with 0 in the range, `z = rne(−lo/s)`, codes `clamp(rne(x/s) + z)` (GPTQ).
    Asymmetric,
    /// Compressed-tensors' asymmetric rule: the zero point is added before clamping and rounding,
    /// and every step is rounded to the type of the scale.
    CtAsym,
    /// AWQ's asymmetric rule: the range need not include 0.
    AwqAsym,
    /// The least value itself is the zero point, a float: `x ≈ q·s + lo` (SKVQ, KIVI).
    FloatMin,
    /// MLX's affine rule: `x ≈ q·s + bias`; scales may be negative.
    Mlx,
}

/// What becomes of values beyond the largest finite one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Overflow {
    /// They become the largest finite value.
    #[default]
    Saturate,
    /// They become infinity where the format has one, else NaN; FP6 and FP4 have neither and saturate.
    NonSaturating,
}

/// The elements that share a scale. The last axis of a tensor is the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// The whole tensor.
    Tensor,
    /// One row: an output channel of a weight, a token of activations.
    Row,
    /// This many consecutive elements of a row; the last group of a row may be shorter.
    Group(u32),
    /// A rectangle of rows × columns; tiles at the edges may be smaller.
    Tile {
        /// Rows of a tile.
        rows: u32,
        /// Columns of a tile.
        columns: u32,
    },
}

/// How the scale of a block is chosen and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scale {
    /// No scale: each element is cast by itself.
    None,
    /// A float; values are quantized with the rounded scale that is stored. A scale that rounds to
    /// zero is kept at the smallest number of its type, one that overflows it is an error.
    Float(ScaleType),
    /// A power of two in one byte (OCP Microscaling v1.0); a zero block gets code 0.
    E8m0(ScaleRule),
    /// An E4M3 scale a block under one f32 scale for the tensor (NVFP4).
    E4m3(NvRule),
    /// f32 magnitudes quantized once more to 8 bits in blocks of 256 (QLoRA's double quantization).
    Double,
    /// The exponent of the largest magnitude, in this many bits: 5 or 8.
    Exponent(u8),
}

/// Type a float scale is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ScaleType {
    /// Four bytes.
    F32,
    /// Two bytes; the default.
    #[default]
    F16,
    /// Two bytes.
    Bf16,
}

/// How a power-of-two scale follows from the largest magnitude of a block.
///
/// `E` and `M` are the exponent field and the mantissa field of `max|x|` as f32, `emax` the exponent
/// of the element's largest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ScaleRule {
    /// `E − emax` (OCP Microscaling v1.0); the largest values of a block may saturate.
    #[default]
    Floor,
    /// `E + (M ≠ 0) − emax`.
    Ceil,
    /// `max|x|` is first rounded to the element's mantissa, half up in magnitude (torchao).
    Even,
    /// As `Even`, but FP8 elements count one mantissa bit and FP4 drops the sign of −0
    /// (compressed-tensors, so that files equal those made for vLLM).
    EvenCt,
    /// `⌈log2(max|x| / largest element)⌉`: nothing saturates ("INT v.s. FP", eq. 9).
    RCeil,
    /// `⌊log2(max|x| / largest element)⌋`.
    RFloor,
    /// `log2(max|x| / largest element)` rounded to nearest.
    RRound,
}

/// How the two scales of NVFP4 and NVINT4 are computed and applied.
///
/// `amax` is the largest magnitude of the tensor, `amax_b` of a block, `m` the largest element
/// (6 for E2M1, 7 for INT4); all operations are single f32 operations in the order written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NvRule {
    /// `g = amax/(448·m)`, scale `E4M3((amax_b/m)/g)`, at least 2^-9 unless the block is zero; `x/(scale·g)`.
    #[default]
    Standard,
    /// torchao, two-level: scale at least 2^-6, elements `x·((1/g)/scale)`.
    TorchAo,
    /// torchao, single-level: no tensor scale, scale in `[2^-6, 448]`, elements `x·(1/scale)`.
    TorchAoSingle,
    /// ModelOpt: scale `E4M3(amax_b/(m·g))`, zero blocks get 1; no −0 from exact zeros.
    ModelOpt,
    /// compressed-tensors: the reciprocal `G = 448·m·(1/amax)` is stored, scale `E4M3(G·(amax_b/m))`,
    /// zero scales become 0.125; `x/(scale/G)`, no −0 from exact zeros.
    CompressedTensors,
    /// MLX with a global scale: `amax` itself is stored, `r = 448·m/amax`, scale `E4M3((amax_b/m)·r)`,
    /// elements `x/(scale/r)`, no −0.
    Mlx,
    /// MLX without: scale `E4M3(amax_b/m)`, no tensor scale, no −0.
    MlxSingle,
    /// "INT v.s. FP" (arXiv 2510.25602), reference code: `g = (amax/m)/448`, scale `E4M3((amax_b/m)/g)`,
    /// elements over and times `max(bf16(bf16(g)·scale), bf16(1e-25))`.
    PaperBf16,
}

/// A format and its name, one line of [`Format::named`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedFormat {
    /// Name that [`Format`] parses.
    pub name: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// The format.
    pub format: Format,
}

const fn int(bits: u8, block: Block, rule: IntRule) -> Format {
    Format { element: Element::Int { bits, rule }, block, scale: Scale::Float(ScaleType::F16) }
}

const fn mx(element: Element) -> Format {
    Format { element, block: Block::Group(32), scale: Scale::E8m0(ScaleRule::Floor) }
}

const fn float(kind: FloatKind) -> Element {
    Element::Float { kind, overflow: Overflow::Saturate }
}

const fn fp8(kind: FloatKind, block: Block) -> Format {
    Format { element: float(kind), block, scale: Scale::Float(ScaleType::F32) }
}

impl Format {
    /// Symmetric 8-bit integers with one f16 scale a row.
    pub const INT8: Self = int(8, Block::Row, IntRule::Restricted);
    /// Symmetric 4-bit integers in groups of 128 with f16 scales.
    pub const INT4_G128: Self = int(4, Block::Group(128), IntRule::Restricted);
    /// Asymmetric 4-bit integers in groups of 128.
    pub const INT4_G128_ASYM: Self = int(4, Block::Group(128), IntRule::Asymmetric);
    /// FP8 E4M3 with one f32 scale a row.
    pub const FP8_E4M3: Self = fp8(FloatKind::E4m3Fn, Block::Row);
    /// FP8 E5M2 with one f32 scale a row.
    pub const FP8_E5M2: Self = fp8(FloatKind::E5m2, Block::Row);
    /// OCP MXFP8 with E4M3 elements.
    pub const MXFP8_E4M3: Self = mx(float(FloatKind::E4m3Fn));
    /// OCP MXFP8 with E5M2 elements.
    pub const MXFP8_E5M2: Self = mx(float(FloatKind::E5m2));
    /// OCP MXFP6 with E2M3 elements.
    pub const MXFP6_E2M3: Self = mx(float(FloatKind::E2m3));
    /// OCP MXFP6 with E3M2 elements.
    pub const MXFP6_E3M2: Self = mx(float(FloatKind::E3m2));
    /// OCP MXFP4.
    pub const MXFP4: Self = mx(float(FloatKind::E2m1));
    /// OCP MXINT8.
    pub const MXINT8: Self = mx(Element::Int { bits: 8, rule: IntRule::Restricted });
    /// NVFP4: E2M1 in blocks of 16, E4M3 scales, one f32 scale a tensor.
    pub const NVFP4: Self =
        Self { element: float(FloatKind::E2m1), block: Block::Group(16), scale: Scale::E4m3(NvRule::Standard) };
    /// NVINT4: ±7 integers under NVFP4's scales.
    pub const NVINT4: Self = Self {
        element: Element::Int { bits: 4, rule: IntRule::Restricted },
        block: Block::Group(16),
        scale: Scale::E4m3(NvRule::Standard),
    };
    /// NF4 in blocks of 64 with f32 magnitudes.
    pub const NF4: Self = Self {
        element: Element::Codebook(Codebook::Nf4),
        block: Block::Group(64),
        scale: Scale::Float(ScaleType::F32),
    };
    /// Ternary weights with one mean-magnitude scale a tensor (BitNet b1.58).
    pub const TERNARY: Self = Self {
        element: Element::Ternary(TernaryRule::Mean),
        block: Block::Tensor,
        scale: Scale::Float(ScaleType::F32),
    };

    /// Bits one code takes before packing; ternary codes take 2 when unpacked and 1.6 when packed.
    #[must_use]
    pub fn code_bits(&self) -> u32 {
        match self.element {
            Element::Int { bits, .. } => u32::from(bits),
            Element::Float { kind, .. } => kind.bits(),
            Element::Codebook(_) => 4,
            Element::Magnitude { bits } => u32::from(bits) + 1,
            Element::Ternary(_) => 2,
        }
    }

    /// Whether a zero point is stored beside each scale, and how wide: bits, or a float of the scale's type.
    #[must_use]
    pub fn zero_point(&self) -> ZeroPoint {
        match (self.element, self.scale) {
            (Element::Int { bits, rule }, Scale::Float(kind)) => match rule {
                IntRule::Asymmetric | IntRule::CtAsym | IntRule::AwqAsym => ZeroPoint::Integer { bits },
                IntRule::FloatMin | IntRule::Mlx => ZeroPoint::Float(kind),
                IntRule::Restricted | IntRule::Full | IntRule::CtSym | IntRule::GptqSym | IntRule::AwqSym => {
                    ZeroPoint::None
                }
            },
            (Element::Ternary(TernaryRule::Min), Scale::Float(kind)) => ZeroPoint::Float(kind),
            _ => ZeroPoint::None,
        }
    }

    /// Checks that the parts fit together; every operation on a format does this first.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidFormat`] with the first contradiction.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |reason| Err(Error::InvalidFormat { format: self.to_string(), reason });
        match self.block {
            Block::Group(0) => return wrong("a group has at least one element"),
            Block::Tile { rows, columns } if rows == 0 || columns == 0 => {
                return wrong("a tile has at least one element");
            }
            _ => {}
        }
        match (self.element, self.scale) {
            (Element::Int { bits: 0, .. } | Element::Int { bits: 9.., .. }, _) => wrong("integers have 1 to 8 bits"),
            (Element::Magnitude { bits: 0 | 10.. }, _) => wrong("magnitudes have 1 to 9 bits"),
            (Element::Int { bits: 1, .. }, Scale::E8m0(_) | Scale::E4m3(_)) => {
                wrong("one-bit integers need a float scale")
            }
            (Element::Int { bits: 1, rule: IntRule::AwqSym }, _) => wrong("one bit leaves no symmetric range"),
            (Element::Int { rule: IntRule::Restricted, .. }, Scale::E8m0(_) | Scale::E4m3(_))
            | (Element::Int { .. } | Element::Ternary(_) | Element::Codebook(_), Scale::Float(_))
            | (Element::Float { .. }, Scale::None | Scale::Float(_))
            | (Element::Magnitude { .. }, Scale::Exponent(5 | 8))
            | (Element::Codebook(_), Scale::Double) => match self.element {
                Element::Float { overflow: Overflow::NonSaturating, .. } if self.scale != Scale::None => {
                    wrong("a scaled float never overflows; only casts have a non-saturating form")
                }
                Element::Float { kind, .. } if kind.bits() > 8 && self.scale != Scale::None => {
                    wrong("f16 and bf16 are casts without a scale")
                }
                _ => Ok(()),
            },
            (Element::Float { kind, overflow: Overflow::Saturate }, Scale::E8m0(_)) if kind.is_mx() => Ok(()),
            (Element::Float { kind: FloatKind::E2m1, overflow: Overflow::Saturate }, Scale::E4m3(_)) => Ok(()),
            (_, Scale::Exponent(_)) => wrong("a shared exponent has 5 or 8 bits and sign-magnitude elements"),
            _ => wrong("this element cannot be combined with this scale"),
        }
    }
}

/// What is stored beside the scale of a block to place its zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroPoint {
    /// Nothing: zero is code 0.
    None,
    /// An unsigned integer of this many bits, the code of zero.
    Integer {
        /// Bits of the zero point, those of a code.
        bits: u8,
    },
    /// The value of code 0, a float.
    Float(ScaleType),
}

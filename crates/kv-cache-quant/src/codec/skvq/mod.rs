//! SKVQ (arXiv 2405.06219): channels that look alike share a range; ranges are clipped; scales are FP8.
//!
//! | step of the paper | here |
//! |---|---|
//! | channel reorder by k-means on (min, max) | [`ReorderPlan::kmeans`] |
//! | clipped dynamic quantization | [`Skvq`], [`ClipMode`] |
//! | search of the clip factor α | [`search_clip_by_attention`]; [`search_clip`] by the rows alone |
//! | sliding window, attention sinks | [`KvPolicy`](crate::KvPolicy) with `window: 128, sinks: 5` |
//! | FP8 scale and zero point | [`MetaFormat::E4m3`] |

mod attention;
mod clip;
mod plan;

pub use attention::{AttentionSample, attention_errors, search_clip_by_attention};
pub use clip::search_clip;
pub use plan::ReorderPlan;

use crate::Error;
use crate::codec::{Codec, UnitBytes, fingerprint};
use crate::kernels;
use half::f16;
use quant_core::{FloatKind, Overflow, bits};

/// How many levels a code has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Levels {
    /// Three levels, five codes a byte: 1.6 bits (the paper's "1.5 bit").
    Ternary,
    /// `2^bits` levels, 1 to 8 bits.
    Bits(u8),
}

impl Levels {
    /// The largest code.
    #[must_use]
    pub fn max_code(self) -> u16 {
        match self {
            Self::Ternary => 2,
            Self::Bits(bits) => (1_u16 << bits.clamp(1, 8)) - 1,
        }
    }

    fn check(self) -> Result<(), Error> {
        match self {
            Self::Ternary | Self::Bits(1..=8) => Ok(()),
            Self::Bits(bits) => Err(Error::Unsupported {
                what: "width of a code",
                found: format!("{bits} bits"),
                supported: "ternary, 1 to 8 bits",
            }),
        }
    }
}

/// How the scale and the least value of a group are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetaFormat {
    /// Two bytes each.
    F16,
    /// A byte each, times a power of two for the whole layer: E4M3 alone ends at 448 and loses precision below 2^-6.
    /// [`MetaFormat::e4m3_for`] finds the exponent.
    E4m3 {
        /// Exponent of the power of two.
        exponent: i8,
    },
}

impl MetaFormat {
    /// E4M3 that reaches eight times as far as `largest`, the largest magnitude seen in calibration.
    #[must_use]
    pub fn e4m3_for(largest: f32) -> Self {
        let exponent = (8.0 * f64::from(largest) / 448.0).log2().ceil();
        #[expect(clippy::cast_possible_truncation, reason = "clamped to the range of the type")]
        let exponent = if exponent.is_finite() { exponent.clamp(-100.0, 100.0) as i8 } else { 0 };
        Self::E4m3 { exponent }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::E4m3 { .. } => 1,
        }
    }

    /// Stores a value and returns what it is read back as.
    fn write(self, value: f32, out: &mut [u8]) -> f32 {
        match self {
            Self::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            #[expect(clippy::cast_possible_truncation, reason = "an 8-bit float")]
            Self::E4m3 { exponent } => {
                let scaled = f64::from(value) * 2_f64.powi(-i32::from(exponent));
                let nearest = quant_core::Rounding::NearestEven;
                out[0] = FloatKind::E4m3Fn.encode_f64(scaled, Overflow::NonSaturating, nearest, 0) as u8;
            }
        }
        self.read(out)
    }

    fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::E4m3 { exponent } => FloatKind::E4m3Fn.decode(u16::from(bytes[0])) * 2_f32.powi(i32::from(exponent)),
        }
    }
}

/// What a clip factor α makes of the least and largest value of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipMode {
    /// `α·min` and `α·max`, as the paper has it: right where ranges lie about zero.
    Endpoint,
    /// The middle stays, the half width is multiplied by α: right for groups of one sign as well, which k-means makes
    /// on purpose.
    #[default]
    Midpoint,
}

impl ClipMode {
    fn range(self, lo: f32, hi: f32, alpha: f32) -> (f32, f32) {
        match self {
            Self::Endpoint => (alpha * lo, alpha * hi),
            Self::Midpoint => {
                let (middle, half) = (lo / 2.0 + hi / 2.0, alpha * (hi / 2.0 - lo / 2.0));
                if alpha == 1.0 { (lo, hi) } else { (middle - half, middle + half) }
            }
        }
    }
}

/// Parameters of SKVQ for one stream.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkvqConfig {
    /// Levels of a code.
    pub levels: Levels,
    /// How scales are stored.
    pub meta: MetaFormat,
    /// How ranges are clipped.
    pub clip: ClipMode,
}

impl Default for SkvqConfig {
    fn default() -> Self {
        Self { levels: Levels::Bits(2), meta: MetaFormat::E4m3 { exponent: 0 }, clip: ClipMode::Midpoint }
    }
}

/// SKVQ's codec for one stream, token by token.
///
/// For each group `G` of channels, with the least and largest value of the token in it clipped by the group's α: `s =
/// (hi − lo)/M`, `z = lo`, both rounded to their stored type, then `q = rne(clamp((x − z)/s, 0, M))`, `x ≈ q·s + z`.
/// Groups have any sizes and mix heads. Codes of a token are one stream in the plan's order, across groups, padded to a
/// byte a token: 128 channels of ternary codes in 1.6 bits, not 2.
///
/// Departures from the reference code: scales are rounded before codes are chosen, not after, which at 4 bits halves
/// the error; E4M3 has a power of two for the layer; α is searched per group (the reference has one constant), by the
/// error of the rows ([`search_clip`]) or, as the paper has it, of the attention output
/// ([`search_clip_by_attention`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Skvq {
    config: SkvqConfig,
    plan: ReorderPlan,
    /// One a group.
    alphas: Vec<f32>,
}

impl Skvq {
    /// A codec with a plan and clip factors, one a group.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for widths beyond 8 bits and factors outside (0, 1], [`Error::Width`] when there is not
    /// one factor a group.
    pub fn new(config: SkvqConfig, plan: ReorderPlan, alphas: Vec<f32>) -> Result<Self, Error> {
        config.levels.check()?;
        if alphas.len() != plan.groups() {
            return Err(Error::Width { what: "list of clip factors", expected: plan.groups(), found: alphas.len() });
        }
        if let Some(alpha) = alphas.iter().find(|alpha| !(**alpha > 0.0 && **alpha <= 1.0)) {
            let found = alpha.to_string();
            return Err(Error::Unsupported { what: "clip factor", found, supported: "numbers above 0, at most 1" });
        }
        Ok(Self { config, plan, alphas })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &ReorderPlan {
        &self.plan
    }

    /// Clip factors, one a group.
    #[must_use]
    pub fn alphas(&self) -> &[f32] {
        &self.alphas
    }

    fn open_token(&self, unit: &[u8], row: &mut [f32]) -> Result<(), quant_core::Error> {
        let (codes, meta) = unit.split_at(self.code_bytes());
        let codes: Vec<u8> = match self.config.levels {
            Levels::Bits(width @ (2 | 4 | 8)) => {
                // The last byte may be filled up.
                let mut unpacked = vec![0; codes.len() * (8 / usize::from(width))];
                kernels::unpack(u32::from(width), codes, &mut unpacked);
                unpacked
            }
            Levels::Bits(width) => narrowed(&bits::unpack(u32::from(width), codes, row.len())?),
            Levels::Ternary => narrowed(&bits::unpack_trits(codes, row.len())?),
        };
        let order = self.plan.order();
        for (range, meta) in self.plan.ranges().zip(meta.chunks_exact(2 * self.config.meta.bytes())) {
            let (scale, zero) = meta.split_at(self.config.meta.bytes());
            let (scale, zero) = (self.config.meta.read(scale), self.config.meta.read(zero));
            for (&channel, &code) in order[range.clone()].iter().zip(&codes[range]) {
                row[channel as usize] = f32::from(code) * scale + zero;
            }
        }
        Ok(())
    }

    fn code_bytes(&self) -> usize {
        let channels = self.plan.channels();
        match self.config.levels {
            Levels::Ternary => channels.div_ceil(5),
            Levels::Bits(bits) => (channels * usize::from(bits)).div_ceil(8),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "codes have at most 8 bits")]
fn narrowed(codes: &[u16]) -> Vec<u8> {
    codes.iter().map(|&code| code as u8).collect()
}

/// Scale and least value of a group, as they are stored in `meta`.
fn fit(config: SkvqConfig, group: &[f32], alpha: f32, meta: &mut [u8]) -> Result<(f32, f32), quant_core::Error> {
    let lo = group.iter().copied().fold(f32::INFINITY, f32::min);
    let hi = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (lo, hi) = config.clip.range(lo, hi, alpha);
    let step = (hi / 2.0 - lo / 2.0) / f32::from(config.levels.max_code()) * 2.0;
    let (scale_bytes, zero_bytes) = meta.split_at_mut(config.meta.bytes());
    let (scale, zero) = (config.meta.write(step, scale_bytes), config.meta.write(lo, zero_bytes));
    for (stored, value) in [(scale, step), (zero, lo)] {
        if !stored.is_finite() {
            return Err(quant_core::Error::ScaleOverflow { block: 0, value });
        }
    }
    Ok((scale, zero))
}

/// The code of a value.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
fn encode(x: f32, scale: f32, zero: f32, max: u16) -> u16 {
    if scale > 0.0 { ((x - zero) / scale).clamp(0.0, f32::from(max)).round_ties_even() as u16 } else { 0 }
}

impl Codec for Skvq {
    fn width(&self) -> usize {
        self.plan.channels()
    }

    fn bytes(&self, _stage: usize) -> UnitBytes {
        UnitBytes { codes: self.code_bytes(), metadata: 2 * self.config.meta.bytes() * self.plan.groups() }
    }

    fn seal(&self, row: &[f32], _stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error> {
        let (codes_out, meta_out) = out.split_at_mut(self.code_bytes());
        let gathered: Vec<f32> = self.plan.order().iter().map(|&channel| row[channel as usize]).collect();
        let max = self.config.levels.max_code();
        let mut codes = Vec::with_capacity(row.len());
        let groups = self.plan.ranges().zip(&self.alphas).zip(meta_out.chunks_exact_mut(2 * self.config.meta.bytes()));
        for ((range, &alpha), meta) in groups {
            let group = &gathered[range];
            let (scale, zero) = fit(self.config, group, alpha, meta)?;
            codes.extend(group.iter().map(|&x| encode(x, scale, zero, max)));
        }
        codes_out.copy_from_slice(&match self.config.levels {
            Levels::Ternary => bits::pack_trits(&codes),
            Levels::Bits(width) => bits::pack(u32::from(width), &codes)?,
        });
        Ok(())
    }

    fn open(&self, units: &[u8], stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error> {
        let mut tokens = units.chunks_exact(self.bytes(stage).total()).zip(rows.chunks_exact_mut(self.width()));
        tokens.try_for_each(|(unit, row)| self.open_token(unit, row))
    }

    fn auxiliary_bytes(&self) -> u64 {
        self.plan.bytes() + 4 * self.alphas.capacity() as u64
    }

    fn description(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "channels and bounds are far below 2^24")]
        let numbers = self.plan.order().iter().chain(self.plan.bounds()).map(|&x| x as f32);
        format!("skvq {:?}, plan {:016x}", self.config, fingerprint(numbers))
    }
}

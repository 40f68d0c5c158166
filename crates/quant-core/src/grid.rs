//! What a block of values is rounded to.

use crate::element::{exp2, exponent_of};
use crate::{Element, Error, FloatKind, Format, IntRule, NvRule, Overflow, Rounding, Scale, ScaleRule, ScaleType};
use half::{bf16, f16};

/// A set of points that groups of values are rounded to, after fitting parameters to the group.
///
/// Error-compensating sweeps (GPTQ) and clip searches are written once over this trait: integers,
/// floats, code books and vector code books all implement it.
pub trait Grid {
    /// What one group shares: a scale, a zero point, the choice of a code book …
    type Params: Clone + Send + Sync;

    /// Number of consecutive values that one code covers; 1 for scalar grids.
    fn width(&self) -> usize {
        1
    }

    /// Fits the parameters to a group whose range is first shrunk by `clip` (1 keeps all of it).
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] for NaN and infinite values, [`Error::ScaleOverflow`] when the stored type
    /// cannot hold the scale.
    fn fit(&self, group: &[f32], clip: f32) -> Result<Self::Params, Error>;

    /// The code of the point nearest to `x`, which has [`Grid::width`] values.
    fn encode(&self, x: &[f32], params: &Self::Params) -> u32;

    /// Writes the point of a code into `out`, which has [`Grid::width`] values.
    fn decode(&self, code: u32, params: &Self::Params, out: &mut [f32]);
}

/// What the elements of one block share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockParams {
    /// Value of one step: the stored scale as f32, times the tensor scale where there is one.
    pub scale: f32,
    /// The integer zero point, the float value of code 0, or 0.
    pub zero: f32,
    /// The stored form of the scale: bits of a float, E8M0 or E4M3 code, biased exponent.
    pub scale_code: u32,
}

/// The grid of a [`Format`]: the plain, readable definition of every format, and the oracle of all kernels.
///
/// For formats with a tensor scale it holds that scale, so that blocks can be fitted one by one.
///
/// ```
/// use quant_core::{Format, FormatGrid, Grid};
/// let grid = FormatGrid::new(Format::INT4_G128, 7.0)?;
/// let params = grid.fit(&[7.0, -3.4, 0.2], 1.0)?;
/// assert_eq!(params.scale, 1.0);
/// assert_eq!(grid.round(-3.4, &params), -3.0);
/// # Ok::<(), quant_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FormatGrid {
    format: Format,
    /// The scale of the whole tensor (NVFP4), as stored; 1 where the format has none.
    second: f32,
}

impl FormatGrid {
    /// The grid of a format for a tensor whose largest magnitude is `amax` (used only by formats
    /// with a tensor scale).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidFormat`] when the format contradicts itself.
    pub fn new(format: Format, amax: f32) -> Result<Self, Error> {
        format.validate()?;
        let second = match format.scale {
            Scale::E4m3(rule) => tensor_scale(rule, amax, largest_element(format.element)),
            _ => 1.0,
        };
        Ok(Self { format, second })
    }

    /// The grid of a format with the tensor scale read from storage.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidFormat`] when the format contradicts itself.
    pub fn with_tensor_scale(format: Format, second: f32) -> Result<Self, Error> {
        format.validate()?;
        Ok(Self { format, second })
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The tensor scale as stored; 1 where the format has none.
    #[must_use]
    pub fn tensor_scale(&self) -> f32 {
        self.second
    }

    /// The value `x` is rounded to.
    #[must_use]
    pub fn round(&self, x: f32, params: &BlockParams) -> f32 {
        self.decode_one(self.encode_one(x, params, Rounding::NearestEven, 0), params)
    }

    /// The code of a finite `x` under any rounding; `random` holds the bits of stochastic rounding.
    #[must_use]
    pub fn encode_one(&self, x: f32, params: &BlockParams, rounding: Rounding, random: u32) -> u16 {
        match self.format.element {
            Element::Int { bits, rule } => encode_int(self.format.scale, bits, rule, x, params, rounding, random),
            Element::Float { kind, overflow } => {
                let v = match self.format.scale {
                    Scale::None => x,
                    Scale::E8m0(_) => scale_by_power(x, params.scale),
                    _ if params.scale == 0.0 => 0.0_f32.copysign(x),
                    _ => x / params.scale,
                };
                kind.encode_rounded(v, overflow, rounding, random)
            }
            Element::Codebook(book) => {
                let v = (x * (1.0 / params.scale.max(1e-38))).clamp(-1.0, 1.0);
                nearest_entry(book.values(), v)
            }
            Element::Magnitude { bits } => {
                let largest = f64::from((1_u32 << bits) - 1);
                let q = f64::from(x.abs()) / f64::from(params.scale);
                let k = rounding.magnitude(q, x < 0.0, random).min(largest);
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= k < 2^bits")]
                let k = k as u16;
                if x < 0.0 && k > 0 { k | 1 << bits } else { k }
            }
            Element::Ternary => {
                let t = round_signed(x / params.scale, rounding, random).clamp(-1.0, 1.0);
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0, 1 or 2")]
                let code = (t + 1.0) as u16;
                code
            }
        }
    }

    /// The value of a code; every bit pattern has one.
    #[must_use]
    pub fn decode_one(&self, code: u16, params: &BlockParams) -> f32 {
        match self.format.element {
            Element::Int { bits, rule } => match rule {
                IntRule::Restricted | IntRule::Full | IntRule::GptqSym | IntRule::AwqSym => {
                    let q = if bits == 1 && rule == IntRule::Restricted {
                        if code & 1 == 1 { -1.0 } else { 1.0 }
                    } else {
                        f32::from(sign_extend(code, bits))
                    };
                    match self.format.scale {
                        Scale::E8m0(_) => q * exp2_f32(2 - i32::from(bits)) * params.scale,
                        _ => q * params.scale,
                    }
                }
                IntRule::Asymmetric | IntRule::CtAsym | IntRule::AwqAsym => {
                    (f32::from(code) - params.zero) * params.scale
                }
                IntRule::FloatMin | IntRule::Mlx => f32::from(code) * params.scale + params.zero,
            },
            Element::Float { kind, .. } => match self.format.scale {
                Scale::None => kind.decode(code),
                _ => kind.decode(code) * params.scale,
            },
            Element::Codebook(book) => book.values()[usize::from(code & 15)] * params.scale,
            Element::Magnitude { bits } => {
                let value = f32::from(code & ((1 << bits) - 1)) * params.scale;
                if code >> bits & 1 == 1 { -value } else { value }
            }
            Element::Ternary => (f32::from(code) - 1.0) * params.scale,
        }
    }

    /// The parameters whose stored forms are given.
    #[must_use]
    pub fn params_from_stored(&self, scale_code: u32, zero: f32) -> BlockParams {
        #[expect(clippy::cast_possible_truncation, reason = "scale codes are stored in so many bits")]
        let scale = match self.format.scale {
            Scale::None => 1.0,
            Scale::Float(ScaleType::F32) | Scale::Double => f32::from_bits(scale_code),
            Scale::Float(ScaleType::F16) => f16::from_bits(scale_code as u16).to_f32(),
            Scale::Float(ScaleType::Bf16) => bf16::from_bits(scale_code as u16).to_f32(),
            Scale::E8m0(_) => e8m0_to_f32(scale_code as u8),
            Scale::E4m3(_) => FloatKind::E4m3Fn.decode(scale_code as u16) * self.second,
            Scale::Exponent(_) => exponent_step(self.format, scale_code),
        };
        BlockParams { scale, zero, scale_code }
    }

    fn stored_scale(&self, scale: f32) -> Result<u32, Error> {
        let overflow = Error::ScaleOverflow { block: 0, value: scale };
        let Scale::Float(kind) = self.format.scale else { return Ok(scale.to_bits()) };
        store_float(kind, scale).ok_or(overflow)
    }
}

impl Grid for FormatGrid {
    type Params = BlockParams;

    fn fit(&self, group: &[f32], clip: f32) -> Result<BlockParams, Error> {
        if let Some(index) = group.iter().position(|x| !x.is_finite()) {
            return Err(Error::NonFinite { index, value: f64::from(group[index]) });
        }
        let amax = clip * group.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        match (self.format.element, self.format.scale) {
            (_, Scale::None) => Ok(self.params_from_stored(0, 0.0)),
            (Element::Int { bits, rule }, Scale::Float(_)) => self.fit_int(group, clip, bits, rule),
            (Element::Ternary, _) => {
                let mean = mean_magnitude(group);
                Ok(self.params_from_stored(self.stored_scale(mean.max(1e-5))?, 0.0))
            }
            (element, Scale::Float(_) | Scale::Double) => {
                let scale = if amax == 0.0 { 1.0 } else { amax / largest_element(element) };
                Ok(self.params_from_stored(self.stored_scale(scale)?, 0.0))
            }
            (element, Scale::E8m0(rule)) => {
                Ok(self.params_from_stored(u32::from(e8m0_scale(rule, element, amax)), 0.0))
            }
            (element, Scale::E4m3(_)) => {
                let t = (amax / largest_element(element)) / self.second;
                let code = FloatKind::E4m3Fn.encode(t, Overflow::Saturate);
                Ok(self.params_from_stored(u32::from(if amax > 0.0 { code.max(1) } else { 0 }), 0.0))
            }
            (_, Scale::Exponent(width)) => {
                let (low, high, bias) = if width == 5 { (-14, 15, 14) } else { (-126, 127, 127) };
                let exponent = if amax == 0.0 { low } else { exponent_of(amax).clamp(low, high) };
                Ok(self.params_from_stored((exponent + bias).cast_unsigned(), 0.0))
            }
        }
    }

    fn encode(&self, x: &[f32], params: &BlockParams) -> u32 {
        u32::from(self.encode_one(x[0], params, Rounding::NearestEven, 0))
    }

    fn decode(&self, code: u32, params: &BlockParams, out: &mut [f32]) {
        #[expect(clippy::cast_possible_truncation, reason = "codes have at most 16 bits")]
        let code = code as u16;
        out[0] = self.decode_one(code, params);
    }
}

impl FormatGrid {
    fn fit_int(&self, group: &[f32], clip: f32, bits: u8, rule: IntRule) -> Result<BlockParams, Error> {
        let levels = f32::from((1_u16 << bits) - 1);
        let q_max = f32::from((1_u16 << (bits - 1)) - 1);
        let lo = clip * group.iter().copied().fold(f32::INFINITY, f32::min);
        let hi = clip * group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let amax = hi.max(-lo);
        let or_one = |scale: f32| if scale == 0.0 { 1.0 } else { scale };
        let symmetric = |scale: f32| Ok(self.params_from_stored(self.stored_scale(scale)?, 0.0));
        match rule {
            IntRule::Restricted if bits == 1 => symmetric(or_one(mean_magnitude(group))),
            IntRule::Restricted => symmetric(or_one(amax / q_max)),
            IntRule::Full => symmetric(or_one(amax / (levels / 2.0))),
            IntRule::AwqSym => symmetric(amax.max(1e-5) / q_max),
            IntRule::GptqSym => {
                let (mut lo, mut hi) = (lo.min(0.0), hi.max(0.0));
                hi = hi.max(-lo);
                if lo < 0.0 {
                    lo = -hi;
                }
                if hi == 0.0 {
                    (lo, hi) = (-1.0, 1.0);
                }
                symmetric((hi - lo) / levels)
            }
            IntRule::Asymmetric | IntRule::CtAsym => {
                let (mut lo, mut hi) = (lo.min(0.0), hi.max(0.0));
                if lo == hi {
                    (lo, hi) = (-1.0, 1.0);
                }
                let mut params = self.params_from_stored(self.stored_scale((hi - lo) / levels)?, 0.0);
                params.zero = (-lo / params.scale).round_ties_even().clamp(0.0, levels);
                Ok(params)
            }
            IntRule::AwqAsym => {
                let mut params = self.params_from_stored(self.stored_scale((hi - lo).max(1e-5) / levels)?, 0.0);
                params.zero = (-(lo / params.scale).round_ties_even()).clamp(0.0, levels);
                Ok(params)
            }
            IntRule::FloatMin | IntRule::Mlx => {
                let mut params = self.params_from_stored(self.stored_scale(((hi - lo) / levels).max(1e-5))?, 0.0);
                params.zero = round_float(self.format.scale, lo);
                Ok(params)
            }
        }
    }
}

fn encode_int(scale: Scale, bits: u8, rule: IntRule, x: f32, p: &BlockParams, rounding: Rounding, random: u32) -> u16 {
    let q_max = f32::from((1_u16 << (bits - 1)) - 1);
    let q_min = -q_max - 1.0;
    let levels = f32::from((1_u16 << bits) - 1);
    let rne = |v: f32| round_signed(v, rounding, random);
    let (code, mask) = match rule {
        IntRule::Restricted if bits == 1 => return u16::from(x.is_sign_negative() && x != 0.0),
        IntRule::Restricted => {
            let v = match scale {
                Scale::E8m0(_) => scale_by_power(x, p.scale) * exp2_f32(i32::from(bits) - 2),
                _ if p.scale == 0.0 => 0.0,
                _ => x / p.scale,
            };
            (rne(v).clamp(-q_max, q_max), levels)
        }
        IntRule::Full => (rne((x / p.scale).clamp(q_min, q_max)), levels),
        IntRule::GptqSym | IntRule::AwqSym => (rne(x / p.scale).clamp(q_min, q_max), levels),
        IntRule::Asymmetric | IntRule::AwqAsym => ((rne(x / p.scale) + p.zero).clamp(0.0, levels), levels),
        IntRule::CtAsym => (rne((x / p.scale + p.zero).clamp(0.0, levels)), levels),
        IntRule::FloatMin | IntRule::Mlx => (rne(((x - p.zero) / p.scale).clamp(0.0, levels)), levels),
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the bits of a code")]
    let code = (code as i16).cast_unsigned() & mask as u16;
    code
}

/// `x / 2^s` exactly, for a scale that is a power of two (possibly subnormal).
fn scale_by_power(x: f32, scale: f32) -> f32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "f64 holds the quotient exactly; codes saturate far below f32::MAX"
    )]
    let v = (f64::from(x) / f64::from(scale)) as f32;
    v
}

fn round_signed(v: f32, rounding: Rounding, random: u32) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "an integer rounded from f32 is exact in f32")]
    let magnitude = rounding.magnitude(f64::from(v.abs()), v < 0.0, random) as f32;
    magnitude.copysign(v)
}

fn sign_extend(code: u16, bits: u8) -> i16 {
    let shift = 16 - u32::from(bits);
    (code << shift).cast_signed() >> shift
}

fn mean_magnitude(group: &[f32]) -> f32 {
    let sum: f64 = group.iter().map(|x| f64::from(x.abs())).sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a mean of f32 values is in range"
    )]
    let mean = (sum / group.len() as f64) as f32;
    mean
}

/// Number of midpoints strictly below `v`, for an ascending table; nearest entry otherwise.
fn nearest_entry(values: &[f32; 16], v: f32) -> u16 {
    let mut best = 0;
    for (code, &value) in values.iter().enumerate().skip(1) {
        if (value - v).abs() < (values[best] - v).abs() {
            best = code;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "16 entries")]
    let best = best as u16;
    best
}

/// The largest element value before scaling.
fn largest_element(element: Element) -> f32 {
    match element {
        Element::Int { bits, .. } => f32::from((1_u16 << (bits - 1)) - 1),
        Element::Float { kind, .. } => kind.max(),
        Element::Codebook(_) | Element::Magnitude { .. } | Element::Ternary => 1.0,
    }
}

fn tensor_scale(rule: NvRule, amax: f32, largest: f32) -> f32 {
    match rule {
        _ if amax == 0.0 => 1.0,
        NvRule::CompressedTensors => 448.0 * largest * (1.0 / amax),
        NvRule::Mlx => amax,
        NvRule::TorchAoSingle => 1.0,
        NvRule::PaperBf16 => (amax / largest) / 448.0,
        NvRule::Standard | NvRule::TorchAo | NvRule::ModelOpt => amax / (448.0 * largest),
    }
}

/// The E8M0 code of a block with largest magnitude `amax`.
fn e8m0_scale(rule: ScaleRule, element: Element, amax: f32) -> u8 {
    let (largest, mantissa) = match element {
        // An MX integer of b bits is k / 2^(b-2), so its largest value lies just below 2.
        Element::Int { bits, .. } => (largest_element(element) * exp2_f32(2 - i32::from(bits)), u32::from(bits) - 2),
        Element::Float { kind, .. } => (kind.max(), kind.mantissa_bits()),
        _ => (1.0, 0),
    };
    let emax = exponent_of(largest);
    let field = |x: f32| (x.to_bits() >> 23).cast_signed();
    let ceil = |x: f32| {
        let (exponent, fraction) = (field(x), x.to_bits() & 0x7f_ffff);
        if exponent == 0 { i32::from(fraction > 0x40_0000) } else { exponent + i32::from(fraction != 0) }
    };
    let quotient = amax / largest;
    let code = match rule {
        _ if amax == 0.0 => 0,
        ScaleRule::Floor => field(amax) - emax,
        ScaleRule::Ceil => field(amax) + i32::from(amax.to_bits() & 0x7f_ffff != 0) - emax,
        ScaleRule::Even => ((amax.to_bits() + (1 << (22 - mantissa))) >> 23).cast_signed() - emax,
        ScaleRule::RCeil => ceil(quotient),
        ScaleRule::RFloor => field(quotient),
        // log2 rounds up from √2 on.
        ScaleRule::RRound => field(quotient) + i32::from(quotient.to_bits() & 0x7f_ffff > 0x35_04f3),
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
    let code = code.clamp(0, 254) as u8;
    code
}

fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x40_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// Step of a block with a shared exponent: `2^(E − (m − 1))`.
fn exponent_step(format: Format, code: u32) -> f32 {
    let bias = if format.scale == Scale::Exponent(5) { 14 } else { 127 };
    let Element::Magnitude { bits } = format.element else { return 1.0 };
    #[expect(clippy::cast_possible_truncation, reason = "a power of two within f32's range or its rounding")]
    let step = exp2(code.cast_signed() - bias - (i32::from(bits) - 1)) as f32;
    step
}

fn exp2_f32(k: i32) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "small exponents")]
    let power = exp2(k) as f32;
    power
}

fn round_float(scale: Scale, x: f32) -> f32 {
    match scale {
        Scale::Float(ScaleType::F16) => f16::from_f32(x).to_f32(),
        Scale::Float(ScaleType::Bf16) => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// The bits of a scale in its stored type; `None` when it overflows. A positive scale never becomes
/// zero: it is kept at the smallest subnormal.
fn store_float(kind: ScaleType, scale: f32) -> Option<u32> {
    let (bits, back) = match kind {
        ScaleType::F32 => (scale.to_bits(), scale),
        ScaleType::F16 => (u32::from(f16::from_f32(scale).to_bits()), f16::from_f32(scale).to_f32()),
        ScaleType::Bf16 => (u32::from(bf16::from_f32(scale).to_bits()), bf16::from_f32(scale).to_f32()),
    };
    match back {
        _ if !back.is_finite() => None,
        0.0 if scale != 0.0 => Some(1),
        _ => Some(bits),
    }
}

//! What a block of values is rounded to: the plain, readable definition of every format.
//!
//! One file a family: [`int`], [`ternary`], [`codebook`], [`mx`], [`nv`], [`shared_exponent`]. Each
//! says how parameters follow from a block (`fit`), how a value becomes a code and how a code
//! becomes a value. All arithmetic is single f32 operations in the order written, unless said otherwise.

mod codebook;
mod int;
mod mx;
mod nv;
mod onnx;
mod shared_exponent;
mod stored;
mod ternary;

pub use onnx::LinearQuantizer;
pub use shared_exponent::ExponentClamps;

use crate::element::Rounding;
use crate::kernels::column;
use crate::{E8m0, Element, Error, FloatKind, Format, Scale, ScaleType};

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

    /// Rounds one column of a matrix whose rows have parameters each: the code and the point of every value, exactly
    /// those of [`Grid::encode`] and [`Grid::decode`]. For grids of width 1; all slices have one length.
    fn round_column(&self, values: &[f32], params: &[Self::Params], codes: &mut [u32], rounded: &mut [f32]) {
        for (((value, params), code), rounded) in values.iter().zip(params).zip(codes).zip(rounded) {
            *code = self.encode(std::slice::from_ref(value), params);
            self.decode(*code, params, std::slice::from_mut(rounded));
        }
    }
}

/// What the elements of one block share.
///
/// Made by [`Grid::fit`] or, from stored scales, by [`FormatGrid::params_from_stored`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockParams {
    /// Value of one step: the stored scale as f32, times the tensor scale where there is one.
    pub scale: f32,
    /// The integer zero point, the float value of code 0, or 0.
    pub zero: f32,
    /// The stored form of the scale: bits of a float, E8M0 or E4M3 code, biased exponent.
    pub scale_code: u32,
    /// What encoding divides by (multiplies by, where the rule of the format says so). The scale,
    /// except under the rules of peers that quantize with something they do not store.
    pub(crate) step: f32,
    /// The zero point that encoding uses; `zero` except under such rules.
    pub(crate) origin: f32,
}

impl BlockParams {
    /// Parameters whose values are encoded and decoded with the same scale and zero point.
    pub(crate) fn plain(scale: f32, zero: f32, scale_code: u32) -> Self {
        Self { scale, zero, scale_code, step: scale, origin: zero }
    }

    /// Whether codes are chosen with the very scale and zero point that decoding uses: true but for
    /// the rules of a few peers (see [`crate::IntRule`], [`crate::NvRule`], [`crate::TernaryRule`]).
    #[must_use]
    pub fn encodes_with_stored_scale(&self) -> bool {
        self.step.to_bits() == self.scale.to_bits() && self.origin.to_bits() == self.zero.to_bits()
    }
}

/// The grid of a [`Format`]: the plain, readable definition of every format, and the oracle of all kernels.
///
/// For formats with a tensor scale it holds that scale, so that blocks can be fitted one by one.
/// Double-quantized magnitudes are the exception: their second level needs all blocks at once, so
/// that a grid fits and encodes with the f32 magnitude, as bitsandbytes does, and
/// [`PackedTensor`](crate::PackedTensor) quantizes the magnitudes of all blocks afterwards.
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
        let second = match format.scale {
            Scale::E4m3(rule) => nv::tensor_scale(rule, amax, largest_element(format.element)),
            _ => 1.0,
        };
        Self::with_tensor_scale(format, second)
    }

    /// The grid of a format with the tensor scale read from storage, or fixed by calibration:
    /// blocks beyond its reach saturate.
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

    /// The code of a finite `x` under any rounding; `random` holds the bits of stochastic rounding,
    /// see [`Rounding::random_bits`].
    #[must_use]
    pub fn encode_one(&self, x: f32, params: &BlockParams, rounding: Rounding, random: u32) -> u16 {
        let round = Rounder { rounding, random };
        match (self.format.element, self.format.scale) {
            (Element::Int { bits, .. }, Scale::E8m0(_)) => mx::encode_int(bits, x, params, round),
            (Element::Int { bits, .. }, Scale::E4m3(rule)) => {
                int::encode_symmetric(bits, nv::normalize(rule, x, params), round)
            }
            (Element::Int { bits, rule }, scale) => int::encode(bits, rule, scale, x, params, round),
            (Element::Float { kind, .. }, Scale::E8m0(rule)) => mx::encode_float(kind, rule, x, params, round),
            (Element::Float { kind, .. }, Scale::E4m3(rule)) => nv::encode_float(rule, kind, x, params, round),
            (Element::Float { kind, overflow }, Scale::None) => kind.encode_rounded(x, overflow, rounding, random),
            (Element::Float { kind, overflow }, _) => kind.encode_rounded(x / params.step, overflow, rounding, random),
            (Element::Codebook(book), _) => codebook::encode(book, x, params),
            (Element::Magnitude { bits }, _) => shared_exponent::encode(bits, x, params, round),
            (Element::Ternary(rule), _) => ternary::encode(rule, x, params, round),
        }
    }

    /// The value of a code; every bit pattern has one.
    #[must_use]
    pub fn decode_one(&self, code: u16, params: &BlockParams) -> f32 {
        match (self.format.element, self.format.scale) {
            (Element::Int { bits, .. }, Scale::E8m0(_)) => mx::decode_int(bits, code, params),
            (Element::Int { bits, rule }, _) => int::decode(bits, rule, code, params),
            (Element::Float { kind, .. }, Scale::None) => kind.decode(code),
            (Element::Float { kind, .. }, _) => kind.decode(code) * params.scale,
            (Element::Codebook(book), _) => book.values()[usize::from(code & 15)] * params.scale,
            (Element::Magnitude { bits }, _) => shared_exponent::decode(bits, code, params),
            (Element::Ternary(rule), _) => ternary::decode(rule, code, params),
        }
    }

    /// [`Grid::round_column`] value by value.
    pub(crate) fn round_each(&self, x: &[f32], params: &[BlockParams], codes: &mut [u32], rounded: &mut [f32]) {
        for (((&x, params), code), rounded) in x.iter().zip(params).zip(codes).zip(rounded) {
            let one = self.encode_one(x, params, Rounding::NearestEven, 0);
            *code = u32::from(one);
            *rounded = self.decode_one(one, params);
        }
    }

    /// The parameters whose stored forms are given: bits of a float scale (for double quantization
    /// the bits of the decoded f32 magnitude), a scale code, a biased exponent.
    #[must_use]
    pub fn params_from_stored(&self, scale_code: u32, zero: f32) -> BlockParams {
        #[expect(clippy::cast_possible_truncation, reason = "scale codes are stored in a byte")]
        let byte = scale_code as u8;
        let scale = match self.format.scale {
            Scale::None => 1.0,
            Scale::Float(kind) => {
                let scale = kind.load(scale_code);
                if let Element::Ternary(rule) = self.format.element {
                    return ternary::params(rule, scale, zero, scale_code);
                }
                scale
            }
            Scale::Double => ScaleType::F32.load(scale_code),
            Scale::E8m0(_) => E8m0(byte).to_f32(),
            Scale::E4m3(rule) => return nv::params(rule, self.second, largest_element(self.format.element), byte),
            Scale::Exponent(width) => shared_exponent::step(self.format.element, width, byte),
        };
        BlockParams::plain(scale, zero, scale_code)
    }

    /// `of` the parameters of every scale that is stored in a byte, from code 0 on.
    pub(crate) fn of_scale_bytes<T: Copy + Default, const N: usize>(&self, of: impl Fn(BlockParams) -> T) -> [T; N] {
        match self.format.scale {
            Scale::E4m3(rule) => nv::of_codes(rule, (self.second, largest_element(self.format.element)), of),
            _ => {
                let mut all = [T::default(); N];
                all.iter_mut().zip(0..).for_each(|(one, code)| *one = of(self.params_from_stored(code, 0.0)));
                all
            }
        }
    }
}

impl Grid for FormatGrid {
    type Params = BlockParams;

    /// Rules made of mean magnitudes (one-bit `sym`, `ternary`) do not depend on `clip`.
    fn fit(&self, group: &[f32], clip: f32) -> Result<BlockParams, Error> {
        let range = Range::of(group, clip)?;
        match (self.format.element, self.format.scale) {
            (_, Scale::None) => Ok(self.params_from_stored(0, 0.0)),
            (Element::Int { bits, rule }, Scale::Float(kind)) => int::fit(bits, rule, kind, &range, group),
            (Element::Ternary(rule), Scale::Float(kind)) => ternary::fit(rule, kind, &range, group),
            (Element::Codebook(_), Scale::Float(kind)) => codebook::fit(kind, &range),
            (Element::Codebook(_), _) => codebook::fit(ScaleType::F32, &range),
            (element, Scale::Float(kind)) => {
                let scale = divide_up(range.amax(), largest_element(element));
                Ok(self.params_from_stored(kind.store(scale)?, 0.0))
            }
            (element, Scale::E8m0(rule)) => {
                Ok(self.params_from_stored(u32::from(mx::scale_code(rule, element, range.amax())), 0.0))
            }
            (element, Scale::E4m3(rule)) => Ok(nv::fit(rule, self.second, largest_element(element), range.amax())),
            (_, Scale::Exponent(width)) => {
                Ok(self.params_from_stored(shared_exponent::exponent_code(width, range.amax()), 0.0))
            }
            // `validate` leaves double quantization to code books.
            (_, Scale::Double) => codebook::fit(ScaleType::F32, &range),
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

    /// Integers of two to eight bits under float scales go through a kernel.
    fn round_column(&self, values: &[f32], params: &[BlockParams], codes: &mut [u32], rounded: &mut [f32]) {
        if !column::round_column(self, values, params, codes, rounded) {
            self.round_each(values, params, codes, rounded);
        }
    }
}

/// A rounding and the random bits of one element.
#[derive(Clone, Copy)]
struct Rounder {
    rounding: Rounding,
    random: u32,
}

impl Rounder {
    /// Rounds to an integer.
    fn integer(self, v: f32) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "an integer rounded from f32 is exact in f32")]
        let magnitude = self.magnitude(f64::from(v)) as f32;
        magnitude.copysign(v)
    }

    /// Rounds the magnitude to an integer.
    fn magnitude(self, v: f64) -> f64 {
        self.rounding.magnitude(v.abs(), v < 0.0, self.random)
    }
}

/// Least and largest value of a block, shrunk by the clip factor.
struct Range {
    lo: f32,
    hi: f32,
}

impl Range {
    fn of(group: &[f32], clip: f32) -> Result<Self, Error> {
        if let Some(index) = group.iter().position(|x| !x.is_finite()) {
            return Err(Error::NonFinite { index, value: f64::from(group[index]) });
        }
        let lo = group.iter().copied().reduce(f32::min).unwrap_or(0.0);
        let hi = group.iter().copied().reduce(f32::max).unwrap_or(0.0);
        Ok(Self { lo: clip * lo, hi: clip * hi })
    }

    fn amax(&self) -> f32 {
        self.hi.abs().max(self.lo.abs())
    }

    /// The range made to include zero.
    fn with_zero(&self) -> (f32, f32) {
        (self.lo.min(0.0), self.hi.max(0.0))
    }
}

/// `amax / largest` as a scale: 1 for a zero block, and never zero for another one.
fn divide_up(amax: f32, largest: f32) -> f32 {
    const LEAST: f32 = f32::from_bits(1);
    if amax == 0.0 { 1.0 } else { (amax / largest).max(LEAST) }
}

/// Mean magnitude of a block, summed in f64.
fn mean_magnitude(group: &[f32]) -> f32 {
    let sum: f64 = group.iter().map(|x| f64::from(x.abs())).sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a mean of f32 values is in range"
    )]
    let mean = (sum / group.len().max(1) as f64) as f32;
    mean
}

/// The largest element value before scaling.
pub(crate) fn largest_element(element: Element) -> f32 {
    match element {
        Element::Int { bits, .. } => f32::from((1_u16 << (bits.clamp(1, 8) - 1)) - 1),
        Element::Float { kind, .. } => kind.max(),
        Element::Codebook(_) | Element::Magnitude { .. } | Element::Ternary(_) => 1.0,
    }
}

/// E4M3 code of a scale, saturating; negative numbers and NaN (0 times the reciprocal of a tiny
/// tensor scale) become 0.
fn e4m3(t: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "an 8-bit float")]
    let code = FloatKind::E4m3Fn.encode(t.max(0.0), crate::Overflow::Saturate) as u8;
    code
}

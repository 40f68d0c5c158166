//! Rows of f32 into codes and scales.
//!
//! A row is cut into strips that fit the first-level cache. A strip is read twice: once for the
//! extremes of its blocks, from which the scales of all its blocks follow together, and once for the
//! codes. Codes are gathered a byte each on the stack, then packed, then written out in one go. Both
//! readings ask for a part of the strip that comes next, so that memory is never idle.

use super::ops::{self, BLOCKS, Bins, Element, INFINITE, LEAST_GROUP, MAGIC, STRIP, SmallFloat, Strip, Unit, fmax};
use super::{AHEAD, Backend, Isa};
use crate::grid::largest_element;
use crate::{
    E8m0, FloatKind, Format, FormatGrid, IntRule, Layout, NvRule, Overflow, Scale, ScaleRule, ScaleType, ZeroPoint,
};

use std::cell::RefCell;

/// Values that are encoded in one go, about.
const TOGETHER: usize = 1 << 16;

/// How a format's rows are encoded; made once a tensor.
#[derive(Clone, Debug)]
pub(crate) struct RowEncoder {
    pub(super) fit: Fit,
    pub(super) store: Store,
    pub(super) unit: Unit,
    pub(super) element: Kind,
    pub(super) code_bits: u32,
    pub(super) zero_bits: u32,
    pub(super) group: usize,
    /// −0 counts as 0 before it is encoded.
    pub(super) positive_zero: bool,
    /// The code of −0, where that of 0 stands for it.
    pub(super) negative_zero: Option<u8>,
    /// Bytes between what is worked on and what is asked for.
    pub(super) ahead: usize,
    pub(super) stream: bool,
}

/// How scales (and zero points) follow from the extremes of blocks.
#[derive(Clone, Debug)]
pub(super) enum Fit {
    /// No scale.
    None,
    /// `max(amax, least) / divisor`, never zero; 1 for a zero block.
    Amax { divisor: f32, least: f32 },
    /// The largest magnitude itself.
    Magnitude,
    /// GPTQ's symmetric rule.
    Symmetric { levels: f32 },
    /// A scale and an integer zero point.
    Asymmetric { rule: IntRule, levels: f32 },
    /// A power of two.
    Power(Power),
    /// E4M3 under a tensor scale.
    Nested(Box<Nested>),
}

/// The rules of [`ScaleRule`] in numbers: the code is the exponent field of the bits of `amax`, or of `amax / largest`, and
/// `bias`, less `emax`.
#[derive(Clone, Debug)]
pub(super) struct Power {
    pub(super) largest: Option<f32>,
    /// Of normal numbers, and of subnormal ones.
    pub(super) bias: [u32; 2],
    /// Not negative, so that zero has code 0.
    pub(super) emax: i32,
    /// No value is larger than so many scales.
    pub(super) reach: f32,
}

/// The rules of [`NvRule`] in numbers: the code is that of `max(amax / largest / second · factor, least)`.
#[derive(Clone, Debug)]
pub(super) struct Nested {
    pub(super) largest: f32,
    pub(super) second: f32,
    pub(super) factor: f32,
    pub(super) least: f32,
    /// The code of a zero block.
    pub(super) of_zero: u32,
    /// The code instead of 0.
    pub(super) instead_of_zero: u32,
    pub(super) kind: SmallFloat,
    /// What a value is divided by or multiplied with, by code.
    pub(super) steps: [f32; 128],
    /// Where the steps of all but zero are numbers of E4M3 times one: that.
    pub(super) unit: Option<f32>,
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Store {
    Nothing,
    F32,
    Two(SmallFloat),
    Byte,
}

/// How elements become codes.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a tensor, and it is not moved")]
pub(super) enum Kind {
    Small(Element),
    Float16(SmallFloat),
}

impl RowEncoder {
    /// The encoder of a grid; `None` when only the reference encodes it.
    pub(crate) fn new(grid: &FormatGrid, layout: &Layout) -> Option<Self> {
        let format = grid.format();
        let group = layout.block_columns;
        let one_block = layout.block_columns_count() == 1;
        if layout.block_rows != 1 || !(one_block || group.is_multiple_of(LEAST_GROUP)) {
            return None;
        }
        let (fit, store) = Self::scale(grid)?;
        let unit = match (&fit, format.scale) {
            (Fit::None, _) => Unit::Keep,
            (Fit::Power { .. } | Fit::Magnitude, _) => Unit::Multiply,
            (_, Scale::E4m3(NvRule::TorchAo | NvRule::TorchAoSingle)) => Unit::Multiply,
            _ => Unit::Divide,
        };
        let no_negative_zero = matches!(format.scale, Scale::E4m3(NvRule::Mlx | NvRule::MlxSingle));
        let is_float = matches!(format.element, crate::Element::Float { .. });
        Some(Self {
            fit,
            store,
            unit,
            element: Self::element(format)?,
            code_bits: format.code_bits(),
            zero_bits: match format.zero_point() {
                ZeroPoint::None => 0,
                ZeroPoint::Integer { bits } => u32::from(bits),
                ZeroPoint::Float(_) => return None,
            },
            group: if format.scale == Scale::None { group.min(STRIP) } else { group },
            positive_zero: match format.scale {
                Scale::E8m0(ScaleRule::EvenCt) => format.code_bits() == 4,
                Scale::E4m3(rule) => matches!(rule, NvRule::ModelOpt | NvRule::CompressedTensors),
                _ => false,
            },
            negative_zero: (no_negative_zero && is_float).then_some(8),
            ahead: (4 * group).clamp(AHEAD, 64 << 10),
            stream: layout.code_bytes() >= super::STREAM_BYTES,
        })
    }

    /// How many rows are best encoded as one, where they lie side by side: the blocks of a row are whole, and rows of codes
    /// and of zero points begin on bytes.
    pub(crate) fn rows_together(&self, layout: &Layout) -> usize {
        let whole = layout.block_columns >= LEAST_GROUP && layout.columns.is_multiple_of(layout.block_columns);
        let bytes = (layout.columns * self.code_bits as usize).is_multiple_of(8)
            && (layout.block_columns_count() * self.zero_bits as usize).is_multiple_of(8);
        if whole && bytes { (TOGETHER / layout.columns.max(1)).max(1) } else { 1 }
    }

    fn scale(grid: &FormatGrid) -> Option<(Fit, Store)> {
        let format = grid.format();
        let largest = largest_element(format.element);
        let store = match format.scale {
            Scale::None => Store::Nothing,
            Scale::Float(ScaleType::F32) => Store::F32,
            Scale::Float(ScaleType::F16) => Store::Two(SmallFloat::new(FloatKind::F16)?),
            Scale::Float(ScaleType::Bf16) => Store::Two(SmallFloat::new(FloatKind::Bf16)?),
            Scale::E8m0(_) | Scale::E4m3(_) => Store::Byte,
            Scale::Double | Scale::Exponent(_) => return None,
        };
        let fit = match (format.scale, format.element) {
            (Scale::None, _) => Fit::None,
            (Scale::E8m0(rule), crate::Element::Int { bits, .. }) => {
                let largest = largest / f32::from(1_u16 << (bits - 2));
                Fit::Power(Power::new(rule, largest, 0, u32::from(bits) - 2))
            }
            (Scale::E8m0(rule), crate::Element::Float { kind, .. }) => {
                let emax = (largest.to_bits() >> 23).cast_signed() - 127;
                let ct = rule == ScaleRule::EvenCt;
                if ct && !matches!(kind, FloatKind::E4m3Fn | FloatKind::E5m2 | FloatKind::E2m1) {
                    return None;
                }
                Fit::Power(Power::new(rule, largest, emax, if ct { 1 } else { kind.mantissa_bits() }))
            }
            (Scale::E4m3(rule), _) => Fit::Nested(Box::new(Nested::new(grid, rule, largest)?)),
            (_, crate::Element::Int { bits, rule }) => {
                let levels = f32::from((1_u16 << bits) - 1);
                let amax = |divisor, least| Fit::Amax { divisor, least };
                match rule {
                    IntRule::Restricted => amax(largest, 0.0),
                    IntRule::Full => amax(levels / 2.0, 0.0),
                    IntRule::AwqSym => amax(largest, 1e-5),
                    IntRule::GptqSym => Fit::Symmetric { levels },
                    IntRule::Asymmetric | IntRule::AwqAsym => Fit::Asymmetric { rule, levels },
                    IntRule::CtSym | IntRule::CtAsym | IntRule::FloatMin | IntRule::Mlx => return None,
                }
            }
            (_, crate::Element::Float { .. }) => Fit::Amax { divisor: largest, least: 0.0 },
            (_, crate::Element::Codebook(_)) => Fit::Magnitude,
            _ => return None,
        };
        Some((fit, store))
    }

    fn element(format: Format) -> Option<Kind> {
        Some(match format.element {
            crate::Element::Int { bits: 0 | 1 | 9.., .. } => return None,
            crate::Element::Int { bits, rule } => {
                let high = f32::from((1_u16 << (bits - 1)) - 1);
                let levels = f32::from((1_u16 << bits) - 1);
                let factor = match format.scale {
                    Scale::E8m0(_) => f32::from(1_u16 << (bits - 2)),
                    _ => 1.0,
                };
                let int = |factor, low, high| Kind::Small(Element::Int { factor, low, high });
                match rule {
                    IntRule::Restricted => int(factor, -high, high),
                    IntRule::Full | IntRule::GptqSym | IntRule::AwqSym => int(factor, -high - 1.0, high),
                    IntRule::Asymmetric | IntRule::AwqAsym => int(1.0, 0.0, levels),
                    IntRule::CtSym | IntRule::CtAsym | IntRule::FloatMin | IntRule::Mlx => return None,
                }
            }
            crate::Element::Float { overflow: Overflow::NonSaturating, .. } => return None,
            crate::Element::Float { kind, .. } if kind.bits() == 16 => Kind::Float16(SmallFloat::new(kind)?),
            crate::Element::Float { kind, .. } => Kind::Small(Element::Float(SmallFloat::new(kind)?)),
            crate::Element::Codebook(book) => Kind::Small(Element::Book(Bins::new(book))),
            crate::Element::Magnitude { .. } | crate::Element::Ternary(_) => return None,
        })
    }

    /// Whether scales follow from largest magnitudes alone.
    pub(super) fn fits_magnitudes(&self) -> bool {
        !matches!(self.fit, Fit::Symmetric { .. } | Fit::Asymmetric { .. })
    }

    /// Whether scales and zero points follow from ranges that include zero.
    pub(super) fn fits_ranges_with_zero(&self) -> bool {
        matches!(self.fit, Fit::Asymmetric { rule: IntRule::Asymmetric, .. })
    }

    /// How many scales large values are at most, where scales are largest magnitudes divided, or ranges with zero are wide.
    pub(super) fn reach(&self, divisor: f32, subnormal: bool) -> f32 {
        // Normal scales are rounded by so much at most.
        let rounding = match self.store {
            Store::Two(kind) => f32::EPSILON * f32::from_bits((126 + kind.shift) << 23),
            _ => f32::EPSILON,
        };
        if subnormal { 2.0 * divisor } else { (1.0 + rounding) * divisor }
    }

    /// Bytes of a stored scale.
    pub(super) fn scale_bytes(&self) -> usize {
        match self.store {
            Store::Nothing => 0,
            Store::F32 => 4,
            Store::Two(_) => 2,
            Store::Byte => 1,
        }
    }

    /// Encodes one row, or several as one, into its bytes. False when the reference must decide: a value is not finite or
    /// a scale overflows. The bytes are then half written.
    pub(crate) fn encode(&self, isa: Isa, x: &[f32], codes: &mut [u8], scales: &mut [u8], zeros: &mut [u8]) -> bool {
        let out = Sections { codes, scales, zeros };
        SCRATCH.with_borrow_mut(|scratch| self.encode_row(isa.backend(), x, out, scratch))
    }

    fn encode_row(&self, backend: &dyn Backend, x: &[f32], out: Sections<'_>, scratch: &mut Scratch) -> bool {
        out.zeros.fill(0);
        scratch.fitted.reach = DEFAULT_REACH;
        if self.zero_bits == 0 {
            scratch.fitted.zeros.fill(0.0);
        }
        let (bits, scale_bytes) = (self.code_bits as usize, self.scale_bytes());
        let Some(done) = backend.encode_tiles(self, &mut scratch.fitted, x, out.codes, out.scales, out.zeros) else {
            return false;
        };
        let before = done / self.group;
        let out = Sections {
            codes: &mut out.codes[done * bits / 8..],
            scales: &mut out.scales[before * scale_bytes..],
            zeros: out.zeros,
        };
        let x = &x[done..];
        let group = self.group.min(x.len()).max(1);
        // What is fitted together: as many blocks as make a strip, or one long block.
        let unit = if group > STRIP { group } else { STRIP / group * group };
        for (i, x) in x.chunks(unit).enumerate() {
            let (first, count) = (i * unit / group, x.len().div_ceil(group));
            let scales = &mut out.scales[first * scale_bytes..][..count * scale_bytes];
            if !self.fit_blocks(backend, x, group, scales, &mut scratch.fitted) {
                return false;
            }
            for (j, x) in x.chunks(STRIP).enumerate() {
                let start = (i * unit + j * STRIP) * bits / 8;
                let codes = &mut out.codes[start..][..(x.len() * bits).div_ceil(8)];
                if !self.encode_strip(backend, x, group, scratch, codes) {
                    return false;
                }
            }
            self.write_zeros(&scratch.fitted.zeros[..count], before + first, out.zeros);
        }
        if self.stream {
            backend.fence();
        }
        true
    }

    /// Fits some blocks; writes the stored scales.
    fn fit_blocks(&self, backend: &dyn Backend, x: &[f32], group: usize, out: &mut [u8], fitted: &mut Fitted) -> bool {
        let count = x.len().div_ceil(group);
        let scales = &mut fitted.scales[..count];
        let finite = match self.fit {
            // Seen while codes are made.
            Fit::None => return true,
            Fit::Symmetric { .. } | Fit::Asymmetric { .. } => {
                backend.range_blocks(x, group, self.ahead, scales, &mut fitted.zeros[..count])
            }
            _ => {
                backend.amax_blocks(x, group, self.ahead, scales);
                true
            }
        };
        finite && backend.fit(self, fitted, count, out)
    }

    /// Encodes a strip and packs its codes; false when a value without a scale is not finite.
    fn encode_strip(
        &self,
        backend: &dyn Backend,
        x: &[f32],
        group: usize,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> bool {
        let Scratch { fitted, codes, packed } = scratch;
        let codes = &mut codes[..x.len()];
        let packed = &mut packed[..out.len()];
        let bytes = match &self.element {
            Kind::Float16(kind) => {
                if !backend.encode_float16(x, *kind, self.ahead, packed) {
                    return false;
                }
                packed
            }
            Kind::Small(element) => {
                let Fitted { scales, zeros, high, low, reach } = fitted;
                let (unit, positive_zero, reach, ahead) = (self.unit, self.positive_zero, *reach, self.ahead);
                let strip = Strip { x, group, unit, positive_zero, element, scales, high, low, zeros, reach, ahead };
                if !backend.encode_blocks(&strip, codes) {
                    return false;
                }
                if let Some(negative_zero) = self.negative_zero {
                    for code in codes.iter_mut() {
                        *code = if *code == negative_zero { 0 } else { *code };
                    }
                }
                if self.code_bits == 8 {
                    codes
                } else {
                    backend.pack(codes, self.code_bits, packed);
                    packed
                }
            }
        };
        if self.stream {
            backend.stream_bytes(bytes, out);
        } else {
            out.copy_from_slice(bytes);
        }
        true
    }

    /// Writes zero points from position `first` on, where all bytes are zero yet; rows of blocks start on a byte.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is the zero point")]
    pub(super) fn write_zeros(&self, zeros: &[f32], first: usize, out: &mut [u8]) {
        if self.zero_bits == 0 {
            return;
        }
        let mut codes = [0; BLOCKS];
        let codes = &mut codes[..zeros.len()];
        for (code, zero) in codes.iter_mut().zip(zeros) {
            *code = (zero + MAGIC).to_bits() as u8;
        }
        let width = self.zero_bits as usize;
        let out = &mut out[first * width / 8..];
        match first * width % 8 {
            0 if width == 8 => out[..codes.len()].copy_from_slice(codes),
            0 => ops::pack(codes, self.zero_bits, &mut out[..(codes.len() * width).div_ceil(8)]),
            // Blocks of a strip need not begin on a byte.
            start => {
                for (i, &code) in codes.iter().enumerate() {
                    let bit = start + i * width;
                    let window = u16::from(code) << (bit % 8);
                    for (byte, part) in out[bit / 8..].iter_mut().zip(window.to_le_bytes()) {
                        *byte |= part;
                    }
                }
            }
        }
    }
}

impl Power {
    fn new(rule: ScaleRule, largest: f32, emax: i32, mantissa: u32) -> Self {
        // One carries into the exponent from `least` of the fraction on.
        let from = |least: u32| 0x80_0000 - least;
        let by_exponent = |bias| {
            let binade = f32::from_bits((emax + 128).cast_unsigned() << 23);
            Self { largest: None, bias: [bias; 2], emax, reach: binade.next_down() }
        };
        // A quotient may be rounded before it is looked at.
        let by_quotient = |bias, reach: f32| Self { largest: Some(largest), bias, emax: 0, reach: reach.next_up() };
        match rule {
            ScaleRule::Floor => by_exponent(0),
            ScaleRule::Ceil => by_exponent(from(1)),
            ScaleRule::Even | ScaleRule::EvenCt => by_exponent(1 << (22 - mantissa)),
            // Below the normals the exponent grows from the middle of the fraction on.
            ScaleRule::RCeil => by_quotient([from(1), from(0x40_0001)], largest),
            ScaleRule::RFloor => by_quotient([0; 2], 2.0 * largest),
            // The mantissas of √2, and of √2·2^-127 among the subnormals.
            ScaleRule::RRound => by_quotient([from(0x35_04f4), from(0x5a_827a)], 2.0 * largest),
        }
    }
}

impl Nested {
    /// The numbers of a rule; `None` where a scale is not a number that values can be divided by.
    fn new(grid: &FormatGrid, rule: NvRule, largest: f32) -> Option<Self> {
        let second = grid.tensor_scale();
        let kind = SmallFloat::new(FloatKind::E4m3Fn)?;
        // Where it underflows all becomes zeros with the sign of x, as dividing by infinity has it.
        let of_zero = if matches!(rule, NvRule::TorchAo | NvRule::TorchAoSingle) { 0.0 } else { f32::INFINITY };
        let steps = grid.of_scale_bytes(|params| if params.step == 0.0 { of_zero } else { params.step });
        let unit = steps[kind.encode(1.0) as usize % 128];
        let products = (1..).zip(&steps[1..127]);
        let is_unit = products.fold(true, |all, (code, &step)| all & (kind.decode_finite(code) * unit == step));
        let unit = is_unit.then_some(unit);
        let (least, of_zero, instead_of_zero) = (0.0, 0, 0);
        let one = Self { largest, second: 1.0, factor: 1.0, least, of_zero, instead_of_zero, kind, steps, unit };
        let code = |scale: f32| kind.encode(scale);
        let nested = match rule {
            NvRule::Standard => Self { second, instead_of_zero: 1, ..one },
            NvRule::TorchAo => Self { second, least: 0.015_625, of_zero: code(0.015_625), ..one },
            NvRule::TorchAoSingle => Self { least: 0.015_625, of_zero: code(0.015_625), ..one },
            NvRule::ModelOpt => Self { largest: largest * second, least: 0.001_953_125, of_zero: code(1.0), ..one },
            NvRule::CompressedTensors => {
                Self { factor: second, of_zero: code(0.125), instead_of_zero: code(0.125), ..one }
            }
            NvRule::Mlx => Self { factor: (448.0 * largest) / second, ..one },
            NvRule::MlxSingle => one,
            NvRule::PaperBf16 => Self { second, ..one },
        };
        let usable = |x: f32| x > 0.0 && x.is_finite();
        let least = if nested.least > 0.0 { code(nested.least) } else { 0 };
        let steps = &nested.steps[least as usize..127];
        (usable(second) && usable(nested.largest) && usable(nested.factor) && steps.iter().all(|&step| step > 0.0))
            .then_some(nested)
    }
}

struct Sections<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    zeros: &'a mut [u8],
}

/// What would otherwise have to be cleared for every row.
struct Scratch {
    fitted: Fitted,
    codes: [u8; STRIP],
    packed: [u8; 2 * STRIP],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { fitted: Fitted::NEW, codes: [0; STRIP], packed: [0; 2 * STRIP] })
    };
}

/// What the blocks of a strip were fitted to, in whole lines: a store to parts of two waits for all stores past the caches before it.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Fitted {
    /// What values are divided by or multiplied with. Before: least values or largest magnitudes.
    pub(super) scales: [f32; BLOCKS],
    /// Zero points. Before: largest values.
    pub(super) zeros: [f32; BLOCKS],
    /// For backends that multiply with reciprocals, see [`Strip`].
    pub(super) high: [f32; BLOCKS],
    pub(super) low: [f32; BLOCKS],
    /// No value is larger than so many scales.
    pub(super) reach: f32,
}

impl Fitted {
    pub(super) const NEW: Self =
        Self { scales: [1.0; BLOCKS], zeros: [0.0; BLOCKS], high: [0.0; BLOCKS], low: [0.0; BLOCKS], reach: 0.0 };
}

/// See [`Backend::fit`].
#[inline(always)]
pub(super) fn fit(plan: &RowEncoder, fitted: &mut Fitted, count: usize, out: &mut [u8]) -> bool {
    let Fitted { scales, zeros, reach, .. } = fitted;
    let scales = &mut scales[..count];
    match plan.fit {
        Fit::Symmetric { .. } | Fit::Asymmetric { .. } => fit_ranges(plan, scales, &mut zeros[..count], reach, out),
        _ => {
            let most = scales.iter().fold(0, |most, amax| amax.to_bits().max(most));
            most < INFINITE && fit_amax(plan, scales, reach, out)
        }
    }
}

/// Values are fewer scales large where a rule says nothing else.
const DEFAULT_REACH: f32 = 512.0;

/// Values are at most so many scales of two levels large where scales are rounded by a sixteenth at most, or more but not far.
pub(super) const NESTED_REACHES: [f32; 2] = [7.5, 4096.0];

/// Magnitudes below have no finite reciprocal.
pub(super) const LEAST_MAGNITUDE: f32 = 1e-38;

/// From here on scales are normal numbers of all types they are stored in.
pub(super) const LEAST_NORMAL: f32 = 6.103_515_6e-5;

/// Turns largest magnitudes into scales (for powers of two: reciprocals) and writes their stored form.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "scale codes are clamped to a byte")]
fn fit_amax(plan: &RowEncoder, scales: &mut [f32], reach: &mut f32, out: &mut [u8]) -> bool {
    match &plan.fit {
        &Fit::Amax { divisor, least } => {
            for scale in scales.iter_mut() {
                let amax = fmax(*scale, least);
                // Divided in any case: a choice between numbers is no branch.
                let quotient = fmax(amax / divisor, f32::from_bits(1));
                *scale = if amax == 0.0 { 1.0 } else { quotient };
            }
            let stored = store_floats(plan.store, scales, out);
            let least = scales.iter().fold(u32::MAX, |least, scale| least.min(scale.to_bits()));
            *reach = plan.reach(divisor, f32::from_bits(least) < LEAST_NORMAL);
            stored
        }
        Fit::Magnitude => {
            let stored = store_floats(plan.store, scales, out);
            for scale in scales {
                *scale = 1.0 / fmax(*scale, LEAST_MAGNITUDE);
            }
            stored
        }
        &Fit::Power(Power { largest, bias: [normal, subnormal], emax, .. }) => {
            for (value, byte) in scales.iter_mut().zip(out) {
                let q = largest.map_or(*value, |largest| *value / largest);
                let bias = if q < f32::MIN_POSITIVE { subnormal } else { normal };
                let code = ((q.to_bits() + bias) >> 23).cast_signed() - emax;
                *byte = code.clamp(0, 254) as u8;
                *value = E8m0(254 - *byte).to_f32();
            }
            true
        }
        Fit::Nested(nested) => {
            // Copies: what is read in a condition would be gathered lane by lane.
            let &Nested { largest, second, factor, least, of_zero, instead_of_zero, kind, ref steps, .. } = &**nested;
            let (mut lost, divides) = (0, plan.unit == Unit::Divide);
            let mut beyond = [0; 2];
            for (scale, byte) in scales.iter_mut().zip(out) {
                let amax = *scale;
                let t = ((amax / largest) / second) * factor;
                let code = kind.encode(fmax(t, least));
                let code = if code == 0 { instead_of_zero } else { code };
                let code = if amax == 0.0 { of_zero } else { code } as u8;
                lost |= u32::from(t == 0.0) & u32::from(amax != 0.0);
                *byte = code;
                let step = steps[usize::from(code & 127)];
                let (value, unit) = if divides { (amax, step) } else { (amax * step, 1.0) };
                for (beyond, reach) in beyond.iter_mut().zip(NESTED_REACHES) {
                    *beyond |= u32::from(value > reach * unit);
                }
                // Any scale makes zeros of a zero block.
                *scale = if amax == 0.0 { 1.0 } else { step };
            }
            let reaches = beyond.into_iter().zip(NESTED_REACHES);
            *reach = reaches.filter(|&(beyond, _)| beyond == 0).map(|(_, reach)| reach).fold(f32::INFINITY, f32::min);
            lost == 0
        }
        Fit::None | Fit::Symmetric { .. } | Fit::Asymmetric { .. } => true,
    }
}

#[inline(always)]
fn store_floats(store: Store, scales: &mut [f32], out: &mut [u8]) -> bool {
    match store {
        Store::Two(kind) => ops::store_scales16(scales, kind, out),
        _ => {
            let mut most = 0;
            for (scale, bytes) in scales.iter().zip(out.as_chunks_mut::<4>().0) {
                most = most.max(scale.to_bits());
                *bytes = scale.to_le_bytes();
            }
            most < INFINITE
        }
    }
}

/// Turns least (in `scales`) and largest values (in `zeros`) into scales and zero points.
#[inline(always)]
fn fit_ranges(plan: &RowEncoder, scales: &mut [f32], zeros: &mut [f32], reach: &mut f32, out: &mut [u8]) -> bool {
    let mut lows = [0.0; BLOCKS];
    let lows = &mut lows[..scales.len()];
    let mut wide = false;
    match plan.fit {
        Fit::Symmetric { levels } => {
            for (scale, zero) in scales.iter_mut().zip(zeros.iter_mut()) {
                let (low, high) = (ops::fmin(*scale, 0.0), fmax(*zero, 0.0));
                let high = fmax(high, -low);
                let low = if low < 0.0 { -high } else { 0.0 };
                let span = if high == 0.0 { 2.0 } else { high - low };
                *scale = span / levels;
                *zero = 0.0;
            }
        }
        Fit::Asymmetric { rule: IntRule::AwqAsym, levels } => {
            // Such a range need not include zero: values may lie any number of scales away.
            *reach = f32::INFINITY;
            for ((scale, zero), low) in scales.iter_mut().zip(zeros.iter()).zip(lows.iter_mut()) {
                *low = *scale;
                *scale = fmax(*zero - *low, 1e-5) / levels;
            }
        }
        Fit::Asymmetric { levels, .. } => {
            for ((scale, zero), low) in scales.iter_mut().zip(zeros.iter()).zip(lows.iter_mut()) {
                let (least, most) = (ops::fmin(*scale, 0.0), fmax(*zero, 0.0));
                let flat = least == most;
                *low = if flat { -1.0 } else { least };
                *scale = (if flat { 1.0 } else { most } - *low) / levels;
            }
        }
        _ => return false,
    }
    // A range beyond f32 or a zero scale: the reference decides.
    for scale in scales.iter() {
        wide |= scale.to_bits() >= INFINITE || *scale == 0.0;
    }
    if wide || !store_floats(plan.store, scales, out) {
        return false;
    }
    if let Fit::Asymmetric { rule, levels } = plan.fit {
        if rule == IntRule::Asymmetric {
            let least = scales.iter().fold(u32::MAX, |least, scale| least.min(scale.to_bits()));
            *reach = plan.reach(levels, f32::from_bits(least) < LEAST_NORMAL);
        }
        for ((&scale, zero), &low) in scales.iter().zip(zeros).zip(lows.iter()) {
            // Beyond 1024 the zero point saturates.
            let z = ops::fmin(fmax(-low / scale, -1024.0), 1024.0);
            let z = (z + MAGIC) - MAGIC;
            *zero = ops::fmin(fmax(z, 0.0), levels);
        }
    }
    true
}

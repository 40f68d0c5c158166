//! Rows of f32 into codes and scales.
//!
//! A row is cut into strips that fit the first-level cache. A strip is read twice: once for the
//! extremes of its blocks, from which the scales of all its blocks follow together, and once for the
//! codes. Codes are gathered a byte each on the stack, then packed, then written out in one go.

use super::ops::{self, BLOCKS, Bins, INFINITE, LEAST_GROUP, MAGIC, STRIP, SmallFloat, Strip, Unit, fmax};
use super::{Backend, Isa, Job, dispatch};
use crate::grid::largest_element;
use crate::{
    E8m0, Element, FloatKind, Format, FormatGrid, IntRule, Layout, NvRule, Overflow, Scale, ScaleRule, ScaleType,
    ZeroPoint,
};

use std::cell::RefCell;

/// How a format's rows are encoded; made once a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowEncoder {
    fit: Fit,
    store: Store,
    element: Kind,
    code_bits: u32,
    zero_bits: u32,
    group: usize,
    /// Bytes between what is worked on and what is asked for.
    ahead: usize,
    stream: bool,
}

/// How scales (and zero points) follow from the extremes of blocks.
#[derive(Clone, Copy, Debug)]
enum Fit {
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
    Power { rule: ScaleRule, largest: f32, emax: i32, mantissa: u32, drop_sign_of_zero: bool },
    /// E4M3 under a tensor scale.
    Nested { largest: f32, second: f32 },
}

/// How scales are stored.
#[derive(Clone, Copy, Debug)]
enum Store {
    Nothing,
    F32,
    Two(SmallFloat),
    E8m0,
    E4m3(SmallFloat),
}

/// How elements become codes.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a tensor, and it is not moved")]
enum Kind {
    Small(ops::Element),
    Float16(SmallFloat),
    Book(Bins),
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
        let element = Self::element(format)?;
        Some(Self {
            fit,
            store,
            element,
            code_bits: format.code_bits(),
            zero_bits: match format.zero_point() {
                ZeroPoint::None => 0,
                ZeroPoint::Integer { bits } => u32::from(bits),
                ZeroPoint::Float(_) => return None,
            },
            group: if matches!(fit, Fit::None) { group.min(STRIP) } else { group },
            ahead: (4 * group).clamp(4 * STRIP, 64 << 10),
            stream: layout.code_bytes() >= super::STREAM_BYTES,
        })
    }

    fn scale(grid: &FormatGrid) -> Option<(Fit, Store)> {
        let format = grid.format();
        let largest = largest_element(format.element);
        let store = match format.scale {
            Scale::None => Store::Nothing,
            Scale::Float(ScaleType::F32) => Store::F32,
            Scale::Float(ScaleType::F16) => Store::Two(SmallFloat::new(FloatKind::F16)?),
            Scale::Float(ScaleType::Bf16) => Store::Two(SmallFloat::new(FloatKind::Bf16)?),
            Scale::E8m0(_) => Store::E8m0,
            Scale::E4m3(NvRule::Standard) => Store::E4m3(SmallFloat::new(FloatKind::E4m3Fn)?),
            Scale::E4m3(_) | Scale::Double | Scale::Exponent(_) => return None,
        };
        let fit = match (format.scale, format.element) {
            (Scale::None, _) => Fit::None,
            (Scale::E8m0(rule), Element::Int { bits, .. }) => {
                let largest = largest / f32::from(1_u16 << (bits - 2));
                Fit::Power { rule, largest, emax: 0, mantissa: u32::from(bits) - 2, drop_sign_of_zero: false }
            }
            (Scale::E8m0(rule), Element::Float { kind, .. }) => {
                let emax = (largest.to_bits() >> 23).cast_signed() - 127;
                let ct = rule == ScaleRule::EvenCt;
                let mantissa = if ct { 1 } else { kind.mantissa_bits() };
                if ct && !matches!(kind, FloatKind::E4m3Fn | FloatKind::E5m2 | FloatKind::E2m1) {
                    return None;
                }
                let drop_sign_of_zero = ct && kind == FloatKind::E2m1;
                Fit::Power { rule, largest, emax, mantissa, drop_sign_of_zero }
            }
            (Scale::E4m3(_), _) => {
                let second = grid.tensor_scale();
                (second > 0.0 && second.is_finite()).then_some(Fit::Nested { largest, second })?
            }
            (_, Element::Int { bits, rule }) => {
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
            (_, Element::Float { .. }) => Fit::Amax { divisor: largest, least: 0.0 },
            (_, Element::Codebook(_)) => Fit::Magnitude,
            _ => return None,
        };
        Some((fit, store))
    }

    fn element(format: Format) -> Option<Kind> {
        Some(match format.element {
            Element::Int { bits: 0 | 1 | 9.., .. } => return None,
            Element::Int { bits, rule } => {
                let high = f32::from((1_u16 << (bits - 1)) - 1);
                let levels = f32::from((1_u16 << bits) - 1);
                let factor = match format.scale {
                    Scale::E8m0(_) => f32::from(1_u16 << (bits - 2)),
                    _ => 1.0,
                };
                let int = |factor, low, high| Kind::Small(ops::Element::Int { factor, low, high });
                match rule {
                    IntRule::Restricted => int(factor, -high, high),
                    IntRule::Full | IntRule::GptqSym | IntRule::AwqSym => int(factor, -high - 1.0, high),
                    IntRule::Asymmetric | IntRule::AwqAsym => int(1.0, 0.0, levels),
                    IntRule::CtSym | IntRule::CtAsym | IntRule::FloatMin | IntRule::Mlx => return None,
                }
            }
            Element::Float { overflow: Overflow::NonSaturating, .. } => return None,
            Element::Float { kind, .. } if kind.bits() == 16 => Kind::Float16(SmallFloat::new(kind)?),
            Element::Float { kind, .. } => Kind::Small(ops::Element::Float(SmallFloat::new(kind)?)),
            Element::Codebook(book) => Kind::Book(Bins::new(book.values())?),
            Element::Magnitude { .. } | Element::Ternary(_) => return None,
        })
    }

    /// Encodes one row into its bytes. False when the reference must decide: a value is not finite or
    /// a scale overflows. The bytes are then half written.
    pub(crate) fn encode(&self, isa: Isa, x: &[f32], codes: &mut [u8], scales: &mut [u8], zeros: &mut [u8]) -> bool {
        SCRATCH.with_borrow_mut(|scratch| dispatch(isa, EncodeRow { plan: self, x, codes, scales, zeros, scratch }))
    }
}

struct EncodeRow<'a> {
    plan: &'a RowEncoder,
    x: &'a [f32],
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    zeros: &'a mut [u8],
    scratch: &'a mut Scratch,
}

/// What would otherwise have to be cleared for every row.
struct Scratch {
    fitted: Fitted,
    codes: [u8; STRIP],
    packed: [u8; 2 * STRIP],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        let fitted = Fitted { scales: [1.0; BLOCKS], zeros: [0.0; BLOCKS], high: [0.0; BLOCKS], low: [0.0; BLOCKS], reach: 0.0 };
        RefCell::new(Scratch { fitted, codes: [0; STRIP], packed: [0; 2 * STRIP] })
    };
}

/// What the blocks of a strip were fitted to.
#[derive(Clone, Debug)]
struct Fitted {
    /// The stored scales as f32; for powers of two their reciprocals.
    scales: [f32; BLOCKS],
    zeros: [f32; BLOCKS],
    high: [f32; BLOCKS],
    low: [f32; BLOCKS],
    /// No value is larger than so many scales.
    reach: f32,
}

impl Job for EncodeRow<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<B: Backend>(self, backend: B) -> bool {
        let Self { plan, x, codes, scales, zeros, scratch } = self;
        zeros.fill(0);
        scratch.fitted.reach = 512.0;
        if plan.zero_bits == 0 {
            let blocks = (STRIP / plan.group).clamp(1, BLOCKS);
            scratch.fitted.zeros[..blocks].fill(0.0);
        }
        if x.len() <= plan.group || plan.group > STRIP {
            return encode_long_blocks(backend, plan, x, codes, scales, zeros, scratch);
        }
        let blocks = STRIP / plan.group;
        let strip = blocks * plan.group;
        let strip_bytes = strip * plan.code_bits as usize / 8;
        let scale_bytes = plan.scale_bytes();
        for (i, x) in x.chunks(strip).enumerate() {
            let count = x.len().div_ceil(plan.group);
            let scales = &mut scales[i * blocks * scale_bytes..][..count * scale_bytes];
            if !fit_strip(backend, plan, x, scales, &mut scratch.fitted) {
                return false;
            }
            let bytes = x.len() * plan.code_bits as usize;
            let codes = &mut codes[i * strip_bytes..][..bytes.div_ceil(8)];
            encode_strip(backend, plan, x, scratch, codes);
            write_zeros(plan, &scratch.fitted.zeros[..count], i * blocks, zeros);
        }
        if plan.stream {
            backend.fence();
        }
        true
    }
}

impl RowEncoder {
    #[inline(always)]
    fn scale_bytes(&self) -> usize {
        match self.store {
            Store::Nothing => 0,
            Store::F32 => 4,
            Store::Two(_) => 2,
            Store::E8m0 | Store::E4m3(_) => 1,
        }
    }
}

/// A row whose blocks are longer than a strip, or that is a single block.
#[inline(always)]
fn encode_long_blocks<B: Backend>(
    backend: B,
    plan: &RowEncoder,
    x: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
    zeros: &mut [u8],
    scratch: &mut Scratch,
) -> bool {
    let scale_bytes = plan.scale_bytes();
    for (i, block) in x.chunks(plan.group).enumerate() {
        let scales = &mut scales[i * scale_bytes..][..scale_bytes];
        if !fit_strip(backend, plan, block, scales, &mut scratch.fitted) {
            return false;
        }
        let first = i * plan.group * plan.code_bits as usize / 8;
        for (j, part) in block.chunks(STRIP).enumerate() {
            let start = first + j * STRIP * plan.code_bits as usize / 8;
            let len = (part.len() * plan.code_bits as usize).div_ceil(8);
            encode_strip(backend, plan, part, scratch, &mut codes[start..][..len]);
        }
        write_zeros(plan, &scratch.fitted.zeros[..1], i, zeros);
    }
    if plan.stream {
        backend.fence();
    }
    true
}

/// Writes zero points from position `first` on; rows of blocks start on a byte and strips on whole bytes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "zero points are small integers")]
fn write_zeros(plan: &RowEncoder, zeros: &[f32], first: usize, out: &mut [u8]) {
    if plan.zero_bits == 0 {
        return;
    }
    if plan.zero_bits == 8 {
        for (&zero, byte) in zeros.iter().zip(&mut out[first..]) {
            *byte = zero as u8;
        }
        return;
    }
    // The bytes were zero before; blocks of a strip need not begin on one.
    for (i, &zero) in zeros.iter().enumerate() {
        let bit = (first + i) * plan.zero_bits as usize;
        let window = u16::from(zero as u8) << (bit % 8);
        for (byte, part) in out[bit / 8..].iter_mut().zip(window.to_le_bytes()) {
            *byte |= part;
        }
    }
}

/// Fits the blocks of a strip; writes the stored scales.
#[inline(always)]
fn fit_strip<B: Backend>(backend: B, plan: &RowEncoder, x: &[f32], out: &mut [u8], fitted: &mut Fitted) -> bool {
    let count = x.len().div_ceil(plan.group);
    let scales = &mut fitted.scales[..count];
    match plan.fit {
        Fit::Symmetric { .. } | Fit::Asymmetric { .. } => {
            let zeros = &mut fitted.zeros[..count];
            backend.range_blocks(x, plan.group, scales, zeros)
                && fit_ranges(plan, scales, zeros, &mut fitted.reach, out)
        }
        Fit::None => {
            let mut amax = [0.0];
            backend.amax_blocks(x, x.len(), &mut amax);
            amax[0].is_finite()
        }
        _ => {
            let whole = x.len() / plan.group;
            backend.amax_blocks(&x[..whole * plan.group], plan.group, &mut scales[..whole]);
            if let [last] = &mut scales[whole..] {
                *last = f32::from_bits(ops::amax_bits(&x[whole * plan.group..]));
            }
            ops::amax_bits(scales) < INFINITE && fit_amax(plan, scales, &mut fitted.reach, out)
        }
    }
}

/// From here on scales are normal numbers of all types they are stored in.
const LEAST_NORMAL: f32 = 6.103_515_6e-5;

/// Turns largest magnitudes into scales (for powers of two: reciprocals) and writes their stored form.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "scale codes are clamped to a byte")]
fn fit_amax(plan: &RowEncoder, scales: &mut [f32], reach: &mut f32, out: &mut [u8]) -> bool {
    match plan.fit {
        Fit::Amax { divisor, least } => {
            for scale in scales.iter_mut() {
                let amax = fmax(*scale, least);
                *scale = if amax == 0.0 { 1.0 } else { fmax(amax / divisor, f32::from_bits(1)) };
            }
            let stored = store_floats(plan.store, scales, out);
            // Normal scales are rounded by so much at most.
            let rounding = match plan.store {
                Store::Two(kind) => f32::EPSILON * f32::from_bits((126 + kind.shift) << 23),
                _ => f32::EPSILON,
            };
            let least = scales.iter().fold(u32::MAX, |least, scale| least.min(scale.to_bits()));
            *reach = if f32::from_bits(least) < LEAST_NORMAL { 2.0 } else { 1.0 + rounding } * divisor;
            stored
        }
        Fit::Magnitude => store_floats(plan.store, scales, out),
        Fit::Power { rule, largest, emax, mantissa, .. } => {
            let field = |x: f32| (x.to_bits() >> 23).cast_signed();
            let fraction = |x: f32| x.to_bits() & 0x7f_ffff;
            match rule {
                ScaleRule::Floor => powers(scales, out, |a| field(a) - emax),
                ScaleRule::Ceil => powers(scales, out, |a| field(a) + i32::from(fraction(a) != 0) - emax),
                ScaleRule::Even | ScaleRule::EvenCt => {
                    let half = 1 << (22 - mantissa);
                    powers(scales, out, |a| ((a.to_bits() + half) >> 23).cast_signed() - emax);
                }
                ScaleRule::RCeil => powers(scales, out, |a| {
                    let q = a / largest;
                    let (exponent, fraction) = (field(q), fraction(q));
                    // Below the normals the exponent grows from the middle of the fraction on.
                    exponent + i32::from(fraction > if exponent == 0 { 0x40_0000 } else { 0 })
                }),
                ScaleRule::RFloor => powers(scales, out, |a| field(a / largest)),
                ScaleRule::RRound => powers(scales, out, |a| {
                    let q = a / largest;
                    // The mantissas of √2, and of √2·2^-127 among the subnormals.
                    field(q) + i32::from(fraction(q) > if field(q) == 0 { 0x5a_8279 } else { 0x35_04f3 })
                }),
            }
            true
        }
        Fit::Nested { largest, second } => {
            let Store::E4m3(kind) = plan.store else { return false };
            let mut far = 0;
            for (scale, byte) in scales.iter_mut().zip(out) {
                let amax = *scale;
                let code = kind.encode((amax / largest) / second).max(1);
                let code = if amax == 0.0 { 0 } else { code };
                let value = kind.decode_finite(code) * second;
                // Where the product underflows all becomes zeros with the sign of x, as dividing by
                // infinity has it. Any scale makes zeros of a zero block.
                let divisor = if value == 0.0 { f32::INFINITY } else { value };
                far |= u32::from(amax > 4096.0 * divisor);
                *scale = if amax == 0.0 { 1.0 } else { divisor };
                *byte = code as u8;
            }
            *reach = if far != 0 { f32::INFINITY } else { 4096.0 };
            true
        }
        Fit::None | Fit::Symmetric { .. } | Fit::Asymmetric { .. } => true,
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
fn powers(amax: &mut [f32], out: &mut [u8], code: impl Fn(f32) -> i32) {
    for (value, byte) in amax.iter_mut().zip(out) {
        let code = if *value == 0.0 { 0 } else { code(*value).clamp(0, 254) };
        *byte = code as u8;
        *value = E8m0((254 - code) as u8).to_f32();
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
    if let Fit::Asymmetric { levels, .. } = plan.fit {
        for ((&scale, zero), &low) in scales.iter().zip(zeros).zip(lows.iter()) {
            // Beyond 1024 the zero point saturates.
            let z = ops::fmin(fmax(-low / scale, -1024.0), 1024.0);
            let z = (z + MAGIC) - MAGIC;
            *zero = ops::fmin(fmax(z, 0.0), levels);
        }
    }
    true
}

/// Encodes a strip and packs its codes.
#[inline(always)]
fn encode_strip<B: Backend>(backend: B, plan: &RowEncoder, x: &[f32], scratch: &mut Scratch, out: &mut [u8]) {
    let Scratch { fitted, codes, packed } = scratch;
    if let Kind::Float16(kind) = plan.element {
        let bytes = &mut packed[..2 * x.len()];
        prefetch_next(backend, plan, x);
        backend.encode_float16(x, kind, bytes);
        return write_out(backend, plan, bytes, out);
    }
    let codes = &mut codes[..x.len()];
    match plan.element {
        Kind::Small(element) => {
            let unit = match plan.fit {
                Fit::None => Unit::Keep,
                Fit::Power { drop_sign_of_zero: true, .. } => Unit::MultiplyPositiveZero,
                Fit::Power { .. } => Unit::Multiply,
                _ => Unit::Divide,
            };
            let group = plan.group.min(STRIP);
            let Fitted { scales, zeros, high, low, reach } = fitted;
            if unit == Unit::Divide {
                let count = x.len().div_ceil(group);
                backend.reciprocate(&scales[..count], &mut high[..count], &mut low[..count]);
            }
            let strip = Strip { x, group, unit, element, scales, high, low, zeros, reach: *reach };
            backend.encode_blocks(&strip, plan.ahead, codes);
        }
        Kind::Book(bins) => {
            for ((x, codes), &scale) in x.chunks(plan.group).zip(codes.chunks_mut(plan.group)).zip(&fitted.scales) {
                prefetch_next(backend, plan, x);
                backend.encode_book(x, 1.0 / fmax(scale, 1e-38), &bins, codes);
            }
        }
        Kind::Float16(_) => {}
    }
    if plan.code_bits == 8 {
        write_out(backend, plan, codes, out);
    } else {
        let packed = &mut packed[..out.len()];
        ops::pack(codes, plan.code_bits, packed);
        write_out(backend, plan, packed, out);
    }
}

#[inline(always)]
fn write_out<B: Backend>(backend: B, plan: &RowEncoder, from: &[u8], to: &mut [u8]) {
    if plan.stream {
        backend.stream_bytes(from, to);
    } else {
        to.copy_from_slice(from);
    }
}

/// Asks for what lies a strip or a row further: while codes are made, memory would otherwise be idle.
#[inline(always)]
fn prefetch_next<B: Backend>(backend: B, plan: &RowEncoder, x: &[f32]) {
    for line in (0..x.len()).step_by(16) {
        backend.prefetch(x, plan.ahead + 4 * line);
    }
}

//! Rows of f32 into codes and scales.
//!
//! A row is cut into strips that fit the first-level cache. A strip is read twice: once for the
//! extremes of its blocks, from which the scales of all its blocks follow together, and once for the
//! codes. Codes are gathered a byte each on the stack, then packed, then written out in one go.

use super::ops::{self, Bins, Divide, Keep, MAGIC, Multiply, MultiplyPositiveZero, SmallFloat, Unit, fmax};
use super::{Backend, Isa, Job, dispatch};
use crate::grid::largest_element;
use crate::{
    E8m0, Element, FloatKind, Format, FormatGrid, IntRule, Layout, NvRule, Overflow, Scale, ScaleRule, ScaleType,
    ZeroPoint,
};

/// Elements of a strip, at most: 8 KiB of f32.
const STRIP: usize = 2048;
/// The smallest blocks that kernels take.
const LEAST_GROUP: usize = 8;
const BLOCKS: usize = STRIP / LEAST_GROUP;

/// How a format's rows are encoded; made once a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowEncoder {
    fit: Fit,
    store: Store,
    element: Kind,
    code_bits: u32,
    zero_bits: u32,
    group: usize,
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
    Int { factor: f32, low: f32, high: f32 },
    IntOffset { high: f32 },
    Float(SmallFloat),
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
            group,
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
                match rule {
                    IntRule::Restricted => Kind::Int { factor, low: -high, high },
                    IntRule::Full | IntRule::GptqSym | IntRule::AwqSym => Kind::Int { factor, low: -high - 1.0, high },
                    IntRule::Asymmetric | IntRule::AwqAsym => Kind::IntOffset { high: levels },
                    IntRule::CtSym | IntRule::CtAsym | IntRule::FloatMin | IntRule::Mlx => return None,
                }
            }
            Element::Float { overflow: Overflow::NonSaturating, .. } => return None,
            Element::Float { kind, .. } if kind.bits() == 16 => Kind::Float16(SmallFloat::new(kind)?),
            Element::Float { kind, .. } => Kind::Float(SmallFloat::new(kind)?),
            Element::Codebook(book) => Kind::Book(Bins::new(book.values())?),
            Element::Magnitude { .. } | Element::Ternary(_) => return None,
        })
    }

    /// Encodes one row into its bytes. False when the reference must decide: a value is not finite or
    /// a scale overflows. The bytes are then half written.
    pub(crate) fn encode(&self, isa: Isa, x: &[f32], codes: &mut [u8], scales: &mut [u8], zeros: &mut [u8]) -> bool {
        dispatch(isa, EncodeRow { plan: self, x, codes, scales, zeros })
    }
}

struct EncodeRow<'a> {
    plan: &'a RowEncoder,
    x: &'a [f32],
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    zeros: &'a mut [u8],
}

/// What the blocks of a strip were fitted to.
struct Fitted {
    /// The stored scales as f32; for powers of two their reciprocals.
    scales: [f32; BLOCKS],
    zeros: [f32; BLOCKS],
}

impl Job for EncodeRow<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<B: Backend>(self, backend: B) -> bool {
        let Self { plan, x, codes, scales, zeros } = self;
        zeros.fill(0);
        let mut fitted = Fitted { scales: [1.0; BLOCKS], zeros: [0.0; BLOCKS] };
        if x.len() <= plan.group || plan.group > STRIP {
            return encode_long_blocks(backend, plan, x, codes, scales, zeros, &mut fitted);
        }
        let blocks = STRIP / plan.group;
        let strip = blocks * plan.group;
        let strip_bytes = strip * plan.code_bits as usize / 8;
        let scale_bytes = plan.scale_bytes();
        for (i, x) in x.chunks(strip).enumerate() {
            let count = x.len().div_ceil(plan.group);
            let scales = &mut scales[i * blocks * scale_bytes..][..count * scale_bytes];
            if !fit_strip(plan, x, scales, &mut fitted) {
                return false;
            }
            let bytes = x.len() * plan.code_bits as usize;
            let codes = &mut codes[i * strip_bytes..][..bytes.div_ceil(8)];
            encode_strip(backend, plan, x, &fitted, codes);
            write_zeros(plan, &fitted.zeros[..count], i * blocks, zeros);
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
    fitted: &mut Fitted,
) -> bool {
    let scale_bytes = plan.scale_bytes();
    for (i, block) in x.chunks(plan.group).enumerate() {
        let scales = &mut scales[i * scale_bytes..][..scale_bytes];
        if !fit_strip(plan, block, scales, fitted) {
            return false;
        }
        let first = i * plan.group * plan.code_bits as usize / 8;
        for (j, part) in block.chunks(STRIP).enumerate() {
            let start = first + j * STRIP * plan.code_bits as usize / 8;
            let len = (part.len() * plan.code_bits as usize).div_ceil(8);
            encode_strip(backend, plan, part, fitted, &mut codes[start..][..len]);
        }
        write_zeros(plan, &fitted.zeros[..1], i, zeros);
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
fn fit_strip(plan: &RowEncoder, x: &[f32], out: &mut [u8], fitted: &mut Fitted) -> bool {
    let count = x.len().div_ceil(plan.group);
    let scales = &mut fitted.scales[..count];
    match plan.fit {
        Fit::Symmetric { .. } | Fit::Asymmetric { .. } => {
            let zeros = &mut fitted.zeros[..count];
            for ((block, scale), zero) in x.chunks(plan.group).zip(&mut *scales).zip(&mut *zeros) {
                (*scale, *zero) = ops::range(block);
            }
            fit_ranges(plan, scales, zeros, out)
        }
        Fit::None => ops::amax_bits(x) < INFINITE,
        _ => {
            let whole = x.len() / plan.group;
            let (done, rest) = scales.split_at_mut(whole);
            match plan.group {
                16 => ops::amax_blocks::<16>(x, done),
                32 => ops::amax_blocks::<32>(x, done),
                64 => ops::amax_blocks::<64>(x, done),
                128 => ops::amax_blocks::<128>(x, done),
                group => {
                    for (block, amax) in x.chunks(group).zip(done) {
                        *amax = f32::from_bits(ops::amax_bits(block));
                    }
                }
            }
            if let [last] = rest {
                *last = f32::from_bits(ops::amax_bits(&x[whole * plan.group..]));
            }
            ops::amax_bits(scales) < INFINITE && fit_amax(plan, scales, out)
        }
    }
}

const INFINITE: u32 = 0x7f80_0000;

/// Turns largest magnitudes into scales (for powers of two: reciprocals) and writes their stored form.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "scale codes are clamped to a byte")]
fn fit_amax(plan: &RowEncoder, scales: &mut [f32], out: &mut [u8]) -> bool {
    match plan.fit {
        Fit::Amax { divisor, least } => {
            for scale in scales.iter_mut() {
                let amax = fmax(*scale, least);
                *scale = if amax == 0.0 { 1.0 } else { fmax(amax / divisor, f32::from_bits(1)) };
            }
            store_floats(plan.store, scales, out)
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
            for (scale, byte) in scales.iter_mut().zip(out) {
                let code = kind.encode((*scale / largest) / second).max(1);
                let code = if *scale > 0.0 { code } else { 0 };
                *scale = kind.decode(code) * second;
                *byte = code as u8;
            }
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
fn fit_ranges(plan: &RowEncoder, scales: &mut [f32], zeros: &mut [f32], out: &mut [u8]) -> bool {
    if ops::amax_bits(scales).max(ops::amax_bits(zeros)) >= INFINITE {
        return false;
    }
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
fn encode_strip<B: Backend>(backend: B, plan: &RowEncoder, x: &[f32], fitted: &Fitted, out: &mut [u8]) {
    if let Kind::Float16(kind) = plan.element {
        let mut bytes = [0; 2 * STRIP];
        let bytes = &mut bytes[..2 * x.len()];
        prefetch_next(backend, x);
        ops::encode_float16(x, kind, bytes);
        return write_out(backend, plan, bytes, out);
    }
    let mut codes = [0; STRIP];
    let codes = &mut codes[..x.len()];
    match plan.element {
        Kind::Int { factor, low, high } => each_block(backend, plan, x, fitted, codes, IntBlock { factor, low, high }),
        Kind::IntOffset { high } => {
            blocks(backend, plan.group, x, fitted, codes, |x, scale, zero, codes| {
                ops::encode_int_offset(x, Divide(scale), zero, high, codes);
            });
        }
        Kind::Float(kind) => each_block(backend, plan, x, fitted, codes, FloatBlock(kind)),
        Kind::Book(bins) => blocks(backend, plan.group, x, fitted, codes, |x, scale, _, codes| {
            backend.encode_book(x, 1.0 / fmax(scale, 1e-38), &bins, codes);
        }),
        Kind::Float16(_) => {}
    }
    if plan.code_bits == 8 {
        write_out(backend, plan, codes, out);
    } else {
        let mut packed = [0; STRIP];
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

/// Encodes the values of one block, in whatever unit its scale defines.
trait BlockKernel: Copy {
    fn encode(self, x: &[f32], unit: impl Unit, codes: &mut [u8]);
}

#[derive(Clone, Copy)]
struct IntBlock {
    factor: f32,
    low: f32,
    high: f32,
}

impl BlockKernel for IntBlock {
    #[inline(always)]
    fn encode(self, x: &[f32], unit: impl Unit, codes: &mut [u8]) {
        ops::encode_int(x, unit, self.factor, self.low, self.high, codes);
    }
}

#[derive(Clone, Copy)]
struct FloatBlock(SmallFloat);

impl BlockKernel for FloatBlock {
    #[inline(always)]
    fn encode(self, x: &[f32], unit: impl Unit, codes: &mut [u8]) {
        ops::encode_float(x, unit, self.0, codes);
    }
}

/// Runs a kernel over all blocks with the unit that the format's scale asks for.
#[inline(always)]
fn each_block<B: Backend>(
    backend: B,
    plan: &RowEncoder,
    x: &[f32],
    fitted: &Fitted,
    codes: &mut [u8],
    kernel: impl BlockKernel,
) {
    match plan.fit {
        Fit::None => {
            prefetch_next(backend, x);
            kernel.encode(x, Keep, codes);
        }
        Fit::Power { drop_sign_of_zero: true, .. } => {
            blocks(backend, plan.group, x, fitted, codes, |x, scale, _, codes| {
                kernel.encode(x, MultiplyPositiveZero(scale), codes);
            });
        }
        Fit::Power { .. } => blocks(backend, plan.group, x, fitted, codes, |x, scale, _, codes| {
            kernel.encode(x, Multiply(scale), codes);
        }),
        _ => blocks(backend, plan.group, x, fitted, codes, |x, scale, _, codes| {
            // A zero scale makes zeros with the sign of x, as dividing by infinity does.
            let scale = if scale == 0.0 { f32::INFINITY } else { scale };
            kernel.encode(x, Divide(scale), codes);
        }),
    }
}

/// Cuts a strip into blocks; the usual sizes are known to the compiler.
#[inline(always)]
fn blocks<B: Backend>(
    backend: B,
    group: usize,
    x: &[f32],
    fitted: &Fitted,
    codes: &mut [u8],
    kernel: impl Fn(&[f32], f32, f32, &mut [u8]),
) {
    let params = fitted.scales.iter().zip(&fitted.zeros);
    match group {
        16 => {
            let (x, x_tail) = x.as_chunks::<16>();
            let (codes, codes_tail) = codes.as_chunks_mut::<16>();
            for ((x, codes), (&scale, &zero)) in x.iter().zip(codes).zip(params) {
                prefetch_next(backend, x);
                kernel(x, scale, zero, codes);
            }
            kernel(x_tail, fitted.scales[x.len().min(BLOCKS - 1)], fitted.zeros[x.len().min(BLOCKS - 1)], codes_tail);
        }
        32 => {
            let (x, x_tail) = x.as_chunks::<32>();
            let (codes, codes_tail) = codes.as_chunks_mut::<32>();
            for ((x, codes), (&scale, &zero)) in x.iter().zip(codes).zip(params) {
                prefetch_next(backend, x);
                kernel(x, scale, zero, codes);
            }
            kernel(x_tail, fitted.scales[x.len()], fitted.zeros[x.len()], codes_tail);
        }
        _ => {
            for ((x, codes), (&scale, &zero)) in x.chunks(group).zip(codes.chunks_mut(group)).zip(params) {
                prefetch_next(backend, x);
                kernel(x, scale, zero, codes);
            }
        }
    }
}

/// Asks for what lies one strip further: while codes are made, memory would otherwise be idle.
#[inline(always)]
fn prefetch_next<B: Backend>(backend: B, x: &[f32]) {
    for line in (0..x.len()).step_by(16) {
        backend.prefetch(x, 4 * (STRIP + line));
    }
}

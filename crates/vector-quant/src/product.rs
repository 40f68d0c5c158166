//! Products with a coded matrix: a few rows of it are decoded at a time, a few columns each, into a buffer that stays in
//! the first cache, and multiplied with every row of `x` before the next.
//!
//! The sum of an output is formed in 16 lanes, lane `l` over the columns `l, l + 16, …` in order and by fused operations,
//! the lanes are added pairwise, and the total is multiplied by the scale of the row. It does not depend on how many rows
//! `x` has, on threads or on the machine.

use crate::e8p::Patterns;
use crate::linear::{Books, VqLinear};
use crate::{E8P, LearnedBook, Residual, VectorCodec};
use pulp::{Arch, Simd, WithSimd};
use quant_core::bits;
use rayon::prelude::*;

/// Lanes of a sum.
const LANES: usize = 16;
/// Rows of the weight that are decoded together.
const OUTPUTS: usize = 8;
/// Columns that are decoded together, more or less.
const COLUMNS: usize = 512;

/// `y = x Ŵᵀ` for `rows` rows of `x`; the caller has checked the lengths.
pub(crate) fn matmul(weight: &VqLinear, x: &[f32], rows: usize, y: &mut [f32]) -> Result<(), quant_core::Error> {
    let [outputs, columns] = weight.shape;
    let arch = Arch::new();
    let mut transposed = vec![0.0; y.len()];
    let blocks = transposed.par_chunks_mut((OUTPUTS * rows).max(1)).enumerate().with_min_len(2);
    blocks.try_for_each_init(
        || (Decoder::new(weight), vec![[[0.0; LANES]; OUTPUTS]; rows]),
        |(decoder, sums), (block, y)| {
            sums.iter_mut().for_each(|sums| *sums = [[0.0; LANES]; OUTPUTS]);
            let first = block * OUTPUTS;
            for start in (0..columns).step_by(decoder.columns) {
                let width = decoder.columns.min(columns - start);
                decoder.decode(first, OUTPUTS.min(outputs - first), start, width)?;
                let (weights, stride) = (&decoder.values, decoder.columns);
                arch.dispatch(Accumulate { weights, stride, x, columns, start, width, sums });
            }
            for (output, y) in y.chunks_exact_mut(rows.max(1)).enumerate() {
                let scale = weight.scale(first + output);
                y.iter_mut().zip(&*sums).for_each(|(y, sums)| *y = pairwise(sums[output]) * scale);
            }
            Ok(())
        },
    )?;
    for (row, y) in y.chunks_exact_mut(outputs).enumerate() {
        y.iter_mut().enumerate().for_each(|(output, y)| *y = transposed[output * rows + row]);
    }
    Ok(())
}

/// Writes all values of the weight.
pub(crate) fn decode(weight: &VqLinear, out: &mut [f32]) -> Result<(), quant_core::Error> {
    let columns = weight.shape[1];
    out.par_chunks_exact_mut(columns).enumerate().try_for_each_init(
        || Decoder::new(weight),
        |decoder, (row, out)| {
            for (part, out) in out.chunks_mut(decoder.columns).enumerate() {
                let start = part * decoder.columns;
                decoder.decode(row, 1, start, out.len())?;
                let scale = weight.scale(row);
                out.iter_mut().zip(&decoder.values).for_each(|(out, value)| *out = value * scale);
            }
            Ok(())
        },
    )
}

/// Multiplies decoded columns with those of every row of `x`.
struct Accumulate<'a> {
    /// `[OUTPUTS, stride]`
    weights: &'a [f32],
    stride: usize,
    x: &'a [f32],
    columns: usize,
    start: usize,
    width: usize,
    sums: &'a mut [[[f32; LANES]; OUTPUTS]],
}

impl WithSimd for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match LANES / S::F32_LANES {
            1 => self.run::<S, 1>(simd),
            2 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, LANES>(simd),
        }
    }
}

impl Accumulate<'_> {
    /// With `G` registers for the lanes of a sum.
    #[inline(always)]
    fn run<S: Simd, const G: usize>(self, simd: S) {
        let w: [&[f32]; OUTPUTS] = std::array::from_fn(|o| &self.weights[o * self.stride..][..self.width]);
        let part = |row: usize| &self.x[row * self.columns + self.start..][..self.width];
        let (pairs, last) = self.sums.as_chunks_mut::<2>();
        for (pair, [first, second]) in pairs.iter_mut().enumerate() {
            accumulate::<S, G, 2>(simd, w, [part(2 * pair), part(2 * pair + 1)], [first, second]);
        }
        if let [sums] = last {
            accumulate::<S, G, 1>(simd, w, [part(2 * pairs.len())], [sums]);
        }
    }
}

/// Adds the products of some columns to the sums of `X` rows of `x`.
#[inline(always)]
fn accumulate<S: Simd, const G: usize, const X: usize>(
    simd: S,
    w: [&[f32]; OUTPUTS],
    x: [&[f32]; X],
    sums: [&mut [[f32; LANES]; OUTPUTS]; X],
) {
    let whole = w[0].len() / LANES * LANES;
    // The same length for all, so that no access in the loop has to be checked.
    let registers = whole / S::F32_LANES;
    let (ws, xs) = (w.map(|w| &S::as_simd_f32s(w).0[..registers]), x.map(|x| &S::as_simd_f32s(x).0[..registers]));
    let mut own = [[[simd.splat_f32s(0.0); G]; OUTPUTS]; X];
    for i in 0..X {
        for o in 0..OUTPUTS {
            own[i][o].copy_from_slice(S::as_simd_f32s(&sums[i][o]).0);
        }
    }
    for at in (0..registers).step_by(G) {
        for i in 0..X {
            for o in 0..OUTPUTS {
                for (g, own) in own[i][o].iter_mut().enumerate() {
                    *own = simd.mul_add_f32s(ws[o][at + g], xs[i][at + g], *own);
                }
            }
        }
    }
    for i in 0..X {
        for o in 0..OUTPUTS {
            S::as_mut_simd_f32s(&mut sums[i][o]).0.copy_from_slice(&own[i][o]);
            let tail = w[o][whole..].iter().zip(&x[i][whole..]);
            for (sum, (w, x)) in sums[i][o].iter_mut().zip(tail) {
                *sum = w.mul_add(*x, *sum);
            }
        }
    }
}

/// The sum of the lanes.
fn pairwise(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Decodes a few rows and columns at a time.
struct Decoder<'a> {
    weight: &'a VqLinear,
    arch: Arch,
    patterns: &'static Patterns,
    /// Columns of a part: whole vectors, whole lanes and whole bytes of codes.
    columns: usize,
    /// `[OUTPUTS, columns]`
    values: Vec<f32>,
    codes: Vec<u32>,
    plane: Vec<u16>,
}

impl<'a> Decoder<'a> {
    fn new(weight: &'a VqLinear) -> Self {
        let vectors = LANES * (COLUMNS / LANES / weight.dim).max(1);
        let columns = vectors * weight.dim;
        Self {
            weight,
            arch: Arch::new(),
            patterns: Patterns::get(),
            columns,
            values: vec![0.0; OUTPUTS * columns],
            codes: vec![0; vectors],
            plane: vec![0; vectors],
        }
    }

    /// Decodes `width` columns from `start` on, a multiple of the columns of a part, of `rows` rows from `first` on,
    /// without their scales.
    fn decode(&mut self, first: usize, rows: usize, start: usize, width: usize) -> Result<(), quant_core::Error> {
        let dim = self.weight.dim;
        for o in 0..rows {
            self.unpack(first + o, start / dim, width / dim)?;
            self.decode_row(first + o, start, o * self.columns..o * self.columns + width);
        }
        Ok(())
    }

    /// Puts the codes of some vectors of a row together from their planes.
    fn unpack(&mut self, row: usize, first: usize, count: usize) -> Result<(), quant_core::Error> {
        let (codes, part) = (&mut self.codes[..count], &mut self.plane[..count]);
        let mut low = 0;
        for plane in &self.weight.planes {
            let bytes = &plane.bytes[row * plane.row_bytes..][..plane.row_bytes];
            bits::unpack_into(plane.bits, &bytes[first * plane.bits as usize / 8..], part)?;
            let parts = codes.iter_mut().zip(&*part);
            match low {
                0 => parts.for_each(|(code, part)| *code = u32::from(*part)),
                _ => parts.for_each(|(code, part)| *code |= u32::from(*part) << low),
            }
            low += plane.bits;
        }
        Ok(())
    }

    fn decode_row(&mut self, row: usize, start: usize, out: std::ops::Range<usize>) {
        let (codes, out, patterns, arch) = (&self.codes[..], &mut self.values[out], self.patterns, self.arch);
        match &self.weight.books {
            Books::E8P(E8P) => decode_all(arch, out, codes, |code| patterns.decode(code)),
            Books::E8PTwice(Residual { gain, .. }) => decode_all(arch, out, codes, |code| {
                let (coarse, fine) = (patterns.decode(code), patterns.decode(code >> 16));
                std::array::from_fn::<_, 8, _>(|i| coarse[i] + fine[i] / gain)
            }),
            Books::Polar(codec) => {
                let (units, lengths) = (codec.directions().units(), codec.lengths());
                let bits = codec.config().direction_bits;
                decode_all(arch, out, codes, |code| {
                    let length = lengths[(code >> bits) as usize & (lengths.len() - 1)];
                    units[code as usize & (units.len() - 1)].map(|unit| length * unit)
                });
            }
            Books::Learned(learned) => {
                let across = self.weight.shape[1].div_ceil(learned.columns);
                let (mut codes, mut out, mut column) = (codes, out, start);
                // One piece for each code book that these columns touch.
                while !out.is_empty() {
                    let group = column / learned.columns;
                    let width = ((group + 1) * learned.columns - column).min(out.len());
                    let (own, behind) = out.split_at_mut(width);
                    lookup(arch, &learned.books[row / learned.rows * across + group], codes, own);
                    (codes, out, column) = (&codes[width / self.weight.dim..], behind, column + width);
                }
            }
        }
    }
}

/// Writes the vector of each code.
fn decode_all<const D: usize>(arch: Arch, out: &mut [f32], codes: &[u32], decode: impl Fn(u32) -> [f32; D]) {
    arch.dispatch(DecodeAll { out: out.as_chunks_mut().0, codes, decode });
}

struct DecodeAll<'a, const D: usize, F> {
    out: &'a mut [[f32; D]],
    codes: &'a [u32],
    decode: F,
}

impl<const D: usize, F: Fn(u32) -> [f32; D]> WithSimd for DecodeAll<'_, D, F> {
    type Output = ();

    /// A vector is put together in registers before it is written, so that the compiler need not fear that writing it
    /// changes what is read.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (out, code) in self.out.iter_mut().zip(self.codes) {
            *out = (self.decode)(*code);
        }
    }
}

/// Decodes vectors of a learned code book.
fn lookup(arch: Arch, book: &LearnedBook, codes: &[u32], out: &mut [f32]) {
    match book.dim() {
        1 => lookup_of::<1>(arch, book, codes, out),
        2 => lookup_of::<2>(arch, book, codes, out),
        4 => lookup_of::<4>(arch, book, codes, out),
        8 => lookup_of::<8>(arch, book, codes, out),
        16 => lookup_of::<16>(arch, book, codes, out),
        dim => out.chunks_exact_mut(dim).zip(codes).for_each(|(out, code)| book.decode(*code, out)),
    }
}

fn lookup_of<const D: usize>(arch: Arch, book: &LearnedBook, codes: &[u32], out: &mut [f32]) {
    // A book has a power of two of entries.
    let entries = book.values().as_chunks::<D>().0;
    decode_all(arch, out, codes, |code| entries[code as usize & (entries.len() - 1)]);
}

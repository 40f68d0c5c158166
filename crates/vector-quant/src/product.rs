//! Products with a coded matrix: a few rows of it are decoded at a time, a few columns each, into a buffer that stays in
//! the first cache, and multiplied with every row of `x` before the next.
//!
//! The sum of an output is formed in 16 lanes, lane `l` over the columns `l, l + 16, …` in order and by fused operations,
//! and the lanes are added pairwise. It does not depend on how many rows `x` has, on threads or on the machine.

use crate::e8p::Patterns;
use crate::linear::{Books, VqLinear};
use crate::{E8P, LearnedBook, Residual, VectorCodec};
use pulp::{Arch, Simd, WithSimd};
use quant_core::bits;
use rayon::prelude::*;

/// Lanes of a sum.
const LANES: usize = 16;
/// Rows of the weight that are decoded together.
const OUTPUTS: usize = 4;
/// Columns that are decoded together, more or less.
const COLUMNS: usize = 512;

/// `y = x Ŵᵀ` for `rows` rows of `x`; the caller has checked the lengths.
pub(crate) fn matmul(weight: &VqLinear, x: &[f32], rows: usize, y: &mut [f32]) -> Result<(), quant_core::Error> {
    let [outputs, columns] = weight.shape;
    let arch = Arch::new();
    let mut transposed = vec![0.0; y.len()];
    let blocks = transposed.par_chunks_mut((OUTPUTS * rows).max(1)).enumerate().with_min_len(4);
    blocks.try_for_each_init(
        || (Decoder::new(weight), vec![[[0.0; LANES]; OUTPUTS]; rows]),
        |(decoder, sums), (block, y)| {
            sums.iter_mut().for_each(|sums| *sums = [[0.0; LANES]; OUTPUTS]);
            let first = block * OUTPUTS;
            for start in (0..columns).step_by(decoder.columns) {
                let width = decoder.columns.min(columns - start);
                arch.dispatch(Decode { decoder, first, rows: OUTPUTS.min(outputs - first), start, width })?;
                let (weights, stride) = (&decoder.values, decoder.columns);
                arch.dispatch(Accumulate { weights, stride, x, columns, start, width, sums });
            }
            for (output, y) in y.chunks_exact_mut(rows.max(1)).enumerate() {
                y.iter_mut().zip(&*sums).for_each(|(y, sums)| *y = pairwise(sums[output]));
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
    let arch = Arch::new();
    out.par_chunks_exact_mut(columns).enumerate().try_for_each_init(
        || Decoder::new(weight),
        |decoder, (row, out)| {
            for (part, out) in out.chunks_mut(decoder.columns).enumerate() {
                let start = part * decoder.columns;
                arch.dispatch(Decode { decoder, first: row, rows: 1, start, width: out.len() })?;
                out.copy_from_slice(&decoder.values[..out.len()]);
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
            patterns: Patterns::get(),
            columns,
            values: vec![0.0; OUTPUTS * columns],
            codes: vec![0; vectors],
            plane: vec![0; vectors],
        }
    }

    /// Puts the codes of some vectors of a row together from their planes.
    #[inline(always)]
    fn unpack(&mut self, row: usize, first: usize, count: usize) -> Result<(), quant_core::Error> {
        let (codes, part) = (&mut self.codes[..count], &mut self.plane[..count]);
        codes.fill(0);
        let mut low = 0;
        for plane in &self.weight.planes {
            let bytes = &plane.bytes[row * plane.row_bytes..][..plane.row_bytes];
            bits::unpack_into(plane.bits, &bytes[first * plane.bits as usize / 8..], part)?;
            codes.iter_mut().zip(&*part).for_each(|(code, part)| *code |= u32::from(*part) << low);
            low += plane.bits;
        }
        Ok(())
    }

    #[inline(always)]
    fn decode_row(&mut self, row: usize, start: usize, out: std::ops::Range<usize>) {
        let scale = self.weight.scales.get(row).map_or(1.0, |scale| scale.to_f32());
        let (codes, out, patterns) = (&self.codes, &mut self.values[out], self.patterns);
        match &self.weight.books {
            Books::E8P(E8P) => {
                for (out, code) in out.as_chunks_mut().0.iter_mut().zip(codes) {
                    patterns.decode(*code, out);
                    for v in out {
                        *v *= scale;
                    }
                }
            }
            Books::E8PTwice(Residual { gain, .. }) => {
                for (out, code) in out.as_chunks_mut().0.iter_mut().zip(codes) {
                    let mut fine = [0.0; 8];
                    patterns.decode(code & 0xffff, out);
                    patterns.decode(code >> 16, &mut fine);
                    for i in 0..8 {
                        out[i] = (out[i] + fine[i] / gain) * scale;
                    }
                }
            }
            Books::Polar(codec) => {
                let (units, lengths) = (codec.directions().units(), codec.lengths());
                let (bits, mask) = (codec.config().direction_bits, units.len() - 1);
                for (out, code) in out.as_chunks_mut::<8>().0.iter_mut().zip(codes) {
                    let length = lengths[(code >> bits) as usize & (lengths.len() - 1)];
                    let unit = &units[*code as usize & mask];
                    for i in 0..8 {
                        out[i] = length * unit[i] * scale;
                    }
                }
            }
            Books::Learned(learned) => {
                let across = self.weight.shape[1].div_ceil(learned.columns);
                let (mut codes, mut out, mut column) = (&codes[..], out, start);
                // One piece for each code book that these columns touch.
                while !out.is_empty() {
                    let group = column / learned.columns;
                    let width = ((group + 1) * learned.columns - column).min(out.len());
                    let (own, behind) = out.split_at_mut(width);
                    lookup(&learned.books[row / learned.rows * across + group], codes, own, scale);
                    (codes, out, column) = (&codes[width / self.weight.dim..], behind, column + width);
                }
            }
        }
    }
}

/// Decodes `width` columns from `start` on, a multiple of the columns of a part, of `rows` rows from `first` on.
struct Decode<'a, 'b> {
    decoder: &'a mut Decoder<'b>,
    first: usize,
    rows: usize,
    start: usize,
    width: usize,
}

impl WithSimd for Decode<'_, '_> {
    type Output = Result<(), quant_core::Error>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Result<(), quant_core::Error> {
        let Self { decoder, first, rows, start, width } = self;
        let dim = decoder.weight.dim;
        for o in 0..rows {
            decoder.unpack(first + o, start / dim, width / dim)?;
            decoder.decode_row(first + o, start, o * decoder.columns..o * decoder.columns + width);
        }
        Ok(())
    }
}

/// Decodes vectors of a learned code book.
#[inline(always)]
fn lookup(book: &LearnedBook, codes: &[u32], out: &mut [f32], scale: f32) {
    match book.dim() {
        1 => lookup_of::<1>(book, codes, out, scale),
        2 => lookup_of::<2>(book, codes, out, scale),
        4 => lookup_of::<4>(book, codes, out, scale),
        8 => lookup_of::<8>(book, codes, out, scale),
        16 => lookup_of::<16>(book, codes, out, scale),
        dim => {
            for (out, code) in out.chunks_exact_mut(dim).zip(codes) {
                book.decode(*code, out);
                out.iter_mut().for_each(|v| *v *= scale);
            }
        }
    }
}

#[inline(always)]
fn lookup_of<const D: usize>(book: &LearnedBook, codes: &[u32], out: &mut [f32], scale: f32) {
    // A book has a power of two of entries.
    let entries = book.values().as_chunks::<D>().0;
    for (out, code) in out.as_chunks_mut::<D>().0.iter_mut().zip(codes) {
        let entry = &entries[*code as usize & (entries.len() - 1)];
        for i in 0..D {
            out[i] = entry[i] * scale;
        }
    }
}

//! The products, written once for all instruction sets and kinds of codes.
//!
//! One row of inputs: codes are decoded in registers and used at once. Many rows: a block of columns of two panels is
//! decoded to memory that stays in the caches, then all batches of inputs pass over it.
//!
//! Every sum is formed in an order that depends on the weight's shape alone: neither threads nor other rows of inputs
//! change a bit of it.

use super::inputs::{FloatInputs, IntInputs};
use super::pack::{Chunk, Integers, Tiles, Zeros};
use super::{Line, PAIR, ROWS, Scratch};
use crate::kernels::AHEAD;
use crate::kernels::generated::codes::{Codes, Kind};
use crate::kernels::generated::lanes::{Codec, Lanes, Plain};
use crate::kernels::generated::products as by_kind;
use crate::kernels::ops::{self, MAGIC};
use std::ops::Range;

/// Columns that are decoded to f32 at a time: with 32 rows half of a first-level cache.
const FLOAT_COLUMNS: usize = 128;
/// Columns that are decoded to bytes at a time.
const BYTE_COLUMNS: usize = 512;

/// Repeats a body for the first `count` of 32 numbers, each a constant; `count` is a constant too.
macro_rules! unrolled {
    ($count:expr, $i:ident => $body:block) => {
        unrolled!(@each $count, $i => $body;
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    (@each $count:expr, $i:ident => $body:block; $($n:literal)*) => {$(
        if $n < $count {
            const $i: usize = $n;
            $body
        }
    )*};
}

/// How bytes come from codes.
pub(in crate::kernels) mod bytes {
    /// They are the codes.
    pub(in crate::kernels) const PLAIN: u8 = 0;
    /// A table has them.
    pub(in crate::kernels) const TABLE: u8 = 1;
    /// Something that differs between groups is added to the codes.
    pub(in crate::kernels) const SHIFTED: u8 = 2;
}

/// How the bytes of a tensor come from its codes.
#[inline(always)]
pub(in crate::kernels) fn bytes_from(tiles: &Tiles, integers: Integers) -> u8 {
    match integers.table {
        _ if zeros_in_bytes(tiles) => bytes::SHIFTED,
        Some(_) => bytes::TABLE,
        None => bytes::PLAIN,
    }
}

/// Asks for what follows a unit in memory.
#[inline(always)]
fn look_ahead<L: Lanes>(l: L, unit: &[Line]) {
    for line in unit {
        l.prefetch(&line.0, AHEAD);
    }
}

/// The scales of a group; meanwhile asks for later ones.
#[inline(always)]
fn scales<L: Lanes>(l: L, tiles: &Tiles, panel: usize, group: usize) -> L::Floats {
    let bytes = tiles.scales(panel, group);
    l.prefetch(bytes, AHEAD / 8);
    l.scales(tiles.codec, bytes)
}

/// What is added to a product for each unit of the inputs' sum, given the scales.
#[inline(always)]
fn lift<L: Lanes>(l: L, tiles: &Tiles, panel: usize, group: usize, scales: L::Floats) -> L::Floats {
    match tiles.zeros {
        Zeros::None => l.splat(0.0),
        Zeros::Integer => l.mul(scales, zeros_taken(l, tiles, panel, group)),
        Zeros::Float(codec) => {
            l.mul_add(scales, l.splat(tiles.centre), l.scales(codec, tiles.zeros(panel, group, codec)))
        }
    }
}

/// Integer zero points as what they add to centred codes.
#[inline(always)]
fn zeros_taken<L: Lanes>(l: L, tiles: &Tiles, panel: usize, group: usize) -> L::Floats {
    let stored = l.scales(Codec::Byte, tiles.zeros(panel, group, Codec::Byte));
    l.add(stored, l.splat(tiles.centre - f32::from(tiles.top())))
}

/// Splits a row of sums; the last panel may have fewer than 16.
#[inline(always)]
fn put<L: Lanes>(l: L, sums: L::Floats, out: &mut [f32]) {
    match out.first_chunk_mut::<ROWS>() {
        Some(out) => l.store(sums, out),
        None => {
            let mut all = [0.0; ROWS];
            l.store(sums, &mut all);
            out.copy_from_slice(&all[..out.len()]);
        }
    }
}

#[inline(always)]
pub(in crate::kernels) fn float_vector<L: Lanes>(
    l: L,
    tiles: &Tiles,
    x: &FloatInputs,
    panels: Range<usize>,
    out: &mut [f32],
) {
    by_kind::float_vector(l, tiles, x, panels, out);
}

#[inline(always)]
pub(in crate::kernels) fn float_vector_of<L: Lanes, C: Codes>(
    l: L,
    tiles: &Tiles,
    x: &FloatInputs,
    panels: Range<usize>,
    out: &mut [f32],
) {
    let table = l.table(&tiles.values);
    for (panel, out) in panels.zip(out.chunks_mut(ROWS)) {
        let mut total = l.splat(0.0);
        let lines = tiles.lines(panel, 0);
        for (chunk, &sum) in tiles.chunks.iter().zip(&x.sums) {
            let mut sums = [l.splat(0.0); 4];
            let units = lines[chunk.at / C::COLUMNS * C::LINES..].chunks_exact(C::LINES);
            let inputs = x.values[chunk.at..][..chunk.padded].chunks_exact(C::COLUMNS);
            for (unit, x) in units.zip(inputs) {
                look_ahead(l, unit);
                let unit = C::unit(l, unit);
                unrolled!(C::COLUMNS, COLUMN => {
                    let value = C::value(l, unit, table, COLUMN);
                    sums[COLUMN % 4] = l.mul_add(value, l.splat(x[COLUMN]), sums[COLUMN % 4]);
                });
            }
            let scales = scales(l, tiles, panel, chunk.group);
            let products = l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3]));
            total = l.mul_add(products, scales, total);
            if tiles.zeros != Zeros::None {
                total = l.mul_add(lift(l, tiles, panel, chunk.group, scales), l.splat(sum), total);
            }
        }
        put(l, l.mul(total, l.splat(tiles.factor)), out);
    }
}

#[inline(always)]
pub(in crate::kernels) fn int_vector<L: Lanes>(
    l: L,
    tiles: &Tiles,
    x: &IntInputs,
    panels: Range<usize>,
    out: &mut [f32],
) {
    if let Some(integers) = tiles.integers {
        by_kind::int_vector(l, tiles, integers, x, panels, out);
    }
}

/// Whether zero points are taken off in bytes; else they are made up for by [`lift`].
#[inline(always)]
fn zeros_in_bytes(tiles: &Tiles) -> bool {
    tiles.zeros == Zeros::Integer && tiles.kind != Kind::Byte
}

/// What is added to the bytes of a group.
#[inline(always)]
fn byte_shift<L: Lanes>(l: L, tiles: &Tiles, panel: usize, group: usize) -> L::Ints {
    let stored = if zeros_in_bytes(tiles) { tiles.zeros(panel, group, Codec::Byte).first_chunk() } else { None };
    stored.map_or(l.int(0), |stored| l.repeat_bytes(stored))
}

#[inline(always)]
pub(in crate::kernels) fn int_vector_of<L: Lanes, C: Codes, const FROM: u8>(
    l: L,
    tiles: &Tiles,
    integers: Integers,
    x: &IntInputs,
    panels: Range<usize>,
    out: &mut [f32],
) {
    let table = l.byte_table(&integers.table.unwrap_or_default());
    let lifted = tiles.zeros != Zeros::None && !zeros_in_bytes(tiles);
    for (panel, out) in panels.zip(out.chunks_mut(ROWS)) {
        let mut total = l.splat(0.0);
        let lines = tiles.lines(panel, 0);
        for (chunk, (&sum, &step)) in tiles.chunks.iter().zip(x.sums.iter().zip(&x.steps)) {
            let shift = byte_shift(l, tiles, panel, chunk.group);
            let mut sums = [l.int(-integers.offset * sum), l.int(0)];
            let units = lines[chunk.at / C::COLUMNS * C::LINES..].chunks_exact(C::LINES);
            let inputs = x.words[chunk.at / 4..][..chunk.padded / 4].chunks_exact(C::COLUMNS / 4);
            for (unit, x) in units.zip(inputs) {
                look_ahead(l, unit);
                let unit = C::unit(l, unit);
                unrolled!(C::COLUMNS / 4, QUAD => {
                    let bytes = match FROM {
                        bytes::TABLE => l.lookup_bytes(table, C::bytes(l, unit, QUAD)),
                        bytes::SHIFTED => l.plus_bytes(C::bytes(l, unit, QUAD), shift),
                        _ => C::bytes(l, unit, QUAD),
                    };
                    sums[QUAD % 2] = l.dot(sums[QUAD % 2], bytes, x[QUAD]);
                });
            }
            let scales = scales(l, tiles, panel, chunk.group);
            let products = l.to_floats(l.plus(sums[0], sums[1]));
            total = l.mul_add(products, l.mul(scales, l.splat(step)), total);
            if lifted {
                total = l.mul_add(lift(l, tiles, panel, chunk.group, scales), l.splat(as_float(sum) * step), total);
            }
        }
        put(l, l.mul(total, l.splat(tiles.factor * integers.step)), out);
    }
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a sum of at most 128 bytes is exact")]
fn as_float(sum: i32) -> f32 {
    sum as f32
}

/// Chunks of at most so many columns, at least one chunk.
fn blocks(chunks: &[Chunk], columns: usize) -> impl Iterator<Item = &[Chunk]> {
    chunks.chunk_by(move |a, b| a.at / columns == b.at / columns)
}

fn columns_of(block: &[Chunk]) -> Range<usize> {
    match (block.first(), block.last()) {
        (Some(first), Some(last)) => first.at..last.at + last.padded,
        _ => 0..0,
    }
}

#[inline(always)]
pub(in crate::kernels) fn float_matrix<L: Lanes>(
    l: L,
    tiles: &Tiles,
    x: &FloatInputs,
    pair: usize,
    scratch: &mut Scratch,
    outputs: &mut [&mut [f32]],
) {
    let mut sums = std::mem::take(&mut scratch.sums);
    sums.clear();
    sums.resize(PAIR * outputs.len(), 0.0);
    for block in blocks(&tiles.chunks, FLOAT_COLUMNS) {
        let columns = columns_of(block);
        // What was there before is overwritten.
        scratch.floats.resize(2 * columns.len(), [0.0; ROWS]);
        for half in 0..2 {
            by_kind::decode(l, tiles, 2 * pair + half, half, block, &mut scratch.floats);
        }
        for batch in &x.batches {
            let at = batch.first * tiles.padded() + columns.start * batch.rows;
            let x = &x.values[at..][..columns.len() * batch.rows];
            let (sums, outputs) = (&mut sums[PAIR * batch.first..], &mut outputs[batch.first..][..batch.rows]);
            let last = columns.end == tiles.padded();
            if last {
                expect(l, outputs);
            }
            match batch.rows {
                12 if L::WIDE => multiply::<L, 12>(l, &scratch.floats, x, sums),
                8 if L::WIDE => multiply::<L, 8>(l, &scratch.floats, x, sums),
                4 if L::WIDE => multiply::<L, 4>(l, &scratch.floats, x, sums),
                2 => multiply::<L, 2>(l, &scratch.floats, x, sums),
                _ => multiply::<L, 1>(l, &scratch.floats, x, sums),
            }
            if last {
                outputs.iter_mut().zip(sums.chunks(PAIR)).for_each(|(y, sums)| y.copy_from_slice(&sums[..y.len()]));
            }
        }
    }
    scratch.sums = sums;
}

/// Asks for the outputs that will soon be written.
#[inline(always)]
fn expect<L: Lanes>(l: L, outputs: &[&mut [f32]]) {
    for y in outputs {
        y.chunks(16).for_each(|line| l.prefetch(line, 0));
    }
}

/// Adds the products of 32 rows of weights and `N` rows of inputs.
#[inline(always)]
fn multiply<L: Lanes, const N: usize>(l: L, weights: &[[f32; ROWS]], x: &[f32], sums: &mut [f32]) {
    let mut total = [[l.splat(0.0); 2]; N];
    let places = sums.as_chunks_mut::<ROWS>().0.as_chunks_mut::<2>().0;
    for (total, place) in total.iter_mut().zip(&*places) {
        *total = [l.load(&place[0]), l.load(&place[1])];
    }
    for (w, x) in weights.as_chunks::<2>().0.iter().zip(x.as_chunks::<N>().0) {
        let w = [l.load(&w[0]), l.load(&w[1])];
        for n in 0..N {
            let x = l.splat(x[n]);
            total[n][0] = l.mul_add(w[0], x, total[n][0]);
            total[n][1] = l.mul_add(w[1], x, total[n][1]);
        }
    }
    for (total, place) in total.iter().zip(places) {
        l.store(total[0], &mut place[0]);
        l.store(total[1], &mut place[1]);
    }
}

/// Writes the values of a panel's block, every second entry of `out` from `half` on.
#[inline(always)]
pub(in crate::kernels) fn decode_of<L: Lanes, C: Codes>(
    l: L,
    tiles: &Tiles,
    panel: usize,
    half: usize,
    block: &[Chunk],
    out: &mut [[f32; ROWS]],
) {
    let table = l.table(&tiles.values);
    let start = columns_of(block).start;
    for chunk in block {
        let scales = scales(l, tiles, panel, chunk.group);
        let scales = l.mul(scales, l.splat(tiles.factor));
        // The reference's operations: (code − zero)·scale, or code·scale + zero.
        let (before, after) = match tiles.zeros {
            Zeros::None => (l.splat(0.0), l.splat(0.0)),
            Zeros::Integer => (zeros_taken(l, tiles, panel, chunk.group), l.splat(0.0)),
            Zeros::Float(codec) => (l.splat(tiles.centre), l.scales(codec, tiles.zeros(panel, chunk.group, codec))),
        };
        let lines = tiles.lines(panel, chunk.at);
        let out = &mut out[2 * (chunk.at - start)..][..2 * chunk.padded];
        for (unit, out) in lines.chunks_exact(C::LINES).zip(out.chunks_exact_mut(2 * C::COLUMNS)) {
            look_ahead(l, unit);
            let unit = C::unit(l, unit);
            unrolled!(C::COLUMNS, COLUMN => {
                let value = C::value(l, unit, table, COLUMN);
                l.store(l.add(l.mul(l.add(value, before), scales), after), &mut out[2 * COLUMN + half]);
            });
        }
    }
}

/// All values, row-major.
pub(crate) fn decode_all(tiles: &Tiles) -> Vec<f32> {
    let mut out = vec![0.0; tiles.rows * tiles.columns];
    let mut columns = Vec::new();
    for (panel, out) in out.chunks_mut(ROWS * tiles.columns).enumerate() {
        for chunk in tiles.chunks.chunks(1) {
            columns.resize(2 * columns_of(chunk).len(), [0.0; ROWS]);
            by_kind::decode(Plain, tiles, panel, 0, chunk, &mut columns);
            for (row, out) in out.chunks_mut(tiles.columns).enumerate() {
                let out = &mut out[chunk[0].first..][..chunk[0].columns];
                out.iter_mut().zip(columns.iter().step_by(2)).for_each(|(out, column)| *out = column[row]);
            }
        }
    }
    out
}

#[inline(always)]
pub(in crate::kernels) fn int_matrix<L: Lanes>(
    l: L,
    tiles: &Tiles,
    x: &IntInputs,
    pair: usize,
    scratch: &mut Scratch,
    outputs: &mut [&mut [f32]],
) {
    let Some(integers) = tiles.integers else { return };
    let chunks_of_all = tiles.chunks.len();
    let mut first_chunk = 0;
    let mut sums = std::mem::take(&mut scratch.sums);
    sums.clear();
    sums.resize(PAIR * outputs.len(), 0.0);
    for block in blocks(&tiles.chunks, BYTE_COLUMNS) {
        let columns = columns_of(block);
        scratch.bytes.resize(columns.len() / 2, Line([0; 64]));
        scratch.params.resize(4 * block.len(), [0.0; ROWS]);
        for half in 0..2 {
            by_kind::unpack(l, tiles, integers, 2 * pair + half, half, block, scratch);
        }
        for batch in &x.batches {
            let of_chunks = batch.first * chunks_of_all + first_chunk * batch.rows;
            let words = batch.first * (tiles.padded() / 4) + columns.start / 4 * batch.rows;
            let inputs = ByteInputs {
                words: &x.words[words..][..columns.len() / 4 * batch.rows],
                steps: &x.steps[of_chunks..][..block.len() * batch.rows],
                sums: &x.sums[of_chunks..][..block.len() * batch.rows],
                starts: &x.starts[of_chunks..][..block.len() * batch.rows],
                per_row: x.per_row,
                lifted: tiles.zeros != Zeros::None && !zeros_in_bytes(tiles),
                next: [tiles.after(2 * pair, columns.end), tiles.after(2 * pair + 1, columns.end)],
                bytes_of_quad: if batch.first == 0 { 256 * tiles.kind.lines() / tiles.kind.columns() } else { 0 },
            };
            let (sums, outputs) = (&mut sums[PAIR * batch.first..], &mut outputs[batch.first..][..batch.rows]);
            let last = columns.end == tiles.padded();
            if last {
                expect(l, outputs);
            }
            match batch.rows {
                12 if L::WIDE => multiply_bytes::<L, 12>(l, block, scratch, inputs, sums),
                8 if L::WIDE => multiply_bytes::<L, 8>(l, block, scratch, inputs, sums),
                4 if L::WIDE => multiply_bytes::<L, 4>(l, block, scratch, inputs, sums),
                2 => multiply_bytes::<L, 2>(l, block, scratch, inputs, sums),
                _ => multiply_bytes::<L, 1>(l, block, scratch, inputs, sums),
            }
            if last {
                for ((y, sums), step) in outputs.iter_mut().zip(sums.chunks(PAIR)).zip(&x.row_steps[batch.first..]) {
                    y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum * step);
                }
            }
        }
        first_chunk += block.len();
    }
    scratch.sums = sums;
}

/// Integers of one batch and block.
#[derive(Clone, Copy)]
struct ByteInputs<'a> {
    words: &'a [i32],
    steps: &'a [f32],
    sums: &'a [i32],
    /// What makes up for the offset of the weights' bytes.
    starts: &'a [i32],
    per_row: bool,
    /// Whether the sums of inputs count by themselves.
    lifted: bool,
    /// The lines of both panels that are needed next, and how many bytes of them to ask for with four columns.
    next: [&'a [u8]; 2],
    bytes_of_quad: usize,
}

/// Adds the products of 32 rows of weights and `N` rows of inputs.
///
/// The integer sums of a chunk fill the registers; what they are added to waits in the first-level cache. What the next
/// block needs is asked for meanwhile, evenly.
#[inline(always)]
fn multiply_bytes<L: Lanes, const N: usize>(
    l: L,
    block: &[Chunk],
    scratch: &Scratch,
    inputs: ByteInputs<'_>,
    sums: &mut [f32],
) {
    let Some(places) = sums.as_chunks_mut::<ROWS>().0.as_chunks_mut::<2>().0.first_chunk_mut::<N>() else { return };
    let mut weights = scratch.bytes.as_chunks::<2>().0;
    let mut words = inputs.words.as_chunks::<N>().0;
    let of_rows = inputs.starts.as_chunks::<N>().0.iter().zip(inputs.steps.as_chunks::<N>().0);
    let of_rows = of_rows.zip(inputs.sums.as_chunks::<N>().0);
    let mut asked = 0;
    for ((chunk, params), ((starts, steps), chunk_sums)) in
        block.iter().zip(scratch.params.as_chunks::<4>().0).zip(of_rows)
    {
        let (w_chunk, w_rest) = weights.split_at(chunk.padded / 4);
        let (x_chunk, x_rest) = words.split_at(chunk.padded / 4);
        (weights, words) = (w_rest, x_rest);
        let mut whole = [[l.int(0); 2]; N];
        unrolled!(N, ROW => { whole[ROW] = [l.int(starts[ROW]); 2]; });
        for (w, x) in w_chunk.iter().zip(x_chunk) {
            l.prefetch(inputs.next[0], asked);
            l.prefetch(inputs.next[1], asked);
            asked += inputs.bytes_of_quad;
            let w = [l.line(&w[0]), l.line(&w[1])];
            unrolled!(N, ROW => {
                whole[ROW][0] = l.dot(whole[ROW][0], w[0], x[ROW]);
                whole[ROW][1] = l.dot(whole[ROW][1], w[1], x[ROW]);
            });
        }
        let scales = [l.load(&params[0]), l.load(&params[1])];
        let mut add = |row: usize, half: usize, a: L::Floats, b: L::Floats| {
            let place = &mut places[row][half];
            l.store(l.mul_add(a, b, l.load(place)), place);
        };
        if inputs.per_row {
            unrolled!(N, ROW => {
                add(ROW, 0, l.to_floats(whole[ROW][0]), scales[0]);
                add(ROW, 1, l.to_floats(whole[ROW][1]), scales[1]);
            });
        } else {
            unrolled!(N, ROW => {
                let step = l.splat(steps[ROW]);
                add(ROW, 0, l.to_floats(whole[ROW][0]), l.mul(scales[0], step));
                add(ROW, 1, l.to_floats(whole[ROW][1]), l.mul(scales[1], step));
            });
        }
        if inputs.lifted {
            for row in 0..N {
                let sum = l.splat(as_float(chunk_sums[row]) * steps[row]);
                add(row, 0, l.load(&params[2]), sum);
                add(row, 1, l.load(&params[3]), sum);
            }
        }
    }
}

/// Writes the bytes of a panel's block, every second line from `half` on, and its scales.
#[inline(always)]
pub(in crate::kernels) fn unpack_of<L: Lanes, C: Codes>(
    l: L,
    tiles: &Tiles,
    integers: Integers,
    panel: usize,
    half: usize,
    block: &[Chunk],
    scratch: &mut Scratch,
) {
    let table = integers.table.map(|table| l.byte_table(&table));
    let factor = l.splat(tiles.factor * integers.step);
    let start = columns_of(block).start;
    for (chunk, params) in block.iter().zip(scratch.params.as_chunks_mut::<4>().0) {
        let scales = scales(l, tiles, panel, chunk.group);
        l.store(l.mul(scales, factor), &mut params[half]);
        let lift = lift(l, tiles, panel, chunk.group, scales);
        l.store(l.mul(lift, factor), &mut params[2 + half]);
        let shift = byte_shift(l, tiles, panel, chunk.group);
        let lines = tiles.lines(panel, chunk.at);
        let out = &mut scratch.bytes[(chunk.at - start) / 2..][..chunk.padded / 2];
        for (unit, out) in lines.chunks_exact(C::LINES).zip(out.chunks_exact_mut(C::COLUMNS / 2)) {
            let unit = C::unit(l, unit);
            unrolled!(C::COLUMNS / 4, QUAD => {
                let codes = C::bytes(l, unit, QUAD);
                let bytes = match table {
                    Some(table) => l.lookup_bytes(table, codes),
                    None => l.plus_bytes(codes, shift),
                };
                l.store_line(bytes, &mut out[2 * QUAD + half]);
            });
        }
    }
}

/// Rounds a row to integers: `q[i] = rne(x[i]/step)` with `step = max|x|/127` of the row or of a chunk, a step that would
/// be zero being 1. Steps of chunks are written only if they are theirs; that of the row is returned.
///
/// Not a number gives something.
#[inline(always)]
pub(in crate::kernels) fn quantize<L: Lanes>(
    _: L,
    chunks: &[Chunk],
    x: &[f32],
    per_row: bool,
    q: &mut [i8],
    steps: &mut [f32],
    sums: &mut [i32],
) -> f32 {
    let step_of = |x: &[f32]| {
        // Bits of magnitudes order as they do.
        let amax = x.iter().fold(0, |most: u32, x| most.max(x.abs().to_bits()));
        match f32::from_bits(amax) / 127.0 {
            0.0 => 1.0,
            step => step,
        }
    };
    let of_row = if per_row { step_of(x) } else { 1.0 };
    for ((chunk, step), sum) in chunks.iter().zip(steps).zip(sums) {
        let x = &x[chunk.first..][..chunk.columns];
        if !per_row {
            *step = step_of(x);
        }
        let step = if per_row { of_row } else { *step };
        let q = &mut q[chunk.at..][..chunk.columns];
        for (q, x) in q.iter_mut().zip(x) {
            let v = ops::fmin(ops::fmax(x / step, -127.0), 127.0);
            *q = (v + MAGIC).to_bits().to_le_bytes()[0].cast_signed();
        }
        *sum = q.iter().map(|q| i32::from(*q)).sum();
    }
    of_row
}

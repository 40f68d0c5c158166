//! The loops that attention spends its time in, compiled once for each instruction set.
//!
//! The bodies are plain Rust and the same for all: sums have a fixed number of partial sums and nothing is contracted,
//! so that every instruction set gives the same bits.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of functions compiled for instruction sets found at run time")
)]

use crate::generated::isa::for_each_isa;

/// Partial sums of a dot product.
const LANES: usize = 16;
/// Outputs that are summed in registers over all rows.
const BLOCK: usize = 32;
/// Rows and columns of a product that are summed in registers.
const TILE_ROWS: usize = 4;
const TILE_COLUMNS: usize = 32;

for_each_isa! {
    /// `scores[t] = scale · query · keys[t·stride..]` for every row `t`.
    fn dot_rows(query: &[f32], keys: &[f32], stride: usize, scale: f32, scores: &mut [f32]) {
        for (row, score) in keys.chunks(stride).zip(scores) {
            let row = &row[..query.len()];
            let mut sums = [0.0_f32; LANES];
            let (a, b) = (query.chunks_exact(LANES), row.chunks_exact(LANES));
            let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
            for (x, y) in a.zip(b) {
                sums.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum += x * y);
            }
            // Halves are added until one is left.
            let mut width = LANES / 2;
            while width > 0 {
                for lane in 0..width {
                    sums[lane] += sums[lane + width];
                }
                width /= 2;
            }
            *score = scale * (sums[0] + rest);
        }
    }
}

for_each_isa! {
    /// `out += Σ_t weights[t] · values[t·stride..]`, rows in their order.
    fn add_rows(weights: &[f32], values: &[f32], stride: usize, out: &mut [f32]) {
        let (blocks, done) = (out.len() / BLOCK, out.len() / BLOCK * BLOCK);
        for block in 0..blocks {
            let first = block * BLOCK;
            let mut sums = [0.0_f32; BLOCK];
            sums.copy_from_slice(&out[first..first + BLOCK]);
            for (row, &weight) in values.chunks(stride).zip(weights) {
                let row = &row[first..first + BLOCK];
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += weight * v);
            }
            out[first..first + BLOCK].copy_from_slice(&sums);
        }
        for (row, &weight) in values.chunks(stride).zip(weights) {
            let columns = done..out.len();
            out[columns.clone()].iter_mut().zip(&row[columns]).for_each(|(sum, v)| *sum += weight * v);
        }
    }
}

/// `sums += x · line`. A function of its own, so that compilers form vectors along the line and not across rows.
#[inline(always)]
fn add_line(sums: &mut [f32; TILE_COLUMNS], x: f32, line: &[f32; TILE_COLUMNS]) {
    for column in 0..TILE_COLUMNS {
        sums[column] += x * line[column];
    }
}

for_each_isa! {
    /// `out = rows · matrix` for rows of `matrix.len() / columns` elements: each element is one sum, in order.
    fn multiply_rows(rows: &[f32], matrix: &[f32], columns: usize, out: &mut [f32]) {
        let inner = matrix.len() / columns;
        let (tiled, rest) = (columns / TILE_COLUMNS * TILE_COLUMNS, columns % TILE_COLUMNS);
        let lines = |first: usize| {
            matrix.chunks_exact(columns).filter_map(move |line| line.get(first..)?.first_chunk::<TILE_COLUMNS>())
        };
        for (rows, out) in rows.chunks(TILE_ROWS * inner).zip(out.chunks_mut(TILE_ROWS * columns)) {
            for first in (0..tiled).step_by(TILE_COLUMNS) {
                let mut put = |row: usize, sums: &[f32; TILE_COLUMNS]| {
                    out[row * columns + first..][..TILE_COLUMNS].copy_from_slice(sums);
                };
                if rows.len() == TILE_ROWS * inner {
                    let ((a, b), (c, d)) = (rows[..2 * inner].split_at(inner), rows[2 * inner..].split_at(inner));
                    let (mut of_a, mut of_b) = ([0.0; TILE_COLUMNS], [0.0; TILE_COLUMNS]);
                    let (mut of_c, mut of_d) = ([0.0; TILE_COLUMNS], [0.0; TILE_COLUMNS]);
                    for ((((line, a), b), c), d) in lines(first).zip(a).zip(b).zip(c).zip(d) {
                        add_line(&mut of_a, *a, line);
                        add_line(&mut of_b, *b, line);
                        add_line(&mut of_c, *c, line);
                        add_line(&mut of_d, *d, line);
                    }
                    [of_a, of_b, of_c, of_d].iter().enumerate().for_each(|(row, sums)| put(row, sums));
                } else {
                    for (index, row) in rows.chunks_exact(inner).enumerate() {
                        let mut sums = [0.0; TILE_COLUMNS];
                        lines(first).zip(row).for_each(|(line, x)| add_line(&mut sums, *x, line));
                        put(index, &sums);
                    }
                }
            }
            for (row, out) in rows.chunks_exact(inner).zip(out.chunks_exact_mut(columns)) {
                let mut sums = [0.0_f32; TILE_COLUMNS];
                for (x, line) in row.iter().zip(matrix.chunks_exact(columns)) {
                    sums.iter_mut().zip(&line[tiled..]).for_each(|(sum, y)| *sum += x * y);
                }
                out[tiled..].copy_from_slice(&sums[..rest]);
            }
        }
    }
}

for_each_isa! {
    /// The bits of the largest magnitude: those of infinity and above where a value is not finite.
    fn largest_bits(values: &[f32], largest: &mut u32) {
        *largest = values.iter().fold(0, |largest, x| largest.max(x.abs().to_bits()));
    }
}

for_each_isa! {
    /// Writes a byte to every word, some of its bits inverted: `size` of them `tile` from every start, `stride` apart.
    fn merge_bytes(all: &mut [u8], stride: usize, tile: usize, lane: usize, size: usize, from: &[u8], flip: u8) {
        let shift = 8 * lane;
        for (piece, from) in all.chunks_exact_mut(stride).zip(from.chunks_exact(size)) {
            for (word, &byte) in piece[tile..][..4 * size].as_chunks_mut().0.iter_mut().zip(from) {
                let others = u32::from_le_bytes(*word) & !(0xff << shift);
                *word = (others | u32::from(byte ^ flip) << shift).to_le_bytes();
            }
        }
    }
}

for_each_isa! {
    /// Unpacks codes of 2, 4 or 8 bits from a little-endian bit stream.
    fn unpack(bits: u32, bytes: &[u8], codes: &mut [u8]) {
        match bits {
            2 => {
                for (four, b) in codes.chunks_exact_mut(4).zip(bytes) {
                    (four[0], four[1], four[2], four[3]) = (b & 3, (b >> 2) & 3, (b >> 4) & 3, b >> 6);
                }
            }
            4 => codes.chunks_exact_mut(2).zip(bytes).for_each(|(two, b)| (two[0], two[1]) = (b & 15, b >> 4)),
            _ => codes.copy_from_slice(bytes),
        }
    }
}

/// Which elements of a row share a scale, and how codes are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine {
    /// Elements of a row.
    pub(crate) row: usize,
    /// Elements of a group; the last of a row may be shorter.
    pub(crate) group: usize,
    /// The sign bit of two's complement codes, 0 for unsigned ones.
    pub(crate) sign: u8,
}

for_each_isa! {
    /// `out = code · scale + zero`, with a scale and a zero a group.
    fn affine(codes: &[u8], layout: Affine, scales: &[f32], zeros: &[f32], out: &mut [f32]) {
        let sign = f32::from(layout.sign);
        let mut params = scales.iter().zip(zeros);
        for (codes, out) in codes.chunks(layout.row).zip(out.chunks_mut(layout.row)) {
            for (codes, out) in codes.chunks(layout.group).zip(out.chunks_mut(layout.group)) {
                let Some((&scale, &zero)) = params.next() else { return };
                for (x, &code) in out.iter_mut().zip(codes) {
                    // With its sign bit flipped a code is unsigned, and by that bit too large.
                    *x = (f32::from(code ^ layout.sign) - sign) * scale + zero;
                }
            }
        }
    }
}

/// Sums and differences of elements `half` apart.
#[inline(always)]
fn butterflies(block: &mut [f32], half: usize) {
    for pair in block.chunks_exact_mut(2 * half) {
        let (low, high) = pair.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
    }
}

for_each_isa! {
    /// The orthonormal Walsh–Hadamard transform of every block, whose length is a power of two.
    fn hadamard(rows: &mut [f32], block: usize) {
        #[expect(clippy::cast_precision_loss, reason = "blocks are powers of two")]
        let norm = (block as f32).sqrt().recip();
        for block in rows.chunks_exact_mut(block) {
            // Short strides by themselves: their shuffles are known when this is compiled.
            for half in [1, 2, 4, 8] {
                if half < block.len() {
                    match half {
                        1 => butterflies(block, 1),
                        2 => butterflies(block, 2),
                        4 => butterflies(block, 4),
                        _ => butterflies(block, 8),
                    }
                }
            }
            let mut half = 16;
            while half < block.len() {
                butterflies(block, half);
                half *= 2;
            }
            block.iter_mut().for_each(|x| *x *= norm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::kernels::{Isa, with_isa};

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 97.0).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for dim in [1, 15, 16, 31, 32, 64, 80, 100, 128, 200] {
            let stride = 2 * dim;
            let (query, rows) = (numbers(dim), numbers(9 * stride));
            let run = || {
                let (mut scores, mut out) = (vec![0.0; 9], numbers(dim));
                dot_rows(&query, &rows, stride, 0.3, &mut scores);
                add_rows(&scores, &rows, stride, &mut out);
                let mut turned = rows.clone();
                hadamard(&mut turned, 1 << stride.trailing_zeros());
                let mut product = vec![0.0; 9 * 2 * 45];
                multiply_rows(&numbers(9 * 2 * dim), &numbers(2 * dim * 90), 90, &mut product);
                (scores, out, turned, product)
            };
            let expected = with_isa(Isa::Portable, run);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert_eq!(with_isa(isa, run), expected, "{isa:?}, {dim}");
            }
            let exact: f64 = query.iter().zip(&rows[stride..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(expected.0[1]) - 0.3 * exact).abs() < 1e-3, "{dim}: {}", expected.0[1]);
        }
    }
}

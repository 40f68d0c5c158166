//! Rows of inputs, arranged as the products read them.
//!
//! Rows are taken some at a time, as many as sums fit in registers; of these the values of one column lie side by
//! side. Columns are padded with zeros where those of the weight are.

use super::Products;
use super::pack::{Chunk, Tiles};

/// Rows of inputs that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

/// Cuts rows into batches, the largest first.
fn batches(rows: usize, sizes: &[usize]) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut first = 0;
    while first < rows {
        let size = sizes.iter().copied().find(|size| *size <= rows - first).unwrap_or(1);
        batches.push(Batch { first, rows: size });
        first += size;
    }
    batches
}

/// Inputs as f32.
#[derive(Clone, Debug)]
pub(crate) struct FloatInputs {
    pub(crate) batches: Vec<Batch>,
    /// For each batch, column after column.
    pub(crate) values: Vec<f32>,
    /// Of a single row, the sum of each chunk, where the weight has zero points.
    pub(crate) sums: Vec<f32>,
}

impl FloatInputs {
    pub(crate) fn new(tiles: &Tiles, x: &[f32], products: &dyn Products) -> Self {
        let rows = x.len() / tiles.columns;
        let batches = batches(rows, products.batch_sizes().0);
        let mut values = vec![0.0; rows * tiles.padded()];
        for batch in &batches {
            let out = &mut values[batch.first * tiles.padded()..][..batch.rows * tiles.padded()];
            for (n, x) in x[batch.first * tiles.columns..].chunks_exact(tiles.columns).take(batch.rows).enumerate() {
                for chunk in &tiles.chunks {
                    let x = &x[chunk.first..][..chunk.columns];
                    let out = &mut out[chunk.at * batch.rows..][..chunk.padded * batch.rows];
                    if batch.rows == 1 {
                        out[..chunk.columns].copy_from_slice(x);
                    } else {
                        out.iter_mut().skip(n).step_by(batch.rows).zip(x).for_each(|(out, x)| *out = *x);
                    }
                }
            }
        }
        let sums = match rows {
            1 => tiles.chunks.iter().map(|chunk| sum(&values[chunk.at..][..chunk.padded])).collect(),
            _ => Vec::new(),
        };
        Self { batches, values, sums }
    }
}

fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    for x in x.chunks(8) {
        lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane += x);
    }
    lanes.iter().sum()
}

/// Inputs as signed bytes with scales.
#[derive(Clone, Debug)]
pub(crate) struct IntInputs {
    pub(crate) batches: Vec<Batch>,
    /// For each batch, four columns of each row in one word, then the next four.
    pub(crate) words: Vec<i32>,
    /// For each batch and chunk, the value of the integer 1 in each row; all 1 where [`IntInputs::row_steps`] has it.
    pub(crate) steps: Vec<f32>,
    /// For each batch and chunk, the sum of the integers of each row.
    pub(crate) sums: Vec<i32>,
    /// What all sums of a row are to be multiplied by.
    pub(crate) row_steps: Vec<f32>,
    /// Whether all steps are in `row_steps`.
    pub(crate) per_row: bool,
}

impl IntInputs {
    /// Quantizes rows: `step = max|x|/127` of a row or of a chunk of it, `q = rne(x/step)`; a step that would be zero
    /// is 1.
    pub(crate) fn new(tiles: &Tiles, x: &[f32], per_row: bool, products: &dyn Products) -> Self {
        let rows = x.len() / tiles.columns;
        let batches = batches(rows, products.batch_sizes().1);
        let (quads, chunks) = (tiles.padded() / 4, tiles.chunks.len());
        let mut words = vec![0; rows * quads];
        let (mut steps, mut sums) = (vec![1.0; rows * chunks], vec![0; rows * chunks]);
        let mut row_steps = vec![1.0; rows];
        let mut q = vec![0_i8; tiles.padded()];
        for batch in &batches {
            let count = batch.rows;
            let words = &mut words[batch.first * quads..][..count * quads];
            let (steps, sums) = (&mut steps[batch.first * chunks..], &mut sums[batch.first * chunks..]);
            for n in 0..count {
                let x = &x[(batch.first + n) * tiles.columns..][..tiles.columns];
                let step_of = |x: &[f32]| match products.amax(x) / 127.0 {
                    0.0 => 1.0,
                    step => step,
                };
                if per_row {
                    row_steps[batch.first + n] = step_of(x);
                }
                for (i, chunk) in tiles.chunks.iter().enumerate() {
                    let x = &x[chunk.first..][..chunk.columns];
                    let step = if per_row { row_steps[batch.first + n] } else { step_of(x) };
                    if !per_row {
                        steps[i * count + n] = step;
                    }
                    let q = &mut q[chunk.at..][..chunk.padded];
                    products.round(x, step, &mut q[..chunk.columns]);
                    sums[i * count + n] = q.iter().map(|q| i32::from(*q)).sum();
                    put_words(chunk, q, &mut words[chunk.at / 4 * count + n..], count);
                }
            }
        }
        Self { batches, words, steps, sums, row_steps, per_row }
    }
}

fn put_words(chunk: &Chunk, q: &[i8], words: &mut [i32], stride: usize) {
    let quads = q.as_chunks::<4>().0;
    debug_assert_eq!(quads.len() * 4, chunk.padded, "chunks are filled up to whole fours");
    for (word, quad) in words.iter_mut().step_by(stride).zip(quads) {
        *word = i32::from_le_bytes(quad.map(i8::cast_unsigned));
    }
}

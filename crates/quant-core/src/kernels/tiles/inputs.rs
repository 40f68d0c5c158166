//! Rows of inputs, arranged as the products read them.
//!
//! Rows are taken some at a time, as many as sums fit in registers; of these the values of one column lie side by
//! side. Columns are padded with zeros where those of the weight are.

use super::Products;
use super::pack::Tiles;

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
        let batches = batches(rows, products.batch_sizes());
        let mut values = vec![0.0; rows * tiles.padded()];
        for batch in &batches {
            let out = &mut values[batch.first * tiles.padded()..][..batch.rows * tiles.padded()];
            let x = &x[batch.first * tiles.columns..][..batch.rows * tiles.columns];
            for chunk in &tiles.chunks {
                let out = &mut out[chunk.at * batch.rows..][..chunk.columns * batch.rows];
                interleave(x, tiles.columns, chunk.first, batch.rows, out);
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
    /// For each batch and chunk, what these sums and the offset of the weights' bytes add up to, with the other sign.
    pub(crate) starts: Vec<i32>,
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
        let batches = batches(rows, products.batch_sizes());
        let (quads, chunks) = (tiles.padded() / 4, tiles.chunks.len());
        let mut words = vec![[0_i8; 4]; rows * quads];
        let (mut steps, mut sums) = (vec![1.0; rows * chunks], vec![0; rows * chunks]);
        let mut row_steps = vec![1.0; rows];
        // One batch, row by row.
        let most = batches.first().map_or(0, |batch| batch.rows);
        let mut q = vec![0_i8; most * tiles.padded()];
        let (mut q_steps, mut q_sums) = (vec![1.0; most * chunks], vec![0; most * chunks]);
        for &Batch { first, rows } in &batches {
            let x = x[first * tiles.columns..].chunks_exact(tiles.columns);
            let of_chunks = q_steps.chunks_exact_mut(chunks).zip(q_sums.chunks_exact_mut(chunks));
            let outs = q.chunks_exact_mut(tiles.padded()).zip(of_chunks);
            for ((x, (q, (steps, sums))), row_step) in x.zip(outs).zip(&mut row_steps[first..][..rows]) {
                *row_step = products.quantize(&tiles.chunks, x, per_row, q, steps, sums);
            }
            interleave(q.as_chunks::<4>().0, quads, 0, rows, words[first * quads..][..rows * quads].as_mut());
            interleave(&q_steps, chunks, 0, rows, &mut steps[first * chunks..][..rows * chunks]);
            interleave(&q_sums, chunks, 0, rows, &mut sums[first * chunks..][..rows * chunks]);
        }
        let offset = tiles.integers.map_or(0, |integers| integers.offset);
        let starts = sums.iter().map(|sum| -offset * sum).collect();
        let words = words.into_iter().map(|word: [i8; 4]| i32::from_le_bytes(word.map(i8::cast_unsigned))).collect();
        Self { batches, words, steps, sums, starts, row_steps, per_row }
    }
}

/// Puts parts of `count` rows of `length` items side by side: the first items of all, then the second ones and so on.
fn interleave<T: Copy>(rows: &[T], length: usize, first: usize, count: usize, out: &mut [T]) {
    for (i, out) in out.chunks_exact_mut(count).enumerate() {
        for (row, out) in rows.chunks_exact(length).zip(out) {
            *out = row[first + i];
        }
    }
}

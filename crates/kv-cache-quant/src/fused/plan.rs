//! In which order kernels see the elements of a row, and queries laid out for it.

use crate::packed::{Coding, PackedRows};

/// Elements of a register of f32.
pub(super) const LANES: usize = 16;

/// How kernels walk over a row of one head: the same for all rows, heads and tokens of a stream.
///
/// A *vector* is 16 elements at once. Dense codes come in words of 32 bits, one a lane; vector `j` takes code `j` of
/// each. Fewer than 16 words are repeated, the copies starting at codes further on: of 8 words the upper lanes take the
/// upper halves.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) rows: PackedRows,
    pub(super) chunks: Vec<Chunk>,
    pub(super) vectors: usize,
    /// The element in each lane of each vector; `None` where there is none.
    order: Vec<Option<usize>>,
    /// The same for the bytes that integer products take: of each chunk, of each of its `passes`, 64.
    byte_order: Vec<Option<usize>>,
    /// Codes of a byte that integer products take after each other.
    pub(super) passes: usize,
    /// How often the words of a chunk are repeated.
    pub(super) copies: usize,
    /// Values of codes of 4 bits, and of the lower two of them where codes have 2.
    pub(super) table: [f32; LANES],
    /// Right shift of each lane to the first code of its words.
    pub(super) word_shifts: [u32; LANES],
    /// The same to the first code of its bytes.
    pub(super) byte_shifts: [u32; LANES],
}

/// A run of vectors whose lanes are in the same groups.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) first: usize,
    pub(super) vectors: usize,
    /// Where its words start, where codes are dense or bytes.
    pub(super) offset: usize,
    /// Words that it has, at most 16.
    pub(super) words: usize,
    /// The group of each lane.
    pub(super) blocks: [u32; LANES],
}

impl Plan {
    pub(super) fn new(rows: PackedRows) -> Self {
        let bits = rows.coding.bits();
        if rows.coding.is_dense() { Self::dense(rows, bits) } else { Self::wide(rows) }
    }

    fn dense(rows: PackedRows, bits: usize) -> Self {
        let (bytes, per_word, per_byte) = (rows.head_bytes(), 32 / bits, 8 / bits);
        let copies = match (bytes, per_byte) {
            (16, 4) => 4,
            (32, _) => 2,
            _ => 1,
        };
        let (lanes, vectors, passes) = (LANES / copies, per_word / copies, per_byte / copies);
        let (mut chunks, mut order, mut byte_order) = (Vec::new(), Vec::new(), Vec::new());
        for offset in (0..bytes).step_by(4 * lanes) {
            let element = |byte: usize, code: usize| {
                let element = (offset + byte) * per_byte + code;
                (element < rows.columns).then_some(element)
            };
            let block = |lane: usize| element(lane % lanes * 4, 0).map_or(0, |element| element / rows.group);
            chunks.push(Chunk {
                first: order.len() / LANES,
                vectors,
                offset,
                words: ((bytes - offset) / 4).min(lanes),
                blocks: std::array::from_fn(|lane| u32::try_from(block(lane)).unwrap_or(0)),
            });
            for vector in 0..vectors {
                order.extend((0..LANES).map(|lane| element(lane % lanes * 4, lane / lanes * vectors + vector)));
            }
            for pass in 0..passes {
                let byte = |at: usize| element(at / 4 % lanes * 4 + at % 4, at / 4 / lanes * passes + pass);
                byte_order.extend((0..64).map(byte));
            }
        }
        let shifts = |codes: usize| std::array::from_fn(|lane| u32::try_from(lane / lanes * codes * bits).unwrap_or(0));
        let (word_shifts, byte_shifts) = (shifts(vectors), shifts(passes));
        let vectors = order.len() / LANES;
        let table = table(rows.coding);
        Self { rows, chunks, vectors, order, byte_order, passes, copies, table, word_shifts, byte_shifts }
    }

    fn wide(rows: PackedRows) -> Self {
        let (columns, bits) = (rows.columns, rows.coding.bits());
        let vectors = columns.div_ceil(LANES);
        let block = |vector: usize| vector * LANES / rows.group;
        let mut chunks: Vec<Chunk> = Vec::new();
        for vector in 0..vectors {
            match chunks.last_mut() {
                Some(last) if block(last.first) == block(vector) => last.vectors += 1,
                _ => chunks.push(Chunk {
                    first: vector,
                    vectors: 1,
                    offset: 0,
                    words: 0,
                    blocks: [u32::try_from(block(vector)).unwrap_or(0); LANES],
                }),
            }
        }
        let within = |element: usize| (element < columns).then_some(element);
        let order = (0..vectors * LANES).map(within).collect();
        // Integer products take 64 bytes at a time, groups by word.
        let byte_order = if bits == 8 { (0..columns.next_multiple_of(64)).map(within).collect() } else { Vec::new() };
        Self {
            rows,
            chunks,
            vectors,
            order,
            byte_order,
            passes: 1,
            copies: 1,
            table: [0.0; LANES],
            word_shifts: [0; LANES],
            byte_shifts: [0; LANES],
        }
    }

    /// The chunks of 64 bytes that integer products take.
    pub(super) fn byte_chunks(&self) -> Vec<Chunk> {
        if self.rows.coding.is_dense() {
            return self.chunks.clone();
        }
        let (bytes, group) = (self.rows.columns, self.rows.group);
        let chunk = |offset: usize| Chunk {
            first: 0,
            vectors: 0,
            offset,
            words: ((bytes - offset) / 4).min(LANES),
            blocks: std::array::from_fn(|lane| u32::try_from((offset + 4 * lane).min(bytes - 1) / group).unwrap_or(0)),
        };
        (0..bytes).step_by(64).map(chunk).collect()
    }

    /// Whether products with queries are made of integers.
    pub(super) fn multiplies_integers(&self) -> bool {
        matches!(self.rows.coding, Coding::Int { .. })
    }

    /// Puts sums back in their order: `[vector][member][lane]` to `out[element]` of one member.
    pub(super) fn gather(&self, sums: &[f32], members: usize, member: usize, out: &mut [f32]) {
        for (vector, order) in self.order.chunks_exact(LANES).enumerate() {
            let sums = &sums[(vector * members + member) * LANES..][..LANES];
            for (sum, element) in sums.iter().zip(order) {
                if let Some(element) = element {
                    out[*element] = *sum;
                }
            }
        }
    }
}

fn table(coding: Coding) -> [f32; LANES] {
    match coding {
        Coding::Table(values) => values,
        Coding::Int { bits, signed } => {
            let levels = 1_u8 << bits.min(4);
            let value = |code: u8| {
                let code = code % levels;
                f32::from(code) - if signed && code >= levels / 2 { f32::from(levels) } else { 0.0 }
            };
            std::array::from_fn(|code| value(u8::try_from(code).unwrap_or(0)))
        }
        _ => [0.0; LANES],
    }
}

/// Up to four queries of one head, as the kernels of a plan take them.
#[derive(Clone, Debug)]
pub(super) struct Queries {
    pub(super) members: usize,
    /// `[vector][member][lane]`, for products of floats.
    pub(super) values: Vec<f32>,
    /// `[chunk][pass][member][high, low][64]`: a query is `(256 · high + low) · step`.
    pub(super) bytes: Vec<i8>,
    /// `[member][block]`: the sum of the elements of each group, as they are multiplied, in units of the member's step.
    pub(super) blocks: Vec<[f32; LANES]>,
    /// The step of member `i % members`.
    pub(super) steps: [f32; LANES],
}

/// Steps from 0 to the largest magnitude of a query: both bytes fit.
const MOST_STEPS: f32 = 32512.0;

impl Queries {
    /// Queries with the scale of scores in them.
    pub(super) fn new(plan: &Plan, queries: &[&[f32]]) -> Self {
        let (members, integers) = (queries.len(), plan.multiplies_integers());
        let step = |query: &[f32]| {
            let largest = query.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            // A step whose reciprocal is not finite would be lost on scores anyway.
            if integers && largest > f32::MIN_POSITIVE * MOST_STEPS { largest / MOST_STEPS } else { 1.0 }
        };
        let steps: Vec<f32> = queries.iter().map(|query| step(query)).collect();
        let at = |query: &[f32], element: Option<usize>| element.map_or(0.0, |element| query[element]);
        let mut values = Vec::new();
        let mut bytes = Vec::new();
        if integers {
            for order in plan.byte_order.chunks_exact(64) {
                for (query, step) in queries.iter().zip(&steps) {
                    let parts: Vec<[i8; 2]> =
                        order.iter().map(|&element| split(steps_of(at(query, element), *step))).collect();
                    bytes.extend(parts.iter().map(|part| part[0]));
                    bytes.extend(parts.iter().map(|part| part[1]));
                }
            }
        } else {
            for order in plan.order.chunks_exact(LANES) {
                queries.iter().for_each(|query| values.extend(order.iter().map(|&element| at(query, element))));
            }
        }
        let mut blocks = vec![[0.0; LANES]; members];
        for ((blocks, query), step) in blocks.iter_mut().zip(queries).zip(&steps) {
            for (sum, group) in blocks.iter_mut().zip(query.chunks(plan.rows.group)) {
                #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                let total =
                    group.iter().map(|&x| f64::from(if integers { steps_of(x, *step) } else { x })).sum::<f64>() as f32;
                *sum = total;
            }
        }
        Self { members, values, bytes, blocks, steps: std::array::from_fn(|lane| steps[lane % members]) }
    }
}

/// A value as a number of steps, to nearest.
fn steps_of(x: f32, step: f32) -> f32 {
    (x / step).round_ties_even()
}

/// The two bytes of a number of steps.
fn split(steps: f32) -> [i8; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "at most 32512")]
    let steps = steps as i32;
    let high = (steps + 128) >> 8;
    #[expect(clippy::cast_possible_truncation, reason = "both are within a byte, as |steps| is at most 32512")]
    let parts = [high as i8, (steps - 256 * high) as i8];
    parts
}

//! In which order kernels see the elements of a row, and queries laid out for it.

use crate::packed::{Coding, PackedRows};
use quant_core::FloatKind;

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
    /// Where each element is: the vector and the lane.
    places: Vec<usize>,
    /// How often the words of a chunk are repeated.
    pub(super) copies: usize,
    /// Values of codes of 4 bits, and of the lower two of them where codes have 2.
    pub(super) table: [f32; LANES],
    /// Right shift of each lane to the first code of its words.
    pub(super) word_shifts: [u32; LANES],
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
        let (lanes, vectors) = (LANES / copies, per_word / copies);
        let (mut chunks, mut order) = (Vec::new(), Vec::new());
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
        }
        let word_shifts = std::array::from_fn(|lane| u32::try_from(lane / lanes * vectors * bits).unwrap_or(0));
        let vectors = order.len() / LANES;
        let (table, places) = (table(rows.coding), places(&order, rows.columns));
        Self { rows, chunks, vectors, order, places, copies, table, word_shifts }
    }

    fn wide(rows: PackedRows) -> Self {
        let columns = rows.columns;
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
        let places = (0..columns).collect();
        Self { rows, chunks, vectors, order, places, copies: 1, table: [0.0; LANES], word_shifts: [0; LANES] }
    }

    /// Puts sums back in their order: `[vector][member][lane]` to `out[element]` of one member.
    pub(super) fn gather(&self, sums: &[f32], members: usize, member: usize, out: &mut [f32]) {
        gather(&self.places, sums, members, member, out);
    }
}

/// Where each element is, given the elements in their places.
pub(super) fn places(order: &[Option<usize>], elements: usize) -> Vec<usize> {
    let mut places = vec![0; elements];
    for (place, element) in order.iter().enumerate() {
        if let Some(element) = element {
            places[*element] = place;
        }
    }
    places
}

/// Puts sums back in their order: `[vector][member][lane]` to `out[element]` of one member.
pub(super) fn gather(places: &[usize], sums: &[f32], members: usize, member: usize, out: &mut [f32]) {
    for (out, &place) in out.iter_mut().zip(places) {
        *out = sums[(place / LANES * members + member) * LANES + place % LANES];
    }
}

fn table(coding: Coding) -> [f32; LANES] {
    match coding {
        Coding::Table(values) => values,
        Coding::E2m1 => std::array::from_fn(|code| 2.0 * FloatKind::E2m1.decode(u16::try_from(code).unwrap_or(0))),
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
    /// `[vector][member][lane]`.
    pub(super) values: Vec<f32>,
    /// `[member][block]`: the sum of the elements of each group.
    pub(super) blocks: Vec<[f32; LANES]>,
}

impl Queries {
    /// Queries with the scale of scores in them.
    pub(super) fn new(plan: &Plan, queries: &[&[f32]]) -> Self {
        let at = |query: &[f32], element: Option<usize>| element.map_or(0.0, |element| query[element]);
        let mut values = Vec::new();
        for order in plan.order.chunks_exact(LANES) {
            queries.iter().for_each(|query| values.extend(order.iter().map(|&element| at(query, element))));
        }
        let mut blocks = vec![[0.0; LANES]; queries.len()];
        for (blocks, query) in blocks.iter_mut().zip(queries) {
            for (sum, group) in blocks.iter_mut().zip(query.chunks(plan.rows.group)) {
                #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                let total = group.iter().map(|&x| f64::from(x)).sum::<f64>() as f32;
                *sum = total;
            }
        }
        Self { members: queries.len(), values, blocks }
    }
}

//! Attention on packed codes: neither keys nor values are decoded.
//!
//! Tokens are cut into splits at fixed places behind the sinks. Each split, for a few queries at a time, goes through three steps:
//! scores of its tokens, weights relative to their largest, weighted sum of its values. Splits are put together in their
//! order. Neither depends on which thread does what, so that no bit depends on the number of threads.
//!
//! Maps of rows, such as rotations, move to the other factor: `q · (L x + b) = (Lᵀ q) · x + q · b`, and a weighted sum
//! of mapped values is the map of their weighted sum.
//!
//! Compared with attention on decoded rows, where codes are integers of 2, 4 or 8 bits, or E2M1, which is one in steps of 1/2:
//!
//! - queries are rounded to multiples of `max|q|/32512`, which changes a score by at most `scale · max|q| · Σ|k| / 65024`;
//! - products of weights and scales are rounded to multiples of `m/32512`, `m` the largest of at most 64 consecutive tokens,
//!   and what the codes have in common is added in f32. That changes an output by at most 32/65024 of the widest range that
//!   codes of a group have: when all of 64 products are off by half a step, each to the side of its code. As products fall
//!   it is some 2⁻¹⁶ of the range.
//!
//! Everything else are the roundings of f32 sums in another order, and of an exponential good to 2⁻²². With [`Factors::Bits8`] it is 127
//! where 32512 stands here, and 254 for 65024.

mod avx512;
mod generated {
    pub(super) mod attention;
}
mod ints;
mod kernels;
mod merge;
mod plan;
mod queries;
mod runs;
mod softmax;
mod weights;

use crate::attend::{Factors, Request};
use crate::cache::QuantizedKv;
use crate::codec::{Codec, RowMap};
use crate::packed::PackedRows;
use crate::pages::Order;
use crate::side::{Side, Span, SpanKind};
use crate::{FullPrecision, KeyStorage, KvGeometry, Mask};
use avx512::{Avx512, Rows};
use ints::IntPlan;
use kernels::Turned;
use plan::{LANES, Plan, Queries};
use quant_core::kernels::Isa;
use queries::IntQueries;
use rayon::prelude::*;
use runs::{Meta, Run, runs};
use std::ops::Range;
use std::sync::Mutex;
use weights::Weights;

/// Tokens of a split.
const SPLIT: usize = 256;
/// Queries of a key-value head that a split is read for at once.
const MOST_MEMBERS: usize = 16;
/// Splits, times blocks of queries, whose results are held at once.
const MOST_JOBS: usize = 256;
/// Elements below which one thread is faster.
const LEAST_ELEMENTS: usize = 1 << 16;

/// How attention reads one stream.
struct Reader<'a> {
    sealed: Form,
    exact: Form,
    fresh: Form,
    maps: Vec<&'a dyn RowMap>,
}

/// One way that rows are stored in.
struct Form {
    plan: Plan,
    /// Where products are those of integers.
    ints: Option<IntPlan>,
}

impl Form {
    fn new(rows: PackedRows, order: Order, factors: Factors) -> Self {
        Self { ints: IntPlan::new(&rows, order != Order::Units, factors), plan: Plan::new(rows) }
    }
}

impl<'a> Reader<'a> {
    fn new(side: &'a Side, stage: usize, (heads, dim): (usize, usize), factors: Factors) -> Option<Self> {
        let codec: &dyn Codec = side.codec();
        let sealed = codec.packed(stage.min(codec.stages() - 1))?;
        let exact = |precision: FullPrecision| {
            Form::new(PackedRows::floats(precision.coding(), heads, dim), Order::Units, factors)
        };
        let fits = sealed.heads == heads && (sealed.transposed || sealed.columns == dim);
        fits.then(|| Self {
            sealed: Form::new(sealed, side.order(), factors),
            exact: exact(side.precision()),
            fresh: exact(FullPrecision::F32),
            maps: codec.maps(),
        })
    }

    /// Vectors of the sums of a row.
    fn vectors(&self, kind: SpanKind) -> usize {
        let form = self.form(kind);
        form.ints.as_ref().map_or(form.plan.vectors, IntPlan::registers)
    }

    fn form(&self, kind: SpanKind) -> &Form {
        match kind {
            SpanKind::Sealed => &self.sealed,
            SpanKind::Exact => &self.exact,
            SpanKind::Fresh => &self.fresh,
        }
    }
}

/// How attention reads keys and values, and the kernels for it, where there are any.
fn readers(cache: &QuantizedKv, factors: Factors) -> Option<(Avx512, Reader<'_>, Reader<'_>)> {
    let geometry = cache.geometry;
    let kernels = Avx512::detect().filter(|_| Isa::current() == Isa::Avx512)?;
    if !matches!(cache.storage, KeyStorage::PostRope) {
        return None;
    }
    let keys = Reader::new(&cache.keys, cache.stage, (geometry.kv_heads, geometry.dim_k), factors)?;
    let values = Reader::new(&cache.values, cache.stage, (geometry.kv_heads, geometry.dim_v), factors)?;
    (!values.sealed.plan.rows.transposed).then_some((kernels, keys, values))
}

/// Whether there are kernels for a cache on this processor.
pub(crate) fn covers(cache: &QuantizedKv) -> bool {
    readers(cache, Factors::default()).is_some()
}

/// Attention of checked queries, where there are kernels for both codecs; false: nothing was done.
pub(crate) fn attend(cache: &QuantizedKv, request: &Request<'_>, out: &mut [f32], scratch: &Pool) -> bool {
    let Some((kernels, keys, values)) = readers(cache, request.factors) else { return false };
    let geometry = cache.geometry;
    let fresh = [request.fresh_keys, request.fresh_values].map(|rows| -> Vec<u8> {
        let mut bytes = vec![0; 4 * rows.len()];
        FullPrecision::F32.write(rows, &mut bytes);
        bytes
    });
    let (cached, total) = (cache.keys.len(), request.positions.len());
    let (mut key_spans, mut value_spans) = (cache.keys.spans(), cache.values.spans());
    if total > cached {
        let fresh_span = |bytes| Span { kind: SpanKind::Fresh, tokens: cached..total, bytes, cut: None };
        key_spans.push(fresh_span(fresh[0].as_slice()));
        value_spans.push(fresh_span(fresh[1].as_slice()));
    }
    let sinks = cache.keys.sinks();
    let shared = Shared { kernels, geometry, request, sinks, keys, values, key_spans, value_spans, pool: scratch };
    shared.attend(out);
    true
}

/// A part of each of some rows.
fn rows_of(rows: &[f32], some: Range<usize>, width: usize, part: Range<usize>) -> Vec<&[f32]> {
    rows.chunks_exact(width).take(some.end).skip(some.start).map(|row| &row[part.clone()]).collect()
}

/// What jobs take and give back, as memory that is allocated anew costs more than to be filled.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    buffers: Mutex<Vec<Buffers>>,
    partials: Mutex<Vec<Partial>>,
}

/// One of a pool, or a new one.
fn take<T: Default>(pool: &Mutex<Vec<T>>) -> T {
    pool.lock().ok().and_then(|mut pool| pool.pop()).unwrap_or_default()
}

fn give_back<T>(pool: &Mutex<Vec<T>>, some: impl IntoIterator<Item = T>) {
    if let Ok(mut pool) = pool.lock() {
        pool.extend(some);
    }
}

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[derive(Debug, Default)]
struct Buffers {
    /// `[head][member][token]`, `SPLIT` tokens.
    scores: Vec<f32>,
    /// `[token][block]`.
    scales: Vec<f32>,
    zeros: Vec<f32>,
    /// `[block][token]`, `RUN` tokens.
    turned_scales: Vec<f32>,
    turned_zeros: Vec<f32>,
    turned: Turned,
    sums: Vec<f32>,
}

/// What all jobs read.
struct Shared<'a> {
    kernels: Avx512,
    geometry: KvGeometry,
    request: &'a Request<'a>,
    sinks: usize,
    keys: Reader<'a>,
    values: Reader<'a>,
    key_spans: Vec<Span<'a>>,
    value_spans: Vec<Span<'a>>,
    pool: &'a Pool,
}

/// Some consecutive queries. Its *members*, of every key-value head, are queries times heads of the group.
struct Block {
    first: usize,
    members: usize,
    /// Members in packs of at most four: first and number.
    packs: Vec<(usize, usize)>,
    /// Of every head, of every pack.
    queries: Vec<Prepared>,
}

/// The queries of a pack for each kind of rows that there is.
struct Prepared {
    sealed: Option<Queries>,
    exact: Option<Queries>,
    /// For sealed keys that are integers.
    ints: Option<IntQueries>,
    /// `[member][channel]`, where rows of sealed keys are channels.
    weights: Vec<f32>,
    /// What is added to scores of sealed tokens.
    constants: [f32; 4],
}

/// What some splits say about the members of a block, `[head][member]`.
#[derive(Debug, Default)]
struct Partial {
    tops: Vec<f32>,
    sums: Vec<f64>,
    /// Parts of the sums that sealed tokens have; empty where nobody asks.
    masses: Vec<f64>,
    /// Sums over tokens of each of [`KINDS`], as kernels make them: `[head]`, of each pack `[vector][member]`, then `[member]` of
    /// what zero points add. Empty where there are none.
    rows: [Vec<f32>; 3],
}

impl Partial {
    /// Nothing about so many members.
    fn clear(&mut self, members: usize, keeps_masses: bool) {
        self.tops.clear();
        self.tops.resize(members, f32::NEG_INFINITY);
        for (list, length) in [(&mut self.sums, members), (&mut self.masses, if keeps_masses { members } else { 0 })] {
            list.clear();
            list.resize(length, 0.0);
        }
        self.rows.iter_mut().for_each(Vec::clear);
    }
}

/// The kinds of tokens, in the order in which they are added.
const KINDS: [SpanKind; 3] = [SpanKind::Sealed, SpanKind::Exact, SpanKind::Fresh];

impl Shared<'_> {
    fn attend(&self, out: &mut [f32]) {
        let geometry = self.geometry;
        let (width, out_width) = (geometry.q_heads * geometry.dim_k, geometry.q_heads * geometry.dim_v);
        let (count, total) = (self.request.queries.len() / width, self.request.positions.len());
        // As pages begin behind the sinks, so do splits.
        let lead = (SPLIT - self.sinks % SPLIT) % SPLIT;
        let splits = (total + lead).div_ceil(SPLIT);
        let per_block = (MOST_MEMBERS / geometry.group()).max(1);
        let blocks_at_once = (MOST_JOBS / splits).max(1);
        let in_parallel = rayon::current_num_threads() > 1 && total * geometry.key_width() * count >= LEAST_ELEMENTS;
        for first in (0..count).step_by(per_block * blocks_at_once) {
            let end = count.min(first + per_block * blocks_at_once);
            let firsts: Vec<usize> = (first..end).step_by(per_block).collect();
            let block = |&at: &usize| self.block(at..end.min(at + per_block));
            let job = |blocks: &[Block], job: usize| {
                let start = job % splits * SPLIT;
                self.job(&blocks[job / splits], start.saturating_sub(lead)..total.min(start + SPLIT - lead))
            };
            // Those of many queries are large, and cost little beside what they are for.
            let keeps = count == 1;
            let outs = &mut out[first * out_width..end * out_width];
            if in_parallel {
                let blocks: Vec<Block> = firsts.par_iter().map(block).collect();
                let partials: Vec<Partial> =
                    (0..blocks.len() * splits).into_par_iter().map(|index| job(&blocks, index)).collect();
                let outs = outs.par_chunks_mut(per_block * out_width);
                blocks.par_iter().zip(partials.par_chunks_exact(splits)).zip(outs).for_each(
                    |((block, partials), out)| {
                        let mut total = self.nothing(block);
                        partials.iter().for_each(|partial| block.add_split(&mut total, partial));
                        self.finish(block, &total, out);
                        if keeps {
                            give_back(&self.pool.partials, [total]);
                        }
                    },
                );
                if keeps {
                    give_back(&self.pool.partials, partials);
                }
            } else {
                for (first, out) in firsts.iter().zip(outs.chunks_mut(per_block * out_width)) {
                    let blocks = [block(first)];
                    let mut total = self.nothing(&blocks[0]);
                    for index in 0..splits {
                        let partial = job(&blocks, index);
                        blocks[0].add_split(&mut total, &partial);
                        give_back(&self.pool.partials, [partial]);
                    }
                    self.finish(&blocks[0], &total, out);
                    give_back(&self.pool.partials, [total]);
                }
            }
        }
    }

    /// What no split says about a block.
    fn nothing(&self, block: &Block) -> Partial {
        let mut partial = take(&self.pool.partials);
        partial.clear(self.geometry.kv_heads * block.members, !self.values.maps.is_empty());
        partial
    }

    /// Where the row of a member's query starts among rows of `dim` elements, all heads.
    fn row_of(&self, head: usize, member: usize, dim: usize) -> usize {
        let (query, place) = (member / self.geometry.group(), member % self.geometry.group());
        (query * self.geometry.q_heads + head * self.geometry.group() + place) * dim
    }

    fn block(&self, queries: Range<usize>) -> Block {
        let geometry = self.geometry;
        let (dim, heads) = (geometry.dim_k, geometry.kv_heads);
        let members = queries.len() * geometry.group();
        let width = geometry.q_heads * dim;
        let given = &self.request.queries[queries.start * width..queries.end * width];
        // `[member][head]`: a row that maps of rows apply to.
        let mut rows = vec![0.0; members * heads * dim];
        for (member, row) in rows.chunks_exact_mut(heads * dim).enumerate() {
            for (head, out) in row.chunks_exact_mut(dim).enumerate() {
                let query = &given[self.row_of(head, member, dim)..][..dim];
                out.iter_mut().zip(query).for_each(|(out, x)| *out = x * self.request.scale);
            }
        }
        let (mut mapped, mut constants) = (rows.clone(), vec![0.0; members * heads]);
        for map in &self.keys.maps {
            let mut origin = vec![0.0; heads * dim];
            map.inverse(&mut origin);
            for (row, constants) in mapped.chunks_exact_mut(heads * dim).zip(constants.chunks_exact_mut(heads)) {
                for ((constant, row), origin) in
                    constants.iter_mut().zip(row.chunks_exact(dim)).zip(origin.chunks_exact(dim))
                {
                    let sum: f64 = row.iter().zip(origin).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                    let sum = sum as f32;
                    *constant += sum;
                }
                map.transpose(row);
            }
        }
        let mut packs = Vec::new();
        let mut at = 0;
        while at < members {
            let size = [4, 2, 1].into_iter().find(|size| at + size <= members).unwrap_or(1);
            packs.push((at, size));
            at += size;
        }
        let transposed = self.keys.sealed.plan.rows.transposed;
        let has_exact = self.key_spans.iter().any(|span| span.kind != SpanKind::Sealed);
        let form = &self.keys.sealed;
        let prepare = |head: usize, &(first, size): &(usize, usize)| {
            let of = |rows| rows_of(rows, first..first + size, heads * dim, head * dim..(head + 1) * dim);
            let sealed = of(mapped.as_slice());
            Prepared {
                sealed: (!transposed && form.ints.is_none()).then(|| Queries::new(&form.plan, &sealed)),
                exact: has_exact.then(|| Queries::new(&self.keys.exact.plan, &of(rows.as_slice()))),
                ints: form.ints.as_ref().map(|plan| IntQueries::new(self.kernels, plan, form.plan.rows.group, &sealed)),
                weights: if transposed { sealed.concat() } else { Vec::new() },
                constants: std::array::from_fn(|i| if i < size { constants[(first + i) * heads + head] } else { 0.0 }),
            }
        };
        let queries_of = (0..heads).flat_map(|head| packs.iter().map(move |pack| (head, pack)));
        let prepared = queries_of.map(|(head, pack)| prepare(head, pack)).collect();
        Block { first: queries.start, members, packs, queries: prepared }
    }

    fn job(&self, block: &Block, tokens: Range<usize>) -> Partial {
        let heads = self.geometry.kv_heads;
        let last = self.request.first + block.first + block.members / self.geometry.group() - 1;
        if self.request.mask != Mask::Full && tokens.start > last {
            return Partial::default();
        }
        let mut buffers = take(&self.pool.buffers);
        buffers.scores.resize(heads * block.members * SPLIT, 0.0);
        let key_runs = runs(&self.key_spans, &self.keys, &tokens);
        let value_runs = runs(&self.value_spans, &self.values, &tokens);
        self.score(block, &tokens, (&key_runs, value_runs.first()), &mut buffers);
        self.mask(block, &tokens, &mut buffers.scores);
        let mut partial = self.nothing(block);
        let tops = partial.tops.iter_mut().zip(&mut partial.sums);
        for (scores, (top, sum)) in buffers.scores.chunks_exact_mut(SPLIT).zip(tops) {
            let scores = &mut scores[..tokens.len().next_multiple_of(LANES)];
            scores[tokens.len()..].fill(f32::NEG_INFINITY);
            let own = self.kernels.weigh_scores(scores);
            (*top, *sum) = (own.0, f64::from(own.1));
        }
        self.weigh(block, &tokens, &value_runs, &mut buffers, &mut partial);
        give_back(&self.pool.buffers, [buffers]);
        partial
    }

    /// Scores of the tokens of a split, given its runs and what is read after them.
    fn score(
        &self,
        block: &Block,
        tokens: &Range<usize>,
        (runs, after): (&[Run<'_>], Option<&Run<'_>>),
        buffers: &mut Buffers,
    ) {
        for (index, run) in runs.iter().enumerate() {
            let form = self.keys.form(run.kind);
            let next = runs.get(index + 1).or(after);
            if let Some(next) = next {
                next.ask_for_meta(self.kernels);
            }
            run.read_meta(self.kernels, form, buffers);
            if form.plan.rows.transposed {
                self.score_transposed(block, tokens, run, buffers);
                continue;
            }
            let place = run.tokens.start - tokens.start;
            let Buffers { scores, turned, .. } = buffers;
            let packs = |head: usize| block.packs.iter().zip(&block.queries[head * block.packs.len()..]);
            let start =
                |head: usize, member: usize, first: usize| (head * block.members + member) * SPLIT + place + first;
            if let Some(plan) = &form.ints {
                let meta = (buffers.turned_scales.as_slice(), buffers.turned_zeros.as_slice());
                run.each_tile(&form.plan.rows, next, Meta::turned(meta), |head, first, rows| {
                    let packs = packs(head).filter_map(|(&(member, _), queries)| {
                        Some((queries.ints.as_ref()?, start(head, member, first)))
                    });
                    self.kernels.dot_integers(plan, &rows, packs, (scores, SPLIT), turned);
                });
            } else {
                let meta = (buffers.scales.as_slice(), buffers.zeros.as_slice());
                run.each_tile(&form.plan.rows, next, Meta::by_row(meta), |head, first, mut rows| {
                    for (&(member, _), queries) in packs(head) {
                        let queries = if run.kind == SpanKind::Sealed { &queries.sealed } else { &queries.exact };
                        let Some(queries) = queries else { continue };
                        let out = &mut scores[start(head, member, first)..];
                        self.kernels.dot(&form.plan, queries, &rows, (out, SPLIT));
                        rows.ahead = &[];
                    }
                });
            }
            if run.kind == SpanKind::Sealed && !self.keys.maps.is_empty() {
                for head in 0..self.geometry.kv_heads {
                    for (&(first, size), queries) in packs(head) {
                        for (g, constant) in queries.constants[..size].iter().enumerate() {
                            let scores = &mut scores[start(head, first + g, 0)..][..run.tokens.len()];
                            scores.iter_mut().for_each(|score| *score += constant);
                        }
                    }
                }
            }
        }
    }

    /// Scores of a unit that is stored by channel: a weighted sum of channels.
    fn score_transposed(&self, block: &Block, tokens: &Range<usize>, run: &Run<'_>, buffers: &mut Buffers) {
        let plan = &self.keys.sealed.plan;
        let layout = &plan.rows;
        let channels = self.geometry.dim_k;
        let mut row = vec![0.0; layout.columns];
        for head in 0..self.geometry.kv_heads {
            let first = head * channels;
            let meta = first * layout.blocks();
            let rows = Rows {
                codes: &run.codes[first * layout.row_bytes..],
                stride: layout.row_bytes,
                count: channels,
                scales: buffers.scales.get(meta..).unwrap_or_default(),
                zeros: buffers.zeros.get(meta..).unwrap_or_default(),
                meta_stride: layout.blocks(),
                ahead: &[],
                ahead_step: 0,
            };
            for (&(member, size), queries) in block.packs.iter().zip(&block.queries[head * block.packs.len()..]) {
                let sums = &mut buffers.sums;
                sums.clear();
                sums.resize((plan.vectors + 1) * size * LANES, 0.0);
                let (sums, zeros) = sums.split_at_mut(plan.vectors * size * LANES);
                self.kernels.weigh(plan, size, (&queries.weights, channels), &rows, (sums, zeros));
                let at = (head * block.members + member) * SPLIT;
                for g in 0..size {
                    plan.gather(sums, size, g, &mut row);
                    let zeros = &zeros[g * LANES..];
                    for (index, score) in row.iter().enumerate() {
                        let token = run.tokens.start + index;
                        if run.wanted.contains(&token) {
                            buffers.scores[at + g * SPLIT + token - tokens.start] =
                                score + zeros[index / layout.group] + queries.constants[g];
                        }
                    }
                }
            }
        }
    }

    /// Hides what queries do not see.
    fn mask(&self, block: &Block, tokens: &Range<usize>, scores: &mut [f32]) {
        let (request, group) = (self.request, self.geometry.group());
        let first = request.first + block.first;
        if request.mask == Mask::Full || (request.mask == Mask::Causal && tokens.end <= first + 1) {
            return;
        }
        for (index, scores) in scores.chunks_exact_mut(SPLIT).enumerate() {
            let own = first + index % block.members / group;
            for (token, score) in tokens.clone().zip(scores) {
                let far = match request.mask {
                    Mask::Sliding(window) => request.positions[own].saturating_sub(request.positions[token]) >= window,
                    Mask::Causal | Mask::Full => false,
                };
                if token > own || far {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Weighted sums of the values of a split.
    fn weigh(
        &self,
        block: &Block,
        tokens: &Range<usize>,
        runs: &[Run<'_>],
        buffers: &mut Buffers,
        partial: &mut Partial,
    ) {
        let heads = self.geometry.kv_heads;
        let keeps_apart = !self.values.maps.is_empty();
        for (kind, sums) in KINDS.into_iter().zip(&mut partial.rows) {
            let form = self.values.form(kind);
            let plan = &form.plan;
            if !runs.iter().any(|run| run.kind == kind) {
                continue;
            }
            let vectors = self.values.vectors(kind);
            let member_sums = (vectors + 1) * LANES;
            sums.resize(heads * block.members * member_sums, 0.0);
            for (index, run) in runs.iter().enumerate().filter(|(_, run)| run.kind == kind) {
                let next = runs.get(index + 1);
                if let Some(next) = next {
                    next.ask_for_meta(self.kernels);
                }
                run.read_meta(self.kernels, form, buffers);
                let place = run.tokens.start - tokens.start;
                let Buffers { scores, turned, .. } = buffers;
                let sums_at = |head: usize, (member, size): (usize, usize)| {
                    let at = (head * block.members + member) * member_sums;
                    at..at + size * member_sums
                };
                let weights_of = |head: usize, member: usize, first| {
                    &scores[(head * block.members + member) * SPLIT + place + first..]
                };
                if let Some(plan) = &form.ints {
                    let meta = (buffers.turned_scales.as_slice(), buffers.turned_zeros.as_slice());
                    let weights = Weights {
                        heads,
                        members: block.members,
                        values: &scores[place..],
                        stride: SPLIT,
                        count: run.tokens.len(),
                        scales: meta.0,
                        zeros: meta.1,
                    };
                    self.kernels.quantize_weights(plan, &weights, turned);
                    run.each_tile(&form.plan.rows, next, Meta::turned(meta), |head, _, mut rows| {
                        self.kernels.turn_values(plan, &rows, turned);
                        for &(member, size) in &block.packs {
                            let items = (head * block.members + member, size);
                            let sums = sums[sums_at(head, (member, size))].split_at_mut(vectors * size * LANES);
                            self.kernels.weigh_integers(plan, items, &rows, sums, turned);
                            rows.ahead = &[];
                        }
                    });
                } else {
                    let meta = (buffers.scales.as_slice(), buffers.zeros.as_slice());
                    run.each_tile(&plan.rows, next, Meta::by_row(meta), |head, first, mut rows| {
                        for &(member, size) in &block.packs {
                            let weights = (weights_of(head, member, first), SPLIT);
                            let sums = sums[sums_at(head, (member, size))].split_at_mut(vectors * size * LANES);
                            self.kernels.weigh(plan, size, weights, &rows, sums);
                            rows.ahead = &[];
                        }
                    });
                }
                if keeps_apart && kind == SpanKind::Sealed {
                    for (mass, weights) in partial.masses.iter_mut().zip(buffers.scores.chunks_exact(SPLIT)) {
                        *mass += f64::from(weights[place..place + run.tokens.len()].iter().sum::<f32>());
                    }
                }
            }
        }
    }
}

//! Attention on packed codes: neither keys nor values are decoded.
//!
//! Tokens are cut into splits at fixed places. Each split, for a few queries at a time, goes through three steps:
//! scores of its tokens, weights relative to their largest, weighted sum of its values. Splits are put together in their
//! order. Neither depends on which thread does what, so that no bit depends on the number of threads.
//!
//! Maps of rows, such as rotations, move to the other factor: `q · (L x + b) = (Lᵀ q) · x + q · b`, and a weighted sum
//! of mapped values is the map of their weighted sum.
//!
//! Compared with attention on decoded rows: queries that meet integers are rounded to multiples of `max|q|/32512`, which
//! changes a score by at most `scale · max|q| · Σ|k| / 65024`; everything else are the roundings of f32 sums in
//! another order, and of an exponential good to 2⁻²².

mod avx512;
mod plan;
mod softmax;

use crate::attend::Request;
use crate::cache::QuantizedKv;
use crate::codec::{Codec, RowMap};
use crate::packed::PackedRows;
use crate::side::{Side, Span, SpanKind};
use crate::{FullPrecision, KeyStorage, KvGeometry, Mask};
use avx512::{Avx512, Rows};
use plan::{Chunk, LANES, Plan, Queries};
use quant_core::kernels::Isa;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Tokens of a split.
const SPLIT: usize = 256;
/// Queries of a key-value head that a split is read for at once.
const MOST_MEMBERS: usize = 16;
/// Splits, times blocks of queries, whose results are held at once.
const MOST_JOBS: usize = 256;
/// Rows that scales are decoded of at once.
const RUN: usize = 64;
/// Bytes of rows that are worked on together, to stay in the first-level cache.
const TILE_BYTES: usize = 24 << 10;
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
    byte_chunks: Vec<Chunk>,
}

impl Form {
    fn new(rows: PackedRows) -> Self {
        let plan = Plan::new(rows);
        Self { byte_chunks: if plan.multiplies_integers() { plan.byte_chunks() } else { Vec::new() }, plan }
    }
}

impl<'a> Reader<'a> {
    fn new(side: &'a Side, stage: usize, heads: usize, dim: usize) -> Option<Self> {
        let codec: &dyn Codec = side.codec();
        let sealed = codec.packed(stage.min(codec.stages() - 1))?;
        let exact = |precision: FullPrecision| Form::new(PackedRows::floats(precision.coding(), heads, dim));
        let fits = sealed.heads == heads && (sealed.transposed || sealed.columns == dim);
        fits.then(|| Self {
            sealed: Form::new(sealed),
            exact: exact(side.precision()),
            fresh: exact(FullPrecision::F32),
            maps: codec.maps(),
        })
    }

    fn form(&self, kind: SpanKind) -> &Form {
        match kind {
            SpanKind::Sealed => &self.sealed,
            SpanKind::Exact => &self.exact,
            SpanKind::Fresh => &self.fresh,
        }
    }
}

/// Attention of checked queries, where there are kernels for both codecs; false: nothing was done.
pub(crate) fn attend(cache: &QuantizedKv, request: &Request<'_>, out: &mut [f32], scratch: &Pool) -> bool {
    let geometry = cache.geometry;
    let Some(kernels) = Avx512::detect().filter(|_| Isa::current() == Isa::Avx512) else { return false };
    if !matches!(cache.storage, KeyStorage::PostRope) {
        return false;
    }
    let Some(keys) = Reader::new(&cache.keys, cache.stage, geometry.kv_heads, geometry.dim_k) else { return false };
    let Some(values) = Reader::new(&cache.values, cache.stage, geometry.kv_heads, geometry.dim_v) else { return false };
    if values.sealed.plan.rows.transposed {
        return false;
    }
    let fresh = [request.fresh_keys, request.fresh_values].map(|rows| -> Vec<u8> {
        let mut bytes = vec![0; 4 * rows.len()];
        FullPrecision::F32.write(rows, &mut bytes);
        bytes
    });
    let (cached, total) = (cache.keys.len(), request.positions.len());
    let (mut key_spans, mut value_spans) = (cache.keys.spans(cache.stage), cache.values.spans(cache.stage));
    if total > cached {
        let fresh_span = |bytes| Span { kind: SpanKind::Fresh, tokens: cached..total, bytes };
        key_spans.push(fresh_span(fresh[0].as_slice()));
        value_spans.push(fresh_span(fresh[1].as_slice()));
    }
    let shared = Shared { kernels, geometry, request, keys, values, key_spans, value_spans, pool: scratch };
    shared.attend(out);
    true
}

/// Buffers that jobs take and give back.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Buffers>>);

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[derive(Debug, Default)]
struct Buffers {
    scores: Vec<f32>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    sums: Vec<f32>,
}

/// What all jobs read.
struct Shared<'a> {
    kernels: Avx512,
    geometry: KvGeometry,
    request: &'a Request<'a>,
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

/// The queries of a pack for each kind of rows.
struct Prepared {
    sealed: Queries,
    exact: Queries,
    /// `[channel][member]`, where rows of sealed keys are channels.
    weights: Vec<f32>,
    /// What is added to scores of sealed tokens.
    constants: [f32; 4],
}

/// What one split says about the members of a block, `[head][member]`.
#[derive(Default)]
struct Partial {
    tops: Vec<f32>,
    sums: Vec<f32>,
    /// Parts of the sums that sealed tokens have.
    masses: Vec<f32>,
    /// Sums over sealed tokens, as they are stored.
    sealed: Vec<f32>,
    /// Sums over all others.
    exact: Vec<f32>,
}

impl Shared<'_> {
    fn attend(&self, out: &mut [f32]) {
        let geometry = self.geometry;
        let (width, out_width) = (geometry.q_heads * geometry.dim_k, geometry.q_heads * geometry.dim_v);
        let (count, total) = (self.request.queries.len() / width, self.request.positions.len());
        let splits = total.div_ceil(SPLIT);
        let per_block = (MOST_MEMBERS / geometry.group()).max(1);
        let blocks_at_once = (MOST_JOBS / splits).max(1);
        let in_parallel = rayon::current_num_threads() > 1 && total * geometry.key_width() * count >= LEAST_ELEMENTS;
        for first in (0..count).step_by(per_block * blocks_at_once) {
            let end = count.min(first + per_block * blocks_at_once);
            let firsts: Vec<usize> = (first..end).step_by(per_block).collect();
            let block = |&at: &usize| self.block(at..end.min(at + per_block));
            let job = |blocks: &[Block], job: usize| {
                let start = job % splits * SPLIT;
                self.job(&blocks[job / splits], start..total.min(start + SPLIT))
            };
            let blocks: Vec<Block>;
            let partials: Vec<Partial>;
            if in_parallel {
                blocks = firsts.par_iter().map(block).collect();
                partials = (0..blocks.len() * splits).into_par_iter().map(|index| job(&blocks, index)).collect();
            } else {
                blocks = firsts.iter().map(block).collect();
                partials = (0..blocks.len() * splits).map(|index| job(&blocks, index)).collect();
            }
            for (block, partials) in blocks.iter().zip(partials.chunks_exact(splits)) {
                let out = &mut out[block.first * out_width..][..block.members / geometry.group() * out_width];
                self.merge(block, partials, out);
            }
        }
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
        let prepare = |head: usize, &(first, size): &(usize, usize)| {
            let of = |rows: &'_ [f32]| -> Vec<Vec<f32>> {
                let row = |member: usize| rows[(member * heads + head) * dim..][..dim].to_vec();
                (first..first + size).map(row).collect()
            };
            let slices = |rows: &[Vec<f32>], plan: &Plan| {
                Queries::new(plan, &rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            let (sealed, exact) = (of(&mapped), of(&rows));
            let weights = if transposed {
                (0..dim).flat_map(|channel| sealed.iter().map(move |row| row[channel])).collect()
            } else {
                Vec::new()
            };
            let exact = slices(&exact, &self.keys.exact.plan);
            Prepared {
                sealed: if transposed { exact.clone() } else { slices(&sealed, &self.keys.sealed.plan) },
                exact,
                weights,
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
        let mut buffers = self.pool.0.lock().ok().and_then(|mut pool| pool.pop()).unwrap_or_default();
        buffers.scores.clear();
        buffers.scores.resize(heads * block.members * SPLIT, f32::NEG_INFINITY);
        self.score(block, &tokens, &mut buffers);
        self.mask(block, &tokens, &mut buffers.scores);
        let mut partial = Partial {
            tops: vec![0.0; heads * block.members],
            sums: vec![0.0; heads * block.members],
            ..Partial::default()
        };
        self.each_pack(block, |head, (first, size), at| {
            let scores = &mut buffers.scores[at..][..tokens.len().next_multiple_of(LANES) * size];
            let (mut tops, mut sums) = ([0.0; LANES], [0.0; LANES]);
            softmax::weigh_scores(scores, size, &mut tops, &mut sums);
            let place = head * block.members + first;
            partial.tops[place..place + size].copy_from_slice(&tops[..size]);
            partial.sums[place..place + size].copy_from_slice(&sums[..size]);
        });
        self.weigh(block, &tokens, &mut buffers, &mut partial);
        if let Ok(mut pool) = self.pool.0.lock() {
            pool.push(buffers);
        }
        partial
    }

    /// Calls with head, pack, and where the pack's scores start.
    fn each_pack(&self, block: &Block, mut call: impl FnMut(usize, (usize, usize), usize)) {
        for head in 0..self.geometry.kv_heads {
            for &pack in &block.packs {
                call(head, pack, (head * block.members + pack.0) * SPLIT);
            }
        }
    }

    /// Scores of the tokens of a split, `[token][member]` of each pack.
    fn score(&self, block: &Block, tokens: &Range<usize>, buffers: &mut Buffers) {
        let runs = runs(&self.key_spans, &self.keys, tokens);
        for (index, run) in runs.iter().enumerate() {
            let form = self.keys.form(run.kind);
            run.read_meta(self.kernels, &form.plan.rows, buffers);
            if form.plan.rows.transposed {
                self.score_transposed(block, tokens, run, buffers);
                continue;
            }
            let next = runs.get(index + 1).map_or(&[][..], |next| next.codes);
            let scores = &mut buffers.scores;
            run.each_tile(&form.plan.rows, next, &buffers.scales, &buffers.zeros, |head, first, rows| {
                let mut rows = rows;
                for (&(member, size), queries) in block.packs.iter().zip(&block.queries[head * block.packs.len()..]) {
                    let queries = if run.kind == SpanKind::Sealed { &queries.sealed } else { &queries.exact };
                    let at = (head * block.members + member) * SPLIT + (run.tokens.start + first - tokens.start) * size;
                    let out = &mut scores[at..at + rows.count * size];
                    self.kernels.dot(&form.plan, &form.byte_chunks, queries, &rows, out);
                    rows.ahead = &[];
                }
            });
            if run.kind == SpanKind::Sealed && !self.keys.maps.is_empty() {
                let count = run.tokens.len();
                self.each_pack(block, |head, (first, size), at| {
                    let pack = block.packs.iter().position(|pack| pack.0 == first).unwrap_or(0);
                    let constants = &block.queries[head * block.packs.len() + pack].constants[..size];
                    let at = at + (run.tokens.start - tokens.start) * size;
                    for scores in scores[at..at + count * size].chunks_exact_mut(size) {
                        scores.iter_mut().zip(constants).for_each(|(score, constant)| *score += constant);
                    }
                });
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
                self.kernels.weigh(plan, size, &queries.weights, &rows, (sums, zeros));
                let at = (head * block.members + member) * SPLIT;
                for g in 0..size {
                    plan.gather(sums, size, g, &mut row);
                    let zeros = &zeros[g * LANES..];
                    for (index, score) in row.iter().enumerate() {
                        let token = run.tokens.start + index;
                        if run.wanted.contains(&token) {
                            buffers.scores[at + (token - tokens.start) * size + g] =
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
        self.each_pack(block, |_, (member, size), at| {
            for g in 0..size {
                let own = first + (member + g) / group;
                for token in tokens.clone() {
                    let far = match request.mask {
                        Mask::Sliding(window) => {
                            request.positions[own].saturating_sub(request.positions[token]) >= window
                        }
                        Mask::Causal | Mask::Full => false,
                    };
                    if token > own || far {
                        scores[at + (token - tokens.start) * size + g] = f32::NEG_INFINITY;
                    }
                }
            }
        });
    }

    /// Weighted sums of the values of a split.
    fn weigh(&self, block: &Block, tokens: &Range<usize>, buffers: &mut Buffers, partial: &mut Partial) {
        let (heads, dim) = (self.geometry.kv_heads, self.geometry.dim_v);
        let runs = runs(&self.value_spans, &self.values, tokens);
        let keeps_apart = !self.values.maps.is_empty();
        let size = heads * block.members;
        partial.exact = vec![0.0; size * dim];
        partial.sealed = vec![0.0; if keeps_apart { size * dim } else { 0 }];
        partial.masses = vec![0.0; if keeps_apart { size } else { 0 }];
        for kind in [SpanKind::Sealed, SpanKind::Exact, SpanKind::Fresh] {
            let form = self.values.form(kind);
            let plan = &form.plan;
            if !runs.iter().any(|run| run.kind == kind) {
                continue;
            }
            // `[head]`, of each pack `[vector][member]`, then `[member]` of what zero points add.
            let member_sums = (plan.vectors + 1) * LANES;
            let mut sums = std::mem::take(&mut buffers.sums);
            sums.clear();
            sums.resize(heads * block.members * member_sums, 0.0);
            for (index, run) in runs.iter().enumerate().filter(|(_, run)| run.kind == kind) {
                run.read_meta(self.kernels, &plan.rows, buffers);
                let next = runs.get(index + 1).map_or(&[][..], |next| next.codes);
                let scores = &buffers.scores;
                run.each_tile(&plan.rows, next, &buffers.scales, &buffers.zeros, |head, first, rows| {
                    let mut rows = rows;
                    for &(member, size) in &block.packs {
                        let place = head * block.members + member;
                        let at = place * SPLIT + (run.tokens.start + first - tokens.start) * size;
                        let weights = &scores[at..at + rows.count * size];
                        let sums = &mut sums[place * member_sums..][..size * member_sums];
                        let (sums, zeros) = sums.split_at_mut(plan.vectors * size * LANES);
                        self.kernels.weigh(plan, size, weights, &rows, (sums, zeros));
                        rows.ahead = &[];
                    }
                });
                if keeps_apart && kind == SpanKind::Sealed {
                    self.each_pack(block, |head, (first, size), at| {
                        let at = at + (run.tokens.start - tokens.start) * size;
                        for weights in buffers.scores[at..at + run.tokens.len() * size].chunks_exact(size) {
                            let masses = &mut partial.masses[head * block.members + first..];
                            masses.iter_mut().zip(weights).for_each(|(mass, weight)| *mass += weight);
                        }
                    });
                }
            }
            let out = if keeps_apart && kind == SpanKind::Sealed { &mut partial.sealed } else { &mut partial.exact };
            let mut row = vec![0.0; dim];
            self.each_pack(block, |head, (member, size), _| {
                let place = head * block.members + member;
                let sums = &sums[place * member_sums..][..size * member_sums];
                let zeros = &sums[plan.vectors * size * LANES..];
                for g in 0..size {
                    plan.gather(sums, size, g, &mut row);
                    let out = &mut out[(place + g) * dim..][..dim];
                    let groups = row.chunks(plan.rows.group).zip(out.chunks_mut(plan.rows.group));
                    for ((row, out), zero) in groups.zip(&zeros[g * LANES..]) {
                        out.iter_mut().zip(row).for_each(|(out, sum)| *out += sum + zero);
                    }
                }
            });
            buffers.sums = sums;
        }
    }

    /// Puts the splits of a block together.
    fn merge(&self, block: &Block, partials: &[Partial], out: &mut [f32]) {
        let (heads, dim) = (self.geometry.kv_heads, self.geometry.dim_v);
        let seen: Vec<&Partial> = partials.iter().filter(|partial| !partial.tops.is_empty()).collect();
        let keeps_apart = !self.values.maps.is_empty();
        // Rows of all heads, for maps.
        let (mut exact, mut sealed) = (vec![0.0; heads * dim], vec![0.0; heads * dim]);
        let mut shares = vec![0.0; heads];
        for member in 0..block.members {
            exact.fill(0.0);
            sealed.fill(0.0);
            for (head, share) in shares.iter_mut().enumerate() {
                let place = head * block.members + member;
                let top = seen.iter().map(|partial| partial.tops[place]).fold(f32::NEG_INFINITY, f32::max);
                let factor = |partial: &Partial| {
                    let top_of = partial.tops[place];
                    if top_of == f32::NEG_INFINITY { 0.0 } else { (f64::from(top_of) - f64::from(top)).exp() }
                };
                let add = |list: fn(&Partial) -> &[f32]| -> f64 {
                    seen.iter().map(|partial| factor(partial) * f64::from(list(partial)[place])).sum()
                };
                let sum = add(|partial| &partial.sums);
                if sum == 0.0 {
                    *share = 0.0;
                    continue;
                }
                let mass = if keeps_apart { add(|partial| &partial.masses) } else { 0.0 };
                #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                let gather = |list: fn(&Partial) -> &[f32], total: f64, out: &mut [f32]| {
                    for partial in &seen {
                        let factor = (factor(partial) / total) as f32;
                        let from = &list(partial)[place * dim..][..dim];
                        out.iter_mut().zip(from).for_each(|(out, x)| *out += factor * x);
                    }
                };
                let row = head * dim..(head + 1) * dim;
                gather(|partial| &partial.exact, sum, &mut exact[row.clone()]);
                if mass > 0.0 {
                    gather(|partial| &partial.sealed, mass, &mut sealed[row]);
                }
                #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                let part = (mass / sum) as f32;
                *share = part;
            }
            if keeps_apart {
                self.values.maps.iter().rev().for_each(|map| map.inverse(&mut sealed));
            }
            for (head, (exact, sealed)) in exact.chunks_exact(dim).zip(sealed.chunks_exact(dim)).enumerate() {
                let out = &mut out[self.row_of(head, member, dim)..][..dim];
                for ((out, exact), sealed) in out.iter_mut().zip(exact).zip(sealed) {
                    *out = if keeps_apart { exact + shares[head] * sealed } else { *exact };
                }
            }
        }
    }
}

/// Some rows that lie at equal distances: tokens, or the channels of one unit.
struct Run<'a> {
    kind: SpanKind,
    /// Its tokens; of a transposed unit all, also such that are not wanted.
    tokens: Range<usize>,
    wanted: Range<usize>,
    /// The units that it lies in, one or, where units are tokens, many.
    units: &'a [u8],
    /// The first row's place in its unit.
    first_row: usize,
    /// From the first row on.
    codes: &'a [u8],
    stride: usize,
}

/// The runs of a split.
fn runs<'a>(spans: &[Span<'a>], reader: &Reader<'_>, tokens: &Range<usize>) -> Vec<Run<'a>> {
    let mut runs = Vec::new();
    for span in spans {
        let (start, end) = (tokens.start.max(span.tokens.start), tokens.end.min(span.tokens.end));
        let layout = &reader.form(span.kind).plan.rows;
        let unit_tokens = if layout.transposed { layout.columns } else { layout.rows };
        let mut at = start;
        while at < end {
            let place = at - span.tokens.start;
            let (kind, bytes) = (span.kind, span.bytes);
            let (run, next) = if unit_tokens == 1 {
                let next = end.min(at + RUN);
                let units = &bytes[place * layout.unit_bytes..(next - span.tokens.start) * layout.unit_bytes];
                let wanted = at..next;
                (
                    Run {
                        kind,
                        tokens: at..next,
                        wanted,
                        units,
                        first_row: 0,
                        codes: units,
                        stride: layout.unit_bytes,
                    },
                    next,
                )
            } else {
                let (unit, first_row) = (place / unit_tokens, place % unit_tokens);
                let units = &bytes[unit * layout.unit_bytes..(unit + 1) * layout.unit_bytes];
                let unit_end = at - first_row + unit_tokens;
                let (tokens, next, first_row) = if layout.transposed {
                    (at - first_row..unit_end, end.min(unit_end), 0)
                } else {
                    let next = end.min(unit_end).min(at + RUN);
                    (at..next, next, first_row)
                };
                let codes = &units[first_row * layout.row_bytes..layout.rows * layout.row_bytes];
                (Run { kind, tokens, wanted: at..next, units, first_row, codes, stride: layout.row_bytes }, next)
            };
            runs.push(run);
            at = next;
        }
    }
    runs
}

impl<'a> Run<'a> {
    fn read_meta(&self, kernels: Avx512, layout: &PackedRows, buffers: &mut Buffers) {
        let Buffers { scales, zeros, .. } = buffers;
        scales.clear();
        zeros.clear();
        if !layout.has_scales() {
            return;
        }
        if layout.transposed {
            layout.read_meta(self.units, 0, layout.rows, scales, zeros);
        } else if layout.rows == 1 {
            let (count, blocks) = (self.tokens.len(), layout.row_blocks());
            if let Some((scale_at, zero_at)) = layout.plain_halves() {
                scales.resize(count * blocks, 0.0);
                kernels.read_halves(&self.units[scale_at..], layout.unit_bytes, count, scales);
                if let Some(zero_at) = zero_at {
                    zeros.resize(count * blocks, 0.0);
                    kernels.read_halves(&self.units[zero_at..], layout.unit_bytes, count, zeros);
                }
            } else {
                self.units.chunks_exact(layout.unit_bytes).for_each(|unit| layout.read_meta(unit, 0, 1, scales, zeros));
            }
        } else {
            layout.read_meta(self.units, self.first_row, self.tokens.len(), scales, zeros);
        }
        scales.extend([0.0; LANES]);
        if layout.has_zeros() {
            zeros.extend([0.0; LANES]);
        }
    }

    /// Calls for some tokens at a time, of every head: with head, first token of the run, rows.
    fn each_tile(
        &self,
        layout: &PackedRows,
        next: &'a [u8],
        scales: &[f32],
        zeros: &[f32],
        mut call: impl FnMut(usize, usize, Rows<'_>),
    ) {
        let count = self.tokens.len();
        let tile = (TILE_BYTES / self.stride / LANES * LANES).clamp(LANES, RUN);
        let (row_blocks, blocks) = (layout.row_blocks(), layout.blocks());
        for first in (0..count).step_by(tile) {
            let rows = tile.min(count - first);
            let piece = rows * self.stride / layout.heads;
            let ahead_step = (piece / rows).next_multiple_of(64);
            for head in 0..layout.heads {
                let meta = first * row_blocks + head * blocks;
                // The same part of what follows this tile.
                let soon = (first + rows) * self.stride + head * piece;
                let end = count * self.stride;
                let ahead = if soon < end {
                    self.codes.get(soon..end.min(soon + piece))
                } else {
                    next.get(soon - end..next.len().min(soon - end + piece))
                };
                let rows = Rows {
                    codes: &self.codes[first * self.stride + head * layout.head_bytes()..],
                    stride: self.stride,
                    count: rows,
                    scales: scales.get(meta..).unwrap_or_default(),
                    zeros: zeros.get(meta..).unwrap_or_default(),
                    meta_stride: row_blocks,
                    ahead: ahead.unwrap_or_default(),
                    ahead_step,
                };
                call(head, first, rows);
            }
        }
    }
}

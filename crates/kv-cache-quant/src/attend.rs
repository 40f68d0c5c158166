//! Attention over a cache, stretch by stretch: scores of all tokens, softmax, weighted sum of values.
//!
//! A stretch is decoded into a small buffer, used, and forgotten; the cache is never decoded as a whole.

use crate::cache::QuantizedKv;
use crate::codec::Cskv;
use crate::layer::KvCacheLayer;
use crate::side::Chunk;
use crate::{Error, FullPrecision, KvRows, Positions, Stream, kernels};
use rayon::prelude::*;

/// Which tokens a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mask {
    /// Those before it and itself: queries belong to the last tokens.
    #[default]
    Causal,
    /// As `Causal`, and of those only tokens whose position is less than so many behind its own.
    Sliding(u32),
    /// All.
    Full,
}

/// How the factors that integer codes are multiplied with, queries and weights of values, are rounded, where a cache
/// [attends on codes](QuantizedKv::attends_on_codes). Elsewhere they are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Factors {
    /// To 16 bits: outputs are those of attention over decoded rows but for some 2⁻¹⁴ of the largest value.
    #[default]
    Bits16,
    /// To 8 bits, for half of the multiplications, which is what takes time where several queries read a head. Scores change by
    /// at most `scale · max|q| · Σ|k| / 254`, products of weights and scales by 1/254 of the largest of 64 tokens: beside the
    /// rounding of codes of 4 bits or less this is small.
    Bits8,
}

/// A request for attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention<'a> {
    /// `[queries, q_heads, dim_k]`, after the rotary turn. Query head `h` reads key-value head `h / (q_heads /
    /// kv_heads)`.
    pub queries: &'a [f32],
    /// Tokens after those of the cache that are attended unquantized: the current token, whose keys and values are at
    /// hand anyway (past-only quantization), or a whole prompt. Appending them is a call of its own.
    pub fresh: Option<KvRows<'a>>,
    /// Positions of the fresh tokens.
    pub positions: Positions<'a>,
    /// Which tokens a query sees. Queries are taken to be those of the last tokens, fresh ones included.
    pub mask: Mask,
    /// What scores are multiplied by; `None`: `1/√dim_k`.
    pub scale: Option<f32>,
    /// How queries and weights are rounded where codes are integers.
    pub factors: Factors,
}

impl<'a> Attention<'a> {
    /// Causal attention of queries that belong to the last tokens of the cache.
    #[must_use]
    pub fn of(queries: &'a [f32]) -> Self {
        let (mask, factors) = (Mask::default(), Factors::default());
        Self { queries, fresh: None, positions: Positions::Next, mask, scale: None, factors }
    }

    fn scale(&self, dim: usize) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "heads have few elements")]
        self.scale.unwrap_or_else(|| 1.0 / (dim as f32).sqrt())
    }

    /// The same with tokens that are not in the cache yet.
    #[must_use]
    pub fn with_fresh(self, fresh: KvRows<'a>) -> Self {
        Self { fresh: Some(fresh), ..self }
    }

    /// The same with queries and weights rounded so.
    #[must_use]
    pub fn with_factors(self, factors: Factors) -> Self {
        Self { factors, ..self }
    }
}

/// Buffers that calls share, so that nothing is allocated a step.
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    rows: Vec<f32>,
    scores: Vec<f32>,
    fresh: Vec<f32>,
    latents: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    pool: crate::fused::Pool,
}

/// A request that was checked, for attention on codes.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no kernels work on codes"))]
pub(crate) struct Request<'a> {
    pub(crate) queries: &'a [f32],
    pub(crate) fresh_keys: &'a [f32],
    pub(crate) fresh_values: &'a [f32],
    /// Positions of all tokens, fresh ones included.
    pub(crate) positions: &'a [u32],
    /// The token that the first query belongs to.
    pub(crate) first: usize,
    pub(crate) mask: Mask,
    pub(crate) scale: f32,
    pub(crate) factors: Factors,
}

/// Elements of rows below which one thread is faster.
const LEAST_ELEMENTS: usize = 1 << 15;
/// Scores held at once, unless one query needs more.
const MOST_SCORES: usize = 1 << 22;

pub(crate) fn attend(
    cache: &QuantizedKv,
    request: &Attention<'_>,
    out: &mut [f32],
    workspace: &mut Workspace,
) -> Result<(), Error> {
    let geometry = cache.geometry;
    let (width, out_width) = (geometry.q_heads * geometry.dim_k, geometry.q_heads * geometry.dim_v);
    let count = request.queries.len() / width;
    if request.queries.len() != count * width {
        return Err(Error::Shape { what: "queries", expected: width, found: request.queries.len() });
    }
    if out.len() != count * out_width {
        return Err(Error::Shape { what: "output of attention", expected: count * out_width, found: out.len() });
    }
    if let Some(at) = request.queries.iter().position(|x| !x.is_finite()) {
        let (stream, value) = (Stream::Keys, request.queries[at]);
        return Err(Error::NonFinite { stream, token: at / width, channel: at % width, value });
    }
    let fresh = request.fresh.unwrap_or(KvRows { keys: &[], values: &[] });
    let fresh_count = fresh.tokens(&geometry, FullPrecision::F32)?;
    let total = cache.len() + fresh_count;
    if count > total {
        return Err(Error::Shape {
            what: "queries beyond the tokens there are",
            expected: total * width,
            found: count * width,
        });
    }
    let mut positions = cache.positions.of(0..cache.len());
    positions.extend(cache.new_positions(fresh_count, request.positions)?);
    workspace.fresh.clear();
    workspace.fresh.extend_from_slice(fresh.keys);
    cache.turn(&mut workspace.fresh, &positions[cache.len()..])?;

    #[cfg(target_arch = "x86_64")]
    {
        let checked = Request {
            queries: request.queries,
            fresh_keys: &workspace.fresh,
            fresh_values: fresh.values,
            positions: &positions,
            first: total - count,
            mask: request.mask,
            scale: request.scale(geometry.dim_k),
            factors: request.factors,
        };
        if crate::fused::attend(cache, &checked, out, &workspace.pool) {
            return Ok(());
        }
    }

    let block = (MOST_SCORES / (total * geometry.q_heads).max(1)).max(1);
    let queries = request.queries.chunks(block * width).zip(out.chunks_mut(block * out_width));
    for (index, (queries, out)) in queries.enumerate() {
        let block = Block { cache, request, positions: &positions, first: total - count + index * block, queries };
        block.scores(workspace)?;
        block.softmax(&mut workspace.scores);
        block.weigh(fresh.values, workspace, out)?;
    }
    Ok(())
}

/// Some consecutive queries.
struct Block<'a> {
    cache: &'a QuantizedKv,
    request: &'a Attention<'a>,
    /// Positions of all tokens, fresh ones included.
    positions: &'a [u32],
    /// The token that the first query belongs to.
    first: usize,
    queries: &'a [f32],
}

impl Block<'_> {
    /// `scores[query, q_head, token] = scale · q · k`.
    fn scores(&self, workspace: &mut Workspace) -> Result<(), Error> {
        let geometry = self.cache.geometry;
        let total = self.positions.len();
        let Workspace { rows, scores, fresh, .. } = workspace;
        scores.clear();
        scores.resize(self.queries.len() / geometry.dim_k * total, 0.0);
        let decode = |chunk: &Chunk, keys: &mut [f32]| {
            self.cache.keys.decode(chunk, self.cache.stage, keys)?;
            self.cache.turn(keys, &self.positions[chunk.tokens.clone()])
        };
        let chunks = self.cache.keys.chunks();
        self.sweep(&chunks, geometry.key_width(), rows, decode, |first, keys| self.dot(keys, first, scores))?;
        self.dot(fresh, self.cache.len(), scores);
        Ok(())
    }

    fn dot(&self, keys: &[f32], start: usize, scores: &mut [f32]) {
        let geometry = self.cache.geometry;
        let scale = self.request.scale(geometry.dim_k);
        let each = |(index, (query, scores)): (usize, (&[f32], &mut [f32]))| {
            let head = index % geometry.q_heads / geometry.group();
            let keys = keys.get(head * geometry.dim_k..).unwrap_or_default();
            kernels::dot_rows(query, keys, geometry.key_width(), scale, &mut scores[start..]);
        };
        let (dim, total) = (geometry.dim_k, self.positions.len());
        if self.on_threads(keys.len()) {
            self.queries.par_chunks_exact(dim).zip(scores.par_chunks_exact_mut(total)).enumerate().for_each(each);
        } else {
            self.queries.chunks_exact(dim).zip(scores.chunks_exact_mut(total)).enumerate().for_each(each);
        }
    }

    /// Turns the scores of what each query sees into weights that add up to 1; the others become 0.
    fn softmax(&self, scores: &mut [f32]) {
        for (index, scores) in scores.chunks_exact_mut(self.positions.len()).enumerate() {
            let token = self.first + index / self.cache.geometry.q_heads;
            let (seen, unseen) = scores.split_at_mut(match self.request.mask {
                Mask::Full => scores.len(),
                Mask::Causal | Mask::Sliding(_) => token + 1,
            });
            unseen.fill(0.0);
            if let Mask::Sliding(window) = self.request.mask {
                let own = self.positions[token];
                for (score, &position) in seen.iter_mut().zip(self.positions) {
                    if own.saturating_sub(position) >= window {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
            let top = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            if top == f32::NEG_INFINITY {
                seen.fill(0.0);
                continue;
            }
            seen.iter_mut().for_each(|score| *score = (*score - top).exp());
            let sum: f64 = seen.iter().map(|&weight| f64::from(weight)).sum();
            #[expect(clippy::cast_possible_truncation, reason = "rounded to f32 on purpose")]
            let inverse = (1.0 / sum) as f32;
            seen.iter_mut().for_each(|weight| *weight *= inverse);
        }
    }

    /// `out[query, q_head] = Σ weights · v`.
    fn weigh(&self, fresh: &[f32], workspace: &mut Workspace, out: &mut [f32]) -> Result<(), Error> {
        let geometry = self.cache.geometry;
        let side = &self.cache.values;
        let mut chunks = side.chunks();
        out.fill(0.0);
        if let Some(codec) = side.codec().latent().filter(|codec| self.sums_latents(codec)) {
            let (sealed, exact) = chunks.into_iter().partition::<Vec<_>, _>(Chunk::is_sealed);
            self.weigh_latents(codec, &sealed, workspace, out)?;
            chunks = exact;
        }
        let Workspace { rows, scores, .. } = workspace;
        let decode = |chunk: &Chunk, values: &mut [f32]| side.decode(chunk, self.cache.stage, values);
        self.sweep(&chunks, geometry.value_width(), rows, decode, |first, values| {
            self.add(values, first, scores, out);
        })?;
        self.add(fresh, self.cache.len(), scores, out);
        Ok(())
    }

    /// Whether adding up latents and rebuilding the sum takes fewer products than rebuilding rows and adding those up:
    /// always for one query, not for many.
    fn sums_latents(&self, codec: &Cskv) -> bool {
        let geometry = self.cache.geometry;
        let (width, sums) = (codec.adapter().width(), self.queries.len() / geometry.dim_k);
        sums * width <= width * geometry.value_width() + sums * geometry.dim_v
    }

    /// The part of `Σ weights · v` that sealed tokens have, `v = latent · B + shift`: the latents are added up first.
    fn weigh_latents(
        &self,
        codec: &Cskv,
        sealed: &[Chunk],
        workspace: &mut Workspace,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let (geometry, total) = (self.cache.geometry, self.positions.len());
        let Workspace { rows, scores, latents: sums, .. } = workspace;
        let width = codec.adapter().width();
        sums.clear();
        sums.resize(scores.len() / total * width, 0.0);
        let decode = |chunk: &Chunk, out: &mut [f32]| self.cache.values.decode_latents(chunk, codec, out);
        self.sweep(sealed, width, rows, decode, |first, latents| {
            let each = |(weights, sums): (&[f32], &mut [f32])| {
                kernels::add_rows(&weights[first..], latents, width, sums);
            };
            if self.on_threads(latents.len()) {
                scores.par_chunks_exact(total).zip(sums.par_chunks_exact_mut(width)).for_each(each);
            } else {
                scores.chunks_exact(total).zip(sums.chunks_exact_mut(width)).for_each(each);
            }
        })?;
        let tokens = sealed.first().map_or(0, |chunk| chunk.tokens.start)..sealed.last().map_or(0, |c| c.tokens.end);
        let masses: Vec<f32> = scores.chunks_exact(total).map(|weights| weights[tokens.clone()].iter().sum()).collect();
        let head = |index| index % geometry.q_heads / geometry.group();
        codec.expand(sums, &masses, geometry.dim_v, head, out);
        Ok(())
    }

    fn add(&self, values: &[f32], start: usize, weights: &[f32], out: &mut [f32]) {
        let geometry = self.cache.geometry;
        let each = |(index, (weights, out)): (usize, (&[f32], &mut [f32]))| {
            let head = index % geometry.q_heads / geometry.group();
            let values = values.get(head * geometry.dim_v..).unwrap_or_default();
            kernels::add_rows(&weights[start..], values, geometry.value_width(), out);
        };
        let (dim, total) = (geometry.dim_v, self.positions.len());
        if self.on_threads(values.len()) {
            weights.par_chunks_exact(total).zip(out.par_chunks_exact_mut(dim)).enumerate().for_each(each);
        } else {
            weights.chunks_exact(total).zip(out.chunks_exact_mut(dim)).enumerate().for_each(each);
        }
    }

    /// Whether work on so many elements, for each query of a group, is worth more than one thread.
    fn on_threads(&self, elements: usize) -> bool {
        elements >= LEAST_ELEMENTS && rayon::current_num_threads() > 1
    }

    /// Decodes stretches of a stream, in their order but with gaps between, as many at a time as there are threads, and
    /// hands on the rows of consecutive tokens with the first of them. What is done with a row does not depend on how
    /// many come together.
    fn sweep(
        &self,
        chunks: &[Chunk],
        width: usize,
        rows: &mut Vec<f32>,
        decode: impl Fn(&Chunk, &mut [f32]) -> Result<(), Error> + Sync,
        mut hand_on: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        let runs = chunks.chunk_by(|a, b| a.tokens.end == b.tokens.start);
        for some in runs.flat_map(|run| run.chunks(rayon::current_num_threads().max(1))) {
            let first = some[0].tokens.start;
            let count: usize = some.iter().map(|chunk| chunk.tokens.len()).sum();
            rows.resize(count * width, 0.0);
            let mut rest = rows.as_mut_slice();
            let mut parts = Vec::with_capacity(some.len());
            for chunk in some {
                let (part, after) = rest.split_at_mut(chunk.tokens.len() * width);
                parts.push((chunk, part));
                rest = after;
            }
            if self.on_threads(count * width) {
                let failed = parts.into_par_iter().find_map_first(|(chunk, part)| decode(chunk, part).err());
                failed.map_or(Ok(()), Err)?;
            } else {
                parts.into_iter().try_for_each(|(chunk, part)| decode(chunk, part))?;
            }
            hand_on(first, rows);
        }
        Ok(())
    }
}

//! The clip factor of each group by what attention makes of it: the objective of the paper.

use super::{ReorderPlan, SkvqConfig, encode, fit};
use crate::{Error, FullPrecision, KvGeometry, KvRows, Stream};
use rayon::prelude::*;

/// Queries of one layer and what they attend over, from calibration. Queries belong to the last tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSample<'a> {
    /// Heads and their sizes.
    pub geometry: KvGeometry,
    /// `[queries, q_heads, dim_k]`, after the rotary turn.
    pub queries: &'a [f32],
    /// `[tokens, kv_heads, dim]`, keys after the rotary turn.
    pub rows: KvRows<'a>,
}

impl AttentionSample<'_> {
    fn check(&self) -> Result<(), Error> {
        self.geometry.check()?;
        let (tokens, width) =
            (self.rows.tokens(&self.geometry, FullPrecision::F32)?, self.geometry.q_heads * self.geometry.dim_k);
        let (queries, found) = (self.queries.len() / width, self.queries.len());
        if queries == 0 || queries > tokens || found != queries * width {
            return Err(Error::Shape { what: "sampled queries", expected: tokens.min(queries.max(1)) * width, found });
        }
        match self.queries.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => Err(Error::NonFinite {
                stream: Stream::Keys,
                token: at / width,
                channel: at % width,
                value: self.queries[at],
            }),
        }
    }

    /// Causal attention over some rows, in f64: `[queries, q_heads, dim_v]`.
    fn outputs(&self, keys: &[f32], values: &[f32]) -> Vec<f64> {
        let g = self.geometry;
        let (tokens, count) = (keys.len() / g.key_width(), self.queries.len() / (g.q_heads * g.dim_k));
        #[expect(clippy::cast_precision_loss, reason = "heads have few elements")]
        let scale = 1.0 / (g.dim_k as f64).sqrt();
        let mut out = Vec::with_capacity(count * g.q_heads * g.dim_v);
        for (index, query) in self.queries.chunks_exact(g.dim_k).enumerate() {
            let (seen, head) = (tokens - count + index / g.q_heads + 1, index % g.q_heads / g.group());
            let keys = keys.chunks_exact(g.key_width()).take(seen).map(|row| &row[head * g.dim_k..][..g.dim_k]);
            let dot = |key: &[f32]| key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>();
            let scores: Vec<f64> = keys.map(|key| scale * dot(key)).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut output = vec![0.0; g.dim_v];
            for (weight, row) in weights.iter().zip(values.chunks_exact(g.value_width())) {
                let value = &row[head * g.dim_v..][..g.dim_v];
                output.iter_mut().zip(value).for_each(|(out, v)| *out += weight / sum * f64::from(*v));
            }
            out.extend(output);
        }
        out
    }
}

/// What replacing the rows of a sample by decoded ones does to the outputs of attention, by query head:
/// `Σ‖o − ô‖² / Σ‖o‖²` over all queries, sums in f64. A head without output counts as 0 where nothing changed, and as 1
/// where something did.
///
/// # Errors
///
/// [`Error::Shape`] when the sample is not whole, or the decoded rows are not of the same tokens; [`Error::NonFinite`].
///
/// # Examples
///
/// ```
/// use kv_cache_quant::{AttentionSample, KvGeometry, KvRows, attention_errors};
/// let geometry = KvGeometry { kv_heads: 1, q_heads: 1, dim_k: 2, dim_v: 2 };
/// let rows = KvRows { keys: &[1.0, 0.0, 1.0, 0.0], values: &[2.0, 0.0, 0.0, 2.0] };
/// let sample = AttentionSample { geometry, queries: &[0.5, 0.5], rows };
/// let half = KvRows { values: &[1.0, 0.0, 0.0, 1.0], ..rows };
/// assert_eq!(attention_errors(&sample, half)?, [0.25]);
/// # Ok::<(), kv_cache_quant::Error>(())
/// ```
pub fn attention_errors(sample: &AttentionSample<'_>, decoded: KvRows<'_>) -> Result<Vec<f64>, Error> {
    sample.check()?;
    let g = sample.geometry;
    if decoded.tokens(&g, FullPrecision::F32)? != sample.rows.tokens(&g, FullPrecision::F32)? {
        let (expected, found) = (sample.rows.keys.len(), decoded.keys.len());
        return Err(Error::Shape { what: "decoded keys", expected, found });
    }
    let exact = sample.outputs(sample.rows.keys, sample.rows.values);
    let found = sample.outputs(decoded.keys, decoded.values);
    let mut sums = vec![(0.0, 0.0); g.q_heads];
    for (index, (exact, found)) in exact.chunks_exact(g.dim_v).zip(found.chunks_exact(g.dim_v)).enumerate() {
        let (error, size) = &mut sums[index % g.q_heads];
        *error += exact.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        *size += exact.iter().map(|a| a * a).sum::<f64>();
    }
    let relative = |(error, size): (f64, f64)| {
        if size > 0.0 { error / size } else { f64::from(u8::from(error > 0.0)) }
    };
    Ok(sums.into_iter().map(relative).collect())
}

/// For every group the factor of `grid` that changes the output of attention least while all other groups stay exact, by
/// the sum of squared errors over queries and heads; of equals the largest (SKVQ, equation for α). `stream` says whose
/// rows are coded; keys must be stored after the rotary turn.
///
/// It takes an attention over the sample for every group and factor: a few dozen queries over a few hundred tokens do.
/// [`search_clip`](super::search_clip) needs none.
///
/// # Errors
///
/// Those of [`search_clip`](super::search_clip) and of [`attention_errors`]; [`Error::Width`] when the plan is made for
/// other channels.
pub fn search_clip_by_attention(
    sample: &AttentionSample<'_>,
    stream: Stream,
    plan: &ReorderPlan,
    config: SkvqConfig,
    grid: &[f32],
) -> Result<Vec<f32>, Error> {
    sample.check()?;
    let grid = super::clip::descending(config, grid)?;
    let (rows, expected) = match stream {
        Stream::Keys => (sample.rows.keys, sample.geometry.key_width()),
        Stream::Values => (sample.rows.values, sample.geometry.value_width()),
    };
    if plan.channels() != expected {
        return Err(Error::Width { what: "reorder plan", expected, found: plan.channels() });
    }
    let exact = sample.outputs(sample.rows.keys, sample.rows.values);
    let error = |group: &[u32], alpha: f32| -> Result<f64, Error> {
        let coded = with_group_coded(rows, expected, group, config, alpha)?;
        let found = match stream {
            Stream::Keys => sample.outputs(&coded, sample.rows.values),
            Stream::Values => sample.outputs(sample.rows.keys, &coded),
        };
        Ok(exact.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum())
    };
    let search = |range: std::ops::Range<usize>| {
        let mut best = (1.0, f64::INFINITY);
        for &alpha in &grid {
            let error = error(&plan.order()[range.clone()], alpha)?;
            if error < best.1 {
                best = (alpha, error);
            }
        }
        Ok(best.0)
    };
    let ranges: Vec<_> = plan.ranges().collect();
    ranges.into_par_iter().map(search).collect()
}

/// Rows of which the channels of one group are replaced by what they decode to.
fn with_group_coded(
    rows: &[f32],
    channels: usize,
    group: &[u32],
    config: SkvqConfig,
    alpha: f32,
) -> Result<Vec<f32>, Error> {
    let (mut meta, max) = (vec![0; 2 * config.meta.bytes()], config.levels.max_code());
    let (mut values, mut out) = (Vec::with_capacity(group.len()), rows.to_vec());
    for row in out.chunks_exact_mut(channels) {
        values.clear();
        values.extend(group.iter().map(|&channel| row[channel as usize]));
        let (scale, zero) = fit(config, &values, alpha, &mut meta)?;
        for (&channel, &x) in group.iter().zip(&values) {
            row[channel as usize] = f32::from(encode(x, scale, zero, max)) * scale + zero;
        }
    }
    Ok(out)
}

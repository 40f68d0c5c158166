//! Causal attention over fresh or cached keys and values.

use crate::Error;
use crate::kv::{KvGeometry, KvRows};
use crate::ops::{self, InPlace};
use candle_core::{Device, Tensor};
use std::ops::Range;

/// Queries that share one product: bounds the memory of the scores and the work wasted above the diagonal.
const QUERY_BLOCK: usize = 128;

/// Attention of one text: `q` `[n, q_heads, dim_k]` are its last `n` tokens.
pub(super) struct Attend {
    pub(super) geometry: KvGeometry,
    /// Tokens a token looks back on, itself included.
    pub(super) window: Option<usize>,
}

impl Attend {
    /// Attends from the last `q.len()` tokens to `keys` and `values` `[tokens, kv_heads, dim]`, both borrowed from
    /// tensors; returns `[n, q_heads · dim_v]`.
    pub(super) fn fresh(&self, q: &Tensor, keys: &Tensor, values: &Tensor, out: &mut Vec<f32>) -> Result<(), Error> {
        let KvGeometry { kv_heads, q_heads, dim_k, dim_v } = self.geometry;
        let (n, tokens) = (q.dim(0)?, keys.dim(0)?);
        let group = q_heads / kv_heads;
        // Views only: nothing is expanded or copied for grouped heads.
        let q = q.reshape((n, kv_heads, group, dim_k))?.permute((1, 2, 0, 3))?;
        let keys = keys.reshape((tokens, kv_heads, dim_k))?.permute((1, 2, 0))?;
        let values = values.reshape((tokens, kv_heads, dim_v))?.transpose(0, 1)?;
        let scale = self.scale();
        for start in (0..n).step_by(QUERY_BLOCK) {
            let len = QUERY_BLOCK.min(n - start);
            let first = tokens - n + start;
            let read = self.visible(first).start..first + len;
            let block = q.narrow(2, start, len)?.contiguous()?.reshape((kv_heads, group * len, dim_k))?;
            let scores = block.matmul(&keys.narrow(2, read.start, read.len())?)?;
            let visible = |row: usize| {
                let range = self.visible(first + row % len);
                range.start - read.start..range.end - read.start
            };
            scores.inplace_op1(&InPlace(|x: &mut [f32]| ops::masked_softmax(x, read.len(), scale, visible)))?;
            let mixed = scores.matmul(&values.narrow(1, read.start, read.len())?)?;
            let mixed = mixed.reshape((kv_heads, group, len, dim_v))?.permute((2, 0, 1, 3))?.contiguous()?;
            ops::read(&mixed, |rows| out.extend_from_slice(rows))?;
        }
        Ok(())
    }

    /// The same over rows that a cache gave back. One token is attended in place; for more, the rows
    /// are copied once for the matrix product.
    pub(super) fn cached(&self, q: &Tensor, rows: KvRows<'_>, out: &mut Vec<f32>) -> Result<(), Error> {
        if q.dim(0)? == 1 {
            return ops::read(q, |q| self.single(q, rows, out));
        }
        let tensor = |rows: &[f32], width: usize| Tensor::from_slice(rows, (rows.len() / width, width), &Device::Cpu);
        let keys = tensor(rows.keys, self.geometry.key_width())?;
        let values = tensor(rows.values, self.geometry.value_width())?;
        self.fresh(q, &keys, &values, out)
    }

    fn single(&self, q: &[f32], rows: KvRows<'_>, out: &mut Vec<f32>) {
        let KvGeometry { kv_heads, q_heads, dim_k, dim_v } = self.geometry;
        let (key_width, value_width) = (self.geometry.key_width(), self.geometry.value_width());
        let tokens = rows.keys.len() / key_width;
        let range = self.visible(tokens - 1);
        let keys = &rows.keys[range.start * key_width..range.end * key_width];
        let values = &rows.values[range.start * value_width..range.end * value_width];
        let mut weights = vec![0.0; range.len()];
        for (head, q) in q.chunks_exact(dim_k).enumerate() {
            let kv_head = head / (q_heads / kv_heads);
            for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(key_width)) {
                *weight = ops::dot(q, &key[kv_head * dim_k..][..dim_k]);
            }
            ops::masked_softmax(&mut weights, range.len(), self.scale(), |_| 0..range.len());
            let at = out.len();
            out.resize(at + dim_v, 0.0);
            for (weight, value) in weights.iter().zip(values.chunks_exact(value_width)) {
                let value = &value[kv_head * dim_v..][..dim_v];
                out[at..].iter_mut().zip(value).for_each(|(sum, v)| *sum += weight * v);
            }
        }
    }

    /// The tokens that the token at `position` sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start..position + 1
    }

    #[expect(clippy::cast_precision_loss, reason = "a head has far fewer than 2^24 elements")]
    fn scale(&self) -> f32 {
        1.0 / (self.geometry.dim_k as f32).sqrt()
    }
}

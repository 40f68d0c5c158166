//! The sizes of one layer's cache, and rows of it.

use crate::{Error, FullPrecision, Stream};

/// The sizes of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvGeometry {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Query heads that read them; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Elements of a key head.
    pub dim_k: usize,
    /// Elements of a value head.
    pub dim_v: usize,
}

impl KvGeometry {
    /// Elements of one token's keys.
    #[must_use]
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.dim_k
    }

    /// Elements of one token's values.
    #[must_use]
    pub fn value_width(&self) -> usize {
        self.kv_heads * self.dim_v
    }

    /// Query heads that share a key-value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads.max(1)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let fits = self.kv_heads > 0 && self.q_heads > 0 && self.dim_k > 0 && self.dim_v > 0;
        let bounded = [self.q_heads, self.kv_heads].into_iter().all(|h| h <= 1 << 12)
            && [self.dim_k, self.dim_v].into_iter().all(|d| d <= 1 << 14);
        if fits && bounded && self.q_heads.is_multiple_of(self.kv_heads) {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: "geometry",
            found: format!("{self:?}"),
            supported: "1 to 4096 heads of 1 to 16384 elements, query heads a multiple of key-value heads",
        })
    }
}

/// Keys and values of some tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvRows<'a> {
    /// `[tokens, kv_heads, dim_k]`, row-major; before or after the rotary turn, as the cache was told.
    pub keys: &'a [f32],
    /// `[tokens, kv_heads, dim_v]`, row-major.
    pub values: &'a [f32],
}

impl KvRows<'_> {
    /// Number of tokens; refuses slices that are not whole tokens, or not of the same ones, NaN and infinity, and
    /// magnitudes that become infinite when rounded to `precision`.
    pub(crate) fn tokens(&self, geometry: &KvGeometry, precision: FullPrecision) -> Result<usize, Error> {
        let (key_width, value_width) = (geometry.key_width(), geometry.value_width());
        let tokens = self.keys.len() / key_width;
        if self.keys.len() != tokens * key_width {
            return Err(Error::Shape { what: "keys", expected: key_width, found: self.keys.len() });
        }
        if self.values.len() != tokens * value_width {
            return Err(Error::Shape { what: "values", expected: tokens * value_width, found: self.values.len() });
        }
        for (stream, values, width) in
            [(Stream::Keys, self.keys, key_width), (Stream::Values, self.values, value_width)]
        {
            precision.check(values).map_err(|at| {
                let (token, channel, value, limit) = (at / width, at % width, values[at], precision.limit());
                match value.is_finite() {
                    true => Error::OutOfRange { stream, token, channel, value, limit },
                    false => Error::NonFinite { stream, token, channel, value },
                }
            })?;
        }
        Ok(tokens)
    }
}

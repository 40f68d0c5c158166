//! KIVI (arXiv 2402.02750): keys by channel, values by token, asymmetric, without calibration.

use crate::codec::{ChannelFormat, TokenFormat};
use crate::{Error, KeyStorage, KvGeometry, KvPolicy, QuantizedKv};
use quant_core::{Block, Element, Format, IntRule, Scale, ScaleType};
use std::sync::Arc;

/// Parameters of KIVI; the defaults are those of the paper's runs.
///
/// In every group `Δ = (max − min)/(2^b − 1)` and `x ≈ q·Δ + min` with f16 Δ and minimum. A group of keys is `group`
/// tokens of one channel, of values `group` channels of one token. Keys are sealed `residual` tokens at a time; of
/// values the newest `residual` tokens stay in full precision.
///
/// Departures: Δ is at least 1e-5, so that constant groups decode to themselves (the reference divides 0 by 0); codes
/// are chosen with the stored Δ; groups are aligned to the token's index in the cache, so that neither padding nor the
/// split of a prompt into calls changes them; any number of tokens can be appended; groups of values do not span heads.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KiviConfig {
    /// Bits of a key, 1 to 8.
    pub key_bits: u8,
    /// Bits of a value, 1 to 8.
    pub value_bits: u8,
    /// Elements of a group.
    pub group: u32,
    /// Tokens that are sealed at once; a multiple of `group`.
    pub residual: usize,
}

impl Default for KiviConfig {
    fn default() -> Self {
        Self { key_bits: 2, value_bits: 2, group: 32, residual: 128 }
    }
}

impl KiviConfig {
    /// An empty cache. Of the policy, `window` is KIVI's own: no keys, `residual` values.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when `residual` is no positive multiple of `group`, and the errors of
    /// [`QuantizedKv::new`].
    ///
    /// # Examples
    ///
    /// ```
    /// use kv_cache_quant::*;
    /// let geometry = KvGeometry { kv_heads: 8, q_heads: 32, dim_k: 128, dim_v: 128 };
    /// let cache = KiviConfig::default().cache(geometry, KeyStorage::PostRope, KvPolicy::default())?;
    /// assert_eq!(cache.capabilities().key_unit, 128);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn cache(&self, geometry: KvGeometry, storage: KeyStorage, policy: KvPolicy) -> Result<QuantizedKv, Error> {
        if self.group == 0 || self.residual == 0 || !self.residual.is_multiple_of(self.group as usize) {
            return Err(Error::Unsupported {
                what: "residual of KIVI",
                found: format!("{} tokens in groups of {}", self.residual, self.group),
                supported: "a positive multiple of the group",
            });
        }
        let format = |bits| Format {
            element: Element::Int { bits, rule: IntRule::FloatMin },
            block: Block::Group(self.group),
            scale: Scale::Float(ScaleType::F16),
        };
        let KvGeometry { kv_heads, dim_k, dim_v, .. } = geometry;
        let keys = ChannelFormat::new(kv_heads, dim_k, self.residual, format(self.key_bits))?;
        let values = TokenFormat::new(kv_heads, dim_v, format(self.value_bits))?;
        let policy = KvPolicy { window: 0, value_window: Some(self.residual), ..policy };
        QuantizedKv::new(geometry, storage, Arc::new(keys), Arc::new(values), policy)
    }
}

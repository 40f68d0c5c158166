//! Which key-value cache a model runs with.

use super::RecipeError;
use kv_cache_quant::{KvMethod, KvPolicy};
use serde::{Deserialize, Serialize};

/// A key-value cache: the method and what of it stays in full precision.
///
/// In a recipe:
///
/// ```
/// let recipe = leanbits::Recipe::from_toml(
///     r#"
///     format = "int4-g128"
///
///     [kv_cache]
///     method = "skvq:2"          # a name of kv-cache-quant
///     keys = "before-rope"       # or "after-rope", which is how it is if left out
///     sinks = 4                  # first and
///     window = 64                # newest tokens in full precision; the method's own if left out
///     "#,
/// )?;
/// assert_eq!(recipe.kv_cache.map(|cache| cache.policy().window), Some(64));
/// # Ok::<(), leanbits::RecipeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct KvCacheChoice {
    /// The method.
    pub method: KvMethod,
    /// How keys are kept.
    #[serde(default, skip_serializing_if = "KeyPlace::is_default")]
    pub keys: KeyPlace,
    /// First tokens in full precision; the method's own if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sinks: Option<usize>,
    /// Newest tokens in full precision; the method's own if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Most bytes of the caches of all layers together, for methods that lower their precision as memory fills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// Tokens that must fit the budget; those the model was made for if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
}

/// Where in the model keys are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPlace {
    /// As attention reads them.
    #[default]
    AfterRope,
    /// Before the rotary turn, where channels keep their means; they are turned whenever they are read.
    BeforeRope,
}

impl KeyPlace {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl KvCacheChoice {
    /// A method as it is published.
    #[must_use]
    pub fn new(method: KvMethod) -> Self {
        Self { method, keys: KeyPlace::AfterRope, sinks: None, window: None, budget: None, tokens: None }
    }

    /// What stays in full precision. The budget is not in it: it is for all layers.
    #[must_use]
    pub fn policy(&self) -> KvPolicy {
        let own = self.method.policy();
        KvPolicy { sinks: self.sinks.unwrap_or(own.sinks), window: self.window.unwrap_or(own.window), ..own }
    }

    /// Whether it has to see a calibration text.
    #[must_use]
    pub fn needs_calibration(&self) -> bool {
        self.method.needs_statistics() || self.budget.is_some()
    }

    /// Checks what the types leave open.
    pub(crate) fn validate(&self) -> Result<(), RecipeError> {
        let bad = |name, value: String, expected| Err(RecipeError::BadSetting { name, value, expected });
        const MOST: usize = 1 << 20;
        for (name, tokens) in [("kv_cache.sinks", self.sinks), ("kv_cache.window", self.window)] {
            if let Some(tokens) = tokens.filter(|tokens| *tokens > MOST) {
                return bad(name, tokens.to_string(), "at most 1048576 tokens");
            }
        }
        if self.budget.is_some() && self.method != KvMethod::PmKvq {
            return bad("kv_cache.budget", format!("given to {}", self.method), "none: only pm-kvq keeps to a budget");
        }
        match self.tokens {
            Some(tokens) if self.budget.is_none() => {
                bad("kv_cache.tokens", tokens.to_string(), "none, as no budget is given that they should fit")
            }
            Some(tokens) if !(1..=1 << 24).contains(&tokens) => {
                bad("kv_cache.tokens", tokens.to_string(), "from 1 to 16777216 tokens")
            }
            _ => Ok(()),
        }
    }
}

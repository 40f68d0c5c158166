//! Writing text: greedy or sampled.

use crate::eval::log_sum;
use crate::{Decoder, Error, KvState};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::ops::ControlFlow;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only this many of the likeliest tokens are considered.
    pub top_k: Option<usize>,
    /// Only the fewest likeliest tokens whose probabilities reach this sum are considered.
    pub top_p: Option<f64>,
    /// Seed of the ChaCha8 stream (`seed_from_u64`), of which one `u64` is drawn for each token.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: None, top_p: None, seed: 0 };
}

/// Chooses tokens from logits.
///
/// Equal logits are ordered by token id, so the choice depends on nothing but logits and seed.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Starts the stream of `sampling.seed`.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`] for a temperature below zero or not finite, a `top_k` of 0, a `top_p` outside `(0, 1]`.
    pub fn new(sampling: Sampling) -> Result<Self, Error> {
        let bad = |name, value: String, expected| Err(Error::BadSetting { name, value, expected });
        if !sampling.temperature.is_finite() || sampling.temperature < 0.0 {
            return bad("temperature", sampling.temperature.to_string(), "0 or more");
        }
        if sampling.top_k == Some(0) {
            return bad("top_k", "0".into(), "at least 1");
        }
        if let Some(p) = sampling.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return bad("top_p", p.to_string(), "above 0 and at most 1");
        }
        Ok(Self { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) })
    }

    /// Chooses a token.
    ///
    /// # Errors
    ///
    /// [`Error::NonFiniteLogits`].
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let (top, _) = log_sum(logits).ok_or(Error::NonFiniteLogits { row: 0 })?;
        let token = |index: usize| u32::try_from(index).unwrap_or(u32::MAX); // vocabularies are below 2^24
        if self.sampling.temperature == 0.0 {
            return Ok(token(top));
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        order.truncate(self.sampling.top_k.unwrap_or(usize::MAX));
        let largest = f64::from(logits[top]);
        let weight = |index: &usize| ((f64::from(logits[*index]) - largest) / self.sampling.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        if let Some(p) = self.sampling.top_p {
            let wanted = p * weights.iter().sum::<f64>();
            let mut reached = 0.0;
            let short = weights.iter().take_while(|weight| {
                reached += **weight;
                reached < wanted
            });
            let kept = short.count() + 1;
            weights.truncate(kept);
        }
        // 53 random bits are a uniform f64 in [0, 1).
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64")]
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mut left = uniform * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a trace after the last weight.
        let chosen = chosen.unwrap_or(weights.len() - 1);
        Ok(token(order[chosen]))
    }
}

/// How much is written, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Tokens that end the text; they are not returned. Usually [`crate::Config::eos`].
    pub stop: Vec<u32>,
}

/// Continues a text: runs `prompt` onto the cache, then writes token by token.
///
/// Each new token is shown to `on_token`, which may break off. The last token written is not yet in the cache.
///
/// # Errors
///
/// As [`Decoder::extend`] and [`Sampler::new`].
pub fn generate(
    decoder: &Decoder,
    prompt: &[u32],
    cache: &mut KvState,
    options: &Generate,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>, Error> {
    let mut sampler = Sampler::new(options.sampling)?;
    let mut written = Vec::new();
    let mut hidden = decoder.extend(prompt, cache, None)?;
    while written.len() < options.max_tokens {
        let last = hidden.rows() - 1;
        let token = sampler.choose(&decoder.logits(&hidden, last..last + 1)?)?;
        if options.stop.contains(&token) {
            break;
        }
        written.push(token);
        if on_token(token).is_break() || written.len() == options.max_tokens {
            break;
        }
        hidden = decoder.extend(&[token], cache, None)?;
    }
    Ok(written)
}

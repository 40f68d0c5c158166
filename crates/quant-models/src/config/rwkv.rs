//! Reading the settings of RWKV.

use super::json::Object;
use super::{Activation, Config, Family, MAX_LAYERS, MAX_POSITIONS, MAX_SIZE, eos, norm_eps, token};
use crate::Error;
use crate::rope::{Rope, RopeScaling};

/// What only RWKV's configuration says. Its head size is [`Config::head_dim`], the number of heads [`Config::heads`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rwkv {
    /// Added to the variance in the norm of each head's output.
    pub group_norm_eps: f32,
    /// Whether low-rank pairs are stored input-major, `[in, out]`, as RWKV's own checkpoints are.
    ///
    /// Only asked where a shape does not tell, which is where the rank equals the width.
    pub input_major: bool,
}

/// Positions of models that do not say what they were trained on. A recurrence has no last position.
const DEFAULT_POSITIONS: usize = 4096;

/// The norm of the heads of the published models: `1e-5 · 8²`.
const GROUP_NORM_EPS: f32 = 64e-5;

pub(super) fn read(config: &Object<'_>, family: Family) -> Result<Config, Error> {
    let size = |key: &str| config.required(key, config.count(key, MAX_SIZE)?);
    let (vocab_size, hidden_size) = (size("vocab_size")?, size("hidden_size")?);
    let layers = config.required("num_hidden_layers", config.count("num_hidden_layers", MAX_LAYERS)?)?;
    let key =
        if config.get("head_size").is_none() && config.get("head_dim").is_some() { "head_dim" } else { "head_size" };
    let head_dim = config.count(key, MAX_SIZE)?.unwrap_or(64);
    if !hidden_size.is_multiple_of(head_dim) {
        return Err(config.bad(key, format!("a divisor of hidden_size, which is {hidden_size}")));
    }
    let heads = hidden_size / head_dim;
    let inner = match family {
        Family::Rwkv6 => hidden_size * 7 / 2 / 32 * 32,
        _ => hidden_size * 4,
    };
    let positions = ["max_position_embeddings", "context_length", "ctx_len"].into_iter();
    let positions = positions.map(|key| config.count(key, MAX_POSITIONS)).find_map(Result::transpose).transpose()?;
    let group_norm_eps = match config.positive("group_norm_eps")? {
        None => GROUP_NORM_EPS,
        Some(_) => norm_eps(config, "group_norm_eps")?,
    };
    let input_major = match config.text("low_rank_layout")? {
        None | Some("input_major") => true,
        Some("output_major") => false,
        Some(_) => return Err(config.bad("low_rank_layout", "input_major or output_major")),
    };
    Ok(Config {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: config.count("intermediate_size", MAX_SIZE)?.unwrap_or(inner),
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        max_positions: positions.unwrap_or(DEFAULT_POSITIONS),
        norm_eps: match ["layer_norm_eps", "layer_norm_epsilon"].into_iter().find(|key| config.get(key).is_some()) {
            None => 1e-5,
            Some(key) => norm_eps(config, key)?,
        },
        activation: Activation::Relu,
        rope: Rope { theta: 10_000.0, rotary_dim: 0, scaling: RopeScaling::Default },
        tied_head: config.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        windows: vec![None; layers],
        bos: token(config, "bos_token_id", vocab_size)?,
        eos: eos(config)?,
        mixture: None,
        rwkv: Some(Rwkv { group_norm_eps, input_major }),
    })
}

//! Reading the settings of a mixture of experts.

use super::json::Object;
use super::{Family, MAX_LAYERS, MAX_SIZE};
use crate::Error;

/// Most experts that are believed; published models stay below 2¹⁰.
const MAX_EXPERTS: usize = 1 << 14;

/// The mixture of experts that replaces feed-forward blocks.
///
/// A router scores all experts for each token; the `top_k` best are applied and their outputs added, each times its gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Experts to choose from.
    pub experts: usize,
    /// Experts each token goes to.
    pub top_k: usize,
    /// Width inside an expert.
    pub expert_size: usize,
    /// Whether the gates of the chosen experts are scaled to sum to 1 (the softmax over the chosen); otherwise they are
    /// shares of the softmax over all.
    pub renormalize: bool,
    /// What every token passes through beside its experts.
    pub shared: Option<SharedExpert>,
    /// Which layers are mixtures; the others have plain feed-forward blocks.
    pub layers: Vec<bool>,
}

/// The expert that every token passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedExpert {
    /// Width inside it.
    pub size: usize,
    /// Whether its output is multiplied with the logistic function of a linear of the token (Qwen2-MoE).
    pub gated: bool,
}

/// Reads the keys of the families that have experts.
pub(super) fn read(config: &Object<'_>, family: Family, layers: usize) -> Result<Option<Mixture>, Error> {
    match family {
        Family::Mixtral => mixtral(config, layers).map(Some),
        Family::Qwen2Moe | Family::Qwen3Moe => qwen(config, family, layers),
        Family::DeepSeekMoe => deepseek(config, layers),
        _ => Ok(None),
    }
}

fn mixtral(config: &Object<'_>, layers: usize) -> Result<Mixture, Error> {
    let experts = required(config, "num_local_experts", MAX_EXPERTS)?;
    Ok(Mixture {
        experts,
        top_k: top_k(config, experts, "num_local_experts")?,
        expert_size: required(config, "intermediate_size", MAX_SIZE)?,
        renormalize: true,
        shared: None,
        layers: vec![true; layers],
    })
}

/// A layer is a mixture unless `mlp_only_layers` lists it or `decoder_sparse_step` steps over it.
fn qwen(config: &Object<'_>, family: Family, layers: usize) -> Result<Option<Mixture>, Error> {
    let key = if config.get("num_experts").is_none() { "num_local_experts" } else { "num_experts" };
    if config.get(key).and_then(serde_json::Value::as_u64) == Some(0) {
        return Ok(None);
    }
    let experts = config.required("num_experts", config.count(key, MAX_EXPERTS)?)?;
    let step = config.count("decoder_sparse_step", MAX_LAYERS)?.unwrap_or(1);
    let mut sparse: Vec<bool> = (0..layers).map(|layer| (layer + 1).is_multiple_of(step)).collect();
    for layer in config.array("mlp_only_layers")?.into_iter().flatten() {
        let place = layer.as_u64().and_then(|layer| usize::try_from(layer).ok());
        match place.and_then(|place| sparse.get_mut(place)) {
            Some(place) => *place = false,
            None => return Err(config.bad("mlp_only_layers", format!("layers below {layers}"))),
        }
    }
    let shared = match family {
        Family::Qwen2Moe => {
            Some(SharedExpert { size: required(config, "shared_expert_intermediate_size", MAX_SIZE)?, gated: true })
        }
        _ => None,
    };
    Ok(Some(Mixture {
        experts,
        top_k: top_k(config, experts, key)?,
        expert_size: required(config, "moe_intermediate_size", MAX_SIZE)?,
        renormalize: config.flag("norm_topk_prob")?.unwrap_or(false),
        shared,
        layers: sparse,
    }))
}

/// Fine-grained experts behind a few dense layers, and shared experts that are one wide block.
fn deepseek(config: &Object<'_>, layers: usize) -> Result<Option<Mixture>, Error> {
    if config.get("n_routed_experts").is_none() {
        return Ok(None);
    }
    for (key, known) in [("scoring_func", "softmax"), ("topk_method", "greedy")] {
        if config.text(key)?.is_some_and(|found| found != known) {
            return Err(config.bad(key, known));
        }
    }
    if config.positive("routed_scaling_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(config.bad("routed_scaling_factor", "1, as in the first DeepSeek-MoE"));
    }
    let experts = required(config, "n_routed_experts", MAX_EXPERTS)?;
    let expert_size = required(config, "moe_intermediate_size", MAX_SIZE)?;
    let shared = match config.count("n_shared_experts", MAX_EXPERTS)? {
        None => None,
        Some(count) => {
            let size = count.checked_mul(expert_size).filter(|size| *size <= MAX_SIZE);
            let size =
                size.ok_or_else(|| config.bad("n_shared_experts", format!("at most {MAX_SIZE} elements in all")))?;
            Some(SharedExpert { size, gated: false })
        }
    };
    let first = match config.get("first_k_dense_replace").map(serde_json::Value::as_u64) {
        None => 0,
        Some(Some(first)) => usize::try_from(first).unwrap_or(usize::MAX),
        Some(None) => return Err(config.bad("first_k_dense_replace", "a number of layers")),
    };
    let step = config.count("moe_layer_freq", MAX_LAYERS)?.unwrap_or(1);
    Ok(Some(Mixture {
        experts,
        top_k: top_k(config, experts, "n_routed_experts")?,
        expert_size,
        renormalize: config.flag("norm_topk_prob")?.unwrap_or(false),
        shared,
        layers: (0..layers).map(|layer| layer >= first && layer.is_multiple_of(step)).collect(),
    }))
}

fn top_k(config: &Object<'_>, experts: usize, key: &str) -> Result<usize, Error> {
    let top_k = required(config, "num_experts_per_tok", MAX_EXPERTS)?;
    if top_k > experts {
        return Err(config.bad("num_experts_per_tok", format!("at most {key}, which is {experts}")));
    }
    Ok(top_k)
}

fn required(config: &Object<'_>, key: &str, limit: usize) -> Result<usize, Error> {
    config.required(key, config.count(key, limit)?)
}

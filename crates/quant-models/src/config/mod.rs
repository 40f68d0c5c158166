//! What `config.json` says about a model.

pub(crate) mod json;
mod mixture;
mod rope;
mod rwkv;

pub use mixture::{Mixture, SharedExpert};
pub use rwkv::Rwkv;

use crate::Error;
use crate::rope::Rope;
use json::Object;
use std::path::Path;

/// Largest width, vocabulary and the like that is believed; published models stay below 2²⁰.
const MAX_SIZE: usize = 1 << 24;
/// Most layers that are believed.
const MAX_LAYERS: usize = 1 << 12;
/// Most positions that are believed.
const MAX_POSITIONS: usize = 1 << 28;

/// The families this crate runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Llama 1–3 and everything of that shape, such as SmolLM2 (`llama`).
    Llama,
    /// Mistral 7B and relatives: Llama with a sliding window (`mistral`).
    Mistral,
    /// Qwen 2 and 2.5: biases on query, key and value (`qwen2`).
    Qwen2,
    /// Qwen 3: norms on each query and key head, explicit head size (`qwen3`).
    Qwen3,
    /// Mixtral: Mistral with a mixture of experts in each layer (`mixtral`).
    Mixtral,
    /// Qwen1.5-MoE and Qwen2-MoE: fine-grained experts beside a gated shared one (`qwen2_moe`).
    Qwen2Moe,
    /// Qwen3-MoE: Qwen 3 with fine-grained experts (`qwen3_moe`).
    Qwen3Moe,
    /// The first DeepSeek-MoE: fine-grained experts beside shared ones, behind dense layers (`deepseek`).
    DeepSeekMoe,
    /// RWKV-6 "Finch": a recurrence with data-dependent decay (`rwkv6`).
    Rwkv6,
    /// RWKV-7 "Goose": a recurrence by the generalized delta rule (`rwkv7`).
    Rwkv7,
}

impl Family {
    const ALL: [(&'static str, Self); 10] = [
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("mixtral", Self::Mixtral),
        ("qwen2_moe", Self::Qwen2Moe),
        ("qwen3_moe", Self::Qwen3Moe),
        ("deepseek", Self::DeepSeekMoe),
        ("rwkv6", Self::Rwkv6),
        ("rwkv7", Self::Rwkv7),
    ];
}

/// The nonlinearity between the projections of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + e^−x)`.
    Silu,
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    const ALL: [(&'static str, Self); 7] = [
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("relu", Self::Relu),
    ];
}

/// The shape of a decoder, as read from a Hugging Face `config.json`.
///
/// # Examples
///
/// ```
/// use quant_models::{Config, Family};
///
/// let json = serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 192,
///     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
///     "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
/// });
/// let config = Config::from_json(&json, "config.json".as_ref())?;
/// assert_eq!((config.family, config.head_dim, config.qk_norm), (Family::Qwen3, 32, true));
/// # Ok::<(), quant_models::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Which family the folder names.
    pub family: Family,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// Nonlinearity of the feed-forward blocks.
    pub activation: Activation,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether the output head is the embedding matrix.
    pub tied_head: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Whether each query and key head passes through a norm.
    pub qk_norm: bool,
    /// Per layer, how many tokens (itself included) a token looks back on; `None` is all of them.
    pub windows: Vec<Option<usize>>,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The tokens that end one.
    pub eos: Vec<u32>,
    /// The mixture of experts, in families that have one.
    pub mixture: Option<Mixture>,
    /// What only RWKV has. What this structure says of rotary positions, windows and biases means nothing then.
    pub rwkv: Option<Rwkv>,
}

impl Config {
    /// Reads `config.json` of a model folder, and `generation_config.json` for more end tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Json`] for the file, else as [`Config::from_json`].
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        let file = folder.join("config.json");
        let mut config = Self::from_json(&json::read(&file)?, &file)?;
        let file = folder.join("generation_config.json");
        if file.exists() {
            let value = json::read(&file)?;
            for token in eos(&Object::top(&file, &value)?)? {
                if !config.eos.contains(&token) {
                    config.eos.push(token);
                }
            }
        }
        Ok(config)
    }

    /// Reads a parsed `config.json`; `file` is only named in errors.
    ///
    /// # Errors
    ///
    /// [`Error::MissingKey`] and [`Error::BadValue`], naming the file and the key: an unknown
    /// `model_type`, heads that do not divide, sizes beyond belief, unknown activations and
    /// rotary settings.
    pub fn from_json(value: &serde_json::Value, file: &Path) -> Result<Self, Error> {
        let config = Object::top(file, value)?;
        let family = family(&config)?;
        if matches!(family, Family::Rwkv6 | Family::Rwkv7) {
            return rwkv::read(&config, family);
        }
        let size = |key: &str| config.required(key, config.count(key, MAX_SIZE)?);
        let (hidden_size, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        let layers = config.required("num_hidden_layers", config.count("num_hidden_layers", MAX_LAYERS)?)?;
        let kv_heads = config.count("num_key_value_heads", MAX_SIZE)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                config.bad("num_key_value_heads", format!("a divisor of num_attention_heads, which is {heads}"))
            );
        }
        let head_dim = match config.count("head_dim", MAX_SIZE)? {
            Some(found) => found,
            None if family == Family::Qwen3 => 128, // the default of that family's own configuration
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                return Err(
                    config.bad("num_attention_heads", format!("a divisor of hidden_size, which is {hidden_size}"))
                );
            }
        };
        if !head_dim.is_multiple_of(2) {
            let key = if config.get("head_dim").is_some() { "head_dim" } else { "num_attention_heads" };
            return Err(config.bad(key, format!("heads of an even size, not {head_dim}")));
        }
        for (heads, key) in [(heads, "num_attention_heads"), (kv_heads, "num_key_value_heads")] {
            if heads.checked_mul(head_dim).is_none_or(|width| width > MAX_SIZE) {
                return Err(config.bad(key, format!("heads of {head_dim} elements that stay within {MAX_SIZE} in all")));
            }
        }
        let max_positions = config.count("max_position_embeddings", MAX_POSITIONS)?;
        let max_positions = config.required("max_position_embeddings", max_positions)?;
        let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
        let vocab_size = size("vocab_size")?;
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            max_positions,
            norm_eps: norm_eps(&config, "rms_norm_eps")?,
            activation: activation(&config)?,
            rope: rope::read(&config, head_dim, max_positions)?,
            tied_head: config.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: match family {
                Family::Qwen2 => true,
                Family::Qwen2Moe => config.flag("qkv_bias")?.unwrap_or(true),
                Family::Mistral | Family::Mixtral => false,
                _ => attention_bias,
            },
            output_bias: attention_bias
                && matches!(family, Family::Llama | Family::Qwen3 | Family::Qwen3Moe | Family::DeepSeekMoe),
            mlp_bias: family == Family::Llama && config.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe),
            windows: windows(&config, family, layers)?,
            bos: token(&config, "bos_token_id", vocab_size)?,
            eos: eos(&config)?,
            mixture: mixture::read(&config, family, layers)?,
            rwkv: None,
        })
    }
}

fn family(config: &Object<'_>) -> Result<Family, Error> {
    let name = config.required("model_type", config.text("model_type")?)?;
    let found = Family::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, family)| *family).ok_or_else(|| config.bad("model_type", one_of(&Family::ALL)))
}

fn activation(config: &Object<'_>) -> Result<Activation, Error> {
    let Some(name) = config.text("hidden_act")? else {
        return Ok(Activation::Silu);
    };
    let found = Activation::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, activation)| *activation).ok_or_else(|| config.bad("hidden_act", one_of(&Activation::ALL)))
}

fn one_of<T>(known: &[(&str, T)]) -> String {
    let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
    format!("one of {}", names.join(", "))
}

fn norm_eps(config: &Object<'_>, key: &str) -> Result<f32, Error> {
    let eps = config.required(key, config.positive(key)?)?;
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant; the result is checked")]
    let eps = eps as f32;
    if eps > 0.0 && eps < 1.0 { Ok(eps) } else { Err(config.bad(key, "an f32 above 0 and below 1")) }
}

/// Which layers look back how far: Mistral in all layers, Qwen only where `use_sliding_window` says so.
fn windows(config: &Object<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let enabled = match family {
        Family::Mistral | Family::Mixtral => true,
        Family::Qwen2 | Family::Qwen3 | Family::Qwen2Moe | Family::Qwen3Moe => {
            config.flag("use_sliding_window")?.unwrap_or(false)
        }
        Family::Llama | Family::DeepSeekMoe | Family::Rwkv6 | Family::Rwkv7 => false,
    };
    let Some(window) = config.count("sliding_window", MAX_POSITIONS)?.filter(|_| enabled) else {
        return Ok(vec![None; layers]);
    };
    if let Some(kinds) = config.array("layer_types")? {
        if kinds.len() != layers {
            return Err(config.bad("layer_types", format!("{layers} entries, one a layer")));
        }
        let kind = |value: &serde_json::Value| match value.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(Some(window)),
            _ => Err(config.bad("layer_types", "entries full_attention or sliding_attention")),
        };
        return kinds.iter().map(kind).collect();
    }
    let first = match family {
        Family::Mistral | Family::Mixtral => 0,
        // 28 is what that family's configuration falls back on.
        _ if config.get("max_window_layers").is_none() => 28,
        _ => match config.get("max_window_layers").and_then(serde_json::Value::as_u64) {
            Some(first) => usize::try_from(first).unwrap_or(usize::MAX),
            None => return Err(config.bad("max_window_layers", "a whole number")),
        },
    };
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}

fn token(config: &Object<'_>, key: &str, vocab_size: usize) -> Result<Option<u32>, Error> {
    let Some(value) = config.get(key) else {
        return Ok(None);
    };
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size);
    id.map(Some).ok_or_else(|| config.bad(key, format!("a token below vocab_size, which is {vocab_size}")))
}

/// `eos_token_id` is one number or a list; ids beyond the vocabulary can never appear and are kept harmlessly.
fn eos(config: &Object<'_>) -> Result<Vec<u32>, Error> {
    let id = |value: &serde_json::Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| config.bad("eos_token_id", "a token id or a list of them"))
    };
    match config.get("eos_token_id") {
        None => Ok(Vec::new()),
        Some(serde_json::Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

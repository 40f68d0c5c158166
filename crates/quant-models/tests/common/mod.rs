//! What several tests need: made-up model folders, and the places where real models may be.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::cast_possible_truncation, reason = "made-up numbers are small")]

use quant_models::{Config, Decoder, Family};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Random numbers that need no crate: splitmix64, uniform in -1..1.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale).collect()
    }
}

/// A small Llama configuration; `changes` are laid over it.
pub(crate) fn config(changes: Value) -> Value {
    let mut base = json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": false,
    });
    for (key, value) in changes.as_object().expect("changes are an object") {
        base[key] = value.clone();
    }
    base
}

pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Random weights of every tensor that a configuration asks for.
pub(crate) fn weights(config: &Value, seed: u64) -> Tensors {
    let parsed = Config::from_json(config, Path::new("config.json")).expect("the configuration is valid");
    let mut noise = Noise(seed);
    let mut out = Tensors::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let count = shape.iter().product();
        let values = match shape.len() {
            1 if !name.ends_with("bias") => noise.values(count, 0.3).iter().map(|v| v + 1.0).collect(),
            _ => noise.values(count, 0.4),
        };
        out.insert(name, (shape, values));
    };
    let (hidden, inner, head) = (parsed.hidden_size, parsed.intermediate_size, parsed.head_dim);
    let (queries, keys) = (parsed.heads * head, parsed.kv_heads * head);
    add("model.embed_tokens.weight".into(), vec![parsed.vocab_size, hidden]);
    add("model.norm.weight".into(), vec![hidden]);
    if !parsed.tied_head {
        add("lm_head.weight".into(), vec![parsed.vocab_size, hidden]);
    }
    for layer in 0..parsed.layers {
        let mut linear = |part: &str, out: usize, inputs: usize, bias: bool| {
            add(format!("model.layers.{layer}.{part}.weight"), vec![out, inputs]);
            if bias {
                add(format!("model.layers.{layer}.{part}.bias"), vec![out]);
            }
        };
        linear("self_attn.q_proj", queries, hidden, parsed.qkv_bias);
        linear("self_attn.k_proj", keys, hidden, parsed.qkv_bias);
        linear("self_attn.v_proj", keys, hidden, parsed.qkv_bias);
        linear("self_attn.o_proj", hidden, queries, parsed.output_bias);
        let mixture = parsed.mixture.as_ref().filter(|mixture| mixture.layers[layer]);
        let mut block = |name: &str, parts: [&str; 3], inner: usize| {
            linear(&format!("{name}.{}", parts[0]), inner, hidden, parsed.mlp_bias);
            linear(&format!("{name}.{}", parts[1]), inner, hidden, parsed.mlp_bias);
            linear(&format!("{name}.{}", parts[2]), hidden, inner, parsed.mlp_bias);
        };
        let parts = ["gate_proj", "up_proj", "down_proj"];
        match mixture {
            None => block("mlp", parts, inner),
            Some(mixture) => {
                let mixtral = parsed.family == Family::Mixtral;
                let name = if mixtral { "block_sparse_moe" } else { "mlp" };
                for expert in 0..mixture.experts {
                    let parts = if mixtral { ["w1", "w3", "w2"] } else { parts };
                    block(&format!("{name}.experts.{expert}"), parts, mixture.expert_size);
                }
                if let Some(shared) = mixture.shared {
                    let shared_name = if shared.gated { "mlp.shared_expert" } else { "mlp.shared_experts" };
                    block(shared_name, parts, shared.size);
                    if shared.gated {
                        linear("mlp.shared_expert_gate", 1, hidden, false);
                    }
                }
                linear(&format!("{name}.gate"), mixture.experts, hidden, false);
            }
        }
        add(format!("model.layers.{layer}.input_layernorm.weight"), vec![hidden]);
        add(format!("model.layers.{layer}.post_attention_layernorm.weight"), vec![hidden]);
        if parsed.qk_norm {
            add(format!("model.layers.{layer}.self_attn.q_norm.weight"), vec![head]);
            add(format!("model.layers.{layer}.self_attn.k_norm.weight"), vec![head]);
        }
    }
    out
}

/// The bytes of a safetensors file of f32 tensors.
pub(crate) fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, (shape, values)) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = serde_json::to_vec(&header).expect("JSON of plain values");
    [(header.len() as u64).to_le_bytes().to_vec(), header, data].concat()
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn write_folder(folder: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a writable folder");
    std::fs::write(folder.join("model.safetensors"), safetensors(tensors)).expect("a writable folder");
}

/// A random model, through a folder.
pub(crate) fn random_model(config: &Value, seed: u64) -> Decoder {
    model_of(config, &weights(config, seed))
}

/// A model of given weights, through a folder.
pub(crate) fn model_of(config: &Value, tensors: &Tensors) -> Decoder {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_folder(folder.path(), config, tensors);
    Decoder::open(folder.path()).expect("the folder is a model")
}

/// All logits of one text.
pub(crate) fn all_logits(model: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let hidden = model.hidden(&[tokens], None).expect("the tokens are valid");
    model.logits(&hidden, 0..hidden.rows()).expect("the rows are there")
}

/// Token ids that look like text.
pub(crate) fn some_tokens(count: usize, vocab: u32, seed: u64) -> Vec<u32> {
    let mut noise = Noise(seed);
    (0..count).map(|_| ((noise.next() + 1.0) * 0.5 * vocab as f32) as u32 % vocab).collect()
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "as many numbers");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The folder of reference data that is kept beside the checkout (or at `LEANBITS_SHARED`), where there is one.
pub(crate) fn shared() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let found = std::env::var_os("LEANBITS_SHARED").map_or_else(beside, PathBuf::from).join("data");
    if found.join("stories260k/config.json").exists() {
        return Some(found);
    }
    println!("no reference data at {}: nothing compared with PyTorch here", found.display());
    None
}

/// A downloaded model in the folder that `LEANBITS_MODELS` names.
pub(crate) fn downloaded(name: &str) -> Option<PathBuf> {
    let Some(models) = std::env::var_os("LEANBITS_MODELS") else {
        println!("LEANBITS_MODELS is not set: {name} not compared with PyTorch");
        return None;
    };
    let folder = PathBuf::from(models).join(name);
    if folder.join("config.json").exists() {
        return Some(folder);
    }
    println!("{} is not there: {name} not compared with PyTorch", folder.display());
    None
}

//! Hugging Face names of llama-family tensors.

use std::borrow::Cow;

/// What a GGUF tensor is called in a Hugging Face checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfName {
    /// The name.
    pub name: String,
    /// Whose rows the converter reordered: undo it with [`unpermute_rows`].
    pub permuted: Permuted,
}

/// Whether the rows of a tensor are in the order of interleaved rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permuted {
    /// They are not.
    No,
    /// Per query head.
    Queries,
    /// Per key head.
    Keys,
}

/// The Hugging Face name of a tensor of an architecture (`general.architecture`), for the families
/// whose layers are named alike: llama (with Mistral and SmolLM), mistral, qwen2 and
/// qwen3. `None` where the name is not one of theirs.
///
/// Converters to GGUF reorder the rows of the query and key projections of `llama` from
/// halves (row `j` rotates with row `j + d/2`) to pairs (row `2j` with `2j + 1`).
///
/// ```
/// use quant_io::gguf::hf_name;
/// let found = hf_name("llama", "blk.3.ffn_down.weight").unwrap();
/// assert_eq!(found.name, "model.layers.3.mlp.down_proj.weight");
/// ```
#[must_use]
pub fn hf_name(architecture: &str, name: &str) -> Option<HfName> {
    if !matches!(architecture, "llama" | "mistral" | "qwen2" | "qwen3") {
        return None;
    }
    let plain = |name: String| Some(HfName { name, permuted: Permuted::No });
    match name {
        "token_embd.weight" => return plain("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return plain("model.norm.weight".to_owned()),
        "output.weight" => return plain("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let module = match part {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    let permuted = match (architecture, part) {
        ("llama" | "mistral", "attn_q") => Permuted::Queries,
        ("llama" | "mistral", "attn_k") => Permuted::Keys,
        _ => Permuted::No,
    };
    Some(HfName { name: format!("model.layers.{layer}.{module}.{kind}"), permuted })
}

/// Puts the rows of a permuted projection back: within each of `heads` heads of `d` rows, row
/// `p·d/2 + j` of the result is row `2j + p` of the input, `p` 0 or 1.
///
/// Rows may be of any element type. Returns the bytes as they are when `heads` does not divide them
/// into rows in this way.
#[must_use]
pub fn unpermute_rows(bytes: &[u8], rows: usize, heads: usize) -> Cow<'_, [u8]> {
    let divides = heads > 0 && rows > 0 && rows.is_multiple_of(2 * heads) && bytes.len().is_multiple_of(rows);
    if !divides {
        return Cow::Borrowed(bytes);
    }
    let (row_bytes, head_rows) = (bytes.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, within) = (row / head_rows, row % head_rows);
        let (p, j) = (within / (head_rows / 2), within % (head_rows / 2));
        let source = head * head_rows + 2 * j + p;
        out.extend_from_slice(&bytes[source * row_bytes..][..row_bytes]);
    }
    Cow::Owned(out)
}

//! Rotating a model: QuaRot's change of basis (arXiv 2404.00456, section 4), folded into the weights.
//!
//! With `R` orthogonal over the residual stream, `H` over a head, and `g` the gain of the norm before a linear:
//!
//! | tensor | becomes |
//! |---|---|
//! | embedding `E` | `E R` |
//! | query, key, gate, up, router, output head: `W` | `W diag(g) R` |
//! | value projection, head by head | `Hᵀ W diag(g) R`, its bias `b H` |
//! | output projection, head by head | `Rᵀ W H`, its bias `b R` |
//! | down projection | `Rᵀ W`, its bias `b R` |
//! | gain of a norm | 1 |
//!
//! RMSNorm without its gain commutes with `R`, and attention mixes values with numbers, so the model computes what it did.
//! The rotations before the down projection and after the rotary turn that QuaRot applies while the model runs are left
//! out: they serve activations of 4 bits.

use super::prepare::NO_NORMS;
use crate::Error;
use crate::models::{Config, Family};
use crate::recipe::Rotation;
use quant_io::Checkpoint;
use quant_transforms::{Error as TransformError, Hadamard, Orthogonal, RandomizedHadamard, Transform, Weight};

/// The change of basis of a model.
#[derive(Debug)]
pub(crate) struct Basis {
    residual: Transform,
    head: Transform,
}

/// What a tensor does with the two bases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    /// The gain that is folded into its columns.
    norm: Option<String>,
    /// Its rows lie in the residual stream: they are turned.
    reads: bool,
    /// Its columns lie in the residual stream: what comes out is turned.
    writes: bool,
    /// Its rows, head by head, are values.
    makes_values: bool,
    /// Its columns, head by head, are values.
    reads_values: bool,
    /// It becomes all ones.
    gain: bool,
}

impl Basis {
    /// The basis of a model of this shape.
    pub(super) fn new(rotation: Rotation, seed: u64, checkpoint: &Checkpoint, config: &Config) -> Result<Self, Error> {
        let refused =
            |reason: String| Error::Transform { file: checkpoint.path().to_owned(), what: "rotation", reason };
        if !rotates(config.family) {
            return Err(refused(NO_NORMS.to_owned()));
        }
        let of = |size: usize, seed: u64| {
            let transform = match rotation {
                Rotation::Hadamard => Hadamard::largest(size).map(|h| RandomizedHadamard::new(h, seed).into()),
                Rotation::Orthogonal => Orthogonal::random(size, seed).map(Transform::from),
            };
            transform.map_err(|error| refused(error.to_string()))
        };
        // Two streams of the generator: the bases of stream and heads have nothing to do with each other.
        let (residual, head) = (of(config.hidden_size, seed)?, of(config.head_dim, seed.wrapping_add(1))?);
        Ok(Self { residual, head })
    }

    /// Whether a tensor gets other values.
    pub(super) fn changes(&self, tensor: &str) -> bool {
        part(tensor) != Part::default()
    }

    /// Puts the values of a tensor into the new basis: in f64, rounded once. `read` gives the gains of a norm.
    pub(super) fn apply(
        &self,
        tensor: &str,
        shape: &[usize],
        values: &mut [f32],
        read: &dyn Fn(&str) -> Result<Vec<f32>, Error>,
    ) -> Result<(), Error> {
        let part = part(tensor);
        if part == Part::default() {
            return Ok(());
        }
        if part.gain {
            values.fill(1.0);
            return Ok(());
        }
        let columns = shape.last().copied().unwrap_or(0).max(1);
        let mut wide: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
        if let Some(norm) = &part.norm {
            let gains = read(norm)?;
            for row in wide.chunks_exact_mut(columns) {
                row.iter_mut().zip(&gains).for_each(|(value, gain)| *value *= f64::from(*gain));
            }
        }
        let refused = |source: TransformError| Error::Rotation { tensor: tensor.to_owned(), source: Box::new(source) };
        // For orthogonal matrices the rows of what reads are turned as the rows that are read.
        for (rotation, reads) in [(&self.residual, part.reads), (&self.head, part.reads_values)] {
            if reads {
                rotation.apply(&mut wide).map_err(refused)?;
            }
        }
        let columns = (shape.len() > 1).then_some(columns);
        for (rotation, writes) in [(&self.head, part.makes_values), (&self.residual, part.writes)] {
            if writes {
                fold_outputs(tensor, rotation, columns, &mut wide).map_err(refused)?;
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, to the type of the model")]
        values.iter_mut().zip(wide).for_each(|(value, wide)| *value = wide as f32);
        Ok(())
    }
}

/// Turns what comes out of matrices of `columns` columns that stand one below the other. A bias is a row of outputs.
fn fold_outputs(
    tensor: &str,
    rotation: &Transform,
    columns: Option<usize>,
    values: &mut [f64],
) -> Result<(), TransformError> {
    let Some(columns) = columns else { return rotation.apply(values) };
    for matrix in values.chunks_exact_mut((rotation.size() * columns).max(1)) {
        rotation.fold_output(&mut Weight::new(tensor, matrix, [rotation.size(), columns])?)?;
    }
    Ok(())
}

/// Families whose linears read the output of a norm that has a gain and no offset.
fn rotates(family: Family) -> bool {
    !matches!(family, Family::Rwkv6 | Family::Rwkv7)
}

/// What a tensor does with the two bases, by its name in the Hugging Face layout of the Llama family.
fn part(tensor: &str) -> Part {
    let (module, is_bias) = match (tensor.strip_suffix(".weight"), tensor.strip_suffix(".bias")) {
        (Some(module), _) => (module, false),
        (None, Some(module)) => (module, true),
        // Stacked experts are bare parameters.
        (None, None) => (tensor, false),
    };
    let norm = |name: String| Part { norm: Some(name), reads: true, ..Part::default() };
    match module {
        "model.embed_tokens" => return Part { reads: true, ..Part::default() },
        "lm_head" => return norm("model.norm.weight".to_owned()),
        "model.norm" => return Part { gain: true, ..Part::default() },
        _ => {}
    }
    let Some((layer, place)) = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return Part::default();
    };
    let reader = |part: &str| norm(format!("model.layers.{layer}.{part}.weight"));
    match (place.rsplit('.').next().unwrap_or(place), is_bias) {
        ("input_layernorm" | "post_attention_layernorm", false) => Part { gain: true, ..Part::default() },
        ("q_proj" | "k_proj", false) => reader("input_layernorm"),
        ("v_proj", false) => Part { makes_values: true, ..reader("input_layernorm") },
        ("v_proj", true) => Part { makes_values: true, ..Part::default() },
        ("o_proj", false) => Part { reads_values: true, writes: true, ..Part::default() },
        ("down_proj" | "w2", false) | ("o_proj" | "down_proj", true) => Part { writes: true, ..Part::default() },
        ("gate_proj" | "up_proj" | "gate_up_proj" | "w1" | "w3" | "gate" | "router" | "shared_expert_gate", false) => {
            reader("post_attention_layernorm")
        }
        _ => Part::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_known_by_their_names() {
        let of = |name: &str| part(&format!("model.layers.7.{name}"));
        assert_eq!(of("self_attn.q_proj.weight").norm.as_deref(), Some("model.layers.7.input_layernorm.weight"));
        assert!(of("self_attn.v_proj.weight").makes_values && of("self_attn.v_proj.bias").makes_values, "values");
        assert!(of("self_attn.o_proj.weight").writes && of("self_attn.o_proj.weight").reads_values, "output");
        assert_eq!(of("self_attn.q_proj.bias"), Part::default(), "queries are not turned");
        assert_eq!(of("self_attn.q_norm.weight"), Part::default(), "norms of heads stay");
        let expert = of("mlp.experts.3.gate_proj.weight");
        assert_eq!(expert.norm.as_deref(), Some("model.layers.7.post_attention_layernorm.weight"), "an expert");
        assert!(of("mlp.gate.weight").reads && of("mlp.experts.3.down_proj.weight").writes, "router and expert");
    }
}

//! The model once more, one number at a time in f64: what the decoder is compared with.
#![allow(dead_code, reason = "not every test that shares this folder uses it")]

use super::Tensors;
use quant_models::{Activation, Config, Family, Mixture};

type Matrix = Vec<Vec<f64>>;

struct Model<'a> {
    config: &'a Config,
    tensors: &'a Tensors,
}

impl Model<'_> {
    fn vector(&self, name: &str) -> Vec<f64> {
        self.tensors[name].1.iter().map(|v| f64::from(*v)).collect()
    }

    fn linear(&self, name: &str, x: &Matrix) -> Matrix {
        let (shape, weight) = &self.tensors[&format!("{name}.weight")];
        let bias = self.tensors.get(&format!("{name}.bias")).map(|(_, values)| values);
        let row = |x: &Vec<f64>| {
            let one = |out: usize| {
                let weights = &weight[out * shape[1]..(out + 1) * shape[1]];
                let sum: f64 = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
                sum + bias.map_or(0.0, |bias| f64::from(bias[out]))
            };
            (0..shape[0]).map(one).collect()
        };
        x.iter().map(row).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.vector(&format!("{name}.weight"));
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(v, w)| v / (mean + f64::from(self.config.norm_eps)).sqrt() * w).collect()
    }

    /// One head of one token after norm and rotary turn.
    fn head(&self, x: &[f64], head: usize, norm: &str, position: usize, length: usize) -> Vec<f64> {
        let dim = self.config.head_dim;
        let mut x = x[head * dim..(head + 1) * dim].to_vec();
        if self.config.qk_norm {
            x = self.norm(norm, &x);
        }
        let scale = self.config.rope.attention_factor();
        for (i, w) in self.config.rope.frequencies(length).iter().enumerate() {
            let (a, b) = (x[i], x[i + self.config.rope.rotary_dim / 2]);
            let (sin, cos) = (position as f64 * w).sin_cos();
            x[i] = scale * (a * cos - b * sin);
            x[i + self.config.rope.rotary_dim / 2] = scale * (b * cos + a * sin);
        }
        x
    }

    fn attention(&self, layer: usize, x: &Matrix) -> Matrix {
        let at = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|part| self.linear(&at(part), x));
        let (dim, tokens) = (self.config.head_dim, x.len());
        let mut out = vec![Vec::new(); tokens];
        for (t, out) in out.iter_mut().enumerate() {
            for head in 0..self.config.heads {
                let kv_head = head * self.config.kv_heads / self.config.heads;
                let first = self.config.windows[layer].map_or(0, |window| (t + 1).saturating_sub(window));
                let query = self.head(&q[t], head, &at("q_norm"), t, tokens);
                let score = |s: usize| {
                    let key = self.head(&k[s], kv_head, &at("k_norm"), s, tokens);
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    (dot / (dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (first..=t).map(score).collect();
                let total: f64 = scores.iter().sum();
                for i in 0..dim {
                    let value = |(n, score): (usize, &f64)| score / total * v[first + n][kv_head * dim + i];
                    out.push(scores.iter().enumerate().map(value).sum::<f64>());
                }
            }
        }
        self.linear(&at("o_proj"), &out)
    }

    fn feed_forward(&self, layer: usize, x: &Matrix) -> Matrix {
        let parts = ["gate_proj", "up_proj", "down_proj"];
        match &self.config.mixture {
            Some(mixture) if mixture.layers[layer] => x.iter().map(|x| self.experts(mixture, layer, x)).collect(),
            _ => self.block(&format!("model.layers.{layer}.mlp"), parts, x),
        }
    }

    fn block(&self, name: &str, [gate, up, down]: [&str; 3], x: &Matrix) -> Matrix {
        let mut inner = self.linear(&format!("{name}.{gate}"), x);
        for (gate, up) in inner.iter_mut().zip(self.linear(&format!("{name}.{up}"), x)) {
            for (g, u) in gate.iter_mut().zip(up) {
                *g = activate(self.config.activation, *g) * u;
            }
        }
        self.linear(&format!("{name}.{down}"), &inner)
    }

    /// The experts of one token, each with its gate.
    fn experts(&self, mixture: &Mixture, layer: usize, x: &[f64]) -> Vec<f64> {
        let mixtral = self.config.family == Family::Mixtral;
        let name = format!("model.layers.{layer}.{}", if mixtral { "block_sparse_moe" } else { "mlp" });
        let parts = ["gate_proj", "up_proj", "down_proj"];
        let x = vec![x.to_vec()];
        let scores: Vec<f64> = self.linear(&format!("{name}.gate"), &x)[0].iter().map(|s| s.exp()).collect();
        let mut best: Vec<usize> = (0..scores.len()).collect();
        best.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        best.truncate(mixture.top_k);
        let total: f64 = match mixture.renormalize {
            true => best.iter().map(|expert| scores[*expert]).sum(),
            false => scores.iter().sum(),
        };
        let mut out = vec![0.0; x[0].len()];
        let mut add = |y: &[f64], gate: f64| out.iter_mut().zip(y).for_each(|(out, y)| *out += gate * y);
        for expert in best {
            let parts = if mixtral { ["w1", "w3", "w2"] } else { parts };
            add(&self.block(&format!("{name}.experts.{expert}"), parts, &x)[0], scores[expert] / total);
        }
        match mixture.shared {
            Some(shared) if shared.gated => {
                let gate = 1.0 / (1.0 + (-self.linear(&format!("{name}.shared_expert_gate"), &x)[0][0]).exp());
                add(&self.block(&format!("{name}.shared_expert"), parts, &x)[0], gate);
            }
            Some(_) => add(&self.block(&format!("{name}.shared_experts"), parts, &x)[0], 1.0),
            None => {}
        }
        out
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * normal_cdf(x),
        Activation::GeluTanh => {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Relu => x.max(0.0),
        other => panic!("{other:?} has no formula here"),
    }
}

/// The normal distribution function by Simpson's rule from 0.
fn normal_cdf(x: f64) -> f64 {
    let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let steps = 2000;
    let width = x / f64::from(steps);
    let weight = |i: i32| if i == 0 || i == steps { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
    0.5 + width / 3.0 * (0..=steps).map(|i| weight(i) * density(f64::from(i) * width)).sum::<f64>()
}

/// All logits of one text, `[tokens, vocabulary]`.
pub(crate) fn logits(config: &Config, tensors: &Tensors, tokens: &[u32]) -> Vec<f64> {
    let model = Model { config, tensors };
    let embedding = model.vector("model.embed_tokens.weight");
    let row = |token: &u32| embedding[*token as usize * config.hidden_size..][..config.hidden_size].to_vec();
    let mut x: Matrix = tokens.iter().map(row).collect();
    let add = |x: &mut Matrix, y: Matrix| {
        x.iter_mut().zip(y).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
    };
    let normed = |x: &Matrix, name: String| x.iter().map(|x| model.norm(&name, x)).collect::<Matrix>();
    for layer in 0..config.layers {
        let mixed = model.attention(layer, &normed(&x, format!("model.layers.{layer}.input_layernorm")));
        add(&mut x, mixed);
        let mixed = model.feed_forward(layer, &normed(&x, format!("model.layers.{layer}.post_attention_layernorm")));
        add(&mut x, mixed);
    }
    let head = if config.tied_head { "model.embed_tokens" } else { "lm_head" };
    model.linear(head, &normed(&x, "model.norm".into())).concat()
}

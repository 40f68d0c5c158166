//! RWKV-6 and RWKV-7 once more, a token and a number at a time in f64: what the layers are compared with.
#![allow(dead_code, reason = "not every test that shares this folder uses it")]

use crate::common::{Noise, Tensors};
use quant_models::{Config, Family};

type Row = Vec<f64>;

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

struct Model<'a> {
    config: &'a Config,
    tensors: &'a Tensors,
}

impl Model<'_> {
    fn vector(&self, name: &str) -> Row {
        self.tensors[name].1.iter().map(|v| f64::from(*v)).collect()
    }

    /// `W x` for a stored `[out, in]`.
    fn linear(&self, name: &str, x: &[f64]) -> Row {
        let (shape, weight) = &self.tensors[name];
        product(weight, shape[1], x)
    }

    /// `x W` for a stored `[in, out]`.
    fn pair(&self, name: &str, x: &[f64]) -> Row {
        let (shape, weight) = &self.tensors[name];
        columns(weight, shape[1], x)
    }

    fn norm(&self, name: &str, x: &[f64], groups: usize, eps: f64) -> Row {
        let (weight, bias) = (self.vector(&format!("{name}.weight")), self.vector(&format!("{name}.bias")));
        let size = x.len() / groups;
        let mut out = Row::new();
        for head in x.chunks(size) {
            let mean = head.iter().sum::<f64>() / size as f64;
            let variance = head.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / size as f64;
            out.extend(head.iter().map(|v| (v - mean) / (variance + eps).sqrt()));
        }
        out.iter().zip(weight.iter().zip(bias)).map(|(v, (w, b))| v * w + b).collect()
    }

    fn mixed(&self, x: &[f64], last: &[f64], multiplier: &[f64]) -> Row {
        x.iter().zip(last).zip(multiplier).map(|((x, last), m)| x + (last - x) * m).collect()
    }
}

fn product(weight: &[f32], inputs: usize, x: &[f64]) -> Row {
    weight.chunks(inputs).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
}

fn columns(weight: &[f32], outputs: usize, x: &[f64]) -> Row {
    let column = |o: usize| x.iter().enumerate().map(|(i, x)| x * f64::from(weight[i * outputs + o])).sum();
    (0..outputs).map(column).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// What one layer remembers.
struct Memory {
    mixer: Row,
    channel: Row,
    /// `[heads][size][size]`.
    state: Vec<Vec<Row>>,
}

/// All logits of one text, `[tokens, vocabulary]`.
pub(crate) fn logits(config: &Config, tensors: &Tensors, tokens: &[u32]) -> Vec<f64> {
    let model = Model { config, tensors };
    let (width, size) = (config.hidden_size, config.head_dim);
    let fresh = |_| Memory {
        mixer: vec![0.0; width],
        channel: vec![0.0; width],
        state: vec![vec![vec![0.0; size]; size]; width / size],
    };
    let mut memories: Vec<Memory> = (0..config.layers).map(fresh).collect();
    let embedding = model.vector("emb.weight");
    let mut out = Vec::new();
    for &token in tokens {
        let mut x = model.norm("blocks.0.ln0", &embedding[token as usize * width..][..width], 1, 1e-5);
        let mut first = None;
        for (layer, memory) in memories.iter_mut().enumerate() {
            let at = |part: &str| format!("blocks.{layer}.{part}");
            let normed = model.norm(&at("ln1"), &x, 1, 1e-5);
            let mixed = match config.family {
                Family::Rwkv7 => model.time_mix_7(layer, &normed, memory, &mut first),
                _ => model.time_mix_6(layer, &normed, memory),
            };
            memory.mixer = normed;
            add(&mut x, &mixed);
            let normed = model.norm(&at("ln2"), &x, 1, 1e-5);
            let mixed = match config.family {
                Family::Rwkv7 => {
                    let k = model.mixed(&normed, &memory.channel, &model.vector(&at("ffn.x_k")));
                    model.squared_relu(&at("ffn"), &k)
                }
                _ => {
                    let k = model.mixed(&normed, &memory.channel, &model.vector(&at("ffn.time_maa_k")));
                    let r = model.mixed(&normed, &memory.channel, &model.vector(&at("ffn.time_maa_r")));
                    let gate = model.linear(&at("ffn.receptance.weight"), &r);
                    let y = model.squared_relu(&at("ffn"), &k);
                    y.iter().zip(gate).map(|(y, g)| y * logistic(g)).collect()
                }
            };
            memory.channel = normed;
            add(&mut x, &mixed);
        }
        out.extend(model.linear("head.weight", &model.norm("ln_out", &x, 1, 1e-5)));
    }
    out
}

impl Model<'_> {
    fn squared_relu(&self, name: &str, x: &[f64]) -> Row {
        let inner = self.linear(&format!("{name}.key.weight"), x);
        let inner: Row = inner.iter().map(|v| v.max(0.0).powi(2)).collect();
        self.linear(&format!("{name}.value.weight"), &inner)
    }

    fn time_mix_7(&self, layer: usize, x: &[f64], memory: &mut Memory, first: &mut Option<Row>) -> Row {
        let at = |part: &str| format!("blocks.{layer}.att.{part}");
        let mixed = |part: &str| self.mixed(x, &memory.mixer, &self.vector(&at(part)));
        let r = self.linear(&at("receptance.weight"), &mixed("x_r"));
        let mut k = self.linear(&at("key.weight"), &mixed("x_k"));
        let mut v = self.linear(&at("value.weight"), &mixed("x_v"));
        let offset = |letter: &str, x: &Row, inner: fn(f64) -> f64| {
            let low: Row = self.pair(&at(&format!("{letter}1")), x).into_iter().map(inner).collect();
            let mut y = self.pair(&at(&format!("{letter}2")), &low);
            add(&mut y, &self.vector(&at(&format!("{letter}0"))));
            y
        };
        // The published form: w = −softplus(−z) − ½, decay = exp(−exp(w)).
        let z = offset("w", &mixed("x_w"), f64::tanh);
        let decay: Row = z.iter().map(|z| (-(-(1.0 + (-z).exp()).ln() - 0.5).exp()).exp()).collect();
        match first {
            None => *first = Some(v.clone()),
            Some(first) => {
                let share = offset("v", &mixed("x_v"), |x| x);
                v.iter_mut().zip(first.iter().zip(share)).for_each(|(v, (f, s))| *v += (f - *v) * logistic(s));
            }
        }
        let a: Row = offset("a", &mixed("x_a"), |x| x).into_iter().map(logistic).collect();
        let low: Row = self.pair(&at("g1"), &mixed("x_g")).into_iter().map(logistic).collect();
        let g = self.pair(&at("g2"), &low);
        let (k_k, k_a, r_k) = (self.vector(&at("k_k")), self.vector(&at("k_a")), self.vector(&at("r_k")));
        let size = self.config.head_dim;
        let mut kappa: Row = k.iter().zip(k_k).map(|(k, k_k)| k * k_k).collect();
        for head in kappa.chunks_mut(size) {
            let length = head.iter().map(|v| v * v).sum::<f64>().sqrt();
            head.iter_mut().for_each(|v| *v /= length);
        }
        k.iter_mut().zip(a.iter().zip(k_a)).for_each(|(k, (a, k_a))| *k *= 1.0 + (a - 1.0) * k_a);
        let mut y = Row::new();
        for (head, state) in memory.state.iter_mut().enumerate() {
            let of = |x: &Row, j: usize| x[head * size + j];
            for (i, row) in state.iter_mut().enumerate() {
                let removed: f64 = (0..size).map(|j| row[j] * of(&kappa, j)).sum();
                for (j, s) in row.iter_mut().enumerate() {
                    *s = *s * of(&decay, j) - removed * of(&kappa, j) * of(&a, j) + of(&v, i) * of(&k, j);
                }
                y.push((0..size).map(|j| row[j] * of(&r, j)).sum());
            }
        }
        let mut y = self.norm(&at("ln_x"), &y, memory.state.len(), 64e-5);
        for (head, y) in y.chunks_mut(size).enumerate() {
            let present: f64 = (head * size..(head + 1) * size).map(|j| r[j] * k[j] * r_k[j]).sum();
            add(y, &v[head * size..][..size].iter().map(|v| present * v).collect::<Row>());
        }
        let gated: Row = y.iter().zip(g).map(|(y, g)| y * g).collect();
        self.linear(&at("output.weight"), &gated)
    }

    fn time_mix_6(&self, layer: usize, x: &[f64], memory: &mut Memory) -> Row {
        let at = |part: &str| format!("blocks.{layer}.att.{part}");
        let low = self.pair(&at("time_maa_w1"), &self.mixed(x, &memory.mixer, &self.vector(&at("time_maa_x"))));
        let low: Row = low.into_iter().map(f64::tanh).collect();
        let rank = low.len() / 5;
        let (shape, second) = &self.tensors[&at("time_maa_w2")];
        let mixed = |index: usize, part: &str| {
            let weight = &second[index * rank * shape[2]..(index + 1) * rank * shape[2]];
            let mut multiplier = columns(weight, shape[2], &low[index * rank..(index + 1) * rank]);
            add(&mut multiplier, &self.vector(&at(part)));
            self.mixed(x, &memory.mixer, &multiplier)
        };
        let low: Row = self.pair(&at("time_decay_w1"), &mixed(0, "time_maa_w")).into_iter().map(f64::tanh).collect();
        let mut w = self.pair(&at("time_decay_w2"), &low);
        add(&mut w, &self.vector(&at("time_decay")));
        let k = self.linear(&at("key.weight"), &mixed(1, "time_maa_k"));
        let v = self.linear(&at("value.weight"), &mixed(2, "time_maa_v"));
        let r = self.linear(&at("receptance.weight"), &mixed(3, "time_maa_r"));
        let g = self.linear(&at("gate.weight"), &mixed(4, "time_maa_g"));
        let (bonus, size) = (self.vector(&at("time_faaaa")), self.config.head_dim);
        let mut y = Row::new();
        for (head, state) in memory.state.iter_mut().enumerate() {
            let at = |i: usize| head * size + i;
            for j in 0..size {
                y.push((0..size).map(|i| r[at(i)] * (bonus[at(i)] * k[at(i)] * v[at(j)] + state[i][j])).sum::<f64>());
            }
            for (i, row) in state.iter_mut().enumerate() {
                row.iter_mut().enumerate().for_each(|(j, s)| *s = *s * (-w[at(i)].exp()).exp() + k[at(i)] * v[at(j)]);
            }
        }
        let y = self.norm(&at("ln_x"), &y, memory.state.len(), 64e-5);
        let gated: Row = y.iter().zip(g).map(|(y, g)| y * g * logistic(g)).collect();
        self.linear(&at("output.weight"), &gated)
    }
}

/// Random weights under RWKV's own names and in its own layout: low-rank pairs input-major, vectors `[1, 1, width]`.
pub(crate) fn weights(config: &Config, rank: usize, seed: u64) -> Tensors {
    let mut noise = Noise(seed);
    let mut out = Tensors::new();
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let mut add = |name: String, shape: &[usize], center: f32, spread: f32| {
        let count = shape.iter().product();
        let values = noise.values(count, spread).iter().map(|v| v + center).collect();
        out.insert(name, (shape.to_vec(), values));
    };
    add("emb.weight".into(), &[config.vocab_size, width], 0.0, 1.0);
    add("head.weight".into(), &[config.vocab_size, width], 0.0, 0.5);
    for norm in ["ln_out", "blocks.0.ln0"] {
        add(format!("{norm}.weight"), &[width], 1.0, 0.3);
        add(format!("{norm}.bias"), &[width], 0.0, 0.3);
    }
    for layer in 0..config.layers {
        let mut part = |name: &str, shape: &[usize], center: f32, spread: f32| {
            add(format!("blocks.{layer}.{name}"), shape, center, spread);
        };
        for norm in ["ln1", "ln2", "att.ln_x"] {
            part(&format!("{norm}.weight"), &[width], 1.0, 0.3);
            part(&format!("{norm}.bias"), &[width], 0.0, 0.3);
        }
        for square in ["att.receptance", "att.key", "att.value", "att.output"] {
            part(&format!("{square}.weight"), &[width, width], 0.0, 0.3);
        }
        part("ffn.key.weight", &[inner, width], 0.0, 0.3);
        part("ffn.value.weight", &[width, inner], 0.0, 0.3);
        let vector = [1, 1, width];
        if config.family == Family::Rwkv7 {
            for letter in ["r", "w", "k", "v", "a", "g"] {
                part(&format!("att.x_{letter}"), &vector, 0.5, 0.5);
            }
            for letter in ["w", "a", "v"].into_iter().filter(|letter| layer > 0 || *letter != "v") {
                part(&format!("att.{letter}0"), &vector, 0.0, 1.0);
                part(&format!("att.{letter}1"), &[width, rank], 0.0, 0.4);
                part(&format!("att.{letter}2"), &[rank, width], 0.0, 0.4);
            }
            part("att.g1", &[width, rank + 2], 0.0, 0.4);
            part("att.g2", &[rank + 2, width], 0.0, 0.4);
            part("att.k_k", &vector, 0.8, 0.3);
            part("att.k_a", &vector, 1.0, 0.3);
            part("att.r_k", &[config.heads, config.head_dim], 0.0, 0.3);
            part("ffn.x_k", &vector, 0.5, 0.5);
        } else {
            for letter in ["x", "w", "k", "v", "r", "g"] {
                part(&format!("att.time_maa_{letter}"), &vector, 0.5, 0.5);
            }
            part("att.time_maa_w1", &[width, 5 * rank], 0.0, 0.3);
            part("att.time_maa_w2", &[5, rank, width], 0.0, 0.3);
            part("att.time_decay", &vector, -1.0, 1.0);
            part("att.time_decay_w1", &[width, rank + 2], 0.0, 0.3);
            part("att.time_decay_w2", &[rank + 2, width], 0.0, 0.3);
            part("att.time_faaaa", &[config.heads, config.head_dim], 0.0, 0.5);
            part("att.gate.weight", &[width, width], 0.0, 0.3);
            part("ffn.receptance.weight", &[width, width], 0.0, 0.3);
            part("ffn.time_maa_k", &vector, 0.5, 0.5);
            part("ffn.time_maa_r", &vector, 0.5, 0.5);
        }
    }
    out
}

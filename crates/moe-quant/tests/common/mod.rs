//! A toy mixture of experts with heavy-tailed channels.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers made up for the tests")]

use moe_quant::{Activation, Block, Dispatch, ExpertWeights, MoeLayer, Scheme};
use quant_core::{Shaped, fake_quantize};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub struct Random(ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.uniform() * limit as f64) as usize
    }
}

pub struct Toy {
    pub hidden: usize,
    pub inner: usize,
    /// gate, up, down of each expert.
    pub weights: Vec<[Vec<f32>; 3]>,
    pub x: Vec<f32>,
    pub dispatch: Dispatch,
}

impl Toy {
    /// A softmax router that renormalizes nothing, with a bias towards the first experts.
    pub fn new(seed: u64, experts: usize, top_k: usize, [hidden, inner]: [usize; 2], tokens: usize, skew: f64) -> Self {
        let mut random = Random::new(seed);
        // A few channels are much larger than the others.
        let channels = |random: &mut Random, n: usize| -> Vec<f64> { (0..n).map(|_| random.normal().exp()).collect() };
        let mut weights = Vec::new();
        for _ in 0..experts {
            let scale = (0.5 * random.normal()).exp();
            let mut matrix = |out: usize, features: usize| -> Vec<f32> {
                let columns = channels(&mut random, features);
                let value = |i: usize, random: &mut Random| {
                    (scale * columns[i % features] * random.normal() / (features as f64).sqrt()) as f32
                };
                (0..out * features).map(|i| value(i, &mut random)).collect()
            };
            weights.push([matrix(inner, hidden), matrix(inner, hidden), matrix(hidden, inner)]);
        }
        let x: Vec<f32> = (0..tokens * hidden).map(|_| random.normal() as f32).collect();
        let (mut ids, mut gates) = (Vec::new(), Vec::new());
        for _ in 0..tokens {
            let logits: Vec<f64> = (0..experts).map(|e| random.normal() - skew * e as f64).collect();
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            for &expert in &order[..top_k] {
                ids.push(expert);
                gates.push((logits[expert].exp() / total) as f32);
            }
        }
        let dispatch = Dispatch::new(experts, top_k, &ids, &gates).unwrap();
        Self { hidden, inner, weights, x, dispatch }
    }

    pub fn layer(&self) -> MoeLayer<'_> {
        let experts = self.weights.iter().map(|[gate, up, down]| ExpertWeights { gate, up, down }).collect();
        MoeLayer::new(experts, [self.hidden, self.inner], Activation::Silu).unwrap()
    }

    /// The layer with every block rounded as `scheme` says.
    pub fn rounded(&self, scheme: impl Fn(usize, Block) -> Scheme) -> Vec<[Vec<f32>; 3]> {
        let one = |expert: usize| {
            Block::ALL.map(|block| {
                let shape = block.shape([self.hidden, self.inner]);
                let weight = &self.weights[expert][block.index()];
                fake_quantize(scheme(expert, block).weight, &Shaped::new(weight, &shape).unwrap()).unwrap()
            })
        };
        (0..self.weights.len()).map(one).collect()
    }

    /// The output of other weights, in f64.
    pub fn output(&self, weights: &[[Vec<f32>; 3]]) -> Vec<f64> {
        let (d, f) = (self.hidden, self.inner);
        let mut out = vec![0.0; self.dispatch.tokens() * d];
        for (expert, [gate, up, down]) in weights.iter().enumerate() {
            for (&token, &p) in self.dispatch.tokens_of(expert).iter().zip(self.dispatch.gates_of(expert)) {
                let x = &self.x[token * d..(token + 1) * d];
                let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                let inner: Vec<f64> = (0..f)
                    .map(|i| Activation::Silu.of(dot(&gate[i * d..(i + 1) * d])) * dot(&up[i * d..(i + 1) * d]))
                    .collect();
                for (o, out) in out[token * d..(token + 1) * d].iter_mut().enumerate() {
                    let row = &down[o * f..(o + 1) * f];
                    *out += f64::from(p) * row.iter().zip(&inner).map(|(w, h)| f64::from(*w) * h).sum::<f64>();
                }
            }
        }
        out
    }

    /// `‖Ô − O‖_F` of other weights.
    pub fn loss(&self, weights: &[[Vec<f32>; 3]]) -> f64 {
        let (exact, found) = (self.output(&self.weights), self.output(weights));
        exact.iter().zip(&found).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    }
}

pub fn schemes(names: &[&str]) -> Vec<Scheme> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

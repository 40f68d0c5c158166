//! A layer of RWKV-7 "Goose" (arXiv 2503.14456): time mix by the generalized delta rule, then channel mix.
//!
//! With `shift(x)_t = x_{t−1}`, `d = shift(x) − x` and `x_s = x + d ⊙ μ_s`:
//!
//! ```text
//! r = R x_r   k = K x_k   v = V x_v   g = g2 σ(g1 x_g)   a = σ(a0 + a2 a1 x_a)
//! decay = exp(−e^−½ σ(w0 + w2 tanh(w1 x_w)))
//! v ← v + (v_first − v) ⊙ σ(v0 + v2 v1 x_v)      in all layers but the first, whose v is v_first
//! κ = k ⊙ k_k, of unit length in each head        k ← k ⊙ (1 + (a − 1) ⊙ k_a)
//! S ← S diag(decay) − (S κ)(κ ⊙ a)ᵀ + v kᵀ        y = S r, for each head
//! out = O ((GroupNorm(y) + (Σ_head r ⊙ k ⊙ r_k) v) ⊙ g)
//! ```
//!
//! Channel mix: `V relu(K x_k)²`.

use super::recurrence::{Delta, GroupNorm, Reader, Shifted, keep, observe, states};
use super::{Link, Parts, Pass, again};
use crate::kv::RecurrentState;
use crate::loader::Loader;
use crate::norm::Norm;
use crate::ops::{self, Rows};
use crate::outliers::OutlierSite;
use crate::slot::{Role, Slot};
use crate::stream::Stream;
use crate::vector::Vector;
use crate::{Config, Error};

#[derive(Clone, Debug)]
pub(super) struct Rwkv7 {
    mixer_norm: Norm,
    /// `μ` of r, w, k, v, a, g.
    mu: [Vector; 6],
    r: Slot,
    k: Slot,
    v: Slot,
    o: Slot,
    w: Offset,
    a: Offset,
    /// In all layers but the first.
    residual: Option<Offset>,
    g: [Slot; 2],
    k_k: Vector,
    k_a: Vector,
    r_k: Vector,
    heads_norm: GroupNorm,
    channel_norm: Norm,
    channel_mu: Vector,
    channel_k: Slot,
    channel_v: Slot,
}

/// A vector and a low-rank function of the token that is added to it.
#[derive(Clone, Debug)]
struct Offset {
    base: Vector,
    down: Slot,
    up: Slot,
}

impl Offset {
    fn load(reader: &Reader<'_>, letter: &str) -> Result<Self, Error> {
        let hidden = reader.config.hidden_size;
        let [base, down, up] = [0, 1, 2].map(|index| format!("att.{letter}{index}"));
        let rank = reader.rank(&down)?;
        Ok(Self {
            base: reader.vector(&base, hidden)?,
            down: reader.low_rank(&down, [rank, hidden])?,
            up: reader.low_rank(&up, [hidden, rank])?,
        })
    }

    /// `f(base + up(g(down x)))`.
    fn of(
        &self,
        x: &Rows,
        g: impl Fn(f32) -> f32,
        f: impl Fn(f32) -> f32,
        pass: &mut Pass<'_>,
    ) -> Result<Vec<f32>, Error> {
        let mut inner = self.down.forward(x, again(&mut pass.observer))?;
        inner.update(|x| x.iter_mut().for_each(|x| *x = g(*x)))?;
        let mut y = self.up.forward(&inner, again(&mut pass.observer))?;
        y.update(|y| {
            for row in y.chunks_exact_mut(self.base.values().len()) {
                row.iter_mut().zip(self.base.values()).for_each(|(y, base)| *y = f(base + *y));
            }
        })?;
        y.read(<[f32]>::to_vec)
    }
}

impl Rwkv7 {
    pub(super) fn load(loader: &Loader<'_>, config: &Config, layer: usize) -> Result<Self, Error> {
        let reader = Reader::new(loader, config, layer, &["att.w1", "att.a1", "att.g1", "att.v1"]);
        let hidden = config.hidden_size;
        let square = |part: &str| reader.slot(part, Role::Mixer, [hidden, hidden]);
        let norm = |part: &str| Norm::layer(loader, &reader.at(part), hidden, config.norm_eps);
        let rank = reader.rank("att.g1")?;
        let inner = config.intermediate_size;
        Ok(Self {
            mixer_norm: norm("ln1")?,
            mu: reader.multipliers("att.x_", ["r", "w", "k", "v", "a", "g"], "att.x_rwkvag")?,
            r: square("att.receptance")?,
            k: square("att.key")?,
            v: square("att.value")?,
            o: square("att.output")?,
            w: Offset::load(&reader, "w")?,
            a: Offset::load(&reader, "a")?,
            residual: (layer > 0).then(|| Offset::load(&reader, "v")).transpose()?,
            g: [reader.low_rank("att.g1", [rank, hidden])?, reader.low_rank("att.g2", [hidden, rank])?],
            k_k: reader.vector("att.k_k", hidden)?,
            k_a: reader.vector("att.k_a", hidden)?,
            r_k: reader.vector("att.r_k", hidden)?,
            heads_norm: GroupNorm::load(&reader, "att.ln_x")?,
            channel_norm: norm("ln2")?,
            channel_mu: reader.vector("ffn.x_k", hidden)?,
            channel_k: reader.slot("ffn.key", Role::FeedForward, [inner, hidden])?,
            channel_v: reader.slot("ffn.value", Role::FeedForward, [hidden, inner])?,
        })
    }

    /// Returns the mixed tokens and the values before they are mixed with those of the first layer.
    fn time_mix(
        &self,
        x: &Rows,
        first_values: Option<&Rows>,
        states: &mut [RecurrentState],
        pass: &mut Pass<'_>,
    ) -> Result<(Rows, Rows), Error> {
        let (width, size) = (pass.config.hidden_size, pass.config.head_dim);
        let shifted = Shifted::new(x, pass, states.iter_mut().map(|state| &mut state.mixer_shift))?;
        let [mu_r, mu_w, mu_k, mu_v, mu_a, mu_g] = &self.mu;
        let x_r = shifted.mix(mu_r, pass)?;
        let r = values(&self.r, &x_r, pass)?;
        let x_w = shifted.mix(mu_w, pass)?;
        let decay = |w: f32| (-(-0.5_f32).exp() * ops::logistic(w)).exp();
        let decay = self.w.of(&x_w, f32::tanh, decay, pass)?;
        let x_k = shifted.mix(mu_k, pass)?;
        let mut k = values(&self.k, &x_k, pass)?;
        let x_v = shifted.mix(mu_v, pass)?;
        let own = self.v.forward(&x_v, again(&mut pass.observer))?;
        let mut v = own.read(<[f32]>::to_vec)?;
        if let Some((residual, first)) = self.residual.as_ref().zip(first_values) {
            let share = residual.of(&x_v, |x| x, ops::logistic, pass)?;
            first.read(|first| {
                v.iter_mut().zip(first.iter().zip(share)).for_each(|(v, (first, share))| *v += (first - *v) * share);
            })?;
        }
        let x_a = shifted.mix(mu_a, pass)?;
        let a = self.a.of(&x_a, |x| x, ops::logistic, pass)?;
        let x_g = shifted.mix(mu_g, pass)?;
        let mut inner = self.g[0].forward(&x_g, again(&mut pass.observer))?;
        inner.update(|x| x.iter_mut().for_each(|x| *x = ops::logistic(*x)))?;
        let g = values(&self.g[1], &inner, pass)?;

        let removal = self.removal(&k, width, size, pass);
        let replacement: Vec<f32> = removal.iter().zip(&a).map(|(removal, a)| removal * a).collect();
        self.rescale_keys(&mut k, &a, width, pass);
        let mut out = Vec::with_capacity(k.len());
        for (text, state) in pass.texts.iter().zip(states) {
            let part = text.rows.start * width..text.rows.end * width;
            let delta = Delta {
                r: &r[part.clone()],
                decay: &decay[part.clone()],
                k: &k[part.clone()],
                v: &v[part.clone()],
                removal: &removal[part.clone()],
                replacement: &replacement[part],
            };
            out.extend(delta.run(&mut state.matrices, width, size));
        }
        self.heads_norm.apply(&mut out, size);
        self.add_present(&mut out, &r, &k, &v, size, pass);
        out.iter_mut().zip(&g).for_each(|(out, g)| *out *= g);
        let mixed = self.o.forward(&Rows::new(out, width)?, again(&mut pass.observer))?;
        Ok((mixed, own))
    }

    /// `κ`: the keys times `k_k`, of unit length in each head.
    fn removal(&self, k: &[f32], width: usize, size: usize, pass: &mut Pass<'_>) -> Vec<f32> {
        observe(pass, &self.k_k, k);
        let mut removal = k.to_vec();
        ops::for_rows(&mut removal, width, |_, row| {
            row.iter_mut().zip(self.k_k.values()).for_each(|(k, k_k)| *k *= k_k);
            for head in row.chunks_exact_mut(size) {
                let length = ops::dot(head, head).sqrt().max(1e-12);
                head.iter_mut().for_each(|k| *k /= length);
            }
        });
        removal
    }

    /// `k ← k ⊙ (1 + (a − 1) ⊙ k_a)`.
    fn rescale_keys(&self, k: &mut [f32], a: &[f32], width: usize, pass: &mut Pass<'_>) {
        if pass.observer.is_some() {
            let input: Vec<f32> = k.iter().zip(a).map(|(k, a)| k * (a - 1.0)).collect();
            observe(pass, &self.k_a, &input);
        }
        for (k, a) in k.chunks_exact_mut(width).zip(a.chunks_exact(width)) {
            let factors = a.iter().zip(self.k_a.values());
            k.iter_mut().zip(factors).for_each(|(k, (a, k_a))| *k *= 1.0 + (a - 1.0) * k_a);
        }
    }

    /// Adds `(Σ_head r ⊙ k ⊙ r_k) v`: what the present token says of itself.
    fn add_present(&self, out: &mut [f32], r: &[f32], k: &[f32], v: &[f32], size: usize, pass: &mut Pass<'_>) {
        let products: Vec<f32> = r.iter().zip(k).map(|(r, k)| r * k).collect();
        observe(pass, &self.r_k, &products);
        let weights = self.r_k.values().chunks_exact(size).cycle();
        let heads = out.chunks_exact_mut(size).zip(products.chunks_exact(size)).zip(v.chunks_exact(size)).zip(weights);
        for (((out, products), v), r_k) in heads {
            let present = ops::dot(products, r_k);
            out.iter_mut().zip(v).for_each(|(out, v)| *out += present * v);
        }
    }

    fn channel_mix(&self, x: &Rows, states: &mut [RecurrentState], pass: &mut Pass<'_>) -> Result<Rows, Error> {
        let shifted = Shifted::new(x, pass, states.iter_mut().map(|state| &mut state.channel_shift))?;
        let x_k = shifted.mix(&self.channel_mu, pass)?;
        let mut inner = self.channel_k.forward(&x_k, again(&mut pass.observer))?;
        inner.update(ops::squared_relu)?;
        self.channel_v.forward(&inner, again(&mut pass.observer))
    }
}

/// A linear's outputs.
fn values(slot: &Slot, x: &Rows, pass: &mut Pass<'_>) -> Result<Vec<f32>, Error> {
    slot.forward(x, again(&mut pass.observer))?.read(<[f32]>::to_vec)
}

impl Parts for Rwkv7 {
    fn groups(&self) -> Vec<Vec<&Slot>> {
        let mut groups = vec![vec![&self.r], vec![&self.w.down], vec![&self.w.up], vec![&self.k]];
        match &self.residual {
            Some(residual) => groups.extend([vec![&self.v, &residual.down], vec![&residual.up]]),
            None => groups.push(vec![&self.v]),
        }
        groups.extend([vec![&self.a.down], vec![&self.a.up], vec![&self.g[0]], vec![&self.g[1]], vec![&self.o]]);
        groups.extend([vec![&self.channel_k], vec![&self.channel_v]]);
        groups
    }

    fn slots_mut(&mut self) -> Vec<&mut Slot> {
        let mut slots = vec![&mut self.r, &mut self.w.down, &mut self.w.up, &mut self.k, &mut self.v];
        slots.extend(self.residual.iter_mut().flat_map(|residual| [&mut residual.down, &mut residual.up]));
        slots.extend([&mut self.a.down, &mut self.a.up]);
        slots.extend(&mut self.g);
        slots.extend([&mut self.o, &mut self.channel_k, &mut self.channel_v]);
        slots
    }

    fn vectors(&self) -> Vec<&Vector> {
        let mut vectors = self.mixer_norm.vectors();
        vectors.extend([&self.w.base, &self.a.base]);
        vectors.extend(self.residual.iter().map(|residual| &residual.base));
        vectors.extend([&self.heads_norm.gain, &self.heads_norm.offset]);
        vectors.extend(self.channel_norm.vectors());
        vectors
    }

    fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        let mut vectors = self.mixer_norm.vectors_mut();
        vectors.extend([&mut self.w.base, &mut self.a.base]);
        vectors.extend(self.residual.iter_mut().map(|residual| &mut residual.base));
        vectors.extend([&mut self.heads_norm.gain, &mut self.heads_norm.offset]);
        vectors.extend(self.channel_norm.vectors_mut());
        vectors
    }

    fn multipliers(&self) -> Vec<&Vector> {
        self.mu.iter().chain([&self.k_k, &self.k_a, &self.r_k, &self.channel_mu]).collect()
    }

    fn multipliers_mut(&mut self) -> Vec<&mut Vector> {
        let own = [&mut self.k_k, &mut self.k_a, &mut self.r_k, &mut self.channel_mu];
        self.mu.iter_mut().chain(own).collect()
    }

    fn links(&self, site: OutlierSite, _config: &Config) -> Vec<Link> {
        match site {
            OutlierSite::Norms => {
                let mut readers = vec![&self.r, &self.w.down, &self.k, &self.v, &self.a.down, &self.g[0]];
                readers.extend(self.residual.iter().map(|residual| &residual.down));
                vec![
                    Link::from_norm(&self.mixer_norm.vectors(), &readers),
                    Link::from_norm(&self.channel_norm.vectors(), &[&self.channel_k]),
                ]
            }
            OutlierSite::Inner => vec![Link::between(&self.channel_k, &self.channel_v, 2)],
            OutlierSite::Values | OutlierSite::Keys => Vec::new(),
        }
    }

    fn forward(&self, x: &Stream, pass: &mut Pass<'_>) -> Result<Stream, Error> {
        let mut states = states(pass)?;
        let normed = self.mixer_norm.of(x.rows())?;
        let (mut middle, values) = self.time_mix(&normed, x.first_values(), &mut states, pass)?;
        middle.update_with(x.rows(), ops::add)?;
        let mut out = self.channel_mix(&self.channel_norm.of(&middle)?, &mut states, pass)?;
        out.update_with(&middle, ops::add)?;
        keep(pass, states)?;
        let out = x.with_rows(out);
        Ok(if pass.layer == 0 { out.with_first_values(values) } else { out })
    }
}

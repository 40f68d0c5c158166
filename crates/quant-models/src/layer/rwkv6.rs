//! A layer of RWKV-6 "Finch" (arXiv 2404.05892): time mix with data-dependent decay, then channel mix.
//!
//! With `shift(x)_t = x_{t−1}` and `d = shift(x) − x`:
//!
//! ```text
//! m = tanh(W1 (x + d ⊙ maa_x)), cut in five; m_s = W2_s m[s]    for s in w, k, v, r, g
//! x_s = x + d ⊙ (maa_s + m_s)
//! r = R x_r   k = K x_k   v = V x_v   g = silu(G x_g)
//! decay = exp(−exp(time_decay + D2 tanh(D1 x_w)))
//! y = rᵀ (diag(time_faaaa) k vᵀ + S)   S ← diag(decay) S + k vᵀ, for each head
//! out = O (GroupNorm(y) ⊙ g)
//! ```
//!
//! Channel mix: `x_k = x + d ⊙ maa_k`, `x_r = x + d ⊙ maa_r`, `σ(R x_r) ⊙ V relu(K x_k)²`.

use super::recurrence::{Decayed, GroupNorm, Reader, Shifted, keep, states};
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
pub(super) struct Rwkv6 {
    mixer_norm: Norm,
    maa_x: Vector,
    /// Of w, k, v, r, g.
    maa: [Vector; 5],
    maa_down: Slot,
    maa_up: [Slot; 5],
    decay: Vector,
    decay_down: Slot,
    decay_up: Slot,
    bonus: Vector,
    r: Slot,
    k: Slot,
    v: Slot,
    g: Slot,
    o: Slot,
    heads_norm: GroupNorm,
    channel_norm: Norm,
    channel_maa_k: Vector,
    channel_maa_r: Vector,
    channel_k: Slot,
    channel_r: Slot,
    channel_v: Slot,
}

impl Rwkv6 {
    pub(super) fn load(loader: &Loader<'_>, config: &Config, layer: usize) -> Result<Self, Error> {
        let reader = Reader::new(loader, config, layer, &["att.time_maa_w1", "att.time_decay_w1"]);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let square = |part: &str, role| reader.slot(part, role, [hidden, hidden]);
        let norm = |part: &str| Norm::layer(loader, &reader.at(part), hidden, config.norm_eps);
        let five = reader.rank("att.time_maa_w1")?;
        if !five.is_multiple_of(5) {
            let (name, found) = (reader.at("att.time_maa_w1"), vec![hidden, five]);
            return Err(Error::WeightShape { name, expected: vec![hidden, five / 5 * 5], found });
        }
        let rank = reader.rank("att.time_decay_w1")?;
        Ok(Self {
            mixer_norm: norm("ln1")?,
            maa_x: reader.vector("att.time_maa_x", hidden)?,
            maa: reader.multipliers("att.time_maa_", ["w", "k", "v", "r", "g"], "att.time_maa_wkvrg")?,
            maa_down: reader.low_rank("att.time_maa_w1", [five, hidden])?,
            maa_up: reader.stacked("att.time_maa_w2", [hidden, five / 5])?,
            decay: reader.vector("att.time_decay", hidden)?,
            decay_down: reader.low_rank("att.time_decay_w1", [rank, hidden])?,
            decay_up: reader.low_rank("att.time_decay_w2", [hidden, rank])?,
            bonus: reader.vector("att.time_faaaa", hidden)?,
            r: square("att.receptance", Role::Mixer)?,
            k: square("att.key", Role::Mixer)?,
            v: square("att.value", Role::Mixer)?,
            g: square("att.gate", Role::Mixer)?,
            o: square("att.output", Role::Mixer)?,
            heads_norm: GroupNorm::load(&reader, "att.ln_x")?,
            channel_norm: norm("ln2")?,
            channel_maa_k: reader.vector("ffn.time_maa_k", hidden)?,
            channel_maa_r: reader.vector("ffn.time_maa_r", hidden)?,
            channel_k: reader.slot("ffn.key", Role::FeedForward, [inner, hidden])?,
            channel_r: square("ffn.receptance", Role::FeedForward)?,
            channel_v: reader.slot("ffn.value", Role::FeedForward, [hidden, inner])?,
        })
    }

    fn time_mix(&self, x: &Rows, states: &mut [RecurrentState], pass: &mut Pass<'_>) -> Result<Rows, Error> {
        let (width, size) = (pass.config.hidden_size, pass.config.head_dim);
        let shifted = Shifted::new(x, pass, states.iter_mut().map(|state| &mut state.mixer_shift))?;
        let more = self.data_dependent(&shifted, pass)?;
        let [maa_w, maa_k, maa_v, maa_r, maa_g] = &self.maa;
        let [more_w, more_k, more_v, more_r, more_g] = &more;

        let x_w = shifted.mix_more(maa_w, more_w, pass)?;
        let mut inner = self.decay_down.forward(&x_w, again(&mut pass.observer))?;
        inner.update(|x| x.iter_mut().for_each(|x| *x = x.tanh()))?;
        let mut decay = self.decay_up.forward(&inner, again(&mut pass.observer))?;
        decay.update(|w| {
            for row in w.chunks_exact_mut(width) {
                row.iter_mut().zip(self.decay.values()).for_each(|(w, base)| *w = (-(base + *w).exp()).exp());
            }
        })?;
        let k = self.k.forward(&shifted.mix_more(maa_k, more_k, pass)?, again(&mut pass.observer))?;
        let v = self.v.forward(&shifted.mix_more(maa_v, more_v, pass)?, again(&mut pass.observer))?;
        let r = self.r.forward(&shifted.mix_more(maa_r, more_r, pass)?, again(&mut pass.observer))?;
        let g = self.g.forward(&shifted.mix_more(maa_g, more_g, pass)?, again(&mut pass.observer))?;

        let [r, decay, k, v] = [&r, &decay, &k, &v].map(|rows| rows.read(<[f32]>::to_vec));
        let (r, decay, k, v) = (r?, decay?, k?, v?);
        let mut out = Vec::with_capacity(k.len());
        for (text, state) in pass.texts.iter().zip(states) {
            let part = text.rows.start * width..text.rows.end * width;
            let decayed = Decayed {
                r: &r[part.clone()],
                decay: &decay[part.clone()],
                k: &k[part.clone()],
                v: &v[part],
                bonus: self.bonus.values(),
            };
            out.extend(decayed.run(&mut state.matrices, width, size));
        }
        self.heads_norm.apply(&mut out, size);
        g.read(|g| out.iter_mut().zip(g).for_each(|(out, g)| *out *= g * ops::logistic(*g)))?;
        self.o.forward(&Rows::new(out, width)?, again(&mut pass.observer))
    }

    /// What is added to the five multipliers for each token.
    fn data_dependent(&self, shifted: &Shifted, pass: &mut Pass<'_>) -> Result<[Rows; 5], Error> {
        let mut inner = self.maa_down.forward(&shifted.mix(&self.maa_x, pass)?, again(&mut pass.observer))?;
        inner.update(|x| x.iter_mut().for_each(|x| *x = x.tanh()))?;
        let rank = inner.width() / 5;
        let mut part = |index: usize| {
            let columns = inner.read(|x| {
                x.chunks_exact(5 * rank).flat_map(|row| row[index * rank..(index + 1) * rank].iter().copied()).collect()
            })?;
            self.maa_up[index].forward(&Rows::new(columns, rank)?, again(&mut pass.observer))
        };
        Ok([part(0)?, part(1)?, part(2)?, part(3)?, part(4)?])
    }

    fn channel_mix(&self, x: &Rows, states: &mut [RecurrentState], pass: &mut Pass<'_>) -> Result<Rows, Error> {
        let shifted = Shifted::new(x, pass, states.iter_mut().map(|state| &mut state.channel_shift))?;
        let x_k = shifted.mix(&self.channel_maa_k, pass)?;
        let mut inner = self.channel_k.forward(&x_k, again(&mut pass.observer))?;
        inner.update(ops::squared_relu)?;
        let mut out = self.channel_v.forward(&inner, again(&mut pass.observer))?;
        let x_r = shifted.mix(&self.channel_maa_r, pass)?;
        let gate = self.channel_r.forward(&x_r, again(&mut pass.observer))?;
        out.update_with(&gate, |out, gate| out.iter_mut().zip(gate).for_each(|(out, g)| *out *= ops::logistic(*g)))?;
        Ok(out)
    }
}

impl Parts for Rwkv6 {
    fn groups(&self) -> Vec<Vec<&Slot>> {
        let mut groups = vec![vec![&self.maa_down]];
        groups.extend(self.maa_up.iter().map(|up| vec![up]));
        let own = [&self.decay_down, &self.decay_up, &self.k, &self.v, &self.r, &self.g, &self.o];
        groups.extend(own.map(|slot| vec![slot]));
        groups.extend([&self.channel_k, &self.channel_v, &self.channel_r].map(|slot| vec![slot]));
        groups
    }

    fn slots_mut(&mut self) -> Vec<&mut Slot> {
        let mut slots = vec![&mut self.maa_down];
        slots.extend(&mut self.maa_up);
        slots.extend([&mut self.decay_down, &mut self.decay_up, &mut self.k, &mut self.v, &mut self.r]);
        slots.extend([&mut self.g, &mut self.o, &mut self.channel_k, &mut self.channel_v, &mut self.channel_r]);
        slots
    }

    fn vectors(&self) -> Vec<&Vector> {
        let mut vectors = self.mixer_norm.vectors();
        vectors.extend([&self.decay, &self.bonus, &self.heads_norm.gain, &self.heads_norm.offset]);
        vectors.extend(self.channel_norm.vectors());
        vectors
    }

    fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        let mut vectors = self.mixer_norm.vectors_mut();
        vectors.extend([&mut self.decay, &mut self.bonus, &mut self.heads_norm.gain, &mut self.heads_norm.offset]);
        vectors.extend(self.channel_norm.vectors_mut());
        vectors
    }

    fn multipliers(&self) -> Vec<&Vector> {
        let (first, last) = ([&self.maa_x], [&self.channel_maa_k, &self.channel_maa_r]);
        first.into_iter().chain(&self.maa).chain(last).collect()
    }

    fn multipliers_mut(&mut self) -> Vec<&mut Vector> {
        let (first, last) = ([&mut self.maa_x], [&mut self.channel_maa_k, &mut self.channel_maa_r]);
        first.into_iter().chain(&mut self.maa).chain(last).collect()
    }

    fn links(&self, site: OutlierSite, _config: &Config) -> Vec<Link> {
        match site {
            OutlierSite::Norms => {
                let readers = [&self.maa_down, &self.decay_down, &self.k, &self.v, &self.r, &self.g];
                vec![
                    Link::from_norm(&self.mixer_norm.vectors(), &readers),
                    Link::from_norm(&self.channel_norm.vectors(), &[&self.channel_k, &self.channel_r]),
                ]
            }
            OutlierSite::Inner => vec![Link::between(&self.channel_k, &self.channel_v, 2)],
            OutlierSite::Values | OutlierSite::Keys => Vec::new(),
        }
    }

    fn forward(&self, x: &Stream, pass: &mut Pass<'_>) -> Result<Stream, Error> {
        let mut states = states(pass)?;
        let mut middle = self.time_mix(&self.mixer_norm.of(x.rows())?, &mut states, pass)?;
        middle.update_with(x.rows(), ops::add)?;
        let mut out = self.channel_mix(&self.channel_norm.of(&middle)?, &mut states, pass)?;
        out.update_with(&middle, ops::add)?;
        keep(pass, states)?;
        Ok(x.with_rows(out))
    }
}

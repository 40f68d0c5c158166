//! A mixture of experts in the place of a feed-forward block.

use super::mlp::Mlp;
use super::{Pass, again};
use crate::config::Mixture;
use crate::loader::Loader;
use crate::ops::{self, Rows};
use crate::route::{self, Choices, Routing};
use crate::slot::{self, Origin, Role, Slot, Weight};
use crate::{Config, Error};
use quant_core::{Group, grouped_matmul};

#[derive(Clone, Debug)]
pub(super) struct Experts {
    router: Slot,
    experts: Vec<Mlp>,
    shared: Option<Mlp>,
    shared_gate: Option<Slot>,
    top_k: usize,
    renormalize: bool,
}

/// The experts that tokens were sent to.
struct Choice {
    ids: Vec<usize>,
    gates: Vec<f32>,
}

impl Experts {
    /// Reads the mixture of the layer `name`.
    ///
    /// Experts lie in a tensor each, or stacked in two tensors `experts.gate_up_proj` `[experts, 2 · inner, hidden]` and
    /// `experts.down_proj` `[experts, hidden, inner]`, as transformers 5 holds them.
    pub(super) fn load(loader: &Loader<'_>, config: &Config, mixture: &Mixture, layer: &str) -> Result<Self, Error> {
        let hidden = config.hidden_size;
        let old = format!("{layer}.block_sparse_moe");
        let mixtral = loader.has(&format!("{old}.gate.weight"));
        let (name, parts) = match mixtral {
            true => (old, ["w1", "w3", "w2"]),
            false => (format!("{layer}.mlp"), Mlp::PARTS),
        };
        let at = |part: &str| format!("{name}.{part}");
        let router = loader.slot(at("gate"), Role::Router, [mixture.experts, hidden], false)?;
        let apart = loader.has(&at(&format!("experts.0.{}.weight", parts[0])));
        let experts = if !apart && loader.has(&at("experts.gate_up_proj")) {
            stacked(loader, config, mixture, &at("experts"))?
        } else {
            let expert = |index: usize| {
                let name = at(&format!("experts.{index}"));
                Mlp::load(loader, config, Role::Expert(index), &name, parts, mixture.expert_size)
            };
            (0..mixture.experts).map(expert).collect::<Result<_, _>>()?
        };
        let (mut shared, mut shared_gate) = (None, None);
        if let Some(expert) = mixture.shared {
            let name = at(if expert.gated { "shared_expert" } else { "shared_experts" });
            shared = Some(Mlp::load(loader, config, Role::SharedExpert, &name, Mlp::PARTS, expert.size)?);
            if expert.gated {
                shared_gate = Some(loader.slot(at("shared_expert_gate"), Role::Router, [1, hidden], false)?);
            }
        }
        Ok(Self { router, experts, shared, shared_gate, top_k: mixture.top_k, renormalize: mixture.renormalize })
    }

    pub(super) fn groups(&self) -> Vec<Vec<&Slot>> {
        let mut all = vec![&self.router];
        all.extend(&self.shared_gate);
        let mut groups = vec![all];
        if let Some(shared) = &self.shared {
            groups[0].extend([&shared.gate, &shared.up]);
            groups.push(vec![&shared.down]);
        }
        groups.extend(self.experts.iter().flat_map(Mlp::groups));
        groups
    }

    pub(super) fn slots_mut(&mut self) -> Vec<&mut Slot> {
        let mut slots = vec![&mut self.router];
        slots.extend(&mut self.shared_gate);
        slots.extend(self.shared.iter_mut().flat_map(Mlp::slots_mut));
        slots.extend(self.experts.iter_mut().flat_map(Mlp::slots_mut));
        slots
    }

    /// The linears that read the block's input.
    pub(super) fn readers(&self) -> Vec<&Slot> {
        let mut readers = vec![&self.router];
        readers.extend(&self.shared_gate);
        readers.extend(self.mlps().into_iter().flat_map(|mlp| [&mlp.gate, &mlp.up]));
        readers
    }

    /// The shared expert and the others.
    pub(super) fn mlps(&self) -> Vec<&Mlp> {
        self.shared.iter().chain(&self.experts).collect()
    }

    pub(super) fn forward(&self, x: &Rows, pass: &mut Pass<'_>) -> Result<Rows, Error> {
        let choice = self.choose(x, pass)?;
        let shared = self.shared(x, pass)?;
        let tokens: Vec<_> = (0..self.experts.len()).map(|expert| choice.tokens_of(expert, self.top_k)).collect();
        let together = if pass.observer.is_none() { self.together(x, &tokens, pass.config)? } else { None };
        let out = match together {
            Some(out) => out,
            None => self.apart(x, &tokens, pass)?,
        };
        let mut out = Rows::new(out, x.width())?;
        if let Some(shared) = shared {
            out.update_with(&shared, ops::add)?;
        }
        Ok(out)
    }

    /// The experts one after the other.
    fn apart(&self, x: &Rows, tokens: &[Vec<(usize, f32)>], pass: &mut Pass<'_>) -> Result<Vec<f32>, Error> {
        let mut out = vec![0.0; x.rows() * x.width()];
        for (expert, tokens) in self.experts.iter().zip(tokens).filter(|(_, tokens)| !tokens.is_empty()) {
            let y = expert.forward(&gather(x, tokens)?, pass)?;
            y.read(|y| scatter(&mut out, y, tokens, x.width()))?;
        }
        Ok(out)
    }

    /// The same bits in three products of all experts, where their weights are applied compressed.
    fn together(&self, x: &Rows, tokens: &[Vec<(usize, f32)>], config: &Config) -> Result<Option<Vec<f32>>, Error> {
        let product = |part: fn(&Mlp) -> &Slot, x: &Rows| -> Result<Option<Rows>, Error> {
            let mut groups = Vec::with_capacity(self.experts.len());
            for (expert, tokens) in self.experts.iter().zip(tokens) {
                let Some(weight) = part(expert).direct() else { return Ok(None) };
                groups.push(Group { weight, rows: tokens.len() });
            }
            let Some(first) = self.experts.first() else { return Ok(None) };
            let (name, width) = (part(first).name(), part(first).shape()[0]);
            let mut y = vec![0.0; x.rows() * width];
            let done = x.read(|x| grouped_matmul(&groups, x, &mut y))?;
            done.map_err(|source| Error::Linear { name: name.to_owned(), source })?;
            Rows::new(y, width).map(Some)
        };
        let direct = |expert: &Mlp| [&expert.gate, &expert.up, &expert.down].iter().all(|slot| slot.direct().is_some());
        if x.rows() == 0 || !self.experts.iter().all(direct) {
            return Ok(None);
        }
        let sorted = gather(x, &tokens.concat())?;
        let (Some(mut gate), Some(up)) = (product(|mlp| &mlp.gate, &sorted)?, product(|mlp| &mlp.up, &sorted)?) else {
            return Ok(None);
        };
        gate.update_with(&up, |gate, up| ops::gated(config.activation, gate, up))?;
        let Some(y) = product(|mlp| &mlp.down, &gate)? else { return Ok(None) };
        let mut out = vec![0.0; x.rows() * x.width()];
        y.read(|y| scatter(&mut out, y, &tokens.concat(), x.width()))?;
        Ok(Some(out))
    }

    fn choose(&self, x: &Rows, pass: &mut Pass<'_>) -> Result<Choice, Error> {
        let logits = self.router.forward(x, again(&mut pass.observer))?;
        let (mut ids, mut gates) = (Vec::new(), Vec::new());
        logits.read(|logits| {
            for row in logits.chunks_exact(self.experts.len()) {
                route::choose(row, self.top_k, self.renormalize, &mut ids, &mut gates);
            }
            if let Some(observer) = again(&mut pass.observer) {
                let (experts, top_k) = (self.experts.len(), self.top_k);
                let (ids, gates) = (ids.as_mut_slice(), gates.as_mut_slice());
                observer.choices(&mut Choices { layer: pass.layer, experts, top_k, ids, gates });
                observer.routing(&Routing { layer: pass.layer, experts, top_k, logits, ids, gates });
            }
        })?;
        Ok(Choice { ids, gates })
    }

    fn shared(&self, x: &Rows, pass: &mut Pass<'_>) -> Result<Option<Rows>, Error> {
        let Some(shared) = &self.shared else {
            return Ok(None);
        };
        let gate = match &self.shared_gate {
            Some(gate) => Some(gate.forward(x, again(&mut pass.observer))?),
            None => None,
        };
        let mut y = shared.forward(x, pass)?;
        if let Some(gate) = gate {
            let width = y.width();
            gate.read(|gates| {
                y.update(|y| {
                    ops::for_rows(y, width, |row, y| {
                        let gate = ops::logistic(gates[row]);
                        y.iter_mut().for_each(|y| *y *= gate);
                    });
                })
            })??;
        }
        Ok(Some(y))
    }
}

impl Choice {
    fn tokens_of(&self, expert: usize, top_k: usize) -> Vec<(usize, f32)> {
        let chosen = self.ids.iter().zip(&self.gates).enumerate();
        chosen.filter(|(_, (id, _))| **id == expert).map(|(place, (_, gate))| (place / top_k, *gate)).collect()
    }
}

/// The rows of some tokens, one after the other.
fn gather(x: &Rows, tokens: &[(usize, f32)]) -> Result<Rows, Error> {
    let width = x.width();
    let rows = x.read(|x| {
        let mut rows = Vec::with_capacity(tokens.len() * width);
        tokens.iter().for_each(|(token, _)| rows.extend_from_slice(&x[token * width..(token + 1) * width]));
        rows
    })?;
    Rows::new(rows, width)
}

/// Adds rows, each times its gate, to the tokens they belong to.
fn scatter(out: &mut [f32], y: &[f32], tokens: &[(usize, f32)], width: usize) {
    for ((token, gate), y) in tokens.iter().zip(y.chunks_exact(width)) {
        let out = &mut out[token * width..(token + 1) * width];
        out.iter_mut().zip(y).for_each(|(out, y)| *out += gate * y);
    }
}

/// Cuts experts out of two stacked tensors.
fn stacked(loader: &Loader<'_>, config: &Config, mixture: &Mixture, name: &str) -> Result<Vec<Mlp>, Error> {
    let (hidden, inner) = (config.hidden_size, mixture.expert_size);
    let (gate_up, down) = (format!("{name}.gate_up_proj"), format!("{name}.down_proj"));
    let gate_up_values = loader.read(&gate_up, &[mixture.experts, 2 * inner, hidden])?;
    let down_values = loader.read(&down, &[mixture.experts, hidden, inner])?;
    let cut = |index: usize, part: &str, tensor: &str, values: &[f32], first: usize, shape: [usize; 2]| {
        let name = format!("{name}.{index}.{part}");
        let values = values[first * shape[1]..(first + shape[0]) * shape[1]].to_vec();
        let weight = Weight::Dense(slot::dense(&name, values, shape)?);
        let origin = Origin { tensor: tensor.to_owned(), rows: first..first + shape[0], transposed: false };
        Ok::<Slot, Error>(Slot::new(name, Role::Expert(index), shape, weight, None, origin))
    };
    let expert = |index: usize| {
        let first = index * 2 * inner;
        Ok(Mlp {
            gate: cut(index, "gate_proj", &gate_up, &gate_up_values, first, [inner, hidden])?,
            up: cut(index, "up_proj", &gate_up, &gate_up_values, first + inner, [inner, hidden])?,
            down: cut(index, "down_proj", &down, &down_values, index * hidden, [hidden, inner])?,
        })
    };
    (0..mixture.experts).map(expert).collect()
}

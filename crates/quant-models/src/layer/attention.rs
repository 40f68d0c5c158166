//! Self-attention with rotary positions and grouped heads.

use super::attend::Attend;
use super::{End, Link, Pass, Place, again};
use crate::kv::{KvRows, KvStep};
use crate::loader::Loader;
use crate::norm::Norm;
use crate::observe::KeyValues;
use crate::ops::{self, Rows};
use crate::slot::{Role, Slot};
use crate::vector::Vector;
use crate::{Config, Error, KvState};

#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub(super) q: Slot,
    pub(super) k: Slot,
    pub(super) v: Slot,
    pub(super) o: Slot,
    pub(super) q_norm: Option<Norm>,
    pub(super) k_norm: Option<Norm>,
}

impl Attention {
    pub(super) fn load(loader: &Loader<'_>, config: &Config, name: &str) -> Result<Self, Error> {
        let hidden = config.hidden_size;
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let slot = |part: &str, shape, bias| loader.slot(format!("{name}.{part}"), Role::Mixer, shape, bias);
        let head_norm = |part: &str| match config.qk_norm {
            true => Norm::rms(loader, &format!("{name}.{part}"), config.head_dim, config.norm_eps).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            q: slot("q_proj", [queries, hidden], config.qkv_bias)?,
            k: slot("k_proj", [keys, hidden], config.qkv_bias)?,
            v: slot("v_proj", [keys, hidden], config.qkv_bias)?,
            o: slot("o_proj", [hidden, queries], config.output_bias)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
        })
    }

    pub(super) fn groups(&self) -> Vec<Vec<&Slot>> {
        vec![vec![&self.q, &self.k, &self.v], vec![&self.o]]
    }

    pub(super) fn slots_mut(&mut self) -> Vec<&mut Slot> {
        vec![&mut self.q, &mut self.k, &mut self.v, &mut self.o]
    }

    pub(super) fn vectors(&self) -> Vec<&Vector> {
        [&self.q_norm, &self.k_norm].into_iter().flatten().flat_map(Norm::vectors).collect()
    }

    pub(super) fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        [&mut self.q_norm, &mut self.k_norm].into_iter().flatten().flat_map(Norm::vectors_mut).collect()
    }

    /// The linears that read the input.
    pub(super) fn readers(&self) -> Vec<&Slot> {
        vec![&self.q, &self.k, &self.v]
    }

    /// From each element of a value head to all query heads that read it.
    pub(super) fn value_link(&self, config: &Config) -> Link {
        let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
        let readers = |channel: usize| {
            let (head, element) = (channel / dim, channel % dim);
            (0..group).map(|reader| (head * group + reader) * dim + element).collect()
        };
        Link {
            channels: config.kv_heads * dim,
            raised: vec![End::output(&self.v)],
            lowered: vec![End::input(&self.o).at((0..config.kv_heads * dim).map(readers).collect())],
            power: 1,
        }
    }

    /// From the elements of a key head that the rotary turn mixes to all query heads that are multiplied with it.
    pub(super) fn key_link(&self, config: &Config) -> Link {
        let (dim, group, pairs) = (config.head_dim, config.heads / config.kv_heads, config.rope.rotary_dim / 2);
        let channels = dim - pairs; // a pair, or an element that is not turned
        let elements = |channel: usize| match channel < pairs {
            true => vec![channel, channel + pairs],
            false => vec![channel + pairs],
        };
        if let (Some(q), Some(k)) = (&self.q_norm, &self.k_norm) {
            let gains = |norm: &Norm| {
                let all: Vec<Vec<usize>> = (0..channels).map(elements).collect();
                norm.vectors().into_iter().map(|vector| End::vector(vector).at(all.clone())).collect()
            };
            return Link { channels, raised: gains(k), lowered: gains(q), power: 1 };
        }
        let of = |head: usize, channel: usize| elements(channel).into_iter().map(move |element| head * dim + element);
        let all = || (0..config.kv_heads * channels).map(|channel| (channel / channels, channel % channels));
        let keys = all().map(|(head, channel)| of(head, channel).collect()).collect();
        let queries = |(head, channel): (usize, usize)| {
            (head * group..(head + 1) * group).flat_map(|reader| of(reader, channel)).collect()
        };
        Link {
            channels: config.kv_heads * channels,
            raised: vec![End::output(&self.k).at(keys)],
            lowered: vec![End::output(&self.q).at(all().map(queries).collect())],
            power: 1,
        }
    }

    /// Mixes the tokens of each text of the pass.
    pub(super) fn forward(&self, x: &Rows, pass: &mut Pass<'_>) -> Result<Rows, Error> {
        let config = pass.config;
        let mut q = self.q.forward(x, again(&mut pass.observer))?;
        let mut k = self.k.forward(x, again(&mut pass.observer))?;
        let v = self.v.forward(x, again(&mut pass.observer))?;
        for (heads, norm) in [(&mut q, &self.q_norm), (&mut k, &self.k_norm)] {
            if let Some(norm) = norm {
                heads.update(|x| norm.apply(x))?;
            }
        }
        let before = pass.observer.is_some().then(|| k.read(<[f32]>::to_vec)).transpose()?;
        for heads in [&mut q, &mut k] {
            turn(heads, config.head_dim, pass.texts)?;
        }
        if let Some(before) = before {
            observe(pass, &before, &k, &v)?;
        }
        let geometry = config.kv_geometry();
        let attend = Attend { geometry, window: config.windows.get(pass.layer).copied().flatten() };
        let mut out = Vec::with_capacity(q.rows() * q.width());
        for Place { rows, .. } in pass.texts {
            let (q, k, v) = (q.part(rows.clone())?, k.part(rows.clone())?, v.part(rows.clone())?);
            match &mut pass.memory {
                None => attend.fresh(q.tensor(), k.tensor(), v.tensor(), &mut out)?,
                Some(memory) if memory.attends(pass.layer) => q.read(|queries| {
                    k.read(|keys| {
                        v.read(|values| {
                            let tokens = Tokens { queries, keys, values };
                            attend_by_cache(memory, pass.layer, &attend, tokens, &mut out)
                        })
                    })
                })????,
                Some(memory) => k.read(|keys| {
                    v.read(|values| {
                        let past = memory.append(pass.layer, geometry, KvRows { keys, values })?;
                        attend.cached(q.tensor(), past, &mut out)
                    })
                })???,
            }
        }
        let mixed = Rows::new(out, config.heads * config.head_dim)?;
        self.o.forward(&mixed, again(&mut pass.observer))
    }
}

/// Queries, keys and values of consecutive tokens.
struct Tokens<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
}

/// Gives tokens one after the other to a cache that computes attention itself.
fn attend_by_cache(
    memory: &mut KvState,
    layer: usize,
    attend: &Attend,
    tokens: Tokens<'_>,
    out: &mut Vec<f32>,
) -> Result<(), Error> {
    let geometry = attend.geometry;
    let width = geometry.q_heads * geometry.dim_v;
    let queries = tokens.queries.chunks_exact(geometry.q_heads * geometry.dim_k);
    let keys = tokens.keys.chunks_exact(geometry.key_width());
    let values = tokens.values.chunks_exact(geometry.value_width());
    for (queries, (keys, values)) in queries.zip(keys.zip(values)) {
        let at = out.len();
        out.resize(at + width, 0.0);
        let step = KvStep { queries, new: KvRows { keys, values }, window: attend.window };
        memory.attend(layer, step, &mut out[at..])?;
    }
    Ok(())
}

/// Turns the heads of each token by its position.
fn turn(heads: &mut Rows, head_dim: usize, texts: &[Place]) -> Result<(), Error> {
    let width = heads.width();
    heads.update(|x| {
        for Place { rows, start, rope } in texts {
            let x = &mut x[rows.start * width..rows.end * width];
            ops::for_rows(x, width, |row, x| rope.turn(start + row, head_dim, x));
        }
    })
}

fn observe(pass: &mut Pass<'_>, before: &[f32], k: &Rows, v: &Rows) -> Result<(), Error> {
    let positions = pass.texts.iter().flat_map(|text| text.start..text.start + text.rows.len());
    let positions: Vec<usize> = positions.collect();
    let Some(observer) = again(&mut pass.observer) else {
        return Ok(());
    };
    k.read(|keys| {
        v.read(|values| {
            observer.key_values(&KeyValues {
                layer: pass.layer,
                geometry: pass.config.kv_geometry(),
                positions: &positions,
                keys_before_turn: before,
                keys,
                values,
            });
        })
    })?
}

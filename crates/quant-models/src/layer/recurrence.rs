//! The two recurrences of RWKV, and what both versions share.

use super::{Pass, again};
use crate::kv::RecurrentState;
use crate::loader::Loader;
use crate::ops::{self, Rows};
use crate::slot::{self, Origin, Role, Slot, Weight};
use crate::vector::Vector;
use crate::{Config, Error};
use rayon::prelude::*;

/// Reads the tensors of one layer under RWKV's own names.
pub(super) struct Reader<'a> {
    pub(super) loader: &'a Loader<'a>,
    pub(super) config: &'a Config,
    pub(super) layer: usize,
    input_major: bool,
}

impl<'a> Reader<'a> {
    /// `witnesses` are the low-rank tensors `[in = hidden, out]` whose shapes may tell how the layer stores them.
    pub(super) fn new(loader: &'a Loader<'a>, config: &'a Config, layer: usize, witnesses: &[&str]) -> Self {
        let hidden = config.hidden_size;
        let told = witnesses.iter().find_map(|part| {
            match *loader.source.shape(&format!("blocks.{layer}.{part}"))?.as_slice() {
                [inputs, outputs] if (inputs == hidden) != (outputs == hidden) => Some(inputs == hidden),
                _ => None,
            }
        });
        let input_major = told.unwrap_or(config.rwkv.is_none_or(|rwkv| rwkv.input_major));
        Self { loader, config, layer, input_major }
    }

    pub(super) fn at(&self, part: &str) -> String {
        format!("blocks.{}.{part}", self.layer)
    }

    pub(super) fn slot(&self, part: &str, role: Role, shape: [usize; 2]) -> Result<Slot, Error> {
        self.loader.slot(self.at(part), role, shape, false)
    }

    /// A vector stored in any shape of this many elements.
    pub(super) fn vector(&self, part: &str, len: usize) -> Result<Vector, Error> {
        let name = self.at(part);
        let shape = self.loader.shape(&name)?;
        if shape.iter().product::<usize>() != len {
            return Err(Error::WeightShape { name, expected: vec![len], found: shape });
        }
        let values = self.loader.source.tensor(&name)?;
        Vector::new(name, values)
    }

    /// Vectors of the layer's width, each in a tensor `prefix + part` or all rows of one tensor.
    pub(super) fn multipliers<const N: usize>(
        &self,
        prefix: &str,
        parts: [&str; N],
        stacked: &str,
    ) -> Result<[Vector; N], Error> {
        let hidden = self.config.hidden_size;
        let first = self.at(&format!("{prefix}{}", parts[0]));
        let stack = match self.loader.has(&first) || !self.loader.has(&self.at(stacked)) {
            true => None,
            false => Some(self.vector(stacked, N * hidden)?),
        };
        let mut out = Vec::with_capacity(N);
        for (index, part) in parts.iter().enumerate() {
            let name = format!("{prefix}{part}");
            out.push(match &stack {
                None => self.vector(&name, hidden)?,
                Some(stack) => Vector::new(self.at(&name), stack.values()[index * hidden..][..hidden].to_vec())?,
            });
        }
        out.try_into().map_err(|_| Error::MissingTensor { origin: self.loader.source.origin(), name: first })
    }

    /// The rank of a low-rank pair, from the shape of its first half `[hidden, rank]` or the transpose.
    pub(super) fn rank(&self, part: &str) -> Result<usize, Error> {
        let (name, hidden) = (self.at(part), self.config.hidden_size);
        let shape = self.loader.shape(&name)?;
        match *shape.as_slice() {
            [inputs, outputs] if inputs == hidden && (outputs != hidden || self.input_major) => Ok(outputs),
            [outputs, inputs] if inputs == hidden => Ok(outputs),
            _ => Err(Error::WeightShape { name, expected: vec![hidden, 0], found: shape }),
        }
    }

    /// Half of a low-rank pair, stored `[in, out]` or `[out, in]`.
    pub(super) fn low_rank(&self, part: &str, [outputs, inputs]: [usize; 2]) -> Result<Slot, Error> {
        let (name, shape) = (self.at(part), [outputs, inputs]);
        let found = self.loader.shape(&name)?;
        let transposed = match found.as_slice() {
            f if f == [inputs, outputs] && f == shape => self.input_major,
            f if f == [inputs, outputs] => true,
            f if f == shape => false,
            _ => return Err(Error::WeightShape { name, expected: shape.to_vec(), found }),
        };
        let weight = match self.loader.source.linear(&name)? {
            Some(linear) if !transposed => Weight::compressed(&name, shape, linear, self.loader.apply)?,
            _ => {
                let values = self.loader.source.tensor(&name)?;
                let values = if transposed { transpose(&values, inputs, outputs) } else { values };
                Weight::Dense(slot::dense(&name, values, shape)?)
            }
        };
        let origin = Origin { tensor: name.clone(), rows: 0..found[0], transposed };
        Ok(Slot::new(name, Role::LowRank, shape, weight, None, origin))
    }

    /// Second halves of pairs, stacked `[count, in, out]` or `[count, out, in]`, as slots `part.0`, `part.1`, ….
    pub(super) fn stacked<const N: usize>(
        &self,
        part: &str,
        [outputs, inputs]: [usize; 2],
    ) -> Result<[Slot; N], Error> {
        let (name, shape) = (self.at(part), [outputs, inputs]);
        let found = self.loader.shape(&name)?;
        let transposed = match found.as_slice() {
            f if f == [N, inputs, outputs] && inputs == outputs => self.input_major,
            f if f == [N, inputs, outputs] => true,
            f if f == [N, outputs, inputs] => false,
            _ => return Err(Error::WeightShape { name, expected: vec![N, inputs, outputs], found }),
        };
        let values = self.loader.source.tensor(&name)?;
        let mut out = Vec::with_capacity(N);
        for (index, values) in values.chunks_exact(inputs * outputs).enumerate() {
            let own = format!("{name}.{index}");
            let values = if transposed { transpose(values, inputs, outputs) } else { values.to_vec() };
            let weight = Weight::Dense(slot::dense(&own, values, shape)?);
            let rows = index * found[1]..(index + 1) * found[1];
            let origin = Origin { tensor: name.clone(), rows, transposed };
            out.push(Slot::new(own, Role::LowRank, shape, weight, None, origin));
        }
        out.try_into().map_err(|_| Error::WeightShape { name, expected: vec![N, inputs, outputs], found })
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// `x` and, for each token, how the token before it differs: `shift(x) − x`, with `carried` before the first.
pub(super) struct Shifted {
    pub(super) x: Vec<f32>,
    pub(super) difference: Vec<f32>,
    width: usize,
}

impl Shifted {
    /// Leaves the last token of each text in `carried`.
    pub(super) fn new<'a>(
        x: &Rows,
        pass: &Pass<'_>,
        carried: impl Iterator<Item = &'a mut Vec<f32>>,
    ) -> Result<Self, Error> {
        let width = x.width();
        let x = x.read(<[f32]>::to_vec)?;
        let mut difference = Vec::with_capacity(x.len());
        for (text, carried) in pass.texts.iter().zip(carried) {
            for row in x[text.rows.start * width..text.rows.end * width].chunks_exact(width) {
                difference.extend(carried.iter().zip(row).map(|(before, now)| before - now));
                carried.copy_from_slice(row);
            }
        }
        Ok(Self { x, difference, width })
    }

    /// `x + difference ⊙ multiplier`, and the input of a linear.
    pub(super) fn mix(&self, multiplier: &Vector, pass: &mut Pass<'_>) -> Result<Rows, Error> {
        observe(pass, multiplier, &self.difference);
        let mut mixed = self.x.clone();
        let rows = mixed.chunks_exact_mut(self.width).zip(self.difference.chunks_exact(self.width));
        for (mixed, difference) in rows {
            for ((x, d), m) in mixed.iter_mut().zip(difference).zip(multiplier.values()) {
                *x += d * m;
            }
        }
        Rows::new(mixed, self.width)
    }

    /// The same with an addition to the multiplier for each token (RWKV-6).
    pub(super) fn mix_more(&self, multiplier: &Vector, more: &Rows, pass: &mut Pass<'_>) -> Result<Rows, Error> {
        observe(pass, multiplier, &self.difference);
        let mut mixed = self.x.clone();
        more.read(|more| {
            let rows = mixed.chunks_exact_mut(self.width).zip(self.difference.chunks_exact(self.width));
            for ((mixed, difference), more) in rows.zip(more.chunks_exact(self.width)) {
                let factors = multiplier.values().iter().zip(more);
                mixed.iter_mut().zip(difference).zip(factors).for_each(|((x, d), (m, n))| *x += d * (m + n));
            }
        })?;
        Rows::new(mixed, self.width)
    }
}

/// Shows an observer what a multiplier is multiplied with.
pub(super) fn observe(pass: &mut Pass<'_>, multiplier: &Vector, input: &[f32]) {
    if let Some(observer) = again(&mut pass.observer) {
        observer.multiplied(multiplier.name(), multiplier.values().len(), input);
    }
}

/// The states of the texts of a pass: the memory's, or new ones.
pub(super) fn states(pass: &Pass<'_>) -> Result<Vec<RecurrentState>, Error> {
    match &pass.memory {
        Some(memory) => Ok(vec![memory.recurrent_state(pass.layer)?.clone()]),
        None => Ok(pass.texts.iter().map(|_| RecurrentState::new(pass.config)).collect()),
    }
}

/// Gives the memory its state back, now that nothing can fail any more.
pub(super) fn keep(pass: &mut Pass<'_>, states: Vec<RecurrentState>) -> Result<(), Error> {
    if let Some(memory) = &mut pass.memory {
        for (mut state, text) in states.into_iter().zip(pass.texts) {
            state.tokens += text.rows.len();
            *memory.recurrent_state_mut(pass.layer)? = state;
        }
    }
    Ok(())
}

/// What each head of RWKV-7 reads at each token, row-major `[tokens, heads · size]`.
pub(super) struct Delta<'a> {
    pub(super) r: &'a [f32],
    /// What the columns of the state are multiplied with.
    pub(super) decay: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    /// The unit key that is removed.
    pub(super) removal: &'a [f32],
    /// That key times the rate at which it is written back.
    pub(super) replacement: &'a [f32],
}

impl Delta<'_> {
    /// Runs `S ← S diag(decay) − (S removal) replacementᵀ + v kᵀ`, `y = S r` for each head over one text.
    pub(super) fn run(&self, state: &mut [f32], width: usize, size: usize) -> Vec<f32> {
        let tokens = self.r.len() / width;
        let head = |(head, state): (usize, &mut [f32])| {
            let mut out = Vec::with_capacity(tokens * size);
            for token in 0..tokens {
                let place = token * width + head * size..token * width + (head + 1) * size;
                let (r, w) = (&self.r[place.clone()], &self.decay[place.clone()]);
                let (k, v) = (&self.k[place.clone()], &self.v[place.clone()]);
                let (removal, replacement) = (&self.removal[place.clone()], &self.replacement[place]);
                for (row, v) in state.chunks_exact_mut(size).zip(v) {
                    let removed = ops::dot(row, removal);
                    for ((s, w), (b, k)) in row.iter_mut().zip(w).zip(replacement.iter().zip(k)) {
                        *s = *s * w - removed * b + v * k;
                    }
                    out.push(ops::dot(row, r));
                }
            }
            out
        };
        interleave(state.par_chunks_exact_mut(size * size).enumerate().map(head).collect(), tokens, size)
    }
}

/// What each head of RWKV-6 reads at each token, row-major `[tokens, heads · size]`.
pub(super) struct Decayed<'a> {
    pub(super) r: &'a [f32],
    pub(super) decay: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    /// What the present token's own product is multiplied with, `[heads · size]`.
    pub(super) bonus: &'a [f32],
}

impl Decayed<'_> {
    /// Runs `y = rᵀ (diag(bonus) k vᵀ + S)`, `S ← diag(decay) S + k vᵀ` for each head over one text.
    pub(super) fn run(&self, state: &mut [f32], width: usize, size: usize) -> Vec<f32> {
        let tokens = self.r.len() / width;
        let head = |(head, state): (usize, &mut [f32])| {
            let mut out = vec![0.0; tokens * size];
            let bonus = &self.bonus[head * size..(head + 1) * size];
            for (token, y) in out.chunks_exact_mut(size).enumerate() {
                let place = token * width + head * size..token * width + (head + 1) * size;
                let (r, w) = (&self.r[place.clone()], &self.decay[place.clone()]);
                let (k, v) = (&self.k[place.clone()], &self.v[place]);
                for (i, row) in state.chunks_exact_mut(size).enumerate() {
                    let (r, w, k, u) = (r[i], w[i], k[i], bonus[i]);
                    for ((s, v), y) in row.iter_mut().zip(v).zip(y.iter_mut()) {
                        let kv = k * v;
                        *y += r * (u * kv + *s);
                        *s = w * *s + kv;
                    }
                }
            }
            out
        };
        interleave(state.par_chunks_exact_mut(size * size).enumerate().map(head).collect(), tokens, size)
    }
}

/// `[heads][tokens, size]` to `[tokens, heads · size]`.
fn interleave(heads: Vec<Vec<f32>>, tokens: usize, size: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(heads.len() * tokens * size);
    for token in 0..tokens {
        heads.iter().for_each(|head| out.extend_from_slice(&head[token * size..(token + 1) * size]));
    }
    out
}

/// The norm over each head's output.
#[derive(Clone, Debug)]
pub(super) struct GroupNorm {
    pub(super) gain: Vector,
    pub(super) offset: Vector,
    pub(super) eps: f32,
}

impl GroupNorm {
    pub(super) fn load(reader: &Reader<'_>, part: &str) -> Result<Self, Error> {
        let hidden = reader.config.hidden_size;
        Ok(Self {
            gain: reader.vector(&format!("{part}.weight"), hidden)?,
            offset: reader.vector(&format!("{part}.bias"), hidden)?,
            eps: reader.config.rwkv.map_or(64e-5, |rwkv| rwkv.group_norm_eps),
        })
    }

    pub(super) fn apply(&self, x: &mut [f32], size: usize) {
        ops::for_rows(x, self.gain.values().len(), |_, row| {
            let weights = self.gain.values().chunks_exact(size).zip(self.offset.values().chunks_exact(size));
            for (head, (gain, offset)) in row.chunks_exact_mut(size).zip(weights) {
                ops::standardize(head, gain, offset, self.eps);
            }
        });
    }
}

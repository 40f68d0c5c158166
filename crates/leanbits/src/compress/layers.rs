//! Layer by layer: each one is changed and rounded on the activations that the rounded layers before it produce.
//!
//! 1. The layer is read, in the basis of the recipe; scales are moved between its tensors where the recipe says so.
//! 2. Stage by stage (query, key, value → output projection → gate, up → down) the inputs of its linears are gathered,
//!    the linears are rounded, and the rounded ones take their places.
//! 3. The rounded layer makes the activations that enter the next one, and they are saved.
//!
//! In memory at one time: one layer, the statistics of one stage, and the activations between two layers.

use super::calibration::Windows;
use super::fisher::Information;
use super::gather::{self, Batch};
use super::methods::{self, Group, Made, Unseen};
use super::multipliers;
use super::outcome::Outcome;
use super::run::Run;
use super::smooth;
use super::source::{Source, Working};
use super::stream::{Stream, round};
use super::structure::{LayerShape, SlotShape, Structure};
use super::wkvquant::{self, Ahead, Learned};
use crate::models::{Apply, Error as ModelError, Layer, Layers, Role, WeightSource};
use crate::plan::{Plan, PlannedTensor};
use crate::recipe::Recipe;
use crate::storage::{Section, into_model_error};
use crate::{Error, Progress, StorageLayout};
use moe_quant::UnseenExpert;
use quant_calib::{Needs, Statistics};
use quant_core::Linear;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tokens that are run through a layer together.
const BATCH_TOKENS: usize = 2048;

/// A job that works layer by layer.
pub(super) struct Job<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) plan: &'a Plan,
    pub(super) structure: &'a Structure,
    pub(super) windows: &'a Windows,
    pub(super) recipe: &'a Recipe,
    pub(super) layout: StorageLayout,
    pub(super) information: &'a Information,
}

impl Job<'_> {
    /// Writes every tensor that is missing.
    pub(super) fn write_all(&self, run: &mut Run<'_>, progress: &mut dyn Progress) -> Result<(), Error> {
        let mut stream = Stream::new(self.source, self.plan, self.layout);
        for tensor in self.plan.tensors.iter().filter(|tensor| tensor.layer().is_none()) {
            stream.write(run, tensor)?;
            progress.advance(tensor.source_bytes, &tensor.name);
        }
        let layers = Layers::new(self.structure.config.clone(), self, Apply::Decoded);
        let mut batches = embed(&layers, self.windows)?;
        let embedded = batches.clone();
        let mut first = 0;
        if let Some(state) = run.take_state() {
            first = state.layer();
            run.learned = wkvquant::from_flat(state.learned(), &self.structure.config)?;
            gather::restore(&mut batches, &state.into_rows())?;
        }
        let mut ahead = run.running.time(|| Ahead::new(self, &layers, embedded, first))?;
        for (index, shape) in self.structure.layers.iter().enumerate() {
            if index >= first {
                batches = self.layer(run, index, shape, &batches, ahead.as_mut(), progress)?;
                run.save_state(index + 1, &gather::rows(&batches)?)?;
            }
            for tensor in self.plan.tensors.iter().filter(|tensor| tensor.layer() == Some(index)) {
                progress.advance(tensor.source_bytes, &tensor.name);
            }
        }
        self.head(run, &layers, &batches, progress)
    }

    /// Rounds one layer; returns what enters the next.
    fn layer(
        &self,
        run: &mut Run<'_>,
        index: usize,
        shape: &LayerShape,
        batches: &[Batch],
        ahead: Option<&mut Ahead<'_>>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Batch>, Error> {
        let tensors = || self.plan.tensors.iter().filter(|tensor| tensor.layer() == Some(index));
        let mut working = run.io.time(|| Working::read(self.source, tensors()))?;
        let config = &self.structure.config;
        let load = |working: &Working<'_>| Layers::new(config.clone(), working, Apply::Decoded).layer(index);
        let mut layer = load(&working)?;
        let scaled = smooth::scale(self, &mut working, &layer, shape, batches, run)?;
        let mut whole = self.code_multipliers(run, &mut working, &layer, batches)?;
        whole.append(&mut self.round_whole(run, &mut working, index)?);
        if scaled || !whole.is_empty() {
            layer = load(&working)?;
        }
        let learned = match ahead {
            None => None,
            Some(ahead) => Some(run.running.time(|| ahead.learn(self, &layer, shape, batches, progress))?),
        };
        let mut parts = Parts::default();
        for stage in 0..shape.stages() {
            let slots: Vec<&SlotShape> = shape.slots.iter().filter(|slot| slot.stage == stage).collect();
            let part = gather::up_to(&layer, shape, stage)?;
            for (slot, made) in self.stage(run, &layer, &part, &slots, batches, learned.as_ref())? {
                layer.slot_mut(&slot.name)?.set_linear(Arc::from(made.weight.clone()), Apply::Decoded)?;
                parts.add(slot, made);
            }
            self.round_inputs(&mut layer, &slots)?;
        }
        for tensor in tensors() {
            let (sections, outcome) = match tensor.is_kept() {
                true => (working.kept(&tensor.name)?, Outcome::default()),
                false => {
                    let made = match whole.remove(&tensor.name) {
                        Some(made) => made,
                        None => parts.take(self.source, shape, tensor)?,
                    };
                    (Section::compressed(&tensor.name, &made.weight, self.layout)?, made.outcome)
                }
            };
            run.put(tensor, &sections, outcome)?;
        }
        self.source.checkpoint().release_pages();
        match learned {
            None => run.running.time(|| gather::forward(&layer, batches)),
            Some(learned) => {
                run.learned.push(learned.affine.clone());
                run.running.time(|| learned.forward(&layer, batches))
            }
        }
    }

    /// Codes the multipliers of a layer, and computes with what they became.
    fn code_multipliers(
        &self,
        run: &mut Run<'_>,
        working: &mut Working<'_>,
        layer: &Layer,
        batches: &[Batch],
    ) -> Result<BTreeMap<String, Made>, Error> {
        let of_layer =
            |tensor: &&PlannedTensor| tensor.layer() == Some(layer.index()) && !tensor.treatment.multipliers.is_empty();
        let tensors = self.plan.tensors.iter().filter(of_layer);
        let tensors: Vec<(&PlannedTensor, Vec<f32>)> =
            tensors.filter_map(|tensor| Some((tensor, working.values(&tensor.name)?.to_vec()))).collect();
        let made = run.running.time(|| multipliers::code(self.source.path(), layer, &tensors, batches))?;
        self.replace(working, &made)?;
        Ok(made)
    }

    /// Compresses tensors without a look at inputs that are no linears of their own, and computes with what they became.
    fn round_whole(
        &self,
        run: &mut Run<'_>,
        working: &mut Working<'_>,
        layer: usize,
    ) -> Result<BTreeMap<String, Made>, Error> {
        let mut rounded = BTreeMap::new();
        let is_whole =
            |tensor: &&PlannedTensor| tensor.treatment.whole && tensor.layer() == Some(layer) && !tensor.is_kept();
        for tensor in self.plan.tensors.iter().filter(is_whole) {
            if let Some(values) = working.values(&tensor.name) {
                let made = run.packing.time(|| round(self.source, tensor, values, None))?;
                rounded.insert(tensor.name.clone(), made);
            }
        }
        self.replace(working, &rounded)?;
        Ok(rounded)
    }

    /// Puts decoded values in the place of those that were compressed.
    fn replace(&self, working: &mut Working<'_>, made: &BTreeMap<String, Made>) -> Result<(), Error> {
        for (name, made) in made {
            let decoded = made.weight.to_dense().map_err(|source| Error::Tensor {
                file: self.source.path().to_owned(),
                tensor: name.clone(),
                source: Box::new(source),
            })?;
            if let Some(values) = working.change(name) {
                *values = decoded;
            }
        }
        Ok(())
    }

    /// Makes linears of quantized tensors round their inputs, if the recipe says so.
    fn round_inputs(&self, layer: &mut Layer, slots: &[&SlotShape]) -> Result<(), Error> {
        for slot in slots {
            let tensor = self.plan.get(&slot.origin.tensor);
            if tensor.is_some_and(|tensor| !tensor.is_kept()) {
                layer.slot_mut(&slot.name)?.set_input_format(self.recipe.activations)?;
            }
        }
        Ok(())
    }

    /// Rounds the linears of one stage; `part` is the layer as far as their inputs depend on it.
    fn stage<'s>(
        &self,
        run: &mut Run<'_>,
        layer: &Layer,
        part: &Layer,
        slots: &[&'s SlotShape],
        batches: &[Batch],
        learned: Option<&Learned>,
    ) -> Result<Vec<(&'s SlotShape, Made)>, Error> {
        let mut groups: BTreeMap<usize, Vec<(&SlotShape, &PlannedTensor)>> = BTreeMap::new();
        for &slot in slots {
            let planned = self.plan.get(&slot.origin.tensor);
            if let Some(tensor) = planned.filter(|tensor| !tensor.treatment.whole && !tensor.is_kept()) {
                groups.entry(slot.group).or_default().push((slot, tensor));
            }
        }
        let watched = groups.values().filter_map(|members| {
            let (slot, ..) = members.first()?;
            let methods = members.iter().map(|(_, tensor)| &tensor.treatment.method);
            let gate_power = self.recipe.calibration.gate_power;
            Some(methods::needs(methods).map(|needs| (slot.name.clone(), slot.shape[1], Needs { gate_power, ..needs })))
        });
        let watched = watched.collect::<Result<Vec<_>, Error>>()?;
        let statistics = run.running.time(|| gather::statistics(part, batches, &watched))?;
        run.packing.time(|| {
            let total = self.windows.report.tokens as u64;
            let all = self.all_experts(&groups, &statistics)?;
            let groups: Vec<_> = groups.into_values().zip(&statistics).collect();
            let quantize = |(members, statistics): (Vec<(&'s SlotShape, &PlannedTensor)>, &Statistics)| {
                let asked = members.iter().map(|(slot, tensor)| (slot.name.as_str(), *tensor));
                let unseen = match members.first().map(|(slot, _)| slot.role) {
                    Some(Role::Expert(expert)) => match self.recipe.calibration.unseen_experts {
                        UnseenExpert::Error => Unseen::Refuse(expert),
                        UnseenExpert::Rtn => Unseen::Nothing,
                        UnseenExpert::SharedHessian => all.as_ref().map_or(Unseen::Nothing, Unseen::All),
                    },
                    _ => Unseen::Nothing,
                };
                let group = Group::new(self.source.path(), statistics, unseen, self.information, total, asked)?;
                members
                    .into_par_iter()
                    .map(|(slot, tensor)| {
                        let weight = layer.slot(&slot.name)?.weight()?;
                        Ok((slot, group.make(slot, &weight, learned, tensor)?))
                    })
                    .collect::<Result<Vec<_>, Error>>()
            };
            let quantized: Result<Vec<_>, Error> = groups.into_par_iter().map(quantize).collect();
            Ok(quantized?.into_iter().flatten().collect())
        })
    }

    /// The inputs of all experts of a stage together, if experts that calibration did not reach are to fall back on them.
    fn all_experts(
        &self,
        groups: &BTreeMap<usize, Vec<(&SlotShape, &PlannedTensor)>>,
        statistics: &[Statistics],
    ) -> Result<Option<Statistics>, Error> {
        if self.recipe.calibration.unseen_experts != UnseenExpert::SharedHessian {
            return Ok(None);
        }
        let mut all: Option<Statistics> = None;
        for (members, statistics) in groups.values().zip(statistics) {
            let Some((slot, _)) = members.first().filter(|(slot, _)| matches!(slot.role, Role::Expert(_))) else {
                continue;
            };
            match &mut all {
                None => all = Some(statistics.clone()),
                Some(all) => {
                    let refused = |source| Error::Calibration { what: slot.name.clone(), source };
                    all.merge(statistics).map_err(refused)?;
                }
            }
        }
        Ok(all)
    }

    /// Writes the tensors that come after the last layer: a head that is rounded on what it reads.
    fn head(
        &self,
        run: &mut Run<'_>,
        layers: &Layers<'_>,
        batches: &[Batch],
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let last = self.structure.layers.len();
        for tensor in self.plan.tensors.iter().filter(|tensor| tensor.layer() == Some(last)) {
            if !tensor.is_kept() && !run.is_done(tensor) {
                let head = layers.head()?;
                let slot = SlotShape::of_head(head.slot());
                let needs = methods::needs([&tensor.treatment.method].into_iter())?;
                let statistics = run.running.time(|| gather::head(&head, batches, &needs))?;
                let made = run.packing.time(|| {
                    let total = self.windows.report.tokens as u64;
                    let asked = [(slot.name.as_str(), tensor)].into_iter();
                    let group =
                        Group::new(self.source.path(), &statistics, Unseen::Nothing, self.information, total, asked)?;
                    group.make(&slot, &head.slot().weight()?, None, tensor)
                })?;
                let sections = Section::compressed(&tensor.name, &made.weight, self.layout)?;
                run.put(tensor, &sections, made.outcome)?;
            }
            progress.advance(tensor.source_bytes, &tensor.name);
        }
        Ok(())
    }
}

/// What enters the first layer.
pub(super) fn embed(layers: &Layers<'_>, windows: &Windows) -> Result<Vec<Batch>, Error> {
    let embedding = layers.embedding()?;
    let mut first = 0;
    let batch = |texts: &[Vec<u32>]| {
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let batch = Batch { first_window: first, stream: embedding.stream(&texts)? };
        first += texts.len();
        Ok(batch)
    };
    windows.batches(BATCH_TOKENS).into_iter().map(batch).collect()
}

/// The ends of the model as they will be stored: what is kept is rounded to its type, an embedding that is quantized is
/// decoded.
impl WeightSource for Job<'_> {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let stored = || {
            let mut values = self.source.read(name)?;
            match self.plan.get(name) {
                Some(tensor) if !tensor.is_kept() && tensor.layer().is_none() => {
                    let made = round(self.source, tensor, &values, None)?;
                    made.weight.to_dense().map_err(|source| Error::Tensor {
                        file: self.source.path().to_owned(),
                        tensor: name.to_owned(),
                        source: Box::new(source),
                    })
                }
                Some(tensor) if tensor.is_kept() && self.source.changes(name) => {
                    self.source.round(name, &mut values)?;
                    Ok(values)
                }
                _ => Ok(values),
            }
        };
        stored().map_err(into_model_error)
    }

    fn linear(&self, _name: &str) -> Result<Option<Arc<dyn Linear>>, ModelError> {
        Ok(None)
    }
}

/// Compressed linears, until all those of a tensor are there.
#[derive(Default)]
struct Parts(BTreeMap<String, Made>);

impl Parts {
    fn add(&mut self, slot: &SlotShape, made: Made) {
        self.0.insert(slot.name.clone(), made);
    }

    /// The tensor that some linears are the rows of.
    fn take(&mut self, source: &Source<'_>, shape: &LayerShape, tensor: &PlannedTensor) -> Result<Made, Error> {
        let slots = shape.slots_of(&tensor.name);
        let mut parts: Vec<Made> = slots.iter().filter_map(|slot| self.0.remove(&slot.name)).collect();
        match (parts.len() == slots.len(), parts.len()) {
            (true, 1) => Ok(parts.remove(0)),
            (true, 2..) => methods::stack(source.path(), tensor, &parts),
            // The plan leaves tensors that are no linears to the other job.
            _ => Err(Error::Unsuitable {
                tensor: tensor.name.clone(),
                method: tensor.treatment.method.name(),
                reason: "it is no linear of a layer",
            }),
        }
    }
}

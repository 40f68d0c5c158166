//! Layer by layer: each one is changed and rounded on the activations that the rounded layers before it produce.
//!
//! 1. The layer is read, in the basis of the recipe; scales are moved between its tensors where the recipe says so.
//! 2. Stage by stage (query, key, value → output projection → gate, up → down) the inputs of its linears are gathered,
//!    the linears are rounded, and the rounded ones take their places.
//! 3. The rounded layer makes the activations that enter the next one, and they are saved.
//!
//! In memory at one time: one layer, the statistics of one stage, and the activations between two layers.

use super::calibration::Windows;
use super::gather::{self, Batch};
use super::methods::{self, Group};
use super::outcome::{Energy, Outcome};
use super::run::Run;
use super::smooth;
use super::source::{Source, Working, into_model_error};
use super::stream::{Stream, round};
use super::structure::{LayerShape, SlotShape, Structure};
use crate::models::{Apply, Error as ModelError, Layer, Layers, WeightSource};
use crate::plan::{Plan, PlannedTensor};
use crate::recipe::{Choice, Method, Recipe};
use crate::storage::Section;
use crate::{Error, Progress, StorageLayout};
use quant_calib::Statistics;
use quant_core::{Format, Linear, PackedTensor};
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
}

impl Job<'_> {
    /// Writes every tensor that is missing.
    pub(super) fn write_all(&self, run: &mut Run<'_>, progress: &mut dyn Progress) -> Result<(), Error> {
        let mut stream = Stream::new(self.source, self.plan, self.layout);
        for tensor in self.plan.tensors.iter().filter(|tensor| tensor.layer.is_none()) {
            stream.write(run, tensor)?;
            progress.advance(tensor.source_bytes, &tensor.name);
        }
        let layers = Layers::new(self.structure.config.clone(), self, Apply::Decoded);
        let mut batches = self.embed(&layers)?;
        let mut first = 0;
        if let Some(state) = run.take_state() {
            first = state.layer();
            gather::restore(&mut batches, &state.into_rows())?;
        }
        for (index, shape) in self.structure.layers.iter().enumerate() {
            if index >= first {
                batches = self.layer(run, index, shape, &batches)?;
                run.save_state(index + 1, &gather::rows(&batches)?)?;
            }
            for tensor in self.plan.tensors.iter().filter(|tensor| tensor.layer == Some(index)) {
                progress.advance(tensor.source_bytes, &tensor.name);
            }
        }
        self.head(run, &layers, &batches, progress)
    }

    fn embed(&self, layers: &Layers<'_>) -> Result<Vec<Batch>, Error> {
        let embedding = layers.embedding()?;
        let mut first = 0;
        let batch = |texts: &[Vec<u32>]| {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let batch = Batch { first_window: first, stream: embedding.stream(&texts)? };
            first += texts.len();
            Ok(batch)
        };
        self.windows.batches(BATCH_TOKENS).into_iter().map(batch).collect()
    }

    /// Rounds one layer; returns what enters the next.
    fn layer(
        &self,
        run: &mut Run<'_>,
        index: usize,
        shape: &LayerShape,
        batches: &[Batch],
    ) -> Result<Vec<Batch>, Error> {
        let tensors = || self.plan.tensors.iter().filter(|tensor| tensor.layer == Some(index));
        let mut working = run.io.time(|| Working::read(self.source, tensors()))?;
        let config = &self.structure.config;
        let load = |working: &Working<'_>| Layers::new(config.clone(), working, Apply::Decoded).layer(index);
        let mut layer = load(&working)?;
        let scaled = smooth::scale(self, &mut working, &layer, shape, batches, run)?;
        let mut whole = self.round_whole(run, &mut working, index)?;
        if scaled || !whole.is_empty() {
            layer = load(&working)?;
        }
        let mut parts = Parts::default();
        for stage in 0..shape.stages() {
            let slots: Vec<&SlotShape> = shape.slots.iter().filter(|slot| slot.stage == stage).collect();
            let part = gather::up_to(&layer, shape, stage)?;
            for (slot, quantized) in self.stage(run, &layer, &part, &slots, batches)? {
                let packed = Arc::new(quantized.packed.clone());
                layer.slot_mut(&slot.name)?.set_linear(packed, Apply::Decoded)?;
                parts.add(slot, quantized);
            }
            self.round_inputs(&mut layer, &slots)?;
        }
        for tensor in tensors() {
            let (sections, outcome) = match tensor.decision.choice {
                Choice::Keep => (working.kept(&tensor.name)?, Outcome::default()),
                Choice::Quantize(_) => {
                    let (packed, outcome) = match whole.remove(&tensor.name) {
                        Some(rounded) => (rounded.packed, rounded.outcome),
                        None => parts.take(self.source, shape, tensor)?,
                    };
                    (Section::packed(&tensor.name, &packed, self.layout)?, outcome)
                }
            };
            run.put(tensor, &sections, outcome)?;
        }
        self.source.checkpoint().release_pages();
        run.running.time(|| gather::forward(&layer, batches))
    }

    /// Rounds tensors to nearest that are no linears of their own, and computes with what they became.
    fn round_whole(
        &self,
        run: &mut Run<'_>,
        working: &mut Working<'_>,
        layer: usize,
    ) -> Result<BTreeMap<String, methods::Quantized>, Error> {
        let mut rounded = BTreeMap::new();
        for tensor in self.plan.tensors.iter().filter(|tensor| tensor.whole && tensor.layer == Some(layer)) {
            if let Choice::Quantize(format) = tensor.decision.choice
                && let Some(values) = working.change(&tensor.name)
            {
                let (packed, errors) = run.packing.time(|| round(self.source, tensor, values, format, None))?;
                packed.decode_into(values).map_err(|source| Error::Tensor {
                    file: self.source.path().to_owned(),
                    tensor: tensor.name.clone(),
                    source: Box::new(source),
                })?;
                let outcome = Outcome { weights: Some(Energy::of(&errors)), ..Outcome::default() };
                rounded.insert(tensor.name.clone(), methods::Quantized { packed, outcome });
            }
        }
        Ok(rounded)
    }

    /// Makes linears of quantized tensors round their inputs, if the recipe says so.
    fn round_inputs(&self, layer: &mut Layer, slots: &[&SlotShape]) -> Result<(), Error> {
        for slot in slots {
            let tensor = self.plan.get(&slot.origin.tensor);
            if tensor.is_some_and(|tensor| tensor.decision.choice != Choice::Keep) {
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
    ) -> Result<Vec<(&'s SlotShape, methods::Quantized)>, Error> {
        let mut groups: BTreeMap<usize, Vec<(&SlotShape, Format, &Method)>> = BTreeMap::new();
        for &slot in slots {
            let Some(tensor) = self.plan.get(&slot.origin.tensor).filter(|tensor| !tensor.whole) else { continue };
            if let Choice::Quantize(format) = tensor.decision.choice {
                groups.entry(slot.group).or_default().push((slot, format, &tensor.method));
            }
        }
        let watched = groups.values().filter_map(|members| {
            let (slot, ..) = members.first()?;
            let methods = members.iter().map(|(_, _, method)| *method);
            Some(methods::needs(methods).map(|needs| (slot.name.clone(), slot.shape[1], needs)))
        });
        let watched = watched.collect::<Result<Vec<_>, Error>>()?;
        let statistics = run.running.time(|| gather::statistics(part, batches, &watched))?;
        run.packing.time(|| {
            let total = self.windows.report.tokens as u64;
            let groups: Vec<_> = groups.into_values().zip(&statistics).collect();
            let quantize = |(members, statistics): (Vec<(&'s SlotShape, Format, &Method)>, &Statistics)| {
                let asked = members.iter().map(|(slot, format, method)| (slot.name.as_str(), *format, *method));
                let group = Group::new(self.source.path(), statistics, total, asked)?;
                members
                    .into_par_iter()
                    .map(|(slot, format, method)| {
                        let weight = layer.slot(&slot.name)?.weight()?;
                        Ok((slot, group.quantize(slot, &weight, format, method)?))
                    })
                    .collect::<Result<Vec<_>, Error>>()
            };
            let quantized: Result<Vec<_>, Error> = groups.into_par_iter().map(quantize).collect();
            Ok(quantized?.into_iter().flatten().collect())
        })
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
        for tensor in self.plan.tensors.iter().filter(|tensor| tensor.layer == Some(last)) {
            if let (Choice::Quantize(format), false) = (tensor.decision.choice, run.is_done(tensor)) {
                let head = layers.head()?;
                let slot = SlotShape::of_head(head.slot());
                let needs = methods::needs([&tensor.method].into_iter())?;
                let statistics = run.running.time(|| gather::head(&head, batches, &needs))?;
                let quantized = run.packing.time(|| {
                    let total = self.windows.report.tokens as u64;
                    let asked = [(slot.name.as_str(), format, &tensor.method)].into_iter();
                    let group = Group::new(self.source.path(), &statistics, total, asked)?;
                    group.quantize(&slot, &head.slot().weight()?, format, &tensor.method)
                })?;
                let sections = Section::packed(&tensor.name, &quantized.packed, self.layout)?;
                run.put(tensor, &sections, quantized.outcome)?;
            }
            progress.advance(tensor.source_bytes, &tensor.name);
        }
        Ok(())
    }
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
            match self.plan.get(name).map(|tensor| (tensor, tensor.decision.choice)) {
                Some((tensor, Choice::Quantize(format))) if tensor.layer.is_none() => {
                    Ok(round(self.source, tensor, &values, format, None)?.0.decode())
                }
                Some((_, Choice::Keep)) if self.source.changes(name) => {
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

/// Rounded linears, until all those of a tensor are there.
#[derive(Default)]
struct Parts(BTreeMap<String, methods::Quantized>);

impl Parts {
    fn add(&mut self, slot: &SlotShape, quantized: methods::Quantized) {
        self.0.insert(slot.name.clone(), quantized);
    }

    /// The tensor that some linears are the rows of.
    fn take(
        &mut self,
        source: &Source<'_>,
        shape: &LayerShape,
        tensor: &PlannedTensor,
    ) -> Result<(PackedTensor<'static>, Outcome), Error> {
        let slots = shape.slots_of(&tensor.name);
        let mut parts: Vec<methods::Quantized> = slots.iter().filter_map(|slot| self.0.remove(&slot.name)).collect();
        match (parts.len() == slots.len(), parts.len()) {
            (true, 1) => {
                let part = parts.remove(0);
                Ok((part.packed, part.outcome))
            }
            (true, 2..) => methods::stack(source.path(), tensor, &parts),
            // The plan leaves tensors that are no linears to the other job.
            _ => Err(Error::Unsuitable {
                tensor: tensor.name.clone(),
                method: tensor.method.name(),
                reason: "it is no linear of a layer",
            }),
        }
    }
}

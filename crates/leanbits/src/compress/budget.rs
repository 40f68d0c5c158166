//! Ranks under a budget: what each weight becomes is chosen for all of them together.
//!
//! 1. Run the original model over the calibration text, layer by layer, and gather what enters each linear.
//! 2. Build every plan of the menu for every weight, and measure its output error in closed form from the Gram matrix:
//!    whole, two factors, rounded with a correction.
//! 3. Take the plans whose relative errors add up to the least within the budget; exact.
//!
//! The weights themselves are made later, on what the compressed layers before them produce. An interrupted run chooses
//! anew, which gives the same plans.

use super::Source;
use super::calibration::Windows;
use super::fisher::Information;
use super::gather::{self, Batch};
use super::layers::embed;
use super::methods::{Refused, needs};
use super::structure::{LayerShape, SlotShape, Structure};
use crate::models::{Apply, Layer, Layers};
use crate::plan::Treatment;
use crate::recipe::{Choice, Corrected, Factoring, Method, Metric, Ranks, Recipe};
use crate::storage::Form;
use crate::{Error, Progress};
use low_rank::{Calibration, LayerOption, Menu, Plan, Size, Storage, allocate, options};
use quant_calib::Statistics;
use quant_core::{Format, Shaped};
use rayon::prelude::*;

/// A recipe whose ranks are chosen under a budget.
pub(super) struct Budget<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) structure: &'a Structure,
    pub(super) windows: &'a Windows,
    pub(super) recipe: &'a Recipe,
    pub(super) information: &'a Information,
}

/// A weight of the budget: its place among the tensors, and its plans.
struct Candidate {
    at: usize,
    elements: u64,
    options: Vec<LayerOption>,
}

impl Budget<'_> {
    /// Chooses the form of every tensor of the budget.
    pub(super) fn allocate(&self, treatments: &mut [Treatment], progress: &mut dyn Progress) -> Result<(), Error> {
        let source = self.source;
        let layers = Layers::new(self.structure.config.clone(), source, Apply::Decoded);
        let mut batches = embed(&layers, self.windows)?;
        let mut candidates = Vec::new();
        progress.begin("measuring plans", self.structure.layers.len() as u64);
        for (index, shape) in self.structure.layers.iter().enumerate() {
            let layer = layers.layer(index)?;
            candidates.extend(self.layer(&layer, shape, treatments, &batches)?);
            batches = gather::forward(&layer, &batches)?;
            progress.advance(1, &format!("layer {index}"));
        }
        progress.end();
        let elements: u64 = candidates.iter().map(|candidate| candidate.elements).sum();
        let bytes = match self.recipe.method.ranks() {
            Some(Ranks::Bytes(bytes)) => *bytes,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "bits were checked to be a positive number; the cast saturates"
            )]
            Some(Ranks::BitsPerWeight(bits)) => (bits / 8.0 * elements as f64) as u64,
            _ => return Ok(()),
        };
        let menus: Vec<Vec<LayerOption>> = candidates.iter().map(|candidate| candidate.options.clone()).collect();
        let refused = |source: low_rank::Error, tensor: &str| {
            Refused::from(source).at(self.source.path(), tensor, &self.recipe.method)
        };
        let chosen = allocate(&menus, bytes).map_err(|source| refused(source, "all linears"))?;
        for (candidate, plan) in candidates.iter().zip(chosen.plans) {
            if let Some(treatment) = treatments.get_mut(candidate.at) {
                apply(plan, treatment, &self.recipe.method)?;
            }
        }
        Ok(())
    }

    /// The plans of the linears of one layer.
    fn layer(
        &self,
        layer: &Layer,
        shape: &LayerShape,
        treatments: &[Treatment],
        batches: &[Batch],
    ) -> Result<Vec<Candidate>, Error> {
        let mut members: Vec<(usize, &SlotShape, Format)> = Vec::new();
        for (at, (entry, treatment)) in self.source.entries().iter().zip(treatments).enumerate() {
            if let (Choice::Quantize(format), true) = (treatment.decision.choice, treatment.method.has_budget())
                && let [slot] = shape.slots_of(&entry.name).as_slice()
            {
                members.push((at, slot, format));
            }
        }
        let needs = needs([&self.recipe.method].into_iter())?;
        let watched: Vec<_> =
            members.iter().map(|(_, slot, _)| (slot.name.clone(), slot.shape[1], needs.clone())).collect();
        let statistics = gather::statistics(layer, batches, &watched)?;
        let measure = |((at, slot, format), statistics): ((usize, &SlotShape, Format), &Statistics)| {
            let storage = Storage::Packed(format);
            let Some(Factoring { method, menu, .. }) = self.recipe.method.factoring(Size::Rank(1), storage) else {
                return Err(Refused::Unsuitable("it does not factor").at(
                    self.source.path(),
                    &slot.name,
                    &self.recipe.method,
                ));
            };
            let own = Menu { dense: vec![storage], factors: vec![storage], ..Menu::default() };
            let weight = layer.slot(&slot.name)?.weight()?;
            let known = Calibration { fisher: self.information.of(slot), ..Calibration::from(statistics) };
            let found = Shaped::new(&weight, &slot.shape)
                .map_err(low_rank::Error::from)
                .and_then(|weight| options(&weight, &method, &known, menu.unwrap_or(&own)));
            let options = found
                .map_err(|source| Refused::from(source).at(self.source.path(), &slot.name, &self.recipe.method))?;
            Ok(Candidate { at, elements: (slot.shape[0] * slot.shape[1]) as u64, options })
        };
        members.into_par_iter().zip(&statistics).map(measure).collect()
    }
}

/// Puts a plan into words of the job.
fn apply(plan: Plan, treatment: &mut Treatment, method: &Method) -> Result<(), Error> {
    let packed = |storage| match storage {
        Storage::Packed(format) => Ok(format),
        // A recipe with such a menu was refused.
        Storage::F32 => Err(Error::Unsuitable { tensor: String::new(), method: method.name(), reason: "f32 is kept" }),
    };
    match plan {
        Plan::Dense { storage } => {
            treatment.form = Some(Form::Packed(packed(storage)?));
            treatment.note = Some("whole, as the budget allows".to_owned());
        }
        Plan::LowRank { rank, storage } => treatment.form = Some(Form::LowRank { rank, factors: storage }),
        Plan::Corrected { base, rank, storage } => {
            treatment.form = Some(Form::Corrected { base: packed(base)?, rank, factors: storage });
            let metric = match method {
                Method::Svd(_) => Metric::Svd,
                Method::Asvd(_) => Metric::Asvd,
                _ => Metric::SvdLlm,
            };
            treatment.method =
                Method::Corrected(Corrected { base: Box::new(Method::Rtn), rank, factors: storage, metric });
        }
    }
    Ok(())
}

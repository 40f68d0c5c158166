//! Formats for the blocks of experts, found before the work begins: the recipe becomes one whose rules say what was
//! chosen.
//!
//! 1. The unchanged model reads the calibration text layer by layer (MxMoE feeds each layer exact inputs).
//! 2. Each mixture's inputs and choices are kept, and what every format costs every block is measured.
//! 3. The allocation under the budget becomes rules, one a format, behind those of the recipe.

use super::calibration::Windows;
use super::expert_map;
use crate::models::{Activation, Apply, Config, Layer, Layers, Observer, Role, Routing, WeightSource};
use crate::recipe::{AllocateBy, Choice, Experts, Recipe, Rule};
use crate::{Error, NamePattern, Progress};
use moe_quant::{
    Block, Dispatch, ExpertWeights, LayerTable, MoeLayer, Plan, Profile, Scheme, Sensitivity, allocate, imbalance,
};
use quant_calib::ExpertCounts;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Tokens that go through a layer together.
const BATCH_TOKENS: usize = 2048;

/// Which block of which expert got which format, and what calibration saw of each expert.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertsReport {
    /// What was asked for.
    pub asked: Experts,
    /// Bits a weight of routed experts.
    pub bits_per_weight: f64,
    /// Bytes of routed experts.
    pub bytes: u64,
    /// Summed sensitivities of the plan.
    pub loss: f64,
    /// Seconds of a batch in all experts, by the profile; 0 without one.
    pub seconds: f64,
    /// Imbalance σ of the calibration text, mean over layers.
    pub imbalance: f64,
    /// The layers that are mixtures.
    pub layers: Vec<ExpertLayerReport>,
}

/// One layer of an [`ExpertsReport`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertLayerReport {
    /// Index of the layer.
    pub layer: usize,
    /// Imbalance σ of the calibration text.
    pub imbalance: f64,
    /// Tokens each expert saw.
    pub tokens: Vec<u64>,
    /// Formats of gate, up and down of each expert.
    pub formats: Vec<[String; 3]>,
}

/// A recipe whose experts are decided about.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) recipe: Recipe,
    pub(super) report: ExpertsReport,
}

impl Resolved {
    /// Writes `experts.json` and `experts.svg` into a folder.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        crate::write_file(folder.join("experts.json"), super::to_json(&self.report)?.as_bytes())?;
        crate::write_file(folder.join("experts.svg"), expert_map::picture(&self.report).as_bytes())
    }
}

/// Decides about the experts of a model.
pub(super) fn resolve(
    source: &dyn WeightSource,
    config: &Config,
    windows: &Windows,
    recipe: &Recipe,
    asked: &Experts,
    progress: &mut dyn Progress,
) -> Result<Resolved, Error> {
    let refused = |source| Error::Experts { file: "the experts".into(), source: Box::new(source) };
    let profile = asked.profile.as_deref().map(crate::profile::load_profile).transpose()?;
    let layers = Layers::new(config.clone(), source, Apply::Decoded);
    let embedding = layers.embedding()?;
    let batches = windows.batches(BATCH_TOKENS).into_iter().map(|texts| {
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        embedding.stream(&texts)
    });
    let mut batches = batches.collect::<Result<Vec<_>, _>>()?;
    progress.begin("measuring experts", layers.len() as u64);
    let (mut tables, mut found) = (Vec::new(), Vec::new());
    for index in 0..layers.len() {
        let layer = layers.layer(index)?;
        let mut seen = Seen::new(asked.tokens);
        for stream in &mut batches {
            *stream = layer.forward(stream, Some(&mut seen))?;
        }
        if let Some(mixture) = seen.mixture(&layer)? {
            tables.push(mixture.table(&layer, config, asked, profile.as_ref())?);
            found.push(mixture);
        }
        progress.advance(1, &format!("layer {index}"));
    }
    if found.is_empty() {
        return Err(refused(moe_quant::Error::Nothing { what: "mixtures of experts in the model" }));
    }
    let plan = allocate(&tables, profile.as_ref(), &asked.config()).map_err(refused)?;
    let report = report(asked, &plan, &found);
    progress.note(&format!("experts: {:.4} bits a weight, {} bytes", plan.bits, plan.bytes));
    Ok(Resolved { recipe: with_rules(recipe, &plan, &found)?, report })
}

fn report(asked: &Experts, plan: &Plan, found: &[Mixture]) -> ExpertsReport {
    let counts: Vec<ExpertCounts> = found.iter().map(|mixture| mixture.counts.clone()).collect();
    let layers = found.iter().zip(&plan.choices).map(|(mixture, choices)| ExpertLayerReport {
        layer: mixture.layer,
        imbalance: mixture.counts.imbalance(),
        tokens: mixture.counts.counts().to_vec(),
        formats: choices.iter().map(|blocks| blocks.map(|at| plan.schemes[at].to_string())).collect(),
    });
    ExpertsReport {
        asked: asked.clone(),
        bits_per_weight: plan.bits,
        bytes: plan.bytes,
        loss: plan.loss,
        seconds: plan.seconds,
        imbalance: imbalance(&counts),
        layers: layers.collect(),
    }
}

/// The recipe with a rule for each format that was chosen.
fn with_rules(recipe: &Recipe, plan: &Plan, found: &[Mixture]) -> Result<Recipe, Error> {
    let mut names: BTreeMap<usize, Vec<NamePattern>> = BTreeMap::new();
    for (mixture, choices) in found.iter().zip(&plan.choices) {
        for (tensors, blocks) in mixture.tensors.iter().zip(choices) {
            for (tensor, &scheme) in tensors.iter().zip(blocks) {
                let pattern = NamePattern::try_from(tensor.clone()).map_err(|_| Error::Unsuitable {
                    tensor: tensor.clone(),
                    method: "experts",
                    reason: "its name is no pattern",
                })?;
                names.entry(scheme).or_default().push(pattern);
            }
        }
    }
    let mut resolved = Recipe { experts: None, ..recipe.clone() };
    for (scheme, patterns) in names {
        let format = Choice::Quantize(plan.schemes[scheme].weight);
        resolved.rules.push(Rule { patterns, format, method: None });
    }
    Ok(resolved)
}

/// What an observer keeps of one layer.
struct Seen {
    /// Most tokens to keep.
    most: usize,
    router: Option<String>,
    x: Vec<f32>,
    ids: Vec<usize>,
    gates: Vec<f32>,
    counts: Option<ExpertCounts>,
    refused: Option<quant_calib::Error>,
    layer: usize,
    /// The last input of each linear that might be the router.
    pending: BTreeMap<String, Vec<f32>>,
}

/// A layer that turned out to be a mixture.
struct Mixture {
    layer: usize,
    widths: [usize; 2],
    x: Vec<f32>,
    ids: Vec<usize>,
    gates: Vec<f32>,
    counts: ExpertCounts,
    /// Slots of gate, up and down of each expert.
    slots: Vec<[String; 3]>,
    /// The tensors of the same.
    tensors: Vec<[String; 3]>,
}

impl Seen {
    fn new(most: usize) -> Self {
        Self {
            most,
            router: None,
            x: Vec::new(),
            ids: Vec::new(),
            gates: Vec::new(),
            counts: None,
            refused: None,
            layer: 0,
            pending: BTreeMap::new(),
        }
    }

    fn mixture(self, layer: &Layer) -> Result<Option<Mixture>, Error> {
        let what = || format!("the router of layer {}", self.layer);
        if let Some(source) = self.refused {
            return Err(Error::Calibration { what: what(), source });
        }
        let Some(counts) = self.counts else { return Ok(None) };
        let mut slots = vec![[const { None }; 3]; counts.experts()];
        let mut tensors: Vec<[String; 3]> = vec![<[String; 3]>::default(); counts.experts()];
        let mut widths = [0, 0];
        for group in layer.groups() {
            let blocks: &[Block] = if group.len() == 2 { &[Block::Gate, Block::Up] } else { &[Block::Down] };
            for (slot, block) in group.iter().zip(blocks) {
                let Role::Expert(expert) = slot.role() else { continue };
                let origin = slot.origin();
                let tensor = origin.tensor.clone();
                if origin.transposed || origin.rows != (0..slot.shape()[0]) {
                    let reason = "several experts share it, so that they cannot have formats of their own";
                    return Err(Error::Unsuitable { tensor, method: "experts", reason });
                }
                if *block == Block::Gate {
                    widths = [slot.shape()[1], slot.shape()[0]];
                }
                if let (Some(slots), Some(tensors)) = (slots.get_mut(expert), tensors.get_mut(expert)) {
                    slots[block.index()] = Some(slot.name().to_owned());
                    tensors[block.index()] = tensor;
                }
            }
        }
        let slots = slots.into_iter().map(|[gate, up, down]| Some([gate?, up?, down?])).collect::<Option<Vec<_>>>();
        let Some(slots) = slots else {
            let (tensor, reason) = (what(), "an expert is not made of gate, up and down");
            return Err(Error::Unsuitable { tensor, method: "experts", reason });
        };
        let Self { layer, x, ids, gates, .. } = self;
        Ok(Some(Mixture { layer, widths, x, ids, gates, counts, slots, tensors }))
    }
}

impl Observer for Seen {
    fn input(&mut self, slot: &str, features: usize, input: &[f32]) {
        // The router is the linear whose input comes last before the choice.
        if self.router.as_deref().is_none_or(|router| router == slot) && features > 0 {
            self.pending = BTreeMap::from([(slot.to_owned(), input.to_vec())]);
        }
    }

    fn routing(&mut self, routing: &Routing<'_>) {
        self.layer = routing.layer;
        if let Some((router, input)) = std::mem::take(&mut self.pending).pop_first() {
            self.router = Some(router);
            let tokens = routing.ids.len() / routing.top_k.max(1);
            let kept = self.ids.len() / routing.top_k.max(1);
            let room = self.most.saturating_sub(kept).min(tokens);
            self.x.extend_from_slice(&input[..input.len() / tokens.max(1) * room]);
            self.ids.extend_from_slice(&routing.ids[..room * routing.top_k]);
            self.gates.extend_from_slice(&routing.gates[..room * routing.top_k]);
        }
        let ids: Vec<u32> = routing.ids.iter().map(|id| u32::try_from(*id).unwrap_or(u32::MAX)).collect();
        let counted = match &mut self.counts {
            Some(counts) => counts.add(&ids, Some(routing.gates)),
            None => ExpertCounts::new(routing.experts, routing.top_k).and_then(|mut counts| {
                counts.add(&ids, Some(routing.gates))?;
                self.counts = Some(counts);
                Ok(())
            }),
        };
        if let Err(error) = counted {
            self.refused.get_or_insert(error);
        }
    }
}

impl Mixture {
    /// What each format costs each block.
    fn table(
        &self,
        layer: &Layer,
        config: &Config,
        asked: &Experts,
        profile: Option<&Profile>,
    ) -> Result<LayerTable, Error> {
        let weights = |name: &String| layer.slot(name)?.weight();
        let weights = self.slots.iter().map(|[gate, up, down]| Ok([weights(gate)?, weights(up)?, weights(down)?]));
        let weights: Vec<[Vec<f32>; 3]> = weights.collect::<Result<_, crate::models::Error>>()?;
        let measured = || -> Result<LayerTable, moe_quant::Error> {
            let experts = weights.iter().map(|[gate, up, down]| ExpertWeights { gate, up, down }).collect();
            let toy = MoeLayer::new(experts, self.widths, activation(config)?)?;
            let dispatch = Dispatch::new(self.counts.experts(), self.counts.top_k(), &self.ids, &self.gates)?;
            let losses = Sensitivity::measure(&toy, &self.x, &dispatch, &asked.schemes)?;
            let losses = match asked.by {
                AllocateBy::Loss => losses.with_least_tokens(&dispatch.counts(), asked.least_tokens)?,
                AllocateBy::Frequency => losses.frequency_only(&toy, self.counts.counts())?,
            };
            // Fails early when the profile does not know a format.
            let known = |scheme: &Scheme| profile.map_or(Ok(()), |profile| profile.tiles(*scheme).map(|_| ()));
            asked.schemes.iter().try_for_each(known)?;
            LayerTable::for_batch(self.widths, losses, &self.counts, asked.batch)
        };
        let file = format!("the experts of layer {}", self.layer);
        measured().map_err(|source| Error::Experts { file: file.into(), source: Box::new(source) })
    }
}

fn activation(config: &Config) -> Result<moe_quant::Activation, moe_quant::Error> {
    match config.activation {
        Activation::Silu => Ok(moe_quant::Activation::Silu),
        Activation::Gelu | Activation::GeluTanh => Ok(moe_quant::Activation::GeluTanh),
        Activation::Relu => Ok(moe_quant::Activation::Relu),
        other => Err(moe_quant::Error::Setting {
            name: "the activation of experts",
            value: format!("{other:?}"),
            expected: "silu, gelu or relu",
        }),
    }
}

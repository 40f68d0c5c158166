//! From recipe and model to a plan; what cannot be done is refused here, before any work.

use super::folder::holds_activations;
use super::rotate::Basis;
use super::source::HEAD;
use super::structure::{LayerShape, Structure};
use super::{CompressOptions, Source, methods, refuse_quantized};
use crate::Error;
use crate::models::Config;
use crate::plan::{Plan, PlannedTensor};
use crate::recipe::{Choice, Method, Recipe};
use quant_core::Format;
use quant_io::Checkpoint;

/// What a job follows.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    /// The layers, if the job works through them.
    pub(super) structure: Option<Structure>,
}

/// The model in the basis that the recipe asks for.
pub(super) fn source<'a>(checkpoint: &'a Checkpoint, recipe: &Recipe) -> Result<Source<'a>, Error> {
    let Some(rotation) = recipe.transforms.rotate else { return Ok(Source::new(checkpoint)) };
    let config = Config::from_folder(checkpoint.path())?;
    let basis = Basis::new(rotation, recipe.transforms.seed, checkpoint, &config)?;
    Ok(Source::rotated(checkpoint, basis, &config))
}

/// Decides about every tensor and checks that it can be done.
pub(super) fn plan(source: &Source<'_>, options: &CompressOptions) -> Result<Prepared, Error> {
    let recipe = &options.recipe;
    let decide = |entry: &quant_io::Entry| recipe.decide(&entry.name, &entry.shape);
    let mut plan = Plan::new(source.checkpoint(), source.entries(), options.layout, options.max_shard_bytes, decide)?;
    refuse_quantized(&plan, source.path())?;
    if plan.quantized().next().is_none() {
        return Err(Error::NothingSelected { file: source.path().to_owned(), tensors: plan.tensors.len() });
    }
    let structure = match options.calibration {
        Some(_) => Some(structure(source)?),
        None => None,
    };
    if let (Some(_), Some(structure)) = (recipe.transforms.smooth, &structure) {
        check_smoothing(source, structure)?;
    }
    for tensor in &mut plan.tensors {
        tensor.layer = structure.as_ref().and_then(|structure| structure.layer_of(&tensor.name));
        let Choice::Quantize(format) = tensor.decision.choice else { continue };
        if let Some(activations) = recipe.activations
            && !holds_activations(options.layout, activations, format)
        {
            return Err(Error::Layout {
                tensor: tensor.name.clone(),
                layout: options.layout,
                reason: format!("it has no place for activations in {activations} beside weights in {format}"),
            });
        }
        let asked = recipe.method_for(tensor.decision.reason);
        let obstacle = structure.as_ref().and_then(|structure| obstacle(structure, tensor, format));
        tensor.whole = obstacle.is_some();
        tensor.method = match obstacle.filter(|_| asked.needs_calibration()) {
            None => asked.clone(),
            // What a rule says for a tensor is meant; what the recipe says for all is meant for those that can have it.
            Some(reason) if recipe.own_method(tensor.decision.reason).is_some() => {
                return Err(Error::Unsuitable { tensor: tensor.name.clone(), method: asked.name(), reason });
            }
            Some(_) => Method::Rtn,
        };
        if tensor.name == HEAD && tensor.method.needs_calibration() {
            tensor.layer = structure.as_ref().map(|structure| structure.layers.len());
        }
        methods::check(&tensor.method, tensor, format, source.path())?;
        if tensor.layer.is_some() && options.layout.shared_scale(&tensor.name, format).is_some() {
            let reason = "this layout gives several linears one scale, which only the layout leanbits does not";
            return Err(Error::Unsuitable { tensor: tensor.name.clone(), method: tensor.method.name(), reason });
        }
    }
    Ok(Prepared { plan, structure })
}

fn structure(source: &Source<'_>) -> Result<Structure, Error> {
    let mut config = Config::from_folder(source.path())?;
    config.tied_head &= !source.unties_head();
    Structure::new(source, &config)
}

/// Why the inputs of a tensor cannot be looked at, if they cannot.
fn obstacle(structure: &Structure, tensor: &PlannedTensor, format: Format) -> Option<&'static str> {
    if tensor.name == HEAD && !structure.config.tied_head {
        return None;
    }
    let layer: Option<&LayerShape> = tensor.layer.and_then(|layer| structure.layers.get(layer));
    let slots = layer.map(|layer| layer.slots_of(&tensor.name)).unwrap_or_default();
    let rows: usize = slots.iter().map(|slot| slot.origin.rows.len()).sum();
    let all: usize = tensor.shape.iter().rev().skip(1).product();
    if slots.is_empty() || rows != all {
        Some("it is no linear of a layer")
    } else if slots.iter().any(|slot| slot.origin.transposed) {
        Some("it is stored input-major, so that its groups do not run along the inputs")
    } else if slots.len() > 1 && !methods::stacks(format) {
        Some("it holds several linears, which this format gives one scale")
    } else {
        None
    }
}

/// Smoothing divides the gains of norms that stand before linears.
fn check_smoothing(source: &Source<'_>, structure: &Structure) -> Result<(), Error> {
    let has_norm = |(index, layer): (usize, &LayerShape)| {
        layer.tensors.contains(&format!("model.layers.{index}.input_layernorm.weight"))
    };
    match structure.layers.iter().enumerate().all(has_norm) {
        true => Ok(()),
        false => {
            Err(Error::Transform { file: source.path().to_owned(), what: "smoothing", reason: NO_NORMS.to_owned() })
        }
    }
}

/// Why models of other shapes than Llama's cannot be smoothed or rotated.
pub(super) const NO_NORMS: &str = "its linears do not read the output of a norm without offset";

//! From recipe and model to a plan; what cannot be done is refused here, before any work.

use super::folder::holds_activations;
use super::rotate::Basis;
use super::source::HEAD;
use super::structure::{LayerShape, Structure};
use super::{CompressOptions, Source, forms, hybrid, methods, refuse_quantized};
use crate::models::Config;
use crate::plan::{Plan, Treatment, decide};
use crate::recipe::{Choice, Decision, KvCacheChoice, Method, Multipliers, Reason, Recipe};
use crate::storage::Form;
use crate::{Error, StorageLayout};
use quant_core::Format;
use quant_io::{Checkpoint, Entry};
use vector_quant::rwkvquant::Choice::{Scalar, Vector};

/// What a job follows.
pub(super) struct Prepared {
    /// What is done with each tensor.
    pub(super) treatments: Vec<Treatment>,
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

/// Decides about every tensor, as far as that needs no activations.
pub(super) fn treatments(source: &Source<'_>, options: &CompressOptions) -> Result<Prepared, Error> {
    let recipe = &options.recipe;
    let decisions: Vec<Decision> =
        source.entries().iter().map(|entry| decide(entry, |entry| recipe.decide(&entry.name, &entry.shape))).collect();
    refuse_quantized(source, &decisions)?;
    if decisions.iter().all(|decision| decision.choice == Choice::Keep) {
        return Err(Error::NothingSelected { file: source.path().to_owned(), tensors: decisions.len() });
    }
    let structure = match options.calibration {
        Some(_) => Some(structure(source)?),
        None => None,
    };
    if let (Some(_), Some(structure)) = (recipe.transforms.smooth, &structure) {
        check_smoothing(source, structure)?;
    }
    let mut treatments = Vec::with_capacity(decisions.len());
    for (entry, decision) in source.entries().iter().zip(decisions) {
        treatments.push(treatment(source, options, structure.as_ref(), entry, decision)?);
    }
    if let Some(structure) = &structure {
        hybrid(source, recipe, structure, &mut treatments)?;
    }
    Ok(Prepared { treatments, structure })
}

/// Decides about one tensor.
fn treatment(
    source: &Source<'_>,
    options: &CompressOptions,
    structure: Option<&Structure>,
    entry: &Entry,
    mut decision: Decision,
) -> Result<Treatment, Error> {
    let recipe = &options.recipe;
    let layer = structure.and_then(|structure| structure.layer_of(&entry.name));
    if let Choice::Quantize(format) = decision.choice {
        decision.choice = Choice::Quantize(options.layout.native_format(&entry.name, format)?);
    }
    let asked = recipe.method_for(decision);
    if decision.choice == Choice::Keep {
        let kept = Treatment { layer, ..Treatment::kept(decision) };
        let shape = layer.and_then(|layer| structure?.layers.get(layer));
        return Ok(with_multipliers(kept, recipe, shape, entry));
    }
    let unsuitable =
        |reason| Error::Unsuitable { tensor: entry.name.clone(), method: recipe.method_for(decision).name(), reason };
    // What a rule says for a tensor is meant; what the recipe says for all is meant for those that can have it.
    let meant = recipe.own_method(decision.reason).is_some();
    let not_linear = Treatment {
        layer,
        whole: true,
        ..Treatment::kept(Decision { choice: Choice::Keep, reason: Reason::NotLinear })
    };
    // Two factors are of a matrix that is a linear, as far as that can be known.
    let factors = !asked.is_scalar() && !asked.makes_vectors();
    if factors && entry.shape.len() != 2 && !matches!(asked, Method::Rwkvquant(_)) {
        return if meant { Err(unsuitable("it is no matrix")) } else { Ok(not_linear) };
    }
    let chosen = |method: &Method| {
        forms::of(method, decision.choice, &entry.shape)
            .map_err(|refused| refused.at(source.path(), &entry.name, method))
    };
    let form = chosen(asked)?;
    let obstacle = structure.and_then(|structure| {
        let form = form.as_ref().map(|chosen| &chosen.form);
        obstacle(structure, entry, layer, form.unwrap_or(&Form::Packed(Format::INT8)))
    });
    let method = match obstacle.filter(|_| asked.needs_calibration() || factors) {
        None => asked.clone(),
        Some(reason) if meant => return Err(unsuitable(reason)),
        Some(_) if factors && !matches!(asked, Method::Rwkvquant(_) | Method::Corrected(_)) => return Ok(not_linear),
        // Codes of vectors are found as far as that goes without inputs.
        Some(_) if asked.makes_vectors() => asked.clone(),
        Some(_) => Method::Rtn,
    };
    let Some(forms::Chosen { form, note }) = chosen(&method)? else { return Ok(Treatment::kept(decision)) };
    if let Some(activations) = recipe.activations {
        let held = match form {
            Form::Packed(format) => holds_activations(options.layout, activations, format),
            _ => options.layout == StorageLayout::Leanbits,
        };
        if !held {
            return Err(Error::Layout {
                tensor: entry.name.clone(),
                layout: options.layout,
                reason: format!("it has no place for activations in {activations} beside weights in {form}"),
            });
        }
    }
    let layer = match structure {
        Some(structure) if entry.name == HEAD && method.needs_calibration() => Some(structure.layers.len()),
        _ => layer,
    };
    if let Form::Packed(format) = form
        && layer.is_some()
        && options.layout.shared_scale(&entry.name, format).is_some()
    {
        return Err(unsuitable("this layout gives several linears one scale, which only the layout leanbits does not"));
    }
    let whole = obstacle.is_some();
    Ok(Treatment { form: Some(form), method, layer, whole, note, ..Treatment::kept(decision) })
}

/// Codes the multipliers of a tensor that would be kept, if the recipe says so.
fn with_multipliers(kept: Treatment, recipe: &Recipe, shape: Option<&LayerShape>, entry: &Entry) -> Treatment {
    let Method::Rwkvquant(config) = &recipe.method else { return kept };
    let named = matches!(kept.decision.reason, Reason::Multiplier | Reason::FewAxes);
    let multipliers = shape.filter(|_| named).map(|shape| shape.multipliers_of(&entry.name)).unwrap_or_default();
    if multipliers.is_empty() || config.multipliers == Multipliers::Keep {
        return kept;
    }
    let form = Some(forms::multiplier(config, &entry.shape));
    let decision = Decision { choice: Choice::Vectors, reason: Reason::Multiplier };
    Treatment { form, multipliers, decision, method: recipe.method.clone(), ..kept }
}

/// Chooses scalar or vector codes for the matrices that RWKVQuant is to decide about.
fn hybrid(
    source: &Source<'_>,
    recipe: &Recipe,
    structure: &Structure,
    treatments: &mut [Treatment],
) -> Result<(), Error> {
    let undecided = |treatment: &Treatment| match &treatment.method {
        Method::Rwkvquant(config) if !treatment.whole && treatment.multipliers.is_empty() => Some(config.clone()),
        _ => None,
    };
    let Some(config) = treatments.iter().find_map(undecided) else { return Ok(()) };
    let (mut places, mut proxies) = (Vec::new(), Vec::new());
    for (at, (entry, treatment)) in source.entries().iter().zip(treatments.iter()).enumerate() {
        if undecided(treatment).is_some() {
            places.push(at);
            proxies.push(hybrid::measure(source.path(), &entry.name, &source.read(&entry.name)?, &config)?);
        }
    }
    let refused = |refused: methods::Refused, name: &str| refused.at(source.path(), name, &recipe.method);
    let choices = hybrid::assign(&proxies, config.assign).map_err(|source| refused(source.into(), "all"))?;
    for ((at, proxies), choice) in places.into_iter().zip(proxies).zip(choices) {
        let (Some(treatment), Some(entry)) = (treatments.get_mut(at), source.entries().get(at)) else { continue };
        treatment.uniformity = Some(proxies.uniformity);
        treatment.method = match choice {
            Scalar => Method::Gptq(config.scalar.clone()),
            Vector => Method::Gptvq(config.vector),
        };
        if choice == Vector {
            treatment.decision.choice = Choice::Vectors;
            let form = forms::of(&treatment.method, Choice::Vectors, &entry.shape);
            treatment.form = form.map_err(|error| refused(error, &entry.name))?.map(|chosen| chosen.form);
            let stacked = treatment.form.as_ref().and_then(|form| obstacle(structure, entry, treatment.layer, form));
            treatment.whole = stacked.is_some();
        }
    }
    Ok(())
}

/// Plans the job and checks that every method can do its part.
pub(super) fn plan(source: &Source<'_>, options: &CompressOptions, treatments: Vec<Treatment>) -> Result<Plan, Error> {
    let plan = Plan::new(source.checkpoint(), source.entries(), options.layout, options.max_shard_bytes, treatments)?;
    for tensor in plan.compressed() {
        methods::check(&tensor.treatment.method, tensor, source.path())?;
    }
    Ok(plan)
}

/// Refuses a key-value cache that the model or the layout cannot have.
pub(super) fn kv_cache(choice: &KvCacheChoice, source: &Source<'_>, layout: StorageLayout) -> Result<(), Error> {
    if layout != StorageLayout::Leanbits {
        let reason = "it has no place for such a cache".to_owned();
        return Err(Error::Layout { tensor: "of the key-value cache".to_owned(), layout, reason });
    }
    crate::kv::check(choice, &Config::from_folder(source.path())?, source.path())
}

fn structure(source: &Source<'_>) -> Result<Structure, Error> {
    let mut config = Config::from_folder(source.path())?;
    config.tied_head &= !source.unties_head();
    Structure::new(source, &config)
}

/// Why the inputs of a tensor cannot be looked at, if they cannot.
fn obstacle(structure: &Structure, entry: &Entry, layer: Option<usize>, form: &Form) -> Option<&'static str> {
    if entry.name == HEAD && !structure.config.tied_head {
        return None;
    }
    let layer: Option<&LayerShape> = layer.and_then(|layer| structure.layers.get(layer));
    let slots = layer.map(|layer| layer.slots_of(&entry.name)).unwrap_or_default();
    let rows: usize = slots.iter().map(|slot| slot.origin.rows.len()).sum();
    let all: usize = entry.shape.iter().rev().skip(1).product();
    if slots.is_empty() || rows != all {
        Some("it is no linear of a layer")
    } else if slots.iter().any(|slot| slot.origin.transposed) {
        Some("it is stored input-major, so that its groups do not run along the inputs")
    } else if slots.len() > 1 && !methods::stacks(form) {
        Some("it holds several linears, which this form gives one scale or one code book")
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

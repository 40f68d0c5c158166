//! A model folder in, a smaller one out.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the call, from options to report |
//! | `prepare.rs`, `forms.rs` | the plan: methods and forms of tensors, and what is refused before any work |
//! | `hybrid.rs`, `budget.rs` | what is decided for all tensors together: RWKVQuant's choice, ranks under a budget |
//! | `run.rs`, `journal.rs`, `resume.rs`, `state.rs`, `folder.rs` | the output folder, and going on after an interruption |
//! | `source.rs`, `rotate.rs` | the model as it is read, in the basis that the recipe asks for |
//! | `stream.rs` | tensors that need no calibration, one at a time |
//! | `layers.rs`, `structure.rs`, `gather.rs`, `smooth.rs` | layer by layer, on a calibration text |
//! | `wkvquant.rs` | what a layer's weights and cache are rounded with, learned on the layers behind it |
//! | `methods.rs`, `multipliers.rs`, `vectors.rs` | one linear, or one layer's multipliers |
//! | `calibration.rs`, `fisher.rs` | the windows of that text, and gradients of the weights on them |
//! | `experts.rs`, `expert_map.rs` | formats for the blocks of experts, before all this |

mod budget;
mod calibration;
mod expert_map;
mod experts;
mod fisher;
mod folder;
mod forms;
mod gather;
mod hybrid;
mod journal;
mod layers;
mod methods;
mod multipliers;
mod outcome;
mod prepare;
mod resume;
mod rotate;
mod run;
mod smooth;
mod source;
mod state;
mod stream;
mod structure;
mod vectors;
mod wkvquant;

pub use calibration::CalibrationReport;
pub(crate) use calibration::Windows;
pub use experts::{ExpertLayerReport, ExpertsReport};
pub(crate) use folder::activations;
pub(crate) use outcome::{CodeUsage, Energy, Outcome};
pub(crate) use source::Source;

use crate::models::Config;
use crate::plan::Plan;
use crate::recipe::{Decision, Reason, Recipe};
use crate::report::{CompressReport, RunCost, TensorReport, rule_lines};
use crate::storage::{StorageLayout, stored_form};
use crate::usage::peak_rss_bytes;
use crate::{Error, Progress};
use prepare::Prepared;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to do with a model.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressOptions {
    /// Which tensor is stored how.
    pub recipe: Recipe,
    /// The text that methods see which look at activations.
    pub calibration: Option<PathBuf>,
    /// How packed tensors are stored.
    pub layout: StorageLayout,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Throw away what an interrupted run of another job left in the output folder.
    pub restart: bool,
    /// Most bytes of tensors in one file of the output.
    pub max_shard_bytes: u64,
}

impl CompressOptions {
    /// Follows a recipe, in the project's own layout, with files of up to 5 GB.
    #[must_use]
    pub fn new(recipe: Recipe) -> Self {
        Self {
            recipe,
            calibration: None,
            layout: StorageLayout::Leanbits,
            dry_run: false,
            restart: false,
            max_shard_bytes: quant_io::hf::ShardOptions::default().max_shard_bytes,
        }
    }
}

/// Compresses a Hugging Face folder into another one.
///
/// Without calibration tensors are read, quantized and written one at a time. Recipes whose methods look at activations
/// work layer by layer: each layer is calibrated on what the quantized layers before it make of the
/// calibration text, and only one layer is in memory.
///
/// What is finished is noted in a journal inside `output`; when the run is interrupted, the same call continues behind the
/// last tensor, or the last layer, and produces the same bytes as an uninterrupted run. `config.json` is written last:
/// a folder that has one is complete.
///
/// The output holds the weights, the side files of the model (tokenizer and so on), `config.json` with a
/// `quantization_config`, and `report.json`, `report.md` and `report.svg`. All of it depends on the input
/// and the options only, not on the number of threads or time; with calibration also on the instruction set, whose
/// sums of products differ in the last digits.
///
/// # Errors
///
/// Before any work: [`Error::Recipe`], [`Error::AlreadyQuantized`], [`Error::NothingSelected`], [`Error::Unsuitable`] and
/// [`Error::Method`] for what a tensor cannot have, [`Error::NeedsCalibration`], [`Error::CalibrationUnused`],
/// [`Error::ShortCalibration`], [`Error::NotEmpty`], [`Error::Finished`], [`Error::OtherJob`], [`Error::SameFolder`],
/// [`Error::NoConfig`]. Then [`Error::Tensor`] for weights that are not finite, [`Error::Activations`], and what reading
/// and writing meets. After an error in the input nothing is left behind; after one in writing
/// (a full disk) the journal stays, and the run can be continued.
pub fn compress(
    model: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &mut dyn Progress,
) -> Result<CompressReport, Error> {
    let (model, output) = (model.as_ref(), output.as_ref());
    let start = Instant::now();
    let recipe = &options.recipe;
    recipe.validate().map_err(|source| Error::Recipe { file: "the recipe".into(), source })?;
    match (recipe.looks_at_activations(), &options.calibration) {
        (Some(what), None) => return Err(Error::NeedsCalibration { what }),
        (None, Some(_)) => return Err(Error::CalibrationUnused { method: recipe.method.name() }),
        _ => {}
    }
    let checkpoint = folder::open(model)?;
    let source = prepare::source(&checkpoint, recipe)?;
    let experts = match (&recipe.experts, &options.calibration) {
        (Some(asked), Some(text)) => {
            let config = Config::from_folder(model)?;
            let windows = Windows::open(model, &config, text, &recipe.calibration)?;
            Some(experts::resolve(&source, &config, &windows, recipe, asked, progress)?)
        }
        _ => None,
    };
    // From here on the recipe is one that says what every expert becomes.
    let resolved =
        experts.as_ref().map(|experts| CompressOptions { recipe: experts.recipe.clone(), ..options.clone() });
    let options = resolved.as_ref().unwrap_or(options);
    let recipe = &options.recipe;
    if let Some(choice) = &recipe.kv_cache {
        prepare::kv_cache(choice, &source, options.layout)?;
    }
    wkvquant::check(recipe, model)?;
    let Prepared { mut treatments, structure } = prepare::treatments(&source, options)?;
    let windows = match (&structure, &options.calibration) {
        (Some(_), Some(text)) => Some(Windows::open(model, &Config::from_folder(model)?, text, &recipe.calibration)?),
        _ => None,
    };
    let information = match (&structure, &windows) {
        // A dry run needs to know ranks only.
        (Some(structure), Some(windows)) if !options.dry_run || recipe.method.has_budget() => {
            fisher::Information::gather(&source, structure, windows, &treatments, progress)?
        }
        _ => fisher::Information::default(),
    };
    if let (true, Some(structure), Some(windows)) = (recipe.method.has_budget(), &structure, &windows) {
        let information = &information;
        budget::Budget { source: &source, structure, windows, recipe, information }
            .allocate(&mut treatments, progress)?;
    }
    let plan = prepare::plan(&source, options, treatments)?;
    let warnings: Vec<String> =
        recipe.idle_rules(plan.tensors.iter().map(|t| t.name.as_str())).iter().map(ToString::to_string).collect();
    for warning in &warnings {
        progress.note(&format!("warning: {warning}"));
    }
    let told = windows.as_ref().map(|windows| windows.report.clone());
    if let Some(told) = told.as_ref().filter(|told| told.windows < recipe.calibration.windows) {
        progress.note(&format!("the calibration text has {} of {} windows", told.windows, recipe.calibration.windows));
    }
    if options.dry_run {
        return Ok(report(&plan, options, &[], told, warnings));
    }
    let calibration = windows.as_ref().map(|windows| folder::checksum([windows.report.hash.as_bytes()]));
    let mut run = run::Run::start(output, &source, &plan, options, calibration)?;
    let resumed = run.resumed();
    progress.begin("compressing", plan.sum(|tensor| tensor.source_bytes));
    if resumed > 0 {
        progress.note(&format!("continuing an interrupted run: {resumed} tensors are done"));
    }
    let done = match (&structure, &windows) {
        (Some(structure), Some(windows)) => {
            let (layout, source, plan, information) = (options.layout, &source, &plan, &information);
            layers::Job { source, plan, structure, windows, recipe, layout, information }.write_all(&mut run, progress)
        }
        _ => stream::Stream::new(&source, &plan, options.layout).write_all(&mut run, progress),
    };
    if let Err(error) = done.and_then(|()| run.close()) {
        return Err(run.abandon(error));
    }
    let mut report = report(&plan, options, &run.outcomes(), told, warnings);
    let (io, packing, running) = (run.io, run.packing, run.running);
    let learned = std::mem::take(&mut run.learned);
    let finishing = Instant::now();
    run.finish(&report, |folder| match &recipe.kv_cache {
        None => Ok(None),
        Some(choice) => {
            let mut config = Config::from_folder(model)?;
            config.tied_head &= !source.unties_head();
            let texts = windows.as_ref().map(|windows| windows.texts.as_slice()).unwrap_or_default();
            crate::kv::store(choice, &config, folder, texts, recipe.activations, &learned).map(Some)
        }
    })?;
    if let Some(experts) = &experts {
        experts.write(output)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    report.run = Some(RunCost {
        seconds,
        io_seconds: io.seconds() + finishing.elapsed().as_secs_f64(),
        packing_seconds: packing.seconds(),
        packing_fraction: packing.seconds() / seconds,
        running_seconds: running.seconds(),
        peak_rss_bytes: peak_rss_bytes(),
        resumed_tensors: resumed,
    });
    Ok(report)
}

/// The report of a plan; `outcomes` has an entry for each tensor, or none at all in a dry run.
#[expect(clippy::cast_precision_loss, reason = "ratios for people")]
fn report(
    plan: &Plan,
    options: &CompressOptions,
    outcomes: &[Outcome],
    calibration: Option<CalibrationReport>,
    warnings: Vec<String>,
) -> CompressReport {
    let bits = |bytes: u64, elements: u64| if elements == 0 { 0.0 } else { 8.0 * bytes as f64 / elements as f64 };
    let nothing = Outcome::default();
    let tensors: Vec<TensorReport> = plan
        .tensors
        .iter()
        .enumerate()
        .map(|(at, tensor)| TensorReport::new(tensor, outcomes.get(at).unwrap_or(&nothing)))
        .collect();
    CompressReport {
        dry_run: options.dry_run,
        layout: options.layout,
        recipe: options.recipe.clone(),
        bytes: plan.sum(|t| t.bytes),
        file_bytes: plan.file_bytes(),
        source_bytes: plan.sum(|t| t.source_bytes),
        parameters: plan.sum(|t| t.elements),
        quantized_parameters: plan.compressed().map(|tensor| tensor.elements).sum(),
        bits_per_weight: plan.bits_per_weight(),
        bits_per_parameter: bits(plan.sum(|t| t.bytes), plan.sum(|t| t.elements)),
        sqnr_db: Energy::sum(outcomes.iter().filter_map(|outcome| outcome.weights)).sqnr_db(),
        calibration,
        warnings,
        run: None,
        rules: rule_lines(&tensors),
        tensors,
    }
}

/// JSON for people and programs, with a final line feed.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String, Error> {
    let text = serde_json::to_string_pretty(value).map_err(|source| Error::Json { source })?;
    Ok(text + "\n")
}

/// Refuses a tensor that is quantized already.
fn refuse_quantized(source: &Source<'_>, decisions: &[Decision]) -> Result<(), Error> {
    match source.entries().iter().zip(decisions).find(|(_, d)| d.reason == Reason::AlreadyQuantized) {
        None => Ok(()),
        Some((entry, _)) => Err(Error::AlreadyQuantized {
            file: source.path().to_owned(),
            tensor: entry.name.clone(),
            stored: stored_form(source.checkpoint(), entry)?,
        }),
    }
}

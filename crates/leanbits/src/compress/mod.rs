//! A model folder in, a smaller one out.

mod folder;
mod journal;
mod resume;
mod run;

use crate::plan::Plan;
use crate::recipe::{Reason, Recipe};
use crate::report::{CompressReport, RunCost, TensorReport, rule_lines};
use crate::storage::StorageLayout;
use crate::usage::{Stopwatch, peak_rss_bytes};
use crate::{Error, Progress};
use quant_core::metrics::ErrorStats;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// What to do with a model.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressOptions {
    /// Which tensor is stored how.
    pub recipe: Recipe,
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
            layout: StorageLayout::Leanbits,
            dry_run: false,
            restart: false,
            max_shard_bytes: quant_io::hf::ShardOptions::default().max_shard_bytes,
        }
    }
}

/// What was measured on one tensor while it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Energy {
    pub(crate) signal: f64,
    pub(crate) noise: f64,
}

impl Energy {
    pub(crate) fn of(errors: &ErrorStats) -> Self {
        Self { signal: errors.signal(), noise: errors.noise() }
    }

    fn sqnr_db(self) -> Option<f64> {
        let sqnr = 10.0 * (self.signal / self.noise).log10();
        sqnr.is_finite().then_some(sqnr)
    }
}

/// Compresses a Hugging Face folder into another one.
///
/// Tensors are read, quantized and written one at a time. Finished tensors are noted in a journal inside
/// `output`; when the run is interrupted, the same call continues behind the last of them and produces
/// the same bytes as an uninterrupted run. `config.json` is written last: a folder that has one is complete.
///
/// The output holds the weights, the side files of the model (tokenizer and so on), `config.json` with a
/// `quantization_config`, and `report.json`, `report.md` and `report.svg`. All of it depends on the input
/// and the options only, not on the machine, the number of threads, or time.
///
/// # Errors
///
/// [`Error::Tensor`] for weights that are not finite, [`Error::AlreadyQuantized`], [`Error::NothingSelected`],
/// [`Error::NotEmpty`], [`Error::Finished`], [`Error::OtherJob`], [`Error::SameFolder`], [`Error::NoConfig`],
/// and what reading and writing meets. After an error in the input nothing is left behind; after one in writing
/// (a full disk) the journal stays, and the run can be continued.
pub fn compress(
    model: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &mut dyn Progress,
) -> Result<CompressReport, Error> {
    let (model, output) = (model.as_ref(), output.as_ref());
    let start = Instant::now();
    let checkpoint = folder::open(model)?;
    let plan = Plan::of_recipe(&checkpoint, &options.recipe, options.layout, options.max_shard_bytes)?;
    if let Some(tensor) = plan.tensors.iter().find(|t| t.decision.reason == Reason::AlreadyQuantized) {
        let (tensor, stored) = (tensor.name.clone(), tensor.stored.clone());
        return Err(Error::AlreadyQuantized { file: model.to_owned(), tensor, stored });
    }
    if plan.quantized().next().is_none() {
        return Err(Error::NothingSelected { file: model.to_owned(), tensors: plan.tensors.len() });
    }
    if options.dry_run {
        return Ok(report(&plan, options, &[]));
    }
    let mut io = Stopwatch::default();
    let mut packing = Stopwatch::default();
    let mut job = run::Run::start(output, &checkpoint, &plan, options)?;
    let resumed = job.resumed();
    let energies = match job.write_tensors(progress, &mut io, &mut packing) {
        Ok(energies) => energies,
        Err(error) => return Err(job.abandon(error)),
    };
    let mut report = report(&plan, options, &energies);
    io.time(|| job.finish(&report))?;
    let seconds = start.elapsed().as_secs_f64();
    report.run = Some(RunCost {
        seconds,
        io_seconds: io.seconds(),
        packing_seconds: packing.seconds(),
        packing_fraction: packing.seconds() / seconds,
        peak_rss_bytes: peak_rss_bytes(),
        resumed_tensors: resumed,
    });
    Ok(report)
}

/// The report of a plan; `energies` has an entry for each tensor, or none at all in a dry run.
#[expect(clippy::cast_precision_loss, reason = "ratios for people")]
fn report(plan: &Plan, options: &CompressOptions, energies: &[Option<Energy>]) -> CompressReport {
    let bits = |bytes: u64, elements: u64| if elements == 0 { 0.0 } else { 8.0 * bytes as f64 / elements as f64 };
    let tensors: Vec<TensorReport> = plan
        .tensors
        .iter()
        .enumerate()
        .map(|(at, tensor)| {
            let sqnr = energies.get(at).copied().flatten().and_then(Energy::sqnr_db);
            TensorReport::new(tensor, options.recipe.method, sqnr)
        })
        .collect();
    let all = energies.iter().flatten().fold(Energy { signal: 0.0, noise: 0.0 }, |sum, e| Energy {
        signal: sum.signal + e.signal,
        noise: sum.noise + e.noise,
    });
    CompressReport {
        dry_run: options.dry_run,
        layout: options.layout,
        recipe: options.recipe.clone(),
        bytes: plan.sum(|t| t.bytes),
        file_bytes: plan.file_bytes(),
        source_bytes: plan.sum(|t| t.source_bytes),
        parameters: plan.sum(|t| t.elements),
        quantized_parameters: plan.quantized().map(|(t, _)| t.elements).sum(),
        bits_per_weight: plan.bits_per_weight(),
        bits_per_parameter: bits(plan.sum(|t| t.bytes), plan.sum(|t| t.elements)),
        sqnr_db: all.sqnr_db(),
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

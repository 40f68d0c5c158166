//! The output of a job: start or resume, tensor by tensor, finish or clean up.

use super::folder::{self, checksum};
use super::journal::{self, Entry, Job, Journal};
use super::outcome::Outcome;
use super::resume::{self, Progressed};
use super::state::{self, State};
use super::wkvquant;
use super::{CompressOptions, Source};
use crate::Error;
use crate::plan::{Plan, PlannedTensor};
use crate::report::CompressReport;
use crate::storage::Section;
use crate::usage::Stopwatch;
use kv_cache_quant::{ChannelAffine, Pair};
use quant_io::hf::{INDEX_NAME, copy_side_files};
use quant_io::safetensors::SafetensorsWriter;
use quant_io::write_atomically;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file that makes a folder a model; written last.
pub(super) const CONFIG: &str = "config.json";

/// A compression that has its output folder.
pub(super) struct Run<'a> {
    output: PathBuf,
    /// Whether the folder did not exist before.
    created: bool,
    source: &'a Source<'a>,
    plan: &'a Plan,
    options: &'a CompressOptions,
    job: Job,
    journal: Journal,
    /// What an interrupted run of this job had written, read back and checked.
    found: Progressed,
    /// The activations it had reached.
    state: Option<State>,
    /// Files that are being written.
    writers: BTreeMap<usize, SafetensorsWriter>,
    /// What was measured on the tensors that are written.
    outcomes: BTreeMap<String, Outcome>,
    /// What each layer so far learned of its cache.
    pub(super) learned: Vec<Pair<ChannelAffine>>,
    /// Time spent reading and writing.
    pub(super) io: Stopwatch,
    /// Time spent encoding.
    pub(super) packing: Stopwatch,
    /// Time spent running layers.
    pub(super) running: Stopwatch,
}

impl<'a> Run<'a> {
    /// Prepares the output folder, and takes over what an interrupted run of the same job left there.
    ///
    /// Tensors of a layer count only when the activations behind it were saved: a layer is done as a whole.
    pub(super) fn start(
        output: &Path,
        source: &'a Source<'a>,
        plan: &'a Plan,
        options: &'a CompressOptions,
        calibration: Option<u64>,
    ) -> Result<Self, Error> {
        let model = source.path();
        if let (Ok(a), Ok(b)) = (model.canonicalize(), output.canonicalize())
            && a == b
        {
            return Err(Error::SameFolder { path: output.to_owned() });
        }
        let job = Job::new(folder::fingerprint(model)?, plan_checksum(plan, options, calibration), &plan.shards);
        let created = !output.exists();
        std::fs::create_dir_all(output).map_err(|source| Error::file(output, "create", source))?;
        let mut entries = if created { Vec::new() } else { left_behind(output, &job, options.restart)? };
        let state = if entries.is_empty() || calibration.is_none() { None } else { State::load(output, &job) };
        let reached = state.as_ref().map_or(0, State::layer);
        entries.retain(|entry| plan.layer_of(&entry.name).is_none_or(|layer| layer < reached));
        let found = resume::check(output, plan, entries)?;
        // A layer that was damaged is made again, and with it all that follow.
        let damaged = plan.tensors.iter().filter(|tensor| found.get(&tensor.name).is_none());
        let damaged = damaged.filter_map(|tensor| tensor.layer().filter(|layer| *layer < reached)).min();
        if damaged.is_some() {
            state::remove(output);
            return Self::start(output, source, plan, options, calibration);
        }
        let journal = Journal::write(output, &job, found.entries())?;
        let outcomes = found.entries().map(|entry| (entry.name.clone(), entry.outcome.clone())).collect();
        Ok(Self {
            output: output.to_owned(),
            created,
            source,
            plan,
            options,
            job,
            journal,
            found,
            state,
            writers: BTreeMap::new(),
            outcomes,
            learned: Vec::new(),
            io: Stopwatch::default(),
            packing: Stopwatch::default(),
            running: Stopwatch::default(),
        })
    }

    /// Tensors that need not be written again.
    pub(super) fn resumed(&self) -> usize {
        self.found.entries().count()
    }

    /// Whether a tensor need not be written again.
    pub(super) fn is_done(&self, tensor: &PlannedTensor) -> bool {
        self.found.get(&tensor.name).is_some()
    }

    /// The activations that an interrupted run had reached; gives them once.
    pub(super) fn take_state(&mut self) -> Option<State> {
        self.state.take()
    }

    /// Saves the activations that go into a layer: an interrupted run goes on there.
    pub(super) fn save_state(&mut self, layer: usize, rows: &[f32]) -> Result<(), Error> {
        let Self { output, job, io, learned, .. } = self;
        io.time(|| state::save(output, job, layer, rows, &wkvquant::flat(learned)))
    }

    /// Writes a tensor that was missing.
    pub(super) fn put(
        &mut self,
        tensor: &PlannedTensor,
        sections: &[Section<'_>],
        outcome: Outcome,
    ) -> Result<(), Error> {
        let start = std::time::Instant::now();
        let writer = match self.writers.entry(tensor.shard) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(open(&self.output, self.plan, &self.found, tensor.shard)?)
            }
        };
        for section in sections {
            writer.write(&section.name, &section.bytes)?;
        }
        let complete = writer.missing() == 0;
        let sum = checksum(sections.iter().map(|section| &*section.bytes));
        self.journal.add(&Entry::new(&tensor.name, sum, outcome.clone()))?;
        self.outcomes.insert(tensor.name.clone(), outcome);
        if complete && let Some(writer) = self.writers.remove(&tensor.shard) {
            writer.finish()?;
        }
        self.io.add(start.elapsed());
        Ok(())
    }

    /// Gives every file its name once all tensors are written.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        // A file of which nothing was missing may still lack its name, or hold no tensor at all.
        for (shard, (name, _)) in self.plan.shards.files().enumerate() {
            let named = self.found.is_complete(shard) || self.output.join(name).exists();
            if !named && !self.writers.contains_key(&shard) {
                self.writers.insert(shard, open(&self.output, self.plan, &self.found, shard)?);
            }
        }
        for (_, writer) in std::mem::take(&mut self.writers) {
            self.io.time(|| writer.finish())?;
        }
        Ok(())
    }

    /// What was measured on every tensor, in the order of the plan.
    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        self.plan.tensors.iter().map(|t| self.outcomes.get(&t.name).cloned().unwrap_or_default()).collect()
    }

    /// Writes everything but the weights, the configuration last. Once all else is there, `kv_cache` adds what belongs to
    /// the key-value cache and returns what the configuration says about it.
    pub(super) fn finish(
        self,
        report: &CompressReport,
        kv_cache: impl FnOnce(&Path) -> Result<Option<serde_json::Value>, Error>,
    ) -> Result<(), Error> {
        let write = |name: &str, bytes: &[u8]| write_atomically(self.output.join(name), bytes).map_err(Error::from);
        if let Some(index) = self.plan.shards.index() {
            write(INDEX_NAME, index.to_json().as_bytes())?;
        }
        copy_side_files(&self.source.checkpoint().side_files()?, &self.output)?;
        for (name, text) in report.files()? {
            write(name, text.as_bytes())?;
        }
        let mut config = folder::config(self.source, self.plan, self.options)?;
        if let Some(kv_cache) = kv_cache(&self.output)? {
            config["quantization_config"][crate::kv::KV_CACHE] = kv_cache;
        }
        write(CONFIG, super::to_json(&config)?.as_bytes())?;
        state::remove(&self.output);
        self.journal.finish()
    }

    /// Cleans up after an error. What was made of bad input is removed; after a failure to write, the run can be
    /// continued, so what is whole stays.
    pub(super) fn abandon(self, error: Error) -> Error {
        drop(self.writers);
        if !matches!(error, Error::File { .. }) && !is_io(&error) {
            let files = self.plan.shards.files().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
            journal::remove(&self.output, &files);
            if self.created {
                // Stays when somebody put something else there meanwhile.
                let _ = std::fs::remove_dir(&self.output);
            }
        }
        error
    }
}

/// Whether the system failed to read or write.
fn is_io(error: &Error) -> bool {
    matches!(error, Error::Io(quant_io::Error::Io { .. }))
}

/// What an interrupted run of this job had finished, by its own account.
fn left_behind(output: &Path, job: &Job, restart: bool) -> Result<Vec<Entry>, Error> {
    let path = || output.to_owned();
    match Journal::open(output)? {
        Some((found, entries)) if found == *job => Ok(entries),
        Some((found, _)) if restart => {
            journal::remove(output, found.files());
            Ok(Vec::new())
        }
        Some((found, _)) => Err(Error::OtherJob { path: path(), what: found.difference(job) }),
        None if output.join(CONFIG).exists() => Err(Error::Finished { path: path() }),
        None => {
            let mut list = std::fs::read_dir(output).map_err(|source| Error::file(output, "read", source))?;
            if list.next().is_some() { Err(Error::NotEmpty { path: path() }) } else { Ok(Vec::new()) }
        }
    }
}

/// The unfinished file of a shard, in which what was found is written.
fn open(output: &Path, plan: &Plan, found: &Progressed, shard: usize) -> Result<SafetensorsWriter, Error> {
    let Some((name, file)) = plan.shards.files().nth(shard) else {
        return Err(Error::Config { path: output.to_owned(), reason: format!("no file {shard} was planned") });
    };
    Ok(SafetensorsWriter::resume(output.join(name), file.clone(), &found.sections(shard, plan))?)
}

/// Tells one job from another: every header with its names, types, shapes and formats, the recipe, the layout, the
/// calibration text, and the version of this program, whose successors may round differently.
fn plan_checksum(plan: &Plan, options: &CompressOptions, calibration: Option<u64>) -> u64 {
    let (version, layout, recipe) = (env!("CARGO_PKG_VERSION"), options.layout, options.recipe.to_toml());
    let text = format!("{version}\0{layout}\0{recipe}\0{calibration:?}");
    checksum([text.as_bytes()].into_iter().chain(plan.shards.files().map(|(_, file)| file.head())))
}

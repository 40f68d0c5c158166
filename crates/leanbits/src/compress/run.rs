//! The job itself: start or resume, tensor by tensor, finish or clean up.

use super::folder::{self, checksum};
use super::journal::{self, Entry, Job, Journal};
use super::resume::{self, Progressed};
use super::{CompressOptions, Energy};
use crate::encode::{encode, largest_magnitude};
use crate::plan::{Plan, PlannedTensor};
use crate::recipe::Choice;
use crate::report::CompressReport;
use crate::storage::Section;
use crate::usage::Stopwatch;
use crate::{Error, Progress};
use quant_core::Format;
use quant_io::hf::{INDEX_NAME, copy_side_files};
use quant_io::safetensors::SafetensorsWriter;
use quant_io::{Checkpoint, write_atomically};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file that makes a folder a model; written last.
pub(super) const CONFIG: &str = "config.json";

/// A compression that has its output folder.
pub(super) struct Run<'a> {
    output: PathBuf,
    /// Whether the folder did not exist before.
    created: bool,
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    options: &'a CompressOptions,
    journal: Journal,
    /// What an interrupted run of this job had written, read back and checked.
    found: Progressed,
    /// Largest magnitudes of tensors that share a scale.
    shared: BTreeMap<String, f32>,
}

impl<'a> Run<'a> {
    /// Prepares the output folder, and takes over what an interrupted run of the same job left there.
    pub(super) fn start(
        output: &Path,
        checkpoint: &'a Checkpoint,
        plan: &'a Plan,
        options: &'a CompressOptions,
    ) -> Result<Self, Error> {
        let model = checkpoint.path();
        if let (Ok(a), Ok(b)) = (model.canonicalize(), output.canonicalize())
            && a == b
        {
            return Err(Error::SameFolder { path: output.to_owned() });
        }
        let job = Job::new(folder::fingerprint(model)?, plan_checksum(plan, options), &plan.shards);
        let created = !output.exists();
        std::fs::create_dir_all(output).map_err(|source| Error::file(output, "create", source))?;
        let entries = if created { Vec::new() } else { left_behind(output, &job, options.restart)? };
        let found = resume::check(output, plan, entries)?;
        let journal = Journal::write(output, &job, found.entries())?;
        Ok(Self {
            output: output.to_owned(),
            created,
            checkpoint,
            plan,
            options,
            journal,
            found,
            shared: BTreeMap::new(),
        })
    }

    /// Tensors that need not be written again.
    pub(super) fn resumed(&self) -> usize {
        self.found.entries().count()
    }

    /// Writes every tensor that is missing; returns the energies of all, `None` for those that were copied.
    pub(super) fn write_tensors(
        &mut self,
        progress: &mut dyn Progress,
        io: &mut Stopwatch,
        packing: &mut Stopwatch,
    ) -> Result<Vec<Option<Energy>>, Error> {
        let total = self.plan.tensors.iter().map(|tensor| tensor.source_bytes).sum();
        progress.begin("compressing", total);
        if self.resumed() > 0 {
            progress.note(&format!("continuing an interrupted run: {} tensors are done", self.resumed()));
        }
        let mut energies = Vec::with_capacity(self.plan.tensors.len());
        let mut tensors = self.plan.tensors.iter().peekable();
        for (shard, (name, file)) in self.plan.shards.files().enumerate() {
            let mut writer = None;
            while let Some(tensor) = tensors.next_if(|tensor| tensor.shard == shard) {
                if let Some(entry) = self.found.get(&tensor.name) {
                    energies.push(entry.energy());
                } else {
                    let writer = match &mut writer {
                        Some(writer) => writer,
                        none => none.insert(io.time(|| {
                            let written = self.found.sections(shard, self.plan);
                            SafetensorsWriter::resume(self.output.join(name), file.clone(), &written)
                        })?),
                    };
                    energies.push(self.write_tensor(tensor, writer, io, packing)?);
                }
                progress.advance(tensor.source_bytes, &tensor.name);
            }
            // A shard of which nothing was missing may still lack its name, or hold no tensor at all.
            if writer.is_none() && !self.found.is_complete(shard) {
                let written = self.found.sections(shard, self.plan);
                writer = Some(SafetensorsWriter::resume(self.output.join(name), file.clone(), &written)?);
            }
            if let Some(writer) = writer {
                io.time(|| writer.finish())?;
            }
        }
        Ok(energies)
    }

    fn write_tensor(
        &mut self,
        tensor: &PlannedTensor,
        writer: &mut SafetensorsWriter,
        io: &mut Stopwatch,
        packing: &mut Stopwatch,
    ) -> Result<Option<Energy>, Error> {
        let write = |writer: &mut SafetensorsWriter, sections: &[Section<'_>]| -> Result<u64, Error> {
            for section in sections {
                writer.write(&section.name, &section.bytes)?;
            }
            Ok(checksum(sections.iter().map(|section| &*section.bytes)))
        };
        let (sum, energy) = match tensor.decision.choice {
            Choice::Keep => {
                let sum = io.time(|| write(writer, &Section::kept(self.checkpoint, &tensor.name)?))?;
                (sum, None)
            }
            Choice::Quantize(format) => {
                let values = io.time(|| self.checkpoint.read_f32(&tensor.name))?;
                let amax = io.time(|| self.shared_amax(tensor, format))?;
                let file = self.checkpoint.path();
                let (sections, errors) = packing.time(|| {
                    let (packed, errors) = encode(file, &tensor.name, &values, &tensor.shape, format, amax)?;
                    drop(values);
                    Ok::<_, Error>((Section::packed(&tensor.name, &packed, self.options.layout)?, errors))
                })?;
                (io.time(|| write(writer, &sections))?, Some(Energy::of(&errors)))
            }
        };
        io.time(|| self.checkpoint.release_pages());
        self.journal.add(&Entry::new(&tensor.name, sum, energy))?;
        Ok(energy)
    }

    /// The largest magnitude of all tensors that share a scale with this one, found when the first of them is written.
    fn shared_amax(&mut self, tensor: &PlannedTensor, format: Format) -> Result<Option<f32>, Error> {
        let layout = self.options.layout;
        let Some(key) = layout.shared_scale(&tensor.name, format) else { return Ok(None) };
        if let Some(amax) = self.shared.get(&key) {
            return Ok(Some(*amax));
        }
        let mut amax = 0.0_f32;
        for (other, format) in self.plan.quantized() {
            if layout.shared_scale(&other.name, format).as_ref() == Some(&key) {
                amax = amax.max(largest_magnitude(&self.checkpoint.read_f32(&other.name)?));
            }
        }
        self.shared.insert(key, amax);
        Ok(Some(amax))
    }

    /// Writes everything but the weights, the configuration last.
    pub(super) fn finish(self, report: &CompressReport) -> Result<(), Error> {
        let write = |name: &str, bytes: &[u8]| write_atomically(self.output.join(name), bytes).map_err(Error::from);
        if let Some(index) = self.plan.shards.index() {
            write(INDEX_NAME, index.to_json().as_bytes())?;
        }
        copy_side_files(&self.checkpoint.side_files()?, &self.output)?;
        for (name, text) in report.files()? {
            write(name, text.as_bytes())?;
        }
        let config = folder::config(self.checkpoint, self.plan, self.options)?;
        write(CONFIG, super::to_json(&config)?.as_bytes())?;
        self.journal.finish()
    }

    /// Cleans up after an error. What was made of bad input is removed; after a failure to write, the run can be
    /// continued, so what is whole stays.
    pub(super) fn abandon(self, error: Error) -> Error {
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

/// Tells one job from another: every header with its names, types, shapes and formats, the recipe, the layout, and
/// the version of this program, whose successors may round differently.
fn plan_checksum(plan: &Plan, options: &CompressOptions) -> u64 {
    let text = format!("{}\0{}\0{}", env!("CARGO_PKG_VERSION"), options.layout, options.recipe.to_toml());
    checksum([text.as_bytes()].into_iter().chain(plan.shards.files().map(|(_, file)| file.head())))
}

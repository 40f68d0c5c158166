//! What a compression has finished, so that an interrupted one can go on.
//!
//! `OUT_DIR/leanbits-journal.jsonl`: the first line says which job this is, every further line names a
//! tensor whose bytes were written, with a checksum of them. A resumed run believes a line only after
//! it has read those bytes back.

use super::outcome::Outcome;
use super::state;
use crate::Error;
use quant_io::AtomicFile;
use quant_io::hf::ShardPlan;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Name of the journal in the output folder.
const JOURNAL: &str = "leanbits-journal.jsonl";
/// Name under which a journal is written before it takes the place of another one.
const TEMPORARY: &str = "leanbits-journal.jsonl.tmp";
/// Longest journal that is read back: about a million tensors.
const MAX_JOURNAL_BYTES: u64 = 1 << 28;
const VERSION: u32 = 2;

/// Which job a journal belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    version: u32,
    /// Checksum of the input's files: names, lengths, times.
    input: String,
    /// Checksum of the recipe, the layout and the plan that follows from them.
    plan: String,
    /// The files that the job writes weights to.
    files: Vec<String>,
}

impl Job {
    pub(super) fn new(input: u64, plan: u64, shards: &ShardPlan) -> Self {
        let files = shards.files().map(|(name, _)| name.to_owned()).collect();
        Self { version: VERSION, input: format!("{input:016x}"), plan: format!("{plan:016x}"), files }
    }

    /// The files that the job writes weights to, as far as they are plain names.
    pub(super) fn files(&self) -> &[String] {
        &self.files
    }

    /// What distinguishes this job from another one.
    pub(super) fn difference(&self, other: &Self) -> &'static str {
        if self.input == other.input {
            "this model with other settings"
        } else {
            "another model, or this one before it changed"
        }
    }
}

/// A tensor whose bytes are in the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Checksum of all its sections.
    checksum: String,
    pub(super) outcome: Outcome,
}

impl Entry {
    pub(super) fn new(name: &str, checksum: u64, outcome: Outcome) -> Self {
        Self { name: name.to_owned(), checksum: format!("{checksum:016x}"), outcome }
    }

    pub(super) fn agrees(&self, checksum: u64) -> bool {
        self.checksum == format!("{checksum:016x}")
    }
}

/// The journal of a running job.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Writes a journal that holds these entries, in place of one that may be there.
    pub(super) fn write<'a>(folder: &Path, job: &Job, entries: impl Iterator<Item = &'a Entry>) -> Result<Self, Error> {
        let (path, temporary) = (folder.join(JOURNAL), folder.join(TEMPORARY));
        let file = File::create(&temporary).map_err(|source| Error::file(&temporary, "create", source))?;
        let mut journal = Self { path: temporary, file };
        journal.line(job)?;
        for entry in entries {
            journal.line(entry)?;
        }
        std::fs::rename(&journal.path, &path).map_err(|source| Error::file(&path, "rename", source))?;
        journal.path = path;
        Ok(journal)
    }

    /// Reads the journal that an interrupted run left: the job and what it had finished.
    pub(super) fn open(folder: &Path) -> Result<Option<(Job, Vec<Entry>)>, Error> {
        let path = folder.join(JOURNAL);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::file(&path, "open", source)),
        };
        let mut lines = BufReader::new(file.take(MAX_JOURNAL_BYTES)).split(b'\n').map_while(Result::ok);
        let job: Option<Job> = lines.next().and_then(|line| serde_json::from_slice(&line).ok());
        // A line that was being written when the run ended does not parse: it and all after it do not count.
        let entries = lines.map_while(|line| serde_json::from_slice(&line).ok()).collect();
        match job {
            Some(job) if job.version == VERSION => Ok(Some((job, entries))),
            _ => Err(Error::Config { path, reason: "this is no journal of this version of the program".to_owned() }),
        }
    }

    /// Adds a finished tensor.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), Error> {
        self.line(entry)
    }

    /// Removes the journal: the job is done.
    pub(super) fn finish(self) -> Result<(), Error> {
        std::fs::remove_file(&self.path).map_err(|source| Error::file(&self.path, "remove", source))
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let mut bytes = serde_json::to_vec(value).map_err(|error| Error::file(&self.path, "write", error.into()))?;
        bytes.push(b'\n');
        // One write a line: a kill between writes leaves whole lines.
        self.file.write_all(&bytes).map_err(|source| Error::file(&self.path, "write", source))
    }
}

/// Removes what a job left in its folder: weights, finished or not, saved activations, and the journal. What cannot be removed stays.
pub(super) fn remove(folder: &Path, files: &[String]) {
    let plain = |name: &&String| Path::new(name.as_str()).file_name().is_some_and(|file| file == name.as_str());
    for name in files.iter().filter(plain) {
        let target = folder.join(name);
        let _ = std::fs::remove_file(AtomicFile::temporary_path(&target));
        let _ = std::fs::remove_file(target);
    }
    state::remove(folder);
    for name in [TEMPORARY, JOURNAL] {
        let _ = std::fs::remove_file(folder.join(name));
    }
}

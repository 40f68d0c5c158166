//! What an interrupted run left in the output folder, checked byte by byte.

use super::folder::checksum;
use super::journal::Entry;
use crate::Error;
use crate::plan::Plan;
use quant_io::AtomicFile;
use quant_io::safetensors::FilePlan;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The tensors and files that need not be written again.
#[derive(Debug, Default)]
pub(super) struct Progressed {
    tensors: BTreeMap<String, Entry>,
    /// Shards that are whole and have their name.
    complete: BTreeSet<usize>,
}

impl Progressed {
    /// The tensors.
    pub(super) fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.tensors.values()
    }

    /// The tensor of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// Whether a shard is whole and has its name.
    pub(super) fn is_complete(&self, shard: usize) -> bool {
        self.complete.contains(&shard)
    }

    /// Names of the sections that are in the unfinished file of a shard.
    pub(super) fn sections<'a>(&self, shard: usize, plan: &'a Plan) -> Vec<&'a str> {
        let done = plan.tensors.iter().filter(|tensor| tensor.shard == shard && self.get(&tensor.name).is_some());
        done.flat_map(|tensor| tensor.sections.iter().map(String::as_str)).collect()
    }
}

/// Reads back every tensor that the journal calls finished, and keeps those whose checksum agrees.
///
/// A finished shard with a damaged tensor becomes an unfinished one, so that only that tensor is written again;
/// a file with another header than planned is removed.
pub(super) fn check(output: &Path, plan: &Plan, entries: Vec<Entry>) -> Result<Progressed, Error> {
    let mut claimed: BTreeMap<String, Entry> = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    let mut progressed = Progressed::default();
    for (shard, (name, file)) in plan.shards.files().enumerate() {
        let target = output.join(name);
        let unfinished = AtomicFile::temporary_path(&target);
        let named = open(&target, file)?;
        let is_named = named.is_some();
        let Some(mut source) = named.map_or_else(|| open(&unfinished, file), |file| Ok(Some(file)))? else { continue };
        let mut whole = true;
        for tensor in plan.tensors.iter().filter(|tensor| tensor.shard == shard) {
            let agrees = match claimed.get(&tensor.name) {
                Some(entry) => read_back(&mut source, file, &tensor.sections).is_ok_and(|sum| entry.agrees(sum)),
                None => false,
            };
            whole &= agrees;
            if agrees && let Some(entry) = claimed.remove(&tensor.name) {
                progressed.tensors.insert(entry.name.clone(), entry);
            }
        }
        if is_named && whole {
            progressed.complete.insert(shard);
        } else if is_named {
            std::fs::rename(&target, &unfinished).map_err(|source| Error::file(&target, "rename", source))?;
        }
    }
    Ok(progressed)
}

/// Opens a file if it has the planned length and header; removes it if it has not.
fn open(path: &Path, plan: &FilePlan) -> Result<Option<File>, Error> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::file(path, "open", source)),
    };
    let mut head = vec![0; plan.head().len()];
    let fits = file.metadata().is_ok_and(|metadata| metadata.len() == plan.file_bytes())
        && file.read_exact(&mut head).is_ok()
        && head == plan.head();
    if fits {
        return Ok(Some(file));
    }
    std::fs::remove_file(path).map_err(|source| Error::file(path, "remove", source))?;
    Ok(None)
}

/// Checksum of some sections as they are in a file.
fn read_back(file: &mut File, plan: &FilePlan, sections: &[String]) -> std::io::Result<u64> {
    let mut parts = Vec::with_capacity(sections.len());
    for name in sections {
        let info = plan.header().get(name).ok_or(std::io::ErrorKind::NotFound)?;
        file.seek(SeekFrom::Start(plan.header().data_start() + info.range.start))?;
        let mut bytes = vec![0; usize::try_from(info.bytes()).map_err(|_| std::io::ErrorKind::OutOfMemory)?];
        file.read_exact(&mut bytes)?;
        parts.push(bytes);
    }
    Ok(checksum(parts.iter().map(Vec::as_slice)))
}

//! Writing a model as shards of limited size, one tensor at a time.

use super::index::{INDEX_NAME, Index};
use crate::atomic::write_atomically;
use crate::error::shorten;
use crate::safetensors::{FilePlan, SafetensorsFile, SafetensorsWriter, TensorSpec};
use crate::{AtomicFile, Error};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How to lay out shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardOptions {
    /// Most bytes of tensors a shard holds, unless a single group is larger.
    pub max_shard_bytes: u64,
    /// Keep complete shards with the planned header that are there already, from an interrupted run.
    pub keep_finished: bool,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self { max_shard_bytes: 5_000_000_000, keep_finished: false }
    }
}

/// Which file holds which tensor, and the exact size of everything, before a byte is written.
#[derive(Clone, Debug)]
pub struct ShardPlan {
    files: Vec<(String, FilePlan)>,
    /// File of each tensor.
    place: BTreeMap<String, usize>,
}

impl ShardPlan {
    /// Distributes groups of tensors over shards, in the order given. The tensors of a group (the
    /// sections of one packed weight) stay in one file, as do the metadata entries that go with it.
    ///
    /// One shard is named `model.safetensors` and has no index; several are
    /// `model-00001-of-0000N.safetensors`.
    ///
    /// # Errors
    ///
    /// As [`FilePlan::new`].
    pub fn new(
        groups: &[(Vec<TensorSpec>, BTreeMap<String, String>)],
        metadata: &BTreeMap<String, String>,
        options: ShardOptions,
    ) -> Result<Self, Error> {
        let mut shards: Vec<(Vec<TensorSpec>, BTreeMap<String, String>)> = Vec::new();
        let mut used = 0_u64;
        for (specs, extra) in groups {
            let mut bytes = 0_u64;
            for spec in specs {
                bytes = bytes.saturating_add(spec.bytes()?);
            }
            if shards.is_empty() || (used > 0 && used.saturating_add(bytes) > options.max_shard_bytes) {
                shards.push((Vec::new(), metadata.clone()));
                used = 0;
            }
            used = used.saturating_add(bytes);
            if let Some((shard, shard_metadata)) = shards.last_mut() {
                shard.extend(specs.iter().cloned());
                shard_metadata.extend(extra.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
        }
        if shards.is_empty() {
            shards.push((Vec::new(), metadata.clone()));
        }
        let count = shards.len();
        let (mut files, mut place) = (Vec::with_capacity(count), BTreeMap::new());
        for (i, (specs, metadata)) in shards.into_iter().enumerate() {
            let name = if count == 1 {
                "model.safetensors".to_owned()
            } else {
                format!("model-{:05}-of-{count:05}.safetensors", i + 1)
            };
            for spec in &specs {
                if place.insert(spec.name.clone(), i).is_some() {
                    return Err(Error::DuplicateKey { key: shorten(&spec.name) });
                }
            }
            files.push((name, FilePlan::new(&specs, metadata)?));
        }
        Ok(Self { files, place })
    }

    /// The files and their plans.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&str, &FilePlan)> {
        self.files.iter().map(|(name, plan)| (name.as_str(), plan))
    }

    /// The index; absent for a single file.
    #[must_use]
    pub fn index(&self) -> Option<Index> {
        if self.files.len() == 1 {
            return None;
        }
        let weight_map = self.place.iter().map(|(name, &file)| (name.clone(), self.files[file].0.clone())).collect();
        let total_size = self.files.iter().map(|(_, plan)| plan.header().data_bytes()).sum();
        Some(Index { total_size: Some(total_size), weight_map })
    }

    /// Exact bytes of all files, the index included.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let index = self.index().map_or(0, |index| index.to_json().len() as u64);
        self.files.iter().map(|(_, plan)| plan.file_bytes()).sum::<u64>() + index
    }
}

/// Writes the shards of a plan. A shard appears when its last tensor is written, the index at the end.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    plan: ShardPlan,
    state: Vec<State>,
}

#[derive(Debug)]
enum State {
    Untouched,
    Open(Box<SafetensorsWriter>),
    /// Completed by this writer.
    Done,
    /// Found complete.
    Kept,
}

impl ShardWriter {
    /// Prepares to write into a folder, which is created.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn create(folder: impl AsRef<Path>, plan: ShardPlan, options: ShardOptions) -> Result<Self, Error> {
        let folder = folder.as_ref().to_owned();
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
        let state = plan
            .files()
            .map(|(name, file)| {
                let finished = options.keep_finished && is_finished(&folder.join(name), file);
                if finished { State::Kept } else { State::Untouched }
            })
            .collect();
        Ok(Self { folder, plan, state })
    }

    /// Prepares to write a plan of one shard as a file of any name.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the plan has several shards.
    pub fn create_file(target: impl AsRef<Path>, mut plan: ShardPlan) -> Result<Self, Error> {
        let target = target.as_ref();
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let [(file_name, _)] = plan.files.as_mut_slice() else {
            let reason = format!("the plan has {} shards; raise max_shard_bytes", plan.files.len());
            return Err(Error::Unsupported { what: format!("writing one file {name:?}"), reason });
        };
        *file_name = name;
        let folder = target.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { folder, plan, state: vec![State::Untouched] })
    }

    /// The plan being followed.
    #[must_use]
    pub fn plan(&self) -> &ShardPlan {
        &self.plan
    }

    /// Whether a tensor's shard is still to be completed; false for tensors of finished shards.
    #[must_use]
    pub fn needs(&self, name: &str) -> bool {
        self.plan.place.get(name).is_some_and(|&file| matches!(self.state[file], State::Untouched | State::Open(_)))
    }

    /// Writes one tensor, opening and completing its shard as needed.
    ///
    /// # Errors
    ///
    /// As [`SafetensorsWriter::write`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let not_planned = |folder: &Path| Error::NotPlanned { name: shorten(name) }.in_file(folder);
        let file = *self.plan.place.get(name).ok_or_else(|| not_planned(&self.folder))?;
        if matches!(self.state[file], State::Untouched) {
            self.open(file)?;
        }
        let State::Open(writer) = &mut self.state[file] else { return Err(not_planned(&self.folder)) };
        writer.write(name, bytes)?;
        if writer.missing() == 0
            && let State::Open(writer) = std::mem::replace(&mut self.state[file], State::Done)
        {
            writer.finish()?;
        }
        Ok(())
    }

    fn open(&mut self, file: usize) -> Result<(), Error> {
        let (name, plan) = &self.plan.files[file];
        let writer = SafetensorsWriter::create(self.folder.join(name), plan.clone())?;
        self.state[file] = State::Open(Box::new(writer));
        Ok(())
    }

    /// Completes the folder: shards without tensors, then the index.
    ///
    /// # Errors
    ///
    /// [`Error::Unwritten`] when a planned tensor is missing, [`Error::Io`].
    pub fn finish(mut self) -> Result<(), Error> {
        for file in 0..self.state.len() {
            if matches!(self.state[file], State::Untouched) {
                self.open(file)?;
            }
            if let State::Open(writer) = std::mem::replace(&mut self.state[file], State::Done) {
                writer.finish()?;
            }
        }
        match self.plan.index() {
            Some(index) => write_atomically(self.folder.join(INDEX_NAME), index.to_json().as_bytes()),
            None => Ok(()),
        }
    }
}

impl ShardWriter {
    /// Gives up: removes unfinished shards and those this writer completed. Shards that were kept from
    /// an earlier run stay.
    pub fn discard(self) {
        for ((name, _), state) in self.plan.files.iter().zip(&self.state) {
            if matches!(state, State::Done) {
                // A shard that cannot be removed is all that can be left; there is nobody to tell.
                let _ = std::fs::remove_file(self.folder.join(name));
            }
        }
    }
}

/// Whether a file is there, complete, with exactly the planned header.
fn is_finished(path: &Path, plan: &FilePlan) -> bool {
    let Ok(mut file) = std::fs::File::open(path) else { return false };
    let mut head = vec![0; plan.head().len()];
    file.metadata().is_ok_and(|m| m.len() == plan.file_bytes())
        && file.read_exact(&mut head).is_ok()
        && head == plan.head()
        && SafetensorsFile::open(path).is_ok()
}

/// Copies the side files of a model folder beside converted weights.
///
/// # Errors
///
/// [`Error::Io`].
pub fn copy_side_files(files: &[PathBuf], folder: impl AsRef<Path>) -> Result<(), Error> {
    for source in files {
        let bytes = crate::FileBytes::map(source)?;
        let mut copy = AtomicFile::create(folder.as_ref().join(source.file_name().unwrap_or_default()))?;
        copy.write_at(0, &bytes)?;
        copy.commit()?;
    }
    Ok(())
}

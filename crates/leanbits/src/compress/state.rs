//! The activations between two layers, saved so that an interrupted run need not begin at the first one.
//!
//! `OUT_DIR/leanbits-state.bin`: a line of JSON that says which job and layer this is, then the rows as f32
//! and what was learned.

use super::folder::checksum;
use super::journal::Job;
use crate::Error;
use quant_io::write_atomically;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the file in the output folder.
const STATE: &str = "leanbits-state.bin";

#[derive(Serialize, Deserialize)]
struct Head {
    job: Job,
    layer: usize,
    checksum: String,
    /// Floats behind the rows: what earlier layers learned.
    #[serde(default)]
    learned: usize,
}

/// What goes into a layer.
#[derive(Debug)]
pub(super) struct State {
    layer: usize,
    rows: Vec<f32>,
    learned: Vec<f32>,
}

impl State {
    /// The layer.
    pub(super) fn layer(&self) -> usize {
        self.layer
    }

    /// The rows of all windows.
    pub(super) fn into_rows(self) -> Vec<f32> {
        self.rows
    }

    /// What the layers before learned of their caches.
    pub(super) fn learned(&self) -> &[f32] {
        &self.learned
    }

    /// Reads what an interrupted run of this job saved; `None` where there is nothing, or something damaged or foreign.
    pub(super) fn load(folder: &Path, job: &Job) -> Option<Self> {
        let bytes = std::fs::read(folder.join(STATE)).ok()?;
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&bytes[..end]).ok()?;
        let rows = bytes.get(end + 1..)?;
        let (floats, rest) = rows.as_chunks::<4>();
        let whole = rest.is_empty() && head.checksum == format!("{:016x}", checksum([rows]));
        let mut rows: Vec<f32> = floats.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let learned = rows.split_off(rows.len().checked_sub(head.learned)?);
        (whole && head.job == *job).then_some(Self { layer: head.layer, rows, learned })
    }
}

/// Saves the rows that go into a layer, and what earlier layers learned, in place of those of the layer before.
pub(super) fn save(folder: &Path, job: &Job, layer: usize, rows: &[f32], learned: &[f32]) -> Result<(), Error> {
    let data: Vec<u8> = rows.iter().chain(learned).flat_map(|x| x.to_le_bytes()).collect();
    let checksum = format!("{:016x}", checksum([&*data]));
    let head = Head { job: job.clone(), layer, checksum, learned: learned.len() };
    let path = folder.join(STATE);
    let mut bytes = serde_json::to_vec(&head).map_err(|error| Error::file(&path, "write", error.into()))?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&data);
    Ok(write_atomically(path, &bytes)?)
}

/// Removes what was saved. What cannot be removed does no harm: it names its job.
pub(super) fn remove(folder: &Path) {
    let _ = std::fs::remove_file(folder.join(STATE));
}

//! What a job will do with each tensor, and the exact bytes that come of it, before anything is read.

use crate::Error;
use crate::recipe::{Choice, Decision, Method, Reason};
use crate::storage::{Sections, StorageLayout};
use quant_core::Format;
use quant_io::hf::{ShardOptions, ShardPlan};
use quant_io::safetensors::{DType, FilePlan};
use quant_io::{Checkpoint, Entry, Stored};
use std::collections::BTreeMap;

/// One tensor of a [`Plan`].
#[derive(Clone, Debug)]
pub(crate) struct PlannedTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) elements: u64,
    /// How it is stored in the input.
    pub(crate) stored: String,
    pub(crate) source_bytes: u64,
    /// Bytes it will take, all sections together.
    pub(crate) bytes: u64,
    pub(crate) decision: Decision,
    /// How its codes are found, if it is quantized.
    pub(crate) method: Method,
    /// The layer with which it is written, where a job works layer by layer.
    pub(crate) layer: Option<usize>,
    /// Whether it is rounded as a whole because it is not made of linears whose inputs can be looked at.
    pub(crate) whole: bool,
    /// Names of the tensors of the output that it becomes.
    pub(crate) sections: Vec<String>,
    /// File of the output that holds them.
    pub(crate) shard: usize,
}

impl PlannedTensor {
    /// How it will be stored, in a word.
    pub(crate) fn format_name(&self) -> String {
        match self.decision.choice {
            Choice::Keep => self.stored.clone(),
            Choice::Quantize(format) => format.to_string(),
        }
    }
}

/// The whole job.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) tensors: Vec<PlannedTensor>,
    pub(crate) shards: ShardPlan,
}

/// How a tensor is stored, in a word: a dtype, a format, or a ggml type.
pub(crate) fn stored_name(stored: &Stored) -> String {
    match stored {
        Stored::Plain(dtype) => dtype.name().to_lowercase(),
        Stored::Packed(format) => format.to_string(),
        Stored::Gguf(kind) => kind.to_string(),
        Stored::Reordered => "reordered integers".to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Whether an entry holds quantized values: packed ones, ggml blocks, or bare floats of at most 8 bits.
pub(crate) fn is_quantized(stored: &Stored) -> bool {
    match stored {
        Stored::Plain(dtype) => dtype.bits() <= 8 && !matches!(dtype, DType::I8 | DType::U8 | DType::Bool),
        _ => true,
    }
}

/// What becomes of an entry under a rule for float tensors.
pub(crate) fn decide(entry: &Entry, rule: impl FnOnce(&Entry) -> Decision) -> Decision {
    match entry.stored {
        Stored::Plain(dtype) if dtype.is_float() && entry.elements() > 0 => rule(entry),
        Stored::Plain(_) if !is_quantized(&entry.stored) => Decision { choice: Choice::Keep, reason: Reason::NotFloat },
        _ => Decision { choice: Choice::Keep, reason: Reason::AlreadyQuantized },
    }
}

impl Plan {
    /// Plans a job over some tensors of a checkpoint, each rounded to nearest.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        entries: &[Entry],
        layout: StorageLayout,
        max_shard_bytes: u64,
        rule: impl Fn(&Entry) -> Decision,
    ) -> Result<Self, Error> {
        let mut tensors = Vec::with_capacity(entries.len());
        let mut groups = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut decision = decide(entry, &rule);
            if let Choice::Quantize(format) = decision.choice {
                decision.choice = Choice::Quantize(layout.native_format(&entry.name, format)?);
            }
            let sections = match decision.choice {
                Choice::Keep => Sections::kept(checkpoint, entry)?,
                Choice::Quantize(format) => Sections::packed(entry, format, layout)?,
            };
            tensors.push(PlannedTensor {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                elements: entry.elements() as u64,
                stored: stored_name(&entry.stored),
                source_bytes: entry.bytes,
                bytes: sections.bytes()?,
                decision,
                method: Method::Rtn,
                layer: None,
                whole: false,
                sections: sections.specs.iter().map(|spec| spec.name.clone()).collect(),
                shard: 0,
            });
            groups.push((sections.specs, sections.metadata));
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let options = ShardOptions { max_shard_bytes, ..ShardOptions::default() };
        let shards = ShardPlan::new(&groups, &metadata, options)?;
        // Groups are placed in order, so the shard of a tensor is never before that of the one before it.
        let mut shard = 0;
        for tensor in &mut tensors {
            let holds = |(_, file): &(&str, &FilePlan)| {
                tensor.sections.first().is_some_and(|section| file.header().get(section).is_some())
            };
            shard += shards.files().skip(shard).position(|file| holds(&file)).unwrap_or(0);
            tensor.shard = shard;
        }
        Ok(Self { tensors, shards })
    }

    /// The tensor of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&PlannedTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The layer with which a tensor is written.
    pub(crate) fn layer_of(&self, name: &str) -> Option<usize> {
        self.get(name).and_then(|tensor| tensor.layer)
    }

    /// Bytes of all safetensors files.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.shards.files().map(|(_, plan)| plan.file_bytes()).sum()
    }

    /// Sum over all tensors.
    pub(crate) fn sum(&self, field: impl Fn(&PlannedTensor) -> u64) -> u64 {
        self.tensors.iter().map(field).sum()
    }

    /// Bits stored for each element of the quantized tensors.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub(crate) fn bits_per_weight(&self) -> f64 {
        let elements: u64 = self.quantized().map(|(tensor, _)| tensor.elements).sum();
        let bytes: u64 = self.quantized().map(|(tensor, _)| tensor.bytes).sum();
        if elements == 0 { 0.0 } else { 8.0 * bytes as f64 / elements as f64 }
    }

    /// Tensors that will be quantized.
    pub(crate) fn quantized(&self) -> impl Iterator<Item = (&PlannedTensor, Format)> {
        self.tensors.iter().filter_map(|tensor| match tensor.decision.choice {
            Choice::Quantize(format) => Some((tensor, format)),
            Choice::Keep => None,
        })
    }
}

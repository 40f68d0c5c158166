//! What a job will do with each tensor, and the exact bytes that come of it, before anything is read.

use crate::Error;
use crate::recipe::{Choice, Decision, Method, Reason};
use crate::storage::{Form, Sections, StorageLayout};
use quant_core::Format;
use quant_io::composed::VERSION as COMPOSED_VERSION;
use quant_io::hf::{ShardOptions, ShardPlan};
use quant_io::packed::VERSION_KEY;
use quant_io::safetensors::{DType, FilePlan};
use quant_io::{Checkpoint, Entry, Stored};
use std::collections::BTreeMap;
use vector_quant::rwkvquant::Uniformity;

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
    /// What is done with it.
    pub(crate) treatment: Treatment,
    /// Names of the tensors of the output that it becomes.
    pub(crate) sections: Vec<String>,
    /// File of the output that holds them.
    pub(crate) shard: usize,
}

/// What is done with a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Treatment {
    pub(crate) decision: Decision,
    /// The form it gets; `None` if it stays as it is.
    pub(crate) form: Option<Form>,
    /// How it is compressed, if it is.
    pub(crate) method: Method,
    /// The layer with which it is written, where a job works layer by layer.
    pub(crate) layer: Option<usize>,
    /// Whether it is compressed as a whole because it is not made of linears whose inputs can be looked at.
    pub(crate) whole: bool,
    /// The element-wise multipliers that it holds, one after the other, if they are coded.
    pub(crate) multipliers: Vec<String>,
    /// How evenly its weights are spaced, if the method looked at that.
    pub(crate) uniformity: Option<Uniformity>,
    /// What a reader of the report should know.
    pub(crate) note: Option<String>,
}

impl Treatment {
    /// A tensor that stays as it is.
    pub(crate) fn kept(decision: Decision) -> Self {
        Self {
            decision,
            form: None,
            method: Method::Rtn,
            layer: None,
            whole: false,
            multipliers: Vec::new(),
            uniformity: None,
            note: None,
        }
    }

    /// A tensor that is rounded to a format.
    pub(crate) fn rounded(decision: Decision, format: Format) -> Self {
        Self { form: Some(Form::Packed(format)), ..Self::kept(decision) }
    }
}

impl PlannedTensor {
    /// How it will be stored, in a word.
    pub(crate) fn format_name(&self) -> String {
        self.treatment.form.as_ref().map_or_else(|| self.stored.clone(), ToString::to_string)
    }

    /// Whether it stays as it is.
    pub(crate) fn is_kept(&self) -> bool {
        self.treatment.form.is_none()
    }

    /// The format it is packed in, if that is its form.
    pub(crate) fn packed_format(&self) -> Option<Format> {
        match self.treatment.form {
            Some(Form::Packed(format)) => Some(format),
            _ => None,
        }
    }

    /// The layer with which it is written.
    pub(crate) fn layer(&self) -> Option<usize> {
        self.treatment.layer
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
        Stored::Composed => "parts".to_owned(),
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
    /// Plans a job over some tensors of a checkpoint.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        entries: &[Entry],
        layout: StorageLayout,
        max_shard_bytes: u64,
        treatments: Vec<Treatment>,
    ) -> Result<Self, Error> {
        let mut tensors = Vec::with_capacity(entries.len());
        let mut groups = Vec::with_capacity(entries.len());
        for (entry, treatment) in entries.iter().zip(treatments) {
            let sections = match &treatment.form {
                None => Sections::kept(checkpoint, entry)?,
                Some(form) => Sections::new(checkpoint.path(), entry, form, layout)?,
            };
            tensors.push(PlannedTensor {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                elements: entry.elements() as u64,
                stored: stored_name(&entry.stored),
                source_bytes: entry.bytes,
                bytes: sections.bytes()?,
                treatment,
                sections: sections.specs.iter().map(|spec| spec.name.clone()).collect(),
                shard: 0,
            });
            groups.push((sections.specs, sections.metadata));
        }
        one_version(&mut groups);
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
        self.get(name).and_then(PlannedTensor::layer)
    }

    /// Bytes of all safetensors files.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.shards.files().map(|(_, plan)| plan.file_bytes()).sum()
    }

    /// Sum over all tensors.
    pub(crate) fn sum(&self, field: impl Fn(&PlannedTensor) -> u64) -> u64 {
        self.tensors.iter().map(field).sum()
    }

    /// Bits stored for each element of the compressed tensors.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub(crate) fn bits_per_weight(&self) -> f64 {
        let elements: u64 = self.compressed().map(|tensor| tensor.elements).sum();
        let bytes: u64 = self.compressed().map(|tensor| tensor.bytes).sum();
        if elements == 0 { 0.0 } else { 8.0 * bytes as f64 / elements as f64 }
    }

    /// Tensors that will be compressed.
    pub(crate) fn compressed(&self) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors.iter().filter(|tensor| !tensor.is_kept())
    }
}

/// Says the same container version in all files of a job: that of composed tensors if there is one.
fn one_version(groups: &mut [(Vec<quant_io::safetensors::TensorSpec>, BTreeMap<String, String>)]) {
    let composed = |metadata: &BTreeMap<String, String>| {
        metadata.get(VERSION_KEY).is_some_and(|version| version == COMPOSED_VERSION)
    };
    if groups.iter().any(|(_, metadata)| composed(metadata)) {
        for version in groups.iter_mut().filter_map(|(_, metadata)| metadata.get_mut(VERSION_KEY)) {
            COMPOSED_VERSION.clone_into(version);
        }
    }
}

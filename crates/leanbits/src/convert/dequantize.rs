//! Quantized tensors back to floats.

use super::check_output;
use crate::plan::is_quantized;
use crate::storage::{Section, read_f32, stored_form};
use crate::table::{self, Align, Table};
use crate::usage::peak_rss_bytes;
use crate::{Error, Progress};
use half::{bf16, f16};
use quant_io::hf::{ShardOptions, ShardPlan, ShardWriter, copy_side_files};
use quant_io::safetensors::{DType, SafetensorsWriter, TensorSpec};
use quant_io::{Checkpoint, Entry, write_atomically};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// A type that decoded values are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum FloatType {
    /// IEEE binary32: every decoded value exactly.
    #[default]
    F32,
    /// IEEE binary16, rounded to nearest even; values beyond its range are an error.
    F16,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

impl FloatType {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The type of plain tensors of this dtype; `None` for those that are not floats of 16 or 32 bits.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|float| float.dtype() == dtype)
    }

    /// The values in this type, little-endian; the position of the first one that does not fit as the error.
    pub(crate) fn bytes(self, values: &[f32]) -> Result<Vec<u8>, usize> {
        // A finite value that becomes infinite does not fit; one that was not finite stays what it was.
        let fits =
            |at: usize, x: f32, rounded: f32| if x.is_finite() && !rounded.is_finite() { Err(at) } else { Ok(()) };
        let mut out = Vec::with_capacity(values.len() * if self == Self::F32 { 4 } else { 2 });
        for (at, &x) in values.iter().enumerate() {
            match self {
                Self::F32 => out.extend_from_slice(&x.to_le_bytes()),
                Self::F16 => {
                    let rounded = f16::from_f32(x);
                    fits(at, x, rounded.to_f32())?;
                    out.extend_from_slice(&rounded.to_le_bytes());
                }
                Self::Bf16 => {
                    let rounded = bf16::from_f32(x);
                    fits(at, x, rounded.to_f32())?;
                    out.extend_from_slice(&rounded.to_le_bytes());
                }
            }
        }
        Ok(out)
    }
}

/// How to decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DequantizeOptions {
    /// Type of the decoded tensors.
    pub dtype: FloatType,
    /// Whether an output that exists is replaced.
    pub overwrite: bool,
}

/// One tensor of a [`DequantizeReport`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DequantizedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it was stored.
    pub from: String,
    /// How it is stored now.
    pub to: String,
    /// Bytes it takes now.
    pub bytes: u64,
}

/// What [`dequantize`] did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DequantizeReport {
    /// Bytes of all tensors now.
    pub bytes: u64,
    /// Bytes of all tensors before.
    pub source_bytes: u64,
    /// How many tensors were decoded.
    pub decoded: usize,
    /// Seconds it took.
    pub seconds: f64,
    /// Largest resident memory of the process; `None` where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// Every tensor.
    pub tensors: Vec<DequantizedTensor>,
}

/// Decodes every quantized tensor of a file or folder; the others are copied.
///
/// A folder becomes a folder, with its side files and with `quantization_config` taken out of `config.json`, unless
/// `output` ends in `.safetensors`; a file becomes a safetensors file.
///
/// # Errors
///
/// [`Error::NothingQuantized`], [`Error::OutOfRange`] when f16 cannot hold a value, [`Error::Exists`],
/// [`Error::Io`]. Nothing is left behind.
pub fn dequantize(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &DequantizeOptions,
    progress: &mut dyn Progress,
) -> Result<DequantizeReport, Error> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let start = Instant::now();
    check_output(output, options.overwrite)?;
    let checkpoint = Checkpoint::open(input)?;
    let decoded = checkpoint.entries().iter().filter(|entry| is_quantized(&entry.stored)).count();
    if decoded == 0 {
        return Err(Error::NothingQuantized { file: input.to_owned(), tensors: checkpoint.entries().len() });
    }
    let specs: Result<Vec<TensorSpec>, Error> =
        checkpoint.entries().iter().map(|entry| spec(entry, options.dtype)).collect();
    let specs = specs?;
    let source_bytes = checkpoint.entries().iter().map(|entry| entry.bytes).sum();
    progress.begin("dequantizing", source_bytes);
    let to_folder = input.is_dir() && output.extension().is_none_or(|extension| extension != "safetensors");
    let limit = if to_folder {
        ShardOptions::default()
    } else {
        ShardOptions { max_shard_bytes: u64::MAX, ..ShardOptions::default() }
    };
    let groups: Vec<_> = specs.iter().map(|spec| (vec![spec.clone()], BTreeMap::new())).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let plan = ShardPlan::new(&groups, &metadata, limit)?;
    if to_folder {
        write_folder(&checkpoint, output, plan, options.dtype, progress)?;
    } else {
        for (_, file) in plan.files() {
            let mut writer = SafetensorsWriter::create(output, file.clone())?;
            each_tensor(&checkpoint, options.dtype, progress, |name, bytes| Ok(writer.write(name, bytes)?))?;
            writer.finish()?;
        }
    }
    progress.end();
    let tensors = checkpoint.entries().iter().zip(&specs).map(|(entry, spec)| {
        Ok(DequantizedTensor {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            from: stored_form(&checkpoint, entry)?,
            to: spec.dtype.name().to_lowercase(),
            bytes: spec.bytes()?,
        })
    });
    let tensors: Vec<DequantizedTensor> = tensors.collect::<Result<_, Error>>()?;
    Ok(DequantizeReport {
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        source_bytes,
        decoded,
        seconds: start.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        tensors,
    })
}

fn spec(entry: &Entry, dtype: FloatType) -> Result<TensorSpec, Error> {
    let dtype = match entry.stored {
        quant_io::Stored::Plain(kept) if !is_quantized(&entry.stored) => kept,
        _ => dtype.dtype(),
    };
    Ok(TensorSpec::new(entry.name.clone(), dtype, &entry.shape))
}

/// Decodes or lends the tensors one after the other.
fn each_tensor(
    checkpoint: &Checkpoint,
    dtype: FloatType,
    progress: &mut dyn Progress,
    mut write: impl FnMut(&str, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    for entry in checkpoint.entries() {
        let name = &entry.name;
        if is_quantized(&entry.stored) {
            let values = read_f32(checkpoint, name)?;
            let bytes = dtype.bytes(&values).map_err(|index| Error::OutOfRange {
                file: checkpoint.path().to_owned(),
                tensor: name.clone(),
                index,
                value: values.get(index).copied().unwrap_or(f32::NAN),
                dtype: dtype.dtype().name(),
            })?;
            drop(values);
            write(name, &bytes)?;
        } else {
            for section in Section::kept(checkpoint, name)? {
                write(&section.name, &section.bytes)?;
            }
        }
        checkpoint.release_pages();
        progress.advance(entry.bytes, name);
    }
    Ok(())
}

fn write_folder(
    checkpoint: &Checkpoint,
    output: &Path,
    plan: ShardPlan,
    dtype: FloatType,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let created = !output.exists();
    let names: Vec<String> = plan.files().map(|(name, _)| name.to_owned()).collect();
    let work = || -> Result<(), Error> {
        let mut writer = ShardWriter::create(output, plan, ShardOptions::default())?;
        each_tensor(checkpoint, dtype, progress, |name, bytes| Ok(writer.write(name, bytes)?))?;
        writer.finish()?;
        copy_side_files(&checkpoint.side_files()?, output)?;
        if let Some(config) = checkpoint.config() {
            let mut config = config.clone();
            if let Some(config) = config.as_object_mut() {
                config.remove("quantization_config");
            }
            write_atomically(output.join("config.json"), crate::compress::to_json(&config)?.as_bytes())?;
        }
        Ok(())
    };
    let done = work();
    if done.is_err() && created {
        // Only what this call made: the folder was not there before.
        for name in names {
            let _ = std::fs::remove_file(output.join(name));
        }
        let _ = std::fs::remove_dir(output);
    }
    done
}

impl DequantizeReport {
    /// The report for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut table = Table::new(&[
            ("tensor", Align::Left),
            ("shape", Align::Left),
            ("was", Align::Left),
            ("is", Align::Left),
            ("bytes", Align::Right),
        ]);
        for tensor in &self.tensors {
            table.row(vec![
                tensor.name.clone(),
                table::shape(&tensor.shape),
                tensor.from.clone(),
                tensor.to.clone(),
                tensor.bytes.to_string(),
            ]);
        }
        format!(
            "{}\n{} tensors decoded; {} instead of {}; took {:.1} s\n",
            table.to_text(),
            self.decoded,
            table::bytes(self.bytes),
            table::bytes(self.source_bytes),
            self.seconds
        )
    }
}

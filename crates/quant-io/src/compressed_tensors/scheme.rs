//! What the layout can hold, and how a format is described in its terms.

use super::config::{Number, StorageFormat, Strategy, WeightArgs};
use super::words::Words;
use crate::Error;
use crate::error::shorten;
use crate::safetensors::{DType, TensorSpec};
use quant_core::{Block, Element, FloatKind, Format, IntRule, NvRule, Overflow, Scale, ScaleType};
use serde_json::{Value, json};

/// What is written for scales that are floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Scales {
    /// The type of the format. The Python package multiplies in that type, so that from f16 and bf16
    /// scales it gets our values rounded once to that type.
    #[default]
    AsEncoded,
    /// f32, whatever the type of the format; the package then decompresses to our very values.
    F32,
}

/// What is written for 8-bit integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Int8 {
    /// Packed into words (`pack-quantized`): what the package and vLLM expect of quantized weights under
    /// activations that are not.
    #[default]
    Packed,
    /// One byte each (`int-quantized`).
    Bytes,
}

/// Choices in writing that do not change a single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct WriteOptions {
    /// The type of scales.
    pub scales: Scales,
    /// The layout of 8-bit integers.
    pub int8: Int8,
}

/// The formats the layout can hold, for messages.
const HOLDS: &str = "compressed-tensors holds int1 to int8 with integer or no zero points, fp8-e4m3, mxfp8-e4m3, \
                     mxfp6-e2m3 and mxfp4 in groups of 32, and nvfp4 in groups of 16";

/// A format in the terms of the layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scheme {
    pub(super) storage: StorageFormat,
    pub(super) args: WeightArgs,
    pub(super) scales: DType,
}

/// The format to encode in so that other programs compute with the numbers that were meant. `None` when
/// the layout cannot hold anything alike.
///
/// Float scales become bf16: loaders cast them to the type of the model, bf16 as a rule, and a scale that
/// changes after codes were chosen for it adds an error to a whole group. NVFP4's tensor scale is kept
/// as the reciprocal that the layout stores. Scale rules stay as they are.
///
/// ```
/// use quant_core::Format;
/// use quant_io::compressed_tensors::native_format;
/// let native = |format| native_format(format).map(|f| f.to_string());
/// assert_eq!(native(Format::INT4_G128).as_deref(), Some("int4-g128-bf16"));
/// assert_eq!(native(Format::FP8_E4M3).as_deref(), Some("fp8-e4m3-bf16"));
/// assert_eq!(native(Format::NVFP4).as_deref(), Some("nvfp4-ct"));
/// assert_eq!(native(Format::MXFP4).as_deref(), Some("mxfp4"));
/// assert_eq!(native(Format::NF4), None);
/// ```
#[must_use]
pub fn native_format(format: Format) -> Option<Format> {
    let native = match (format.element, format.scale) {
        (_, Scale::Float(_)) => Format { scale: Scale::Float(ScaleType::Bf16), ..format },
        (_, Scale::E4m3(_)) => Format { scale: Scale::E4m3(NvRule::CompressedTensors), ..format },
        _ => format,
    };
    Scheme::of("", native, WriteOptions::default()).is_ok().then_some(native)
}

impl Scheme {
    /// # Errors
    ///
    /// [`Error::GridMismatch`].
    pub(super) fn of(module: &str, format: Format, options: WriteOptions) -> Result<Self, Error> {
        let refused = |reason| {
            let (tensor, format) = (shorten(module), format.to_string());
            Err(Error::GridMismatch { tensor, format, target: "compressed-tensors", reason })
        };
        let strategy = match format.block {
            Block::Tensor => Strategy::Tensor,
            Block::Row => Strategy::Channel,
            Block::Group(group) => Strategy::Group(group),
            Block::Tile { rows, columns } => Strategy::Block { rows, columns },
        };
        let of = |storage, bits, number, symmetric, scales, power_of_two_scales| {
            Ok(Self { storage, args: WeightArgs { bits, number, symmetric, strategy, power_of_two_scales }, scales })
        };
        let e4m3 = matches!(format.element, Element::Float { kind: FloatKind::E4m3Fn, overflow: Overflow::Saturate });
        match (format.element, format.scale) {
            (Element::Int { bits, rule }, Scale::Float(kind)) => {
                let symmetric = match rule {
                    IntRule::Restricted if bits == 1 => {
                        return refused("its one bit is a sign; the layout's one-bit integers are -1 and 0");
                    }
                    IntRule::FloatMin | IntRule::Mlx => return refused("its zero points are not integers"),
                    IntRule::Asymmetric | IntRule::CtAsym | IntRule::AwqAsym => false,
                    IntRule::Restricted | IntRule::Full | IntRule::CtSym | IntRule::GptqSym | IntRule::AwqSym => true,
                };
                if matches!(strategy, Strategy::Block { .. }) {
                    return refused("the layout has tiles for fp8 only");
                }
                let storage = if bits == 8 && options.int8 == Int8::Bytes {
                    StorageFormat::IntQuantized
                } else {
                    StorageFormat::PackQuantized
                };
                of(storage, bits, Number::Int, symmetric, scale_dtype(kind, options), false)
            }
            (_, Scale::Float(kind)) if e4m3 => {
                of(StorageFormat::FloatQuantized, 8, Number::Float, true, scale_dtype(kind, options), false)
            }
            (Element::Float { kind, .. }, Scale::E8m0(_)) if format.block == Block::Group(32) => match kind {
                FloatKind::E4m3Fn => of(StorageFormat::Mxfp8, 8, Number::Float, true, DType::U8, true),
                FloatKind::E2m3 => of(StorageFormat::Mxfp6Pack, 6, Number::Float, true, DType::U8, true),
                FloatKind::E2m1 => of(StorageFormat::Mxfp4Pack, 4, Number::Float, true, DType::U8, true),
                _ => refused(HOLDS),
            },
            (Element::Float { kind: FloatKind::E2m1, .. }, Scale::E4m3(_)) if format.block == Block::Group(16) => {
                of(StorageFormat::Nvfp4Pack, 4, Number::Float, true, DType::F8E4M3, false)
            }
            _ => refused(HOLDS),
        }
    }

    /// Names, types and shapes of a module's tensors.
    ///
    /// # Errors
    ///
    /// [`Error::GridMismatch`] for tensors that are no matrices, [`Error::RaggedBlocks`],
    /// [`Error::Overflow`].
    pub(super) fn tensors(&self, module: &str, format: Format, shape: &[usize]) -> Result<Vec<TensorSpec>, Error> {
        let &[rows, columns] = shape else {
            return Err(Error::GridMismatch {
                tensor: shorten(module),
                format: format.to_string(),
                target: "compressed-tensors",
                reason: "the layout holds matrices only",
            });
        };
        let spec = |section: &str, dtype, shape: &[usize]| TensorSpec::new(format!("{module}.{section}"), dtype, shape);
        let overflow = || Error::Overflow { what: shorten(module), shape: vec![rows as u64, columns as u64] };
        let words = |count| Words::Dense.count(self.args.bits, count).ok_or_else(overflow);
        let blocks = match self.args.strategy {
            Strategy::Tensor => vec![1],
            Strategy::Channel => vec![rows, 1],
            Strategy::Group(group) => {
                if !columns.is_multiple_of(group as usize) {
                    let (row, block) = (columns as u64, u64::from(group));
                    return Err(Error::RaggedBlocks { tensor: shorten(module), row, block });
                }
                vec![rows, columns / group as usize]
            }
            Strategy::Block { rows: r, columns: c } => vec![rows.div_ceil(r as usize), columns.div_ceil(c as usize)],
        };
        let mut tensors = vec![spec("weight_scale", self.scales, &blocks)];
        match self.storage {
            StorageFormat::PackQuantized => {
                tensors.push(spec("weight_packed", DType::I32, &[rows, words(columns)?]));
                tensors.push(spec("weight_shape", DType::I64, &[2]));
            }
            StorageFormat::IntQuantized => tensors.push(spec("weight", DType::I8, &[rows, columns])),
            StorageFormat::FloatQuantized | StorageFormat::Mxfp8 => {
                tensors.push(spec("weight", DType::F8E4M3, &[rows, columns]));
            }
            _ => {
                let bits = columns.checked_mul(usize::from(self.args.bits)).ok_or_else(overflow)?;
                tensors.push(spec("weight_packed", DType::U8, &[rows, bits / 8]));
            }
        }
        if self.storage == StorageFormat::Nvfp4Pack {
            tensors.push(spec("weight_global_scale", DType::F32, &[1]));
        }
        if !self.args.symmetric {
            let packed = self.storage == StorageFormat::PackQuantized && blocks.len() == 2;
            tensors.push(if packed {
                spec("weight_zero_point", DType::I32, &[words(rows)?, blocks[1]])
            } else {
                spec("weight_zero_point", DType::I8, &blocks)
            });
        }
        Ok(tensors)
    }

    /// The entry of `config_groups`.
    pub(super) fn group(&self, targets: &[String]) -> Value {
        let args = self.args;
        let strategy = match args.strategy {
            Strategy::Tensor => "tensor",
            Strategy::Channel => "channel",
            Strategy::Group(_) if self.storage == StorageFormat::Nvfp4Pack => "tensor_group",
            Strategy::Group(_) => "group",
            Strategy::Block { .. } => "block",
        };
        let group_size = if let Strategy::Group(size) = args.strategy { Some(size) } else { None };
        let mut weights = json!({
            "num_bits": args.bits,
            "type": if args.number == Number::Int { "int" } else { "float" },
            "symmetric": args.symmetric,
            "strategy": strategy,
            "group_size": group_size,
            "dynamic": false,
            "actorder": null,
        });
        // Keys that old versions of the package do not know appear only where they are needed.
        if let Strategy::Block { rows, columns } = args.strategy {
            weights["block_structure"] = json!([rows, columns]);
        }
        match self.storage {
            StorageFormat::Nvfp4Pack => weights["scale_dtype"] = json!("torch.float8_e4m3fn"),
            _ if args.power_of_two_scales => weights["scale_dtype"] = json!("torch.uint8"),
            _ => {}
        }
        json!({
            "targets": targets,
            "weights": weights,
            "input_activations": null,
            "output_activations": null,
            "format": self.storage.name(),
        })
    }
}

fn scale_dtype(kind: ScaleType, options: WriteOptions) -> DType {
    match (kind, options.scales) {
        (ScaleType::F32, _) | (_, Scales::F32) => DType::F32,
        (ScaleType::F16, _) => DType::F16,
        (ScaleType::Bf16, _) => DType::BF16,
    }
}

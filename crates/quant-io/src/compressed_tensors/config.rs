//! The `quantization_config` object of config.json.

use super::presets;
use crate::Error;
use crate::error::shorten;
use serde_json::{Map, Value};

/// How the tensors of a module are laid out, the key `format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageFormat {
    /// Not compressed.
    Dense,
    /// Integers, one byte each.
    IntQuantized,
    /// FP8 E4M3, one byte each.
    FloatQuantized,
    /// Either of the two above, told apart by the arguments.
    NaiveQuantized,
    /// Integers of 1 to 8 bits packed into 32-bit words.
    PackQuantized,
    /// FP4 E2M1 under E4M3 scales and a global scale.
    Nvfp4Pack,
    /// FP4 E2M1 under E8M0 scales.
    Mxfp4Pack,
    /// FP6 E2M3 under E8M0 scales.
    Mxfp6Pack,
    /// FP8 E4M3 under E8M0 scales.
    Mxfp8,
    /// Each group says its own.
    MixedPrecision,
}

impl StorageFormat {
    const NAMES: [(&'static str, Self); 10] = [
        ("dense", Self::Dense),
        ("int-quantized", Self::IntQuantized),
        ("float-quantized", Self::FloatQuantized),
        ("naive-quantized", Self::NaiveQuantized),
        ("pack-quantized", Self::PackQuantized),
        ("nvfp4-pack-quantized", Self::Nvfp4Pack),
        ("mxfp4-pack-quantized", Self::Mxfp4Pack),
        ("mxfp6-pack-quantized", Self::Mxfp6Pack),
        ("mxfp8-quantized", Self::Mxfp8),
        ("mixed-precision", Self::MixedPrecision),
    ];

    /// The name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, format)| *format == self).map_or("dense", |(name, _)| name)
    }

    fn parse(name: &str) -> Result<Self, Error> {
        if let Some((_, format)) = Self::NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(*format);
        }
        let reason = match name {
            // Weights that went through rounding but are stored as they were.
            "fakequant" => return Ok(Self::Dense),
            "marlin-24" | "sparse-24-bitmask" | "sparse-bitmask" => {
                "sparse layouts are not read; the Python package dropped them too"
            }
            _ => "it is not a layout of compressed-tensors known here",
        };
        Err(unsupported(&format!("format {:?}", shorten(name)), reason))
    }
}

/// What a weight is rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// Integers.
    Int,
    /// E4M3, E2M3 or E2M1, by the number of bits.
    Float,
}

/// Which elements of a weight share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// All of them.
    Tensor,
    /// Each row.
    Channel,
    /// This many consecutive elements of a row.
    Group(u32),
    /// Rectangles of rows × columns.
    Block {
        /// Rows of a rectangle.
        rows: u32,
        /// Columns of a rectangle.
        columns: u32,
    },
}

/// How the weights of a group of modules are quantized, the key `weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightArgs {
    /// Bits an element, 1 to 8.
    pub bits: u8,
    /// Integers or floats.
    pub number: Number,
    /// Whether there is no zero point.
    pub symmetric: bool,
    /// Which elements share a scale.
    pub strategy: Strategy,
    /// Whether `scale_dtype` is `torch.uint8`, that is, scales are powers of two.
    pub power_of_two_scales: bool,
}

/// One entry of `config_groups`: modules and how they are quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its key.
    pub name: String,
    /// Module names, class names such as `Linear`, and `re:` patterns.
    pub targets: Vec<String>,
    /// How weights are quantized; `None` where only activations are.
    pub weights: Option<WeightArgs>,
    /// How the weights are laid out.
    pub format: StorageFormat,
    /// Whether inputs are quantized as well when the model runs; nothing of this is done here.
    pub quantizes_inputs: bool,
}

/// A parsed `quantization_config` of the method `compressed-tensors`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The groups, in the order of the file's keys as sorted.
    pub groups: Vec<Group>,
    /// Modules that are left alone although a target covers them.
    pub ignore: Vec<String>,
    /// The overall layout.
    pub format: StorageFormat,
    /// Whether words are packed without gaps; `None` when the file does not say which version of the
    /// Python package wrote it. Versions before 0.17 left the top `32 mod b` bits of a word unused.
    pub dense_words: Option<bool>,
}

impl Config {
    /// Parses config.json, or its `quantization_config` alone. `None` when the model is not
    /// quantized, or by another method.
    ///
    /// Unknown keys are ignored, absent keys take the defaults of the Python package, and a group may
    /// be the name of one of its presets (`"W4A16": ["Linear"]`).
    ///
    /// # Errors
    ///
    /// [`Error::BadField`] for values of the wrong type or range; [`Error::Unsupported`] for sparse
    /// layouts, online transforms and schemes that are not for weights.
    pub fn parse(config: &Value) -> Result<Option<Self>, Error> {
        let Some(object) = find(config) else { return Ok(None) };
        match object.get("quant_method").and_then(Value::as_str) {
            Some("compressed-tensors") | None => {}
            Some(_) => return Ok(None),
        }
        let Some(entries) = object.get("config_groups").filter(|groups| !groups.is_null()) else { return Ok(None) };
        refuse_extensions(object)?;
        let format = match text(object, "format")? {
            Some(name) => StorageFormat::parse(name)?,
            None => StorageFormat::Dense,
        };
        let entries = entries.as_object().ok_or_else(|| bad("config_groups", "it is not an object"))?;
        let groups =
            entries.iter().map(|(name, entry)| Group::parse(name, entry, format)).collect::<Result<_, Error>>()?;
        let ignore = match object.get("ignore") {
            None | Some(Value::Null) => Vec::new(),
            Some(list) => strings(list, "ignore")?,
        };
        let dense_words = text(object, "version")?.and_then(version).map(|version| version >= (0, 17));
        Ok(Some(Self { groups, ignore, format, dense_words }))
    }
}

/// `quantization_config`, also under its former name and inside the language model's part.
fn find(config: &Value) -> Option<&Map<String, Value>> {
    fn named(object: &Value) -> Option<&Value> {
        object.get("quantization_config").or_else(|| object.get("compression_config"))
    }
    named(config)
        .or_else(|| config.get("text_config").and_then(named))
        .or_else(|| config.get("config_groups").map(|_| config))
        .and_then(Value::as_object)
}

/// Sparse masks and transforms change what the stored weights mean.
fn refuse_extensions(object: &Map<String, Value>) -> Result<(), Error> {
    if let Some(sparsity) = object.get("sparsity_config").and_then(Value::as_object)
        && let Some(format) = text(sparsity, "format")?
        && format != "dense"
    {
        return Err(unsupported(
            &format!("sparsity_config with format {:?}", shorten(format)),
            "sparse layouts are not read; the Python package dropped them too",
        ));
    }
    let transforms = object.get("transform_config").and_then(Value::as_object);
    if transforms
        .and_then(|t| t.get("config_groups"))
        .and_then(Value::as_object)
        .is_some_and(|groups| !groups.is_empty())
    {
        return Err(unsupported(
            "transform_config",
            "the stored weights are in a changed basis that is not undone here",
        ));
    }
    Ok(())
}

impl Group {
    fn parse(name: &str, entry: &Value, overall: StorageFormat) -> Result<Self, Error> {
        let field = |key: &str| format!("config_groups.{}.{key}", shorten(name));
        if entry.is_array() {
            let Some(preset) = presets::find(name) else {
                return Err(unsupported(&format!("preset {:?}", shorten(name)), "no preset of this name is known"));
            };
            return Ok(Self {
                name: name.to_owned(),
                targets: strings(entry, &field("targets"))?,
                weights: preset.weights,
                format: layout(None, overall, preset.weights, preset.quantizes_inputs),
                quantizes_inputs: preset.quantizes_inputs,
            });
        }
        let object =
            entry.as_object().ok_or_else(|| bad(&field(""), "it is neither an object nor a list of targets"))?;
        let targets = object.get("targets").ok_or_else(|| bad(&field("targets"), "it is missing"))?;
        let weights = match object.get("weights") {
            None | Some(Value::Null) => None,
            Some(args) => Some(WeightArgs::parse(args, &field("weights"))?),
        };
        let format = text(object, "format")?.map(StorageFormat::parse).transpose()?;
        let quantizes_inputs = object.get("input_activations").is_some_and(|args| !args.is_null());
        Ok(Self {
            name: name.to_owned(),
            targets: strings(targets, &field("targets"))?,
            weights,
            format: layout(format, overall, weights, quantizes_inputs),
            quantizes_inputs,
        })
    }
}

/// A group's layout: its own, else the overall one, else what the package infers from the arguments.
fn layout(
    own: Option<StorageFormat>,
    overall: StorageFormat,
    weights: Option<WeightArgs>,
    quantizes_inputs: bool,
) -> StorageFormat {
    let stated = own.unwrap_or(overall);
    if stated != StorageFormat::MixedPrecision {
        return stated;
    }
    let Some(args) = weights else { return StorageFormat::Dense };
    match (args.number, args.bits, args.strategy) {
        (Number::Float, 4, Strategy::Group(32)) => StorageFormat::Mxfp4Pack,
        (Number::Float, 4, _) => StorageFormat::Nvfp4Pack,
        (Number::Float, 6, _) => StorageFormat::Mxfp6Pack,
        (Number::Float, _, Strategy::Group(32)) if args.power_of_two_scales => StorageFormat::Mxfp8,
        (Number::Float, ..) => StorageFormat::FloatQuantized,
        (Number::Int, ..) if quantizes_inputs => StorageFormat::IntQuantized,
        (Number::Int, ..) => StorageFormat::PackQuantized,
    }
}

impl WeightArgs {
    fn parse(args: &Value, field: &str) -> Result<Self, Error> {
        let object = args.as_object().ok_or_else(|| bad(field, "it is not an object"))?;
        let at = |key: &str| format!("{field}.{key}");
        let bits = match object.get("num_bits") {
            None | Some(Value::Null) => 8,
            Some(bits) => bits
                .as_u64()
                .and_then(|bits| u8::try_from(bits).ok())
                .filter(|bits| (1..=8).contains(bits))
                .ok_or_else(|| bad(&at("num_bits"), "weights have 1 to 8 bits"))?,
        };
        let number = match text(object, "type")?.unwrap_or("int").to_ascii_lowercase().as_str() {
            "int" => Number::Int,
            "float" => Number::Float,
            _ => return Err(bad(&at("type"), "it is neither \"int\" nor \"float\"")),
        };
        let symmetric = match object.get("symmetric") {
            None | Some(Value::Null) => true,
            Some(symmetric) => {
                symmetric.as_bool().ok_or_else(|| bad(&at("symmetric"), "it is neither true nor false"))?
            }
        };
        let power_of_two_scales = text(object, "scale_dtype")?.is_some_and(|dtype| dtype.ends_with("uint8"));
        let strategy = Strategy::parse(object, &at)?;
        Ok(Self { bits, number, symmetric, strategy, power_of_two_scales })
    }
}

impl Strategy {
    fn parse(object: &Map<String, Value>, at: &dyn Fn(&str) -> String) -> Result<Self, Error> {
        let group = match object.get("group_size") {
            None | Some(Value::Null) => None,
            Some(size) => match size.as_i64() {
                Some(-1) => Some(None),
                Some(size) => {
                    let size = u32::try_from(size).ok().filter(|size| *size > 0);
                    Some(Some(size.ok_or_else(|| bad(&at("group_size"), "it is neither positive nor -1"))?))
                }
                None => return Err(bad(&at("group_size"), "it is not an integer")),
            },
        };
        let sized = || group.flatten().ok_or_else(|| bad(&at("group_size"), "this strategy needs one"));
        match text(object, "strategy")?.map(str::to_ascii_lowercase).as_deref() {
            None => Ok(match group {
                None => Self::Tensor,
                Some(None) => Self::Channel,
                Some(Some(size)) => Self::Group(size),
            }),
            Some("tensor") => Ok(Self::Tensor),
            Some("channel") => Ok(Self::Channel),
            Some("group" | "tensor_group") => Ok(Self::Group(sized()?)),
            Some("block") => block(object.get("block_structure"), &at("block_structure")),
            Some(other) => {
                Err(unsupported(&format!("strategy {:?} for weights", shorten(other)), "it is meant for activations"))
            }
        }
    }
}

/// `[rows, columns]`, or the former `"rowsxcolumns"`.
fn block(structure: Option<&Value>, field: &str) -> Result<Strategy, Error> {
    let sides: Vec<Option<u32>> = match structure {
        Some(Value::Array(sides)) => {
            sides.iter().map(|side| side.as_u64().and_then(|s| u32::try_from(s).ok())).collect()
        }
        Some(Value::String(sides)) => sides.split('x').map(|side| side.parse().ok()).collect(),
        _ => Vec::new(),
    };
    match sides.as_slice() {
        [Some(rows), Some(columns)] if *rows > 0 && *columns > 0 => {
            Ok(Strategy::Block { rows: *rows, columns: *columns })
        }
        _ => Err(bad(field, "it is not a list of two positive integers")),
    }
}

/// Major and minor number of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, Error> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(bad(key, "it is not a string")),
    }
}

fn strings(list: &Value, field: &str) -> Result<Vec<String>, Error> {
    let items = list.as_array().ok_or_else(|| bad(field, "it is not a list"))?;
    items
        .iter()
        .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| bad(field, "it holds something but strings")))
        .collect()
}

fn bad(field: &str, message: &str) -> Error {
    Error::BadField { field: format!("quantization_config: {field}"), message: message.to_owned() }
}

pub(super) fn unsupported(what: &str, reason: &str) -> Error {
    Error::Unsupported { what: what.to_owned(), reason: reason.to_owned() }
}

//! Reading modules.

use super::config::{Config, Group, Number, StorageFormat, Strategy, WeightArgs, unsupported};
use super::targets::Targets;
use super::words::{self, Words, named};
use crate::Error;
use crate::error::{shorten, shorten_shape};
use crate::safetensors::{DType, TensorBytes};
use quant_core::{
    Block, Element, FloatKind, Format, IntRule, NvRule, Overflow, PackedTensor, Scale, ScaleRule, ScaleType, bits,
};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// The reader of a compressed model: which modules are compressed, and their weights.
///
/// ```no_run
/// use quant_io::compressed_tensors::Compressed;
/// use quant_io::hf::ModelFolder;
/// let folder = ModelFolder::open("Llama-3.2-1B-W4A16")?;
/// let file = &folder.shards()[0];
/// if let Some(compressed) = folder.config().map(Compressed::from_config).transpose()?.flatten() {
///     for module in compressed.modules(file.tensors().map(|tensor| tensor.name))? {
///         let weight = compressed.read(&module, |name| file.get(name))?;
///         println!("{module}: {:?} {:?}", weight.shape(), weight.format());
///     }
/// }
/// # Ok::<(), quant_io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Compressed {
    config: Config,
    targets: Targets,
}

/// The weight of one module.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one exists at a time, and only for a moment")]
pub enum Weight<'a> {
    /// On the grid of a format: codes and scales are those of the file.
    Packed(PackedTensor<'a>),
    /// Decoded, because groups follow a permutation of the columns (`weight_g_idx`).
    Dense {
        /// Rows and columns.
        shape: [usize; 2],
        /// `(code − zero)·scale` in f32, row-major.
        values: Vec<f32>,
        /// Type of the scales, to which the Python package rounds the values.
        scale: ScaleType,
    },
}

impl Weight<'_> {
    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Packed(packed) => packed.shape(),
            Self::Dense { shape, .. } => shape,
        }
    }

    /// The format, unless the weight had to be decoded.
    #[must_use]
    pub fn format(&self) -> Option<Format> {
        match self {
            Self::Packed(packed) => Some(packed.format()),
            Self::Dense { .. } => None,
        }
    }

    /// The values: single f32 products, exact but where scales are f32 or divided by a global scale.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::Packed(packed) => packed.decode(),
            Self::Dense { values, .. } => values.clone(),
        }
    }

    /// The type to which the Python package rounds the values when it decompresses: that of the
    /// scales, bf16 for MX and NVFP4.
    #[must_use]
    pub fn decompressed_type(&self) -> ScaleType {
        match self {
            Self::Packed(packed) => match packed.format().scale {
                Scale::Float(kind) => kind,
                _ => ScaleType::Bf16,
            },
            Self::Dense { scale, .. } => *scale,
        }
    }
}

impl Compressed {
    /// Reads the quantization part of config.json. `None` when the model is not compressed, or by another method.
    ///
    /// # Errors
    ///
    /// As [`Config::parse`].
    pub fn from_config(config: &Value) -> Result<Option<Self>, Error> {
        Ok(Config::parse(config)?.map(|config| Self { targets: Targets::new(&config), config }))
    }

    /// The parsed configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The group that covers a module. Names go before `re:` patterns, these before classes; a module
    /// whose name does not speak of an embedding counts as `Linear`.
    ///
    /// # Errors
    ///
    /// [`Error::BadPattern`] when the decision hangs on a pattern that does not parse.
    pub fn group(&self, module: &str) -> Result<Option<&Group>, Error> {
        self.targets.group(&self.config, module)
    }

    /// The modules that are stored compressed, by the names of all tensors: those with a `weight_packed`,
    /// or with a `weight_scale` beside their `weight`. Sorted.
    ///
    /// # Errors
    ///
    /// [`Error::NoScheme`] for such a module that no group covers, and as [`Compressed::group`].
    pub fn modules<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<Vec<String>, Error> {
        let (mut packed, mut scaled, mut plain) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for name in names {
            match name.rsplit_once('.') {
                Some((module, "weight_packed")) => packed.insert(module),
                Some((module, "weight_scale")) => scaled.insert(module),
                Some((module, "weight")) => plain.insert(module),
                _ => continue,
            };
        }
        packed.extend(scaled.intersection(&plain));
        let mut modules = Vec::with_capacity(packed.len());
        for module in packed {
            let group = self.group(module)?.ok_or_else(|| Error::NoScheme { module: shorten(module) })?;
            if group.format != StorageFormat::Dense {
                modules.push(module.to_owned());
            }
        }
        Ok(modules)
    }

    /// Names of the tensors that a module's weight may consist of.
    pub fn sections(module: &str) -> impl Iterator<Item = String> {
        const SECTIONS: [&str; 7] = [
            "weight",
            "weight_packed",
            "weight_scale",
            "weight_shape",
            "weight_zero_point",
            "weight_global_scale",
            "weight_g_idx",
        ];
        let module = module.to_owned();
        SECTIONS.into_iter().map(move |section| format!("{module}.{section}"))
    }

    /// The shape and the format that [`Compressed::read`] will give, without touching codes or scales.
    /// There is no format where groups follow a permutation of the columns.
    ///
    /// # Errors
    ///
    /// As [`Compressed::read`], but for what codes and scales hold.
    pub fn describe<'a>(
        &self,
        module: &str,
        lookup: impl Fn(&str) -> Option<TensorBytes<'a>>,
    ) -> Result<([usize; 2], Option<Format>), Error> {
        let module = Module::new(self, module, &lookup)?;
        Ok((module.shape, module.permutation()?.is_none().then_some(module.format)))
    }

    /// Reads the weight of a module; `lookup` finds a tensor by its full name.
    ///
    /// Bytes are borrowed where the file has them in the layout of [`PackedTensor`]: 8-bit integers and
    /// floats, FP4, FP6, and packed integers with a zero point whose rows fill whole words.
    ///
    /// # Errors
    ///
    /// [`Error::NoScheme`], [`Error::MissingSection`], [`Error::BadSection`] for a wrong type or shape,
    /// [`Error::RaggedBlocks`] when groups do not divide the columns, [`Error::Packed`] for a scale that is
    /// not finite, [`Error::Unsupported`].
    pub fn read<'a>(
        &self,
        module: &str,
        lookup: impl Fn(&str) -> Option<TensorBytes<'a>>,
    ) -> Result<Weight<'a>, Error> {
        let module = Module::new(self, module, &lookup)?;
        let permutation = module.permutation()?;
        let packed = module.packed()?;
        match permutation {
            None => Ok(Weight::Packed(packed)),
            Some(groups) => module.decode(&packed, &groups),
        }
    }
}

/// A module whose tensors are there with the right types and shapes.
struct Module<'a, 'm> {
    name: &'m str,
    args: WeightArgs,
    shape: [usize; 2],
    format: Format,
    codes: TensorBytes<'a>,
    /// The layout of packed integers; `None` where codes have a byte layout of their own.
    words: Option<Words>,
    scales: TensorBytes<'a>,
    zeros: Option<TensorBytes<'a>>,
    global: Option<f32>,
    permutation: Option<TensorBytes<'a>>,
}

type Lookup<'l, 'a> = &'l dyn Fn(&str) -> Option<TensorBytes<'a>>;

impl<'a, 'm> Module<'a, 'm> {
    fn new(compressed: &Compressed, name: &'m str, lookup: Lookup<'_, 'a>) -> Result<Self, Error> {
        let group = compressed.group(name)?.ok_or_else(|| Error::NoScheme { module: shorten(name) })?;
        let args = group.weights.ok_or_else(|| Error::NoScheme { module: shorten(name) })?;
        let section = |section: &str| lookup(&format!("{name}.{section}"));
        let require = |wanted: &str| {
            section(wanted).ok_or_else(|| Error::MissingSection { tensor: shorten(name), section: wanted.to_owned() })
        };
        if args.number == Number::Float && !args.symmetric {
            let what = format!("the asymmetric scheme of {:?}", shorten(name));
            return Err(unsupported(&what, "floats have no zero points"));
        }
        let scales = require("weight_scale")?;
        let layout = storage(name, group.format, args)?;
        let (codes, words, shape) = match layout {
            StorageFormat::PackQuantized => {
                let codes = require("weight_packed")?;
                let shape = packed_shape(name, codes, section("weight_shape"), scales, args)?;
                let expected = Words::Dense.count(args.bits, shape[1]).unwrap_or(usize::MAX);
                let words = match codes.shape {
                    [rows, words] if codes.dtype == DType::I32 && *rows == shape[0] => {
                        Words::infer(args.bits, shape[1], *words, compressed.config.dense_words)
                    }
                    _ => None,
                };
                let wrong = || bad_section(name, "weight_packed", codes, DType::I32, &[shape[0], expected]);
                (codes, Some(words.ok_or_else(wrong)?), shape)
            }
            StorageFormat::Nvfp4Pack | StorageFormat::Mxfp4Pack | StorageFormat::Mxfp6Pack => {
                let codes = require("weight_packed")?;
                let (dtype, [rows, bytes]) = (codes.dtype, matrix(name, "weight_packed", codes)?);
                let bits = usize::from(args.bits);
                // A matrix without rows may claim any number of columns.
                let stream = bytes.checked_mul(8).filter(|stream| stream.is_multiple_of(bits) && dtype == DType::U8);
                let wrong = || bad_section(name, "weight_packed", codes, DType::U8, &[rows, bytes / bits * bits]);
                (codes, None, [rows, stream.ok_or_else(wrong)? / bits])
            }
            _ => {
                let codes = require("weight")?;
                let shape = matrix(name, "weight", codes)?;
                let dtype = if args.number == Number::Int { DType::I8 } else { DType::F8E4M3 };
                if codes.dtype != dtype {
                    return Err(bad_section(name, "weight", codes, dtype, &shape));
                }
                (codes, None, shape)
            }
        };
        let format = format(name, layout, args, scales.dtype, shape)?;
        let global = match layout {
            StorageFormat::Nvfp4Pack => Some(global_scale(name, require("weight_global_scale")?)?),
            _ => None,
        };
        let zeros = if args.symmetric { None } else { Some(require("weight_zero_point")?) };
        if args.symmetric && section("weight_zero_point").is_some_and(|zeros| zeros.bytes.iter().any(|b| *b != 0)) {
            let what = format!("zero points of {:?}", shorten(name));
            return Err(unsupported(&what, "its scheme is symmetric"));
        }
        let module = Self {
            name,
            args,
            shape,
            format,
            codes,
            words,
            scales,
            zeros,
            global,
            permutation: section("weight_g_idx").filter(|_| matches!(args.strategy, Strategy::Group(_))),
        };
        module.check_scales()?;
        Ok(module)
    }

    /// Blocks above each other and side by side.
    fn blocks(&self) -> [usize; 2] {
        let [rows, columns] = self.shape;
        match self.args.strategy {
            Strategy::Tensor => [1, 1],
            Strategy::Channel => [rows, 1],
            Strategy::Group(group) => [rows, columns.div_ceil(group as usize)],
            Strategy::Block { rows: r, columns: c } => [rows.div_ceil(r as usize), columns.div_ceil(c as usize)],
        }
    }

    /// Scales have the shape of the blocks, trailing ones left out at will.
    fn check_scales(&self) -> Result<(), Error> {
        let [rows, columns] = self.blocks();
        let fits = match *self.scales.shape {
            [] => rows * columns == 1,
            [n] => n == rows && columns == 1,
            [r, c] => [r, c] == [rows, columns],
            _ => false,
        };
        if fits {
            return Ok(());
        }
        Err(bad_section(self.name, "weight_scale", self.scales, self.scales.dtype, &[rows, columns]))
    }

    /// The group of each column, unless groups are consecutive columns.
    fn permutation(&self) -> Result<Option<Vec<usize>>, Error> {
        let Some(tensor) = self.permutation else { return Ok(None) };
        let (columns, [_, groups]) = (self.shape[1], self.blocks());
        let wrong = || bad_section(self.name, "weight_g_idx", tensor, DType::I32, &[columns]);
        if tensor.dtype != DType::I32 || tensor.shape != [columns] {
            return Err(wrong());
        }
        let (words, _) = tensor.bytes.as_chunks::<4>();
        let indices: Vec<i32> = words.iter().map(|word| i32::from_le_bytes(*word)).collect();
        // The package fills the tensor with -1 when columns were never reordered.
        if indices.iter().all(|index| *index == -1) {
            return Ok(None);
        }
        let mut permutation = Vec::with_capacity(columns);
        for index in indices {
            let group = usize::try_from(index).ok().filter(|group| *group < groups);
            permutation.push(group.ok_or_else(|| Error::BadField {
                field: format!("{}.weight_g_idx", shorten(self.name)),
                message: format!("{index} is not one of {groups} groups"),
            })?);
        }
        let size = columns / groups.max(1);
        let consecutive = permutation.iter().enumerate().all(|(column, group)| *group == column / size.max(1));
        Ok((!consecutive).then_some(permutation))
    }

    fn packed(&self) -> Result<PackedTensor<'a>, Error> {
        let zeros = self.zero_section()?;
        let second = self.global.into_iter().collect();
        PackedTensor::from_sections(self.format, &self.shape, self.code_section()?, self.scales.bytes, zeros, second)
            .map_err(named(self.name))
    }

    /// Codes as [`PackedTensor`] has them: two's complement, or unsigned under a zero point, and rows that
    /// start on a byte.
    fn code_section(&self) -> Result<Cow<'a, [u8]>, Error> {
        let [rows, columns] = self.shape;
        let bits = self.args.bits;
        let Some(layout) = self.words else {
            if self.zeros.is_none() {
                return Ok(self.codes.bytes.into());
            }
            // Signed bytes become unsigned ones.
            return Ok(self.codes.bytes.iter().map(|byte| byte ^ 0x80).collect::<Vec<_>>().into());
        };
        let row_bytes = bits::packed_len(u32::from(bits), columns).map_err(named(self.name))?;
        let word_bytes = 4 * layout.count(bits, columns).unwrap_or(0);
        let whole = layout == Words::Dense && row_bytes == word_bytes;
        if whole && self.zeros.is_some() {
            return Ok(self.codes.bytes.into());
        }
        let mask = match self.zeros {
            None => words::sign_bits(bits, columns).map_err(named(self.name))?,
            Some(_) => Vec::new(),
        };
        let mut codes = Vec::with_capacity(rows * row_bytes);
        for row in self.codes.bytes.chunks_exact(word_bytes.max(1)).take(rows) {
            let start = codes.len();
            match layout {
                Words::Dense => codes.extend_from_slice(&row[..row_bytes]),
                Words::Legacy => {
                    let unpacked = layout.unpack(bits, row, columns).map_err(named(self.name))?;
                    codes.extend(bits::pack(u32::from(bits), &unpacked).map_err(named(self.name))?);
                }
            }
            if let Some(packed) = codes.get_mut(start..) {
                words::flip(packed, &mask);
                clear_padding(packed, usize::from(bits) * columns);
            }
        }
        Ok(codes.into())
    }

    /// Zero points as a bit stream for each row of blocks; packed ones lie along the rows in the file.
    fn zero_section(&self) -> Result<Vec<u8>, Error> {
        let Some(zeros) = self.zeros else { return Ok(Vec::new()) };
        let [rows, columns] = self.blocks();
        let bits = if self.words.is_some() { self.args.bits } else { 8 };
        let mut table = vec![0_u16; rows * columns];
        if zeros.dtype == DType::I8 && zeros.bytes.len() == table.len() {
            let (low, high) = (-(1_i16 << (bits - 1)), (1_i16 << (bits - 1)) - 1);
            for (zero, byte) in table.iter_mut().zip(zeros.bytes) {
                let value = i16::from(byte.cast_signed());
                if value < low || value > high {
                    let field = format!("{}.weight_zero_point", shorten(self.name));
                    return Err(Error::BadField { field, message: format!("{value} does not fit {bits} bits") });
                }
                *zero = (value - low).cast_unsigned();
            }
        } else {
            let expected = Words::Dense.count(bits, rows).unwrap_or(usize::MAX);
            let wrong = || bad_section(self.name, "weight_zero_point", zeros, DType::I32, &[expected, columns]);
            let [words, found] = matrix(self.name, "weight_zero_point", zeros)?;
            if zeros.dtype != DType::I32 || found != columns || self.words.is_none() {
                return Err(wrong());
            }
            // The same version packed both tensors.
            let dense = Some(self.words == Some(Words::Dense));
            let layout = Words::infer(bits, rows, words, dense).ok_or_else(wrong)?;
            for column in 0..columns {
                let packed = words::column(zeros.bytes, columns, column);
                let unpacked = layout.unpack(bits, &packed, rows).map_err(named(self.name))?;
                for (zero, value) in table.iter_mut().skip(column).step_by(columns).zip(unpacked) {
                    *zero = value;
                }
            }
        }
        let mut section = Vec::new();
        for row in table.chunks(columns.max(1)) {
            section.extend(bits::pack(u32::from(bits), row).map_err(named(self.name))?);
        }
        Ok(section)
    }

    /// Decodes with the parameters of each column's own group.
    fn decode(&self, packed: &PackedTensor<'_>, groups: &[usize]) -> Result<Weight<'a>, Error> {
        let [rows, columns] = self.shape;
        let mut values = Vec::with_capacity(rows * columns);
        let mut codes = vec![0; columns];
        let [_, count] = self.blocks();
        for row in 0..rows {
            packed.row_codes(row, &mut codes).map_err(named(self.name))?;
            let params: Vec<_> = (0..count).map(|group| packed.params(row, group)).collect();
            for (code, group) in codes.iter().zip(groups) {
                // `permutation` checked every index against `count`.
                values.push(packed.grid().decode_one(*code, &params[*group]));
            }
        }
        let scale = match self.format.scale {
            Scale::Float(kind) => kind,
            _ => ScaleType::Bf16,
        };
        Ok(Weight::Dense { shape: self.shape, values, scale })
    }
}

/// Sets the bits of the last byte beyond `bits` to zero.
fn clear_padding(bytes: &mut [u8], bits: usize) {
    if !bits.is_multiple_of(8)
        && let Some(last) = bytes.last_mut()
    {
        *last &= (1 << (bits % 8)) - 1;
    }
}

/// The layout in which a group's modules lie, checked against its arguments.
fn storage(module: &str, layout: StorageFormat, args: WeightArgs) -> Result<StorageFormat, Error> {
    let fits = match layout {
        StorageFormat::PackQuantized => args.number == Number::Int,
        StorageFormat::IntQuantized => args.number == Number::Int,
        StorageFormat::FloatQuantized | StorageFormat::Mxfp8 => args.number == Number::Float && args.bits == 8,
        StorageFormat::NaiveQuantized => args.number == Number::Int || args.bits == 8,
        StorageFormat::Nvfp4Pack | StorageFormat::Mxfp4Pack => args.number == Number::Float && args.bits == 4,
        StorageFormat::Mxfp6Pack => args.number == Number::Float && args.bits == 6,
        StorageFormat::Dense | StorageFormat::MixedPrecision => false,
    };
    if fits {
        return Ok(layout);
    }
    let number = if args.number == Number::Int { "integers" } else { "floats" };
    Err(unsupported(
        &format!("{} of {:?}", layout.name(), shorten(module)),
        &format!("this layout does not hold {}-bit {number}", args.bits),
    ))
}

/// The format on whose grid the weight lies, under the rules by which the package itself quantizes.
fn format(
    module: &str,
    layout: StorageFormat,
    args: WeightArgs,
    scales: DType,
    shape: [usize; 2],
) -> Result<Format, Error> {
    let block = match args.strategy {
        Strategy::Tensor => Block::Tensor,
        Strategy::Channel => Block::Row,
        Strategy::Group(group) => {
            if !shape[1].is_multiple_of(group as usize) {
                let (row, block) = (shape[1] as u64, u64::from(group));
                return Err(Error::RaggedBlocks { tensor: shorten(module), row, block });
            }
            Block::Group(group)
        }
        Strategy::Block { rows, columns } => Block::Tile { rows, columns },
    };
    let float = |kind| Element::Float { kind, overflow: Overflow::Saturate };
    let kind = match scales {
        DType::F32 => Some(ScaleType::F32),
        DType::F16 => Some(ScaleType::F16),
        DType::BF16 => Some(ScaleType::Bf16),
        _ => None,
    };
    let e8m0 = matches!(scales, DType::U8 | DType::F8E8M0).then_some(Scale::E8m0(ScaleRule::EvenCt));
    let (element, scale, expected) = match layout {
        StorageFormat::Nvfp4Pack => {
            let scale = (scales == DType::F8E4M3).then_some(Scale::E4m3(NvRule::CompressedTensors));
            (float(FloatKind::E2m1), scale, "F8_E4M3")
        }
        StorageFormat::Mxfp4Pack => (float(FloatKind::E2m1), e8m0, "U8"),
        StorageFormat::Mxfp6Pack => (float(FloatKind::E2m3), e8m0, "U8"),
        StorageFormat::Mxfp8 => (float(FloatKind::E4m3Fn), e8m0, "U8"),
        _ if args.number == Number::Float => (float(FloatKind::E4m3Fn), kind.map(Scale::Float), "BF16, F16 or F32"),
        _ => {
            let rule = if args.symmetric { IntRule::CtSym } else { IntRule::CtAsym };
            // Unpacked integers take a byte whatever their width.
            let bits = if layout == StorageFormat::PackQuantized { args.bits } else { 8 };
            (Element::Int { bits, rule }, kind.map(Scale::Float), "BF16, F16 or F32")
        }
    };
    let scale = scale.ok_or_else(|| Error::BadSection {
        tensor: shorten(module),
        section: "weight_scale".to_owned(),
        expected: expected.to_owned(),
        found: scales.to_string(),
    })?;
    let format = Format { element, block, scale };
    format.validate().map_err(named(module))?;
    Ok(format)
}

/// The shape of packed integers: stated, or by the number of scales.
fn packed_shape(
    module: &str,
    codes: TensorBytes<'_>,
    stated: Option<TensorBytes<'_>>,
    scales: TensorBytes<'_>,
    args: WeightArgs,
) -> Result<[usize; 2], Error> {
    let [rows, _] = matrix(module, "weight_packed", codes)?;
    let Some(stated) = stated else {
        let (Strategy::Group(group), [_, groups]) = (args.strategy, scales.shape) else {
            return Err(Error::MissingSection { tensor: shorten(module), section: "weight_shape".to_owned() });
        };
        return Ok([rows, groups.saturating_mul(group as usize)]);
    };
    let sides: Vec<Option<usize>> = match stated.dtype {
        DType::I64 => {
            let (words, _) = stated.bytes.as_chunks::<8>();
            words.iter().map(|word| usize::try_from(i64::from_le_bytes(*word)).ok()).collect()
        }
        DType::I32 => {
            let (words, _) = stated.bytes.as_chunks::<4>();
            words.iter().map(|word| usize::try_from(i32::from_le_bytes(*word)).ok()).collect()
        }
        _ => Vec::new(),
    };
    match sides.as_slice() {
        [Some(rows), Some(columns)] if *rows > 0 && *columns > 0 => Ok([*rows, *columns]),
        [_, _] => Err(Error::BadField {
            field: format!("{}.weight_shape", shorten(module)),
            message: "it does not hold two positive sizes".to_owned(),
        }),
        _ => Err(bad_section(module, "weight_shape", stated, DType::I64, &[2])),
    }
}

fn global_scale(module: &str, tensor: TensorBytes<'_>) -> Result<f32, Error> {
    match (tensor.dtype, tensor.bytes.as_chunks::<4>()) {
        (DType::F32, ([word], _)) => Ok(f32::from_le_bytes(*word)),
        _ => Err(bad_section(module, "weight_global_scale", tensor, DType::F32, &[1])),
    }
}

/// The two sides of a tensor of rank 2 that has elements. An empty one could have a side of any length,
/// as there are no bytes to contradict it.
fn matrix(module: &str, section: &str, tensor: TensorBytes<'_>) -> Result<[usize; 2], Error> {
    match *tensor.shape {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(Error::BadSection {
            tensor: shorten(module),
            section: section.to_owned(),
            expected: "a matrix with elements".to_owned(),
            found: format!("{} {:?}", tensor.dtype, shorten_shape(tensor.shape)),
        }),
    }
}

fn bad_section(module: &str, section: &str, found: TensorBytes<'_>, dtype: DType, shape: &[usize]) -> Error {
    Error::BadSection {
        tensor: shorten(module),
        section: section.to_owned(),
        expected: format!("{dtype} {shape:?}"),
        found: format!("{} {:?}", found.dtype, shorten_shape(found.shape)),
    }
}

//! Writing modules.

use super::config::StorageFormat;
use super::scheme::{Scheme, WriteOptions};
use super::targets::is_embedding;
use super::words::{self, named};
use crate::Error;
use crate::error::shorten;
use crate::safetensors::{DType, TensorSpec};
use quant_core::{Block, FloatKind, Format, NvRule, PackedTensor, Scale, ZeroPoint, bits};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// A module that will be written: its weight's format and shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModuleSpec<'a> {
    /// Name of the module, without `.weight`.
    pub name: &'a str,
    /// Format of the weight.
    pub format: Format,
    /// Shape of the weight.
    pub shape: &'a [usize],
}

/// One tensor of a module, ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor<'a> {
    /// Name, type and shape.
    pub spec: TensorSpec,
    /// Little-endian elements in row-major order.
    pub bytes: Cow<'a, [u8]>,
}

/// Everything about a compressed model but the contents of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    config: Value,
    tensors: Vec<Vec<TensorSpec>>,
}

impl Plan {
    /// Plans a model in which `modules` are compressed. `left_alone` names the linear modules that are
    /// not; `lm_head` is added unless it is compressed, because models with tied embeddings have one
    /// without a tensor of its own.
    ///
    /// Modules of one scheme become a group that targets `Linear`; several schemes become a group each that
    /// names its modules, under the format `mixed-precision`.
    ///
    /// ```
    /// use quant_core::{Format, PackedTensor, Shaped};
    /// use quant_io::compressed_tensors::{ModuleSpec, Plan, WriteOptions, module_tensors, native_format};
    ///
    /// let weights: Vec<f32> = (0..512).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.8).collect();
    /// let format = native_format(Format::INT4_G128).ok_or("not in this layout")?;
    /// let packed = PackedTensor::encode(format, &Shaped::new(&weights, &[4, 128])?)?;
    ///
    /// let name = "model.layers.0.mlp.up_proj";
    /// let module = ModuleSpec { name, format, shape: packed.shape() };
    /// let plan = Plan::new(&[module], &[], WriteOptions::default())?;
    /// assert_eq!(plan.quantization_config()["format"], "pack-quantized");
    ///
    /// let tensors = module_tensors(name, &packed, WriteOptions::default())?;
    /// assert!(tensors.iter().map(|tensor| &tensor.spec).eq(&plan.tensors()[0]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::GridMismatch`] for formats that the layout cannot hold and for tensors that are no
    /// matrices, [`Error::RaggedBlocks`] when groups do not divide the columns (the Python package
    /// refuses such weights), [`Error::Overflow`].
    pub fn new(modules: &[ModuleSpec<'_>], left_alone: &[&str], options: WriteOptions) -> Result<Self, Error> {
        let mut groups: Vec<(Scheme, Vec<String>)> = Vec::new();
        let mut tensors = Vec::with_capacity(modules.len());
        for module in modules {
            let scheme = Scheme::of(module.name, module.format, options)?;
            tensors.push(scheme.tensors(module.name, module.format, module.shape)?);
            // The type of scales is no part of a scheme's description.
            match groups.iter_mut().find(|(known, _)| (known.storage, known.args) == (scheme.storage, scheme.args)) {
                Some((_, names)) => names.push(module.name.to_owned()),
                None => groups.push((scheme, vec![module.name.to_owned()])),
            }
        }
        let compressed: BTreeSet<&str> = modules.iter().map(|module| module.name).collect();
        let mut ignore: Vec<&str> = left_alone.iter().copied().filter(|name| !compressed.contains(name)).collect();
        if !modules.iter().any(|module| is_head(module.name)) && !ignore.iter().any(|name| is_head(name)) {
            ignore.push("lm_head");
        }
        ignore.sort_unstable();
        ignore.dedup();
        let mut formats: Vec<StorageFormat> = groups.iter().map(|(scheme, _)| scheme.storage).collect();
        formats.dedup();
        let format = match formats.as_slice() {
            [] => StorageFormat::Dense,
            [one] => *one,
            _ => StorageFormat::MixedPrecision,
        };
        if let [(_, names)] = groups.as_mut_slice() {
            names.retain(|name| is_embedding(name));
            names.insert(0, "Linear".to_owned());
        }
        let entries = groups.iter().enumerate().map(|(i, (scheme, names))| (format!("group_{i}"), scheme.group(names)));
        let config = json!({
            "quant_method": "compressed-tensors",
            "format": format.name(),
            "quantization_status": "compressed",
            "config_groups": entries.collect::<serde_json::Map<_, _>>(),
            "ignore": ignore,
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
        });
        Ok(Self { config, tensors })
    }

    /// The value of `quantization_config` in config.json.
    #[must_use]
    pub fn quantization_config(&self) -> &Value {
        &self.config
    }

    /// The tensors of each module, in the order of the modules.
    #[must_use]
    pub fn tensors(&self) -> &[Vec<TensorSpec>] {
        &self.tensors
    }
}

fn is_head(module: &str) -> bool {
    module.rsplit('.').next() == Some("lm_head")
}

/// The tensors that store a module's weight, as [`Plan::tensors`] has them.
///
/// # Errors
///
/// As [`Plan::new`]; [`Error::GridMismatch`] also when no global scale gives the block scales of an
/// NVFP4 tensor exactly: the layout stores the reciprocal, and only the rule of [`native_format`] always
/// fits. [`Error::Packed`] for codes that cannot be packed.
///
/// [`native_format`]: super::native_format
pub fn module_tensors<'a>(
    module: &str,
    packed: &'a PackedTensor<'_>,
    options: WriteOptions,
) -> Result<Vec<NamedTensor<'a>>, Error> {
    let scheme = Scheme::of(module, packed.format(), options)?;
    let specs = scheme.tensors(module, packed.format(), packed.shape())?;
    let mut tensors = Vec::with_capacity(specs.len());
    for spec in specs {
        let section = spec.name.rsplit('.').next().unwrap_or_default();
        let bytes = match section {
            "weight_scale" => scales(packed, scheme.scales),
            "weight_shape" => packed.shape().iter().flat_map(|side| (*side as u64).to_le_bytes()).collect(),
            "weight_global_scale" => {
                let scale = global_scale(packed).ok_or_else(|| Error::GridMismatch {
                    tensor: shorten(module),
                    format: packed.format().to_string(),
                    target: "compressed-tensors",
                    reason: "no reciprocal of its tensor scale gives the same values; encode it as nvfp4-ct",
                })?;
                scale.to_le_bytes().to_vec().into()
            }
            "weight_zero_point" if spec.dtype == DType::I8 => signed_zeros(module, packed)?.into(),
            "weight_zero_point" => packed_zeros(module, packed)?.into(),
            _ if scheme.storage == StorageFormat::PackQuantized => packed_words(module, packed)?.into(),
            _ if scheme.args.symmetric => packed.codes().into(),
            // Unsigned bytes become signed ones.
            _ => packed.codes().iter().map(|byte| byte ^ 0x80).collect(),
        };
        tensors.push(NamedTensor { spec, bytes });
    }
    Ok(tensors)
}

/// The scales as they are, or widened.
fn scales<'a>(packed: &'a PackedTensor<'_>, dtype: DType) -> Cow<'a, [u8]> {
    let layout = packed.layout();
    let stored = packed.scales();
    if dtype != DType::F32 || stored.len() == 4 * layout.blocks() {
        return stored.into();
    }
    let columns = layout.block_columns_count();
    (0..layout.blocks()).flat_map(|i| packed.params(i / columns, i % columns).scale.to_le_bytes()).collect()
}

/// Codes offset by `2^(b−1)`, each row in whole words.
fn packed_words(module: &str, packed: &PackedTensor<'_>) -> Result<Vec<u8>, Error> {
    let layout = packed.layout();
    let bits = code_bits(packed.format());
    let mask = match packed.format().zero_point() {
        ZeroPoint::None => words::sign_bits(bits, layout.columns).map_err(named(module))?,
        _ => Vec::new(),
    };
    let row_bytes = layout.code_row_bytes.next_multiple_of(4);
    let mut out = Vec::with_capacity(layout.rows.saturating_mul(row_bytes));
    for row in packed.codes().chunks_exact(layout.code_row_bytes.max(1)) {
        let start = out.len();
        out.extend_from_slice(row);
        if let Some(row) = out.get_mut(start..) {
            words::flip(row, &mask);
        }
        out.resize(start + row_bytes, 0);
    }
    Ok(out)
}

/// Zero points along the rows: for each group a stream over all rows, row-major by word.
fn packed_zeros(module: &str, packed: &PackedTensor<'_>) -> Result<Vec<u8>, Error> {
    let (rows, columns) = (packed.layout().block_rows_count(), packed.layout().block_columns_count());
    let bits = code_bits(packed.format());
    let zeros = zeros(module, packed)?;
    let streams = (0..columns)
        .map(|column| {
            let along: Vec<u16> = zeros.iter().skip(column).step_by(columns).copied().collect();
            words::pack(bits, &along).map_err(named(module))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let words = words::Words::Dense.count(bits, rows).unwrap_or(0);
    let mut out = Vec::with_capacity(4 * words * columns);
    for word in 0..words {
        for stream in &streams {
            out.extend_from_slice(stream.get(4 * word..4 * word + 4).unwrap_or_default());
        }
    }
    Ok(out)
}

/// Zero points as signed bytes.
fn signed_zeros(module: &str, packed: &PackedTensor<'_>) -> Result<Vec<u8>, Error> {
    let half = 1_u16 << (code_bits(packed.format()) - 1);
    #[expect(clippy::cast_possible_truncation, reason = "zero points have at most 8 bits")]
    Ok(zeros(module, packed)?.into_iter().map(|zero| zero.wrapping_sub(half) as u8).collect())
}

/// Unsigned zero points, row-major.
fn zeros(module: &str, packed: &PackedTensor<'_>) -> Result<Vec<u16>, Error> {
    let layout = packed.layout();
    let mut zeros = Vec::with_capacity(layout.blocks());
    for row in packed.zeros().chunks_exact(layout.zero_row_bytes.max(1)) {
        let bits = u32::from(code_bits(packed.format()));
        zeros.extend(bits::unpack(bits, row, layout.block_columns_count()).map_err(named(module))?);
    }
    Ok(zeros)
}

fn code_bits(format: Format) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "the formats of this layout have at most 8 bits")]
    let bits = format.code_bits() as u8;
    bits
}

/// The `G` for which `f32(E4M3 scale / G)` is the scale of every block, bit for bit.
///
/// Under [`NvRule::CompressedTensors`] it is the stored one. Other rules multiply by a tensor scale `g`: `1/g`
/// and its neighbours are tried, which succeeds for powers of two and now and then by luck.
fn global_scale(packed: &PackedTensor<'_>) -> Option<f32> {
    if packed.format().scale == Scale::E4m3(NvRule::CompressedTensors) {
        return packed.second().first().copied();
    }
    // One block for every scale code that occurs: equal codes have equal scales.
    let mut scales: [Option<f32>; 256] = [None; 256];
    let columns = packed.layout().block_columns_count();
    for (block, code) in packed.scales().iter().enumerate() {
        scales[usize::from(*code)].get_or_insert_with(|| packed.params(block / columns, block % columns).scale);
    }
    let pairs: Vec<(f32, f32)> =
        (0_u16..).zip(scales).filter_map(|(code, scale)| Some((FloatKind::E4m3Fn.decode(code), scale?))).collect();
    let fits = |global: f32| pairs.iter().all(|(code, scale)| (code / global).to_bits() == scale.to_bits());
    let Some((code, scale)) = pairs.iter().find(|(code, scale)| *code != 0.0 && *scale != 0.0) else {
        return fits(1.0).then_some(1.0);
    };
    const NEIGHBOURS: u32 = 8;
    let bits = (code / scale).to_bits();
    (bits.saturating_sub(NEIGHBOURS)..=bits.saturating_add(NEIGHBOURS))
        .map(f32::from_bits)
        .find(|global| global.is_finite() && fits(*global))
}

/// Whether a format takes part in fused layers' shared global scale, see [`shared_scale_key`].
fn has_global_scale(format: Format) -> bool {
    matches!((format.scale, format.block), (Scale::E4m3(_), Block::Group(16)))
}

/// Modules with equal keys are fused by vLLM, which then wants one global scale for all of them and
/// otherwise takes the largest: the query, key and value projections of an attention block, the gate and up
/// projections of an MLP. Encode NVFP4 weights of such modules on one grid
/// ([`quant_core::FormatGrid::new`] with the largest magnitude of them all). `None` for modules that are
/// not fused and for formats without a global scale.
///
/// ```
/// use quant_core::Format;
/// use quant_io::compressed_tensors::shared_scale_key;
/// let key = |module| shared_scale_key(module, Format::NVFP4);
/// assert_eq!(key("layers.0.self_attn.q_proj"), key("layers.0.self_attn.v_proj"));
/// assert_ne!(key("layers.0.self_attn.q_proj"), key("layers.1.self_attn.q_proj"));
/// assert_eq!(key("layers.0.mlp.down_proj"), None);
/// ```
#[must_use]
pub fn shared_scale_key(module: &str, format: Format) -> Option<String> {
    let (parent, last) = module.rsplit_once('.').unwrap_or(("", module));
    let fused = match last {
        "q_proj" | "k_proj" | "v_proj" => "qkv_proj",
        "gate_proj" | "up_proj" => "gate_up_proj",
        _ => return None,
    };
    has_global_scale(format).then(|| format!("{parent}.{fused}"))
}

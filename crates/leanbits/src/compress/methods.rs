//! From a method's name to the call that rounds a linear.

use super::outcome::{Energy, Outcome};
use super::structure::SlotShape;
use crate::Error;
use crate::encode::measure;
use crate::plan::PlannedTensor;
use crate::recipe::Method;
use quant_calib::{Needs, Statistics};
use quant_core::{Block, Format, PackedTensor, Scale, Shaped};
use std::path::{Path, PathBuf};
use weight_quant::awq::{AwqConfig, search_clips};
use weight_quant::gptq::{Fallback, GptqConfig, Hessian, gptq_prepared};
use weight_quant::{MseClip, OutputError, RtnConfig, rtn};

/// A linear whose inputs fewer than this share of the calibration tokens reached is rounded to nearest (GPTQModel's rule
/// for experts).
const LEAST_SHARE: f64 = 0.005;

/// Statistics that some methods need of one input. The Gram matrix is always among them: it measures what rounding does
/// to the outputs.
pub(super) fn needs<'a>(methods: impl Iterator<Item = &'a Method>) -> Result<Needs, Error> {
    let mut all = Needs::gram();
    for method in methods {
        let needs = match method {
            Method::Rtn | Method::Mse(_) => Needs::nothing(),
            Method::Gptq(config) => config.needs(),
            // Scales are searched before, on statistics of their own.
            Method::Awq(_) => Needs::gram(),
        };
        all = all.union(&needs).map_err(|source| Error::Calibration { what: method.name().to_owned(), source })?;
    }
    Ok(all)
}

/// Refuses what a method cannot do with a tensor, before any work.
pub(super) fn check(method: &Method, tensor: &PlannedTensor, format: Format, file: &Path) -> Result<(), Error> {
    let columns = tensor.shape.last().copied().unwrap_or(0);
    let refused =
        |source| Error::Method { file: file.to_owned(), tensor: tensor.name.clone(), source: Box::new(source) };
    match method {
        Method::Rtn => Ok(()),
        Method::Mse(clip) => clip.validate().map_err(refused),
        Method::Gptq(config) => config.check(format, columns).map_err(refused),
        Method::Awq(_) if matches!(format.block, Block::Tile { rows: 2.., .. } | Block::Tensor) => {
            Err(refused(weight_quant::Error::BlocksSpanRows { format: format.to_string() }))
        }
        Method::Awq(_) => Ok(()),
    }
}

/// A rounded linear.
#[derive(Debug)]
pub(super) struct Quantized {
    pub(super) packed: PackedTensor<'static>,
    pub(super) outcome: Outcome,
}

/// Linears that see the same input, and what is known of it.
pub(super) struct Group<'a> {
    file: PathBuf,
    statistics: &'a Statistics,
    /// Tokens of the whole calibration text.
    total: u64,
    /// Its Hessian for each format and setting that is asked for.
    hessians: Vec<(Format, GptqConfig, Hessian)>,
}

impl<'a> Group<'a> {
    /// Prepares what the linears share.
    pub(super) fn new<'m>(
        file: &Path,
        statistics: &'a Statistics,
        total: u64,
        members: impl Iterator<Item = (&'m str, Format, &'m Method)>,
    ) -> Result<Self, Error> {
        let mut group = Self { file: file.to_owned(), statistics, total, hessians: Vec::new() };
        if group.too_little().is_some() {
            return Ok(group);
        }
        for (name, format, method) in members {
            if let Method::Gptq(config) = method
                && group.hessian(format, config).is_none()
                && let Some(gram) = statistics.gram()
            {
                let hessian = Hessian::prepare(gram, format, config).map_err(|source| group.refused(name, source))?;
                group.hessians.push((format, config.clone(), hessian));
            }
        }
        Ok(group)
    }

    fn refused(&self, name: &str, source: weight_quant::Error) -> Error {
        Error::Method { file: self.file.clone(), tensor: name.to_owned(), source: Box::new(source) }
    }

    fn hessian(&self, format: Format, config: &GptqConfig) -> Option<&Hessian> {
        let found = self.hessians.iter().find(|(f, c, _)| *f == format && c == config);
        found.map(|(_, _, hessian)| hessian)
    }

    /// Why the inputs say too little, if they do.
    fn too_little(&self) -> Option<String> {
        let tokens = self.statistics.tokens();
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let few = (tokens as f64) < LEAST_SHARE * self.total as f64;
        few.then(|| format!("rounded to nearest: {tokens} of {} tokens reached it", self.total))
    }

    /// Rounds one linear.
    pub(super) fn quantize(
        &self,
        slot: &SlotShape,
        weight: &[f32],
        format: Format,
        method: &Method,
    ) -> Result<Quantized, Error> {
        self.round(slot, weight, format, method).map_err(|source| self.refused(&slot.name, source))
    }

    fn round(
        &self,
        slot: &SlotShape,
        weight: &[f32],
        format: Format,
        method: &Method,
    ) -> Result<Quantized, weight_quant::Error> {
        let tensor = Shaped::new(weight, &slot.shape)?;
        let plain = || rtn(&tensor, format, &RtnConfig::default());
        let mut fallback = self.too_little().filter(|_| method.needs_calibration());
        let packed = match method {
            _ if fallback.is_some() => plain()?,
            Method::Rtn => plain()?,
            Method::Mse(clip) => searched(&tensor, format, clip)?,
            Method::Gptq(config) => {
                let hessian = self.hessian(format, config).ok_or(weight_quant::Error::NoTokens)?;
                let result = gptq_prepared(&tensor, hessian, format, config)?;
                fallback = result.report.fallback.map(in_words);
                result.packed
            }
            Method::Awq(config) => self.awq(slot, &tensor, format, config)?,
        };
        let weights = Energy::of(&measure(weight, &packed)?);
        let outcome = Outcome {
            weights: Some(weights),
            outputs: self.outputs(weight, &packed)?,
            tokens: Some(self.statistics.tokens()),
            dead: self
                .statistics
                .dead_channels()
                .map(|dead| dead.len() as u64)
                .filter(|_| self.statistics.tokens() > 0),
            method: fallback.as_ref().map(|_| "rtn".to_owned()),
            note: fallback,
        };
        Ok(Quantized { packed, outcome })
    }

    /// AWQ after its scales were folded: clips and rounds. Queries and keys are not clipped, as in the paper.
    fn awq(
        &self,
        slot: &SlotShape,
        tensor: &Shaped<'_>,
        format: Format,
        config: &AwqConfig,
    ) -> Result<PackedTensor<'static>, weight_quant::Error> {
        let spared = [".q_proj", ".k_proj"].iter().any(|end| slot.name.ends_with(end));
        match (&config.clip, self.statistics.gram()) {
            (Some(clip), Some(gram)) if !spared => {
                Ok(search_clips(tensor, &OutputError::new(gram)?, format, clip)?.packed)
            }
            _ => rtn(tensor, format, &RtnConfig::default()),
        }
    }

    /// Energy of the outputs of a token and of the error in them, on average over the calibration text.
    fn outputs(&self, weight: &[f32], packed: &PackedTensor<'_>) -> Result<Option<Energy>, weight_quant::Error> {
        let Some(gram) = self.statistics.gram() else { return Ok(None) };
        if gram.tokens() == 0 {
            return Ok(None);
        }
        let error = OutputError::new(gram)?;
        let signal = error.between(weight, &vec![0.0; weight.len()])?;
        Ok(Some(Energy { signal, noise: error.between(weight, &packed.decode())? }))
    }
}

fn searched(tensor: &Shaped<'_>, format: Format, clip: &MseClip) -> Result<PackedTensor<'static>, weight_quant::Error> {
    rtn(tensor, format, &RtnConfig { clip: Some(*clip) })
}

fn in_words(fallback: Fallback) -> String {
    match fallback {
        Fallback::NoTokens => "rounded to nearest: no token reached it".to_owned(),
        Fallback::TooFewTokens { tokens } => format!("rounded to nearest: only {tokens} tokens reached it"),
        Fallback::ZeroInputs => "rounded to nearest: all its inputs were zero".to_owned(),
        _ => "rounded to nearest".to_owned(),
    }
}

/// The tensor whose rows are those of several linears, one after the other.
pub(super) fn stack(
    file: &Path,
    tensor: &PlannedTensor,
    parts: &[Quantized],
) -> Result<(PackedTensor<'static>, Outcome), Error> {
    let refused =
        |source| Error::Tensor { file: file.to_owned(), tensor: tensor.name.clone(), source: Box::new(source) };
    let join =
        |section: fn(&Quantized) -> &[u8]| parts.iter().flat_map(|part| section(part).to_vec()).collect::<Vec<u8>>();
    let Some(first) = parts.first() else {
        return Err(refused(quant_core::Error::Empty { shape: tensor.shape.clone() }));
    };
    let packed = PackedTensor::from_sections(
        first.packed.format(),
        &tensor.shape,
        join(|part| part.packed.codes()),
        join(|part| part.packed.scales()),
        join(|part| part.packed.zeros()),
        first.packed.second().to_vec(),
    )
    .map_err(refused)?;
    let sum = |energy: fn(&Outcome) -> Option<Energy>| {
        let all: Option<Vec<Energy>> = parts.iter().map(|part| energy(&part.outcome)).collect();
        all.map(|all| Energy::sum(all.into_iter()))
    };
    let notes = parts.iter().filter(|part| part.outcome.note.is_some()).count();
    let outcome = Outcome {
        weights: sum(|outcome| outcome.weights),
        outputs: sum(|outcome| outcome.outputs),
        tokens: parts.iter().filter_map(|part| part.outcome.tokens).min(),
        dead: parts.iter().filter_map(|part| part.outcome.dead).max(),
        method: None,
        note: (notes > 0).then(|| format!("{notes} of {} parts rounded to nearest: too few tokens", parts.len())),
    };
    Ok((packed, outcome))
}

/// Whether the rows of a tensor can be rounded by themselves and put together.
pub(super) fn stacks(format: Format) -> bool {
    !matches!(format.scale, Scale::E4m3(_) | Scale::Double) && matches!(format.block, Block::Row | Block::Group(_))
}

//! From a method's name to the call that compresses a linear.

use super::fisher::Information;
use super::outcome::{Energy, Outcome};
use super::structure::SlotShape;
use super::vectors::usage;
use super::wkvquant::Learned;
use crate::Error;
use crate::encode::{measure, measure_linear};
use crate::models::RoundedBlock;
use crate::plan::PlannedTensor;
use crate::recipe::{Corrected, Method, Metric};
use crate::storage::{Compressed, Form};
use low_rank::{
    AnyMethod, Calibration, Factor, Factored, Method as _, PlainSvd, Size, Solver, Storage, Truncation, correct,
};
use quant_calib::{Needs, Statistics};
use quant_core::{Block, Format, Linear, PackedTensor, Scale, Shaped};
use std::path::{Path, PathBuf};
use vector_quant::{KMeansVq, RotatedVq, gptvq, kmeans_vq, rotated_vq};
use weight_quant::awq::{AwqConfig, search_clips};
use weight_quant::gptq::{Fallback, GptqConfig, Hessian, gptq_prepared};
use weight_quant::{MseClip, OutputError, RtnConfig, rtn};

/// A linear whose inputs fewer than this share of the calibration tokens reached is compressed without looking at them
/// (GPTQModel's rule for experts).
const LEAST_SHARE: f64 = 0.005;

/// Why a method refused a tensor.
#[derive(Debug)]
pub(super) enum Refused {
    Weight(weight_quant::Error),
    LowRank(low_rank::Error),
    Vector(vector_quant::Error),
    Unsuitable(&'static str),
}

impl From<weight_quant::Error> for Refused {
    fn from(source: weight_quant::Error) -> Self {
        Self::Weight(source)
    }
}

impl From<quant_core::Error> for Refused {
    fn from(source: quant_core::Error) -> Self {
        Self::Weight(source.into())
    }
}

impl From<low_rank::Error> for Refused {
    fn from(source: low_rank::Error) -> Self {
        Self::LowRank(source)
    }
}

impl From<vector_quant::Error> for Refused {
    fn from(source: vector_quant::Error) -> Self {
        Self::Vector(source)
    }
}

impl Refused {
    /// The error that names the tensor and the method.
    pub(super) fn at(self, file: &Path, tensor: &str, method: &Method) -> Error {
        let (file, tensor) = (file.to_owned(), tensor.to_owned());
        match self {
            Self::Weight(source) => Error::Method { file, tensor, source: Box::new(source) },
            Self::LowRank(source) => Error::LowRank { file, tensor, source: Box::new(source) },
            Self::Vector(source) => Error::VectorQuant { file, tensor, source: Box::new(source) },
            Self::Unsuitable(reason) => Error::Unsuitable { tensor, method: method.name(), reason },
        }
    }
}

/// Statistics that some methods need of one input. The Gram matrix is always among them: it measures what rounding does
/// to the outputs.
pub(super) fn needs<'a>(methods: impl Iterator<Item = &'a Method>) -> Result<Needs, Error> {
    let mut all = Needs::gram();
    for method in methods {
        let needs = match method {
            Method::Gptq(config) => config.needs(),
            Method::Asvd(_) | Method::Corrected(Corrected { metric: Metric::Asvd, .. }) => Needs::channels(),
            // AWQ searches its scales before, on statistics of their own; all others take the Gram matrix.
            _ => Needs::nothing(),
        };
        all = all.union(&needs).map_err(|source| Error::Calibration { what: method.name().to_owned(), source })?;
    }
    Ok(all)
}

/// Refuses what a method cannot do with a tensor, before any work.
pub(super) fn check(method: &Method, tensor: &PlannedTensor, file: &Path) -> Result<(), Error> {
    let columns = tensor.shape.last().copied().unwrap_or(0);
    let format = match tensor.treatment.form {
        Some(Form::Packed(format) | Form::Corrected { base: format, .. }) => format,
        _ => return Ok(()),
    };
    let checked = match method.scalar() {
        Method::Mse(clip) => clip.validate(),
        Method::Gptq(config) => config.check(format, columns),
        Method::Wkvquant(_) => {
            return Ok(RoundedBlock::check_format(format)?);
        }
        Method::Awq(_) if matches!(format.block, Block::Tile { rows: 2.., .. } | Block::Tensor) => {
            Err(weight_quant::Error::BlocksSpanRows { format: format.to_string() })
        }
        _ => Ok(()),
    };
    checked.map_err(|source| Refused::from(source).at(file, &tensor.name, method))
}

/// A compressed linear.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) weight: Compressed,
    pub(super) outcome: Outcome,
}

/// Compresses a tensor by a method that looks at nothing else, or as far as the method can without inputs.
pub(super) fn alone(file: &Path, tensor: &PlannedTensor, values: &[f32]) -> Result<Made, Error> {
    let method = &tensor.treatment.method;
    let made = || -> Result<Made, Refused> {
        let (weight, mut outcome) = compress(values, tensor, None, None)?;
        outcome.weights = Some(Energy::of(&measure_linear(values, &weight)?));
        Ok(Made { weight, outcome })
    };
    made().map_err(|refused| refused.at(file, &tensor.name, method))
}

/// Linears that see the same input, and what is known of it.
pub(super) struct Group<'a> {
    file: PathBuf,
    statistics: &'a Statistics,
    information: &'a Information,
    /// Tokens of the whole calibration text.
    total: u64,
    /// Its Hessian for each format and setting that is asked for.
    hessians: Vec<(Format, GptqConfig, Hessian)>,
    /// Tokens that reached it.
    tokens: u64,
    /// Why the statistics are not its own but those of all experts, if so.
    borrowed: Option<String>,
}

/// What an expert falls back on when calibration says too little about its inputs.
#[derive(Clone, Copy)]
pub(super) enum Unseen<'a> {
    /// On nothing.
    Nothing,
    /// It is an error, which names the expert.
    Refuse(usize),
    /// On the inputs of all experts.
    All(&'a Statistics),
}

impl<'a> Group<'a> {
    /// Prepares what the linears share.
    pub(super) fn new<'m>(
        file: &Path,
        statistics: &'a Statistics,
        unseen: Unseen<'a>,
        information: &'a Information,
        total: u64,
        members: impl Iterator<Item = (&'m str, &'m PlannedTensor)> + Clone,
    ) -> Result<Self, Error> {
        let (tokens, file) = (statistics.tokens(), file.to_owned());
        let mut group = Self { file, statistics, information, total, hessians: Vec::new(), tokens, borrowed: None };
        if let Some(reason) = group.too_little() {
            let mut looking = members.clone().filter(|(_, tensor)| tensor.treatment.method.needs_calibration());
            match (unseen, looking.next()) {
                (Unseen::Refuse(expert), Some((name, _))) => {
                    let source = Box::new(moe_quant::Error::Uncalibrated { expert });
                    return Err(Error::Experts { file: name.into(), source });
                }
                (Unseen::All(all), Some(_)) => {
                    group.statistics = all;
                    group.borrowed = Some(reason);
                }
                _ => return Ok(group),
            }
            if group.too_little().is_some() {
                return Ok(group);
            }
        }
        let file = &group.file.clone();
        for (name, tensor) in members {
            let method = &tensor.treatment.method;
            if let Some(Form::Packed(format) | Form::Corrected { base: format, .. }) = tensor.treatment.form
                && let Method::Gptq(config) = method.scalar()
                && group.hessian(format, config).is_none()
                && let Some(gram) = group.statistics.gram()
            {
                let hessian = Hessian::prepare(gram, format, config)
                    .map_err(|source| Refused::from(source).at(file, name, method))?;
                group.hessians.push((format, config.clone(), hessian));
            }
        }
        Ok(group)
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
        few.then(|| format!("{tokens} of {} tokens reached it", self.total))
    }

    /// Whether there is nothing to learn from the inputs: all were zero.
    fn is_silent(&self) -> bool {
        self.statistics.gram().is_some_and(|gram| gram.diagonal().iter().all(|x| *x == 0.0))
    }

    /// Compresses one linear.
    pub(super) fn make(
        &self,
        slot: &SlotShape,
        weight: &[f32],
        learned: Option<&Learned>,
        tensor: &PlannedTensor,
    ) -> Result<Made, Error> {
        self.compress(slot, weight, learned, tensor)
            .map_err(|refused| refused.at(&self.file, &slot.name, &tensor.treatment.method))
    }

    fn compress(
        &self,
        slot: &SlotShape,
        weight: &[f32],
        learned: Option<&Learned>,
        tensor: &PlannedTensor,
    ) -> Result<Made, Refused> {
        let method = &tensor.treatment.method;
        let silent = || (!method.is_scalar() && self.is_silent()).then(|| "all its inputs were zero".to_owned());
        let blind = self.too_little().or_else(silent).filter(|_| method.needs_calibration());
        let clipped = learned.and_then(|learned| Some((learned, learned.clipped(&slot.name)?)));
        let (made, mut outcome) = match &blind {
            // It was rounded with its clips while they were learned.
            _ if clipped.is_some() => {
                let values = clipped.as_ref().map(|(_, values)| values.as_slice()).unwrap_or(weight);
                compress(values, tensor, Some(self), Some(slot))?
            }
            Some(_) => compress(weight, tensor, None, None)?,
            None => compress(weight, tensor, Some(self), Some(slot))?,
        };
        if let Some((learned, _)) = clipped {
            outcome.note = Some(learned.note.clone());
        } else if let Some(reason) = blind {
            let (what, name) = without_inputs(method);
            outcome.note = Some(format!("{what}: {reason}"));
            outcome.method = Some(name.to_owned());
        } else if let Some(reason) = &self.borrowed {
            outcome.note = Some(format!("with the inputs of all experts: {reason}"));
        }
        let tokens = self.tokens;
        outcome.weights = Some(Energy::of(&match &made {
            Compressed::Packed(packed) => measure(weight, packed)?,
            other => measure_linear(weight, other)?,
        }));
        outcome.outputs = self.outputs(weight, &made)?;
        outcome.tokens = Some(tokens);
        outcome.dead = self.statistics.dead_channels().map(|dead| dead.len() as u64).filter(|_| tokens > 0);
        Ok(Made { weight: made, outcome })
    }

    /// Energy of the outputs of a token and of the error in them, on average over the calibration text.
    fn outputs(&self, weight: &[f32], made: &Compressed) -> Result<Option<Energy>, Refused> {
        let Some(gram) = self.statistics.gram() else { return Ok(None) };
        if gram.tokens() == 0 {
            return Ok(None);
        }
        let error = OutputError::new(gram)?;
        let signal = error.between(weight, &vec![0.0; weight.len()])?;
        Ok(Some(Energy { signal, noise: error.between(weight, &made.to_dense()?)? }))
    }
}

/// What is done where nothing is known of the inputs, in words and by name.
fn without_inputs(method: &Method) -> (&'static str, &'static str) {
    match method {
        Method::Fwsvd(_) | Method::Asvd(_) | Method::SvdLlm(_) => ("plain SVD", "svd"),
        Method::Kmeans(_) | Method::Gptvq(_) => ("unweighted k-means", "kmeans"),
        Method::E8p(_) | Method::Pcdvq(_) => ("rounded to nearest vectors", method.name()),
        Method::Corrected(_) => ("rounded to nearest, corrected by plain SVD", "corrected"),
        _ => ("rounded to nearest", "rtn"),
    }
}

/// Compresses a weight to the form that was planned; `group` has what is known of its inputs.
fn compress(
    weight: &[f32],
    tensor: &PlannedTensor,
    group: Option<&Group<'_>>,
    slot: Option<&SlotShape>,
) -> Result<(Compressed, Outcome), Refused> {
    let treatment = &tensor.treatment;
    let columns = tensor.shape.last().copied().unwrap_or(0).max(1);
    let matrix = slot.map_or_else(|| [weight.len() / columns, columns], |slot| slot.shape);
    let shaped = Shaped::new(weight, &matrix)?;
    let statistics = group.map(|group| group.statistics);
    let calibration = Calibration {
        fisher: group.zip(slot).and_then(|(group, slot)| group.information.of(slot)),
        ..statistics.map_or_else(Calibration::default, Calibration::from)
    };
    let mut outcome = Outcome::default();
    let made = match &treatment.form {
        Some(Form::Packed(format)) => {
            let full = Shaped::new(weight, slot.map_or(tensor.shape.as_slice(), |slot| &slot.shape))?;
            Compressed::Packed(scalar(&full, *format, &treatment.method, group, slot, &mut outcome)?)
        }
        Some(Form::LowRank { rank, factors }) => {
            let method = factoring(&treatment.method, *rank, *factors, group.is_some())?;
            let found = method.compress(&shaped, &calibration)?;
            outcome.rank = Some(*rank as u64);
            outcome.spectrum = Some(decibels(&found.report.spectrum));
            match found.linear {
                Factored::Pair(pair) => Compressed::LowRank(pair),
                Factored::Corrected(sum) => Compressed::Corrected(sum),
                Factored::Dense(_) => return Err(Refused::Unsuitable("two factors would not be smaller")),
            }
        }
        Some(Form::Corrected { base, rank, factors }) => {
            let packed = scalar(&shaped, *base, treatment.method.scalar(), group, slot, &mut outcome)?;
            let base = Factor::Packed(Box::new(packed));
            let method = factoring(&treatment.method, *rank, *factors, group.is_some())?;
            let found = correct(&shaped, base, &method, &calibration)?;
            outcome.rank = Some(*rank as u64);
            outcome.spectrum = Some(decibels(&found.report.spectrum));
            Compressed::Corrected(found.linear)
        }
        Some(Form::Vectors(_)) => {
            let made = vectors(&shaped, &treatment.method, statistics)?;
            outcome.codes = usage(&made)?;
            made
        }
        None => return Err(Refused::Unsuitable("it is to be kept")),
    };
    Ok((made, outcome))
}

/// Rounds to codes of a format.
fn scalar(
    tensor: &Shaped<'_>,
    format: Format,
    method: &Method,
    group: Option<&Group<'_>>,
    slot: Option<&SlotShape>,
    outcome: &mut Outcome,
) -> Result<PackedTensor<'static>, weight_quant::Error> {
    let nearest = || rtn(tensor, format, &RtnConfig::default());
    match (method, group) {
        (Method::Mse(clip), _) => searched(tensor, format, clip),
        (Method::Gptq(config), Some(group)) => {
            let hessian = group.hessian(format, config).ok_or(weight_quant::Error::NoTokens)?;
            let result = gptq_prepared(tensor, hessian, format, config)?;
            if let Some(fallback) = result.report.fallback {
                (outcome.method, outcome.note) = (Some("rtn".to_owned()), Some(in_words(fallback)));
            }
            Ok(result.packed)
        }
        (Method::Awq(config), Some(group)) => awq(group.statistics, slot, tensor, format, config),
        _ => nearest(),
    }
}

/// AWQ after its scales were folded: clips and rounds. Queries and keys are not clipped, as in the paper.
fn awq(
    statistics: &Statistics,
    slot: Option<&SlotShape>,
    tensor: &Shaped<'_>,
    format: Format,
    config: &AwqConfig,
) -> Result<PackedTensor<'static>, weight_quant::Error> {
    let spared = slot.is_some_and(|slot| [".q_proj", ".k_proj"].iter().any(|end| slot.name.ends_with(end)));
    match (&config.clip, statistics.gram()) {
        (Some(clip), Some(gram)) if !spared => Ok(search_clips(tensor, &OutputError::new(gram)?, format, clip)?.packed),
        _ => rtn(tensor, format, &RtnConfig::default()),
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

/// The factoring of a method at a rank; plain SVD where nothing is known of the inputs.
fn factoring(method: &Method, rank: usize, storage: Storage, inputs: bool) -> Result<AnyMethod, Refused> {
    let size = Size::Rank(rank);
    let cut = |solver| Truncation { size, storage, solver, ..Truncation::default() };
    if let Method::Corrected(corrected) = method {
        let truncation = cut(Solver::Exact);
        return Ok(match corrected.metric {
            Metric::SvdLlm if inputs => AnyMethod::SvdLlm(low_rank::SvdLlm { truncation, ..Default::default() }),
            // L²QER scales by the channel sizes themselves.
            Metric::Asvd if inputs => AnyMethod::Asvd(low_rank::Asvd { alpha: 1.0, truncation, ..Default::default() }),
            _ => AnyMethod::Svd(PlainSvd { truncation }),
        });
    }
    let found = method.factoring(size, storage).ok_or(Refused::Unsuitable("it does not factor"))?.method;
    Ok(match found {
        AnyMethod::Fwsvd(_) | AnyMethod::Asvd(_) | AnyMethod::SvdLlm(_) if !inputs => {
            AnyMethod::Svd(PlainSvd { truncation: cut(found.truncation().solver) })
        }
        found => found,
    })
}

/// Most points of a spectrum that are kept for the report.
const SPECTRUM_POINTS: usize = 128;

/// A spectrum relative to its largest value in thousandths of dB, thinned out evenly: whole numbers, which are the same
/// in a journal and out of it.
#[expect(clippy::cast_possible_truncation, reason = "bounded by the clamp")]
fn decibels(spectrum: &[f64]) -> Vec<i32> {
    let Some(&largest) = spectrum.first().filter(|largest| **largest > 0.0) else { return Vec::new() };
    let count = spectrum.len().min(SPECTRUM_POINTS);
    let last = spectrum.len() - 1;
    let at = |point: usize| spectrum[point * last / (count - 1).max(1)];
    (0..count).map(|point| (20_000.0 * (at(point) / largest).log10()).clamp(-400_000.0, 0.0).round() as i32).collect()
}

/// Codes of vectors; without inputs k-means in the layout of GPTVQ, and nearest vectors without feedback.
fn vectors(
    weight: &Shaped<'_>,
    method: &Method,
    statistics: Option<&Statistics>,
) -> Result<Compressed, vector_quant::Error> {
    let gram = statistics.and_then(Statistics::gram);
    if let Some(rotated) = method.rotated() {
        let config = RotatedVq { feedback: rotated.feedback && gram.is_some(), ..rotated };
        return Ok(Compressed::Rotated(rotated_vq(weight, gram, &config)?.weight));
    }
    match (method, gram) {
        (Method::Gptvq(config), Some(gram)) => Ok(Compressed::Vectors(gptvq(weight, gram, config)?.weight)),
        (Method::Gptvq(c), None) => {
            let (dim, bits, rows, columns) = (c.dim, c.bits, c.rows, c.columns);
            let (values, iterations, init, seed) = (c.values, c.iterations, c.init, c.seed);
            let config = KMeansVq { dim, bits, rows, columns, values, iterations, init, seed, weighted: false };
            Ok(Compressed::Vectors(kmeans_vq(weight, None, &config)?))
        }
        (Method::Kmeans(config), gram) => Ok(Compressed::Vectors(kmeans_vq(weight, gram, config)?)),
        _ => Err(vector_quant::Error::NoTokens),
    }
}

/// The tensor whose rows are those of several linears, one after the other.
pub(super) fn stack(file: &Path, tensor: &PlannedTensor, parts: &[Made]) -> Result<Made, Error> {
    let refused =
        |source| Error::Tensor { file: file.to_owned(), tensor: tensor.name.clone(), source: Box::new(source) };
    let packed: Vec<&PackedTensor<'static>> = parts
        .iter()
        .filter_map(|part| match &part.weight {
            Compressed::Packed(packed) => Some(packed),
            _ => None,
        })
        .collect();
    let join = |section: for<'p> fn(&'p PackedTensor<'static>) -> &'p [u8]| -> Vec<u8> {
        packed.iter().flat_map(|part| section(part).to_vec()).collect()
    };
    let Some(first) = packed.first() else {
        return Err(refused(quant_core::Error::Empty { shape: tensor.shape.clone() }));
    };
    let stacked = PackedTensor::from_sections(
        first.format(),
        &tensor.shape,
        join(|part| part.codes()),
        join(|part| part.scales()),
        join(|part| part.zeros()),
        first.second().to_vec(),
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
        note: (notes > 0).then(|| format!("{notes} of {} parts rounded to nearest: too few tokens", parts.len())),
        ..Outcome::default()
    };
    Ok(Made { weight: Compressed::Packed(stacked), outcome })
}

/// Whether the rows of a tensor can be rounded by themselves and put together.
pub(super) fn stacks(form: &Form) -> bool {
    let Form::Packed(format) = form else { return false };
    !matches!(format.scale, Scale::E4m3(_) | Scale::Double) && matches!(format.block, Block::Row | Block::Group(_))
}

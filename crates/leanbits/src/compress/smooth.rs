//! Moving scales between the tensors of a layer: SmoothQuant, and the first half of AWQ.
//!
//! Dividing what makes an input by `s`, channel by channel, and multiplying the columns of the linears that read it by
//! `s` changes nothing but which numbers are hard to round. The inputs of a layer are made by
//!
//! | what | divided by `s` | multiplied by `s` |
//! |---|---|---|
//! | norm | gain | query, key, value; or gate, up, router |
//! | value projection | rows and bias (AWQ) | output projection |
//! | up projection | rows and bias (AWQ) | down projection |
//!
//! A gain is rounded to the type it is stored in, and the columns are multiplied by what that really divided by.

use super::gather::{self, Batch};
use super::layers::Job;
use super::run::Run;
use super::source::Working;
use super::structure::{LayerShape, SlotShape};
use crate::Error;
use crate::models::{Layer, Role};
use crate::recipe::Method;
use crate::storage::Form;
use quant_calib::{Needs, Statistics};
use quant_core::{Format, Shaped};
use weight_quant::OutputError;
use weight_quant::awq::{AwqConfig, gram_loss, search_scales};
use weight_quant::smoothquant::{SmoothQuantConfig, smooth_scales};

/// What makes an input.
enum Maker<'a> {
    /// The gain of a norm, by the name of its tensor.
    Norm(String),
    /// The rows of a linear; each feeds `repeat` inputs, head by head.
    Rows { slot: &'a SlotShape, head: usize, repeat: usize },
}

/// An input, what makes it and what reads it.
struct Pair<'a> {
    maker: Maker<'a>,
    readers: Vec<&'a SlotShape>,
}

/// How scales are found.
enum How<'a> {
    Smooth(SmoothQuantConfig),
    Awq(&'a AwqConfig, Format),
}

/// Moves scales as the recipe asks for; tells whether anything changed.
pub(super) fn scale(
    job: &Job<'_>,
    working: &mut Working<'_>,
    layer: &Layer,
    shape: &LayerShape,
    batches: &[Batch],
    run: &mut Run<'_>,
) -> Result<bool, Error> {
    let wanted = |pair| how(job, &pair).map(|how| (pair, how));
    let pairs: Vec<(Pair<'_>, How<'_>)> = pairs(job, shape, layer.index()).into_iter().filter_map(wanted).collect();
    if pairs.is_empty() {
        return Ok(false);
    }
    let needs = Needs { channels: true, ..Needs::gram() };
    let watched: Vec<(String, usize, Needs)> = pairs
        .iter()
        .filter_map(|(pair, _)| pair.readers.first())
        .map(|slot| (slot.name.clone(), slot.shape[1], needs.clone()))
        .collect();
    let part = gather::up_to(layer, shape, shape.stages().saturating_sub(1))?;
    let statistics = run.running.time(|| gather::statistics(&part, batches, &watched))?;
    let found = run.packing.time(|| {
        let each = pairs.iter().zip(&statistics);
        each.map(|((pair, how), statistics)| search(job, layer, pair, how, statistics)).collect::<Result<Vec<_>, _>>()
    })?;
    for ((pair, _), scales) in pairs.iter().zip(found) {
        if let Some(scales) = scales {
            fold(job, working, pair, &scales)?;
        }
    }
    Ok(true)
}

/// The inputs of a layer whose makers can be scaled.
fn pairs<'a>(job: &Job<'_>, shape: &'a LayerShape, index: usize) -> Vec<Pair<'a>> {
    let config = &job.structure.config;
    let norm = |part: &str| Some(format!("model.layers.{index}.{part}.weight")).filter(|n| shape.tensors.contains(n));
    let mut pairs = Vec::new();
    for (part, mixes) in [("input_layernorm", true), ("post_attention_layernorm", false)] {
        let reads = |slot: &&SlotShape| {
            let writes = ["o_proj", "down_proj"].iter().any(|end| slot.name.ends_with(end));
            !writes && slot.mixes() == mixes && slot.shape[1] == config.hidden_size
        };
        let mut readers: Vec<&SlotShape> = shape.slots.iter().filter(reads).collect();
        // What every token passes through stands first: its inputs are all outputs of the norm.
        readers.sort_by_key(|slot| matches!(slot.role, Role::Expert(_)));
        if let (Some(norm), false) = (norm(part), readers.is_empty()) {
            pairs.push(Pair { maker: Maker::Norm(norm), readers });
        }
    }
    let named = |name: &str| shape.slots.iter().find(|slot| slot.name == name);
    for reader in &shape.slots {
        if let Some(stem) = reader.name.strip_suffix("o_proj")
            && let Some(slot) = named(&format!("{stem}v_proj"))
        {
            let maker = Maker::Rows { slot, head: config.head_dim, repeat: config.heads / config.kv_heads.max(1) };
            pairs.push(Pair { maker, readers: vec![reader] });
        }
        if let Some(stem) = reader.name.strip_suffix("down_proj")
            && let Some(slot) = named(&format!("{stem}up_proj"))
        {
            pairs.push(Pair { maker: Maker::Rows { slot, head: slot.shape[0], repeat: 1 }, readers: vec![reader] });
        }
    }
    pairs
}

/// How the recipe wants the scales of an input to be found, if at all.
fn how<'a>(job: &Job<'a>, pair: &Pair<'_>) -> Option<How<'a>> {
    if let (Some(alpha), Maker::Norm(_)) = (job.recipe.transforms.smooth, &pair.maker) {
        return Some(How::Smooth(SmoothQuantConfig { alpha, ..SmoothQuantConfig::default() }));
    }
    pair.readers.iter().find_map(|slot| {
        let tensor = job.plan.get(&slot.origin.tensor)?;
        match (&tensor.treatment.form, tensor.treatment.method.scalar()) {
            (Some(Form::Packed(format) | Form::Corrected { base: format, .. }), Method::Awq(config)) => {
                Some(How::Awq(config, *format))
            }
            _ => None,
        }
    })
}

/// The scales of an input; `None` where too little is known of it.
fn search(
    job: &Job<'_>,
    layer: &Layer,
    pair: &Pair<'_>,
    how: &How<'_>,
    statistics: &Statistics,
) -> Result<Option<Vec<f32>>, Error> {
    if statistics.tokens() == 0 {
        return Ok(None);
    }
    let name = pair.readers.first().map_or("", |slot| slot.name.as_str());
    let refused = |source| Error::Method {
        file: job.source.path().to_owned(),
        tensor: name.to_owned(),
        source: Box::new(source),
    };
    let weights: Vec<(Vec<f32>, [usize; 2])> = pair
        .readers
        .iter()
        .map(|slot| Ok((layer.slot(&slot.name)?.weight()?, slot.shape)))
        .collect::<Result<_, Error>>()?;
    let shaped = weights.iter().map(|(values, shape)| Shaped::new(values, shape)).collect::<Result<Vec<_>, _>>();
    let shaped = shaped.map_err(|error| refused(error.into()))?;
    let (Some(channels), Some(gram)) = (statistics.channels(), statistics.gram()) else { return Ok(None) };
    let scales = match how {
        How::Smooth(config) => smooth_scales(&shaped, &channels.absmax(), config).map_err(refused)?,
        How::Awq(config, format) => {
            let mut means = channels.abs_mean();
            if let Maker::Rows { head, repeat, .. } = pair.maker {
                tie(&mut means, head, repeat);
            }
            let inputs = OutputError::new(gram).map_err(refused)?;
            let loss = gram_loss(&shaped, &inputs);
            search_scales(&shaped, &means, *format, &config.scale, loss).map_err(refused)?.scales
        }
    };
    Ok(Some(scales))
}

/// Gives the channels of heads that one key-value head feeds the same mean.
fn tie(means: &mut [f64], head: usize, repeat: usize) {
    for group in means.chunks_mut((head * repeat).max(1)) {
        for channel in 0..head {
            let same = || (0..repeat).map(|copy| copy * head + channel);
            let sum: f64 = same().filter_map(|at| group.get(at)).sum();
            #[expect(clippy::cast_precision_loss, reason = "a few heads")]
            let mean = sum / repeat.max(1) as f64;
            for at in same() {
                if let Some(value) = group.get_mut(at) {
                    *value = mean;
                }
            }
        }
    }
}

/// Divides what makes an input, and multiplies what reads it.
fn fold(job: &Job<'_>, working: &mut Working<'_>, pair: &Pair<'_>, scales: &[f32]) -> Result<(), Error> {
    let mut scales = scales.to_vec();
    match &pair.maker {
        Maker::Norm(norm) => {
            let before = working.values(norm).map(<[f32]>::to_vec).unwrap_or_default();
            if let Some(gains) = working.change(norm) {
                gains.iter_mut().zip(&scales).for_each(|(gain, scale)| *gain /= scale);
            }
            working.round(norm)?;
            let after = working.values(norm).unwrap_or_default();
            for (scale, (before, after)) in scales.iter_mut().zip(before.iter().zip(after)) {
                let divided = before / after;
                if divided.is_finite() && divided > 0.0 {
                    *scale = divided;
                }
            }
        }
        Maker::Rows { slot, head, repeat } => {
            let of_row = |row: usize| scales.get(row / head * head * repeat + row % head).copied().unwrap_or(1.0);
            let width = slot.shape[1];
            let rows = slot.origin.rows.clone();
            if let Some(values) = working.change(&slot.origin.tensor) {
                let values = values.get_mut(rows.start * width..rows.end * width).unwrap_or_default();
                for (row, values) in values.chunks_exact_mut(width.max(1)).enumerate() {
                    values.iter_mut().for_each(|value| *value /= of_row(row));
                }
            }
            round_kept(job, working, &slot.origin.tensor)?;
            let bias = format!("{}.bias", slot.name);
            if let Some(values) = working.change(&bias) {
                values.iter_mut().enumerate().for_each(|(row, value)| *value /= of_row(row));
            }
            working.round(&bias)?;
        }
    }
    for reader in &pair.readers {
        let width = reader.shape[1];
        let rows = reader.origin.rows.clone();
        if let Some(values) = working.change(&reader.origin.tensor) {
            let values = values.get_mut(rows.start * width..rows.end * width).unwrap_or_default();
            for row in values.chunks_exact_mut(width.max(1)) {
                row.iter_mut().zip(&scales).for_each(|(value, scale)| *value *= scale);
            }
        }
        round_kept(job, working, &reader.origin.tensor)?;
    }
    Ok(())
}

/// Rounds a tensor that will not be quantized to the type it is stored in.
fn round_kept(job: &Job<'_>, working: &mut Working<'_>, tensor: &str) -> Result<(), Error> {
    match job.plan.get(tensor) {
        Some(planned) if planned.is_kept() => working.round(tensor),
        _ => Ok(()),
    }
}

//! RWKV's element-wise multipliers: code books that count channels by what they are multiplied with.

use super::gather::{self, Batch};
use super::methods::{Made, Refused};
use super::outcome::{Energy, Outcome};
use super::vectors::usage;
use crate::Error;
use crate::encode::measure_linear;
use crate::models::{Layer, Observer};
use crate::plan::PlannedTensor;
use crate::recipe::{Method, Multipliers, RwkvQuant};
use crate::storage::{Compressed, as_matrix};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use vector_quant::rwkvquant::{MultiplierConfig, MultiplierStats, quantize_multiplier_weighted};
use vector_quant::{Books, LearnedBooks, VqLinear};

/// Codes the multipliers of a layer, by name of their tensors.
pub(super) fn code(
    file: &Path,
    layer: &Layer,
    tensors: &[(&PlannedTensor, Vec<f32>)],
    batches: &[Batch],
) -> Result<BTreeMap<String, Made>, Error> {
    let config = tensors.iter().find_map(|(tensor, _)| match &tensor.treatment.method {
        Method::Rwkvquant(config) => Some(config.as_ref()),
        _ => None,
    });
    let Some(config) = config else { return Ok(BTreeMap::new()) };
    let statistics = match config.multipliers {
        Multipliers::Weighted => Gather::over(file, layer, batches, config)?,
        _ => BTreeMap::new(),
    };
    let code = |(tensor, values): &(&PlannedTensor, Vec<f32>)| {
        let made = one(tensor, values, &statistics, &config.multiplier);
        let made = made.map_err(|refused| refused.at(file, &tensor.name, &tensor.treatment.method))?;
        Ok((tensor.name.clone(), made))
    };
    tensors.iter().map(code).collect()
}

/// Codes one tensor, each row of the multipliers that it holds by itself.
fn one(
    tensor: &PlannedTensor,
    values: &[f32],
    statistics: &BTreeMap<String, MultiplierStats>,
    config: &MultiplierConfig,
) -> Result<Made, Refused> {
    let [rows, columns] = as_matrix(&tensor.shape);
    let names = &tensor.treatment.multipliers;
    // What a channel counts, in the order of the tensor.
    let weights: Option<Vec<f32>> = names
        .iter()
        .map(|name| statistics.get(name).map(MultiplierStats::weights))
        .collect::<Option<Vec<_>>>()
        .map(|weights| weights.concat())
        .filter(|weights| weights.len() == values.len());
    let (mut books, mut codes) = (Vec::new(), Vec::with_capacity(values.len()));
    for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
        let weights = weights.as_ref().and_then(|weights| weights.get(row * columns..(row + 1) * columns));
        let coded = quantize_multiplier_weighted(values, weights, config)?.codes;
        codes.extend(coded.codes(0)?);
        if let Books::Learned(learned) = coded.books() {
            books.extend(learned.books.iter().cloned());
        }
    }
    let books = Books::Learned(LearnedBooks { rows: 1, columns: config.group.clamp(1, columns.max(1)), books });
    let weight = Compressed::Vectors(VqLinear::new([rows, columns], books, &codes, Vec::new())?);
    let outcome = Outcome {
        weights: Some(Energy::of(&measure_linear(values, &weight)?)),
        codes: usage(&weight)?,
        ..Outcome::default()
    };
    Ok(Made { weight, outcome })
}

/// Gathers what multipliers are multiplied with, window by window.
struct Gather {
    clip: (f64, f64),
    /// The rows of each window in the present batch.
    windows: Vec<Range<usize>>,
    statistics: BTreeMap<String, MultiplierStats>,
    refused: Option<(String, vector_quant::Error)>,
}

impl Gather {
    fn over(
        file: &Path,
        layer: &Layer,
        batches: &[Batch],
        config: &RwkvQuant,
    ) -> Result<BTreeMap<String, MultiplierStats>, Error> {
        let [low, high] = config.clip;
        let (statistics, windows) = (BTreeMap::new(), Vec::new());
        let mut gather = Self { clip: (low, high), windows, statistics, refused: None };
        let method = Method::Rwkvquant(Box::new(config.clone()));
        for batch in batches {
            gather.windows = batch.stream.texts().collect();
            layer.forward(&batch.stream, Some(&mut gather))?;
            match gather.refused.take() {
                None => {}
                Some((name, vector_quant::Error::NonFinite { value, .. })) => {
                    return Err(gather::not_finite_multiplier(&name, batch, value));
                }
                Some((name, source)) => return Err(Refused::from(source).at(file, &name, &method)),
            }
        }
        Ok(gather.statistics)
    }
}

impl Observer for Gather {
    fn input(&mut self, _slot: &str, _features: usize, _input: &[f32]) {}

    fn multiplied(&mut self, multiplier: &str, elements: usize, input: &[f32]) {
        let fresh = || MultiplierStats::new(elements, self.clip);
        let mut add = || -> Result<(), vector_quant::Error> {
            if !self.statistics.contains_key(multiplier) {
                self.statistics.insert(multiplier.to_owned(), fresh()?);
            }
            if let Some(statistics) = self.statistics.get_mut(multiplier) {
                for window in &self.windows {
                    let rows = window.start * elements..window.end * elements;
                    statistics.update(input.get(rows).unwrap_or_default())?;
                }
            }
            Ok(())
        };
        if let Err(error) = add()
            && self.refused.is_none()
        {
            self.refused = Some((multiplier.to_owned(), error));
        }
    }
}

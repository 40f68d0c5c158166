//! Running a layer over the calibration text, and gathering what enters its linears.

use super::structure::LayerShape;
use crate::Error;
use crate::models::{Apply, Head, Layer, Observer, Role, Routing, Stream};
use quant_calib::{Needs, Statistics};
use quant_core::{Footprint, Linear};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows that are put through a head together, which bounds the memory of its outputs.
const HEAD_ROWS: usize = 256;

/// Some windows on their way through the layers.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// Number of the first of its windows.
    pub(super) first_window: usize,
    pub(super) stream: Stream,
}

/// What enters the next layer.
pub(super) fn forward(layer: &Layer, batches: &[Batch]) -> Result<Vec<Batch>, Error> {
    let next = |batch: &Batch| {
        let stream = layer.forward(&batch.stream, None)?;
        check(&format!("the output of layer {}", layer.index()), batch, &stream.values()?, stream.width())?;
        Ok(Batch { first_window: batch.first_window, stream })
    };
    batches.iter().map(next).collect()
}

/// A linear that computes nothing. It stands for those whose outputs nobody reads while the inputs of others are gathered.
#[derive(Debug)]
struct Mute {
    shape: [usize; 2],
}

impl Linear for Mute {
    fn in_features(&self) -> usize {
        self.shape[1]
    }

    fn out_features(&self) -> usize {
        self.shape[0]
    }

    fn matmul(&self, _x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        y.fill(0.0);
        Ok(())
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        Ok(vec![0.0; self.shape[0] * self.shape[1]])
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
}

/// The layer as far as the inputs of a stage depend on it: linears of that stage and later ones compute nothing. Routers do,
/// because the inputs of experts depend on them.
pub(super) fn up_to(layer: &Layer, shape: &LayerShape, stage: usize) -> Result<Layer, Error> {
    let mut layer = layer.clone();
    for slot in shape.slots.iter().filter(|slot| slot.stage >= stage && slot.role != Role::Router) {
        let muted = layer.slot_mut(&slot.name)?;
        muted.set_input_format(None)?;
        muted.set_linear(Arc::new(Mute { shape: slot.shape }), Apply::Direct)?;
    }
    Ok(layer)
}

/// Gathers statistics of the inputs of some linears, given by name, features and needs.
pub(super) fn statistics(
    layer: &Layer,
    batches: &[Batch],
    watched: &[(String, usize, Needs)],
) -> Result<Vec<Statistics>, Error> {
    let mut gather = Gather::new(watched)?;
    gather.experts = watched.iter().map(|(name, ..)| expert_of(layer, name)).collect();
    for batch in batches {
        if !watched.is_empty() {
            layer.forward(&batch.stream, Some(&mut gather))?;
            gather.checked(batch)?;
        }
    }
    Ok(gather.statistics)
}

/// The expert that a linear is part of.
fn expert_of(layer: &Layer, name: &str) -> Option<usize> {
    match layer.slot(name).ok()?.role() {
        Role::Expert(expert) => Some(expert),
        _ => None,
    }
}

/// Gathers statistics of what enters the head.
pub(super) fn head(head: &Head, batches: &[Batch], needs: &Needs) -> Result<Statistics, Error> {
    let mut gather = Gather::new(&[(head.slot().name().to_owned(), head.slot().shape()[1], needs.clone())])?;
    for batch in batches {
        let hidden = head.hidden(&batch.stream)?;
        for start in (0..hidden.rows()).step_by(HEAD_ROWS) {
            let end = hidden.rows().min(start + HEAD_ROWS);
            head.logits(&hidden, start..end, Some(&mut gather))?;
            gather.checked(batch)?;
        }
    }
    gather.statistics.pop().ok_or_else(|| Error::Unsuitable {
        tensor: head.slot().name().to_owned(),
        method: "calibration",
        reason: "nothing was gathered",
    })
}

/// Adds what it sees to the statistics of the linears that are watched.
struct Gather {
    index: BTreeMap<String, usize>,
    statistics: Vec<Statistics>,
    /// The expert that each is part of.
    experts: Vec<Option<usize>>,
    /// The gates of each expert's tokens in this pass.
    gates: Vec<Vec<f32>>,
    /// The first input that was refused.
    refused: Option<(String, usize, quant_calib::Error)>,
}

impl Gather {
    fn new(watched: &[(String, usize, Needs)]) -> Result<Self, Error> {
        let index = watched.iter().enumerate().map(|(at, (name, ..))| (name.clone(), at)).collect();
        let of = |(name, features, needs): &(String, usize, Needs)| {
            let refused = |source| Error::Calibration { what: name.clone(), source };
            Statistics::new(*features, needs).map_err(refused)
        };
        let statistics = watched.iter().map(of).collect::<Result<_, _>>()?;
        let experts = vec![None; watched.len()];
        Ok(Self { index, statistics, experts, gates: Vec::new(), refused: None })
    }

    /// Reports an input of this batch that was refused, with the window it came from.
    fn checked(&mut self, batch: &Batch) -> Result<(), Error> {
        match self.refused.take() {
            None => Ok(()),
            Some((slot, rows, quant_calib::Error::NonFinite { row, channel, value })) => {
                Err(not_finite(&format!("the input of {slot}"), batch, rows, (row, channel, value)))
            }
            Some((slot, _, source)) => Err(Error::Calibration { what: slot, source }),
        }
    }
}

impl Observer for Gather {
    fn input(&mut self, slot: &str, features: usize, input: &[f32]) {
        let Some(&at) = self.index.get(slot).filter(|_| self.refused.is_none()) else { return };
        let gates = self.experts.get(at).copied().flatten().and_then(|expert| self.gates.get(expert));
        if let Err(error) = self.statistics[at].add(input, gates.map(Vec::as_slice)) {
            self.refused = Some((slot.to_owned(), input.len() / features.max(1), error));
        }
    }

    fn routing(&mut self, routing: &Routing<'_>) {
        self.gates = vec![Vec::new(); routing.experts];
        for (&expert, &gate) in routing.ids.iter().zip(routing.gates) {
            if let Some(gates) = self.gates.get_mut(expert) {
                gates.push(gate);
            }
        }
    }
}

/// Refuses activations that are not finite.
fn check(what: &str, batch: &Batch, values: &[f32], width: usize) -> Result<(), Error> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let width = width.max(1);
            Err(not_finite(what, batch, values.len() / width, (at / width, at % width, values[at])))
        }
    }
}

/// The error for what a multiplier is multiplied with in some window of a batch.
pub(super) fn not_finite_multiplier(name: &str, batch: &Batch, value: f32) -> Error {
    let last = batch.first_window + batch.stream.texts().count().saturating_sub(1);
    let what = format!("what {name} is multiplied with");
    Error::Activations { what, first_window: batch.first_window, last_window: last, channel: 0, value }
}

fn not_finite(what: &str, batch: &Batch, rows: usize, (row, channel, value): (usize, usize, f32)) -> Error {
    // An expert sees only some tokens of a batch, so that its rows do not tell the window.
    let whole = rows == batch.stream.tokens();
    let inside = batch.stream.texts().position(|text| text.contains(&row)).filter(|_| whole);
    let last = batch.first_window + batch.stream.texts().count().saturating_sub(1);
    let window = inside.map_or(batch.first_window, |inside| batch.first_window + inside);
    let windows = if whole { window..=window } else { batch.first_window..=last };
    Error::Activations {
        what: what.to_owned(),
        first_window: *windows.start(),
        last_window: *windows.end(),
        channel,
        value,
    }
}

/// What goes from one layer to the next, of all batches one after the other.
pub(super) fn rows(batches: &[Batch]) -> Result<Vec<f32>, Error> {
    let mut rows = Vec::new();
    for batch in batches {
        rows.append(&mut batch.stream.carried()?);
    }
    Ok(rows)
}

/// Puts saved rows in the place of those of the batches.
pub(super) fn restore(batches: &mut [Batch], mut rows: &[f32]) -> Result<(), Error> {
    let size = |batch: &Batch| batch.stream.tokens() * batch.stream.width();
    // Families that carry more than hidden states carry as much more for each token.
    let times = rows.len() / batches.iter().map(size).sum::<usize>().max(1);
    for batch in batches {
        let (values, rest) = rows.split_at((times * size(batch)).min(rows.len()));
        batch.stream = batch.stream.with_carried(values.to_vec())?;
        rows = rest;
    }
    Ok(())
}

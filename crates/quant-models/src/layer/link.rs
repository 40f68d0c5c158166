//! Where a channel is only scaled between two tensors.

use crate::slot::Slot;
use crate::vector::Vector;

/// Channels that may be scaled up at some tensors if they are scaled down at others.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) channels: usize,
    pub(crate) raised: Vec<End>,
    pub(crate) lowered: Vec<End>,
    /// What becomes of a factor between the two.
    pub(crate) power: i32,
}

/// One tensor at which a channel is scaled.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) name: String,
    pub(crate) side: Side,
    /// The elements that belong to each channel, where a channel is not one element of the same number.
    elements: Option<Vec<Vec<usize>>>,
}

/// What of a tensor a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Elements of a vector.
    Vector,
    /// Inputs of a slot.
    Input,
    /// Outputs of a slot, with its bias.
    Output,
}

impl End {
    pub(super) fn input(slot: &Slot) -> Self {
        Self { name: slot.name().to_owned(), side: Side::Input, elements: None }
    }

    pub(super) fn output(slot: &Slot) -> Self {
        Self { name: slot.name().to_owned(), side: Side::Output, elements: None }
    }

    pub(super) fn vector(vector: &Vector) -> Self {
        Self { name: vector.name().to_owned(), side: Side::Vector, elements: None }
    }

    /// The same end with more or other elements to a channel.
    pub(super) fn at(self, elements: Vec<Vec<usize>>) -> Self {
        Self { elements: Some(elements), ..self }
    }

    /// The elements of some channels, in rising order.
    pub(crate) fn elements(&self, channels: &[usize]) -> Vec<usize> {
        let Some(elements) = &self.elements else {
            return channels.to_vec();
        };
        let mut out: Vec<usize> =
            channels.iter().filter_map(|channel| elements.get(*channel)).flatten().copied().collect();
        out.sort_unstable();
        out
    }
}

impl Link {
    /// From a norm to the linears that read what it gives.
    pub(super) fn from_norm(norm: &[&Vector], readers: &[&Slot]) -> Self {
        Self {
            channels: norm.first().map_or(0, |vector| vector.values().len()),
            raised: norm.iter().map(|vector| End::vector(vector)).collect(),
            lowered: readers.iter().map(|slot| End::input(slot)).collect(),
            power: 1,
        }
    }

    /// From the outputs of a linear to the inputs of another one.
    pub(super) fn between(from: &Slot, to: &Slot, power: i32) -> Self {
        Self { channels: from.shape()[0], raised: vec![End::output(from)], lowered: vec![End::input(to)], power }
    }
}

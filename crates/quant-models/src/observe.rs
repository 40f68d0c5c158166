//! Watching what flows through a model.

use crate::kv::KvGeometry;
use crate::route::{Choices, Routing};

/// Keys and values of the tokens of a pass in one layer, row-major `[tokens, kv_heads, dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyValues<'a> {
    /// The layer.
    pub layer: usize,
    /// Heads and their sizes.
    pub geometry: KvGeometry,
    /// Each token's position in its text.
    pub positions: &'a [usize],
    /// Keys before the rotary turn, after biases and norms.
    pub keys_before_turn: &'a [f32],
    /// Keys after the rotary turn: what a cache is given.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
}

/// Sees what a model computes with, in the order it computes.
///
/// A closure `FnMut(&str, usize, &[f32])` is an observer of the inputs of linears. The other methods do nothing unless
/// they are written.
///
/// # Examples
///
/// ```
/// use quant_models::Observer;
///
/// let mut largest = 0.0_f32;
/// let mut observer = |_slot: &str, _features: usize, input: &[f32]| {
///     largest = input.iter().fold(largest, |m, v| m.max(v.abs()));
/// };
/// observer.input("model.layers.0.mlp.up_proj", 2, &[1.0, -3.0]);
/// assert_eq!(largest, 3.0);
/// ```
pub trait Observer {
    /// Called with the slot's name and its input, row-major `[tokens, features]`, before any rounding of
    /// [`crate::Slot::set_input_format`].
    ///
    /// An expert sees only the tokens routed to it, in the order of [`Routing::tokens_of`]; an expert without tokens
    /// is not called.
    fn input(&mut self, slot: &str, features: usize, input: &[f32]);

    /// Called where a mixture layer has chosen experts, before anything else sees the choices; the one place where an
    /// observer may change what the model computes.
    fn choices(&mut self, _choices: &mut Choices<'_>) {}

    /// Called where a mixture layer has chosen experts, before they run.
    fn routing(&mut self, _routing: &Routing<'_>) {}

    /// Called where an attention layer has its keys and values.
    fn key_values(&mut self, _rows: &KeyValues<'_>) {}

    /// Called with the name of an element-wise multiplier and the `X`, row-major `[tokens, elements]`, that it is
    /// multiplied with.
    fn multiplied(&mut self, _multiplier: &str, _elements: usize, _input: &[f32]) {}
}

impl<F: FnMut(&str, usize, &[f32])> Observer for F {
    fn input(&mut self, slot: &str, features: usize, input: &[f32]) {
        self(slot, features, input);
    }
}

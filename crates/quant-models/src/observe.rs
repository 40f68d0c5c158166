//! Watching what flows into the linears.

/// Sees the input of every linear, in the order the model computes.
///
/// A closure `FnMut(&str, usize, &[f32])` is an observer.
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
    /// Called with the slot's name and its input, row-major `[tokens, features]`.
    fn input(&mut self, slot: &str, features: usize, input: &[f32]);
}

impl<F: FnMut(&str, usize, &[f32])> Observer for F {
    fn input(&mut self, slot: &str, features: usize, input: &[f32]) {
        self(slot, features, input);
    }
}

//! How good a model is: perplexity, and how far it is from another one.
//!
//! [`Windows`] says which tokens are predicted from which; [`perplexity`], [`compare`] and
//! [`Recording`] walk models over them in batches. All logarithms and sums are f64, and sums run
//! in the order of the text, so figures do not depend on the number of threads.
//!
//! A [`crate::Decoder`] reads each window at once; a [`Stepwise`] reads it through a cache, as generation does, which is
//! what shows what a quantized cache costs.

mod predictor;
mod score;
mod windows;

pub use predictor::{Predictor, Stepwise};
pub(crate) use score::log_sum;
pub use score::{Comparison, Recording, Score, compare, log_softmax, perplexity};
pub use windows::{Window, WindowOptions, Windows};

/// How far an evaluation has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Tokens scored so far.
    pub scored: usize,
    /// Tokens that will be scored.
    pub total: usize,
    /// Perplexity over the tokens so far; of the last model where several are walked together.
    pub perplexity: f64,
}

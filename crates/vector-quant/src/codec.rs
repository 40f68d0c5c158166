//! What a vector quantizer is to the rest of the crate: a map from vectors to codes and back.

use std::fmt::Debug;

/// A code book, learned or following from a formula.
///
/// Values are those of the code book itself; scales of rows are applied by the caller.
pub trait VectorCodec: Debug + Send + Sync {
    /// Values of one vector.
    fn dim(&self) -> usize;

    /// Bits of one code, at most 32.
    fn bits(&self) -> u32;

    /// The code that serves `x` best; the lowest of equally good ones.
    fn encode(&self, x: &[f32]) -> u32;

    /// Writes the vector of a code. Every code below `2^bits` has one.
    fn decode(&self, code: u32, out: &mut [f32]);

    /// Encodes `xs` `[n, dim]`; the same codes as one by one.
    fn encode_all(&self, xs: &[f32], codes: &mut [u32]) {
        use rayon::prelude::*;
        let work = xs.par_chunks_exact(self.dim()).zip(codes).with_min_len(64);
        work.for_each(|(x, code)| *code = self.encode(x));
    }

    /// Widths of the bit planes a code is stored in, low bits first; no plane is wider than 16.
    fn planes(&self) -> Vec<u32> {
        let bits = self.bits();
        if bits <= 16 { vec![bits] } else { vec![16, bits - 16] }
    }
}

/// A vector quantized twice: the second code book takes what the first left over.
///
/// ```text
/// x̂ = scale₁ · first(i) + second(j) · scale₁ / scale₂
/// ```
///
/// QuIP# (arXiv 2402.04396) makes its 3- and 4-bit code books from E8P that way.
#[derive(Clone, Debug, PartialEq)]
pub struct Residual<A, B> {
    /// The coarse code book.
    pub first: A,
    /// The code book of what is left.
    pub second: B,
    /// What the remainder is multiplied by before the second code book.
    pub gain: f32,
}

impl<A: VectorCodec, B: VectorCodec> VectorCodec for Residual<A, B> {
    fn dim(&self) -> usize {
        self.first.dim()
    }

    fn bits(&self) -> u32 {
        self.first.bits() + self.second.bits()
    }

    fn encode(&self, x: &[f32]) -> u32 {
        let coarse = self.first.encode(x);
        let mut rest = vec![0.0; self.dim()];
        self.first.decode(coarse, &mut rest);
        rest.iter_mut().zip(x).for_each(|(rest, x)| *rest = (x - *rest) * self.gain);
        coarse | (self.second.encode(&rest) << self.first.bits())
    }

    fn decode(&self, code: u32, out: &mut [f32]) {
        let low = self.first.bits();
        let mut fine = vec![0.0; out.len()];
        self.first.decode(code & ((1 << low) - 1), out);
        self.second.decode(code >> low, &mut fine);
        out.iter_mut().zip(&fine).for_each(|(out, fine)| *out += fine / self.gain);
    }
}

/// Standard normal values from a seed (Box–Muller over ChaCha8).
#[expect(clippy::cast_possible_truncation, reason = "samples are used as f32")]
pub(crate) fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    let mut out = Vec::with_capacity(count + 1);
    while out.len() < count {
        let (radius, angle) = ((-2.0 * (1.0 - unit()).ln()).sqrt(), std::f64::consts::TAU * unit());
        out.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    out.truncate(count);
    out
}

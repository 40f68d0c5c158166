//! Random values that are the same on every machine: ChaCha8, and only operations that IEEE 754 fixes.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of values of one seed.
pub(crate) struct Sampler {
    rng: ChaCha8Rng,
    spare: Option<f64>,
}

impl Sampler {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), spare: None }
    }

    /// Uniform in the open interval (0, 1).
    fn uniform(&mut self) -> f64 {
        ((self.rng.next_u64() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Normal, mean 0, variance 1 (Marsaglia's polar method).
    pub(crate) fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        loop {
            let (u, v) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let s = u * u + v * v;
            if s < 1.0 {
                let factor = (-2.0 * ln(s) / s).sqrt();
                self.spare = Some(v * factor);
                return u * factor;
            }
        }
    }

    /// Laplace, mean 0, variance 1.
    pub(crate) fn laplace(&mut self) -> f64 {
        let magnitude = -ln(self.uniform()) / 2.0_f64.sqrt();
        if self.rng.next_u32() & 1 == 0 { magnitude } else { -magnitude }
    }

    /// `2^u` for `u` uniform in [0, 1): the density is `1/(x·ln 2)`, so `x` is kept with probability `1/x`.
    pub(crate) fn octave(&mut self) -> f64 {
        loop {
            let x = 1.0 + self.uniform();
            if self.uniform() * x < 1.0 {
                return x;
            }
        }
    }

    /// A block of normal values.
    pub(crate) fn normal_block(&mut self, block: &mut [f64]) {
        block.fill_with(|| self.normal());
    }

    /// A block of normal values whose largest magnitude is moved so that the crest factor is `crest`.
    pub(crate) fn block_with_crest(&mut self, crest: f64, block: &mut [f64]) {
        loop {
            self.normal_block(block);
            let largest = (0..block.len()).fold(0, |best, i| if block[i].abs() > block[best].abs() { i } else { best });
            let rest = || block.iter().enumerate().filter(|(i, _)| *i != largest).map(|(_, x)| x.abs());
            // crest² = m²·g / (rest² + m²), solved for the magnitude m.
            let energy: f64 = rest().map(|x| x * x).sum();
            let peak = crest * (energy / (block.len() as f64 - crest * crest)).sqrt();
            if rest().all(|x| x <= peak) {
                block[largest] = peak.copysign(block[largest]);
                return;
            }
        }
    }
}

/// Natural logarithm of a positive normal number, the same on every machine.
///
/// `x = m·2^e` with `m` in [√½, √2); `ln m = 2·atanh((m−1)/(m+1))`, by its series.
fn ln(x: f64) -> f64 {
    let mut exponent = (x.to_bits() >> 52) as f64 - 1023.0;
    let mut m = f64::from_bits(x.to_bits() & ((1 << 52) - 1) | 1023 << 52);
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        exponent += 1.0;
    }
    let r = (m - 1.0) / (m + 1.0);
    let square = r * r;
    let mut sum = 0.0;
    for k in (0..13).rev() {
        sum = sum * square + 1.0 / (2 * k + 1) as f64;
    }
    2.0 * r * sum + exponent * std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::{Sampler, ln};
    use quant_core::metrics::Stats;

    #[test]
    fn the_logarithm_is_right_to_fifteen_digits() {
        for x in [f64::MIN_POSITIVE, 1e-9, 0.3, 0.5, 0.7072, 0.999, 1.0, 1.4, 1.5, 2.0, 10.0, 1e300] {
            assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(0.1), "{x}: {} is not {}", ln(x), x.ln());
        }
    }

    #[test]
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    fn samples_have_the_moments_of_their_distribution() {
        let mut sampler = Sampler::new(1);
        let normal: Vec<f32> = (0..1 << 18).map(|_| sampler.normal() as f32).collect();
        let laplace: Vec<f32> = (0..1 << 18).map(|_| sampler.laplace() as f32).collect();
        for (values, kurtosis, tolerance) in [(normal, 3.0, 0.05), (laplace, 6.0, 0.3)] {
            let stats = Stats::of(&values).unwrap();
            assert!(stats.mean().abs() < 0.01, "mean {}", stats.mean());
            assert!((stats.variance() - 1.0).abs() < 0.02, "variance {}", stats.variance());
            assert!((stats.kurtosis() - kurtosis).abs() < tolerance, "kurtosis {}", stats.kurtosis());
        }
    }

    #[test]
    fn blocks_get_exactly_the_crest_factor_that_was_asked_for() {
        let mut sampler = Sampler::new(2);
        let mut block = [0.0; 32];
        for crest in [1.7, 2.0, 3.0, 5.5] {
            sampler.block_with_crest(crest, &mut block);
            let energy: f64 = block.iter().map(|x| x * x).sum();
            let largest = block.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            assert!((largest / (energy / 32.0).sqrt() - crest).abs() < 1e-12, "crest {crest}");
        }
    }
}

//! The quantization error that theory expects of a block of normal values: "INT v.s. FP"
//! (arXiv 2510.25602), integers against floats over the crest factor.
//!
//! Let `κ = max|x| / rms(x)` be the crest factor of a block and `ρ ≥ 1` how much larger its stored scale
//! is than `max|x| / Qmax`. Writing `φ` and `Φ` for the normal density and distribution, the relative noise is
//!
//! | element | `noise / signal` |
//! |---|---|
//! | INT, `b` bits, as printed | `−10·log10` of it is `4.78 + 6.02·b − 20·log10(ρκ)` |
//! | INT, exact range | `(ρκ)² / (12·Q²)` with `Q = 2^(b−1) − 1` |
//! | FP, `M` mantissa bits, bias `B` | `w/(24·4^M) + u²·(ρκ/Qmax)²·p/12 + z` |
//!
//! where `u = 2^(1−B−M)` is the smallest code and, with `t₀ = ρκ·(u/2)/Qmax` and `t = ρκ·2^(1−B)/Qmax`,
//!
//! - `w = 2(t·φ(t) + 1 − Φ(t))` is the energy of normal codes,
//! - `p = 2(Φ(t) − Φ(t₀))` the probability of subnormal codes,
//! - `z = 2Φ(t₀) − 1 − 2t₀·φ(t₀)` the energy of values that become zero. The paper's formula has no such
//!   term, the code published with it has; the crossovers do not move by it in four digits.
//!
//! Under an E4M3 scale the largest value of a block of `g` is nearly exact: the noise of INT shrinks by `(g−1)/g`, `w` by `κ²/g`.

use crate::{Block, Element, Error, FloatKind, Format, IntRule, Scale};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// What the codes of a block are, for the theory.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Codes {
    /// Integers of `b` bits as the paper prints them: `2^(b−1)` steps on each side, constants
    /// rounded to `4.78 + 6.02·b`.
    IntPublished {
        /// Bits a code.
        bits: u32,
    },
    /// Integers of `b` bits in the range they really have, `±(2^(b−1) − 1)`.
    IntExact {
        /// Bits a code.
        bits: u32,
    },
    /// Small floats.
    Float(FloatKind),
}

/// The scale of a block, for the theory.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum BlockScale {
    /// A power of two (E8M0), rounded up.
    PowerOfTwo,
    /// E4M3, for blocks of so many elements.
    E4m3 {
        /// Elements of a block.
        block: u32,
    },
}

/// One curve: the expected QSNR of a block over its crest factor.
///
/// # Examples
///
/// Below a crest factor of about 2.04, MXINT4 is expected to beat MXFP4:
///
/// ```
/// use quant_core::{Format, qsnr::Theory};
/// let int = Theory::of("mxint4".parse()?)?;
/// let float = Theory::of(Format::MXFP4)?;
/// let crest = int.crossover(&float, 1.0, 4.0);
/// assert_eq!(crest.map(|k| (1000.0 * k).round()), Some(2042.0));
/// # Ok::<(), quant_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Theory {
    /// What the codes are.
    pub codes: Codes,
    /// How the scale is stored.
    pub scale: BlockScale,
    /// `ρ`, stored scale over ideal scale: the paper takes 1.5 for powers of two. It states 1 for E4M3,
    /// while its published crossover of NVINT4 and NVFP4 follows from 1.05, the value in its code.
    pub overhead: f64,
}

impl Theory {
    /// The paper's curve for a format: integers as printed, `ρ` = 1.5 for powers of two and 1 for E4M3.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidFormat`] for a format that is neither MX nor NVFP4 nor NVINT.
    pub fn of(format: Format) -> Result<Self, Error> {
        let wrong = |reason| Error::InvalidFormat { format: format.to_string(), reason };
        format.validate()?;
        let codes = match format.element {
            Element::Int { bits, rule: IntRule::Restricted } => Codes::IntPublished { bits: u32::from(bits) },
            Element::Float { kind, .. } => Codes::Float(kind),
            _ => return Err(wrong("the theory covers symmetric integers and floats")),
        };
        match (format.scale, format.block) {
            (Scale::E8m0(_), _) => Ok(Self { codes, scale: BlockScale::PowerOfTwo, overhead: 1.5 }),
            (Scale::E4m3(_), Block::Group(block)) => {
                Ok(Self { codes, scale: BlockScale::E4m3 { block }, overhead: 1.0 })
            }
            _ => Err(wrong("the theory covers E8M0 scales, and E4M3 scales of groups")),
        }
    }

    /// The same curve with another `ρ`.
    #[must_use]
    pub fn with_overhead(self, overhead: f64) -> Self {
        Self { overhead, ..self }
    }

    /// The same curve for the exact range of integers; floats stay as they are.
    #[must_use]
    pub fn with_exact_range(self) -> Self {
        match self.codes {
            Codes::IntPublished { bits } => Self { codes: Codes::IntExact { bits }, ..self },
            _ => self,
        }
    }

    /// Expected QSNR in dB of a block with the crest factor `crest`, from 1 to the root of its length.
    #[must_use]
    pub fn qsnr_db(&self, crest: f64) -> f64 {
        let peak = self.overhead * crest;
        let first_exact = match self.scale {
            BlockScale::PowerOfTwo => 0.0,
            BlockScale::E4m3 { block } => 1.0 / f64::from(block),
        };
        let int = |noise_db: f64| -noise_db - 20.0 * peak.log10() - 10.0 * (1.0 - first_exact).log10();
        match self.codes {
            Codes::IntPublished { bits } => int(-4.78 - 6.02 * f64::from(bits)),
            Codes::IntExact { bits } => {
                let q = f64::from(1_u32 << (bits.clamp(2, 31) - 1)) - 1.0;
                int(-10.0 * (12.0 * q * q).log10())
            }
            Codes::Float(kind) => {
                let step = f64::from(kind.decode(1)) * peak / f64::from(kind.max());
                let (t0, t) = (step / 2.0, step * f64::from(1_u32 << kind.mantissa_bits()));
                let spacing = 24.0 * 4.0_f64.powi(kind.mantissa_bits().cast_signed());
                let normal = (2.0 * t * density(t) + 1.0 - within(t) - crest * crest * first_exact).max(0.0);
                let subnormal = step * step / 12.0 * (within(t) - within(t0));
                let zeroed = within(t0) - 2.0 * t0 * density(t0);
                -10.0 * (normal / spacing + subnormal + zeroed).log10()
            }
        }
    }

    /// The crest factor in `low..high` at which this curve and another one cross, by bisection; `None`
    /// when one is better at both ends.
    #[must_use]
    pub fn crossover(&self, other: &Self, low: f64, high: f64) -> Option<f64> {
        let better = |crest: f64| self.qsnr_db(crest) >= other.qsnr_db(crest);
        let (mut low, mut high) = (low, high);
        let at_low = better(low);
        if at_low == better(high) {
            return None;
        }
        // Each step halves the interval; 64 of them leave nothing of any.
        for _ in 0..64 {
            let middle = low + (high - low) / 2.0;
            if better(middle) == at_low { low = middle } else { high = middle }
        }
        Some(low)
    }
}

/// Density of the normal distribution.
fn density(z: f64) -> f64 {
    (-z * z / 2.0).exp() * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 / 2.0
}

/// Probability that a normal value lies within `±z`, `2Φ(z) − 1 = erf(z/√2)`.
///
/// `erf(x) = 2/√π · exp(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!`: all terms are positive, so nothing cancels.
fn within(z: f64) -> f64 {
    let x = z * FRAC_1_SQRT_2;
    if x > 6.0 {
        return 1.0;
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term > sum * f64::EPSILON / 4.0 {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn the_normal_distribution_has_its_known_values() {
        // Probabilities within 0.5, 1, 2, 3 and 5 standard deviations, to 15 digits.
        for (z, expected) in [
            (0.0, 0.0),
            (0.5, 0.382_924_922_548_026),
            (1.0, 0.682_689_492_137_086),
            (2.0, 0.954_499_736_103_642),
            (3.0, 0.997_300_203_936_740),
            (5.0, 0.999_999_426_696_856),
            (40.0, 1.0),
        ] {
            assert!((within(z) - expected).abs() < 2e-15, "{z}: {} is not {expected}", within(z));
        }
    }
}

//! Rotary positions: pair `(i, i + d/2)` of a head is turned by `position · ω_i`.

/// How a model turns queries and keys by their position.
///
/// `ω_i = θ^(−2i/d)` for `i < d/2`, where `d` is [`Rope::rotary_dim`]; [`Rope::scaling`] then changes
/// the frequencies so that a model trained on short texts reads longer ones. Elements of a head
/// beyond `rotary_dim` are left alone. (RoFormer, arXiv 2104.09864; pairing as in Hugging Face's
/// Llama: first half with second half.)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base `θ`.
    pub theta: f64,
    /// Elements of each head that are turned; even.
    pub rotary_dim: usize,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

/// Published ways of stretching the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Frequencies as trained.
    Default,
    /// All frequencies divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// How much longer texts become.
        factor: f64,
    },
    /// Once a text of `L` tokens exceeds the original length `L₀`, the base becomes
    /// `θ · (factor·L/L₀ − factor + 1)^(d/(d−2))` ("dynamic NTK").
    ///
    /// The rotation of all tokens then depends on the length of the pass, so a text that grows
    /// token by token in a cache differs from the same text read at once, as it does elsewhere.
    Dynamic {
        /// How much longer texts may become.
        factor: f64,
        /// Positions the model was trained on.
        original_positions: usize,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions the model was trained on.
        original_positions: usize,
    },
    /// YaRN (arXiv 2309.00071): a ramp over the frequency index between kept and divided
    /// frequencies, and all rotations multiplied by an attention factor.
    ///
    /// `factor` is taken from the configuration as vLLM does; some releases of `transformers`
    /// replace it by a ratio of two lengths.
    Yarn {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Turns over the original length above which a frequency is kept.
        beta_fast: f64,
        /// Turns over the original length below which a frequency is divided.
        beta_slow: f64,
        /// Positions the model was trained on.
        original_positions: usize,
        /// Multiplier of cosine and sine; derived from `factor` when absent.
        attention_factor: Option<f64>,
        /// Numerator weight of the derived multiplier.
        mscale: Option<f64>,
        /// Denominator weight of the derived multiplier.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp begins and ends at whole indices.
        truncate: bool,
    },
}

#[expect(clippy::cast_precision_loss, reason = "positions and head sizes are far below 2^53")]
impl Rope {
    /// The frequencies `ω_i` for texts of `length` tokens, in radians a token.
    #[must_use]
    pub fn frequencies(&self, length: usize) -> Vec<f64> {
        let dim = self.rotary_dim as f64;
        let plain = |theta: f64| (0..self.rotary_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / dim));
        match self.scaling {
            RopeScaling::Default => plain(self.theta).collect(),
            RopeScaling::Linear { factor } => plain(self.theta).map(|w| w / factor).collect(),
            RopeScaling::Dynamic { factor, original_positions } => {
                if length <= original_positions || self.rotary_dim <= 2 {
                    return plain(self.theta).collect();
                }
                let stretch = factor * length as f64 / original_positions as f64 - (factor - 1.0);
                plain(self.theta * stretch.powf(dim / (dim - 2.0))).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let turns = |w: f64| original_positions as f64 * w / std::f64::consts::TAU;
                plain(self.theta)
                    .map(|w| {
                        let kept =
                            ((turns(w) - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                        (1.0 - kept) * w / factor + kept * w
                    })
                    .collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate, .. } => {
                let index_of = |turns: f64| {
                    dim * (original_positions as f64 / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (index_of(beta_fast), index_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001; // a step instead of a division by zero
                }
                plain(self.theta)
                    .enumerate()
                    .map(|(i, w)| {
                        let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        divided * w / factor + (1.0 - divided) * w
                    })
                    .collect()
            }
        }
    }

    /// The multiplier of cosine and sine: 1 except for YaRN.
    #[must_use]
    pub fn attention_factor(&self) -> f64 {
        let RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = self.scaling else {
            return 1.0;
        };
        let derived = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        match (attention_factor, mscale, mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(above), Some(below)) => derived(above) / derived(below),
            _ => derived(1.0),
        }
    }

    /// Cosines and sines of the positions `first..end`, for texts of `end` tokens.
    #[must_use]
    pub fn table(&self, first: usize, end: usize) -> RopeTable {
        // Angles in f32, as the models were trained: the product is rounded once before its cosine is taken.
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let frequencies: Vec<f32> = self.frequencies(end).iter().map(|&w| w as f32).collect();
        let scale = self.attention_factor();
        let (cos, sin) = (first..end)
            .flat_map(|position| frequencies.iter().map(move |w| f64::from(position as f32 * w)))
            .map(|angle| {
                #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
                ((angle.cos() * scale) as f32, (angle.sin() * scale) as f32)
            })
            .unzip();
        RopeTable { first, pairs: frequencies.len(), cos, sin }
    }
}

/// Cosines and sines of a run of positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    first: usize,
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Cosines `[positions, pairs]`, the attention factor included, from the table's first position on.
    #[must_use]
    pub fn cosines(&self) -> &[f32] {
        &self.cos
    }

    /// Sines, likewise.
    #[must_use]
    pub fn sines(&self) -> &[f32] {
        &self.sin
    }

    /// Turns one token's heads in place: `x` is row-major `[heads, head_dim]`.
    ///
    /// # Panics
    ///
    /// When `position` is outside the table, or `head_dim` smaller than the rotary part.
    pub fn turn(&self, position: usize, head_dim: usize, x: &mut [f32]) {
        assert!(head_dim >= 2 * self.pairs, "heads of {head_dim} elements have no {} pairs", self.pairs);
        let at = (position - self.first) * self.pairs;
        let (cos, sin) = (&self.cos[at..at + self.pairs], &self.sin[at..at + self.pairs]);
        for head in x.chunks_exact_mut(head_dim) {
            let (front, back) = head.split_at_mut(self.pairs);
            for (((a, b), c), s) in front.iter_mut().zip(back).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

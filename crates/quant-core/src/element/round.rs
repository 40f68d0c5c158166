//! Rounding of a non-negative real to an integer.

/// How a value between two codes is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// To the nearest, ties to the even code.
    #[default]
    NearestEven,
    /// To the nearest, ties away from zero.
    NearestAway,
    /// To the nearest, ties towards zero (ggml's FP4, ModelOpt's MXFP4).
    NearestZero,
    /// Towards zero (truncation).
    TowardZero,
    /// Towards +∞.
    Up,
    /// Towards −∞.
    Down,
    /// Up in magnitude with the probability of the fraction, cut to `bits` random bits:
    /// `⌊frac·2^bits⌋ + r ≥ 2^bits` with `r` uniform in `0..2^bits`, drawn from a counter generator
    /// keyed by the seed and the element's index. Representable values never move.
    Stochastic {
        /// Random bits an element, 1 to 24.
        bits: u8,
    },
    /// As `Stochastic`, but the fraction is rounded to `bits` bits (ties to even) instead of cut.
    StochasticEven {
        /// Random bits an element, 1 to 24.
        bits: u8,
    },
}

/// Most random bits an element can use: the fraction of an f32 quotient has no more.
const RANDOM_BITS: u8 = 24;

impl Rounding {
    /// Random bits that one element needs: 0 unless the rounding is stochastic, then 1 to 24.
    #[must_use]
    pub const fn random_bits(self) -> u8 {
        match self {
            Self::Stochastic { bits: 0 } | Self::StochasticEven { bits: 0 } => 1,
            Self::Stochastic { bits } | Self::StochasticEven { bits } if bits < RANDOM_BITS => bits,
            Self::Stochastic { .. } | Self::StochasticEven { .. } => RANDOM_BITS,
            _ => 0,
        }
    }

    /// Rounds the magnitude `q ≥ 0` of a value with sign `negative` to an integer; `random` holds
    /// the random bits of stochastic rounding.
    pub(crate) fn magnitude(self, q: f64, negative: bool, random: u32) -> f64 {
        match self {
            Self::NearestEven => q.round_ties_even(),
            // Exact for every q: f64 has the bits to hold the half.
            Self::NearestAway => q.round(),
            Self::NearestZero => (q - 0.5).ceil().max(0.0),
            Self::TowardZero => q.floor(),
            Self::Up if negative => q.floor(),
            Self::Down if !negative => q.floor(),
            Self::Up | Self::Down => q.ceil(),
            Self::Stochastic { .. } | Self::StochasticEven { .. } => {
                let range = f64::from(1_u32 << self.random_bits());
                let scaled = (q - q.floor()) * range;
                let steps =
                    if matches!(self, Self::Stochastic { .. }) { scaled.floor() } else { scaled.round_ties_even() };
                q.floor() + if steps + f64::from(random) >= range { 1.0 } else { 0.0 }
            }
        }
    }
}

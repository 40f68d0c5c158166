//! Rounding of a non-negative real to an integer.

/// How a value between two codes is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// To the nearest, ties to the even code.
    #[default]
    NearestEven,
    /// To the nearest, ties away from zero.
    NearestAway,
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
}

impl Rounding {
    /// Rounds the magnitude `q ≥ 0` of a value with sign `negative` to an integer; `random` holds
    /// the random bits of stochastic rounding.
    pub(crate) fn magnitude(self, q: f64, negative: bool, random: u32) -> f64 {
        match self {
            Self::NearestEven => q.round_ties_even(),
            // Exact for every q: f64 has the bits to hold the half.
            Self::NearestAway => q.round(),
            Self::TowardZero => q.floor(),
            Self::Up if negative => q.floor(),
            Self::Down if !negative => q.floor(),
            Self::Up | Self::Down => q.ceil(),
            Self::Stochastic { bits } => {
                let range = f64::from(1_u32 << bits);
                let cut = ((q - q.floor()) * range).floor();
                q.floor() + if cut + f64::from(random) >= range { 1.0 } else { 0.0 }
            }
        }
    }
}

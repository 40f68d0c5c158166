//! What was measured on one tensor while it was written.

use quant_core::metrics::ErrorStats;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Energy of a signal and of the error in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Energy {
    pub(crate) signal: f64,
    pub(crate) noise: f64,
}

impl Energy {
    pub(crate) fn of(errors: &ErrorStats) -> Self {
        Self { signal: errors.signal(), noise: errors.noise() }
    }

    /// Signal to noise in dB; `None` where there is no error, or no signal.
    pub(crate) fn sqnr_db(self) -> Option<f64> {
        let sqnr = 10.0 * (self.signal / self.noise).log10();
        sqnr.is_finite().then_some(sqnr)
    }

    pub(crate) fn sum(energies: impl Iterator<Item = Self>) -> Self {
        energies.fold(Self { signal: 0.0, noise: 0.0 }, |sum, e| Self {
            signal: sum.signal + e.signal,
            noise: sum.noise + e.noise,
        })
    }
}

impl Serialize for Energy {
    /// As the bits of two f64, which every JSON reader gives back exactly.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [self.signal.to_bits(), self.noise.to_bits()].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Energy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [signal, noise] = <[u64; 2]>::deserialize(deserializer)?.map(f64::from_bits);
        Ok(Self { signal, noise })
    }
}

/// What was measured on one tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Of its values; `None` for tensors that were not quantized.
    pub(crate) weights: Option<Energy>,
    /// Of the outputs of the linear over the calibration text.
    pub(crate) outputs: Option<Energy>,
    /// Tokens of the calibration text that reached the linear.
    pub(crate) tokens: Option<u64>,
    /// Input channels that were zero on all of them.
    pub(crate) dead: Option<u64>,
    /// The method that was used, where it is not the planned one.
    pub(crate) method: Option<String>,
    /// What a reader of the report should know.
    pub(crate) note: Option<String>,
    /// Rank of its factors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rank: Option<u64>,
    /// Singular values relative to the largest, in thousandths of dB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spectrum: Option<Vec<i32>>,
    /// How its code books are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) codes: Option<CodeUsage>,
}

/// How code books are used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CodeUsage {
    /// Entries of all books.
    pub(crate) entries: u64,
    /// Entries that some vector uses.
    pub(crate) used: u64,
    /// Vectors.
    pub(crate) vectors: u64,
    /// Entropy of the codes of a book in bits, on average over vectors.
    pub(crate) entropy: Exact,
}

/// A number that is stored as its bits, which every JSON reader gives back exactly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exact(pub(crate) f64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_bits().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits).map(Self)
    }
}

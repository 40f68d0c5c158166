//! Rotary positions: what a cache needs to keep keys as they are before the rotary turn.

use crate::Error;

/// Which elements of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairing {
    /// Element `i` with `i + rotary/2` (Hugging Face's Llama).
    #[default]
    Half,
    /// Element `2i` with `2i + 1` (GPT-J).
    Interleaved,
}

impl RopePairing {
    /// The two elements of pair `i` of `half` pairs.
    #[must_use]
    pub fn pair(self, i: usize, half: usize) -> (usize, usize) {
        match self {
            Self::Half => (i, i + half),
            Self::Interleaved => (2 * i, 2 * i + 1),
        }
    }
}

/// Cosines and sines by position, `[positions, rotary/2]` each. Scaled frequencies and attention factors are the
/// caller's business: they are in the table. Elements of a head beyond `rotary` are left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    pairing: RopePairing,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table from its entries.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] when the slices are not whole positions of `rotary/2` entries, [`Error::Unsupported`] for an
    /// odd or zero `rotary`, or entries that are not finite or turn by nothing at all (0, 0).
    pub fn new(pairing: RopePairing, rotary: usize, cos: Vec<f32>, sin: Vec<f32>) -> Result<Self, Error> {
        let unsupported = |found: String| Error::Unsupported {
            what: "rotary table",
            found,
            supported: "an even, positive rotary dimension and finite entries, not both zero",
        };
        if rotary == 0 || !rotary.is_multiple_of(2) {
            return Err(unsupported(format!("made for {rotary} elements")));
        }
        let half = rotary / 2;
        for (what, entries) in [("cosines of the rotary table", &cos), ("sines of the rotary table", &sin)] {
            if !entries.len().is_multiple_of(half) || entries.len() != cos.len() {
                return Err(Error::Shape { what, expected: half, found: entries.len() });
            }
        }
        let usable = |(c, s): (&f32, &f32)| c.is_finite() && s.is_finite() && (*c != 0.0 || *s != 0.0);
        if let Some(at) = cos.iter().zip(&sin).position(|entry| !usable(entry)) {
            return Err(unsupported(format!("({}, {}) at position {}", cos[at], sin[at], at / half)));
        }
        Ok(Self { pairing, half, cos, sin })
    }

    /// The usual table: pair `i` turns by `position · theta^(−2i/rotary)`, in f64, rounded once.
    ///
    /// # Errors
    ///
    /// As [`RopeTable::new`].
    pub fn with_theta(pairing: RopePairing, rotary: usize, theta: f64, positions: usize) -> Result<Self, Error> {
        #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^52")]
        let angle = |at: usize| {
            let half = (rotary / 2).max(1);
            (at / half) as f64 * theta.powf(-2.0 * (at % half) as f64 / rotary.max(1) as f64)
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounded to the table's type on purpose")]
        let table = |f: fn(f64) -> f64| (0..positions * (rotary / 2)).map(|at| f(angle(at)) as f32).collect();
        Self::new(pairing, rotary, table(f64::cos), table(f64::sin))
    }

    /// Positions in the table.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Elements of a head that are turned.
    #[must_use]
    pub fn rotary(&self) -> usize {
        2 * self.half
    }

    /// Turns each head of one token's row, `[heads, dim]`.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] beyond the table, [`Error::Shape`] for heads shorter than the rotary dimension.
    pub fn rotate(&self, row: &mut [f32], dim: usize, position: u32) -> Result<(), Error> {
        self.turn(row, dim, position, |a, b, c, s| (a * c - b * s, b * c + a * s))
    }

    /// Undoes [`RopeTable::rotate`], attention factors included.
    ///
    /// # Errors
    ///
    /// As [`RopeTable::rotate`].
    pub fn unrotate(&self, row: &mut [f32], dim: usize, position: u32) -> Result<(), Error> {
        self.turn(row, dim, position, |a, b, c, s| {
            let norm = c * c + s * s;
            ((a * c + b * s) / norm, (b * c - a * s) / norm)
        })
    }

    fn turn(
        &self,
        row: &mut [f32],
        dim: usize,
        position: u32,
        f: impl Fn(f32, f32, f32, f32) -> (f32, f32),
    ) -> Result<(), Error> {
        if dim < self.rotary() || !row.len().is_multiple_of(dim) {
            return Err(Error::Shape { what: "row to rotate", expected: self.rotary().max(dim), found: row.len() });
        }
        let start = position as usize * self.half;
        let (Some(cos), Some(sin)) = (self.cos.get(start..start + self.half), self.sin.get(start..start + self.half))
        else {
            return Err(Error::Position { position: i64::from(position), limit: self.positions() });
        };
        for head in row.chunks_exact_mut(dim) {
            for (i, (&c, &s)) in cos.iter().zip(sin).enumerate() {
                let (x, y) = self.pairing.pair(i, self.half);
                (head[x], head[y]) = f(head[x], head[y], c, s);
            }
        }
        Ok(())
    }

    /// Every bit that matters, for headers of saved caches.
    pub(crate) fn fingerprint(&self) -> u64 {
        let values = [self.half as f32, f32::from(self.pairing == RopePairing::Half)];
        crate::codec::fingerprint(values.iter().chain(&self.cos).chain(&self.sin).copied())
    }
}

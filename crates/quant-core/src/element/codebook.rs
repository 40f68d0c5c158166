//! Code books of 16 entries in [−1, 1].

use super::generated::books::Codebook;

impl Codebook {
    /// The code of the entry nearest to `v`: with the table in ascending order, as many entries are
    /// passed as midpoints `(a + b)/2` (in f32) of neighbours lie strictly below `v`, so that a tie
    /// goes to the lower value.
    ///
    /// The two zeros of bitsandbytes' FP4 are neighbours as well: code 0 (+0) takes the values just
    /// below zero and zero itself, code 8 (−0) those just above it, as in that library.
    #[must_use]
    pub fn nearest(self, v: f32) -> u16 {
        let codes = self.ascending();
        let values = codes.map(|code| self.values()[usize::from(code)]);
        let below = values.windows(2).filter(|pair| (pair[0] + pair[1]) / 2.0 < v).count();
        u16::from(codes[below])
    }
}

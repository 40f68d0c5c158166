//! Learned clips of a weight's groups (OmniQuant, arXiv 2308.13137, as WKVQuant uses them).

use crate::Error;
use quant_core::{Block, Element, Format, IntRule, Shaped, fake_quantize};
use rayon::prelude::*;

/// Where γ and β start: `σ(4) = 0.982`.
const START: f64 = 4.0;

/// A weight whose groups are clipped to `[σ(β)·min(W, 0), σ(γ)·max(W, 0)]` before they are rounded.
#[derive(Clone, Debug)]
pub(super) struct Clip {
    pub(super) name: String,
    format: Format,
    shape: [usize; 2],
    weight: Vec<f32>,
    /// Elements of a group, the last of a row perhaps fewer.
    group: usize,
    /// Least and largest value of each group, 0 included.
    range: Vec<[f32; 2]>,
    /// β of each group.
    pub(super) lower: Vec<f64>,
    /// γ of each group.
    pub(super) upper: Vec<f64>,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Refuses formats whose range is not that of a group of a row with both ends free.
pub(super) fn check(format: Format) -> Result<(), Error> {
    let free = matches!(format.element, Element::Int { rule: IntRule::Asymmetric | IntRule::CtAsym, .. });
    match (free, format.block) {
        (true, Block::Row | Block::Group(_)) => Ok(()),
        _ => Err(Error::BadSetting {
            name: "format of weights with learned clips",
            value: format.to_string(),
            expected: "asymmetric integers with a range for a row or a group of it, such as int4-g128-asym",
        }),
    }
}

impl Clip {
    pub(super) fn new(name: &str, format: Format, shape: [usize; 2], weight: Vec<f32>) -> Result<Self, Error> {
        check(format)?;
        let columns = shape[1].max(1);
        let group = match format.block {
            Block::Group(group) => (group as usize).clamp(1, columns),
            _ => columns,
        };
        let of = |group: &[f32]| group.iter().fold([0.0_f32; 2], |[lo, hi], x| [lo.min(*x), hi.max(*x)]);
        let range: Vec<[f32; 2]> = weight.chunks_exact(columns).flat_map(|row| row.chunks(group).map(of)).collect();
        let start = vec![START; range.len()];
        Ok(Self { name: name.to_owned(), format, shape, weight, group, range, lower: start.clone(), upper: start })
    }

    /// The ends of a group.
    #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
    fn ends(&self, at: usize) -> [f32; 2] {
        let [lo, hi] = self.range[at];
        [(sigmoid(self.lower[at]) * f64::from(lo)) as f32, (sigmoid(self.upper[at]) * f64::from(hi)) as f32]
    }

    /// Groups of all rows, in order: where they begin and end.
    fn groups(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<'_> {
        let columns = self.shape[1].max(1);
        (0..self.weight.len()).step_by(columns).flat_map(move |row| {
            let end = (row + columns).min(self.weight.len());
            (row..end).step_by(self.group).map(move |at| at..(at + self.group).min(end))
        })
    }

    /// The clipped weight, `[out, in]`.
    pub(super) fn clipped(&self) -> Vec<f32> {
        let clamp = |(at, place): (usize, std::ops::Range<usize>)| {
            let [lo, hi] = self.ends(at);
            self.weight[place].iter().map(move |x| x.clamp(lo, hi))
        };
        self.groups().enumerate().flat_map(clamp).collect()
    }

    /// What the clipped weight is rounded to.
    pub(super) fn rounded(&self) -> Result<Vec<f32>, Error> {
        let refused = |source| Error::Linear { name: self.name.clone(), source };
        let clipped = self.clipped();
        fake_quantize(self.format, &Shaped::new(&clipped, &self.shape).map_err(refused)?).map_err(refused)
    }

    /// Gradients of β and γ from that of the rounded weight, straight through the rounding. With `Δ = (hi − lo)/(2^b − 1)`
    /// an element within the ends has `∂Ŵ/∂Δ = (Ŵ − W)/Δ`; one above them has `∂Ŵ/∂hi = 1`, one below `∂Ŵ/∂lo = 1`.
    pub(super) fn gradient(&self, rounded: &[f32], flow: &[f32]) -> [Vec<f64>; 2] {
        let levels = match self.format.element {
            Element::Int { bits, .. } => f64::from((1_u32 << bits) - 1),
            _ => 1.0,
        };
        let places: Vec<_> = self.groups().collect();
        let of = |(at, place): (usize, std::ops::Range<usize>)| {
            let [lo, hi] = self.ends(at);
            let step = (f64::from(hi) - f64::from(lo)) / levels;
            let (mut of_lo, mut of_hi, mut of_step) = (0.0, 0.0, 0.0);
            let elements = self.weight[place.clone()].iter().zip(&rounded[place.clone()]).zip(&flow[place]);
            for ((w, q), g) in elements {
                let g = f64::from(*g);
                if *w > hi {
                    of_hi += g;
                } else if *w < lo {
                    of_lo += g;
                } else if step > 0.0 {
                    of_step += g * (f64::from(*q) - f64::from(*w)) / step;
                }
            }
            let slope = |x: f64| sigmoid(x) * (1.0 - sigmoid(x));
            let [least, most] = self.range[at].map(f64::from);
            let lower = (of_lo - of_step / levels) * least * slope(self.lower[at]);
            (lower, (of_hi + of_step / levels) * most * slope(self.upper[at]))
        };
        let (lower, upper) = places.into_par_iter().enumerate().map(of).unzip();
        [lower, upper]
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "made-up numbers are small")]
mod tests {
    use super::*;

    fn sample() -> Clip {
        let weight: Vec<f32> = (0..60).map(|at| ((f64::from(at) * 1.3).sin() * 5.1).fract() as f32).collect();
        let mut clip = Clip::new("w", "int3-g8-asym".parse().unwrap(), [3, 20], weight).unwrap();
        for (at, (lower, upper)) in clip.lower.iter_mut().zip(&mut clip.upper).enumerate() {
            (*lower, *upper) = (0.5 + at as f64 * 0.3, 2.0 - at as f64 * 0.2);
        }
        clip
    }

    #[test]
    fn clips_start_at_the_sigmoid_of_four_and_groups_end_with_their_row() {
        let clip = Clip::new("w", Format::INT4_G128_ASYM, [1, 3], vec![-1.0, 0.25, 2.0]).unwrap();
        let kept = sigmoid(4.0) as f32;
        assert!((kept - 0.982).abs() < 1e-3);
        assert_eq!(clip.clipped(), [-kept, 0.25, 2.0 * kept]);
        assert_eq!(sample().range.len(), 9, "three rows of 8, 8 and 4");
    }

    #[test]
    fn gradients_of_clips_are_the_slopes_of_rounding_held_fast() {
        let clip = sample();
        let rounded = clip.rounded().unwrap();
        let flow: Vec<f32> = (0..60).map(|at| (f64::from(at) * 0.7).cos() as f32).collect();
        let found = clip.gradient(&rounded, &flow);
        // Within the ends an element is itself and r·Δ, r fixed; beyond them it is the end.
        let loss = |lower: &[f64], upper: &[f64]| -> f64 {
            let mut sum = 0.0;
            for (at, place) in clip.groups().enumerate() {
                let fixed = clip.ends(at).map(f64::from);
                let [lo, hi] = clip.range[at].map(f64::from);
                let ends = [sigmoid(lower[at]) * lo, sigmoid(upper[at]) * hi];
                let step = (ends[1] - ends[0]) / 7.0;
                for element in place {
                    let (w, q) = (f64::from(clip.weight[element]), f64::from(rounded[element]));
                    let read = match w {
                        w if w > fixed[1] => ends[1],
                        w if w < fixed[0] => ends[0],
                        w => w + (q - w) / ((fixed[1] - fixed[0]) / 7.0) * step,
                    };
                    sum += f64::from(flow[element]) * read;
                }
            }
            sum
        };
        for (which, gradient) in found.iter().enumerate() {
            for (at, slope) in gradient.iter().enumerate() {
                let nudged = |by: f64| {
                    let mut ends = [clip.lower.clone(), clip.upper.clone()];
                    ends[which][at] += by;
                    loss(&ends[0], &ends[1])
                };
                let expected = (nudged(1e-5) - nudged(-1e-5)) / 2e-5;
                assert!((slope - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{which} {at}: {slope}, {expected}");
            }
        }
    }

    #[test]
    fn formats_without_two_free_ends_are_refused() {
        for name in ["int4-g128", "mxfp4", "nf4", "int8"] {
            assert!(matches!(check(name.parse().unwrap()), Err(Error::BadSetting { .. })), "{name}");
        }
    }
}

//! k-means++: first centroids that lie apart (Arthur and Vassilvitskii 2007).
//!
//! Each further centroid is a point drawn with probability proportional to its weighted squared distance to the
//! nearest of those chosen. The distances are brought up to date for several new centroids at a time, so that a large sample
//! is not read once a centroid: a draw from the distances as they stand is accepted with the share that the new centroids
//! leave of its distance, and a refusal brings the distances up to date for the next draw. Accepted or drawn again, a
//! point comes out with the probability that it should.

use crate::kmeans::{Problem, Weights};
use pulp::{Arch, Simd, WithSimd};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

/// Points a centroid that are looked at.
const SAMPLE: usize = 32;
/// Distances wait for at most one in this many of the centroids chosen, so that hardly any draw is refused.
const WAITING: usize = 256;

/// The first centroids `[centroids, dim]`, among a sample of the points drawn without replacement.
pub(crate) fn plus_plus(problem: &Problem<'_>, centroids: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let sample = sample(problem.count(), centroids.saturating_mul(SAMPLE), &mut rng);
    let mut distances = Distances::new(problem, &sample);
    let mut chosen = vec![sample[below(sample.len(), &mut rng)]];
    let mut known = 0;
    while chosen.len() < centroids {
        if chosen.len() - known >= (chosen.len() / WAITING).max(1) {
            distances.add(&chosen[known..]);
            known = chosen.len();
        }
        let mut next = distances.draw(unit(&mut rng));
        if let Some((n, before)) = next.filter(|_| known < chosen.len()) {
            let new = chosen[known..].iter().map(|c| problem.distance(sample[n], problem.point(*c)));
            if unit(&mut rng) * before >= new.fold(before, f64::min) {
                distances.add(&chosen[known..]);
                known = chosen.len();
                next = distances.draw(unit(&mut rng));
            }
        }
        // All points of the sample are centroids already.
        let n = next.map_or_else(|| below(sample.len(), &mut rng), |(n, _)| n);
        chosen.push(sample[n]);
    }
    chosen.iter().flat_map(|n| problem.point(*n)).copied().collect()
}

/// Weighted squared distances of points to the nearest of some centroids.
struct Distances<'a> {
    problem: &'a Problem<'a>,
    blocks: Vec<Block>,
}

/// Points side by side, as many as fit the first cache.
struct Block {
    /// `[dim, points]`
    coordinates: Vec<f32>,
    /// `[dim, points]`, or nothing where all are 1.
    weights: Vec<f32>,
    nearest: Vec<f64>,
    total: f64,
}

impl<'a> Distances<'a> {
    const POINTS: usize = 256;

    fn new(problem: &'a Problem<'_>, sample: &[usize]) -> Self {
        let block = |points: &[usize]| {
            let axes = || (0..problem.dim).flat_map(|axis| points.iter().map(move |n| (axis, *n)));
            Block {
                coordinates: axes().map(|(axis, n)| problem.point(n)[axis]).collect(),
                weights: match problem.weights {
                    Weights::Uniform => Vec::new(),
                    Weights::PerPoint(weights) => axes().map(|(_, n)| weights[n]).collect(),
                    Weights::PerCoordinate(weights) => {
                        axes().map(|(axis, n)| weights[n * problem.dim + axis]).collect()
                    }
                },
                nearest: vec![f64::INFINITY; points.len()],
                total: 0.0,
            }
        };
        Self { problem, blocks: sample.chunks(Self::POINTS).map(block).collect() }
    }

    /// Takes points in as centroids.
    fn add(&mut self, centroids: &[usize]) {
        let (arch, problem) = (Arch::new(), self.problem);
        let blocks = self.blocks.par_iter_mut().with_min_len(16);
        blocks.for_each(|block| arch.dispatch(Nearer { block, problem, centroids }));
    }

    /// The point at which the running sum passes `share` of the total, and its distance; `None` when the total is 0.
    fn draw(&self, share: f64) -> Option<(usize, f64)> {
        let total: f64 = self.blocks.iter().map(|block| block.total).sum();
        if total <= 0.0 {
            return None;
        }
        let mut left = share * total;
        let mut last = None;
        for (index, block) in self.blocks.iter().enumerate().filter(|(_, block)| block.total > 0.0) {
            let points = block.nearest.iter().enumerate().map(|(n, distance)| (index * Self::POINTS + n, *distance));
            if left >= block.total {
                left -= block.total;
                last = points.rev().find(|(_, distance)| *distance > 0.0);
                continue;
            }
            for (n, distance) in points.filter(|(_, distance)| *distance > 0.0) {
                left -= distance;
                last = Some((n, distance));
                if left < 0.0 {
                    return last;
                }
            }
        }
        // Sums round, so that a share near 1 can pass them all.
        last
    }
}

/// The least of the distances so far and those to some points.
struct Nearer<'a> {
    block: &'a mut Block,
    problem: &'a Problem<'a>,
    centroids: &'a [usize],
}

impl WithSimd for Nearer<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { block: Block { coordinates, weights, nearest, total }, problem, centroids } = self;
        let points = nearest.len();
        for centroid in centroids {
            let mut distances = [0.0; Distances::POINTS];
            let distances = &mut distances[..points];
            for (axis, c) in problem.point(*centroid).iter().enumerate() {
                let c = f64::from(*c);
                let parts = distances.iter_mut().zip(&coordinates[axis * points..][..points]);
                let square = |x: f32| (f64::from(x) - c) * (f64::from(x) - c);
                match weights.get(axis * points..(axis + 1) * points) {
                    None => parts.for_each(|(distance, x)| *distance += square(*x)),
                    Some(weights) => {
                        parts.zip(weights).for_each(|((distance, x), w)| *distance += f64::from(*w) * square(*x))
                    }
                }
            }
            for (nearest, distance) in nearest.iter_mut().zip(distances) {
                *nearest = if *distance < *nearest { *distance } else { *nearest };
            }
        }
        let mut sums = [0.0; 8];
        for nearest in nearest.chunks(8) {
            sums.iter_mut().zip(nearest).for_each(|(sum, nearest)| *sum += nearest);
        }
        *total = sums.iter().sum();
    }
}

/// `size` of `count` indices, ascending; all of them when `size` is not less (selection sampling).
fn sample(count: usize, size: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    if size >= count {
        return (0..count).collect();
    }
    let mut chosen = Vec::with_capacity(size);
    for n in 0..count {
        if below(count - n, rng) < size - chosen.len() {
            chosen.push(n);
        }
    }
    chosen
}

/// A uniform number below 1.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A uniform index below `n`.
#[expect(clippy::cast_possible_truncation, reason = "the result is below n")]
fn below(n: usize, rng: &mut ChaCha8Rng) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

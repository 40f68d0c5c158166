//! Weighted k-means (the generalized Lloyd algorithm): code books learned from data.
//!
//! ```text
//! assign   a_n = argmin_c Σ_i ω_ni (x_ni − c_i)²
//! update   c_i = Σ_n ω_ni x_ni / Σ_n ω_ni      over the points assigned to c
//! ```
//!
//! Weights are none, one a point (the diagonal of a Hessian, VPTQ), or one a coordinate (GPTVQ, the
//! squared activations of RWKVQuant). Both half-steps lower the distortion, so it never rises. A cluster
//! that lost all its points, or all their weight, moves to the point with the largest error; the
//! reference implementations leave such entries at zero or at a stale value.
//!
//! Sums are f64 over fixed parts of the points, so the result does not depend on threads.

use crate::error::{Error, finite};
use crate::nearest::SearchTable;
use crate::plus_plus::plus_plus;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Most dimensions of a code vector.
pub const MAX_DIM: usize = 16;
/// Parts whose sums are formed separately and added in order.
const PARTS: usize = 16;

/// Where the first centroids come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// k-means++ on a seeded sample: each further centroid is drawn with probability proportional to the
    /// weighted squared distance to those chosen (Arthur and Vassilvitskii 2007).
    #[default]
    PlusPlus,
    /// Points sorted by their Mahalanobis distance to the mean (diagonal covariance), evenly spaced ones taken (GPTVQ).
    Mahalanobis,
}

/// Settings of the clustering.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KMeans {
    /// Entries of the code book.
    pub centroids: usize,
    /// Most iterations.
    pub iterations: usize,
    /// Ends when the distortion falls by less than this share.
    pub tolerance: f64,
    /// Where the first centroids come from.
    pub init: Init,
    /// Of the ChaCha8 generator.
    pub seed: u64,
}

impl Default for KMeans {
    /// 256 centroids, at most 100 iterations, relative change 1e-5 (the reference of VPTQ).
    fn default() -> Self {
        Self { centroids: 256, iterations: 100, tolerance: 1e-5, init: Init::PlusPlus, seed: 0 }
    }
}

/// How much each error counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Weights<'a> {
    /// All alike.
    #[default]
    Uniform,
    /// One weight a point.
    PerPoint(&'a [f32]),
    /// One weight a coordinate of each point, in the layout of the points.
    PerCoordinate(&'a [f32]),
}

/// A code book and who uses which entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Clustering {
    /// `[centroids, dim]`.
    pub centroids: Vec<f32>,
    /// Index of the centroid of each point.
    pub assignments: Vec<u32>,
    /// Weighted sum of squared errors of these assignments to these centroids.
    pub distortion: f64,
    /// Iterations done.
    pub iterations: usize,
    /// How often an empty cluster was moved.
    pub reseeded: usize,
}

/// Clusters `points` `[n, dim]`.
///
/// # Errors
///
/// [`Error::Dimension`], [`Error::NotDivisible`], [`Error::TooFewPoints`], [`Error::Setting`] for no iterations,
/// [`Error::NonFinite`], [`Error::Count`] and [`Error::Weight`] for weights that do not fit.
///
/// # Examples
///
/// ```
/// use vector_quant::{KMeans, Weights, kmeans};
/// let points = [0.0, 0.1, 0.2, 5.0, 5.1, 5.2];
/// let two = kmeans(&points, 1, Weights::Uniform, &KMeans { centroids: 2, ..KMeans::default() })?;
/// let mut centroids = two.centroids;
/// centroids.sort_by(f32::total_cmp);
/// assert!((centroids[0] - 0.1).abs() < 1e-6 && (centroids[1] - 5.1).abs() < 1e-6);
/// # Ok::<(), vector_quant::Error>(())
/// ```
pub fn kmeans(points: &[f32], dim: usize, weights: Weights<'_>, config: &KMeans) -> Result<Clustering, Error> {
    let problem = Problem::new(points, dim, weights, config)?;
    let mut centroids = match config.init {
        Init::PlusPlus => plus_plus(&problem, config.centroids, config.seed),
        Init::Mahalanobis => problem.mahalanobis(config.centroids),
    };
    let mut assignments = problem.assign(&centroids);
    let mut distortion = problem.distortion(&centroids, &assignments);
    let (mut reseeded, mut iterations) = (0, 0);
    while iterations < config.iterations {
        iterations += 1;
        reseeded += problem.update(&mut centroids, &assignments);
        assignments = problem.assign(&centroids);
        let before = std::mem::replace(&mut distortion, problem.distortion(&centroids, &assignments));
        if before - distortion <= config.tolerance * before {
            break;
        }
    }
    Ok(Clustering { centroids, assignments, distortion, iterations, reseeded })
}

/// Checked inputs.
pub(crate) struct Problem<'a> {
    points: &'a [f32],
    pub(crate) dim: usize,
    pub(crate) weights: Weights<'a>,
}

impl<'a> Problem<'a> {
    fn new(points: &'a [f32], dim: usize, weights: Weights<'a>, config: &KMeans) -> Result<Self, Error> {
        if dim == 0 || dim > MAX_DIM {
            return Err(Error::Dimension { dim, most: MAX_DIM });
        }
        if !points.len().is_multiple_of(dim) {
            return Err(Error::NotDivisible { what: "a list of points", len: points.len(), dim });
        }
        let count = points.len() / dim;
        if config.centroids == 0 || config.centroids > count {
            return Err(Error::TooFewPoints { points: count, centroids: config.centroids });
        }
        crate::error::within("iterations", config.iterations as f64, 1.0, 1e9)?;
        crate::error::within("tolerance", config.tolerance, 0.0, 1.0)?;
        finite("coordinate", points)?;
        let (given, expected) = match weights {
            Weights::Uniform => (&[][..], 0),
            Weights::PerPoint(weights) => (weights, count),
            Weights::PerCoordinate(weights) => (weights, points.len()),
        };
        if given.len() != expected {
            return Err(Error::Count { what: "weights", expected, found: given.len() });
        }
        if let Some(index) = given.iter().position(|w| !w.is_finite() || *w < 0.0) {
            return Err(Error::Weight { index, value: given[index] });
        }
        Ok(Self { points, dim, weights })
    }

    pub(crate) fn count(&self) -> usize {
        self.points.len() / self.dim
    }

    pub(crate) fn point(&self, n: usize) -> &[f32] {
        &self.points[n * self.dim..][..self.dim]
    }

    fn weight(&self, n: usize, axis: usize) -> f64 {
        f64::from(match self.weights {
            Weights::Uniform => 1.0,
            Weights::PerPoint(weights) => weights[n],
            Weights::PerCoordinate(weights) => weights[n * self.dim + axis],
        })
    }

    /// Weighted squared distance of a point to a centroid.
    pub(crate) fn distance(&self, n: usize, centroid: &[f32]) -> f64 {
        let terms = self.point(n).iter().zip(centroid).enumerate();
        terms.map(|(axis, (x, c))| self.weight(n, axis) * (f64::from(*x) - f64::from(*c)).powi(2)).sum()
    }

    /// The nearest centroid of each point. With a weight a coordinate the distance is, but for a constant, a
    /// product of twice as many dimensions: `Σ ωx·c + (−ω/2)·c²`.
    fn assign(&self, centroids: &[f32]) -> Vec<u32> {
        let mut assignments = vec![0; self.count()];
        match self.weights {
            Weights::Uniform | Weights::PerPoint(_) => {
                SearchTable::euclidean(centroids, self.dim).search(self.points, &mut assignments);
            }
            Weights::PerCoordinate(weights) => {
                let wide = 2 * self.dim;
                let mut rows = vec![0.0; 2 * centroids.len()];
                for (row, c) in rows.chunks_exact_mut(wide).zip(centroids.chunks_exact(self.dim)) {
                    row[..self.dim].copy_from_slice(c);
                    row[self.dim..].iter_mut().zip(c).for_each(|(square, c)| *square = c * c);
                }
                let table = SearchTable::new(&rows, wide, |_| 0.0);
                let mut points = vec![0.0; 2 * self.points.len()];
                let parts = self.points.chunks_exact(self.dim).zip(weights.chunks_exact(self.dim));
                for (wide, (x, w)) in points.chunks_exact_mut(wide).zip(parts) {
                    for axis in 0..self.dim {
                        wide[axis] = w[axis] * x[axis];
                        wide[self.dim + axis] = -0.5 * w[axis];
                    }
                }
                table.search(&points, &mut assignments);
            }
        }
        assignments
    }

    fn distortion(&self, centroids: &[f32], assignments: &[u32]) -> f64 {
        let part = assignments.len().div_ceil(PARTS).max(1);
        let sums = assignments.par_chunks(part).enumerate().map(|(index, assignments)| {
            let error = |(n, a): (usize, &u32)| {
                self.distance(index * part + n, &centroids[*a as usize * self.dim..][..self.dim])
            };
            assignments.iter().enumerate().map(error).sum::<f64>()
        });
        sums.collect::<Vec<f64>>().iter().sum()
    }

    /// Moves each centroid to the weighted mean of its points; returns how many had none and were re-seeded.
    fn update(&self, centroids: &mut [f32], assignments: &[u32]) -> usize {
        let dim = self.dim;
        let part = assignments.len().div_ceil(PARTS).max(1);
        // Sums and weights of the coordinates, side by side.
        let sums = assignments.par_chunks(part).enumerate().map(|(index, assignments)| {
            let mut sums = vec![[0.0_f64; 2]; centroids.len()];
            for (n, assigned) in assignments.iter().enumerate() {
                let n = index * part + n;
                let of = &mut sums[*assigned as usize * dim..][..dim];
                for (axis, (sum, x)) in of.iter_mut().zip(self.point(n)).enumerate() {
                    let weight = self.weight(n, axis);
                    sum[0] += weight * f64::from(*x);
                    sum[1] += weight;
                }
            }
            sums
        });
        let mut parts = sums.collect::<Vec<_>>().into_iter();
        let mut total = parts.next().unwrap_or_default();
        for part in parts {
            total.iter_mut().zip(part).for_each(|(total, [sum, weight])| {
                total[0] += sum;
                total[1] += weight;
            });
        }
        let mut empty = Vec::new();
        for (index, (centroid, sums)) in centroids.chunks_exact_mut(dim).zip(total.chunks_exact(dim)).enumerate() {
            if sums.iter().all(|[_, weight]| *weight == 0.0) {
                empty.push(index);
                continue;
            }
            // A coordinate without weight stays where it is: it costs nothing.
            for (c, [sum, weight]) in centroid.iter_mut().zip(sums).filter(|(_, [_, weight])| *weight > 0.0) {
                *c = to_f32(sum / weight);
            }
        }
        self.reseed(centroids, assignments, &empty)
    }

    /// Moves centroids without points to the points that are served worst.
    fn reseed(&self, centroids: &mut [f32], assignments: &[u32], empty: &[usize]) -> usize {
        if empty.is_empty() {
            return 0;
        }
        let error = |n: usize| self.distance(n, &centroids[assignments[n] as usize * self.dim..][..self.dim]);
        let mut worst: Vec<(f64, usize)> = (0..self.count()).map(|n| (error(n), n)).collect();
        worst.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut moved = 0;
        for (index, (_, n)) in empty.iter().zip(worst.iter().filter(|(error, _)| *error > 0.0)) {
            centroids[index * self.dim..][..self.dim].copy_from_slice(self.point(*n));
            moved += 1;
        }
        moved
    }

    /// Evenly spaced points in the order of their distance to the mean, in units of the spread of each axis.
    fn mahalanobis(&self, centroids: usize) -> Vec<f32> {
        let count = self.count() as f64;
        let mean_of = |f: &dyn Fn(usize) -> f64| (0..self.count()).map(f).sum::<f64>() / count;
        let axes: Vec<(f64, f64)> = (0..self.dim)
            .map(|axis| {
                let mean = mean_of(&|n| f64::from(self.point(n)[axis]));
                (mean, mean_of(&|n| (f64::from(self.point(n)[axis]) - mean).powi(2)))
            })
            .collect();
        let distance = |n: usize| {
            let terms = self.point(n).iter().zip(&axes).filter(|(_, (_, variance))| *variance > 0.0);
            terms.map(|(x, (mean, variance))| (f64::from(*x) - mean).powi(2) / variance).sum::<f64>()
        };
        let mut order: Vec<(f64, usize)> = (0..self.count()).map(|n| (distance(n), n)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let last = order.len() - 1;
        let pick = |c: usize| order[if centroids == 1 { last / 2 } else { c * last / (centroids - 1) }].1;
        (0..centroids).flat_map(|c| self.point(pick(c)).iter().copied()).collect()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a mean of f32 values rounded to f32")]
fn to_f32(x: f64) -> f32 {
    x as f32
}

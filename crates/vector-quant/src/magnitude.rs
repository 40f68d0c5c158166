//! The optimal scalar quantizer of the length of a Gaussian vector (Lloyd–Max on the chi distribution).
//!
//! ```text
//! f(r) = r^(k−1) e^(−r²/2) / (2^(k/2−1) Γ(k/2))                        density of |x| for x ~ N(0, I_k)
//! u_i  = (c_i + c_(i+1)) / 2,  u_0 = 0,  u_K = ∞                       boundaries
//! c_i  = √2 Γ((k+1)/2)/Γ(k/2) · [P((k+1)/2, u²/2)] / [P(k/2, u²/2)]    both brackets over u_(i−1)…u_i
//! ```
//!
//! `P` is the regularised lower incomplete gamma function. PCDVQ (arXiv 2506.05432) codes magnitudes with it.

use crate::error::{Error, within};

/// A scalar quantizer for lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct LloydMax {
    /// The values, ascending.
    pub centers: Vec<f64>,
    /// Inner boundaries, one fewer than values.
    pub bounds: Vec<f64>,
    /// Mean squared error of the length of a vector.
    pub mse: f64,
}

/// The Lloyd–Max quantizer with `2^bits` values for the length of a `k`-dimensional standard normal vector.
///
/// # Errors
///
/// [`Error::Setting`] for `k` outside 1..=64 or more than 6 bits.
///
/// # Examples
///
/// ```
/// let lengths = vector_quant::chi_lloyd_max(8, 2)?;
/// assert!((lengths.centers[0] - 1.816444).abs() < 1e-6);
/// # Ok::<(), vector_quant::Error>(())
/// ```
pub fn chi_lloyd_max(k: u32, bits: u32) -> Result<LloydMax, Error> {
    within("dimensions", f64::from(k), 1.0, 64.0)?;
    within("magnitude bits", f64::from(bits), 0.0, 6.0)?;
    let (shape, above) = (f64::from(k) / 2.0, f64::from(k + 1) / 2.0);
    let mean = std::f64::consts::SQRT_2 * (ln_gamma_half(k + 1) - ln_gamma_half(k)).exp();
    let mass = |u: f64| lower_gamma(k, shape, u * u / 2.0);
    let moment = |u: f64| mean * lower_gamma(k + 1, above, u * u / 2.0);
    let values = 1_usize << bits;
    // Even spacing over the bulk of the distribution; the fixed point is unique (the density is log-concave).
    let (low, high) = ((mean - 1.5).max(0.1 * mean), mean + 1.5);
    let spread = |i: usize| low + (high - low) * (i as f64 + 0.5) / values as f64;
    let mut centers: Vec<f64> = (0..values).map(spread).collect();
    let mut bounds = Vec::new();
    for _ in 0..20_000 {
        bounds = centers.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        let edges: Vec<(f64, f64)> = std::iter::once((0.0, 0.0))
            .chain(bounds.iter().map(|u| (mass(*u), moment(*u))))
            .chain([(1.0, mean)])
            .collect();
        let next: Vec<f64> = edges.windows(2).map(|e| (e[1].1 - e[0].1) / (e[1].0 - e[0].0)).collect();
        let step = centers.iter().zip(&next).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        centers = next;
        if step < 1e-13 {
            break;
        }
    }
    // E[r²] = k and E[c r] = E[c²] at the fixed point.
    let masses: Vec<f64> = std::iter::once(0.0).chain(bounds.iter().map(|u| mass(*u))).chain([1.0]).collect();
    let energy: f64 = centers.iter().zip(masses.windows(2)).map(|(c, m)| c * c * (m[1] - m[0])).sum();
    Ok(LloydMax { centers, bounds, mse: f64::from(k) - energy })
}

/// `ln Γ(n/2)` for whole `n ≥ 1`, by the recurrence from Γ(1) = 1 or Γ(½) = √π.
fn ln_gamma_half(n: u32) -> f64 {
    let start = if n.is_multiple_of(2) { 0.0 } else { std::f64::consts::PI.ln() / 2.0 };
    let first = if n.is_multiple_of(2) { 2 } else { 1 };
    (first..n).step_by(2).map(|m| (f64::from(m) / 2.0).ln()).sum::<f64>() + start
}

/// The regularised lower incomplete gamma function `P(n/2, x)` by its power series, which converges everywhere:
/// `x^a e^(−x) / Γ(a+1) · Σ x^j / ((a+1)…(a+j))`.
fn lower_gamma(n: u32, a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let (mut term, mut sum, mut at) = (1.0, 1.0, a);
    while term > sum * 1e-17 {
        at += 1.0;
        term *= x / at;
        sum += term;
    }
    (a * x.ln() - x - ln_gamma_half(n + 2)).exp() * sum
}

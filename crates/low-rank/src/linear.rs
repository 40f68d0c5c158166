//! Pairs and sums of linears.

use crate::factor::product_rows;
use crate::matrix::{narrow, stored};
use crate::{Error, Factor};
use quant_core::{Footprint, Linear};

/// `W = A B`: `B` `[rank, in]` is applied first, then `A` `[out, rank]`.
///
/// # Examples
///
/// ```
/// use low_rank::{DenseLinear, LowRank};
/// use quant_core::Linear;
///
/// let a = DenseLinear::new(vec![1.0, 2.0, 3.0], 3, 1)?;
/// let b = DenseLinear::new(vec![1.0, -1.0], 1, 2)?;
/// let pair = LowRank::new(a, b)?;
///
/// let mut y = [0.0; 3];
/// pair.matmul(&[5.0, 3.0], &mut y)?;
/// assert_eq!(y, [2.0, 4.0, 6.0]);
/// assert_eq!(pair.footprint().total_bytes(), 4 * (3 + 2));
/// # Ok::<(), low_rank::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank<A, B> {
    a: A,
    b: B,
}

impl<A: Linear, B: Linear> LowRank<A, B> {
    /// Chains two linears.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when `a` does not take what `b` gives.
    pub fn new(a: A, b: B) -> Result<Self, Error> {
        if a.in_features() != b.out_features() {
            return Err(Error::Mismatch { left: shape(&a), right: shape(&b) });
        }
        Ok(Self { a, b })
    }

    /// The left factor, `[out, rank]`.
    pub fn a(&self) -> &A {
        &self.a
    }

    /// The right factor, `[rank, in]`.
    pub fn b(&self) -> &B {
        &self.b
    }

    /// Width of what lies between the factors.
    pub fn rank(&self) -> usize {
        self.b.out_features()
    }
}

impl<A: Linear, B: Linear> Linear for LowRank<A, B> {
    fn in_features(&self) -> usize {
        self.b.in_features()
    }

    fn out_features(&self) -> usize {
        self.a.out_features()
    }

    /// Two products; the latent between them is `rank` numbers a row.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        let rows = product_rows(self, x, y)?;
        let mut latent = vec![0.0; rows * self.rank()];
        self.b.matmul(x, &mut latent)?;
        self.a.matmul(&latent, y)
    }

    /// The product of the stored factors, in f64 and rounded once. A product through the latent rounds once more, between.
    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        let (a, b) = (stored(&self.a)?, stored(&self.b)?);
        Ok(narrow(&quant_linalg::matmul(a.view(), b.view())))
    }

    fn footprint(&self) -> Footprint {
        let elements = self.in_features() as u64 * self.out_features() as u64;
        Footprint { elements, ..self.a.footprint() + self.b.footprint() }
    }

    fn prepared(&self) -> Option<Box<dyn Linear>> {
        Some(Box::new(LowRank { a: Owned(self.a.prepared()?), b: Owned(self.b.prepared()?) }))
    }
}

/// `W = A + B`, for example a packed weight and the low-rank correction of its error.
#[derive(Clone, Debug, PartialEq)]
pub struct Sum<A, B> {
    a: A,
    b: B,
}

impl<A: Linear, B: Linear> Sum<A, B> {
    /// Adds two linears of one shape.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when the shapes differ.
    pub fn new(a: A, b: B) -> Result<Self, Error> {
        if shape(&a) != shape(&b) {
            return Err(Error::Mismatch { left: shape(&a), right: shape(&b) });
        }
        Ok(Self { a, b })
    }

    /// The first term.
    pub fn a(&self) -> &A {
        &self.a
    }

    /// The second term.
    pub fn b(&self) -> &B {
        &self.b
    }
}

impl<A: Linear, B: Linear> Linear for Sum<A, B> {
    fn in_features(&self) -> usize {
        self.a.in_features()
    }

    fn out_features(&self) -> usize {
        self.a.out_features()
    }

    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        self.a.matmul(x, y)?;
        let mut more = vec![0.0; y.len()];
        self.b.matmul(x, &mut more)?;
        y.iter_mut().zip(more).for_each(|(y, more)| *y += more);
        Ok(())
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        let mut sum = self.a.to_dense()?;
        sum.iter_mut().zip(self.b.to_dense()?).for_each(|(sum, more)| *sum += more);
        Ok(sum)
    }

    fn footprint(&self) -> Footprint {
        let elements = self.in_features() as u64 * self.out_features() as u64;
        Footprint { elements, ..self.a.footprint() + self.b.footprint() }
    }

    fn prepared(&self) -> Option<Box<dyn Linear>> {
        Some(Box::new(Sum { a: Owned(self.a.prepared()?), b: Owned(self.b.prepared()?) }))
    }
}

/// A part that was arranged for fast products.
#[derive(Debug)]
struct Owned(Box<dyn Linear>);

impl Linear for Owned {
    fn in_features(&self) -> usize {
        self.0.in_features()
    }

    fn out_features(&self) -> usize {
        self.0.out_features()
    }

    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        self.0.matmul(x, y)
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        self.0.to_dense()
    }

    fn footprint(&self) -> Footprint {
        self.0.footprint()
    }
}

/// What a method makes of a weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Factored {
    /// Kept whole, in the storage that the factors would have had: two factors would not be smaller.
    Dense(Factor),
    /// Two factors.
    Pair(LowRank<Factor, Factor>),
    /// Kept whole, rounded, and corrected by two factors.
    Corrected(Sum<Factor, LowRank<Factor, Factor>>),
}

impl Factored {
    fn linear(&self) -> &dyn Linear {
        match self {
            Self::Dense(dense) => dense,
            Self::Pair(pair) => pair,
            Self::Corrected(sum) => sum,
        }
    }
}

impl Linear for Factored {
    fn in_features(&self) -> usize {
        self.linear().in_features()
    }

    fn out_features(&self) -> usize {
        self.linear().out_features()
    }

    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        self.linear().matmul(x, y)
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        self.linear().to_dense()
    }

    fn footprint(&self) -> Footprint {
        self.linear().footprint()
    }

    fn prepared(&self) -> Option<Box<dyn Linear>> {
        self.linear().prepared()
    }
}

pub(crate) fn shape(linear: &impl Linear) -> (usize, usize) {
    (linear.out_features(), linear.in_features())
}

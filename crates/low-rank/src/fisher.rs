//! Fisher information, as far as diagonal metrics read it.

use crate::Error;
use ndarray::{ArrayView2, Axis};

/// Fisher information of a weight `[out, in]`: the mean over samples of the squared gradient of the loss at each element,
/// added up along rows and along columns.
///
/// Weighting single elements has no closed form, weighting whole rows or columns has, so these sums are all that is kept.
///
/// # Examples
///
/// ```
/// use low_rank::Fisher;
/// let mut fisher = Fisher::new(2, 3);
/// fisher.add(&[1.0, 0.0, 2.0, 0.0, 0.0, 3.0])?;
/// fisher.add(&[1.0, 0.0, 0.0, 0.0, 0.0, 1.0])?;
/// assert_eq!(fisher.rows(), [3.0, 5.0]);
/// assert_eq!(fisher.columns(), [1.0, 0.0, 7.0]);
/// # Ok::<(), low_rank::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Fisher {
    rows: Vec<f64>,
    columns: Vec<f64>,
    samples: u64,
}

impl Fisher {
    /// Of no sample yet.
    #[must_use]
    pub fn new(rows: usize, columns: usize) -> Self {
        Self { rows: vec![0.0; rows], columns: vec![0.0; columns], samples: 0 }
    }

    /// Of an information `[out, in]` that is known element by element.
    #[must_use]
    pub fn of(information: ArrayView2<'_, f64>) -> Self {
        let (rows, columns) = (information.sum_axis(Axis(1)), information.sum_axis(Axis(0)));
        Self { rows: rows.to_vec(), columns: columns.to_vec(), samples: 1 }
    }

    /// Takes the gradient of one sample in, row-major `[out, in]`.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] for another number of elements.
    pub fn add(&mut self, gradient: &[f32]) -> Result<(), Error> {
        let (expected, found) = (self.rows.len() * self.columns.len(), gradient.len());
        if expected != found {
            return Err(Error::Features { what: "gradients", expected, found });
        }
        for (sum, row) in self.rows.iter_mut().zip(gradient.chunks_exact(self.columns.len().max(1))) {
            for (column, &g) in self.columns.iter_mut().zip(row) {
                let square = f64::from(g) * f64::from(g);
                *sum += square;
                *column += square;
            }
        }
        self.samples += 1;
        Ok(())
    }

    /// Samples that were taken in.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// `Σ_j F_ij` of every row `i`.
    #[must_use]
    pub fn rows(&self) -> Vec<f64> {
        self.mean(&self.rows)
    }

    /// `Σ_i F_ij` of every column `j`.
    #[must_use]
    pub fn columns(&self) -> Vec<f64> {
        self.mean(&self.columns)
    }

    fn mean(&self, sums: &[f64]) -> Vec<f64> {
        let samples = self.samples.max(1) as f64;
        sums.iter().map(|sum| sum / samples).collect()
    }
}

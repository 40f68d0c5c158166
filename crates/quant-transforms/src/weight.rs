//! Weights with names, and folding transforms into them.

use crate::transform::Way;
use crate::{Element, Error, Transform};
use ndarray::ArrayView2;

/// A weight that is changed in place, `[out, in]` row-major, with the name by which errors call it.
///
/// Folding computes in f64 and rounds once. On an error a weight is as it was before.
#[derive(Debug)]
pub struct Weight<'a, T> {
    pub(crate) name: &'a str,
    pub(crate) values: &'a mut [T],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl<'a, T: Element> Weight<'a, T> {
    /// A matrix `[out, in]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] when the values do not fill it, [`Error::NonFinite`] when one is NaN or infinite.
    pub fn new(name: &'a str, values: &'a mut [T], [rows, columns]: [usize; 2]) -> Result<Self, Error> {
        if rows.checked_mul(columns) != Some(values.len()) {
            return Err(Error::Shape { name: name.to_owned(), rows, columns, found: values.len() });
        }
        check_finite(name, values.iter().map(|v| v.wide()))?;
        Ok(Self { name, values, rows, columns })
    }

    /// A vector, such as a bias or the gain of a norm: one row.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] when a value is NaN or infinite.
    pub fn vector(name: &'a str, values: &'a mut [T]) -> Result<Self, Error> {
        let columns = values.len();
        Self::new(name, values, [1, columns])
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name
    }

    /// The values.
    #[must_use]
    pub fn values(&self) -> &[T] {
        self.values
    }

    /// Refuses a weight that does not have so many inputs.
    pub(crate) fn expect_inputs(&self, expected: usize) -> Result<(), Error> {
        self.expect("input features", expected, self.columns)
    }

    /// Refuses a weight that does not have so many outputs.
    pub(crate) fn expect_outputs(&self, expected: usize) -> Result<(), Error> {
        self.expect("output features", expected, self.rows)
    }

    fn expect(&self, what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
        let name = || self.name.to_owned();
        if expected == found { Ok(()) } else { Err(Error::Count { name: name(), what, expected, found }) }
    }

    /// Changes the values in f64 and rounds them once.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut [f64]) -> Result<(), Error>) -> Result<(), Error> {
        let mut wide: Vec<f64> = self.values.iter().map(|v| v.wide()).collect();
        change(&mut wide)?;
        check_finite(self.name, wide.iter().map(|&v| T::narrow(v).wide()))?;
        for (value, &wide) in self.values.iter_mut().zip(&wide) {
            *value = T::narrow(wide);
        }
        Ok(())
    }

    /// Multiplies each column with its factor.
    pub(crate) fn scale_inputs(&mut self, factors: &[f64]) -> Result<(), Error> {
        self.expect_inputs(factors.len())?;
        let columns = self.columns.max(1);
        self.change(|values| {
            for row in values.chunks_exact_mut(columns) {
                row.iter_mut().zip(factors).for_each(|(v, factor)| *v *= factor);
            }
            Ok(())
        })
    }

    /// Multiplies each row with its factor.
    pub(crate) fn scale_outputs(&mut self, factors: &[f64]) -> Result<(), Error> {
        self.expect_outputs(factors.len())?;
        let columns = self.columns.max(1);
        self.change(|values| {
            for (row, factor) in values.chunks_exact_mut(columns).zip(factors) {
                row.iter_mut().for_each(|v| *v *= factor);
            }
            Ok(())
        })
    }
}

fn check_finite(name: &str, values: impl Iterator<Item = f64>) -> Result<(), Error> {
    match values.enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, value)) => Err(Error::NonFinite { name: name.to_owned(), index, value }),
        None => Ok(()),
    }
}

impl Transform {
    /// Folds the transform of its input into a weight: with `x' = x T`, `W' = W T⁻ᵀ` gives `x' W'ᵀ = x Wᵀ`.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] when the weight has another number of inputs, [`Error::NonFinite`] when a value overflows.
    pub fn fold_input<T: Element>(&self, weight: &mut Weight<'_, T>) -> Result<(), Error> {
        weight.expect_inputs(self.size())?;
        weight.change(|rows| self.apply_way(rows, Way::InverseTranspose))
    }

    /// Folds the transform of its output into a weight: `W' = Tᵀ W` gives `x W'ᵀ = (x Wᵀ) T`.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] when the weight has another number of outputs, [`Error::NonFinite`] when a value overflows.
    pub fn fold_output<T: Element>(&self, weight: &mut Weight<'_, T>) -> Result<(), Error> {
        weight.expect_outputs(self.size())?;
        let (rows, columns) = (weight.rows, weight.columns);
        weight.change(|values| {
            let mut transposed = transpose(values, rows, columns);
            self.apply_way(&mut transposed, Way::Forward)?;
            values.copy_from_slice(&transpose(&transposed, columns, rows));
            Ok(())
        })
    }

    /// Folds the transform into a vector that is added to the rows, or is one of them: `b' = b T`. A bias of what writes the
    /// rows is one, and so is each row of an embedding.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] when rows have another length, [`Error::NonFinite`] when a value overflows.
    pub fn fold_rows<T: Element>(&self, rows: &mut Weight<'_, T>) -> Result<(), Error> {
        rows.expect_inputs(self.size())?;
        rows.change(|rows| self.apply_way(rows, Way::Forward))
    }

    pub(crate) fn apply_way(&self, rows: &mut [f64], way: Way) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        crate::transform::in_rows(self.size(), rows, |rows| self.run(rows, way))
    }
}

/// The transpose of a row-major matrix.
pub(crate) fn transpose(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let matrix = ArrayView2::from_shape((rows, columns), values).expect("the values fill the shape");
    matrix.t().iter().copied().collect()
}

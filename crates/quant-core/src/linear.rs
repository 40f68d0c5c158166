//! A compressed weight that can be applied.

use crate::kernels::Isa;
use crate::{Error, Footprint, PackedTensor, PreparedLinear, TensorView, parallel};
use std::cell::RefCell;
use std::fmt::Debug;

/// A weight `W` of shape `[out, in]` that can be multiplied without its owner knowing how it is stored.
///
/// Packed tensors implement it, and so do the low-rank pairs, code books, rotations and sums of the
/// other crates; they compose because all are used through this trait.
pub trait Linear: Debug + Send + Sync {
    /// Features that go in: the last axis of `W`.
    fn in_features(&self) -> usize;

    /// Features that come out: the rows of `W`.
    fn out_features(&self) -> usize;

    /// Computes `y = x Wᵀ` for row-major `x` `[rows, in]` and `y` `[rows, out]`; `rows` follows from `x`.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] when `x` is not whole rows, [`Error::OutputLen`] when `y` has another
    /// number of rows.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), Error>;

    /// The same for inputs of any element type, strides and leading axes, such as the f16 tensors of an engine or a
    /// slice of a larger array: what is not contiguous f32 is gathered and widened first.
    ///
    /// ```
    /// use half::f16;
    /// use quant_core::{Format, Linear, PackedTensor, Shaped, Tensor};
    /// let weight: Vec<f32> = (0..8 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    /// let packed = PackedTensor::encode(Format::INT8, &Shaped::new(&weight, &[8, 64])?)?;
    /// let x = vec![f16::from_f32(0.5); 2 * 3 * 64];
    ///
    /// let mut y = [0.0; 2 * 3 * 8];
    /// packed.matmul_view(&Shaped::new(&x, &[2, 3, 64])?.view(), &mut y)?;
    ///
    /// let mut same = [0.0; 2 * 3 * 8];
    /// packed.matmul(&[0.5; 2 * 3 * 64], &mut same)?;
    /// assert_eq!(y, same);
    /// # Ok::<(), quant_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Linear::matmul`], the last axis of `x` being `in`; as [`TensorView::to_f32`] for values that do not become f32.
    fn matmul_view(&self, x: &TensorView<'_>, y: &mut [f32]) -> Result<(), Error> {
        if x.row_len() != self.in_features() {
            return Err(Error::Features { in_features: self.in_features(), found: x.row_len() });
        }
        match x.contiguous_rows(0, x.rows()) {
            Some(x) => self.matmul(x, y),
            None => self.matmul(&x.to_f32()?, y),
        }
    }

    /// The values it multiplies with, row-major `[out, in]`.
    ///
    /// # Errors
    ///
    /// [`Error::SizeOverflow`] when they do not fit the address space.
    fn to_dense(&self) -> Result<Vec<f32>, Error>;

    /// Everything that is stored.
    fn footprint(&self) -> Footprint;

    /// The same weight arranged for fast products on this CPU, for owners that multiply with it again and again;
    /// nothing where there is no better form.
    fn prepared(&self) -> Option<Box<dyn Linear>> {
        None
    }
}

/// Checks the slices of a product and returns the number of rows.
pub(crate) fn product_rows(x: &[f32], y: &[f32], in_features: usize, out_features: usize) -> Result<usize, Error> {
    if in_features == 0 || !x.len().is_multiple_of(in_features) {
        return Err(Error::Features { in_features, found: x.len() });
    }
    let rows = x.len() / in_features;
    let expected = rows * out_features;
    if y.len() != expected {
        return Err(Error::OutputLen { expected, found: y.len() });
    }
    Ok(rows)
}

impl Linear for PackedTensor<'_> {
    fn in_features(&self) -> usize {
        self.layout().columns
    }

    fn out_features(&self) -> usize {
        self.layout().rows
    }

    /// Decodes one row of the weight at a time; the sum of each product is formed in 16 lanes
    /// that are added pairwise, the same on every machine and for any number of threads. The plain way, and the
    /// oracle of [`PreparedLinear`], which is many times faster.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        let (columns, outputs) = (self.in_features(), self.out_features());
        let rows = product_rows(x, y, columns, outputs)?;
        let isa = Isa::current();
        // Sums of one output lie side by side here, so that threads write to memory of their own.
        let mut sums = vec![0.0; y.len()];
        let work = sums.chunks_exact_mut(rows.max(1)).enumerate().collect();
        parallel::for_each(work, columns * (rows + 1), |(output, sums): (usize, &mut [f32])| {
            if let [sum] = &mut *sums
                && let Some(found) = self.dot_checked(isa, output, x)
            {
                *sum = found;
                return Ok(());
            }
            SCRATCH.with_borrow_mut(|weights| {
                weights.resize(columns, 0.0);
                self.decode_checked(isa, output, weights, false);
                isa.backend().dots(x, weights, sums);
                Ok(())
            })
        })?;
        for (row, y) in y.chunks_exact_mut(outputs).enumerate() {
            for (output, y) in y.iter_mut().enumerate() {
                *y = sums[output * rows + row];
            }
        }
        Ok(())
    }

    fn to_dense(&self) -> Result<Vec<f32>, Error> {
        Ok(self.decode())
    }

    fn footprint(&self) -> Footprint {
        PackedTensor::footprint(self)
    }

    fn prepared(&self) -> Option<Box<dyn Linear>> {
        PreparedLinear::new(self).ok().map(|prepared| Box::new(prepared) as Box<dyn Linear>)
    }
}

thread_local! {
    /// One decoded row.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

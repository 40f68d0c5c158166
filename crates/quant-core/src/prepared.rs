//! A packed tensor arranged for fast products.

use crate::kernels::Isa;
use crate::kernels::tiles::{self, FloatInputs, IntInputs, PAIR, Products, ROWS, Scratch, Tiles};
use crate::linear::product_rows;
use crate::{Error, Footprint, Linear, PackedTensor, parallel};
use std::cell::RefCell;

/// What the inputs of a product are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Nothing: only the weight is compressed. Weights are decoded to f32 in registers.
    #[default]
    Float,
    /// 8-bit integers with one scale a row of inputs (W8A8, W4A8 with a scale a token).
    Int8Row,
    /// 8-bit integers with one scale for each group of the weight, and for each 128 columns of longer groups.
    Int8Group,
}

/// Bytes of inputs that are worked on at a time, at most: they stay in the second-level cache.
const MOST_INPUTS: usize = 768 << 10;
/// But at least so many rows.
const LEAST_ROWS: usize = 96;
/// Products of two numbers below which one thread is faster.
const LEAST_WORK: usize = 1 << 19;

/// A [`PackedTensor`] whose codes were rearranged for products on this CPU.
///
/// Codes keep their bits (those of 5 to 7 bits take a byte) and scales their type; sixteen output rows lie side by
/// side, so that one vector instruction works on all of them. Weights go through the caches once for any number of
/// rows of inputs.
///
/// With [`Activations::Float`] the values are those of [`PackedTensor::decode`], but that scales which are a quotient
/// (compressed-tensors' NVFP4) may differ by a unit in the last place; sums are f32. For an output `i`,
/// `|y − Σ w·x| ≤ 2⁻²⁴·(in/4 + 32)·Σ|x|·(max|w| + c)`, where the maximum is over the row and `c`, 0 in formats without
/// zero points, is half the span of a block's codes, `2^(b−1)·scale`.
///
/// With 8-bit inputs `q = rne(x/step)`, `step = max|x|/127`, products are summed exactly in 32-bit integers over 128
/// columns at most: these sums are equal on every CPU. Only formats whose values are integers of eight bits times a
/// step can do so: integers, ternary, E2M1, E2M3; not FP8 and tables of reals like NF4.
///
/// Results are the same bits for any number of threads, and a row's do not depend on the other rows, but for a single
/// row, which has an order of sums of its own.
///
/// ```
/// use quant_core::{Activations, Format, Linear, PackedTensor, PreparedLinear, Shaped};
/// let weight: Vec<f32> = (0..64 * 256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
/// let packed = PackedTensor::encode(Format::INT4_G128, &Shaped::new(&weight, &[64, 256])?)?;
/// let x = vec![0.5; 256];
///
/// let prepared = PreparedLinear::new(&packed)?;
/// let (mut y, mut expected) = (vec![0.0; 64], vec![0.0; 64]);
/// prepared.matmul(&x, &mut y)?;
/// packed.matmul(&x, &mut expected)?;
/// assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
///
/// let rounded = prepared.with_activations(Activations::Int8Row)?;
/// rounded.matmul(&x, &mut y)?;
/// # Ok::<(), quant_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedLinear {
    tiles: Tiles,
    activations: Activations,
    format: String,
}

impl PreparedLinear {
    /// Rearranges a packed tensor; inputs stay f32.
    ///
    /// # Errors
    ///
    /// [`Error::Prepare`] for formats whose codes are 16-bit floats or shared exponents with nine magnitude bits, and
    /// for tensors that hold NaN.
    pub fn new(packed: &PackedTensor<'_>) -> Result<Self, Error> {
        let format = packed.format().to_string();
        Ok(Self { tiles: Tiles::new(packed)?, activations: Activations::Float, format })
    }

    /// The same weight with inputs rounded before each product.
    ///
    /// # Errors
    ///
    /// [`Error::Prepare`] when inputs are to be integers and the values of the format are not.
    pub fn with_activations(self, activations: Activations) -> Result<Self, Error> {
        if activations != Activations::Float && self.tiles.integers.is_none() {
            let reason = "products with 8-bit inputs need values that are 8-bit integers times a step";
            return Err(Error::Prepare { format: self.format, reason });
        }
        Ok(Self { activations, ..self })
    }

    /// What inputs are rounded to.
    #[must_use]
    pub fn activations(&self) -> Activations {
        self.activations
    }

    fn one_row(&self, products: &dyn Products, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        let pieces: Vec<_> = y.chunks_mut(ROWS).enumerate().collect();
        let work = ROWS * self.tiles.columns;
        match self.activations {
            Activations::Float => {
                let x = FloatInputs::new(&self.tiles, x, products);
                parallel::for_each_above(LEAST_WORK, pieces, work, |(panel, y)| {
                    products.float_vector(&self.tiles, &x, panel..panel + 1, y);
                    Ok(())
                })
            }
            activations => {
                let x = IntInputs::new(&self.tiles, x, activations == Activations::Int8Row, products);
                let row_step = x.row_steps.first().copied().unwrap_or(1.0);
                parallel::for_each_above(LEAST_WORK, pieces, work, |(panel, y)| {
                    products.int_vector(&self.tiles, &x, panel..panel + 1, y);
                    y.iter_mut().for_each(|y| *y *= row_step);
                    Ok(())
                })
            }
        }
    }

    fn many_rows(&self, products: &dyn Products, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        let rows = x.len() / self.tiles.columns;
        // The outputs of each pair of panels, so that threads write to memory of their own.
        let pairs = self.tiles.rows.div_ceil(PAIR);
        let mut outputs: Vec<Vec<&mut [f32]>> = (0..pairs).map(|_| Vec::with_capacity(rows)).collect();
        for y in y.chunks_exact_mut(self.tiles.rows) {
            outputs.iter_mut().zip(y.chunks_mut(PAIR)).for_each(|(outputs, y)| outputs.push(y));
        }
        let pairs: Vec<_> = outputs.into_iter().enumerate().collect();
        let work = PAIR * self.tiles.columns * rows;
        match self.activations {
            Activations::Float => {
                let x = FloatInputs::new(&self.tiles, x, products);
                parallel::for_each_above(LEAST_WORK, pairs, work, |(pair, mut y)| {
                    SCRATCH.with_borrow_mut(|scratch| products.float_matrix(&self.tiles, &x, pair, scratch, &mut y));
                    Ok(())
                })
            }
            activations => {
                let x = IntInputs::new(&self.tiles, x, activations == Activations::Int8Row, products);
                parallel::for_each_above(LEAST_WORK, pairs, work, |(pair, mut y)| {
                    SCRATCH.with_borrow_mut(|scratch| products.int_matrix(&self.tiles, &x, pair, scratch, &mut y));
                    Ok(())
                })
            }
        }
    }
}

impl Linear for PreparedLinear {
    fn in_features(&self) -> usize {
        self.tiles.columns
    }

    fn out_features(&self) -> usize {
        self.tiles.rows
    }

    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        let (columns, outputs) = (self.tiles.columns, self.tiles.rows);
        let rows = product_rows(x, y, columns, outputs)?;
        let products = Isa::current().products();
        if rows == 1 {
            return self.one_row(products, x, y);
        }
        let rows = (MOST_INPUTS / columns).max(LEAST_ROWS) / 12 * 12;
        for (x, y) in x.chunks(rows * columns).zip(y.chunks_mut(rows * outputs)) {
            self.many_rows(products, x, y)?;
        }
        Ok(())
    }

    fn to_dense(&self) -> Result<Vec<f32>, Error> {
        Ok(tiles::decode(&self.tiles))
    }

    /// The rearranged bytes, with what fills up the last rows and groups.
    fn footprint(&self) -> Footprint {
        self.tiles.footprint()
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

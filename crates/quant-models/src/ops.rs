//! The arithmetic between the matrix products, on plain slices.
//!
//! Work is cut by rows, and each row is computed the same way wherever it runs, so the number of
//! threads does not change a bit.

use crate::{Activation, Error};
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Elements below which a loop is not worth spreading over threads.
const PARALLEL: usize = 1 << 14;

/// Activations: a contiguous candle tensor `[rows, width]` whose elements can be read and changed as a slice.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    tensor: Tensor,
    rows: usize,
    width: usize,
}

impl Rows {
    pub(crate) fn new(values: Vec<f32>, width: usize) -> Result<Self, Error> {
        let rows = values.len() / width.max(1);
        Ok(Self { tensor: Tensor::from_vec(values, (rows, width), &Device::Cpu)?, rows, width })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// `self · Wᵀ` for `W` `[out, width]`.
    pub(crate) fn times_transposed(&self, weight: &Tensor) -> Result<Self, Error> {
        let tensor = self.tensor.matmul(&weight.t()?)?;
        let (rows, width) = tensor.dims2()?;
        Ok(Self { tensor, rows, width })
    }

    /// The given rows as a tensor of their own, without a copy.
    pub(crate) fn part(&self, rows: Range<usize>) -> Result<Self, Error> {
        let tensor = self.tensor.narrow(0, rows.start, rows.len())?;
        Ok(Self { tensor, rows: rows.len(), width: self.width })
    }

    /// Lends the elements.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R, Error> {
        read(&self.tensor, f)
    }

    /// Changes the elements in place.
    pub(crate) fn update(&mut self, f: impl Fn(&mut [f32])) -> Result<(), Error> {
        Ok(self.tensor.inplace_op1(&InPlace(f))?)
    }

    /// Changes the elements in place, reading those of `other`, which has the same shape.
    pub(crate) fn update_with(&mut self, other: &Self, f: impl Fn(&mut [f32], &[f32])) -> Result<(), Error> {
        other.read(|other| self.update(|x| f(x, other)))?
    }

    /// A changed copy.
    pub(crate) fn map(&self, f: impl FnOnce(&mut [f32])) -> Result<Self, Error> {
        let mut values = self.read(<[f32]>::to_vec)?;
        f(&mut values);
        Self::new(values, self.width)
    }
}

/// Lends the elements of a contiguous f32 tensor.
pub(crate) fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R, Error> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => {
            let (start, end) = contiguous(layout)?;
            Ok(f(&storage.as_slice::<f32>()?[start..end]))
        }
        _ => Err(candle_core::Error::msg("activations live on the CPU").into()),
    }
}

fn contiguous(layout: &Layout) -> candle_core::Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("activations are contiguous"))
}

/// Runs a closure over the elements of a contiguous f32 tensor.
pub(crate) struct InPlace<F>(pub(crate) F);

impl<F: Fn(&mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "elementwise"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (start, end) = contiguous(layout)?;
        match storage {
            CpuStorage::F32(values) => (self.0)(&mut values[start..end]),
            _ => return Err(candle_core::Error::msg("activations are f32")),
        }
        Ok(())
    }
}

/// Calls `f` with each row's index and elements, spread over threads when that pays.
pub(crate) fn for_rows(x: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if x.len() < PARALLEL {
        x.chunks_exact_mut(width).enumerate().for_each(|(row, x)| f(row, x));
    } else {
        let rows = (PARALLEL / 4).div_ceil(width);
        x.par_chunks_mut(rows * width).enumerate().for_each(|(block, x)| {
            x.chunks_exact_mut(width).enumerate().for_each(|(row, x)| f(block * rows + row, x));
        });
    }
}

/// `y[r] += bias` for each row.
pub(crate) fn add_bias(y: &mut [f32], bias: &[f32]) {
    for_rows(y, bias.len(), |_, row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
}

/// `x += y`.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `x / √(mean x² + ε) · weight` for each row of `weight.len()` elements, in place.
pub(crate) fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    #[expect(clippy::cast_precision_loss, reason = "rows are far shorter than 2^24")]
    let width = weight.len() as f32;
    for_rows(x, weight.len(), |_, row| {
        let scale = 1.0 / (sum_of_squares(row) / width + eps).sqrt();
        row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
    });
}

/// `(x − mean x) / √(var x + ε) · weight + bias` for each row of `weight.len()` elements, in place.
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    for_rows(x, weight.len(), |_, row| standardize(row, weight, bias, eps));
}

/// One row of a layer norm.
pub(crate) fn standardize(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    #[expect(clippy::cast_precision_loss, reason = "rows are far shorter than 2^24")]
    let width = row.len() as f32;
    let mean = lane_sum(row) / width;
    row.iter_mut().for_each(|x| *x -= mean);
    let scale = 1.0 / (sum_of_squares(row) / width + eps).sqrt();
    row.iter_mut().zip(weight.iter().zip(bias)).for_each(|(x, (w, b))| *x = *x * scale * w + b);
}

/// In 16 lanes, so that the compiler may use vector registers of any width and get the same bits.
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (blocks, tail) = x.as_chunks::<16>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(sum, x)| *sum += x * x);
    }
    lanes.iter_mut().zip(tail).for_each(|(sum, x)| *sum += x * x);
    lanes.iter().sum()
}

/// `gate = act(gate) · up`.
pub(crate) fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
    const BLOCK: usize = PARALLEL / 4;
    gate.par_chunks_mut(BLOCK).zip(up.par_chunks(BLOCK)).for_each(|(gate, up)| {
        let pairs = gate.iter_mut().zip(up);
        match activation {
            Activation::Silu => pairs.for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u),
            Activation::Gelu => pairs.for_each(|(g, u)| *g = gelu(*g) * u),
            Activation::GeluTanh => pairs.for_each(|(g, u)| *g = gelu_tanh(*g) * u),
            Activation::Relu => pairs.for_each(|(g, u)| *g = g.max(0.0) * u),
        }
    });
}

/// `1 / (1 + e^−x)`.
pub(crate) fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `max(x, 0)²`, in place.
pub(crate) fn squared_relu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = x.max(0.0).powi(2));
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
}

/// Turns each row of scores into weights: softmax of `scale · x` over `visible(row)`, 0 elsewhere.
pub(crate) fn masked_softmax(x: &mut [f32], width: usize, scale: f32, visible: impl Fn(usize) -> Range<usize> + Sync) {
    for_rows(x, width, |row, x| {
        let range = visible(row);
        x[..range.start].fill(0.0);
        x[range.end..].fill(0.0);
        let x = &mut x[range];
        let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        x.iter_mut().for_each(|x| *x = ((*x - largest) * scale).exp());
        let sum: f32 = lane_sum(x);
        x.iter_mut().for_each(|x| *x /= sum);
    });
}

fn lane_sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (blocks, tail) = x.as_chunks::<16>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
    }
    lanes.iter_mut().zip(tail).for_each(|(sum, x)| *sum += x);
    lanes.iter().sum()
}

/// `Σ a·b`, in 16 lanes.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let ((a_blocks, a_tail), (b_blocks, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for (sum, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    lanes.iter_mut().zip(a_tail.iter().zip(b_tail)).for_each(|(sum, (a, b))| *sum += a * b);
    lanes.iter().sum()
}

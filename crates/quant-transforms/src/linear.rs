//! A linear behind a transform that is computed when it runs.

use crate::transform::Way;
use crate::{Error, Transform};
use quant_core::{Footprint, Linear};

/// A [`Linear`] whose input is transformed first: `y = (x T) Wᵀ`, such as a `down_proj` behind an online Hadamard.
///
/// `W` is the inner weight, into which the transform was [folded](Transform::fold_input). The footprint counts what the
/// transform stores.
///
/// # Examples
///
/// ```
/// use quant_core::{Format, Linear, PackedTensor, Shaped};
/// use quant_transforms::{Hadamard, Transform, TransformedLinear, Weight};
/// let mut w: Vec<f32> = (0..8 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
/// let original = w.clone();
///
/// let rotation = Transform::from(Hadamard::new(64)?);
/// rotation.fold_input(&mut Weight::new("down", &mut w, [8, 64])?)?;
/// let packed = PackedTensor::encode(Format::INT8, &Shaped::new(&w, &[8, 64])?)?;
/// let linear = TransformedLinear::new(rotation, packed)?;
///
/// let (x, mut y) = ([1.0; 64], [0.0; 8]);
/// linear.matmul(&x, &mut y)?;
/// let expected: f32 = original[..64].iter().sum();
/// assert!((y[0] - expected).abs() < 0.1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TransformedLinear<L> {
    transform: Transform,
    inner: L,
}

impl<L: Linear> TransformedLinear<L> {
    /// Puts `transform` before `inner`.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] when the transform has another size than the input of `inner`.
    pub fn new(transform: Transform, inner: L) -> Result<Self, Error> {
        let (expected, found) = (inner.in_features(), transform.size());
        if expected != found {
            return Err(Error::Count {
                name: "the transform of an input".to_owned(),
                what: "channels",
                expected,
                found,
            });
        }
        Ok(Self { transform, inner })
    }

    /// The transform.
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    /// What is behind it.
    pub fn inner(&self) -> &L {
        &self.inner
    }
}

impl<L: Linear> Linear for TransformedLinear<L> {
    fn in_features(&self) -> usize {
        self.inner.in_features()
    }

    fn out_features(&self) -> usize {
        self.inner.out_features()
    }

    /// Transforms a copy of `x` in f32 (orthogonal matrices in f64) and multiplies it.
    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        let mut transformed = x.to_vec();
        let features = |_| quant_core::Error::Features { in_features: self.in_features(), found: x.len() };
        self.transform.apply(&mut transformed).map_err(features)?;
        self.inner.matmul(&transformed, y)
    }

    /// `W Tᵀ`, computed in f64 and rounded once.
    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        let dense = self.inner.to_dense()?;
        let mut wide: Vec<f64> = dense.iter().map(|&v| f64::from(v)).collect();
        let features = |_| quant_core::Error::Features { in_features: self.in_features(), found: dense.len() };
        self.transform.apply_way(&mut wide, Way::Transpose).map_err(features)?;
        #[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
        let dense = wide.iter().map(|&v| v as f32).collect();
        Ok(dense)
    }

    fn footprint(&self) -> Footprint {
        Footprint { other: self.transform.stored_bytes(), ..Footprint::default() } + self.inner.footprint()
    }
}

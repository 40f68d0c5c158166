//! Number formats for small neural networks: INT1–8, FP8/FP6/FP4, MX, NVFP4, NF4, block floating
//! point and ternary, packed to the bit.
//!
//! A [`Format`] is data with a textual name. [`PackedTensor::encode`] turns anything that is a
//! [`Tensor`] into codes and scales whose layout is documented to the bit, and
//! [`PackedTensor::footprint`] counts every byte of it.
//!
//! ```
//! use quant_core::{Format, PackedTensor, Shaped};
//!
//! let weights: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
//! let tensor = Shaped::new(&weights, &[4, 128])?;
//!
//! let packed = PackedTensor::encode(Format::INT4_G128, &tensor)?;
//! assert_eq!(packed.footprint().bits_per_element(), 4.125);
//!
//! let back = packed.decode();
//! assert!(weights.iter().zip(&back).all(|(a, b)| (a - b).abs() <= 0.06));
//! # Ok::<(), quant_core::Error>(())
//! ```

pub mod bits;
mod element;
mod error;
mod footprint;
mod format;
mod grid;
mod grouped;
#[doc(hidden)]
pub mod kernels;
mod layout;
mod linear;
pub mod metrics;
mod name;
mod packed;
mod parallel;
mod prepared;
pub mod qsnr;
mod tensor;

pub use element::{Codebook, E8m0, E8m0Rounding, FloatKind, Rounding};
pub use error::Error;
pub use footprint::Footprint;
pub use format::{
    Block, Element, Format, IntRule, NamedFormat, NvRule, Overflow, Scale, ScaleRule, ScaleType, TernaryRule, ZeroPoint,
};
pub use grid::{BlockParams, ExponentClamps, FormatGrid, Grid, LinearQuantizer};
pub use grouped::{Group, grouped_matmul};
pub use layout::Layout;
pub use linear::Linear;
pub use packed::{EncodeOptions, PackedTensor, fake_quantize};
pub use prepared::{Activations, PreparedLinear};
pub use tensor::{Scalar, ScalarType, Shaped, Tensor, TensorView};

/// The examples of the README and of this crate's page in the book.
#[cfg(doctest)]
mod outside {
    #[doc = include_str!("../../../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/src/quant-core.md")]
    struct Page;
}

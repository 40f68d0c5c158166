//! What single codes mean: small floats, code books, and how reals are rounded onto them.

mod codebook;
mod float;
mod round;

pub use codebook::Codebook;
pub use float::FloatKind;
pub(crate) use float::{exp2, exponent_of};
pub use round::Rounding;

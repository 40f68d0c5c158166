//! What single codes mean: small floats, code books, and how reals are rounded onto them.

mod codebook;
mod dynamic;
mod e8m0;
mod float;
mod round;

pub use codebook::Codebook;
pub(crate) use dynamic::{SIGNED_DYNAMIC_MAP, encode_dynamic};
pub use e8m0::{E8m0, E8m0Rounding};
pub use float::FloatKind;
pub(crate) use float::{exp2, exponent_of};
pub use round::Rounding;

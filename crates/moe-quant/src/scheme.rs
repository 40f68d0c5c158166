//! What a block of an expert may become: a format for its weight and perhaps one for its input.

use crate::Error;
use quant_core::{Format, Layout};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How one linear block is stored and computed.
///
/// Its name is that of the weight's format, with that of the activation's format behind a slash where inputs are rounded
/// too, token by token: `int4-g128-asym` is W4A16, `int8/int8` is W8A8. `f16` and `bf16` leave the weight as it is.
///
/// ```
/// use moe_quant::Scheme;
/// let w4a16: Scheme = "int4-g128-asym".parse()?;
/// let w8a8: Scheme = "int8/int8".parse()?;
/// assert_eq!(w8a8.to_string(), "int8/int8");
/// // 4 bits, and 16 + 4 bits of scale and zero point for 128 weights.
/// assert_eq!(w4a16.bits([1408, 2048])?, 4.0 + 20.0 / 128.0);
/// # Ok::<(), moe_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// The format of the weight.
    pub weight: Format,
    /// The format that inputs are rounded to, each token by itself; none leaves them as they are.
    pub activation: Option<Format>,
}

impl Scheme {
    /// A scheme that leaves inputs as they are.
    #[must_use]
    pub fn weight_only(weight: Format) -> Self {
        Self { weight, activation: None }
    }

    /// Bytes of a weight `[out, in]`: codes, scales, zero points, tensor scales. Rounded inputs are not stored.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] when the format cannot hold this shape.
    pub fn bytes(&self, shape: [usize; 2]) -> Result<u64, Error> {
        let layout = Layout::new(self.weight, &shape)?;
        let second = size_of::<f32>() * layout.second_len;
        Ok((layout.code_bytes() + layout.scale_bytes() + layout.zero_bytes() + second) as u64)
    }

    /// Bits a weight of a matrix `[out, in]`, everything that is stored counted.
    ///
    /// # Errors
    ///
    /// As [`Scheme::bytes`].
    pub fn bits(&self, shape: [usize; 2]) -> Result<f64, Error> {
        Ok(8.0 * crate::real(self.bytes(shape)?) / (shape[0] as f64 * shape[1] as f64))
    }
}

impl From<Format> for Scheme {
    fn from(weight: Format) -> Self {
        Self::weight_only(weight)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.activation {
            None => write!(f, "{}", self.weight),
            Some(activation) => write!(f, "{}/{activation}", self.weight),
        }
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let (weight, activation) = match name.split_once('/') {
            None => (name, None),
            Some((weight, activation)) => (weight, Some(activation.parse()?)),
        };
        Ok(Self { weight: weight.parse()?, activation })
    }
}

impl Serialize for Scheme {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scheme {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

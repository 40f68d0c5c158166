//! The form in which a tensor will be stored: what its exact bytes follow from, before a value is read.
//!
//! | form | parts of the composed tensor |
//! |---|---|
//! | packed | none: sections of [`quant_io::packed`] |
//! | `low-rank` | `a` `[out, rank]`, `b` `[rank, in]`, each packed or f32 |
//! | `corrected` | `base`, packed; `a`, `b` as before |
//! | `vectors` | `codes` (U8), `scales` (F16, one a row) and `books` (U8) where there are any |

use super::Sections;
use crate::Error;
use low_rank::Storage;
use quant_core::Format;
use quant_io::composed::{Composed, Description, Part};
use quant_io::packed;
use quant_io::safetensors::{DType, TensorSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::Path;
use vector_quant::BooksHeader;

pub(super) const LOW_RANK: &str = "low-rank";
pub(super) const CORRECTED: &str = "corrected";
pub(super) const VECTORS: &str = "vectors";
/// The version of all three.
pub(super) const KIND_VERSION: u32 = 1;

/// How a tensor is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// In one format.
    Packed(Format),
    /// Two factors.
    LowRank { rank: usize, factors: Storage },
    /// In one format, with two factors for what rounding lost.
    Corrected { base: Format, rank: usize, factors: Storage },
    /// Codes of vectors.
    Vectors(VectorForm),
}

/// What the codes of a tensor mean: the settings of a composed tensor of the kind `vectors`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VectorForm {
    pub(crate) books: BooksHeader,
    /// Whether each row has a scale.
    pub(crate) row_scales: bool,
    /// The rotation of the input axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rotation: Option<RotationForm>,
}

/// A randomized Hadamard matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RotationForm {
    /// Columns that are mixed together.
    pub(crate) block: usize,
    /// Of the signs.
    pub(crate) seed: u64,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packed(format) => format.fmt(f),
            Self::LowRank { rank, factors } => write!(f, "rank {rank} in {factors}"),
            Self::Corrected { base, rank, factors } => write!(f, "{base} + rank {rank} in {factors}"),
            Self::Vectors(form) => form.fmt(f),
        }
    }
}

impl fmt::Display for VectorForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.books {
            BooksHeader::E8p => f.write_str("e8p"),
            BooksHeader::E8pTwice { .. } => f.write_str("e8p twice"),
            BooksHeader::Polar { config } => {
                write!(f, "polar {}+{} bits", config.direction_bits, config.magnitude_bits)
            }
            BooksHeader::Learned { dim, bits, .. } => write!(f, "{dim}-vectors of {bits} bits"),
            _ => f.write_str("vectors"),
        }
    }
}

/// A tensor as a matrix: all axes but the last are rows.
pub(crate) fn as_matrix(shape: &[usize]) -> [usize; 2] {
    [shape.iter().rev().skip(1).product(), shape.last().copied().unwrap_or(0)]
}

impl Form {
    /// The form of a stored tensor, as far as its description and the shapes of its parts tell; `None` if it is none of these.
    pub(crate) fn of(composed: &Composed<'_>) -> Option<Self> {
        let part = |part| match composed.part(part).ok()?? {
            Part::Packed(packed) => Some((packed.shape().to_vec(), Storage::Packed(packed.format()))),
            Part::Plain(plain) => Some((plain.shape.to_vec(), Storage::F32)),
        };
        let description = composed.description();
        let pair = || part("b").and_then(|(shape, factors)| Some((*shape.first()?, factors)));
        match (description.kind.as_str(), description.version) {
            (LOW_RANK, KIND_VERSION) => pair().map(|(rank, factors)| Self::LowRank { rank, factors }),
            (CORRECTED, KIND_VERSION) => match (part("base")?, pair()?) {
                ((_, Storage::Packed(base)), (rank, factors)) => Some(Self::Corrected { base, rank, factors }),
                _ => None,
            },
            (VECTORS, KIND_VERSION) => serde_json::from_value(description.settings.clone()).ok().map(Self::Vectors),
            _ => None,
        }
    }

    /// The tensors of the file, and what its metadata says; `file` is for messages.
    pub(super) fn sections(&self, file: &Path, name: &str, shape: &[usize]) -> Result<Sections, Error> {
        match self {
            Self::Packed(format) => Ok(Sections {
                specs: packed::specs(name, *format, shape)?,
                metadata: packed::metadata([(name, *format, shape)]),
            }),
            Self::LowRank { rank, factors } => {
                let [rows, columns] = as_matrix(shape);
                let mut sections = factor(name, "a", *factors, [rows, *rank])?;
                sections.join(factor(name, "b", *factors, [*rank, columns])?);
                Ok(sections.composed(name, LOW_RANK, shape, &["a", "b"], Value::Null))
            }
            Self::Corrected { base, rank, factors } => {
                let [rows, columns] = as_matrix(shape);
                let mut sections = factor(name, "base", Storage::Packed(*base), [rows, columns])?;
                sections.join(factor(name, "a", *factors, [rows, *rank])?);
                sections.join(factor(name, "b", *factors, [*rank, columns])?);
                Ok(sections.composed(name, CORRECTED, shape, &["base", "a", "b"], Value::Null))
            }
            Self::Vectors(form) => {
                let matrix = as_matrix(shape);
                let sizes = form.books.sizes(matrix, form.row_scales).map_err(|source| Error::VectorQuant {
                    file: file.to_owned(),
                    tensor: name.to_owned(),
                    source: Box::new(source),
                })?;
                let mut sections = Sections::default();
                let mut parts = Vec::new();
                let scales = [sizes.scales / 2];
                for (part, dtype, shape) in [
                    ("codes", DType::U8, [sizes.codes]),
                    ("scales", DType::F16, scales),
                    ("books", DType::U8, [sizes.books]),
                ] {
                    if shape != [0] {
                        sections.specs.push(TensorSpec::new(format!("{name}.{part}"), dtype, &shape));
                        parts.push(part);
                    }
                }
                // Numbers, names and flags always have a JSON form.
                let settings = serde_json::to_value(form).unwrap_or(Value::Null);
                Ok(sections.composed(name, VECTORS, shape, &parts, settings))
            }
        }
    }
}

/// The sections of a factor.
fn factor(name: &str, part: &str, storage: Storage, shape: [usize; 2]) -> Result<Sections, Error> {
    let own = format!("{name}.{part}");
    Ok(match storage {
        Storage::F32 => Sections { specs: vec![TensorSpec::new(own, DType::F32, &shape)], ..Sections::default() },
        Storage::Packed(format) => Sections {
            specs: packed::specs(&own, format, &shape)?,
            metadata: packed::metadata([(own.as_str(), format, shape.as_slice())]),
        },
    })
}

impl Sections {
    fn join(&mut self, other: Self) {
        self.specs.extend(other.specs);
        self.metadata.extend(other.metadata);
    }

    fn composed(mut self, name: &str, kind: &str, shape: &[usize], parts: &[&str], settings: Value) -> Self {
        let description = Description {
            kind: kind.to_owned(),
            version: KIND_VERSION,
            shape: shape.iter().map(|&d| d as u64).collect(),
            parts: parts.iter().map(|&part| part.to_owned()).collect(),
            settings,
        };
        // The container's version is that of composed tensors, whatever the parts say.
        self.metadata.extend(description.metadata(name));
        self
    }
}

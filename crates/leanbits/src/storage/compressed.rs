//! A compressed weight in any form that a folder holds, to the sections of a file and back.

use super::Section;
use super::form::{CORRECTED, KIND_VERSION, LOW_RANK, RotationForm, VECTORS, VectorForm, as_matrix};
use crate::Error;
use low_rank::{DenseLinear, Factor, LowRank, Sum};
use quant_core::{Footprint, Linear, PackedTensor};
use quant_io::composed::{Composed, Part};
use quant_io::safetensors::DType;
use quant_io::{Checkpoint, packed};
use quant_transforms::{Hadamard, RandomizedHadamard, Transform, TransformedLinear};
use std::sync::Arc;
use vector_quant::{Parts, VqLinear};

/// A compressed weight.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one a tensor, and it is not moved much")]
pub(crate) enum Compressed {
    /// In one format.
    Packed(PackedTensor<'static>),
    /// Two factors.
    LowRank(LowRank<Factor, Factor>),
    /// In one format, with two factors for what rounding lost.
    Corrected(Sum<Factor, LowRank<Factor, Factor>>),
    /// Codes of vectors.
    Vectors(VqLinear),
    /// Codes of vectors of the rotated weight.
    Rotated(TransformedLinear<VqLinear>),
}

/// Why a composed tensor cannot be put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComposedError {
    /// No method here makes this kind.
    #[error("parts of the kind {kind:?}, version {version}, are not known here")]
    Kind {
        /// The kind.
        kind: String,
        /// Its version.
        version: u32,
    },
    /// A part is missing, or is not what the kind has.
    #[error("its part {part:?} is {found}, expected {expected}")]
    Part {
        /// The part.
        part: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The parts do not make up the whole.
    #[error("its parts make a matrix of {found:?} (out, in), but its shape is {shape:?}")]
    Shape {
        /// Shape of the whole.
        shape: Vec<usize>,
        /// What the parts make.
        found: [usize; 2],
    },
    /// The settings are not those of the kind.
    #[error("its settings are wrong: {reason}")]
    Settings {
        /// Why.
        reason: String,
    },
    /// A container could not be read.
    #[error(transparent)]
    Io(#[from] quant_io::Error),
    /// Factors do not fit together.
    #[error(transparent)]
    LowRank(#[from] low_rank::Error),
    /// Codes and code books do not fit together.
    #[error(transparent)]
    VectorQuant(#[from] vector_quant::Error),
    /// A rotation is not possible.
    #[error(transparent)]
    Transform(#[from] quant_transforms::Error),
}

impl Compressed {
    fn linear(&self) -> &dyn Linear {
        match self {
            Self::Packed(packed) => packed,
            Self::LowRank(pair) => pair,
            Self::Corrected(sum) => sum,
            Self::Vectors(codes) => codes,
            Self::Rotated(rotated) => rotated,
        }
    }

    /// The names and bytes of its tensors in a file.
    pub(super) fn sections(&self, name: &str) -> Vec<Section<'static>> {
        let part = |part: &str| format!("{name}.{part}");
        match self {
            Self::Packed(packed) => packed_sections(name, packed),
            Self::LowRank(pair) => [factor(&part("a"), pair.a()), factor(&part("b"), pair.b())].concat(),
            Self::Corrected(sum) => {
                let (base, pair) = (sum.a(), sum.b());
                [factor(&part("base"), base), factor(&part("a"), pair.a()), factor(&part("b"), pair.b())].concat()
            }
            Self::Vectors(codes) => vector_sections(name, codes),
            Self::Rotated(rotated) => vector_sections(name, rotated.inner()),
        }
    }

    /// Reads a tensor that is packed or composed; `None` for others.
    pub(crate) fn read(checkpoint: &Checkpoint, name: &str) -> Result<Option<Self>, Error> {
        if let Some(composed) = checkpoint.composed(name)? {
            let found = Self::put_together(&composed).map_err(|source| Error::Composed {
                file: checkpoint.path().to_owned(),
                tensor: name.to_owned(),
                source: Box::new(source),
            });
            return found.map(Some);
        }
        Ok(checkpoint.packed(name)?.map(|packed| Self::Packed(packed.into_owned())))
    }

    fn put_together(composed: &Composed<'_>) -> Result<Self, ComposedError> {
        let description = composed.description();
        let [rows, columns] = as_matrix(composed.shape());
        let own = |part: &'static str| -> Result<Factor, ComposedError> { read_factor(composed, part) };
        let made = match (description.kind.as_str(), description.version) {
            (LOW_RANK, KIND_VERSION) => Self::LowRank(LowRank::new(own("a")?, own("b")?)?),
            (CORRECTED, KIND_VERSION) => Self::Corrected(Sum::new(own("base")?, LowRank::new(own("a")?, own("b")?)?)?),
            (VECTORS, KIND_VERSION) => read_vectors(composed, [rows, columns])?,
            (kind, version) => return Err(ComposedError::Kind { kind: kind.to_owned(), version }),
        };
        let found = [made.out_features(), made.in_features()];
        if found != [rows, columns] {
            return Err(ComposedError::Shape { shape: composed.shape().to_vec(), found });
        }
        Ok(made)
    }
}

impl Linear for Compressed {
    fn prepared(&self) -> Option<Box<dyn Linear>> {
        self.linear().prepared()
    }

    fn in_features(&self) -> usize {
        self.linear().in_features()
    }

    fn out_features(&self) -> usize {
        self.linear().out_features()
    }

    fn matmul(&self, x: &[f32], y: &mut [f32]) -> Result<(), quant_core::Error> {
        self.linear().matmul(x, y)
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        self.linear().to_dense()
    }

    fn footprint(&self) -> Footprint {
        self.linear().footprint()
    }
}

impl From<Compressed> for Arc<dyn Linear> {
    fn from(compressed: Compressed) -> Self {
        match compressed {
            Compressed::Packed(packed) => Self::from(Box::new(packed) as Box<dyn Linear>),
            Compressed::LowRank(pair) => Self::from(Box::new(pair) as Box<dyn Linear>),
            Compressed::Corrected(sum) => Self::from(Box::new(sum) as Box<dyn Linear>),
            Compressed::Vectors(codes) => Self::from(Box::new(codes) as Box<dyn Linear>),
            Compressed::Rotated(rotated) => Self::from(Box::new(rotated) as Box<dyn Linear>),
        }
    }
}

fn packed_sections(name: &str, tensor: &PackedTensor<'_>) -> Vec<Section<'static>> {
    let owned =
        |(name, bytes): (String, std::borrow::Cow<'_, [u8]>)| Section { name, bytes: bytes.into_owned().into() };
    packed::sections(name, tensor).into_iter().map(owned).collect()
}

fn factor(name: &str, factor: &Factor) -> Vec<Section<'static>> {
    match factor {
        Factor::Packed(packed) => packed_sections(name, packed),
        Factor::Dense(dense) => {
            let bytes: Vec<u8> = dense.values().iter().flat_map(|x| x.to_le_bytes()).collect();
            vec![Section { name: name.to_owned(), bytes: bytes.into() }]
        }
    }
}

fn vector_sections(name: &str, codes: &VqLinear) -> Vec<Section<'static>> {
    let parts = codes.to_parts();
    let named = [("codes", parts.codes), ("scales", parts.scales), ("books", parts.books)];
    let stored = named.into_iter().filter(|(_, bytes)| !bytes.is_empty());
    stored.map(|(part, bytes)| Section { name: format!("{name}.{part}"), bytes: bytes.into() }).collect()
}

fn missing(part: &'static str, expected: &str) -> ComposedError {
    ComposedError::Part { part, expected: expected.to_owned(), found: "missing".to_owned() }
}

/// A packed matrix, or one of f32.
fn read_factor(composed: &Composed<'_>, part: &'static str) -> Result<Factor, ComposedError> {
    const EXPECTED: &str = "a packed matrix or one of F32";
    let wrong = |found: String| ComposedError::Part { part, expected: EXPECTED.to_owned(), found };
    match composed.part(part)?.ok_or_else(|| missing(part, EXPECTED))? {
        Part::Packed(packed) if packed.shape().len() == 2 => Ok(Factor::Packed(Box::new(packed.into_owned()))),
        Part::Plain(plain) if plain.dtype == DType::F32 && plain.shape.len() == 2 => {
            let (values, _) = plain.bytes.as_chunks::<4>();
            let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Ok(Factor::Dense(DenseLinear::new(values, plain.shape[0], plain.shape[1])?))
        }
        other => Err(wrong(other.to_string())),
    }
}

fn read_vectors(composed: &Composed<'_>, shape: [usize; 2]) -> Result<Compressed, ComposedError> {
    let form: VectorForm = serde_json::from_value(composed.description().settings.clone())
        .map_err(|error| ComposedError::Settings { reason: error.to_string() })?;
    let sizes = form.books.sizes(shape, form.row_scales)?;
    let bytes = |part: &'static str, dtype: DType, size: usize| -> Result<Vec<u8>, ComposedError> {
        let expected = format!("{size} bytes of {dtype}");
        match composed.part(part)? {
            None if size == 0 => Ok(Vec::new()),
            None => Err(missing(part, &expected)),
            Some(Part::Plain(plain)) if plain.dtype == dtype && plain.bytes.len() == size => Ok(plain.bytes.to_vec()),
            Some(other) => Err(ComposedError::Part { part, expected, found: other.to_string() }),
        }
    };
    let codes = bytes("codes", DType::U8, sizes.codes)?;
    let scales = bytes("scales", DType::F16, sizes.scales)?;
    let books = bytes("books", DType::U8, sizes.books)?;
    let parts = Parts { codes: &codes, scales: &scales, books: &books };
    let linear = VqLinear::from_parts(shape, &form.books, parts)?;
    Ok(match form.rotation {
        None => Compressed::Vectors(linear),
        Some(rotation) => Compressed::Rotated(TransformedLinear::new(rotation.transform(shape[1])?, linear)?),
    })
}

impl RotationForm {
    /// The largest rotation of rows of so many values.
    pub(crate) fn largest(columns: usize, seed: u64) -> Result<Self, quant_transforms::Error> {
        Ok(Self { block: Hadamard::largest(columns)?.block(), seed })
    }

    fn transform(self, columns: usize) -> Result<Transform, quant_transforms::Error> {
        Ok(Transform::from(RandomizedHadamard::new(Hadamard::blocks(columns, self.block)?, self.seed)))
    }
}

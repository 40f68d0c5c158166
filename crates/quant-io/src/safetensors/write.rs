//! Streaming writer: the header is planned first, then tensors are written one at a time.

use super::header::tensor_bytes;
use super::{DType, Header, TensorInfo};
use crate::error::shorten;
use crate::{AtomicFile, Error};
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape in elements.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of this name, type and shape.
    #[must_use]
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// Bytes it takes.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] or [`Error::MisalignedBits`].
    pub fn bytes(&self) -> Result<u64, Error> {
        let shape: Vec<u64> = self.shape.iter().map(|&d| d as u64).collect();
        tensor_bytes(&self.name, self.dtype, &shape)
    }
}

/// Everything about a file but the contents of its tensors: order, positions, exact size.
///
/// Tensors are placed as the reference writer places them (types in the order of [`DType::ALL`], names
/// ascending within a type), metadata is sorted, and the header is padded with spaces to a multiple
/// of 8, so equal contents give equal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    header: Header,
    head: Vec<u8>,
}

impl FilePlan {
    /// Plans a file.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateKey`], [`Error::Overflow`], [`Error::MisalignedBits`], and
    /// [`Error::TooLarge`] when the header would exceed its limit.
    pub fn new(tensors: &[TensorSpec], metadata: BTreeMap<String, String>) -> Result<Self, Error> {
        let mut order: Vec<&TensorSpec> = tensors.iter().collect();
        order.sort_by(|a, b| (a.dtype, &a.name).cmp(&(b.dtype, &b.name)));
        let (mut infos, mut json, mut position) = (Vec::with_capacity(order.len()), String::from("{"), 0_u64);
        if !metadata.is_empty() {
            json.push_str("\"__metadata__\":{");
            for (i, (key, value)) in metadata.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                json.push_str(&format!("{comma}{}:{}", quote(key), quote(value)));
            }
            json.push('}');
        }
        for spec in order {
            if spec.name == "__metadata__" {
                return Err(Error::DuplicateKey { key: spec.name.clone() });
            }
            let end = position.checked_add(spec.bytes()?).ok_or_else(|| Error::Overflow {
                what: format!("tensor {:?}", shorten(&spec.name)),
                shape: spec.shape.iter().map(|&d| d as u64).collect(),
            })?;
            let comma = if json.len() > 1 { "," } else { "" };
            let shape: Vec<String> = spec.shape.iter().map(usize::to_string).collect();
            json.push_str(&format!(
                "{comma}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{position},{end}]}}",
                quote(&spec.name),
                spec.dtype,
                shape.join(","),
            ));
            let (name, dtype, shape) = (spec.name.clone(), spec.dtype, spec.shape.clone());
            infos.push(TensorInfo { name, dtype, shape, range: position..end });
            position = end;
        }
        json.push('}');
        while json.len() % 8 != 0 {
            json.push(' ');
        }
        let length = json.len() as u64;
        if length > super::HEADER_LIMIT {
            return Err(Error::TooLarge { what: "the header length", value: length, limit: super::HEADER_LIMIT });
        }
        let mut head = length.to_le_bytes().to_vec();
        head.extend_from_slice(json.as_bytes());
        let header = Header::planned(metadata, infos, 8 + length)?;
        Ok(Self { header, head })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The bytes before the data section.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Exact size of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.header.data_start() + self.header.data_bytes()
    }
}

/// Quotes a string for JSON as the reference writer does.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Writes a planned file, one tensor at a time and in any order; it appears when it is complete.
///
/// Because the file is written beside its target and renamed, the target may be the very file that the
/// tensors are being read from.
///
/// ```
/// use quant_io::safetensors::{DType, FilePlan, SafetensorsWriter, TensorSpec};
/// let folder = std::env::temp_dir().join(format!("quant-io-doc-{}", std::process::id()));
/// std::fs::create_dir_all(&folder)?;
/// let plan = FilePlan::new(&[TensorSpec::new("x", DType::F32, &[2])], Default::default())?;
/// let mut writer = SafetensorsWriter::create(folder.join("x.safetensors"), plan)?;
/// writer.write("x", &[0, 0, 128, 63, 0, 0, 0, 64])?;
/// writer.finish()?;
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsWriter {
    plan: FilePlan,
    file: AtomicFile,
    written: Vec<bool>,
    missing: usize,
}

impl SafetensorsWriter {
    /// Creates the file beside its target and writes the header.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Busy`].
    pub fn create(target: impl AsRef<Path>, plan: FilePlan) -> Result<Self, Error> {
        let mut file = AtomicFile::create(target)?;
        file.set_len(plan.file_bytes())?;
        file.write_at(0, &plan.head)?;
        let missing = plan.header.tensors().len();
        Ok(Self { plan, file, written: vec![false; missing], missing })
    }

    /// Continues the file that an interrupted writer left beside the target, in which the tensors `written` are whole;
    /// begins one if there is none. Dropped before [`SafetensorsWriter::finish`], the unfinished file stays.
    ///
    /// # Errors
    ///
    /// [`Error::NotPlanned`] when one of `written` is not in the plan, [`Error::Io`] or [`Error::Busy`].
    pub fn resume(target: impl AsRef<Path>, plan: FilePlan, written: &[&str]) -> Result<Self, Error> {
        let mut file = AtomicFile::resume(target)?;
        file.set_len(plan.file_bytes())?;
        file.write_at(0, &plan.head)?;
        let mut done = vec![false; plan.header.tensors().len()];
        for name in written {
            let position = plan.header.position(name);
            let position = position.ok_or_else(|| Error::NotPlanned { name: shorten(name) }.in_file(file.target()))?;
            done[position] = true;
        }
        let missing = done.iter().filter(|done| !**done).count();
        Ok(Self { plan, file, written: done, missing })
    }

    /// The plan being followed.
    #[must_use]
    pub fn plan(&self) -> &FilePlan {
        &self.plan
    }

    /// Tensors not yet written.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// Writes one tensor.
    ///
    /// # Errors
    ///
    /// [`Error::NotPlanned`] for an unknown name or a tensor written before,
    /// [`Error::SizeMismatch`] for the wrong number of bytes, [`Error::Io`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let position = self.plan.header.position(name).filter(|&i| !self.written[i]);
        let Some(position) = position else {
            return Err(Error::NotPlanned { name: shorten(name) }.in_file(self.file.target()));
        };
        let info = &self.plan.header.tensors()[position];
        if info.bytes() != bytes.len() as u64 {
            let (tensor, expected, found) = (shorten(name), info.bytes(), bytes.len() as u64);
            return Err(Error::SizeMismatch { tensor, expected, found }.in_file(self.file.target()));
        }
        self.file.write_at(self.plan.header.data_start() + info.range.start, bytes)?;
        self.written[position] = true;
        self.missing -= 1;
        Ok(())
    }

    /// Completes the file: only now does it appear under its name.
    ///
    /// # Errors
    ///
    /// [`Error::Unwritten`] when a planned tensor is missing, [`Error::Io`]; nothing is left behind.
    pub fn finish(self) -> Result<(), Error> {
        if let Some(first) = self.written.iter().position(|done| !done) {
            let name = shorten(&self.plan.header.tensors()[first].name);
            return Err(Error::Unwritten { name, missing: self.missing }.in_file(self.file.target()));
        }
        self.file.commit()
    }
}

/// Serializes small files in memory: tests, examples, tools.
///
/// # Errors
///
/// As [`FilePlan::new`] and [`SafetensorsWriter::write`].
pub fn serialize(tensors: &[(TensorSpec, &[u8])], metadata: BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let plan = FilePlan::new(&specs, metadata)?;
    let mut file = plan.head.clone();
    for info in plan.header.tensors() {
        let bytes = tensors.iter().find(|(spec, _)| spec.name == info.name).map_or(&[][..], |(_, bytes)| bytes);
        if bytes.len() as u64 != info.bytes() {
            let (tensor, expected, found) = (shorten(&info.name), info.bytes(), bytes.len() as u64);
            return Err(Error::SizeMismatch { tensor, expected, found });
        }
        file.extend_from_slice(bytes);
    }
    Ok(file)
}

//! Memory-mapped reading.

use super::{DType, Header, TensorInfo};
use crate::{Error, FileBytes};
use std::path::Path;

/// A safetensors file: its header in memory, its tensors where they lie in the mapped file.
///
/// ```no_run
/// use quant_io::safetensors::SafetensorsFile;
/// let file = SafetensorsFile::open("model.safetensors")?;
/// for tensor in file.tensors() {
///     println!("{} {} {:?} {} bytes", tensor.name, tensor.dtype, tensor.shape, tensor.bytes.len());
/// }
/// # Ok::<(), quant_io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SafetensorsFile {
    bytes: FileBytes,
    header: Header,
}

/// One tensor, borrowed from its file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorBytes<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its shape in elements.
    pub shape: &'a [usize],
    /// Row-major little-endian elements; aligned to nothing in particular.
    pub bytes: &'a [u8],
}

impl TensorBytes<'_> {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        // The header's check showed that this product fits.
        self.shape.iter().product()
    }

    /// The elements as f32.
    ///
    /// # Errors
    ///
    /// [`Error::NotNumeric`] for complex numbers.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let mut out = vec![0.0; self.elements()];
        if self.dtype.decode_f32(self.bytes, &mut out) {
            Ok(out)
        } else {
            Err(Error::NotNumeric { tensor: crate::error::shorten(self.name), dtype: self.dtype })
        }
    }
}

impl SafetensorsFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or what [`Header::parse`] finds, inside [`Error::InFile`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::from_bytes(FileBytes::map(path)?)
    }

    /// Checks the header of bytes that are mapped or in memory.
    ///
    /// # Errors
    ///
    /// What [`Header::parse`] finds, inside [`Error::InFile`].
    pub fn from_bytes(bytes: FileBytes) -> Result<Self, Error> {
        let header = Header::parse(&bytes).map_err(|e| e.in_file(bytes.path()))?;
        Ok(Self { bytes, header })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.bytes.path()
    }

    /// As [`FileBytes::release_pages`].
    pub fn release_pages(&self) {
        self.bytes.release_pages();
    }

    /// All tensors in order of position.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorBytes<'_>> {
        self.header.tensors().iter().map(|info| self.lend(info))
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<TensorBytes<'_>> {
        self.header.get(name).map(|info| self.lend(info))
    }

    /// The tensor of this name.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorBytes<'_>, Error> {
        self.get(name)
            .ok_or_else(|| Error::NoSuchTensor { name: crate::error::shorten(name) }.in_file(self.bytes.path()))
    }

    pub(crate) fn lend<'a>(&'a self, info: &'a TensorInfo) -> TensorBytes<'a> {
        let position = |offset: u64| usize::try_from(self.header.data_start() + offset).unwrap_or(usize::MAX);
        // `Header::parse` checked every range against the length of these very bytes.
        let bytes = self.bytes.get(position(info.range.start)..position(info.range.end)).unwrap_or_default();
        TensorBytes { name: &info.name, dtype: info.dtype, shape: &info.shape, bytes }
    }
}

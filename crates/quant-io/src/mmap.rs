//! Memory-mapped files: the only module of the crate with `unsafe`.

use crate::Error;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The bytes of a file: mapped, read, or held in memory. Clones share them.
#[derive(Clone, Debug)]
pub struct FileBytes {
    path: PathBuf,
    storage: Storage,
}

#[derive(Clone, Debug)]
enum Storage {
    Mapped(Arc<memmap2::Mmap>),
    Owned(Arc<Vec<u8>>),
}

impl FileBytes {
    /// Maps a file into memory.
    ///
    /// Pages are read when they are touched. Replacing the file by renaming another one over it, as
    /// every writer of this crate does, leaves the mapped bytes as they were. Writing into or
    /// truncating a mapped file in place is outside what any program can guard against: do not.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the file cannot be opened or mapped.
    #[allow(unsafe_code, reason = "mapping a file is the purpose of this module")]
    pub fn map(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let metadata = file.metadata().map_err(Error::io(path, "open"))?;
        if !metadata.is_file() {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(Error::Io { path: path.to_owned(), action: "open", source });
        }
        if metadata.len() == 0 {
            return Ok(Self::owned(path, Vec::new()));
        }
        // SAFETY: the map is private to this process and read-only, the file is regular and was opened
        // for reading. That nobody changes it in place is the documented condition of `FileBytes::map`;
        // this crate itself only ever replaces files by renaming.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Self { path: path.to_owned(), storage: Storage::Mapped(Arc::new(map)) })
    }

    /// Bytes that are in memory already, under a name for messages.
    #[must_use]
    pub fn owned(path: impl AsRef<Path>, bytes: Vec<u8>) -> Self {
        Self { path: path.as_ref().to_owned(), storage: Storage::Owned(Arc::new(bytes)) }
    }

    /// Tells the system that these bytes will not be read again soon, so that its pages no longer count as memory of
    /// this process. Reading them again brings them back. A hint: where it is not understood nothing happens.
    #[allow(unsafe_code, reason = "advice about a mapping is this module's business")]
    pub fn release_pages(&self) {
        #[cfg(unix)]
        if let Storage::Mapped(map) = &self.storage {
            // SAFETY: the map is read-only and backed by a file: pages that are dropped hold nothing that the
            // file does not, and come back with the same bytes when they are touched.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// The file's path, or the name that was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped(map) => map,
            Storage::Owned(bytes) => bytes,
        }
    }
}

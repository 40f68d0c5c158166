//! Files that appear complete or not at all.

use crate::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file written beside its target as `NAME.tmp` and renamed onto it by [`AtomicFile::commit`].
///
/// Dropped without a commit, it removes what it wrote. A `.tmp` left by a killed process is replaced;
/// one that a living process holds (it is locked) gives [`Error::Busy`].
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    file: Option<File>,
    /// Whether the temporary file stays when dropped without a commit.
    keep: bool,
}

impl AtomicFile {
    /// Creates `NAME.tmp` beside the target.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Busy`].
    pub fn create(target: impl AsRef<Path>) -> Result<Self, Error> {
        let target = target.as_ref().to_owned();
        if target.file_name().is_none() {
            let source = std::io::Error::new(ErrorKind::InvalidInput, "the path has no file name");
            return Err(Error::Io { path: target, action: "create", source });
        }
        let temporary = Self::temporary_path(&target);
        let file = match open_new(&temporary) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                remove_stale(&temporary, &target)?;
                open_new(&temporary)
            }
            other => other,
        }
        .map_err(Error::io(&temporary, "create"))?;
        Self::locked(target, temporary, file, false)
    }

    /// Opens the `NAME.tmp` that an interrupted writer left, with what is in it, or creates an empty one. Dropped without a
    /// commit, it stays, so that the next writer can go on.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Busy`].
    pub fn resume(target: impl AsRef<Path>) -> Result<Self, Error> {
        let target = target.as_ref().to_owned();
        let temporary = Self::temporary_path(&target);
        let open = OpenOptions::new().write(true).create(true).truncate(false).open(&temporary);
        let file = open.map_err(Error::io(&temporary, "open"))?;
        Self::locked(target, temporary, file, true)
    }

    /// Where a file is written before it gets its name.
    #[must_use]
    pub fn temporary_path(target: &Path) -> PathBuf {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        target.with_file_name(name)
    }

    fn locked(target: PathBuf, temporary: PathBuf, file: File, keep: bool) -> Result<Self, Error> {
        // Where locks are not supported, two processes writing one file are not told apart.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::Busy { path: target });
        }
        Ok(Self { target, temporary, file: Some(file), keep })
    }

    /// The path that the file will have.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Reserves the final length, so that a full disk is found early and parts can come in any order.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn set_len(&mut self, len: u64) -> Result<(), Error> {
        let path = &self.temporary;
        file(&mut self.file, path)?.set_len(len).map_err(Error::io(path, "write"))
    }

    /// Writes bytes at a position.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write_at(&mut self, position: u64, bytes: &[u8]) -> Result<(), Error> {
        let path = &self.temporary;
        let file = file(&mut self.file, path)?;
        file.seek(SeekFrom::Start(position)).and_then(|_| file.write_all(bytes)).map_err(Error::io(path, "write"))
    }

    /// Flushes to the device and renames onto the target.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; the temporary file is then removed and the target is as before.
    pub fn commit(mut self) -> Result<(), Error> {
        let path = &self.temporary;
        // Data before name: after a power cut the name must not stand for an empty file.
        file(&mut self.file, path)?.sync_data().map_err(Error::io(path, "write"))?;
        std::fs::rename(path, &self.target).map_err(Error::io(&self.target, "rename"))?;
        self.file = None;
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() && !self.keep {
            // Nothing can be done about a failure here; the next writer replaces the leftover.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn file<'a>(file: &'a mut Option<File>, path: &Path) -> Result<&'a mut File, Error> {
    file.as_mut().ok_or_else(|| Error::io(path, "write")(std::io::Error::from(ErrorKind::NotFound)))
}

fn open_new(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

fn remove_stale(temporary: &Path, target: &Path) -> Result<(), Error> {
    match OpenOptions::new().write(true).open(temporary) {
        Ok(held) => {
            if let Err(TryLockError::WouldBlock) = held.try_lock() {
                return Err(Error::Busy { path: target.to_owned() });
            }
            match std::fs::remove_file(temporary) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(temporary, "remove")(error)),
                _ => Ok(()),
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(temporary, "open")(error)),
    }
}

/// Writes a small file beside its target and renames it.
///
/// # Errors
///
/// [`Error::Io`] or [`Error::Busy`].
pub fn write_atomically(target: impl AsRef<Path>, bytes: &[u8]) -> Result<(), Error> {
    let mut file = AtomicFile::create(target)?;
    file.write_at(0, bytes)?;
    file.commit()
}

/// Reads a whole text file of limited size.
pub(crate) fn read_text(path: &Path, what: &'static str, limit: u64) -> Result<String, Error> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { what, value: bytes.len() as u64, limit }.in_file(path));
    }
    String::from_utf8(bytes).map_err(|error| {
        Error::BadUtf8 { what: what.to_owned(), offset: error.utf8_error().valid_up_to() }.in_file(path)
    })
}

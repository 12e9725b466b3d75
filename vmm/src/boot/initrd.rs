use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{GuestRam, GuestRange};

/// Why an initrd can't be used.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// It can't be opened or is no file.
    #[error("cannot open the initrd {0}")]
    Open(PathBuf, #[source] io::Error),
    /// It is empty.
    #[error("the initrd {0} is empty; leave --initrd out to boot without one")]
    Empty(PathBuf),
    /// It got shorter, or the disk failed.
    #[error("cannot read the initrd {0} into guest memory; was it changed just now?")]
    Read(PathBuf, #[source] vm_memory::GuestMemoryError),
}

/// An initrd, opened.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Initrd {
    /// Opens `path` and takes its size.
    ///
    /// # Errors
    /// [`InitrdError`] when it can't be opened, is no regular file or is empty.
    pub fn open(path: PathBuf) -> Result<Self, InitrdError> {
        let (file, size) = match open_regular(&path) {
            Ok(opened) => opened,
            Err(error) => return Err(InitrdError::Open(path, error)),
        };
        if size == 0 {
            return Err(InitrdError::Empty(path));
        }
        Ok(Self { path, file, size })
    }

    /// Where it was opened.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Bytes, never 0.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn load(&mut self, ram: &GuestRam, range: GuestRange) -> Result<(), InitrdError> {
        ram.view()
            .read_exact_volatile_from(
                GuestAddress(range.start),
                &mut self.file,
                range.size as usize,
            )
            .map_err(|error| InitrdError::Read(self.path.clone(), error))
    }
}

/// Opens a regular file; a directory opens too, but fails only when read.
pub(super) fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok((file, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn bad_files_are_named() {
        let error = Initrd::open("/nonexistent/initrd".into()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/initrd"), "{error}");
        let error = Initrd::open("/dev/null".into()).unwrap_err();
        assert!(matches!(error, InitrdError::Open(..)), "{error}");
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = Initrd::open(empty.path().into()).unwrap_err();
        assert!(matches!(error, InitrdError::Empty(_)), "{error}");
    }

    #[test]
    fn contents_arrive() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"initrd").unwrap();
        let mut initrd = Initrd::open(file.path().into()).unwrap();
        let ram = GuestRam::new(&[GuestRange {
            start: 0,
            size: 2 << 20,
        }])
        .unwrap();
        let range = GuestRange {
            start: 0x10_0000,
            size: 6,
        };
        initrd.load(&ram, range).unwrap();
        let mut read = [0; 6];
        ram.view()
            .read_slice(&mut read, GuestAddress(range.start))
            .unwrap();
        assert_eq!(&read, b"initrd");
    }
}

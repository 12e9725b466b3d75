//! Kernel images: which kind, is it whole, what room it needs.

mod bzimage;
mod elf;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use thiserror::Error;
use vm_memory::GuestAddress;

use super::initrd::open_regular;
use crate::memory::{GuestRam, GuestRange};

/// Why a kernel image can't be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It can't be opened, read, or is no file.
    #[error("cannot open the kernel {0}")]
    Open(PathBuf, #[source] io::Error),
    /// It is something else.
    #[error(
        "{path} is not a kernel that airlock can boot: {reason}; give the vmlinuz (bzImage) or the vmlinux (ELF with a PVH note) of an x86-64 Linux"
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A part is missing.
    #[error(
        "the kernel {path} is truncated: it has {size:#x} bytes of the {needed:#x} that its header announces; copy it again"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What its header says.
        needed: u64,
    },
    /// The loader refused it.
    #[error("cannot load the kernel {path}: {reason}")]
    Load {
        /// The file.
        path: PathBuf,
        /// In the loader's words.
        reason: String,
    },
}

/// Why a header can't be used; the path is added by the caller.
#[derive(Debug, PartialEq, Eq)]
enum HeaderError {
    NotAKernel(String),
    Truncated(u64),
}

/// What the header of an image says.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    kind: Kind,
    /// The RAM that loading and starting need.
    footprint: GuestRange,
    /// Bytes of command line, without the zero at the end.
    cmdline_limit: usize,
    /// One past the highest address for an initrd.
    initrd_limit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BzImage,
    Elf,
}

/// A kernel image, opened and checked.
#[derive(Debug)]
pub struct KernelImage {
    path: PathBuf,
    file: File,
    header: Header,
}

pub(super) enum Loaded {
    BzImage {
        header: Box<setup_header>,
        entry: u64,
    },
    Pvh {
        entry: u32,
    },
}

impl KernelImage {
    /// Opens `path` and checks that it is a whole kernel that can be booted.
    ///
    /// # Errors
    /// [`ImageError`], naming the file and what is wrong with it.
    pub fn open(path: PathBuf) -> Result<Self, ImageError> {
        let (file, size) = match open_regular(&path) {
            Ok(opened) => opened,
            Err(error) => return Err(ImageError::Open(path, error)),
        };
        let mut magic = [0; 4];
        let header = match file.read_at(&mut magic, 0) {
            Ok(4) if &magic == b"\x7fELF" => elf::parse(&file, size),
            Ok(_) => bzimage::parse(&file, size),
            Err(error) => Err(error),
        };
        match header {
            Err(error) => Err(ImageError::Open(path, error)),
            Ok(Err(HeaderError::NotAKernel(reason))) => {
                Err(ImageError::NotAKernel { path, reason })
            }
            Ok(Err(HeaderError::Truncated(needed))) => {
                Err(ImageError::Truncated { path, size, needed })
            }
            Ok(Ok(header)) => Ok(Self { path, file, header }),
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The RAM that loading and starting need, at its fixed place.
    pub fn footprint(&self) -> GuestRange {
        self.header.footprint
    }

    /// How many bytes of command line it takes.
    pub fn cmdline_limit(&self) -> usize {
        self.header.cmdline_limit
    }

    /// One past the highest address at which it finds an initrd.
    pub fn initrd_limit(&self) -> u64 {
        self.header.initrd_limit
    }

    pub(super) fn load(&mut self, ram: &GuestRam) -> Result<Loaded, ImageError> {
        let start = GuestAddress(self.header.footprint.start);
        let result = match self.header.kind {
            Kind::BzImage => BzImage::load(ram.view(), Some(start), &mut self.file, None),
            Kind::Elf => Elf::load(ram.view(), None, &mut self.file, None),
        };
        let failed = |reason: String| ImageError::Load {
            path: self.path.clone(),
            reason,
        };
        let loaded = result.map_err(|error| failed(error.to_string()))?;
        match (self.header.kind, loaded.setup_header) {
            (Kind::BzImage, Some(header)) => Ok(Loaded::BzImage {
                header: Box::new(header),
                // "64-bit Boot Protocol": 0x200 into the protected-mode code.
                entry: loaded.kernel_load.0 + 0x200,
            }),
            (Kind::BzImage, None) => Err(failed("its header is gone".into())),
            (Kind::Elf, _) => match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(entry) => u32::try_from(entry.0)
                    .map(|entry| Loaded::Pvh { entry })
                    .map_err(|_| failed(format!("its PVH entry {:#x} is above 4 GiB", entry.0))),
                _ => Err(failed("it has no PVH entry".into())),
            },
        }
    }
}

/// Reads `N` bytes at `offset`; nothing when the file ends before.
fn read_at<const N: usize>(file: &File, offset: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    if i64::try_from(offset).is_err() {
        // Past the end of any file, and more than pread(2) takes.
        return Ok(None);
    }
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Little-endian fields of a header that was read whole. A field outside reads
/// as zero, which every check refuses.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let part = offset
            .checked_add(N)
            .and_then(|end| self.0.get(offset..end));
        part.and_then(|part| part.try_into().ok()).unwrap_or([0; N])
    }

    fn u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.get(offset))
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.get(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn open(contents: &[u8]) -> Result<KernelImage, ImageError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        KernelImage::open(file.path().into())
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        for contents in [
            &b""[..],
            b"x",
            b"#!/bin/sh\n",
            &[0; 4096],
            b"\x7fELF",
            &[0xff; 4096],
        ] {
            let error = open(contents).unwrap_err();
            assert!(matches!(error, ImageError::NotAKernel { .. }), "{error}");
            assert!(error.to_string().contains("vmlinuz"), "{error}");
        }
    }

    #[test]
    fn absent_files_and_directories_are_named() {
        let error = KernelImage::open("/nonexistent/vmlinuz".into()).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/vmlinuz"),
            "{error}"
        );
        let error = KernelImage::open("/".into()).unwrap_err();
        assert!(matches!(error, ImageError::Open(..)), "{error}");
    }
}

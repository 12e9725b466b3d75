//! The lab's kernels: each built once from a Debian kernel source package, or
//! given.

mod build;
mod cached;
pub mod config;
mod payload;
mod version;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use build::BuildError;
pub use payload::{PayloadError, extract_elf};
pub use version::KernelVersion;

use crate::cache::{Cache, CacheError};
use crate::digest::{DigestError, sha256_reader};

/// A kernel of the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// For the nested host, and for guests that boot by the Linux protocol.
    pub bzimage: PathBuf,
    /// Its modules, if it has any: a directory with one for the kernel's release
    /// in it, as `/lib/modules` is.
    pub modules: Option<PathBuf>,
}

/// Why there is no kernel.
#[derive(Debug, Error)]
pub enum KernelError {
    /// It could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A kernel file could not be read.
    #[error("cannot read the lab's kernel {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel has no ELF file in it.
    #[error("cannot use {path} as the lab's kernel: {source}")]
    Payload {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: PayloadError,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Its digest could not be had.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Kernel {
    /// The kernel that [`KernelVersion::variable`] names, or the lab's own: out of
    /// the cache, or built now.
    ///
    /// # Errors
    /// [`KernelError`] when it cannot be built.
    pub fn get(cache: &Cache, version: KernelVersion) -> Result<Self, KernelError> {
        let bzimage = match env::var_os(version.variable()) {
            Some(path) => path.into(),
            None => cached::get(cache, version)?.join(build::BZIMAGE),
        };
        let modules = modules_of(&bzimage);
        Ok(Self { bzimage, modules })
    }

    /// Whether [`Kernel::get`] would build it, which needs
    /// [`BUILD`](crate::prerequisites::BUILD).
    ///
    /// # Errors
    /// [`KernelError`] when the cache cannot be read.
    pub fn must_be_built(cache: &Cache, version: KernelVersion) -> Result<bool, KernelError> {
        let given = env::var_os(version.variable()).is_some();
        Ok(!given && cached::find(cache, version)?.is_none())
    }

    /// The same as an ELF file, for guests that boot by PVH.
    ///
    /// # Errors
    /// [`KernelError`] when it cannot be read or has no ELF file in it.
    pub fn elf(&self, cache: &Cache) -> Result<PathBuf, KernelError> {
        let path = &self.bzimage;
        let image = fs::read(path).map_err(|source| KernelError::Read {
            path: path.clone(),
            source,
        })?;
        let name = format!("vmlinux-{}", sha256_reader(image.as_slice())?.short());
        cache.entry(&name, "it unpacks the kernel", |to: &Path| {
            let elf = extract_elf(&image).map_err(|source| KernelError::Payload {
                path: path.clone(),
                source,
            })?;
            fs::write(to, elf).map_err(CacheError::at(to))?;
            Ok(())
        })
    }
}

/// The directory `modules` beside a kernel, if there is one.
fn modules_of(bzimage: &Path) -> Option<PathBuf> {
    Some(bzimage.with_file_name("modules")).filter(|path| path.is_dir())
}

//! The lab's kernel: built once from Debian's kernel source package, or given.

mod build;
pub mod config;
mod payload;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use build::BuildError;
pub use payload::{PayloadError, extract_elf};

use crate::cache::{Cache, CacheError};
use crate::digest::{DigestError, sha256_reader};

/// What the lab's kernel is configured with.
const FRAGMENT: &str = include_str!("../../../resources/lab-kernel.config");

/// The variable that names a kernel to use instead.
pub const KERNEL_VARIABLE: &str = "AIRLOCK_LAB_KERNEL";

/// The lab's kernel in its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// For the nested host, and for guests that boot by the Linux protocol.
    pub bzimage: PathBuf,
    /// The same as an ELF file, for guests that boot by PVH.
    pub elf: PathBuf,
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
    /// The kernel that [`KERNEL_VARIABLE`] names, or the lab's own: out of the
    /// cache, or built now.
    ///
    /// # Errors
    /// [`KernelError`] when it cannot be built or used.
    pub fn get(cache: &Cache) -> Result<Self, KernelError> {
        let bzimage = match env::var_os(KERNEL_VARIABLE) {
            Some(path) => path.into(),
            None => build::cached(cache)?,
        };
        Self::with_elf(cache, bzimage)
    }

    /// Whether [`Kernel::get`] would build it, which needs
    /// [`BUILD`](crate::prerequisites::BUILD).
    ///
    /// # Errors
    /// [`KernelError`] when the cache's key cannot be computed.
    pub fn must_be_built(cache: &Cache) -> Result<bool, KernelError> {
        let given = env::var_os(KERNEL_VARIABLE).is_some();
        Ok(!given && !build::is_cached(cache)?)
    }

    fn with_elf(cache: &Cache, bzimage: PathBuf) -> Result<Self, KernelError> {
        let image = fs::read(&bzimage).map_err(|source| KernelError::Read {
            path: bzimage.clone(),
            source,
        })?;
        let name = format!("vmlinux-{}", sha256_reader(image.as_slice())?.short());
        let elf = cache.entry(&name, "it unpacks the kernel", |path: &Path| {
            let elf = extract_elf(&image).map_err(|source| KernelError::Payload {
                path: bzimage.clone(),
                source,
            })?;
            fs::write(path, elf).map_err(CacheError::at(path))?;
            Ok::<_, KernelError>(())
        })?;
        let modules = modules_of(&bzimage);
        Ok(Self {
            bzimage,
            elf,
            modules,
        })
    }
}

/// The directory `modules` beside a kernel, if there is one.
fn modules_of(bzimage: &Path) -> Option<PathBuf> {
    Some(bzimage.with_file_name("modules")).filter(|path| path.is_dir())
}

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use thiserror::Error;

use crate::binaries::{self, BinariesError};
use crate::cache::{Cache, CacheError};
use crate::host::{Content, Host, HostError, Parts};
use crate::initramfs::{self, InitramfsError};
use crate::kernel::{Kernel, KernelError, KernelVersion};
use crate::machine::Machine;
use crate::prerequisites::{self, PrerequisiteError, find_program, find_static_program};

/// Why the lab cannot be set up.
#[derive(Debug, Error)]
pub enum LabError {
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Programs are missing.
    #[error(transparent)]
    Prerequisite(#[from] PrerequisiteError),
    /// There is no kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is no initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// airlock or the agent could not be built.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
}

/// Everything that nested hosts are made of, ready for use.
#[derive(Debug)]
pub struct Lab {
    cache: Cache,
    parts: Parts,
    /// The parts with the other kernel, once a machine asked for them.
    recent: OnceLock<Result<Parts, Arc<KernelError>>>,
}

impl Lab {
    /// Sets up what is missing, with progress on standard error: packages (as
    /// root), the kernel (once, some minutes), airlock and the agent (cargo). The
    /// recent kernel waits for a machine that asks for it.
    ///
    /// # Errors
    /// [`LabError`] with what to do about it.
    pub fn prepare() -> Result<Self, LabError> {
        let cache = Cache::open()?;
        // Asked for together, so that a user who isn't root is told one command.
        let mut needs = prerequisites::RUN.to_vec();
        if Kernel::must_be_built(&cache, KernelVersion::default())? {
            needs.extend(prerequisites::BUILD);
        }
        prerequisites::ensure(&cache, &needs)?;
        let missing = |name: &str| PrerequisiteError::StillMissing(vec![name.to_owned()]);
        let qemu = find_program("qemu-system-x86_64").ok_or_else(|| missing("QEMU"))?;
        let busybox = find_static_program("busybox").ok_or_else(|| missing("busybox"))?;
        let kernel = Kernel::get(&cache, KernelVersion::default())?;
        let mut install: BTreeMap<_, _> = binaries::build(&cache)?
            .into_iter()
            .map(|(name, path)| (name, Content::File(path)))
            .collect();
        for (name, content) in [
            (names::BZIMAGE, Content::File(kernel.bzimage.clone())),
            (names::ELF, Content::File(kernel.elf(&cache)?)),
            (names::INITRD, Content::Bytes(initramfs::guest(&busybox)?)),
        ] {
            install.insert(name.to_owned(), content);
        }
        let parts = Parts {
            qemu,
            kernel: kernel.bzimage.clone(),
            initrd: initramfs::host(&busybox)?,
            install,
        };
        Ok(Self {
            parts: with_host_kernel(parts, &kernel)?,
            cache,
            recent: OnceLock::new(),
        })
    }

    /// The lab of this process: set up at the first call.
    ///
    /// # Errors
    /// What the set-up failed with, at each call.
    pub fn shared() -> Result<&'static Self, &'static LabError> {
        static LAB: OnceLock<Result<Lab, LabError>> = OnceLock::new();
        LAB.get_or_init(Self::prepare).as_ref()
    }

    /// Boots a machine; see [`Host::boot`].
    ///
    /// # Errors
    /// [`HostError`] when it does not come up, or its kernel cannot be had.
    pub fn boot(&self, machine: &Machine) -> Result<Host, HostError> {
        let parts = self.parts_with(machine.kernel_version());
        let parts = parts.map_err(|source| HostError::Kernel {
            machine: machine.name().to_owned(),
            source,
        })?;
        Host::boot(&self.cache, parts, machine)
    }

    /// The parts of a host that runs `version`. A failure is told to each machine
    /// that asks for it, and not tried again.
    fn parts_with(&self, version: KernelVersion) -> Result<&Parts, Arc<KernelError>> {
        if version == KernelVersion::default() {
            return Ok(&self.parts);
        }
        let make = || {
            let kernel = Kernel::get(&self.cache, version)?;
            Ok(with_host_kernel(self.parts.clone(), &kernel)?)
        };
        let parts = self.recent.get_or_init(|| make().map_err(Arc::new));
        parts.as_ref().map_err(Arc::clone)
    }
}

/// The parts with another kernel for the nested host, and with its modules; what
/// guests boot stays.
fn with_host_kernel(mut parts: Parts, kernel: &Kernel) -> Result<Parts, CacheError> {
    parts.kernel.clone_from(&kernel.bzimage);
    let below = format!("{}/", names::MODULES);
    parts.install.retain(|name, _| !name.starts_with(&below));
    if let Some(modules) = &kernel.modules {
        add_tree(&mut parts.install, names::MODULES, modules).map_err(CacheError::at(modules))?;
    }
    Ok(parts)
}

/// Adds the files below `directory` as files below `name`.
fn add_tree(
    install: &mut BTreeMap<String, Content>,
    name: &str,
    directory: &Path,
) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{name}/{file}");
        if path.is_dir() {
            add_tree(install, &name, &path)?;
        } else {
            install.insert(name, Content::File(path));
        }
    }
    Ok(())
}

/// The names of what a scenario finds in
/// [`INSTALL_DIRECTORY`](crate::host::INSTALL_DIRECTORY).
pub mod names {
    /// The kernel for the Linux boot protocol.
    pub const BZIMAGE: &str = "bzImage";
    /// The kernel for the PVH boot protocol.
    pub const ELF: &str = "vmlinux";
    /// The guest's initramfs, see `resources/guest-init.sh`.
    pub const INITRD: &str = "guest.cpio";
    /// Busybox out of the nested host's initramfs, for programs that the machine
    /// which runs the lab may lack.
    pub const BUSYBOX: &str = "busybox";
    /// The kernel's modules, if it has any: a layer over the nested host's
    /// `/lib`, see `resources/host-init.sh`.
    pub(super) const MODULES: &str = "lib/modules";
}

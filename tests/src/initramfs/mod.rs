//! The two initramfs archives: the nested host's and the guest's. Each is
//! busybox and one script.

pub mod cpio;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

const HOST_INIT: &str = include_str!("../../../resources/host-init.sh");
const GUEST_INIT: &str = include_str!("../../../resources/guest-init.sh");

/// Why an archive could not be made.
#[derive(Debug, Error)]
#[error(
    "cannot read {path} for the lab's initramfs (its shell is of package busybox-static): {source}"
)]
pub struct InitramfsError {
    path: PathBuf,
    source: io::Error,
}

/// The nested host's archive: mounts the shares and starts the agent.
///
/// # Errors
/// [`InitramfsError`] when busybox cannot be read.
pub fn host(busybox: &Path) -> Result<Vec<u8>, InitramfsError> {
    archive(busybox, HOST_INIT)
}

/// The guest's archive: does what its kernel command line says.
///
/// # Errors
/// [`InitramfsError`] when busybox cannot be read.
pub fn guest(busybox: &Path) -> Result<Vec<u8>, InitramfsError> {
    archive(busybox, GUEST_INIT)
}

/// What a scenario adds to the guest's archive (the kernel unpacks one after
/// the other): programs in `/bin`, and tasks of its own, see
/// `resources/guest-init.sh`.
///
/// # Errors
/// [`InitramfsError`] when a program cannot be read.
pub fn addition(programs: &[(&str, &Path)], tasks: &str) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = cpio::Archive::new();
    for (name, path) in programs {
        let content = fs::read(path).map_err(|source| InitramfsError {
            path: (*path).to_owned(),
            source,
        })?;
        archive.program(&format!("bin/{name}"), &content);
    }
    archive.program("tasks", tasks.as_bytes());
    Ok(archive.finish())
}

fn archive(busybox: &Path, init: &str) -> Result<Vec<u8>, InitramfsError> {
    let shell = fs::read(busybox).map_err(|source| InitramfsError {
        path: busybox.to_owned(),
        source,
    })?;
    let mut archive = cpio::Archive::new();
    archive
        .directory("bin")
        .directory("dev")
        // The kernel opens it for init's standard streams before anything is mounted.
        .character_device("dev/console", 5, 1)
        .program("bin/busybox", &shell)
        .program("init", init.as_bytes());
    Ok(archive.finish())
}

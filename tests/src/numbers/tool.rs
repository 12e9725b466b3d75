//! The program that measures from inside of guests.

use std::fs;
use std::path::PathBuf;

use super::error::{At, NumbersError};
use crate::airlock::installed;
use crate::binaries::{GUEST_PCI, build_static};
use crate::cache::Cache;
use crate::host::Host;

fn built() -> Result<PathBuf, NumbersError> {
    let step = "the program that measures from inside of guests";
    build_static(&Cache::open()?, GUEST_PCI)
        .map_err(|error| NumbersError::wrong(step, error.to_string()))
}

/// A guest's initramfs `name` with the program and these tasks in it, by its path in
/// the nested host.
pub(super) fn initrd(host: &Host, name: &str, tasks: &str) -> Result<String, NumbersError> {
    let initrd = host.guest_initrd(name, &[(GUEST_PCI, &built()?)], tasks);
    initrd.at("an initramfs with the program that measures from inside of guests")
}

/// The program for the nested host itself, by its path there.
pub(super) fn for_host(host: &Host) -> Result<String, NumbersError> {
    let to = host.work_directory().join(GUEST_PCI);
    fs::copy(built()?, &to).map_err(NumbersError::file(&to))?;
    let path = installed(GUEST_PCI);
    host.shell(&format!(
        "cp {} {path}",
        installed(&format!("work/{GUEST_PCI}"))
    ))
    .at("a copy of the program that measures from inside of guests")?;
    Ok(path)
}

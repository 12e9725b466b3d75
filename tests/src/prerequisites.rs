//! The programs and files that the lab needs, and the Debian packages that hold
//! them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::cache::{Cache, CacheError};
use crate::command::{CommandError, run_logged};
use crate::progress::Meter;

/// Something that must be there, and the package that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    what: What,
    package: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A program in `PATH`.
    Program(&'static str),
    /// A program that needs no shared library: it is the whole user space of
    /// an initramfs.
    StaticProgram(&'static str),
    /// A file.
    File(&'static str),
}

const fn program(name: &'static str, package: &'static str) -> Need {
    Need {
        what: What::Program(name),
        package,
    }
}

/// What running a nested host needs.
pub const RUN: &[Need] = &[
    program("qemu-system-x86_64", "qemu-system-x86"),
    Need {
        what: What::StaticProgram("busybox"),
        package: "busybox-static",
    },
];

/// What `cargo numbers` needs besides: programs that it runs in the nested host.
pub const NUMBERS: &[Need] = &[
    program("strace", "strace"),
    program("ldd", "libc-bin"),
    program("chrt", "util-linux"),
];

/// What building the kernel needs besides what is in every Debian.
pub const BUILD: &[Need] = &[
    program("make", "make"),
    program("gcc", "gcc"),
    program("flex", "flex"),
    program("bison", "bison"),
    program("bc", "bc"),
    program("xz", "xz-utils"),
    // gcc only recommends the C library's headers.
    Need {
        what: What::File("/usr/include/stdio.h"),
        package: "libc6-dev",
    },
    // For objtool, which the kernel builds for itself.
    Need {
        what: What::File("/usr/include/gelf.h"),
        package: "libelf-dev",
    },
];

/// Why something that the lab needs is not there.
#[derive(Debug, Error)]
pub enum PrerequisiteError {
    /// Packages are missing and only root may install them.
    #[error(
        "the lab needs {}; as root, run:\n  apt-get update && apt-get install --no-install-recommends -y {}",
        .missing.join(", "),
        .packages.join(" ")
    )]
    NotRoot {
        /// The programs and files.
        missing: Vec<String>,
        /// The packages that hold them.
        packages: Vec<&'static str>,
    },
    /// This is not a Debian.
    #[error(
        "the lab needs {}, and this machine has no apt-get: install them by other means",
        .0.join(", ")
    )]
    NotDebian(Vec<String>),
    /// The packages were installed, but something is still not there.
    #[error("{} cannot be found even with its package installed: see PATH", .0.join(", "))]
    StillMissing(Vec<String>),
    /// apt-get failed.
    #[error("cannot install {}: {source}", .packages.join(", "))]
    Install {
        /// The packages.
        packages: Vec<&'static str>,
        /// Why.
        source: CommandError,
    },
    /// The cache, where the log goes, cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Sees to it that all of `needs` are there: installs what is missing when this
/// process is root's.
///
/// # Errors
/// [`PrerequisiteError`], with the command that mends it.
pub fn ensure(cache: &Cache, needs: &[Need]) -> Result<(), PrerequisiteError> {
    if missing(needs).is_empty() {
        return Ok(());
    }
    let _lock = cache.lock("packages.lock", "it is installing packages")?;
    let absent = missing(needs);
    if absent.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = absent.iter().map(Need::name).collect();
    let mut packages: Vec<_> = absent.iter().map(|need| need.package).collect();
    packages.dedup();
    if find_program("apt-get").is_none() {
        return Err(PrerequisiteError::NotDebian(names));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(PrerequisiteError::NotRoot {
            missing: names,
            packages,
        });
    }
    install(cache, &packages)?;
    let still = missing(needs);
    if still.is_empty() {
        return Ok(());
    }
    Err(PrerequisiteError::StillMissing(
        still.iter().map(Need::name).collect(),
    ))
}

fn install(cache: &Cache, packages: &[&'static str]) -> Result<(), PrerequisiteError> {
    let log = cache.path("packages.log");
    // A log of an earlier run would mislead; there may be none.
    let _ = fs::remove_file(&log);
    let mut meter = Meter::start(format!("installing packages: {}", packages.join(" ")));
    let mut apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        run_logged(&mut command, &log, &mut meter, |_| String::new())
    };
    let mut arguments = vec!["install", "--no-install-recommends", "-y"];
    arguments.extend(packages);
    let installed = apt(&["update"]).and_then(|()| apt(&arguments));
    installed.map_err(|source| PrerequisiteError::Install {
        packages: packages.to_vec(),
        source,
    })?;
    meter.finish("done");
    Ok(())
}

fn missing(needs: &[Need]) -> Vec<Need> {
    needs.iter().copied().filter(|need| !need.met()).collect()
}

impl Need {
    fn met(&self) -> bool {
        match self.what {
            What::Program(name) => find_program(name).is_some(),
            What::StaticProgram(name) => find_static_program(name).is_some(),
            What::File(path) => Path::new(path).exists(),
        }
    }

    fn name(&self) -> String {
        match self.what {
            What::Program(name) => format!("the program {name}"),
            What::StaticProgram(name) => format!("a statically linked {name}"),
            What::File(path) => format!("the file {path}"),
        }
    }
}

/// Where a program is: in `PATH`, or where Debian has those of the system.
pub fn find_program(name: &str) -> Option<PathBuf> {
    candidates(name).next()
}

/// Where a program without shared libraries is.
pub fn find_static_program(name: &str) -> Option<PathBuf> {
    candidates(name).find(|path| fs::read(path).is_ok_and(|content| is_static(&content)))
}

fn candidates(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> = env::split_paths(&path)
        .chain(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .collect();
    directories.into_iter().filter(|path| path.is_file())
}

/// Whether `content` is a 64-bit ELF program that asks for no interpreter
/// (System V ABI, "Program Header").
fn is_static(content: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |offset: usize, size: usize| -> Option<u64> {
        let bytes = content.get(offset..offset.checked_add(size)?)?;
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes);
        Some(u64::from_le_bytes(wide))
    };
    let interpreter = || -> Option<bool> {
        let table = usize::try_from(number(0x20, 8)?).ok()?;
        let size = usize::try_from(number(0x36, 2)?).ok()?;
        let count = usize::try_from(number(0x38, 2)?).ok()?;
        for index in 0..count {
            let entry = table.checked_add(index.checked_mul(size)?)?;
            if number(entry, 4)? == u64::from(PT_INTERP) {
                return Some(true);
            }
        }
        Some(false)
    };
    content.starts_with(b"\x7fELF\x02\x01") && interpreter() == Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of `kind` at 0x40.
    fn elf(kind: u8) -> Vec<u8> {
        let mut content = vec![0; 0x78];
        content[..6].copy_from_slice(b"\x7fELF\x02\x01");
        content[0x20] = 0x40;
        content[0x36] = 0x38;
        content[0x38] = 1;
        content[0x40] = kind;
        content
    }

    #[test]
    fn a_program_is_static_without_an_interpreter() {
        assert!(is_static(&elf(1)));
        assert!(!is_static(&elf(3)));
        assert!(!is_static(&elf(1)[..0x41]), "cut off");
        assert!(!is_static(b"#!/bin/sh\n"));
        // This test itself is linked against the C library.
        let own = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own));
    }

    #[test]
    fn what_is_missing_is_found_and_named() {
        let needs = [
            program("sh", "dash"),
            program("no-such-program", "nothing"),
            Need {
                what: What::File("/no/such/file"),
                package: "none",
            },
        ];
        assert_eq!(missing(&needs), needs[1..]);
    }

    #[test]
    fn a_user_is_told_one_command() {
        let error = PrerequisiteError::NotRoot {
            missing: vec![BUILD[2].name(), BUILD[7].name()],
            packages: vec!["flex", "libelf-dev"],
        };
        assert_eq!(
            error.to_string(),
            "the lab needs the program flex, the file /usr/include/gelf.h; as root, run:\n  \
             apt-get update && apt-get install --no-install-recommends -y flex libelf-dev"
        );
    }
}

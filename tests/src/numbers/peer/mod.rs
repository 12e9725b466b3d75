//! Other monitors that are measured beside airlock: QEMU, which is always there,
//! and those that whoever measures has brought.

mod command;

use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, fs};

use super::error::{At, NumbersError};
use super::guest::Guest;
use crate::airlock::installed;
use crate::binaries::AIRLOCK;
use crate::host::Host;

/// Where a peer and all that it reads stand in the nested host.
const DIRECTORY: &str = "/run/lab/peer";

/// A monitor that can boot the same guest as airlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// Debian's, which takes devices by type1.
    Qemu,
    /// cloud-hypervisor, which takes them by type1 unless told otherwise.
    CloudHypervisor,
    /// crosvm, by type1.
    Crosvm,
    /// alioth, by type1.
    Alioth,
    /// kvmtool, by type1. Its guests have no ACPI, and end by a reset.
    Kvmtool,
}

impl PeerKind {
    const ALL: [Self; 5] = [
        Self::Qemu,
        Self::CloudHypervisor,
        Self::Crosvm,
        Self::Alioth,
        Self::Kvmtool,
    ];

    /// What it is called by `--peer`.
    fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Crosvm => "crosvm",
            Self::Alioth => "alioth",
            Self::Kvmtool => "kvmtool",
        }
    }
}

impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Qemu => "QEMU",
            other => other.name(),
        })
    }
}

/// A monitor that was brought: `NAME=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub(super) kind: PeerKind,
    /// Its program.
    pub(super) path: PathBuf,
}

impl Peer {
    /// Debian's QEMU, as the package has it.
    pub(super) fn qemu() -> Self {
        Self {
            kind: PeerKind::Qemu,
            path: PathBuf::from("/usr/bin/qemu-system-x86_64"),
        }
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text
            .split_once('=')
            .ok_or("not NAME=PATH, as cloud-hypervisor=/usr/local/bin/cloud-hypervisor is")?;
        let kind = PeerKind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| {
            let known = PeerKind::ALL.map(PeerKind::name).join(", ");
            format!("how '{name}' is started is not known; known are {known}")
        })?;
        let path = PathBuf::from(path);
        if !path.is_file() {
            return Err(format!("{} is no file", path.display()));
        }
        let path = path
            .canonicalize()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { kind, path })
    }
}

impl PeerKind {
    fn directory(self) -> String {
        format!("{DIRECTORY}/{self}")
    }

    pub(super) fn file(self) -> String {
        format!("{}/program", self.directory())
    }

    /// How it is started.
    pub(super) fn argv(self, guest: &Guest) -> Vec<String> {
        let directory = self.directory();
        let options = command::options(self, guest, &directory);
        let words = command::environment(self, &directory).into_iter();
        let program = loader(&directory).into_iter().chain([self.file()]);
        words.chain(program).chain(options).collect()
    }
}

/// What starts a program with the libraries in `directory`: its loader by name, and no
/// other process before it.
fn loader(directory: &str) -> [String; 3] {
    [
        format!("{directory}/lib/ld-linux-x86-64.so.2"),
        "--library-path".to_owned(),
        format!("{directory}/lib"),
    ]
}

/// What starts airlock with its libraries, as the others are.
pub(super) fn airlock_loader() -> [String; 3] {
    loader(&format!("{DIRECTORY}/airlock"))
}

/// Copies airlock's libraries to where those of the others stand.
///
/// # Errors
/// [`NumbersError`] when one is missing.
pub(super) fn install_airlock(host: &Host) -> Result<(), NumbersError> {
    let step = "a copy of airlock's libraries for the nested host";
    let script = libraries(&format!("{DIRECTORY}/airlock"), &installed(AIRLOCK));
    host.shell(&script).at(step).map(drop)
}

/// Copies a monitor with its libraries to where airlock stands too. Answers its
/// version.
///
/// # Errors
/// [`NumbersError`] when something of it is missing.
pub(super) fn install(host: &Host, peer: &Peer) -> Result<String, NumbersError> {
    let step = format!("a copy of {} for the nested host", peer.kind);
    let directory = peer.kind.directory();
    // Wherever it stands here, it is there in the nested host too.
    let shared = host.work_directory().join("peer");
    fs::copy(&peer.path, &shared).map_err(NumbersError::file(&peer.path))?;
    let program = installed("work/peer");
    let firmware = match peer.kind {
        PeerKind::Qemu => format!(
            "mkdir -p {directory}/share
             cp -L /usr/share/qemu/*.bin /usr/share/seabios/bios-256k.bin {directory}/share/"
        ),
        _ => String::new(),
    };
    let script = format!(
        "{}
         cp -L {program} {directory}/program
         {firmware}
         {} {directory}/program {}",
        libraries(&directory, &program),
        loader(&directory).join(" "),
        command::version(peer.kind),
    );
    let told = host.shell(&script).at(&step)?;
    version(&told)
        .map(str::to_owned)
        .ok_or_else(|| NumbersError::wrong(&step, format!("no version in '{told}'")))
}

/// Copies what `program` is linked with, and its loader, into `directory`: on the
/// share that the nested host has as its root, each file that is opened costs a
/// round trip.
fn libraries(directory: &str, program: &str) -> String {
    format!(
        "mkdir -p {directory}/lib
         cp -L $(ldd {program} | sed -n 's/.*\\(=> \\|^[[:space:]]*\\)\\(\\/[^ ]*\\) (.*/\\2/p') {directory}/lib/"
    )
}

/// The first word of the first line that begins as versions do.
fn version(told: &str) -> Option<&str> {
    let is_version = |word: &&str| {
        let number = word.strip_prefix('v').unwrap_or(word);
        number.starts_with(|c: char| c.is_ascii_digit())
    };
    told.lines().next()?.split_whitespace().find(is_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_brought_by_name() {
        let shell: Peer = "cloud-hypervisor=/bin/sh".parse().unwrap();
        assert_eq!(shell.kind, PeerKind::CloudHypervisor);
        for (text, told) in [
            ("/bin/sh", "not NAME=PATH"),
            ("bochs=/bin/sh", "known are qemu, cloud-hypervisor"),
            ("cloud-hypervisor=/nowhere", "/nowhere is no file"),
        ] {
            let error = text.parse::<Peer>().unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn versions_are_found_where_they_stand() {
        let qemu = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)\nCopyright";
        assert_eq!(version(qemu), Some("7.2.22"));
        assert_eq!(version("cloud-hypervisor v48.0-1\n"), Some("v48.0-1"));
        assert_eq!(version(""), None);
    }
}

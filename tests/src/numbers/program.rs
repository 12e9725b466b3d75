use std::fmt;

use serde::Serialize;

use super::error::{At, NumbersError};
use crate::Backend;
use crate::airlock::{Run, installed};
use crate::host::Host;
use crate::lab::names;

/// Where QEMU and all that it reads stand in the nested host.
const PEER: &str = "/run/lab/peer";

/// A monitor that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Airlock(Backend),
    /// Debian's, which takes devices by type1.
    Qemu,
}

impl Program {
    pub(super) const ALL: [Self; 3] = [
        Self::Airlock(Backend::Iommufd),
        Self::Airlock(Backend::Type1),
        Self::Qemu,
    ];
    /// What the others are compared with.
    pub(super) const BASE: Self = Self::ALL[0];
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Airlock(backend) => f.pad(&format!("airlock {backend}")),
            Self::Qemu => f.pad("QEMU type1"),
        }
    }
}

impl Serialize for Program {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The guest that all of them boot: the same kernel, initrd, command line,
/// memory and device.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) tasks: &'static str,
    pub(super) memory_mib: u64,
    pub(super) device: String,
}

impl Guest {
    /// How much of the disk it reads.
    pub(super) const BYTES: u64 = 65536;

    /// The program's command line.
    pub(super) fn argv(&self, program: Program) -> Vec<String> {
        match program {
            Program::Airlock(backend) => self.run().iommu(backend).step().words().to_vec(),
            Program::Qemu => self.qemu(),
        }
    }

    /// The same with airlock's own time stamps in a file.
    pub(super) fn argv_with_timeline(&self, backend: Backend, path: &str) -> Vec<String> {
        let run = self.run().iommu(backend).timeline(path);
        run.step().words().to_vec()
    }

    fn run(&self) -> Run {
        Run::tasks(self.tasks)
            .cmdline(&format!("lab.bytes={}", Self::BYTES))
            .memory(format!("{}M", self.memory_mib))
            .device(&self.device)
    }

    fn qemu(&self) -> Vec<String> {
        let cmdline = format!(
            "console=ttyS0 quiet panic=-1 lab.do={} lab.bytes={}",
            self.tasks,
            Self::BYTES
        );
        // Its loader by name: no variable, and no other process, before it.
        let words = [
            &format!("{PEER}/lib/ld-linux-x86-64.so.2"),
            "--library-path",
            &format!("{PEER}/lib"),
            &format!("{PEER}/qemu-system-x86_64"),
            "-L",
            &format!("{PEER}/share"),
            "-M",
            "q35,accel=kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            &self.memory_mib.to_string(),
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-monitor",
            "none",
            "-no-reboot",
            "-kernel",
            &installed(names::BZIMAGE),
            "-initrd",
            &installed(names::INITRD),
            "-append",
            &cmdline,
            "-device",
            &format!("vfio-pci,host={}", self.device),
        ];
        words.map(str::to_owned).to_vec()
    }
}

/// Copies QEMU with its libraries and firmware to where airlock stands too: on
/// the share that the nested host has as its root, each file that is opened
/// costs a round trip. Answers its version.
///
/// # Errors
/// [`NumbersError`] when something of it is missing.
pub(super) fn install_qemu(host: &Host) -> Result<String, NumbersError> {
    let step = "a copy of QEMU for the nested host";
    let script = format!(
        "mkdir -p {PEER}/lib {PEER}/share
         qemu=$(command -v qemu-system-x86_64)
         cp -L \"$qemu\" {PEER}/
         cp -L $(ldd \"$qemu\" | sed -n 's/.*\\(=> \\|^[[:space:]]*\\)\\(\\/[^ ]*\\) (.*/\\2/p') {PEER}/lib/
         cp -L /usr/share/qemu/*.bin /usr/share/seabios/bios-256k.bin {PEER}/share/
         {PEER}/lib/ld-linux-x86-64.so.2 --library-path {PEER}/lib {PEER}/qemu-system-x86_64 --version"
    );
    let told = host.shell(&script).at(step)?;
    let version = told
        .lines()
        .next()
        .and_then(|line| line.split("version ").nth(1));
    let version = version.and_then(|rest| rest.split_whitespace().next());
    match version {
        Some(version) => Ok(version.to_owned()),
        None => Err(NumbersError::wrong(step, format!("no version in '{told}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_boot_the_same_guest() {
        let guest = Guest {
            tasks: "nvme,poweroff",
            memory_mib: 2048,
            device: "0000:01:00.0".to_owned(),
        };
        let after = |argv: &[String], option: &str| {
            let at = argv.iter().position(|word| word == option).unwrap();
            argv[at + 1].clone()
        };
        let qemu = guest.argv(Program::Qemu);
        for backend in Backend::BOTH {
            let airlock = guest.argv(Program::Airlock(backend));
            for (ours, theirs) in [
                ("--kernel", "-kernel"),
                ("--initrd", "-initrd"),
                ("--cmdline", "-append"),
                ("--cpus", "-smp"),
            ] {
                assert_eq!(after(&airlock, ours), after(&qemu, theirs));
            }
            assert_eq!(after(&airlock, "--memory"), "2048M");
            assert_eq!(after(&airlock, "--iommu"), backend.to_string());
        }
        assert_eq!(after(&qemu, "-m"), "2048");
        assert!(qemu.contains(&"vfio-pci,host=0000:01:00.0".to_owned()));
    }
}

use std::fmt;

use serde::Serialize;

use super::peer::{PeerKind, airlock_loader};
use crate::Backend;
use crate::airlock::{Run, installed};
use crate::binaries::AIRLOCK;
use crate::lab::names;

/// A monitor that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Airlock(Backend),
    Peer(PeerKind),
}

impl Program {
    /// What the others are compared with.
    pub(super) const BASE: Self = Self::Airlock(Backend::Iommufd);

    /// airlock by both backends, and these.
    pub(super) fn with(peers: impl IntoIterator<Item = PeerKind>) -> Vec<Self> {
        let own = [Self::BASE, Self::Airlock(Backend::Type1)];
        let peers = peers.into_iter().map(Self::Peer);
        own.into_iter().chain(peers).collect()
    }
}

impl Program {
    /// Its program in the nested host.
    pub(super) fn file(self) -> String {
        match self {
            Self::Airlock(_) => installed(AIRLOCK),
            Self::Peer(kind) => kind.file(),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Airlock(backend) => f.pad(&format!("airlock {backend}")),
            Self::Peer(kind) => kind.fmt(f),
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
    pub(super) device: Option<String>,
    /// Another initrd than the lab's, by its path in the nested host.
    pub(super) initrd: Option<String>,
}

impl Guest {
    /// How much of the disk it reads.
    pub(super) const BYTES: u64 = 65536;

    /// The program's command line.
    pub(super) fn argv(&self, program: Program) -> Vec<String> {
        match program {
            Program::Airlock(backend) => loaded(&self.run().iommu(backend)),
            Program::Peer(kind) => kind.argv(self),
        }
    }

    /// The same with airlock's own time stamps in a file.
    pub(super) fn argv_with_timeline(&self, backend: Backend, path: &str) -> Vec<String> {
        loaded(&self.run().iommu(backend).timeline(path))
    }

    fn run(&self) -> Run {
        let run = Run::tasks(self.tasks)
            .cmdline(&format!("lab.bytes={}", Self::BYTES))
            .memory(format!("{}M", self.memory_mib));
        let run = run.initrd(Some(self.initrd()));
        match &self.device {
            Some(device) => run.device(device),
            None => run,
        }
    }

    /// Its initrd's path.
    pub(super) fn initrd(&self) -> String {
        let other = self.initrd.clone();
        other.unwrap_or_else(|| installed(names::INITRD))
    }

    /// Its kernel's command line.
    pub(super) fn cmdline(&self) -> String {
        format!(
            "console=ttyS0 quiet panic=-1 lab.do={} lab.bytes={}",
            self.tasks,
            Self::BYTES
        )
    }
}

/// airlock with its libraries as the others have theirs.
fn loaded(run: &Run) -> Vec<String> {
    let step = run.step();
    airlock_loader()
        .into_iter()
        .chain(step.words().iter().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_boot_the_same_guest() {
        let guest = Guest {
            tasks: "nvme,poweroff",
            memory_mib: 2048,
            device: Some("0000:01:00.0".to_owned()),
            initrd: None,
        };
        let after = |argv: &[String], option: &str| {
            let at = argv.iter().position(|word| word == option).unwrap();
            argv[at + 1].clone()
        };
        let qemu = guest.argv(Program::Peer(PeerKind::Qemu));
        let cloud = guest.argv(Program::Peer(PeerKind::CloudHypervisor));
        for backend in Backend::BOTH {
            let airlock = guest.argv(Program::Airlock(backend));
            for (ours, qemus, clouds) in [
                ("--kernel", "-kernel", "--kernel"),
                ("--initrd", "-initrd", "--initramfs"),
                ("--cmdline", "-append", "--cmdline"),
            ] {
                assert_eq!(after(&airlock, ours), after(&qemu, qemus));
                assert_eq!(after(&airlock, ours), after(&cloud, clouds));
            }
            assert_eq!(after(&airlock, "--cpus"), after(&qemu, "-smp"));
            assert_eq!(after(&airlock, "--memory"), "2048M");
            assert_eq!(after(&airlock, "--iommu"), backend.to_string());
        }
        assert_eq!(after(&qemu, "-m"), "2048");
        assert_eq!(after(&cloud, "--memory"), "size=2048M");
        for argv in [&qemu, &cloud] {
            let device = argv.last().expect("options");
            assert!(device.contains("0000:01:00.0"), "{device}");
        }
    }
}

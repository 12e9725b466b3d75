use super::error::{At, NumbersError};
use super::peer::airlock_loader;
use super::program::Program;
use crate::Backend;
use crate::airlock::{Run, installed};
use crate::host::Host;
use crate::lab::names;

/// The guest whose calls, exits and memory are counted, in MiB.
pub(super) const GUEST_MIB: u64 = 512;

/// A device of the nested host that is VFIO's, as monitors want to be told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// Its address.
    pub(super) address: String,
    /// Its file in `/dev/vfio/devices`.
    pub(super) node: String,
}

impl Given {
    /// The one that the lab's machine names so.
    pub(super) fn named(host: &Host, name: &str) -> Result<Self, NumbersError> {
        let step = format!("where {name} is");
        let address = host.address(name).at(&step)?.to_string();
        let node = host.shell(&format!("ls /sys/bus/pci/devices/{address}/vfio-dev"));
        let node = node.at(&step)?.trim().to_owned();
        Ok(Self { address, node })
    }
}

/// The guest that all monitors boot: the same kernel, initrd, command line, memory
/// and devices.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    tasks: &'static str,
    memory_mib: u64,
    devices: Vec<Given>,
    initrd: String,
}

impl Guest {
    /// How much of the disk it reads.
    pub(super) const BYTES: u64 = 65536;

    /// A guest of 512 MiB without devices that does `tasks`.
    pub(super) fn new(tasks: &'static str) -> Self {
        Self {
            tasks,
            memory_mib: GUEST_MIB,
            devices: Vec::new(),
            initrd: installed(names::INITRD),
        }
    }

    pub(super) fn memory_mib(self, memory_mib: u64) -> Self {
        Self { memory_mib, ..self }
    }

    /// Gives it a device.
    pub(super) fn device(mut self, device: &Given) -> Self {
        self.devices.push(device.clone());
        self
    }

    /// Another initrd than the lab's, by its path in the nested host.
    pub(super) fn initrd(self, path: &str) -> Self {
        let initrd = path.to_owned();
        Self { initrd, ..self }
    }

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
            .memory(format!("{}M", self.memory_mib))
            .initrd(Some(self.initrd.clone()));
        let addresses = self.devices.iter().map(|device| &device.address);
        addresses.fold(run, Run::device)
    }

    /// Its memory in MiB.
    pub(super) fn mib(&self) -> u64 {
        self.memory_mib
    }

    /// Its devices.
    pub(super) fn devices(&self) -> &[Given] {
        &self.devices
    }

    /// Its initrd's path.
    pub(super) fn initrd_path(&self) -> &str {
        &self.initrd
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
    use super::super::peer::PeerKind;
    use super::*;

    fn after(argv: &[String], option: &str) -> String {
        let at = argv.iter().position(|word| word == option);
        argv[at.unwrap_or_else(|| panic!("no {option}: {argv:?}")) + 1].clone()
    }

    #[test]
    fn all_boot_the_same_guest() {
        let device = |slot: u8| Given {
            address: format!("0000:0{slot}:00.0"),
            node: format!("vfio{slot}"),
        };
        let guest = Guest::new("nvme,poweroff")
            .memory_mib(2048)
            .device(&device(1))
            .device(&device(2));
        let airlock = guest.argv(Program::BASE);
        assert_eq!(after(&airlock, "--memory"), "2048M");
        for backend in Backend::BOTH {
            let argv = guest.argv(Program::Airlock(backend));
            assert_eq!(after(&argv, "--iommu"), backend.to_string());
        }
        // Each monitor's words for the initrd, the command line, CPUs and memory.
        for (kind, initrd, cmdline, cpus, memory, mib) in [
            (PeerKind::Qemu, "-initrd", "-append", "-smp", "-m", "2048"),
            (
                PeerKind::CloudHypervisor,
                "--initramfs",
                "--cmdline",
                "--cpus",
                "--memory",
                "size=2048M",
            ),
            (
                PeerKind::Crosvm,
                "--initrd",
                "--params",
                "--cpus",
                "--mem",
                "2048",
            ),
            (
                PeerKind::Alioth,
                "--initramfs",
                "--cmdline",
                "--cpu",
                "--memory",
                "size=2048M",
            ),
            (
                PeerKind::Kvmtool,
                "--initrd",
                "--params",
                "--cpus",
                "--mem",
                "2048",
            ),
        ] {
            let argv = guest.argv(Program::Peer(kind));
            let text = argv.join(" ");
            assert!(argv.contains(&after(&airlock, "--kernel")), "{text}");
            assert_eq!(after(&argv, initrd), after(&airlock, "--initrd"));
            let tasks = after(&argv, cmdline).replace(",reboot", ",poweroff");
            let tasks = tasks.replace(" reboot=k", "");
            assert_eq!(tasks, after(&airlock, "--cmdline"));
            assert!(after(&argv, cpus).contains(&after(&airlock, "--cpus")));
            assert_eq!(after(&argv, memory), mib);
            for device in guest.devices() {
                let told = text.contains(&device.address) || text.contains(&device.node);
                assert!(told, "{device:?}: {text}");
            }
        }
    }
}

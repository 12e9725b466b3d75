//! The nested host in which everything is measured, and who takes part.

use std::{env, fs};

use super::error::{At, NumbersError};
use super::field::{Devices, Field};
use super::guest::{Given, Guest};
use super::peer::{self, Peer};
use super::program::Program;
use super::report::Report;
use super::{PROBE, STEP_LIMIT};
use crate::host::{Host, Step};
use crate::kernel::KernelVersion;
use crate::lab::Lab;
use crate::machine::{Device, DeviceModel, Disk, Machine, Slot};

/// The nested host's memory: the largest guest, and what it is measured with.
const HOST_MIB: u32 = 6144;
/// What of it is free for sure, and enough for the largest guest.
const TOUCHED_MIB: u32 = 4700;
/// The NVMe that most is measured with.
pub(super) const DISK: &str = "disk";
/// A network card.
pub(super) const NIC: &str = "nic";
/// Another NVMe, which has as many MSI-X vectors as a function may.
const MANY: &str = "many";
/// Memory behind a BAR of 16 GiB.
const LARGE: &str = "large";

/// The machine that is the nested host.
pub(super) fn machine(kernel: KernelVersion) -> Machine {
    Machine::new("numbers")
        .kernel(kernel)
        .memory_mib(HOST_MIB)
        .device(Device::nvme(DISK, disk()))
        .device(Device::e1000e(NIC))
        .device(Device::nvme(MANY, disk()).property("msix_qsize=2048"))
        .slot(Slot::Integrated(Device::new(
            LARGE,
            DeviceModel::Other("ivshmem-plain,memdev=large-memory".to_owned()),
        )))
        .qemu_args([
            "-object",
            "memory-backend-ram,size=16G,share=on,reserve=off,id=large-memory",
        ])
}

/// What the disks hold.
pub(super) fn disk() -> Disk {
    Disk::seeded(16 << 20, 7)
}

/// How long a guest may take that its monitor may not be able to boot, in seconds as they
/// go by: several times what any takes that is.
pub(super) const SECONDS: u32 = 30;
/// The same where an instruction takes a nanosecond. A guest that spins needs minutes for
/// as many seconds.
pub(super) const COUNTED_SECONDS: u32 = 10;

/// A nested host with all that is measured in it.
pub(super) struct Stage {
    pub(super) host: Host,
    /// How long a guest may take.
    pub(super) seconds: u32,
    /// The versions of other monitors, by name.
    versions: Vec<(String, String)>,
    /// Who takes part in what.
    pub(super) field: Field,
    pub(super) disk: Given,
    pub(super) nic: Given,
    pub(super) many: Given,
    pub(super) large: Given,
}

impl Stage {
    /// Boots a nested host, and tries out who can boot guests in it, in at most so many
    /// seconds.
    pub(super) fn set(
        lab: &Lab,
        machine: &Machine,
        seconds: u32,
        peers: &[Peer],
    ) -> Result<Self, NumbersError> {
        let mut stage = Self::boot(lab, machine, seconds, peers)?;
        let kinds: Vec<_> = peers.iter().map(|peer| peer.kind).collect();
        let guests = Devices::ALL.map(|one| (one, stage.guest(one)));
        stage.field = Field::try_out(&stage.host, seconds, &kinds, &guests)?;
        Ok(stage)
    }

    /// The same once more, with those who were able, when the nested host was lost.
    pub(super) fn again(
        self,
        lab: &Lab,
        machine: &Machine,
        peers: &[Peer],
    ) -> Result<Self, NumbersError> {
        let Self {
            seconds,
            field,
            host,
            ..
        } = self;
        // Only one may run at a time.
        drop(host);
        let stage = Self::boot(lab, machine, seconds, peers)?;
        Ok(Self { field, ..stage })
    }

    fn boot(
        lab: &Lab,
        machine: &Machine,
        seconds: u32,
        peers: &[Peer],
    ) -> Result<Self, NumbersError> {
        let host = lab.boot(machine).at("boot of the nested host")?;
        install_probe(&host)?;
        peer::install_airlock(&host)?;
        let install = |peer: &Peer| Ok((peer.kind.to_string(), peer::install(&host, peer)?));
        let versions = peers
            .iter()
            .map(install)
            .collect::<Result<_, NumbersError>>()?;
        touch_memory(&host)?;
        host.bind_vfio(&[DISK, NIC, MANY, LARGE])
            .at("the devices for VFIO")?;
        let given = |name| Given::named(&host, name);
        let (disk, nic, many, large) = (given(DISK)?, given(NIC)?, given(MANY)?, given(LARGE)?);
        Ok(Self {
            host,
            seconds,
            versions,
            field: Field::default(),
            disk,
            nic,
            many,
            large,
        })
    }

    /// A guest with these that reads, if it can, and ends.
    pub(super) fn guest(&self, devices: Devices) -> Guest {
        let nvme = Guest::new("nvme,poweroff");
        match devices {
            Devices::Nothing => Guest::new("poweroff"),
            Devices::Nvme => nvme.device(&self.disk),
            Devices::NvmeAndNic => nvme.device(&self.disk).device(&self.nic),
            Devices::Vectors => nvme.device(&self.many),
        }
    }

    /// Says in the report what runs here.
    pub(super) fn tell(&self, report: &mut Report) -> Result<(), NumbersError> {
        let release = self.host.shell("uname -r").at("release of the kernel")?;
        report.kernel = release.trim().to_owned();
        report.peers.clone_from(&self.versions);
        for unable in &self.field.unable {
            if !report.unable.contains(unable) {
                report.unable.push(unable.clone());
            }
        }
        let guest = self.guest(Devices::Nvme);
        let programs = self.field.able(Devices::Nvme);
        let words = |program: Program| (program, guest.argv(program).join(" "));
        report.commands = programs.into_iter().map(words).collect();
        Ok(())
    }

    /// Switches the nested host off.
    pub(super) fn leave(self) -> Result<(), NumbersError> {
        self.host.shutdown().at("power-off of the nested host")
    }
}

/// Fills memory once and gives it back. What emulates the nested host has a page
/// of its memory only from the first touch on, and whoever came first would pay.
fn touch_memory(host: &Host) -> Result<(), NumbersError> {
    const FILE: &str = "/dev/shm/fill";
    let script = format!(
        "mount -o remount,size=90% /dev/shm
         head -c {TOUCHED_MIB}M /dev/zero >{FILE}
         rm {FILE}"
    );
    let step = "a first touch of the nested host's memory";
    let touched = host.run(&Step::shell(script).limit(STEP_LIMIT)).at(step)?;
    touched.expect_success().at(step)?;
    Ok(())
}

/// Puts this very program into the nested host.
fn install_probe(host: &Host) -> Result<(), NumbersError> {
    let own = env::current_exe().map_err(NumbersError::file("/proc/self/exe"))?;
    let to = host.work_directory().join("numbers");
    fs::copy(&own, &to).map_err(NumbersError::file(&to))?;
    host.shell(&format!("cp /run/lab/work/numbers {PROBE}"))
        .at("a copy of this program for the nested host")?;
    Ok(())
}

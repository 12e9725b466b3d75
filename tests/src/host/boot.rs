use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::pci::PciAddress;

use super::qemu::Qemu;
use super::session::Session;
use super::{Host, HostError, RunDirectory, Shared, Step};
use crate::cache::Cache;
use crate::machine::{DeviceModel, Location, Machine, QemuFiles, command_line};

/// The files that a nested host is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The program that emulates it.
    pub qemu: String,
    /// Its kernel (bzImage).
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
    /// What stands in [`super::INSTALL_DIRECTORY`], by name; `lab-agent` must be among it.
    pub install: BTreeMap<String, PathBuf>,
}

impl Host {
    /// Boots `machine` and waits for its agent. Only one nested host runs at a
    /// time: waits, and says so, while another process or thread has one.
    ///
    /// # Errors
    /// [`HostError`] when the machine cannot be or does not come up in time.
    pub fn boot(cache: &Cache, parts: &Parts, machine: &Machine) -> Result<Self, HostError> {
        let lock = cache.lock("machine.lock", "only one nested host may run at a time")?;
        let path = cache.path("run");
        let directory =
            RunDirectory::create(path.clone()).map_err(HostError::io("prepare", &path))?;
        let files = QemuFiles {
            kernel: parts.kernel.clone(),
            initrd: parts.initrd.clone(),
            work: directory.work(),
            console: directory.path().join("console.log"),
            disks: make_disks(machine, directory.path())?,
        };
        install(parts, &directory.install())?;
        let plan = command_line(machine, &files)?;

        let messages = directory.path().join("qemu.log");
        let (ours, theirs) =
            UnixStream::pair().map_err(HostError::io("make a socket in", directory.path()))?;
        let begun = Instant::now();
        let qemu = Qemu::start(&parts.qemu, &plan.args, theirs, &messages)
            .map_err(HostError::io("start", Path::new(&parts.qemu)))?;
        let session =
            Session::start(ours).map_err(HostError::io("read a socket in", directory.path()))?;
        let shared = Arc::new(Shared {
            session,
            qemu: Mutex::new(qemu),
            machine: machine.name().to_owned(),
            console: files.console,
            messages,
        });
        let limit = machine.boot_time_limit();
        let ready_ns = shared
            .session
            .wait_ready(begun + limit)
            .map_err(|waited| shared.give_up(waited, "boot", limit, None))?;
        let mut host = Self {
            shared,
            addresses: BTreeMap::new(),
            ready_ns,
            directory,
            _lock: lock,
        };
        host.addresses = host.find_devices(&plan.locations)?;
        Ok(host)
    }

    /// Asks sysfs for the addresses of the named devices.
    fn find_devices(
        &self,
        locations: &BTreeMap<String, Location>,
    ) -> Result<BTreeMap<String, PciAddress>, HostError> {
        if locations.is_empty() {
            return Ok(BTreeMap::new());
        }
        let listing = self.run(&Step::shell("readlink -f /sys/bus/pci/devices/*"))?;
        let listing = listing.expect_success()?.stdout;
        let mut addresses = BTreeMap::new();
        for (name, location) in locations {
            let Some(path) = listing.lines().find(|path| location.is(path)) else {
                continue;
            };
            let text = path.rsplit('/').next().unwrap_or_default();
            let address = text.parse().map_err(|_| HostError::Unexpected {
                text: text.to_owned(),
                expected: "a PCI address",
            })?;
            addresses.insert(name.clone(), address);
        }
        Ok(addresses)
    }
}

fn make_disks(machine: &Machine, directory: &Path) -> Result<BTreeMap<String, PathBuf>, HostError> {
    let mut disks = BTreeMap::new();
    for device in machine.slots().iter().flat_map(|slot| slot.devices()) {
        if let DeviceModel::Nvme(disk) = &device.model {
            let path = directory.join(format!("{}.img", device.name));
            disks.insert(device.name.clone(), disk.materialize(&path)?);
        }
    }
    Ok(disks)
}

fn install(parts: &Parts, directory: &Path) -> Result<(), HostError> {
    for (name, source) in &parts.install {
        fs::copy(source, directory.join(name)).map_err(HostError::io("copy", source))?;
    }
    Ok(())
}

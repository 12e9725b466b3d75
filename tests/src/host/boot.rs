use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::pci::PciAddress;

use super::qemu::Qemu;
use super::qmp::Qmp;
use super::session::Session;
use super::{Host, HostError, RunDirectory, Shared, Step};
use crate::cache::Cache;
use crate::machine::{Machine, QemuFiles, command_line};

/// The files that a nested host is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The program that emulates it.
    pub qemu: PathBuf,
    /// Its kernel (bzImage).
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: Vec<u8>,
    /// What stands in [`INSTALL_DIRECTORY`](super::INSTALL_DIRECTORY), by name or
    /// by path below it; the agent must be among it.
    pub install: BTreeMap<String, Content>,
}

/// What a file holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// The same as this file, which is copied at each boot.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Content {
    fn write(&self, to: &Path) -> Result<(), HostError> {
        match self {
            Self::File(from) => {
                fs::copy(from, to).map_err(HostError::io("copy", from))?;
            }
            Self::Bytes(bytes) => fs::write(to, bytes).map_err(HostError::io("write", to))?,
        }
        Ok(())
    }
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
            initrd: directory.path().join("initrd.cpio"),
            work: directory.work(),
            console: directory.path().join("console.log"),
            disks: make_disks(machine, directory.path())?,
        };
        fs::write(&files.initrd, &parts.initrd).map_err(HostError::io("write", &files.initrd))?;
        for (name, content) in &parts.install {
            let path = directory.install().join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(HostError::io("make", parent))?;
            }
            content.write(&path)?;
        }
        let plan = command_line(machine, &files)?;

        let messages = directory.path().join("qemu.log");
        let socket =
            || UnixStream::pair().map_err(HostError::io("make a socket in", directory.path()));
        let (ours, theirs) = socket()?;
        let (monitor, qemus) = socket()?;
        let begun = Instant::now();
        let qemu = Qemu::start(&parts.qemu, &plan.args, theirs, qemus, &messages)
            .map_err(HostError::io("start", &parts.qemu))?;
        let session =
            Session::start(ours).map_err(HostError::io("read a socket in", directory.path()))?;
        let shared = Arc::new(Shared {
            session,
            qemu: Mutex::new(qemu),
            qmp: Mutex::new(Qmp::new(monitor)),
            machine: machine.name().to_owned(),
            console: files.console,
            messages,
        });
        let limit = machine.boot_time_limit();
        let ready_ns = shared
            .session
            .wait_ready(begun + limit)
            .map_err(|waited| shared.give_up(waited, "boot", limit, None))?;
        let host = Self {
            shared,
            locations: plan.locations,
            absent: plan.absent,
            addresses: Mutex::default(),
            ready_ns,
            directory,
            _lock: lock,
        };
        host.find_devices()?;
        Ok(host)
    }

    /// Asks sysfs for the addresses of the named devices.
    pub(super) fn find_devices(&self) -> Result<(), HostError> {
        if self.locations.is_empty() {
            return Ok(());
        }
        let listing = self.run(&Step::shell("readlink -f /sys/bus/pci/devices/*"))?;
        let listing = listing.expect_success()?.stdout;
        let mut addresses = self.known();
        for (name, location) in &self.locations {
            let Some(path) = listing.lines().find(|path| location.is(path)) else {
                continue;
            };
            let text = path.rsplit('/').next().unwrap_or_default();
            let address = parse_address(text)?;
            addresses.insert(name.clone(), address);
        }
        Ok(())
    }
}

/// An address as sysfs writes it.
pub(super) fn parse_address(text: &str) -> Result<PciAddress, HostError> {
    text.parse().map_err(|_| HostError::Unexpected {
        text: text.to_owned(),
        expected: "a PCI address",
    })
}

fn make_disks(machine: &Machine, directory: &Path) -> Result<BTreeMap<String, PathBuf>, HostError> {
    let mut disks = BTreeMap::new();
    for device in machine.slots().iter().flat_map(|slot| slot.devices()) {
        if let Some(disk) = device.disk() {
            let path = directory.join(format!("{}.img", device.name));
            disks.insert(device.name.clone(), disk.materialize(&path)?);
        }
    }
    Ok(disks)
}

//! What a scenario says about the machine that it wants, and QEMU's command
//! line for it.

mod disk;
mod location;
mod qemu;
mod topology;

pub use disk::{Disk, DiskError};
pub use location::Location;
pub use qemu::{QemuError, QemuFiles, QemuPlan, command_line, process_name};
pub use topology::{Device, DeviceModel, Slot};

use std::time::Duration;

use crate::kernel::KernelVersion;

/// The IOMMU (Intel VT-d, emulated) of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iommu {
    /// Width of an IOVA in bits: 39 (as QEMU's default) or 48.
    pub address_bits: u8,
    /// Whether interrupts are remapped. Without it the kernel's VFIO refuses
    /// to assign a device unless unsafe interrupts are allowed.
    pub interrupt_remapping: bool,
}

impl Default for Iommu {
    fn default() -> Self {
        Self {
            address_bits: 39,
            interrupt_remapping: true,
        }
    }
}

/// The machine that a scenario wants. Everything has a sensible default.
///
/// ```
/// use lab::machine::{Device, Disk, Machine, Slot};
///
/// let machine = Machine::new("two-devices")
///     .device(Device::nvme("disk", Disk::pattern(64 << 20)))
///     .slot(Slot::Port {
///         acs: true,
///         functions: vec![Device::e1000e("nic-a"), Device::e1000e("nic-b")],
///     });
/// assert_eq!(machine.slots().len(), 2);
/// ```
#[derive(Clone, Debug)]
pub struct Machine {
    name: String,
    kernel: KernelVersion,
    cpus: u8,
    memory_mib: u32,
    cmdline: Vec<String>,
    cpu_flags: Vec<String>,
    iommu: Option<Iommu>,
    slots: Vec<Slot>,
    extra: Vec<String>,
    counts_instructions: bool,
    boot_limit: Duration,
}

impl Machine {
    /// A machine with Linux 6.12, 1 CPU, 3 GiB of memory, a 39-bit IOMMU with
    /// interrupt remapping, and no device to assign. The name stands in messages.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kernel: KernelVersion::default(),
            cpus: 1,
            memory_mib: 3072,
            cmdline: Vec::new(),
            cpu_flags: Vec::new(),
            iommu: Some(Iommu::default()),
            slots: Vec::new(),
            extra: Vec::new(),
            counts_instructions: false,
            boot_limit: Duration::from_secs(60),
        }
    }

    /// The Linux of the nested host; guests run the default one on any host. One
    /// that is not in the cache is built when the machine is booted.
    pub fn kernel(mut self, version: KernelVersion) -> Self {
        self.kernel = version;
        self
    }

    /// The number of CPUs. More than one needs a reason: see the crate's page.
    ///
    /// On two, a guest has no more CPUs than that: QEMU 7.2, which then emulates with
    /// two threads, corrupts hosts and guests whose vCPUs take turns. Of guests with
    /// eight, one in ten crashed or took the host along; of those with two, none of 80;
    /// of eight on a host with one, none of 60. Of guests with two whose memory map
    /// changes all the time, 4 of 27 crashed or took the host along on two.
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// Memory in MiB.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds words to the kernel command line of the nested host.
    pub fn cmdline(mut self, words: impl Into<String>) -> Self {
        self.cmdline.push(words.into());
        self
    }

    /// Adds a flag to QEMU's `-cpu`, for example `-erms`.
    pub fn cpu_flag(mut self, flag: impl Into<String>) -> Self {
        self.cpu_flags.push(flag.into());
        self
    }

    /// The IOMMU, or none: then no device has an IOMMU group.
    pub fn iommu(mut self, iommu: Option<Iommu>) -> Self {
        self.iommu = iommu;
        self
    }

    /// Adds a device below a root port of its own: it gets a group of its own.
    pub fn device(self, device: Device) -> Self {
        self.slot(Slot::Port {
            acs: true,
            functions: vec![device],
        })
    }

    /// Adds a slot of the root bus and what hangs below it.
    pub fn slot(mut self, slot: Slot) -> Self {
        self.slots.push(slot);
        self
    }

    /// Adds arguments to QEMU's command line, as they are.
    pub fn qemu_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.extra.extend(args.into_iter().map(Into::into));
        self
    }

    /// Has time go by instructions: each takes a nanosecond, and where all CPUs
    /// wait for nothing but time, it passes at once. What only computes takes the
    /// same time in each run, however busy the machine is; what waits for a file
    /// or for another program does not.
    pub fn counting_instructions(mut self) -> Self {
        self.counts_instructions = true;
        self
    }

    /// The longest wait for the agent after QEMU's start (default 60 s).
    pub fn boot_limit(mut self, limit: Duration) -> Self {
        self.boot_limit = limit;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The slots in the order they were added.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn kernel_version(&self) -> KernelVersion {
        self.kernel
    }

    pub(crate) fn boot_time_limit(&self) -> Duration {
        self.boot_limit
    }
}

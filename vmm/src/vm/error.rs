use std::io;

use devices::acpi;
use devices::bus::BusError;
use passthrough::binding::GuardError;
use passthrough::host::SurveyError;
use passthrough::plan::Plan;
use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::arrival::ArrivalError;
use crate::boot::BootError;
use crate::config::{ConfigError, MemorySize};
use crate::dma::DmaError;
use crate::event_loop::LoopError;
use crate::interrupts::RouteError;
use crate::kvm::KvmError;
use crate::lines::LineError;
use crate::memory::{LayoutError, NumaError, RamError, SlotError};
use crate::platform::PlatformError;
use crate::rom::RomError;
use crate::vcpu::{SetupError, StartError};

/// Why a VM could not be built or run.
#[derive(Debug, Error)]
pub enum VmError {
    /// The configuration can't be right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// `/dev/kvm`.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host, or its node, has not that much memory.
    #[error(
        "guest memory of {asked} is more than {giver} can give: it has {total}, of which {available} are free; give a smaller --memory"
    )]
    HostMemory {
        /// For the guest.
        asked: MemorySize,
        /// Who was to give it.
        giver: String,
        /// All of the host's, for reading.
        total: String,
        /// What is free, for reading.
        available: String,
    },
    /// `/proc/meminfo`.
    #[error("cannot find out how much memory the host has")]
    Meminfo(#[source] io::Error),
    /// The host could not be surveyed.
    #[error("cannot survey the host's devices")]
    Survey(#[from] SurveyError),
    /// Something must be mended before the devices can be assigned.
    #[error("the devices can't be assigned:\n{0}")]
    NoGo(Box<Plan>),
    /// The same for a guest without devices.
    #[error("the guest can't be started:\n{0}")]
    NoStart(Box<Plan>),
    /// A device could not take its place in the guest.
    #[error(transparent)]
    Arrival(#[from] ArrivalError),
    /// Nobody would notice when a device can't stay with the guest.
    #[error(
        "cannot mind the groups of the devices; --on-viability-loss warn runs the VM all the same"
    )]
    Guard(#[from] GuardError),
    /// The guest's address space.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Guest RAM from one NUMA node.
    #[error(transparent)]
    Numa(#[from] NumaError),
    /// Guest RAM could not be mapped for devices before the start.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// Guest RAM in KVM.
    #[error("cannot give the guest its RAM")]
    Slot(#[from] SlotError),
    /// Interrupt routing.
    #[error(transparent)]
    Interrupts(#[from] RouteError),
    /// The guest's devices.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Interrupt lines.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// An option ROM.
    #[error(transparent)]
    Rom(#[from] RomError),
    /// ACPI tables.
    #[error("cannot build the guest's ACPI tables")]
    Acpi(#[from] acpi::AcpiError),
    /// ACPI tables did not fit.
    #[error("cannot write the ACPI tables into guest memory")]
    WriteAcpi(#[source] GuestMemoryError),
    /// A vCPU's state.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A vCPU's thread.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The event loop.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// A thread or descriptor for the VM itself.
    #[error("cannot get a thread or descriptor for the VM")]
    Resource(#[source] io::Error),
    /// The terminal.
    #[error("cannot put the terminal into raw mode; try --serial off")]
    Terminal(#[source] io::Error),
    /// Signal handlers.
    #[error("cannot take over the signals that end the VM")]
    Signals(#[source] io::Error),
}

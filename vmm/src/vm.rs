//! Builds and runs a VM: the only place where the floors are wired.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::available_parallelism;

use devices::acpi;
use devices::bus::{Bus, BusError};
use devices::legacy::Serial;
use devices::pci::{FunctionHandle, HostBridge, PciAddress, RootComplex, TopologyError};
use kvm_ioctls::VcpuFd;
use passthrough::host::{Host, Survey, SurveyError};
use passthrough::plan::Plan;
use passthrough::ports::HostMemory;
use passthrough::{AssignError, AssignedDevice, OpenError, Opened};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::boot::{BootError, BootSource};
use crate::config::{ConfigError, Idle, MemorySize, VmConfig};
use crate::dma::DmaMap;
use crate::event_loop::{self, Console, LoopError, RawTerminal, Subscriber};
use crate::interrupts::{RouteError, Router};
use crate::kvm::{Hypervisor, KvmError};
use crate::lines::{FunctionInterrupts, LineError, Lines};
use crate::memory::{
    GuestLayout, GuestRam, HostMeminfo, KvmSlots, LayoutError, RamError, Slot, SlotError,
};
use crate::outcome::{EndReport, Outcome};
use crate::platform::{self, PlacementError, PlatformError};
use crate::request::request;
use crate::stats::StatsHandle;
use crate::sys;
use crate::timeline::{Milestone, Timeline};
use crate::vcpu::{self, Buses, SetupError, StartError, VcpuObserver, VcpuThreads};
use crate::wiring::Wiring;

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
    /// The host has not that much memory.
    #[error(
        "guest memory of {asked} is more than the host can give: it has {total}, of which {available} are free; give a smaller --memory"
    )]
    HostMemory {
        /// For the guest.
        asked: MemorySize,
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
    /// The kernel would not hand a device over.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A device can't be shown to a guest.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// The guest's address space.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
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
    /// The guest's PCI topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// BARs.
    #[error(transparent)]
    Placement(#[from] PlacementError),
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

/// A VM, ready to run.
///
/// The order of the fields is the order of the end: vCPUs, then the buses with
/// all devices on them (which turns interrupts off and takes BARs away), then
/// the DMA map with the address space, then RAM.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    console: Option<Console>,
    serial: Arc<Serial>,
    lines: Lines,
    buses: Buses,
    dma: Option<Arc<DmaMap>>,
    _ram: Vec<Slot>,
    report: Arc<EndReport>,
    stats: StatsHandle,
}

/// What the assigned devices bring.
#[derive(Default)]
struct Assigned {
    addresses: Vec<PciAddress>,
    opened: Option<Opened>,
    dma: Option<DmaMap>,
}

impl Vm {
    /// Builds the VM: checks everything that can be checked, opens the
    /// devices, loads the kernel. Nothing runs yet.
    ///
    /// # Errors
    /// [`VmError`]; the host is then as it was.
    pub fn build(config: &VmConfig, timeline: Timeline) -> Result<Self, VmError> {
        config.check()?;
        let kernel = config.kernel.clone();
        let source = BootSource::open(kernel, config.initrd.clone(), &config.cmdline)?;
        check_host_memory(config)?;
        let addresses = plan(config)?;
        timeline.mark(Milestone::Plan);

        let hypervisor = Hypervisor::new()?;
        let memory = config.memory.bytes();
        let address_bits = hypervisor.address_bits();
        let layout = GuestLayout::new(memory, address_bits, None)?;
        source.check_fit(layout.ram[0])?;
        let ram = GuestRam::new(&layout.ram)?;
        let assigned = open(&hypervisor, addresses, &ram, &timeline)?;
        let layout = match &assigned.opened {
            // RAM stays where it is; the IOMMU may forbid it, or narrow the windows.
            Some(opened) => {
                let ranges = &opened.space.limits().ranges;
                GuestLayout::new(memory, address_bits, Some(ranges))?
            }
            None => layout,
        };
        timeline.mark(Milestone::DevicesOpen);
        let machine = platform::describe(config.cpus, &layout);
        let tables = machine.build(GuestLayout::ACPI.start)?;
        let entry = source.load(&ram, &layout, tables.rsdp)?;
        ram.view()
            .write_slice(&tables.bytes, GuestAddress(tables.base))
            .map_err(VmError::WriteAcpi)?;
        timeline.mark(Milestone::KernelLoaded);

        let report = EndReport::new(timeline).map_err(VmError::Resource)?;
        let slots = KvmSlots::new(Arc::clone(hypervisor.vm()));
        let ram_slots = ram
            .blocks()
            .iter()
            .map(|block| slots.map(block.start(), Arc::clone(block) as Arc<dyn HostMemory>))
            .collect::<Result<Vec<_>, _>>()?;
        let router = Router::new(Arc::clone(hypervisor.vm()))?;
        let lines = Lines::new(Arc::clone(hypervisor.vm()), config.acknowledgement)?;
        let buses = Buses {
            mmio: Arc::new(Bus::new()),
            pio: Arc::new(Bus::new()),
        };
        let (serial, console) = platform::add_legacy(&buses, &router, &config.serial, &report)?;
        let dma = assigned.dma.map(Arc::new);
        let wiring = Wiring::new(&buses.mmio, &buses.pio, dma.clone(), Arc::clone(&report));
        let root = Arc::new(RootComplex::new(wiring));
        let host_side = HostSide {
            router: router.clone(),
            lines: lines.clone(),
            slots,
        };
        let devices = add_functions(&root, assigned.addresses, assigned.opened, &host_side)?;
        platform::place_bars(&root, &layout, sys::page_size())?;
        platform::add_config_access(&buses, &root, &layout)?;

        if config.cpu.idle == Idle::Guest {
            hypervisor.idle_in_guest()?;
        }
        let vcpus = hypervisor.vcpus(config.cpus)?;
        if let Some(first) = vcpus.first() {
            vcpu::set_up(first, &ram, entry)?;
        }
        Ok(Self {
            vcpus,
            console,
            serial,
            lines,
            buses,
            dma,
            _ram: ram_slots,
            report,
            stats: StatsHandle::new(router, &devices),
        })
    }

    /// Where the VM's end can be asked for, and is reported.
    pub fn report(&self) -> Arc<EndReport> {
        Arc::clone(&self.report)
    }

    /// Where the VM's numbers can be read, also after its end.
    pub fn stats(&self) -> StatsHandle {
        self.stats.clone()
    }

    /// Runs the guest to its end, with `subscribers` in the event loop too.
    /// Then everything is given back to the host.
    ///
    /// # Errors
    /// [`VmError`] when vCPUs or the event loop can't be started.
    pub fn run(mut self, mut subscribers: Vec<Subscriber>) -> Result<Outcome, VmError> {
        let _raw = match self.console.take() {
            Some(console) => {
                subscribers.push(Box::new(console));
                RawTerminal::enter().map_err(VmError::Terminal)?
            }
            None => None,
        };
        if let Some(dma) = &self.dma
            && available_parallelism().is_ok_and(|cpus| cpus.get() == 1)
        {
            dma.rest_until_needed();
        }
        subscribers.extend(self.lines.watch());
        let observer = Arc::clone(&self.report) as Arc<dyn VcpuObserver>;
        let vcpus = std::mem::take(&mut self.vcpus);
        let mut threads = VcpuThreads::start(vcpus, &self.buses, &observer)?;
        let outcome = event_loop::run(&self.report, subscribers);
        if let Some(dma) = &self.dma {
            // A vCPU may be waiting for it.
            dma.cancel();
        }
        threads.stop();
        self.serial.flush();
        self.stats.end();
        Ok(outcome?)
    }
}

/// Refuses a guest that the host has not the memory for. With devices all of
/// it is pinned, so it must be free now.
fn check_host_memory(config: &VmConfig) -> Result<(), VmError> {
    let host = HostMeminfo::read().map_err(VmError::Meminfo)?;
    let limit = if config.devices.is_empty() {
        host.total
    } else {
        host.available
    };
    if config.memory.bytes() <= limit {
        return Ok(());
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    Err(VmError::HostMemory {
        asked: config.memory,
        total: mib(host.total),
        available: mib(host.available),
    })
}

/// Checks the devices before anything of them is opened.
fn plan(config: &VmConfig) -> Result<Vec<PciAddress>, VmError> {
    if config.devices.is_empty() {
        return Ok(Vec::new());
    }
    let survey = Survey::read(&Host::system())?;
    let request = request(&config.addresses(), Some(config.memory), &config.consent);
    let plan = Plan::make(&survey, &request);
    if !plan.is_go() {
        return Err(VmError::NoGo(Box::new(plan)));
    }
    for line in plan.to_string().lines() {
        log::info!("{line}");
    }
    Ok(plan.devices)
}

/// Opens the devices, while RAM is being populated: the kernel resets each
/// device at its first open, which takes a tenth of a second of waiting.
fn open(
    hypervisor: &Hypervisor,
    addresses: Vec<PciAddress>,
    ram: &GuestRam,
    timeline: &Timeline,
) -> Result<Assigned, VmError> {
    if addresses.is_empty() {
        return Ok(Assigned::default());
    }
    let dma = DmaMap::start(ram, timeline.clone()).map_err(VmError::Resource)?;
    let kvm_vfio = hypervisor.vfio_device()?;
    let opened = passthrough::open(&addresses, Some(kvm_vfio))?;
    dma.hand_over(Arc::clone(&opened.space));
    Ok(Assigned {
        addresses,
        opened: Some(opened),
        dma: Some(dma),
    })
}

/// What assigned devices get their interrupts and mappings from.
struct HostSide {
    router: Router,
    lines: Lines,
    slots: KvmSlots,
}

/// The host bridge at 00.0, then each assigned device in a slot of its own.
/// Answers those.
fn add_functions(
    root: &RootComplex,
    addresses: Vec<PciAddress>,
    opened: Option<Opened>,
    host_side: &HostSide,
) -> Result<Vec<Arc<Mutex<AssignedDevice>>>, VmError> {
    let slot = |device| PciAddress::new(0, 0, device, 0);
    let first = PciAddress::from_requester_id(0);
    root.add(first, Arc::new(Mutex::new(HostBridge::new())))?;
    let mut functions = Vec::new();
    let Some(opened) = opened else {
        return Ok(functions);
    };
    for ((host, backend), device) in addresses.into_iter().zip(opened.devices).zip(1u8..) {
        let address = slot(device).map_err(|_| PlacementError::TooManyDevices)?;
        let interrupts = FunctionInterrupts::new(
            host_side.router.clone(),
            host_side.lines.clone(),
            root,
            platform::PINS,
            address,
        );
        let function = AssignedDevice::new(
            host,
            backend,
            Arc::new(interrupts),
            Arc::new(host_side.slots.clone()),
            Arc::clone(&opened.space),
        )?;
        log::info!("host device {host} is guest device {address}");
        let function = Arc::new(Mutex::new(function));
        root.add(address, Arc::clone(&function) as FunctionHandle)?;
        functions.push(function);
    }
    Ok(functions)
}

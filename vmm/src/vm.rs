//! Builds and runs a VM: the only place where the floors are wired.

use std::io;
use std::sync::Arc;
use std::thread::available_parallelism;

use devices::acpi;
use devices::bus::{Bus, BusError};
use devices::legacy::Serial;
use devices::pci::{PciAddress, RootComplex};
use kvm_ioctls::VcpuFd;
use passthrough::binding::{Binder, DeviceName, Guard, GuardError, Holds};
use passthrough::host::{Host, Survey, SurveyError};
use passthrough::iommu::IovaRange;
use passthrough::plan::{Backend, Plan};
use passthrough::ports::HostMemory;
use passthrough::{DeviceRequest, OpenError, OpenFiles, OpenRequest, RomSource};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::boot::{BootError, BootSource};
use crate::config::{ConfigError, Idle, MemorySize, OnViabilityLoss, VmConfig};
use crate::dma::DmaMap;
use crate::event_loop::{self, Console, GuardWatch, LoopError, RawTerminal, Subscriber};
use crate::interrupts::{RouteError, Router};
use crate::kvm::{Hypervisor, KvmError};
use crate::lines::{LineError, Lines};
use crate::memory::{
    GuestLayout, GuestRam, HostMeminfo, KvmSlots, LayoutError, RamError, Slot, SlotError,
};
use crate::outcome::{Chain, EndReport, Outcome};
use crate::platform::{self, PlacementError, PlatformError};
use crate::request::request;
use crate::rom::{self, RomError};
use crate::stats::StatsHandle;
use crate::sys;
use crate::timeline::{Milestone, Timeline};
use crate::topology::{Ports, Topology, TopologyError};
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
/// the DMA map with the address space, then RAM. When the groups are free, what
/// joined them meanwhile goes back to the host.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    console: Option<Console>,
    guard: Option<GuardWatch>,
    serial: Arc<Serial>,
    lines: Lines,
    buses: Buses,
    dma: Option<Arc<DmaMap>>,
    _ram: Vec<Slot>,
    _holds: Option<Holds>,
    report: Arc<EndReport>,
    stats: StatsHandle,
}

/// What the assigned devices bring.
#[derive(Default)]
struct Assigned {
    topology: Topology,
    ranges: Option<Vec<IovaRange>>,
    dma: Option<DmaMap>,
}

impl Vm {
    /// Builds the VM: checks everything that can be checked, opens the
    /// devices, loads the kernel. Nothing runs yet. `files` need not be opened
    /// for that: somebody has.
    ///
    /// # Errors
    /// [`VmError`]; the host is then as it was.
    pub fn build(config: &VmConfig, files: OpenFiles, timeline: Timeline) -> Result<Self, VmError> {
        config.check()?;
        let kernel = config.kernel.clone();
        let source = BootSource::open(kernel, config.initrd.clone(), &config.cmdline)?;
        check_host_memory(config)?;
        let plan = plan(config, &files)?;
        let devices = Devices::new(config, plan, files)?;
        timeline.mark(Milestone::Plan);

        let hypervisor = Hypervisor::new()?;
        let memory = config.memory.bytes();
        let address_bits = hypervisor.address_bits();
        let layout = GuestLayout::new(memory, address_bits, None)?;
        source.check_fit(layout.ram[0])?;
        let ram = GuestRam::new(&layout.ram)?;
        let guard = guard(&devices.addresses, config.on_viability_loss)?;
        let holds = guard.as_ref().map(Guard::holds);
        let assigned = open(&hypervisor, devices, &ram, &timeline)?;
        // RAM stays where it is; the IOMMU may forbid it, or narrow the windows.
        let layout = match &assigned.ranges {
            Some(ranges) => GuestLayout::new(memory, address_bits, Some(ranges))?,
            None => layout,
        };
        timeline.mark(Milestone::DevicesOpen);
        let last_bus = assigned.topology.last_bus();
        let machine = platform::describe(config.cpus, last_bus, &layout);
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
        for range in platform::reserved(&layout) {
            slots.reserve(range);
        }
        let ranges = Arc::new(slots.clone());
        let (mmio, pio) = (&buses.mmio, &buses.pio);
        let wiring = Wiring::new(mmio, pio, ranges, dma.clone(), Arc::clone(&report));
        let root = Arc::new(RootComplex::new(wiring));
        let ports = Ports {
            router: Arc::new(router.clone()),
            lines: lines.clone(),
            mapper: Arc::new(slots),
        };
        let removable = assigned.topology.build(&root, &ports)?;
        let stats = StatsHandle::new(router, removable.iter().map(|device| &device.function));
        let policy = config.on_viability_loss;
        let guard = guard.map(|guard| {
            let (root, report) = (Arc::clone(&root), Arc::clone(&report));
            GuardWatch::new(guard, policy, removable, root, report)
        });
        platform::place_bars(&root, &layout, sys::page_size())?;
        platform::add_config_access(&buses, &root, last_bus, &layout)?;

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
            guard,
            serial,
            lines,
            buses,
            dma,
            _ram: ram_slots,
            _holds: holds,
            report,
            stats,
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
        if let Some(guard) = self.guard.take() {
            subscribers.push(Box::new(guard));
        }
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

/// The devices to assign, checked.
#[derive(Default)]
struct Devices {
    /// On the host.
    addresses: Vec<PciAddress>,
    /// Of each, what the user said of it.
    requests: Vec<DeviceRequest>,
    roms: Vec<RomSource>,
    backend: Backend,
    files: OpenFiles,
}

impl Devices {
    fn new(config: &VmConfig, plan: Option<Plan>, files: OpenFiles) -> Result<Self, RomError> {
        let mut devices = Self {
            files,
            ..Self::default()
        };
        let Some(plan) = plan else {
            return Ok(devices);
        };
        devices.backend = plan.backend;
        for address in plan.devices {
            let mut configured = config.devices.iter();
            let device = configured.find(|device| device.host.trim().parse() == Ok(address));
            devices.addresses.push(address);
            devices.requests.push(DeviceRequest {
                device: address,
                token: device.and_then(|device| device.vf_token),
            });
            let rom = device.map_or(Ok(RomSource::Device), |device| rom::load(&device.rom))?;
            devices.roms.push(rom);
        }
        Ok(devices)
    }
}

/// Checks the devices before anything of them is opened.
fn plan(config: &VmConfig, files: &OpenFiles) -> Result<Option<Plan>, VmError> {
    if config.devices.is_empty() {
        return Ok(None);
    }
    let survey = Survey::read(&Host::system())?;
    let mut request = request(&config.addresses(), Some(config.memory), &config.consent);
    request.backend = config.iommu.0;
    request.given = files.names();
    let plan = Plan::make(&survey, &request);
    if !plan.is_go() {
        return Err(VmError::NoGo(Box::new(plan)));
    }
    for line in plan.to_string().lines() {
        log::info!("{line}");
    }
    Ok(Some(plan))
}

/// Opens the devices, while RAM is being populated: the kernel resets each
/// device at its first open, which takes a tenth of a second of waiting.
fn open(
    hypervisor: &Hypervisor,
    devices: Devices,
    ram: &GuestRam,
    timeline: &Timeline,
) -> Result<Assigned, VmError> {
    if devices.addresses.is_empty() {
        return Ok(Assigned::default());
    }
    let dma = DmaMap::start(ram, timeline.clone()).map_err(VmError::Resource)?;
    let opened = passthrough::open(OpenRequest {
        devices: devices.requests,
        backend: devices.backend,
        files: devices.files,
        kvm_vfio_device: Some(hypervisor.vfio_device()?),
    })?;
    log::info!("the devices were taken by {}", opened.interface);
    dma.hand_over(Arc::clone(&opened.space));
    Ok(Assigned {
        ranges: Some(opened.space.limits().ranges.clone()),
        topology: Topology::new(devices.addresses, devices.roms, opened)?,
        dma: Some(dma),
    })
}

/// Minds the groups of the devices from now on.
fn guard(devices: &[PciAddress], policy: OnViabilityLoss) -> Result<Option<Guard>, VmError> {
    if devices.is_empty() {
        return Ok(None);
    }
    let names: Vec<_> = devices.iter().copied().map(DeviceName::pci).collect();
    match Guard::new(Binder::system(), &names) {
        Ok(guard) => Ok(Some(guard)),
        Err(error) if policy == OnViabilityLoss::Warn => {
            let error = Chain(&error);
            log::warn!("nobody minds the groups of the devices: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

//! Builds and runs a VM: the only place where the floors are wired.

mod assigned;
mod error;

use std::mem::take;
use std::sync::Arc;
use std::thread::available_parallelism;

use devices::bus::Bus;
use devices::legacy::Serial;
use devices::pci::{ConfigTarget, PciAddress, RootComplex};
use kvm_ioctls::VcpuFd;
use passthrough::OpenFiles;
use passthrough::binding::{Binder, DeviceName, Guard, Holds};
use passthrough::ports::HostMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::arrival::{Arrival, ArrivalError, Arrived, ConfigGate, Newcomers, Stand};
use crate::boot::BootSource;
use crate::config::{Idle, MapTime, OnViabilityLoss, VmConfig};
use crate::dma::{self, DmaMap};
use crate::event_loop::{Console, EventLoop, Lull, RawTerminal, Subscriber};
use crate::interrupts::Router;
use crate::kvm::Hypervisor;
use crate::lines::Lines;
use crate::mapper::GuestMapper;
use crate::memory::{Backing, GuestLayout, GuestRam, HostMeminfo, KvmSlots, Slot};
use crate::outcome::{Chain, EndReport, Outcome};
use crate::platform::{self};
use crate::stats::StatsHandle;
use crate::timeline::{Milestone, Timeline};
use crate::topology::{self, Places, Ports};
use crate::vcpu::{self, Buses, CoalescedWrites, VcpuObserver, VcpuThreads};
use crate::wiring::Wiring;
use assigned::{Coming, Devices};
pub use error::VmError;

/// A VM, ready to run.
///
/// The order of the fields is the order of the end: vCPUs, then devices that have not
/// arrived, the buses with all devices on them, then the DMA map with the address
/// space, then RAM. After a run the devices have been given back before all of that.
/// When the groups are free, what joined them meanwhile goes back to the host.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    coalesced: Option<Arc<CoalescedWrites>>,
    console: Option<Console>,
    newcomers: Option<Newcomers>,
    arrival: Arc<Arrival>,
    serial: Arc<Serial>,
    lines: Lines,
    buses: Buses,
    dma: Option<Arc<DmaMap>>,
    map: MapTime,
    _ram: Vec<Slot>,
    _holds: Option<Holds>,
    report: Arc<EndReport>,
    stats: StatsHandle,
}

impl Vm {
    /// Builds the VM: checks everything that can be checked, begins to open the
    /// devices, loads the kernel. No guest runs yet. `files` need not be opened
    /// for that: somebody has.
    ///
    /// # Errors
    /// [`VmError`]; the host is then as it was. What the kernel says of a device that is
    /// opened beside the boot is told by [`Self::run`].
    pub fn build(config: &VmConfig, files: OpenFiles, timeline: Timeline) -> Result<Self, VmError> {
        config.check()?;
        let kernel = config.kernel.clone();
        let source = BootSource::open(kernel, config.initrd.clone(), &config.cmdline)?;
        let backing = Backing::choose(&config.ram, !config.devices.is_empty())?;
        check_host_memory(config, &backing)?;
        let devices = Devices::plan(config, files)?;
        timeline.mark(Milestone::Plan);

        let hypervisor = Hypervisor::new()?;
        let memory = config.memory.bytes();
        let address_bits = hypervisor.address_bits();
        let page = config.ram.page_bytes();
        let reach = devices.reach.as_deref();
        let layout = GuestLayout::with_pages(memory, page, address_bits, reach)?;
        source.check_fit(&layout)?;
        for range in &layout.ram {
            log::info!("guest RAM at {range}: {backing}");
        }
        let ram = GuestRam::backed(&layout.ram, &backing)?;
        let guard = guard(&devices.addresses, config.on_viability_loss)?;
        let holds = guard.as_ref().map(Guard::holds);
        let threads = config.ram.prefault_threads;
        let threads = threads.map_or_else(dma::default_threads, |threads| threads.get().into());
        let mut coming = devices.open(&hypervisor, &ram, threads, config.ram.map, &timeline)?;
        let places = coming.as_ref().map(|coming| &coming.places);
        let last_bus = places.map_or(0, Places::last_bus);
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
        if config.cpu.idle == Idle::Guest {
            hypervisor.idle_in_guest()?;
        }
        let vcpus = hypervisor.vcpus(config.cpus)?;
        let first = vcpus.first();
        let coalesced = first.and_then(|first| CoalescedWrites::new(hypervisor.vm(), first));
        let coalesced = coalesced.map(|mut coalesced| {
            coalesced.post_ports(&platform::posted_ports(&serial));
            Arc::new(coalesced)
        });
        let dma = coming.as_ref().map(|coming| Arc::clone(&coming.dma));
        for range in platform::reserved(&layout) {
            slots.reserve(range);
        }
        let ranges = Arc::new(slots.clone());
        let (mmio, pio) = (&buses.mmio, &buses.pio);
        let wiring = Wiring::new(mmio, pio, ranges, dma.clone(), Arc::clone(&report));
        let root = Arc::new(RootComplex::new(wiring));
        topology::add_host_bridge(&root).map_err(ArrivalError::from)?;
        let arrival = Arrival::new();
        let answers = coming.as_mut().map(|coming| take(&mut coming.answers));
        let answers = answers.unwrap_or_default();
        let gate = ConfigGate::new(Arc::clone(&root), Arc::clone(&arrival), answers);
        let gate: Arc<dyn ConfigTarget> = Arc::new(gate);
        platform::add_config_access(&buses, &gate, last_bus, &layout)?;
        let stats = StatsHandle::new(router.clone());
        let newcomers = coming.map(|coming| {
            let stand = Stand {
                root,
                ports: Ports {
                    router: Arc::new(router),
                    lines: lines.clone(),
                    mapper: Arc::new(GuestMapper::new(slots, coalesced.clone())),
                },
                layout,
                stats: stats.clone(),
                guard,
                policy: config.on_viability_loss,
                report: Arc::clone(&report),
            };
            let Coming {
                opening,
                places,
                roms,
                ..
            } = coming;
            Newcomers::new(Arc::clone(&arrival), opening, places, roms, stand)
        });

        if let Some(first) = vcpus.first() {
            vcpu::set_up(first, &ram, entry)?;
        }
        Ok(Self {
            vcpus,
            coalesced,
            console,
            newcomers,
            arrival,
            serial,
            lines,
            buses,
            dma,
            map: config.ram.map,
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
    /// [`VmError`] when vCPUs or the event loop can't be started, or a device could not
    /// be opened beside the boot.
    pub fn run(mut self, subscribers: Vec<Subscriber>) -> Result<Outcome, VmError> {
        let outcome = self.run_to_end(subscribers);
        self.stats.end();
        if let Some(Arrived { functions, space }) = self.arrival.take() {
            passthrough::give_back(functions, space);
        }
        match self.arrival.take_failure() {
            Some(error) => Err(error.into()),
            None => outcome,
        }
    }

    /// Until nothing of the guest runs any more.
    fn run_to_end(&mut self, mut subscribers: Vec<Subscriber>) -> Result<Outcome, VmError> {
        let _raw = match self.console.take() {
            Some(console) => {
                subscribers.push(Box::new(console));
                RawTerminal::enter().map_err(VmError::Terminal)?
            }
            None => None,
        };
        if let Some(newcomers) = self.newcomers.take() {
            subscribers.push(Box::new(newcomers));
        }
        subscribers.extend(self.lines.watch());
        if let Some(writes) = self.coalesced.clone() {
            subscribers.push(Box::new(Lull::new(writes)));
        }
        let mut events = EventLoop::new(&self.report, subscribers)?;
        if let Some(dma) = &self.dma {
            match self.map {
                MapTime::BesideBoot => {
                    if available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
                        dma.rest_until_needed();
                    }
                }
                MapTime::BeforeBoot => {
                    let tell = || dma.tell_progress();
                    if let Some(outcome) = events.run_until(dma.ended(), dma::SLOW, tell)? {
                        return Ok(outcome);
                    }
                    dma.wait()?;
                }
            }
        }
        let observer = Arc::clone(&self.report) as Arc<dyn VcpuObserver>;
        let vcpus = take(&mut self.vcpus);
        let mut threads =
            VcpuThreads::start(vcpus, &self.buses, self.coalesced.as_ref(), &observer)?;
        let outcome = events.run();
        drop(events);
        // A vCPU may be waiting for one or the other.
        self.arrival.give_up();
        if let Some(dma) = &self.dma {
            dma.cancel();
        }
        threads.stop();
        self.serial.flush();
        Ok(outcome?)
    }
}

/// Refuses a guest that the host, or the node it is bound to, has not the
/// memory for. With devices all of it is pinned, so it must be free now. Pools
/// of huge pages are no part of what is free: the plan looks at them.
fn check_host_memory(config: &VmConfig, backing: &Backing) -> Result<(), VmError> {
    if let Some(page) = config.ram.pages {
        return match backing.node {
            Some(node) => Ok(node.check_pool(config.memory.bytes(), page)?),
            None => Ok(()),
        };
    }
    let (host, giver) = match backing.node {
        Some(node) => (node.meminfo()?, format!("NUMA node {}", node.number())),
        None => {
            let host = HostMeminfo::read().map_err(VmError::Meminfo)?;
            (host, "the host".to_owned())
        }
    };
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
        giver,
        total: mib(host.total),
        available: mib(host.available),
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

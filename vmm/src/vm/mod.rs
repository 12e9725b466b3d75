//! Builds and runs a VM: the only place where the floors are wired.

mod assigned;
mod error;

use std::sync::Arc;
use std::thread::available_parallelism;

use devices::bus::Bus;
use devices::legacy::Serial;
use devices::pci::{PciAddress, RootComplex};
use kvm_ioctls::VcpuFd;
use passthrough::OpenFiles;
use passthrough::binding::{Binder, DeviceName, Guard, Holds};
use passthrough::ports::HostMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::BootSource;
use crate::config::{Idle, MapTime, OnViabilityLoss, VmConfig};
use crate::dma::{self, DmaMap};
use crate::event_loop::{Console, EventLoop, GuardWatch, Lull, RawTerminal, Subscriber};
use crate::interrupts::Router;
use crate::kvm::Hypervisor;
use crate::lines::Lines;
use crate::mapper::GuestMapper;
use crate::memory::{Backing, GuestLayout, GuestRam, HostMeminfo, KvmSlots, Slot};
use crate::outcome::{Chain, EndReport, Outcome};
use crate::platform::{self};
use crate::stats::StatsHandle;
use crate::sys;
use crate::timeline::{Milestone, Timeline};
use crate::topology::Ports;
use crate::vcpu::{self, Buses, CoalescedWrites, VcpuObserver, VcpuThreads};
use crate::wiring::Wiring;
use assigned::Devices;
pub use error::VmError;

/// A VM, ready to run.
///
/// The order of the fields is the order of the end: vCPUs, then the buses with
/// all devices on them (which turns interrupts off and takes BARs away), then
/// the DMA map with the address space, then RAM. When the groups are free, what
/// joined them meanwhile goes back to the host.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    coalesced: Option<Arc<CoalescedWrites>>,
    console: Option<Console>,
    guard: Option<GuardWatch>,
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
        let assigned = devices.open(&hypervisor, &ram, threads, &timeline)?;
        // The plan has foretold what the IOMMU reaches; now it is known.
        let layout = match &assigned.ranges {
            Some(ranges) => layout.within(address_bits, ranges)?,
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
            mapper: Arc::new(GuestMapper::new(slots, coalesced.clone())),
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

        if let Some(first) = vcpus.first() {
            vcpu::set_up(first, &ram, entry)?;
        }
        Ok(Self {
            vcpus,
            coalesced,
            console,
            guard,
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
                        self.stats.end();
                        return Ok(outcome);
                    }
                    dma.wait()?;
                }
            }
        }
        let observer = Arc::clone(&self.report) as Arc<dyn VcpuObserver>;
        let vcpus = std::mem::take(&mut self.vcpus);
        let mut threads =
            VcpuThreads::start(vcpus, &self.buses, self.coalesced.as_ref(), &observer)?;
        let outcome = events.run();
        drop(events);
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

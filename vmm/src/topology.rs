//! Where the guest's PCI functions stand.

use std::sync::{Arc, Mutex};

use devices::pci::{BarIndex, FunctionHandle, HostBridge, Link, PciAddress, RootComplex, RootPort};
use passthrough::iommu::AddressSpace;
use passthrough::ports::{InterruptRouter, MemoryMapper};
use passthrough::vfio::{DeviceBackend, DeviceError};
use passthrough::{AssignError, AssignOptions, AssignedDevice, Opened, Placement, RomSource};
use thiserror::Error;

use crate::event_loop::Removable;
use crate::lines::{FunctionInterrupts, Lines};
use crate::memory::GuestLayout;
use crate::platform;

/// Why the guest's topology can't be built.
#[derive(Debug, Error)]
pub enum TopologyError {
    /// A device can't be shown to a guest.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// Something stands in the way.
    #[error(transparent)]
    Root(#[from] devices::pci::TopologyError),
    /// Bus 0 is full.
    #[error("the guest's root bus has {LAST_SLOT} slots for devices: assign fewer")]
    TooManyDevices,
}

/// A device that goes into the guest.
#[derive(Debug)]
struct Guest {
    host: PciAddress,
    backend: Arc<dyn DeviceBackend>,
    options: AssignOptions,
    slot: PciAddress,
    /// Below a port in that slot.
    bus: Option<u8>,
}

/// Where each device goes, decided before anything is built: the guest's
/// tables must know how many buses there are.
///
/// ```text
///  00:00.0  host bridge
///  00:01.0  root port --- 01:00.0  endpoint
///  00:02.0  conventional PCI, or integrated into the root complex
///  00:03.0  root port --- 02:00.0  endpoint
/// ```
///
/// An endpoint behind a port of its own is what drivers know from real
/// machines: it has a link, and can be reset by its port.
#[derive(Debug, Default)]
pub struct Topology {
    // Dropped in the order that `Opened` has.
    space: Option<Arc<dyn AddressSpace>>,
    guests: Vec<Guest>,
}

/// What assigned devices reach the guest through.
#[derive(Debug)]
pub struct Ports {
    /// Messages.
    pub router: Arc<dyn InterruptRouter>,
    /// Interrupt pins.
    pub lines: Lines,
    /// BARs.
    pub mapper: Arc<dyn MemoryMapper>,
}

impl Topology {
    /// A place for each of the `opened` devices, which are those at `hosts`, in
    /// the same order, with `roms` in their option ROMs.
    ///
    /// # Errors
    /// [`TopologyError`], when there are too many or one does not answer.
    pub fn new(
        hosts: Vec<PciAddress>,
        roms: Vec<RomSource>,
        opened: Opened,
    ) -> Result<Self, TopologyError> {
        let mut guests = Vec::with_capacity(hosts.len());
        let mut last_bus = 0;
        let devices = hosts.into_iter().zip(roms).zip(opened.devices);
        for (slot, ((host, rom), backend)) in (1..).zip(devices) {
            if slot > LAST_SLOT {
                return Err(TopologyError::TooManyDevices);
            }
            let placement = placement(host, &*backend)?;
            let bus = (placement == Placement::BehindPort).then(|| {
                last_bus += 1;
                last_bus
            });
            guests.push(Guest {
                host,
                backend,
                options: AssignOptions { rom, placement },
                slot: address(0, slot),
                bus,
            });
        }
        Ok(Self {
            space: Some(opened.space),
            guests,
        })
    }

    /// The last bus, at most [`GuestLayout::LAST_BUS`]. No more than there are:
    /// Linux looks for devices on each bus that the firmware's tables name.
    pub fn last_bus(&self) -> u8 {
        let buses = self.guests.iter().filter_map(|guest| guest.bus);
        buses.max().unwrap_or(0)
    }

    /// Puts everything in its place. Answers the assigned devices.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn build(self, root: &RootComplex, ports: &Ports) -> Result<Vec<Removable>, TopologyError> {
        let bridge = Arc::new(Mutex::new(HostBridge::new()));
        root.add(address(0, 0), bridge)?;
        let Some(space) = self.space else {
            return Ok(Vec::new());
        };
        let mut removable = Vec::with_capacity(self.guests.len());
        for guest in self.guests {
            let (place, port) = match guest.bus {
                None => (guest.slot, None),
                Some(bus) => (address(bus, 0), Some(guest.slot)),
            };
            let interrupts = FunctionInterrupts::new(
                Arc::clone(&ports.router),
                ports.lines.clone(),
                platform::PINS,
                place,
                port,
            );
            let mut function = AssignedDevice::new(
                guest.host,
                guest.backend,
                guest.options,
                Arc::new(interrupts),
                Arc::clone(&ports.mapper),
                Arc::clone(&space),
            )?;
            if let Some(bus) = guest.bus {
                let link = Link::of(&mut function).unwrap_or_default();
                let port = Arc::new(Mutex::new(RootPort::new(bus, link)));
                root.add_port(guest.slot, bus, port)?;
            }
            log::info!("host device {} is guest device {place}", guest.host);
            let function = Arc::new(Mutex::new(function));
            root.add(place, Arc::clone(&function) as FunctionHandle)?;
            removable.push(Removable {
                host: guest.host,
                guest: place,
                function,
            });
        }
        Ok(removable)
    }
}

/// Slots of the root bus, one of which the host bridge has (PCI 3.0 §3.2.2.3.4).
const LAST_SLOT: u8 = 31;
const _: () = assert!(LAST_SLOT <= GuestLayout::LAST_BUS);

/// Function 0 of a device; `device` is at most 31.
fn address(bus: u8, device: u8) -> PciAddress {
    PciAddress::from_requester_id(u16::from(bus) << 8 | u16::from(device) << 3)
}

/// VFIO's region of config space.
const CONFIG_REGION: u32 = 7;
/// From this size on a BAR that must be below 4 GiB when it is behind a port
/// leaves no room there for those of other devices.
const LARGE: u64 = 256 << 20;

/// Where a device belongs, by its nature and by its BARs.
///
/// A large 64-bit BAR that is not prefetchable can only be above 4 GiB on the
/// root bus: see [`devices::pci::placement::place`].
fn placement(host: PciAddress, backend: &dyn DeviceBackend) -> Result<Placement, AssignError> {
    let device_error = |source| AssignError::Device {
        device: host,
        source,
    };
    if Placement::natural(backend).map_err(device_error)? == Placement::RootBus {
        return Ok(Placement::RootBus);
    }
    for index in BarIndex::all() {
        if is_large_and_low(backend, index).map_err(device_error)? {
            log::info!(
                "host device {host} stands on the guest's root bus: its {index} is large and not \
                 prefetchable, and a port would have it below 4 GiB"
            );
            return Ok(Placement::RootBus);
        }
    }
    Ok(Placement::BehindPort)
}

/// Memory, 64 bits, not prefetchable: the low bits of a BAR (PCIe 6.0
/// §7.5.1.2.1).
fn is_large_and_low(backend: &dyn DeviceBackend, index: BarIndex) -> Result<bool, DeviceError> {
    let region = backend.region(index.get().into());
    if region.is_none_or(|region| region.size < LARGE) {
        return Ok(false);
    }
    let mut low = [0];
    backend.region_read(CONFIG_REGION, index.register().into(), &mut low)?;
    Ok(low[0] & 0xf == 4)
}

#[cfg(test)]
#[path = "topology_test.rs"]
mod tests;

//! Where the guest's PCI functions stand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use devices::pci::{
    FunctionHandle, HostBridge, Link, PciAddress, PciFunction, RootComplex, RootPort,
};
use passthrough::inspect::Identity;
use passthrough::iommu::AddressSpace;
use passthrough::ports::{InterruptRouter, MemoryMapper};
use passthrough::vfio::DeviceBackend;
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
    /// It is not what sysfs showed.
    #[error(
        "device {0} is another one, now that it is open, than sysfs showed before: start the VM \
         again; with --map before-boot nothing has to be foretold"
    )]
    Elsewhere(PciAddress),
    /// Bus 0 is full.
    #[error("the guest's root bus has {LAST_SLOT} slots for devices: assign fewer")]
    TooManyDevices,
}

/// What functions answer before they are there: bytes from a register on.
pub type Answers = BTreeMap<PciAddress, Vec<(u16, Vec<u8>)>>;

/// Where a device goes.
#[derive(Debug)]
struct Place {
    host: PciAddress,
    placement: Placement,
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
#[derive(Debug)]
pub struct Places(Vec<Place>);

impl Places {
    /// A place for each of the devices at these addresses of the host.
    ///
    /// # Errors
    /// [`TopologyError`], when there are too many.
    pub fn new(
        devices: impl IntoIterator<Item = (PciAddress, Placement)>,
    ) -> Result<Self, TopologyError> {
        let mut places = Vec::new();
        let mut last_bus = 0;
        for (slot, (host, placement)) in (1..).zip(devices) {
            if slot > LAST_SLOT {
                return Err(TopologyError::TooManyDevices);
            }
            let bus = (placement == Placement::BehindPort).then(|| {
                last_bus += 1;
                last_bus
            });
            places.push(Place {
                host,
                placement,
                slot: address(0, slot),
                bus,
            });
        }
        Ok(Self(places))
    }

    /// Places for devices that are open, in the order of `hosts`, where they are on the
    /// host.
    ///
    /// # Errors
    /// [`TopologyError`], when there are too many or one does not answer.
    pub fn of(hosts: &[PciAddress], devices: &[Backend]) -> Result<Self, TopologyError> {
        let placement = |(host, device): (&PciAddress, &Backend)| {
            let placement = Placement::natural(&**device);
            let placement = placement.map_err(|source| AssignError::Device {
                device: *host,
                source,
            })?;
            Ok((*host, placement))
        };
        let placed = hosts.iter().zip(devices).map(placement);
        Self::new(placed.collect::<Result<Vec<_>, AssignError>>()?)
    }

    /// The last bus, at most [`GuestLayout::LAST_BUS`]. No more than there are:
    /// Linux looks for devices on each bus that the firmware's tables name.
    pub fn last_bus(&self) -> u8 {
        let buses = self.0.iter().filter_map(|place| place.bus);
        buses.max().unwrap_or(0)
    }

    /// What the devices, of which `identities` are known, and the ports above them answer
    /// before they are there.
    pub fn foretell(&self, identities: &[Identity]) -> Answers {
        let mut answers = Answers::new();
        for (place, identity) in self.0.iter().zip(identities) {
            if let Some(bus) = place.bus {
                answers.insert(place.slot, answers_of_port(bus));
            }
            answers.insert(place.guest(), answers_of_device(identity));
        }
        answers
    }
}

impl Place {
    /// Where the guest finds the device.
    fn guest(&self) -> PciAddress {
        self.bus.map_or(self.slot, |bus| address(bus, 0))
    }
}

/// Vendor and device id; revision and class; the type of the header (PCIe 6.0 §7.5.1.1).
fn answers_of_device(identity: &Identity) -> Vec<(u16, Vec<u8>)> {
    let ids = [identity.vendor, identity.device].map(u16::to_le_bytes);
    let class = identity.class << 8 | u32::from(identity.revision);
    vec![
        (0x00, ids.concat()),
        (0x08, class.to_le_bytes().to_vec()),
        (0x0e, vec![identity.header_type]),
    ]
}

/// The same of a port, and its buses as [`platform::place_bars`] will number them.
fn answers_of_port(bus: u8) -> Vec<(u16, Vec<u8>)> {
    let mut port = RootPort::new(bus, Link::default());
    let mut read = |register: u16, length: usize| {
        let mut bytes = vec![0; length];
        port.config_read(register, &mut bytes);
        (register, bytes)
    };
    vec![
        read(0x00, 4),
        read(0x08, 4),
        read(0x0e, 1),
        (0x18, vec![0, bus, bus]),
    ]
}

/// An open device.
type Backend = Arc<dyn DeviceBackend>;

/// A device that goes into the guest.
#[derive(Debug)]
struct Guest {
    place: Place,
    backend: Backend,
    rom: RomSource,
}

/// Open devices, and where each goes.
#[derive(Debug)]
pub struct Topology {
    // Dropped in the order that `Opened` has.
    space: Arc<dyn AddressSpace>,
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
    /// The `opened` devices, which go to `places`, in the same order, with `roms` in their
    /// option ROMs.
    ///
    /// # Errors
    /// [`TopologyError`], when one does not answer, or belongs elsewhere than was foretold.
    pub fn new(
        places: Places,
        roms: Vec<RomSource>,
        opened: Opened,
    ) -> Result<Self, TopologyError> {
        let hosts: Vec<_> = places.0.iter().map(|place| place.host).collect();
        let known = Places::of(&hosts, &opened.devices)?;
        let mut both = places.0.iter().zip(&known.0);
        if let Some((place, _)) = both.find(|(place, known)| place.placement != known.placement) {
            return Err(TopologyError::Elsewhere(place.host));
        }
        let devices = places.0.into_iter().zip(roms).zip(opened.devices);
        let guest = |((place, rom), backend)| Guest {
            place,
            backend,
            rom,
        };
        Ok(Self {
            space: opened.space,
            guests: devices.map(guest).collect(),
        })
    }

    /// Puts everything in its place. Answers the assigned devices.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn build(self, root: &RootComplex, ports: &Ports) -> Result<Vec<Removable>, TopologyError> {
        let mut removable = Vec::with_capacity(self.guests.len());
        for Guest {
            place,
            backend,
            rom,
        } in self.guests
        {
            let guest = place.guest();
            let interrupts = FunctionInterrupts::new(
                Arc::clone(&ports.router),
                ports.lines.clone(),
                platform::PINS,
                guest,
                place.bus.map(|_| place.slot),
            );
            let mut function = AssignedDevice::new(
                place.host,
                backend,
                AssignOptions {
                    rom,
                    placement: place.placement,
                },
                Arc::new(interrupts),
                Arc::clone(&ports.mapper),
                Arc::clone(&self.space),
            )?;
            if let Some(bus) = place.bus {
                let link = Link::of(&mut function).unwrap_or_default();
                let port = Arc::new(Mutex::new(RootPort::new(bus, link)));
                root.add_port(place.slot, bus, port)?;
            }
            log::info!("host device {} is guest device {guest}", place.host);
            let function = Arc::new(Mutex::new(function));
            root.add(guest, Arc::clone(&function) as FunctionHandle)?;
            removable.push(Removable {
                host: place.host,
                guest,
                function,
            });
        }
        Ok(removable)
    }
}

/// Puts the host bridge in its place, which every guest has.
///
/// # Errors
/// [`TopologyError`] when something is there.
pub fn add_host_bridge(root: &RootComplex) -> Result<(), TopologyError> {
    Ok(root.add(address(0, 0), Arc::new(Mutex::new(HostBridge::new())))?)
}

/// Slots of the root bus, one of which the host bridge has (PCI 3.0 §3.2.2.3.4).
const LAST_SLOT: u8 = 31;
const _: () = assert!(LAST_SLOT <= GuestLayout::LAST_BUS);

/// Function 0 of a device; `device` is at most 31.
fn address(bus: u8, device: u8) -> PciAddress {
    PciAddress::from_requester_id(u16::from(bus) << 8 | u16::from(device) << 3)
}

#[cfg(test)]
#[path = "topology_test.rs"]
mod tests;

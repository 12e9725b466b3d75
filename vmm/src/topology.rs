//! Where the guest's PCI functions stand.

use std::sync::{Arc, Mutex};

use devices::pci::{
    BarIndex, FunctionHandle, HostBridge, Link, PciAddress, RootComplex, RootPort, capabilities,
};
use passthrough::vfio::DeviceBackend;
use passthrough::{AssignError, AssignOptions, AssignedDevice, Opened, Placement, RomSource};
use thiserror::Error;

use crate::interrupts::Router;
use crate::memory::{GuestLayout, KvmSlots};

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
    #[error(
        "the guest's root bus has {} slots for devices: assign fewer",
        GuestLayout::LAST_BUS
    )]
    TooManyDevices,
}

/// The devices to assign, in the order in which the guest finds them.
#[derive(Debug)]
pub struct Devices {
    /// Their addresses on the host.
    pub addresses: Vec<PciAddress>,
    /// What the guest finds in their option ROMs, in the same order.
    pub roms: Vec<RomSource>,
    /// The devices themselves, in the same order, with their address space.
    pub opened: Opened,
}

/// What assigned devices reach the guest through.
#[derive(Debug)]
pub struct Ports {
    /// Interrupts.
    pub router: Router,
    /// BARs.
    pub slots: KvmSlots,
}

/// Puts the host bridge at 00:00.0 and the devices, each in a slot of its own:
///
/// ```text
///  00:01.0  root port --- 01:00.0  endpoint
///  00:02.0  conventional PCI, or integrated into the root complex
///  00:03.0  root port --- 02:00.0  endpoint
/// ```
///
/// An endpoint behind a port of its own is what drivers know from real
/// machines: it has a link, and can be reset by its port.
///
/// # Errors
/// [`TopologyError`].
pub fn build(
    root: &RootComplex,
    devices: Option<Devices>,
    ports: &Ports,
) -> Result<(), TopologyError> {
    let bridge = Arc::new(Mutex::new(HostBridge::new()));
    root.add(PciAddress::from_requester_id(0), bridge)?;
    let Some(Devices {
        addresses,
        roms,
        opened,
    }) = devices
    else {
        return Ok(());
    };
    let mut bus = 0;
    let hosts = addresses.into_iter().zip(roms).zip(opened.devices);
    for (slot, ((host, rom), backend)) in (1..).zip(hosts) {
        if slot > GuestLayout::LAST_BUS {
            return Err(TopologyError::TooManyDevices);
        }
        let address = |bus: u8, device: u8| {
            PciAddress::from_requester_id(u16::from(bus) << 8 | u16::from(device) << 3)
        };
        let placement = placement(host, &*backend);
        let mut function = AssignedDevice::with_options(
            host,
            backend,
            AssignOptions { rom, placement },
            Arc::new(ports.router.clone()),
            Arc::new(ports.slots.clone()),
            Arc::clone(&opened.space),
        )?;
        let slot = address(0, slot);
        let guest = match placement {
            Placement::RootBus => slot,
            Placement::BehindPort => {
                bus += 1;
                let link = Link::of(&mut function).unwrap_or_default();
                let port = Arc::new(Mutex::new(RootPort::new(bus, link)));
                root.add_port(slot, bus, port)?;
                address(bus, 0)
            }
        };
        log::info!("host device {host} is guest device {guest}");
        let function: FunctionHandle = Arc::new(Mutex::new(function));
        root.add(guest, function)?;
    }
    Ok(())
}

/// VFIO's region of config space.
const CONFIG_REGION: u32 = 7;
/// The PCI Express capability and its types (PCIe 6.0 §7.5.3.2).
const PCI_EXPRESS: u8 = 0x10;
const TYPE_ENDPOINT: u8 = 0x0;
const TYPE_LEGACY_ENDPOINT: u8 = 0x1;
/// From this size on a BAR that must be below 4 GiB when it is behind a port
/// leaves no room there for those of other devices.
const LARGE: u64 = 256 << 20;

/// Where a device belongs: behind a port of its own if it has a link.
///
/// A large 64-bit BAR that is not prefetchable can only be above 4 GiB on the
/// root bus: see [`devices::pci::placement::place`].
fn placement(host: PciAddress, backend: &dyn DeviceBackend) -> Placement {
    if !has_link(backend) {
        return Placement::RootBus;
    }
    match BarIndex::all().find(|index| is_large_and_low(backend, *index)) {
        Some(index) => {
            log::info!(
                "host device {host} stands on the guest's root bus: its {index} is large and not \
                 prefetchable, and a port would have it below 4 GiB"
            );
            Placement::RootBus
        }
        None => Placement::BehindPort,
    }
}

fn has_link(backend: &dyn DeviceBackend) -> bool {
    let read = |offset, data: &mut [u8]| read(backend, offset, data);
    let Some(express) = capabilities(read).find(|found| found.id == PCI_EXPRESS) else {
        return false;
    };
    let mut flags = [0];
    read(express.offset.saturating_add(2), &mut flags);
    [TYPE_ENDPOINT, TYPE_LEGACY_ENDPOINT].contains(&(flags[0] >> 4))
}

/// Memory, 64 bits, not prefetchable: the low bits of a BAR (PCIe 6.0
/// §7.5.1.2.1).
fn is_large_and_low(backend: &dyn DeviceBackend, index: BarIndex) -> bool {
    let region = backend.region(index.get().into());
    let mut low = [0];
    read(backend, index.register(), &mut low);
    low[0] & 0xf == 4 && region.is_some_and(|region| region.size >= LARGE)
}

/// Reads config space; a device that does not answer is said to when it is
/// assigned.
fn read(backend: &dyn DeviceBackend, offset: u16, data: &mut [u8]) {
    if let Err(error) = backend.region_read(CONFIG_REGION, offset.into(), data) {
        log::debug!("{error}");
        data.fill(0);
    }
}

//! The guest's machine: which device answers where.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use devices::acpi;
use devices::bus::{BusDevice, BusError};
use devices::legacy::{HostClock, I8042, PowerBlock, PvPanic, Rtc, Serial};
use devices::pci::placement::{PlaceError, Requests, place};
use devices::pci::window::{Window, Windows};
use devices::pci::{
    ConfigPorts, ConfigTarget, Ecam, PinWiring, ProgramError, RootComplex, program,
};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::SerialOutput;
use crate::event_loop::{Console, RoomNotice};
use crate::interrupts::{Gsi, RouteError, Router};
use crate::memory::{GuestLayout, GuestRange};
use crate::outcome::EndReport;
use crate::vcpu::{Buses, PostedPorts, Unfollowed};

/// Why the machine could not be put together.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The serial port's interrupt.
    #[error("cannot give the serial port its interrupt")]
    Interrupt(#[from] RouteError),
    /// The serial port's output file.
    #[error("cannot open {0} for the guest's serial output")]
    SerialFile(std::path::PathBuf, #[source] io::Error),
    /// Standard input.
    #[error("cannot use standard input as the guest's console; try --serial off")]
    Console(#[source] io::Error),
}

/// Where KVM's interrupt controllers answer.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// The power and reset ports of the guest.
const POWER_BLOCK: u64 = 0x600;
/// Where QEMU has it too.
const PVPANIC: u64 = 0x505;
/// PCI interrupt pins drive the inputs of KVM's I/O APIC that no ISA interrupt has.
pub const PINS: PinWiring = PinWiring {
    first: 16,
    count: 8,
};
/// Ports for I/O BARs.
pub const IO_WINDOW: GuestRange = GuestRange {
    start: 0x1000,
    size: 0xf000,
};

/// What a guest writes often, and nobody notices before the next access: what
/// selects a register, and characters to send.
pub fn posted_ports(serial: &Arc<Serial>) -> [PostedPorts; 3] {
    let serial = Arc::clone(serial);
    let ports = |first: u64, count: u64| first as u16..(first + count) as u16;
    let selector = |first, count| PostedPorts {
        ports: ports(first, count),
        unfollowed: None,
    };
    [
        selector(ConfigPorts::BASE, ConfigPorts::DATA),
        selector(Rtc::BASE, 1),
        PostedPorts {
            ports: ports(Serial::COM1, 1),
            unfollowed: Some(Unfollowed {
                device: ports(Serial::COM1, Serial::SIZE),
                flush: Arc::new(move || serial.flush()),
            }),
        },
    ]
}

/// Puts the legacy devices on their ports. Answers the serial port.
///
/// # Errors
/// [`PlatformError`] when something can't be had.
pub fn add_legacy(
    buses: &Buses,
    router: &Router,
    output: &SerialOutput,
    report: &Arc<EndReport>,
) -> Result<(Arc<Serial>, Option<Console>), PlatformError> {
    let writer: Box<dyn Write + Send> = match output {
        SerialOutput::Stdio => Box::new(io::stdout()),
        SerialOutput::Off => Box::new(io::sink()),
        SerialOutput::File(path) => Box::new(
            File::create(path).map_err(|error| PlatformError::SerialFile(path.clone(), error))?,
        ),
    };
    let room = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PlatformError::Console)?;
    let notice = room.try_clone().map_err(PlatformError::Console)?;
    let irq = Gsi::ioapic_pin(Serial::COM1_IRQ).ok_or(RouteError::Exhausted)?;
    let line = Arc::new(router.line(irq)?);
    let serial = Serial::new(line, writer).with_input_notice(Arc::new(RoomNotice(notice)));
    let serial = Arc::new(serial);
    let console = match output {
        SerialOutput::Stdio => Some(
            Console::new(Arc::clone(&serial), room, Arc::clone(report))
                .map_err(PlatformError::Console)?,
        ),
        SerialOutput::Off | SerialOutput::File(_) => None,
    };
    let events = || Arc::clone(report) as Arc<dyn devices::legacy::PowerEvents>;
    let port = |name: &str, base, size, device: Arc<dyn BusDevice>| {
        buses.pio.insert(name, base, size, device)
    };
    port("COM1", Serial::COM1, Serial::SIZE, serial.clone())?;
    port(
        "RTC",
        Rtc::BASE,
        Rtc::SIZE,
        Arc::new(Rtc::new(Arc::new(HostClock))),
    )?;
    port(
        "power",
        POWER_BLOCK,
        PowerBlock::SIZE,
        Arc::new(PowerBlock::new(events())),
    )?;
    port(
        "pvpanic",
        PVPANIC,
        PvPanic::SIZE,
        Arc::new(PvPanic::new(events())),
    )?;
    let i8042 = Arc::new(I8042::new(events()));
    port("i8042", I8042::BASE, I8042::SIZE, i8042)?;
    Ok((serial, console))
}

/// Gives the guest its two doors into config space, which `target` stands behind.
/// `last_bus` is at most [`GuestLayout::LAST_BUS`].
///
/// # Errors
/// [`BusError`] when something else is there.
pub fn add_config_access(
    buses: &Buses,
    target: &Arc<dyn ConfigTarget>,
    last_bus: u8,
    layout: &GuestLayout,
) -> Result<(), BusError> {
    let ports = Arc::new(ConfigPorts::new(Arc::clone(target)));
    buses
        .pio
        .insert("PCI config", ConfigPorts::BASE, ConfigPorts::SIZE, ports)?;
    let ecam = Arc::new(Ecam::new(Arc::clone(target), last_bus));
    let size = ecam.size();
    buses.mmio.insert("ECAM", layout.ecam.start, size, ecam)
}

/// What ACPI tells the guest about its machine, whose last bus is `last_bus`.
pub fn describe(cpus: u8, last_bus: u8, layout: &GuestLayout) -> acpi::Platform {
    acpi::Platform {
        apic_ids: (0..u32::from(cpus)).collect(),
        local_apic: LOCAL_APIC,
        io_apic: IO_APIC,
        ecam: layout.ecam.start,
        last_bus,
        windows: windows(layout),
        pins: Some(PINS),
        power: POWER_BLOCK as u16,
        serial: Some(acpi::SerialPort {
            port: Serial::COM1 as u16,
            gsi: Serial::COM1_IRQ,
        }),
        rtc: true,
        pvpanic: Some(PVPANIC as u16),
    }
}

/// Where BARs may be.
fn windows(layout: &GuestLayout) -> Windows {
    let window = |range: GuestRange| Window {
        base: range.start,
        size: range.size,
    };
    Windows {
        memory32: Some(window(layout.mmio32)),
        memory64: layout.mmio64.map(window),
        io: Some(window(IO_WINDOW)),
    }
}

/// Where something answers that is neither RAM nor a BAR: no device memory can
/// be there.
pub fn reserved(layout: &GuestLayout) -> [GuestRange; 4] {
    let range = |start: u64, size: u64| GuestRange { start, size };
    [
        layout.ecam,
        range(IO_APIC.into(), 0x1000),
        // Writes by devices are interrupts (Intel SDM 3A §11.11.1).
        range(LOCAL_APIC.into(), 0x10_0000),
        // Four pages of KVM's own: the identity map, then the TSS.
        range(GuestLayout::KVM_IDENTITY_MAP, 0x4000),
    ]
}

/// Why the BARs have no place in the guest.
#[derive(Debug, Error)]
pub enum PlacementError {
    /// A window is too small.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A function refuses.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Does what firmware would do: gives every port its bus number and windows,
/// and every BAR an address inside them.
///
/// # Errors
/// [`PlacementError`] naming the BAR and what is free.
pub fn place_bars(
    root: &RootComplex,
    layout: &GuestLayout,
    page_size: u64,
) -> Result<(), PlacementError> {
    let placed = place(&windows(layout), page_size, &Requests::of(root))?;
    program(root, &placed)?;
    for port in &placed.ports {
        log::debug!("guest port: {port:x?}");
    }
    for placed in &placed.bars {
        log::debug!(
            "guest device {} {} of {:#x} bytes at {:#x}",
            placed.function,
            placed.bar.index,
            placed.bar.size,
            placed.address
        );
    }
    for request in &placed.left_out {
        log::warn!(
            "guest device {} does without its {}: there are too many ports with I/O below",
            request.function,
            request.bar.index
        );
    }
    Ok(())
}

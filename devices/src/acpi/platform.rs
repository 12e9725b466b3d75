use thiserror::Error;

use crate::pci::PinWiring;
use crate::pci::window::{Window, WindowKind, Windows};

/// What the machine has, as far as ACPI tells it: plain data.
///
/// Interrupts: the interrupt controllers' input `n` is ISA interrupt `n`, 0 to
/// 15, edge-triggered and active high, without exception. PCI pins have inputs
/// from 16 on, level-triggered and active low. So the MADT needs no overrides, and the monitor must route GSI `n` to input `n` of the I/O APIC.
/// A hardware-reduced Linux never initializes the 8259s: route to the I/O APIC
/// alone, or leave LINT0 masked, so that they can't deliver anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The local APIC id of each vCPU. The position is the processor's UID.
    pub apic_ids: Vec<u32>,
    /// Where the local APICs answer, 0xfee00000 as a rule.
    pub local_apic: u32,
    /// Where the I/O APIC answers, 0xfec00000 as a rule. Its inputs are the
    /// GSIs from 0 on.
    pub io_apic: u32,
    /// Where memory-mapped config space begins; 1 MiB for each bus.
    pub ecam: u64,
    /// The last bus number. The first is 0.
    pub last_bus: u8,
    /// The host bridge's windows.
    pub windows: Windows,
    /// How the interrupt pins of the devices on bus 0 are wired; nothing when
    /// no device has any.
    pub pins: Option<PinWiring>,
    /// The first port of the [`crate::legacy::PowerBlock`].
    pub power: u16,
    /// The serial port.
    pub serial: Option<SerialPort>,
    /// Whether there is a real-time clock at its classic ports.
    pub rtc: bool,
    /// The port of [`crate::legacy::PvPanic`].
    pub pvpanic: Option<u16>,
}

/// A serial port with eight ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// The first port.
    pub port: u16,
    /// Its interrupt, edge-triggered.
    pub gsi: u32,
}

/// Why no tables can describe the platform.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// Not one vCPU, or more than the DSDT has names for.
    #[error("ACPI can describe 1 to {max} vCPUs, not {count}")]
    Cpus {
        /// How many there were.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// Linux takes an ECAM above 4 GiB only from firmware with a date, which a
    /// guest without SMBIOS doesn't have (arch/x86/pci/mmconfig-shared.c).
    #[error(
        "{size:#x} bytes of PCI config space at {base:#x} end above 4 GiB, where guests ignore \
         them; place them lower"
    )]
    EcamTooHigh {
        /// Where it was to begin.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// The bus number is a field of the address (PCIe 6.0 §7.2.2).
    #[error("PCI config space can't begin at {base:#x}: it must be a multiple of {alignment:#x}")]
    EcamUnaligned {
        /// Where it was to begin.
        base: u64,
        /// Its size, rounded up to a power of two.
        alignment: u64,
    },
    /// A window is where its kind can't be.
    #[error("the {kind} cannot be {window}: it must lie within {first:#x}..={last:#x}")]
    Window {
        /// Which window.
        kind: WindowKind,
        /// As it was given.
        window: Window,
        /// The first address that it may have.
        first: u64,
        /// The last address that it may have.
        last: u64,
    },
    /// Pins are wired to no inputs, or to those of ISA interrupts.
    #[error(
        "PCI interrupt pins can't be wired to {count} inputs of the I/O APIC from {first} on: \
         use at least one, and none below {FIRST_PCI_INPUT}"
    )]
    Pins {
        /// The first input.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A block of ports runs past the last port.
    #[error("the {name} cannot be at port {port:#x}: the ports end at 0xffff")]
    Port {
        /// What it is.
        name: &'static str,
        /// Its first port.
        port: u16,
    },
    /// The tables can't stand there.
    #[error("ACPI tables can't be placed at {0:#x}: it must be a multiple of 16 with room behind")]
    Base(u64),
}

/// Names for processors in the DSDT: C000 to CFFF.
const MAX_CPUS: usize = 0x1000;
/// Below are the ports of legacy devices.
const FIRST_PCI_PORT: u64 = 0x1000;
/// Below are the inputs of ISA interrupts.
const FIRST_PCI_INPUT: u32 = 16;

impl Platform {
    /// Bytes of memory-mapped config space.
    pub fn ecam_size(&self) -> u64 {
        (u64::from(self.last_bus) + 1) << 20
    }

    /// Checks what the tables have no way to say.
    pub(super) fn check(&self) -> Result<(), AcpiError> {
        let count = self.apic_ids.len();
        if !(1..=MAX_CPUS).contains(&count) {
            return Err(AcpiError::Cpus {
                count,
                max: MAX_CPUS,
            });
        }
        let alignment = self.ecam_size().next_power_of_two();
        if !self.ecam.is_multiple_of(alignment) {
            return Err(AcpiError::EcamUnaligned {
                base: self.ecam,
                alignment,
            });
        }
        let ecam = Window {
            base: self.ecam,
            size: self.ecam_size(),
        };
        if ecam.last().is_none_or(|last| last > u64::from(u32::MAX)) {
            return Err(AcpiError::EcamTooHigh {
                base: ecam.base,
                size: ecam.size,
            });
        }
        // Address 0 excluded: a window of all 4 GiB has no size in 32 bits.
        let below_4g = (1, u32::MAX.into());
        within(WindowKind::Memory32, self.windows.memory32, below_4g)?;
        within(WindowKind::Memory64, self.windows.memory64, (1, u64::MAX))?;
        let ports = (FIRST_PCI_PORT, u16::MAX.into());
        within(WindowKind::Io, self.windows.io, ports)?;
        if let Some(PinWiring { first, count }) = self.pins
            && (first < FIRST_PCI_INPUT || count == 0 || first.checked_add(count).is_none())
        {
            return Err(AcpiError::Pins { first, count });
        }
        let serial = self.serial.map(|serial| serial.port);
        for (name, port, size) in [
            ("power block", Some(self.power), 4),
            ("serial port", serial, 8),
        ] {
            if let Some(port) = port
                && port.checked_add(size - 1).is_none()
            {
                return Err(AcpiError::Port { name, port });
            }
        }
        Ok(())
    }
}

fn within(
    kind: WindowKind,
    window: Option<Window>,
    (first, last): (u64, u64),
) -> Result<(), AcpiError> {
    let Some(window) = window else {
        return Ok(());
    };
    let ends_inside = window.last().is_some_and(|end| end <= last);
    if ends_inside && window.base >= first {
        return Ok(());
    }
    Err(AcpiError::Window {
        kind,
        window,
        first,
        last,
    })
}

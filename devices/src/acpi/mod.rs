//! The ACPI tables that tell the guest what its machine has (ACPI 6.5).
//!
//! The machine is *hardware-reduced*: no SCI, no fixed-function power
//! management registers, no FACS. A guest switches itself off and resets itself
//! by the registers of [`crate::legacy::PowerBlock`].

mod dsdt;
mod fadt;
mod madt;
mod platform;
mod routing;
mod tables;

pub use platform::{AcpiError, Platform, SerialPort};
pub use tables::Tables;

/// Who made the tables. Nothing depends on it.
const OEM_ID: [u8; 6] = *b"AIRLCK";
const OEM_TABLE_ID: [u8; 8] = *b"AIRLOCK ";
const OEM_REVISION: u32 = 1;

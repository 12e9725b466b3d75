use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::platform::Platform;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::legacy::{CENTURY, PowerBlock};

/// IA-PC boot architecture flags (ACPI 6.5 §5.2.9.3). Bits 0 (devices on ISA
/// that the namespace does not name) and 1 (keyboard controller) stay clear:
/// everything is named, and there is no keyboard. Linux then leaves the
/// controller's ports alone.
mod boot_architecture {
    /// Don't probe for VGA.
    pub(super) const NO_VGA: u16 = 1 << 2;
    /// Leave ASPM alone: the guest's links are not real.
    pub(super) const NO_ASPM: u16 = 1 << 4;
    /// Don't use the real-time clock.
    pub(super) const NO_CMOS_RTC: u16 = 1 << 5;
}

/// The fixed description of a hardware-reduced platform.
pub(super) fn fadt(platform: &Platform, dsdt: u64) -> FADT {
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // No such buttons and no wake-up by the clock among the fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc);
    let mut boot = boot_architecture::NO_VGA | boot_architecture::NO_ASPM;
    if platform.rtc {
        table.century = CENTURY;
    } else {
        boot |= boot_architecture::NO_CMOS_RTC;
    }
    table.iapc_boot_arch = boot.into();
    table.reset_reg = register(platform, PowerBlock::RESET);
    table.reset_value = PowerBlock::RESET_VALUE;
    table.sleep_control_reg = register(platform, PowerBlock::SLEEP_CONTROL);
    table.sleep_status_reg = register(platform, PowerBlock::SLEEP_STATUS);
    table.hypervisor_vendor_identity = u64::from_le_bytes(*b"airlock\0").into();
    table.finalize()
}

/// A register of one byte in the power block.
fn register(platform: &Platform, offset: u64) -> GAS {
    let port = u64::from(platform.power) + offset;
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

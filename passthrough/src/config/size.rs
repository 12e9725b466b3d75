//! How long capabilities of variable length say that they are.

use devices::pci::ConfigSpace;

use super::msi::MsiPlace;

/// Longer with 64-bit addresses and with masks (PCIe 6.0 §7.7.1).
pub(super) fn msi(config: &ConfigSpace, at: u16) -> u16 {
    MsiPlace::read(config, at).capability.size()
}

/// Longer with error correction (PCI-X 2.0 §7.2.3).
pub(super) fn pci_x(config: &ConfigSpace, at: u16) -> u16 {
    match config.u16(at + 2) >> 12 & 3 {
        0 => 8,
        _ => 24,
    }
}

/// As its length field says (PCIe 6.0 §7.9.4).
pub(super) fn vendor(config: &ConfigSpace, at: u16) -> u16 {
    config.u8(at + 2).into()
}

/// As bits 31:20 of its second doubleword say (PCIe 6.0 §7.9.5.2).
pub(super) fn extended_vendor(config: &ConfigSpace, at: u16) -> u16 {
    (config.u32(at + 4) >> 20) as u16
}

/// Likewise (PCIe 6.0 §7.9.6.2).
pub(super) fn designated_vendor(config: &ConfigSpace, at: u16) -> u16 {
    extended_vendor(config, at)
}

/// The registers of each channel. Arbitration tables behind them are left out:
/// those of ports are no function's, and the guest could not write them
/// (PCIe 6.0 §7.9.1).
pub(super) fn channels(config: &ConfigSpace, at: u16) -> u16 {
    let more = config.u8(at + 4) & 7;
    0x10 + (u16::from(more) + 1) * 0x0c
}

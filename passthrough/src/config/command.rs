use devices::pci::{ConfigSpace, InterruptPin};

/// The command register (PCIe 6.0 §7.5.1.1.3).
pub(crate) const COMMAND: u16 = 0x04;
/// Ports are decoded.
pub(crate) const COMMAND_IO: u16 = 1 << 0;
/// Memory is decoded.
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may send requests: DMA and MSI.
pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// The interrupt pin is off.
pub(crate) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// The status register (PCIe 6.0 §7.5.1.1.4).
pub(crate) const STATUS: u16 = 0x06;
/// The function wants to interrupt by its pin, whether that is off or not.
pub(crate) const STATUS_INTERRUPT: u16 = 1 << 3;
/// The interrupt pin register (PCIe 6.0 §7.5.1.1.13).
const INTERRUPT_PIN: u16 = 0x3d;

/// The pin that the function interrupts with, if it has one.
pub(crate) fn pin(snapshot: &ConfigSpace) -> Option<InterruptPin> {
    InterruptPin::from_register(snapshot.u8(INTERRUPT_PIN))
}

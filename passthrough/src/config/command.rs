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

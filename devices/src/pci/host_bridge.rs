use super::bar::{BarDecode, BarIndex, BarInfo};
use super::function::{Effects, PciFunction};

/// Vendor and device id of the host bridge: 1b36:0008, "PCIe host bridge",
/// QEMU's generic one.
///
/// A chipset's id such as Q35's 8086:29c0 promises registers (PCIEXBAR, PAM,
/// SMRAM) that are not there, and Linux's intel-agp driver binds to it and
/// looks for them. 1b36:0008 promises nothing: ACPI describes the windows and
/// the ECAM, and neither Linux nor Windows has a driver or a quirk for it.
pub const HOST_BRIDGE_ID: (u16, u16) = (0x1b36, 0x0008);

/// The function at 00:00.0, which stands for the root complex itself.
///
/// It has an identity and nothing to program: every register is read-only. It
/// is conventional PCI, so beyond the first 256 bytes there is nothing: all
/// ones, by which a guest knows not to look for extended capabilities.
#[derive(Debug, Default)]
pub struct HostBridge(());

/// Bytes of a conventional function's config space.
const SIZE: usize = 256;

/// What isn't zero in the header: offset and bytes (PCI 3.0 §6.1).
const HEADER: [(usize, [u8; 2]); 3] = [
    (0x00, HOST_BRIDGE_ID.0.to_le_bytes()),
    (0x02, HOST_BRIDGE_ID.1.to_le_bytes()),
    // Class 06 (bridge), subclass 00 (host).
    (0x0a, [0x00, 0x06]),
];

impl HostBridge {
    /// A host bridge.
    pub fn new() -> Self {
        Self::default()
    }

    fn byte(offset: usize) -> u8 {
        HEADER
            .iter()
            .find_map(|(start, bytes)| bytes.get(offset.checked_sub(*start)?))
            .copied()
            .unwrap_or(0)
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = if at < SIZE { Self::byte(at) } else { 0xff };
        }
    }

    fn config_write(&mut self, _: u16, _: &[u8]) -> Effects {
        Effects::NONE
    }

    fn bars(&self) -> Vec<BarInfo> {
        Vec::new()
    }

    fn decoded(&self) -> Vec<BarDecode> {
        Vec::new()
    }

    fn bar_read(&mut self, _: BarIndex, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_recognizes_a_host_bridge() {
        let mut bridge = HostBridge::new();
        let mut header = [0xaa; 64];
        bridge.config_read(0, &mut header);
        assert_eq!(header[0..4], [0x36, 0x1b, 0x08, 0x00]);
        // Revision 0, programming interface 0, class 0x0600.
        assert_eq!(header[8..12], [0, 0, 0, 6]);
        // Header type 0, no capabilities (status bit 4), no BARs.
        assert!(header[12..].iter().all(|byte| *byte == 0));
        assert_eq!(header[4..8], [0; 4]);
    }

    #[test]
    fn writes_change_nothing() {
        let mut bridge = HostBridge::new();
        for offset in 0..1024 {
            assert!(bridge.config_write(offset * 4, &[0xff; 4]).is_none());
        }
        let mut byte = [0];
        bridge.config_read(0x10, &mut byte);
        assert_eq!(byte, [0]);
        let mut end = [1; 4];
        bridge.config_read(254, &mut end);
        assert_eq!(end, [0, 0, 0xff, 0xff]);
        bridge.config_read(4092, &mut end);
        assert_eq!(end, [0xff; 4]);
    }
}

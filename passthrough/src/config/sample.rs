//! Config spaces for tests.

use devices::pci::{BarIndex, BarInfo, BarKind, ConfigSpace, Register};

/// The registers of a device that has a bit of everything: three BARs and each
/// kind of capability about which there is something to decide. Expects
/// [`bars`].
pub(crate) const EVERYTHING: &[(u16, u8, u32)] = &[
    (0x00, 4, 0x10d3_8086),
    (0x06, 2, 0xf8b0),
    (0x08, 4, 0x0200_0003),
    (0x0c, 4, 0x0080_0010),
    (0x2c, 4, 0x0001_8086),
    (0x34, 1, 0x40),
    (0x3d, 1, 1),
    // Power management with D1 and D2, which loses its settings in D3hot.
    (0x40, 4, 0xfe03_4801),
    // Vital product data; vendor-specific, 16 bytes.
    (0x48, 4, 0x0000_5003),
    (0x50, 4, 0xab10_6009),
    (0x54, 4, 0x1122_3344),
    // Advanced features; MSI with 64-bit addresses and masks.
    (0x60, 4, 0x0306_6813),
    (0x68, 4, 0x0180_8005),
    // PCI Express: 512 bytes of payload possible, 256 set up; with reset.
    (0x80, 4, 0x0002_c010),
    (0x84, 4, 0x1000_8fda),
    (0x88, 4, 0x003f_283f),
    (0x8c, 4, 0x0047_7c43),
    (0x90, 4, 0x1043_0142),
    (0xa4, 4, 0x000f_bbff),
    (0xa8, 4, 0x0000_0409),
    (0xac, 4, 0x0000_000e),
    (0xb0, 4, 0x0021_0003),
    // MSI-X in BAR 2; PCI-X; enhanced allocation; SATA.
    (0xc0, 4, 0x0003_cc11),
    (0xc4, 4, 0x0000_2002),
    (0xc8, 4, 0x0000_3002),
    (0xcc, 4, 0x0002_d407),
    (0xd4, 4, 0x0001_e414),
    (0xe4, 4, 0x0010_0012),
    (0xe8, 4, 0x0000_0024),
    (0xf0, 4, 0x5555_aaaa),
    // Error reporting, SR-IOV, serial number, latency tolerance.
    (0x100, 4, 0x1402_0001),
    (0x104, 4, 0x0010_4000),
    (0x108, 4, 0x0040_0000),
    (0x110, 4, 0x0000_2001),
    (0x140, 4, 0x1801_0010),
    (0x180, 4, 0x1901_0003),
    (0x184, 4, 0x5566_7788),
    (0x190, 4, 0x1981_0018),
    (0x194, 4, 0x1003_1003),
    // Virtual channels; BAR 0 could have 1, 2 or 4 MiB and has 1.
    (0x198, 4, 0x1c01_0002),
    (0x1a0, 4, 0x0300_0007),
    (0x1ac, 4, 0x8000_00ff),
    (0x1c0, 4, 0x1d01_0015),
    (0x1c4, 4, 0x0000_0070),
    (0x1c8, 4, 0x0000_0020),
    // Vendor-specific; designated vendor-specific, of Intel and of CXL.
    (0x1d0, 4, 0x1e01_000b),
    (0x1d4, 4, 0x0101_0042),
    (0x1d8, 4, 0x7777_7777),
    (0x1e0, 4, 0x2001_0023),
    (0x1e4, 4, 0x0141_8086),
    (0x1e8, 4, 0x6666_0003),
    (0x200, 4, 0x2201_0023),
    (0x204, 4, 0x0381_1e98),
    // ATS, PASID, ARI, and one that nobody knows.
    (0x220, 4, 0x2301_000f),
    (0x224, 4, 0x8000_0020),
    (0x230, 4, 0x2401_001b),
    (0x240, 4, 0x2501_000e),
    (0x250, 4, 0x0001_7777),
];

/// A config space with these registers.
pub(crate) fn config(registers: &[(u16, u8, u32)]) -> ConfigSpace {
    let mut values = ConfigSpace::new();
    for &(offset, size, value) in registers {
        values.define(Register::constant(offset, size, value));
    }
    values
}

/// 1 MiB of prefetchable memory, 16 KiB below 4 GiB with the MSI-X table, and
/// 32 ports.
pub(crate) fn bars() -> Vec<BarInfo> {
    let wide = BarKind::Memory64 { prefetchable: true };
    let narrow = BarKind::Memory32 {
        prefetchable: false,
    };
    [
        (0, wide, 1 << 20),
        (2, narrow, 0x4000),
        (3, BarKind::Io, 0x20),
    ]
    .into_iter()
    .filter_map(|(index, kind, size)| {
        let index = BarIndex::new(index)?;
        Some(BarInfo { index, kind, size })
    })
    .collect()
}

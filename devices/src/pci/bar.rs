use std::fmt;

use super::config::{ConfigSpace, Register};

/// The number of a base address register: 0 to 5, or the expansion ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarIndex(u8);

impl BarIndex {
    /// The expansion ROM's register, at 0x30 of a type 0 header.
    pub const ROM: Self = Self(6);

    /// BAR `index`, 0 to 5; nothing for larger numbers.
    pub const fn new(index: u8) -> Option<Self> {
        if index < 6 { Some(Self(index)) } else { None }
    }

    /// All six BARs, without the ROM.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..6).map(Self)
    }

    /// The number: 0 to 5, and 6 for the ROM, as VFIO counts its regions.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The register's offset in a type 0 header (PCI 3.0 §6.2.5).
    pub const fn register(self) -> u16 {
        if self.0 == 6 {
            0x30
        } else {
            0x10 + self.0 as u16 * 4
        }
    }
}

impl fmt::Display for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            6 => f.write_str("ROM"),
            index => write!(f, "BAR {index}"),
        }
    }
}

/// What a BAR decodes (PCI 3.0 §6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// Memory below 4 GiB, one register.
    Memory32 {
        /// Reads have no side effects, writes may be merged.
        prefetchable: bool,
    },
    /// Memory anywhere, two registers.
    Memory64 {
        /// Reads have no side effects, writes may be merged.
        prefetchable: bool,
    },
    /// Ports.
    Io,
    /// The expansion ROM: memory below 4 GiB that reads only, with an enable
    /// bit of its own (PCIe 6.0 §7.5.1.2.4).
    Rom,
}

impl BarKind {
    /// Whether the BAR takes the following register as its upper half.
    pub const fn is_64_bit(self) -> bool {
        matches!(self, Self::Memory64 { .. })
    }

    /// Whether the BAR decodes ports and not memory.
    pub const fn is_io(self) -> bool {
        matches!(self, Self::Io)
    }
}

/// A BAR as the function implements it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarInfo {
    /// Which one.
    pub index: BarIndex,
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes decoded, a power of two.
    pub size: u64,
}

/// A BAR that answers now: decoding is on and an address is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarDecode {
    /// The BAR.
    pub bar: BarInfo,
    /// The first guest address (or port) that it answers.
    pub address: u64,
}

impl BarInfo {
    /// Bytes below which a memory BAR can't go: its low four bits are type
    /// bits (PCI 3.0 §6.2.5.1).
    const MIN_MEMORY: u64 = 16;
    /// Bytes below which an I/O BAR can't go: its low two bits are type bits.
    const MIN_IO: u64 = 4;
    /// The largest 32-bit BAR.
    const MAX_32_BIT: u64 = 1 << 31;
    /// Bytes between which an expansion ROM must be (PCIe 6.0 §7.5.1.2.4).
    const ROM_SIZES: (u64, u64) = (1 << 11, 1 << 24);
    /// The bit in its register that makes an expansion ROM answer.
    pub const ROM_ENABLE: u32 = 1;

    /// Whether a BAR can look like this: the size is a power of two that its
    /// register can express, a 64-bit BAR has a register after it, and the
    /// ROM is in its place.
    pub const fn is_valid(&self) -> bool {
        let (min, max) = match self.kind {
            BarKind::Memory32 { .. } => (Self::MIN_MEMORY, Self::MAX_32_BIT),
            BarKind::Memory64 { .. } => (Self::MIN_MEMORY, 1 << 63),
            BarKind::Io => (Self::MIN_IO, Self::MAX_32_BIT),
            BarKind::Rom => Self::ROM_SIZES,
        };
        let fits = self.size >= min && self.size <= max && self.size.is_power_of_two();
        let is_rom = matches!(self.kind, BarKind::Rom);
        let has_room = !(self.kind.is_64_bit() && self.index.0 == 5);
        fits && is_rom == (self.index.0 == BarIndex::ROM.0) && has_room
    }

    /// The low bits of the register, which don't belong to the address.
    pub(super) const fn low_bits(&self) -> u32 {
        match self.kind {
            BarKind::Io => 0x3,
            BarKind::Rom => 0x7ff,
            BarKind::Memory32 { .. } | BarKind::Memory64 { .. } => 0xf,
        }
    }

    /// The type bits that the register's low bits read as.
    const fn type_bits(&self) -> u32 {
        match self.kind {
            BarKind::Io => 1,
            BarKind::Rom => 0,
            BarKind::Memory32 { prefetchable } => (prefetchable as u32) << 3,
            BarKind::Memory64 { prefetchable } => (prefetchable as u32) << 3 | 0x4,
        }
    }

    /// Puts the BAR's registers into `config`, with address zero. A guest
    /// that writes all ones to them reads back the size.
    pub fn define(&self, config: &mut ConfigSpace) {
        let mask = !(self.size - 1);
        let register = self.index.register();
        let enable = match self.kind {
            BarKind::Rom => Self::ROM_ENABLE,
            _ => 0,
        };
        let low = mask as u32 & !self.low_bits() | enable;
        config.define(Register::writable(register, 4, self.type_bits(), low));
        if self.kind.is_64_bit() {
            let high = (mask >> 32) as u32;
            config.define(Register::writable(register + 4, 4, 0, high));
        }
    }

    /// The address in the BAR's registers, whether or not the BAR can decode
    /// it.
    pub fn register_value(&self, config: &ConfigSpace) -> u64 {
        let register = self.index.register();
        let mut address = u64::from(config.u32(register) & !self.low_bits());
        if self.kind.is_64_bit() {
            address |= u64::from(config.u32(register + 4)) << 32;
        }
        address
    }

    /// The address in the BAR's registers, if the BAR can decode it.
    ///
    /// Zero means that none was set. The topmost place of its address space
    /// is what a register holds while the guest sizes the BAR, and no BAR can
    /// live there. An expansion ROM must be enabled besides.
    pub fn address(&self, config: &ConfigSpace) -> Option<u64> {
        if matches!(self.kind, BarKind::Rom)
            && config.u32(self.index.register()) & Self::ROM_ENABLE == 0
        {
            return None;
        }
        let address = self.register_value(config);
        let top = if self.kind.is_64_bit() {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        let last = address.checked_add(self.size - 1)?;
        (address != 0 && last < top).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bar(index: u8, kind: BarKind, size: u64) -> BarInfo {
        let index = BarIndex::new(index).unwrap();
        BarInfo { index, kind, size }
    }

    const PREFETCHABLE: BarKind = BarKind::Memory64 { prefetchable: true };
    const PLAIN: BarKind = BarKind::Memory32 {
        prefetchable: false,
    };

    #[test]
    fn sizing_shows_size_and_type() {
        let mut config = ConfigSpace::new();
        bar(0, PLAIN, 0x4000).define(&mut config);
        bar(1, BarKind::Io, 0x20).define(&mut config);
        bar(2, PREFETCHABLE, 1 << 34).define(&mut config);
        let read: Vec<u32> = [0x10, 0x14, 0x18, 0x1c]
            .map(|register| {
                config.write(register, &[0xff; 4]);
                config.u32(register)
            })
            .into();
        assert_eq!(read, [0xffff_c000, 0xffff_ffe1, 0xc, 0xffff_fffc]);
    }

    #[test]
    fn no_address_while_unset_or_being_sized() {
        for info in [
            bar(0, PLAIN, 0x4000),
            bar(0, BarKind::Io, 0x20),
            bar(0, PREFETCHABLE, 0x4000),
        ] {
            let mut config = ConfigSpace::new();
            info.define(&mut config);
            assert_eq!(info.address(&config), None);
            config.write(0x10, &[0xff; 8]);
            assert_eq!(info.address(&config), None);
            config.write(0x10, &0x8000_u64.to_le_bytes());
            assert_eq!(info.address(&config), Some(0x8000));
        }
    }

    #[test]
    fn a_rom_answers_when_its_own_bit_is_set() {
        let rom = BarInfo {
            index: BarIndex::ROM,
            kind: BarKind::Rom,
            size: 0x1_0000,
        };
        let mut config = ConfigSpace::new();
        rom.define(&mut config);
        // As Linux sizes it: everything but the enable bit.
        config.write(0x30, &0xffff_f800_u32.to_le_bytes());
        assert_eq!(config.u32(0x30), 0xffff_0000);
        config.write(0x30, &[0xff; 4]);
        assert_eq!(config.u32(0x30), 0xffff_0001);
        assert_eq!(rom.address(&config), None, "being sized");
        config.write(0x30, &0xc001_0000_u32.to_le_bytes());
        assert_eq!(rom.address(&config), None, "not enabled");
        assert_eq!(rom.register_value(&config), 0xc001_0000);
        config.write(0x30, &[1]);
        assert_eq!(rom.address(&config), Some(0xc001_0000));
        for (size, valid) in [
            (1 << 10, false),
            (1 << 11, true),
            (1 << 24, true),
            (1 << 25, false),
        ] {
            assert_eq!(BarInfo { size, ..rom }.is_valid(), valid, "{size:#x}");
        }
        assert!(!bar(0, BarKind::Rom, 1 << 16).is_valid(), "another's place");
        assert!(!BarInfo { kind: PLAIN, ..rom }.is_valid(), "no ROM");
    }

    /// As guests do it: all ones, read back, the lowest address bit that is set
    /// is the size.
    #[test]
    fn every_legal_size_can_be_found_out() {
        let kinds = [
            PLAIN,
            BarKind::Memory32 { prefetchable: true },
            BarKind::Memory64 {
                prefetchable: false,
            },
            PREFETCHABLE,
            BarKind::Io,
            BarKind::Rom,
        ];
        let mut legal = 0;
        for (kind, bits) in kinds
            .iter()
            .flat_map(|kind| (0..64).map(move |bits| (*kind, bits)))
        {
            let index = match kind {
                BarKind::Rom => BarIndex::ROM,
                _ => BarIndex(2),
            };
            let size = 1 << bits;
            let info = BarInfo { index, kind, size };
            if !info.is_valid() {
                continue;
            }
            legal += 1;
            let mut config = ConfigSpace::new();
            info.define(&mut config);
            let register = index.register();
            let flags = config.u32(register);
            config.write(register, &[0xff; 4]);
            let mut mask = u64::from(config.u32(register) & !info.low_bits());
            if kind.is_64_bit() {
                config.write(register + 4, &[0xff; 4]);
                mask |= u64::from(config.u32(register + 4)) << 32;
            } else {
                mask |= 0xffff_ffff << 32;
            }
            assert_eq!(mask & mask.wrapping_neg(), size, "{info:?}");
            assert_eq!(mask, !(size - 1), "{info:?}");
            // The type stays; a ROM's enable bit is the guest's.
            let kept = info.low_bits() & !BarInfo::ROM_ENABLE;
            assert_eq!(config.u32(register) & kept, flags & kept);
        }
        // 28 of 16 bytes to 2 GiB each, 60 to 2^63 each, 30 of ports, 14 ROMs.
        assert_eq!(legal, 2 * 28 + 2 * 60 + 30 + 14);
    }

    #[test]
    fn impossible_bars() {
        assert!(bar(0, PLAIN, 16).is_valid());
        assert!(!bar(0, PLAIN, 8).is_valid());
        assert!(!bar(0, PLAIN, 0).is_valid());
        assert!(!bar(0, PLAIN, 0x3000).is_valid());
        assert!(!bar(0, PLAIN, 1 << 32).is_valid());
        assert!(bar(4, PREFETCHABLE, 1 << 40).is_valid());
        assert!(!bar(5, PREFETCHABLE, 1 << 40).is_valid());
    }

    proptest! {
        #[test]
        fn an_address_is_aligned_and_read_back(
            bits in 4_u32..63,
            wide: bool,
            writes in proptest::collection::vec((0_u16..8, any::<u64>()), 0..8),
        ) {
            let kind = if wide { PREFETCHABLE } else { PLAIN };
            let info = bar(0, kind, 1 << bits.min(if wide { 63 } else { 31 }));
            let mut config = ConfigSpace::new();
            info.define(&mut config);
            for (at, value) in writes {
                config.write(0x10 + at, &value.to_le_bytes());
                if let Some(address) = info.address(&config) {
                    prop_assert_eq!(address % info.size, 0);
                    prop_assert!(address.checked_add(info.size).is_some());
                }
            }
        }
    }
}

use std::fmt;

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

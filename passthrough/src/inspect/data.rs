use std::fmt;

use devices::pci::PciAddress;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::assigned::Placement;

/// Everything there is to say of a device and of the guest's view of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The device's address on the host.
    pub device: PciAddress,
    /// Who was asked.
    pub source: Source,
    /// Where the guest's view has it stand.
    pub placement: Placement,
    /// What it is.
    pub identity: Identity,
    /// Config space as the host has it, from the start, as far as it could be
    /// read: 4,096 bytes of PCI Express, 256 of conventional PCI, and only 64
    /// when sysfs was asked without privilege. What is missing is missing in
    /// everything below.
    pub physical: Bytes,
    /// Config space as a guest finds it before its first write, 4,096 bytes.
    /// Nothing when no guest can have the device, or when too little of the
    /// physical one could be read.
    pub guest: Option<Bytes>,
    /// Why there is no guest's view.
    pub refusal: Option<String>,
    /// The BARs, the ROM and config space itself.
    pub regions: Vec<Region>,
    /// The kinds of interrupt that it has.
    pub interrupts: Vec<Interrupt>,
    /// How it can be reset.
    pub resets: Resets,
    /// The capabilities, standard ones first, each list in the order of its
    /// links.
    pub capabilities: Vec<Capability>,
    /// The rules by which the guest's view was made, in ascending order.
    pub registers: Vec<Register>,
    /// Where the two views differ, in ascending order, no two with a byte in
    /// common.
    pub differences: Vec<Difference>,
}

/// Who was asked about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// VFIO: the physical side is what the kernel lets a user see of it. It
    /// shows BARs and links as its own, and hides a few capabilities.
    Vfio,
    /// sysfs: the bare hardware.
    Sysfs,
}

/// How a device can be reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resets {
    /// It can be reset by itself.
    pub function: bool,
    /// The kernel's ways to do that, in the order tried, where sysfs tells.
    pub methods: Vec<String>,
    /// Which other devices a reset of its bus (a hot reset) hits. Nothing when
    /// that can't be reset: it is a root bus, or VFIO says so. Sysfs does not
    /// say that of other buses.
    pub bus: Option<Vec<PciAddress>>,
}

/// What a device is (PCIe 6.0 §7.5.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// Which of the vendor's devices it is.
    pub device: u16,
    /// Who made the board.
    pub subsystem_vendor: u16,
    /// Which of the boards it is.
    pub subsystem_device: u16,
    /// Base class, sub-class and programming interface, a byte each.
    pub class: u32,
    /// Which revision.
    pub revision: u8,
    /// The layout of its header: 0 for endpoints.
    pub header_type: u8,
    /// It is one of several functions on the host.
    pub multi_function: bool,
    /// The command register on the host.
    pub command: u16,
    /// The status register on the host.
    pub status: u16,
}

/// A BAR, the ROM or config space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// VFIO's number: 0 to 5 for the BARs, 6 for the ROM, 7 for config space.
    pub index: u32,
    /// What it is.
    pub kind: RegionKind,
    /// Bytes.
    pub size: u64,
    /// Where it is on the host, if it has an address there.
    pub address: Option<u64>,
    /// What VFIO lets a user map. Nothing when VFIO was not asked.
    pub mappable: Option<Vec<Area>>,
    /// How the guest reaches it, in ascending order. Empty when the guest has
    /// no such region; without VFIO's word on what can be mapped, what it says
    /// for most devices is taken for granted.
    pub parts: Vec<RegionPart>,
    /// Why the guest sees it in another way than the host, if it does.
    pub reason: Option<String>,
}

/// What a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionKind {
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Ports.
    Io,
    /// The option ROM.
    Rom,
    /// Config space.
    Config,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub size: u64,
}

/// A part of a region, and how the guest reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionPart {
    /// Which part.
    pub area: Area,
    /// How.
    pub access: Access,
}

/// How a guest reaches a part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Mapped into the guest: at the speed of the device.
    Direct,
    /// Each access leaves the guest and goes to the device.
    Trapped,
    /// The MSI-X table: each access leaves the guest and is answered by airlock.
    MsixTable,
    /// The pending bits of MSI-X: likewise.
    MsixPendingBits,
}

/// A kind of interrupt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupt {
    /// `INTx`, `MSI`, `MSI-X`, `error` or `request`.
    pub kind: String,
    /// How many vectors the device has.
    pub vectors: u32,
    /// How many of them the guest gets.
    pub guest: u32,
    /// Why it does not get them all.
    pub reason: Option<String>,
}

/// A capability of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Its id in its list.
    pub id: u16,
    /// It is in the extended list.
    pub extended: bool,
    /// What it is called.
    pub name: String,
    /// Where its layout is specified.
    pub section: String,
    /// Where it stands in config space.
    pub offset: u16,
    /// Bytes, as far as is known and up to the next one.
    pub size: u16,
    /// The version of its layout, of extended ones.
    pub version: Option<u8>,
    /// Why the guest does not see it; nothing when it does.
    pub hidden: Option<String>,
    /// What the host's registers say, decoded.
    pub details: Vec<Detail>,
}

/// One decoded property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Its name: `link speed`.
    pub name: String,
    /// Its value: `8 GT/s`.
    pub value: String,
}

/// A register, or some bits of one, with the rule by which the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The first byte, from the start of config space.
    pub offset: u16,
    /// Bytes.
    pub size: u16,
    /// Which bits; of a range that is longer than 4 bytes, of each 4.
    pub bits: u32,
    /// What it is.
    pub name: String,
    /// Where it is specified.
    pub section: String,
    /// Who answers.
    pub handling: Handling,
    /// Why the guest does not simply see the device's, when it does not.
    pub reason: String,
}

/// Who answers a register's reads and takes its writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handling {
    /// The device's value at the start, these bits of it; read-only.
    Constant {
        /// The bits that show.
        shown: u32,
    },
    /// A value of airlock; read-only.
    Value {
        /// Which.
        value: u32,
    },
    /// The guest's own: it reads back what it wrote.
    Guest {
        /// After reset.
        value: u32,
        /// The bits that it can write.
        writable: u32,
    },
    /// As [`Self::Guest`], and every write is handed on to the device.
    Shared {
        /// The bits that it can write.
        writable: u32,
    },
    /// The device's, asked each time.
    Device {
        /// The bits that show.
        readable: u32,
        /// The bits whose writes reach the device.
        writable: u32,
        /// The bits that the guest clears by writing a one, in its view only.
        clearable: u32,
    },
}

/// A run of bytes that differ, all for one reason. A few between them may be
/// the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The first byte.
    pub offset: u16,
    /// As the host has them.
    pub physical: Bytes,
    /// As the guest finds them.
    pub guest: Bytes,
    /// What stands there.
    pub name: String,
    /// Where it is specified.
    pub section: String,
    /// Why they differ.
    pub reason: String,
}

/// Bytes that are written as hexadecimal digits, in the order of their
/// addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom("not pairs of hexadecimal digits");
        let pair = |pair: &[u8]| {
            let digits = std::str::from_utf8(pair).ok()?;
            let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|_| hex)
        };
        let bytes: Option<_> = text.as_bytes().chunks(2).map(pair).collect();
        bytes.map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_hexadecimal() {
        let bytes = Bytes(vec![0x86, 0x80, 0x0a]);
        let text = serde_json::to_string(&bytes).unwrap();
        assert_eq!(text, "\"86800a\"");
        assert_eq!(serde_json::from_str::<Bytes>(&text).unwrap(), bytes);
        for text in ["\"8\"", "\"8g\"", "\"+1\"", "\"é\"", "8"] {
            assert!(serde_json::from_str::<Bytes>(text).is_err(), "{text}");
        }
    }
}

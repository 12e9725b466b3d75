use super::{Fate, Kind, Size};
use crate::config::rule::{
    ALL, Access, CONSTANT, NONE, PASSED, Rule, guest, latched, masked, rules,
};
use crate::config::{express, size};

const fn kind(id: u16, name: &'static str, section: &'static str, size: Size, fate: Fate) -> Kind {
    Kind {
        id,
        name,
        section,
        size,
        fate,
    }
}

const fn hidden(id: u16, name: &'static str, section: &'static str, why: &'static str) -> Kind {
    kind(id, name, section, Size::Unknown, Fate::Hidden(why))
}

/// The capabilities of the first 256 bytes, by id.
pub(in crate::config) const STANDARD: &[Kind] = &[
    hidden(0x00, "null capability", "PCIe 6.0 §7.9.28", "it is empty"),
    kind(
        0x01,
        "power management",
        "PCI PM 1.2 §3.2",
        Size::Fixed(8),
        Fate::Shown(POWER),
    ),
    hidden(0x02, "AGP", "AGP 3.0 §6.1", ANOTHER_BUS),
    kind(
        0x03,
        "vital product data",
        "PCIe 6.0 §7.9.18",
        Size::Fixed(8),
        Fate::Shown(PRODUCT_DATA),
    ),
    hidden(
        0x04,
        "slot identification",
        "PCI-to-PCI Bridge 1.2 §13",
        OF_BRIDGES,
    ),
    kind(
        0x05,
        "MSI",
        "PCIe 6.0 §7.7.1",
        Size::Whole(size::msi),
        Fate::Shown(MSI),
    ),
    hidden(
        0x06,
        "CompactPCI hot swap",
        "PICMG 2.1 §3",
        "the slot is the host's",
    ),
    kind(
        0x07,
        "PCI-X",
        "PCI-X 2.0 §7.2",
        Size::Read(size::pci_x, 8),
        Fate::Hidden(ANOTHER_BUS),
    ),
    hidden(
        0x08,
        "HyperTransport",
        "HyperTransport 3.1 §7.5",
        "it belongs to the links of the host's processors",
    ),
    kind(
        0x09,
        "vendor-specific",
        "PCIe 6.0 §7.9.4",
        Size::Read(size::vendor, 3),
        Fate::Shown(VENDOR),
    ),
    hidden(
        0x0a,
        "debug port",
        "EHCI debug port §C.3",
        "the host may debug through it",
    ),
    hidden(
        0x0b,
        "CompactPCI resource control",
        "PICMG 2.13 §3",
        "the slot is the host's",
    ),
    hidden(
        0x0c,
        "standard hot-plug controller",
        "SHPC 1.0 §4",
        OF_BRIDGES,
    ),
    hidden(0x0d, "bridge subsystem", "PCIe 6.0 §7.9.23", OF_BRIDGES),
    hidden(0x0e, "AGP 8x", "AGP 3.0 §6.1", ANOTHER_BUS),
    hidden(
        0x0f,
        "secure device",
        "AMD IOMMU 3.05 §3.2",
        "it controls the host's IOMMU",
    ),
    kind(
        0x10,
        "PCI Express",
        "PCIe 6.0 §7.5.3",
        Size::Read(express::size, 0x0c),
        Fate::Shown(EXPRESS),
    ),
    kind(
        0x11,
        "MSI-X",
        "PCIe 6.0 §7.7.2",
        Size::Fixed(12),
        Fate::Shown(MSI_X),
    ),
    kind(
        0x12,
        "SATA data and index",
        "AHCI 1.3.1 §2.4",
        Size::Fixed(8),
        Fate::Shown(SATA),
    ),
    kind(
        0x13,
        "advanced features",
        "PCIe 6.0 §7.9.21",
        Size::Fixed(6),
        Fate::Shown(ADVANCED_FEATURES),
    ),
    hidden(
        0x14,
        "enhanced allocation",
        "PCIe 6.0 §7.8.5",
        "it would fix BARs at addresses of the host; what it describes, the guest sees as plain BARs",
    ),
    hidden(
        0x15,
        "flattening portal bridge",
        "PCIe 6.0 §7.8.11",
        OF_BRIDGES,
    ),
];

const ANOTHER_BUS: &str = "it tunes a bus that the guest does not see";
const OF_BRIDGES: &str = "only bridges have it";

/// State changes are handed to the device when their effects are settled:
/// outside of D0 it answers no memory access, so its BARs leave the guest
/// first. The kernel brings it there; a device that loses its settings on the
/// way back (no soft reset is 0) gets them after reset.
const POWER: &[Rule] = rules! {
    0x02 2 0xf800 NONE Always
        "PMC: wake-up events", "PCI PM 1.2 §3.2.3",
        "wake-up events go to the host";
    0x02 2 0x07ff CONSTANT Always
        "PMC", "PCI PM 1.2 §3.2.3", "";
    0x04 2 0x0003 (guest(0x0003)) Always
        "PMCSR: power state", "PCI PM 1.2 §3.2.4",
        "the guest's, and handed on in an order that keeps its BARs safe";
    0x04 2 0x0008 (Access::Constant(0x0008)) Always
        "PMCSR: no soft reset", "PCI PM 1.2 §3.2.4", "";
};

/// The kernel carries out the reads and writes behind the two registers.
const PRODUCT_DATA: &[Rule] = rules! {
    0x02 6 ALL PASSED Always
        "address, flag and data", "PCIe 6.0 §7.9.18", "";
};

/// Nobody but its driver knows what it does, so it is the device's own. The
/// IOMMU bounds what it can do.
const VENDOR: &[Rule] = rules! {
    0x02 1 ALL CONSTANT Always
        "length", "PCIe 6.0 §7.9.4", "";
    0x03 0xff ALL PASSED Always
        "body", "PCIe 6.0 §7.9.4", "";
};

/// Every function. Type, version and the largest payload follow from the
/// device: `express.rs`.
const EXPRESS: &[Rule] = rules! {
    0x02 2 0x3e0f CONSTANT Always
        "PCI Express capabilities", "PCIe 6.0 §7.5.3.2", "";

    // Not slot power (bits 27:18), phantom functions (4:3), the payload (2:0).
    0x04 4 0x0c00_0000 NONE Always
        "device capabilities: slot power scale", "PCIe 6.0 §7.5.3.3",
        "the slot is the host's";
    0x04 4 0x03fc_0000 NONE Always
        "device capabilities: slot power value", "PCIe 6.0 §7.5.3.3",
        "the slot is the host's";
    0x04 4 0x0000_0018 NONE Always
        "device capabilities: phantom functions", "PCIe 6.0 §7.5.3.3",
        "the host's IOMMU knows the device by one requester id";
    0x04 4 0xe003_ffe0 CONSTANT Always
        "device capabilities", "PCIe 6.0 §7.5.3.3", "";
    0x04 4 0x1000_0000 NONE Always
        "device capabilities: function level reset", "PCIe 6.0 §7.5.3.3",
        "the host can't reset it";
    0x04 4 0x1000_0000 CONSTANT Reset
        "device capabilities: function level reset", "PCIe 6.0 §7.5.3.3", "";

    0x08 2 0x8200 NONE Always
        "device control: phantom functions, reset", "PCIe 6.0 §7.5.3.4",
        "no phantom functions; an order to reset is carried out, and reads as zero";
    0x08 2 0x000f (guest(0x000f)) Always
        "device control: error reporting", "PCIe 6.0 §7.5.3.4",
        "errors are reported to the host; the guest reads back what it asked for";
    0x08 2 0x7d10 (Access::Shared { writable: 0x7d10 }) Always
        "device control", "PCIe 6.0 §7.5.3.4", "";

    0x0a 2 0xffc0 NONE Always
        "device status: reserved", "PCIe 6.0 §7.5.3.5",
        "reserved";
    0x0a 2 0x000f (latched(0x000f)) Always
        "device status: errors", "PCIe 6.0 §7.5.3.5",
        "what the guest clears is cleared in its view only: the host handles the errors";
    0x0a 2 0x0030 (masked(0x0030)) Always
        "device status: auxiliary power, transactions pending", "PCIe 6.0 §7.5.3.5", "";

    0x0c 8 ALL NONE RootBus
        "link registers", "PCIe 6.0 §7.5.3.6",
        "on the root bus there is no link";
    0x0c 4 0x0004_0c00 NONE BehindPort
        "link capabilities: power states", "PCIe 6.0 §7.5.3.6",
        "when the link sleeps is the host's to choose";
    0x0c 4 0xfffb_f3ff CONSTANT BehindPort
        "link capabilities", "PCIe 6.0 §7.5.3.6", "";
    0x10 2 ALL (Access::Kept { value: 0, writable: 0x00c8 }) BehindPort
        "link control", "PCIe 6.0 §7.5.3.7",
        "the link is set up by the host; the guest reads back what it asked for";
    0x12 2 0xdc00 NONE BehindPort
        "link status: training, bandwidth notifications", "PCIe 6.0 §7.5.3.8",
        "only ports have it";
    0x12 2 0x23ff (masked(0x23ff)) BehindPort
        "link status: speed and width", "PCIe 6.0 §7.5.3.8", "";
    0x12 2 0x1000 CONSTANT BehindPort
        "link status: slot clock", "PCIe 6.0 §7.5.3.8", "";

    0x14 16 ALL NONE Always
        "slot and root registers", "PCIe 6.0 §7.5.3.9",
        "only ports have them";

    0x24 4 0x000f_0860 NONE Second
        "device capabilities 2: ARI, atomic routing, LTR, 10-bit tags, OBFF", "PCIe 6.0 §7.5.3.15",
        "the host's topology would have to agree";
    0x24 4 0xfff0_f79f CONSTANT Second
        "device capabilities 2", "PCIe 6.0 §7.5.3.15", "";
    0x28 2 0xfca0 NONE Second
        "device control 2: ARI, atomic blocking, LTR, tags, OBFF", "PCIe 6.0 §7.5.3.16",
        "the host's topology would have to agree";
    0x28 2 0x035f (Access::Shared { writable: 0x035f }) Second
        "device control 2", "PCIe 6.0 §7.5.3.16", "";
    0x2c 8 ALL NONE RootBus
        "second link registers", "PCIe 6.0 §7.5.3.18",
        "on the root bus there is no link";
    0x2c 4 ALL CONSTANT SecondBehindPort
        "link capabilities 2", "PCIe 6.0 §7.5.3.18", "";
    0x30 2 0x000f CONSTANT SecondBehindPort
        "link control 2: target speed", "PCIe 6.0 §7.5.3.19", "";
    0x30 2 0xfff0 NONE SecondBehindPort
        "link control 2: compliance", "PCIe 6.0 §7.5.3.19",
        "the link is set up by the host";
    0x32 2 0x8820 NONE SecondBehindPort
        "link status 2: equalization request, readiness", "PCIe 6.0 §7.5.3.20",
        "the link is set up by the host";
    0x32 2 0x77df (masked(0x77df)) SecondBehindPort
        "link status 2", "PCIe 6.0 §7.5.3.20", "";
};

/// All of it is the guest's, and nothing that it writes reaches the device: the
/// kernel would take the number of vectors from the guest's control register,
/// and the enable bit without asking. It writes both itself when the vectors
/// are armed. Where data, masks and pending bits are, and for how many vectors,
/// follows from the device: `msi.rs`.
const MSI: &[Rule] = rules! {
    0x02 2 0x0071 (guest(0x0071)) Always
        "message control: enable, vectors enabled", "PCIe 6.0 §7.7.1.2",
        "the host turns interrupts on as the guest needs them";
    0x02 2 0xfe00 NONE Always
        "message control: extended message data", "PCIe 6.0 §7.7.1.2",
        "messages are the guest's, and KVM takes 16 bits of data";
    0x02 2 0x0180 CONSTANT Always
        "message control: 64 bits, masks", "PCIe 6.0 §7.7.1.2", "";
    0x04 4 ALL (guest(0xffff_fffc)) Always
        "message address", "PCIe 6.0 §7.7.1.3",
        "the host sends its own messages, and the guest gets those that it asks for";
};

/// The message control register's number of vectors follows from the device:
/// `msix.rs`.
const MSI_X: &[Rule] = rules! {
    0x02 2 0xc000 (guest(0xc000)) Always
        "message control: enable, function mask", "PCIe 6.0 §7.7.2.2",
        "the host turns interrupts on as the guest needs them";
    0x02 2 0x3800 NONE Always
        "message control: reserved", "PCIe 6.0 §7.7.2.2",
        "reserved";
    0x02 2 0x07ff CONSTANT Always
        "message control: table size", "PCIe 6.0 §7.7.2.2", "";
    0x04 4 ALL CONSTANT Always
        "where the table is", "PCIe 6.0 §7.7.2.3", "";
    0x08 4 ALL CONSTANT Always
        "where the pending bits are", "PCIe 6.0 §7.7.2.4", "";
};

const SATA: &[Rule] = rules! {
    0x02 6 ALL CONSTANT Always
        "where the index and data registers are", "AHCI 1.3.1 §2.4", "";
};

const ADVANCED_FEATURES: &[Rule] = rules! {
    0x02 1 ALL CONSTANT Always
        "length", "PCIe 6.0 §7.9.21", "";
    0x03 1 0xfc NONE Always
        "capabilities: reserved", "PCIe 6.0 §7.9.21",
        "reserved";
    0x03 1 0x01 CONSTANT Always
        "capabilities: transactions pending", "PCIe 6.0 §7.9.21", "";
    0x03 1 0x02 NONE Always
        "capabilities: function level reset", "PCIe 6.0 §7.9.21",
        "the host can't reset it";
    0x03 1 0x02 CONSTANT Reset
        "capabilities: function level reset", "PCIe 6.0 §7.9.21", "";
    0x04 1 ALL NONE Always
        "control", "PCIe 6.0 §7.9.21",
        "an order to reset is carried out, and reads as zero";
    0x05 1 0xfe NONE Always
        "status: reserved", "PCIe 6.0 §7.9.21",
        "reserved";
    0x05 1 0x01 (masked(0x01)) Always
        "status: transactions pending", "PCIe 6.0 §7.9.21", "";
};

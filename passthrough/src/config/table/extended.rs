use super::{Fate, Kind, Size};
use crate::config::rule::{ALL, CONSTANT, LATCHED, NONE, PASSED, READ, Rule, rules};
use crate::config::{resizable, size};

const fn shown(
    id: u16,
    name: &'static str,
    section: &'static str,
    size: Size,
    rules: &'static [Rule],
) -> Kind {
    Kind {
        id,
        name,
        section,
        size,
        fate: Fate::Shown(rules),
    }
}

const fn hidden(id: u16, name: &'static str, section: &'static str, why: &'static str) -> Kind {
    Kind {
        id,
        name,
        section,
        size: Size::Unknown,
        fate: Fate::Hidden(why),
    }
}

/// What of extended config space no shown capability claims. The kernel would
/// let the guest write even to capabilities that it hides itself.
pub(in crate::config) const EXTENDED_SPACE: Rule = Rule::new(
    0x100,
    0xf00,
    NONE,
    ("extended config space", "PCIe 6.0 §7.6"),
    "what no shown capability claims is hidden; conventional PCI has none of it",
);

const ROOT_COMPLEX: &str = "it describes the host's root complex";
const TOPOLOGY: &str = "it belongs to the host's topology";
const LINK: &str = "the link is set up by the host";
const TRANSLATION: &str = "the guest has no IOMMU to translate with";
const FUNCTIONS: &str = "virtual functions are made on the host";
const KEYS: &str = "it speaks with the device's firmware for the host";

/// The capabilities of extended config space, by id.
pub(in crate::config) const EXTENDED: &[Kind] = &[
    hidden(0x0000, "null capability", "PCIe 6.0 §7.9.28", "it is empty"),
    shown(
        0x0001,
        "advanced error reporting",
        "PCIe 6.0 §7.8.4",
        Size::Fixed(0x2c),
        ERRORS,
    ),
    shown(
        0x0002,
        "virtual channels",
        "PCIe 6.0 §7.9.1",
        CHANNEL_SIZE,
        CHANNELS,
    ),
    shown(
        0x0003,
        "device serial number",
        "PCIe 6.0 §7.9.3",
        Size::Fixed(12),
        SERIAL_NUMBER,
    ),
    hidden(
        0x0004,
        "power budgeting",
        "PCIe 6.0 §7.8.1",
        "power budgets are the host's",
    ),
    hidden(
        0x0005,
        "root complex link declaration",
        "PCIe 6.0 §7.9.8",
        ROOT_COMPLEX,
    ),
    hidden(
        0x0006,
        "root complex link control",
        "PCIe 6.0 §7.9.9",
        ROOT_COMPLEX,
    ),
    hidden(
        0x0007,
        "root complex event collector",
        "PCIe 6.0 §7.9.10",
        ROOT_COMPLEX,
    ),
    hidden(
        0x0008,
        "multi-function virtual channels",
        "PCIe 6.0 §7.9.2",
        TOPOLOGY,
    ),
    shown(
        0x0009,
        "virtual channels",
        "PCIe 6.0 §7.9.1",
        CHANNEL_SIZE,
        CHANNELS,
    ),
    hidden(
        0x000a,
        "root complex register block",
        "PCIe 6.0 §7.9.7",
        ROOT_COMPLEX,
    ),
    shown(
        0x000b,
        "vendor-specific",
        "PCIe 6.0 §7.9.5",
        Size::Read(size::extended_vendor, 8),
        VENDOR,
    ),
    hidden(
        0x000c,
        "configuration access correlation",
        "PCI-SIG ECN of 2003 §7.10",
        "it is obsolete",
    ),
    hidden(
        0x000d,
        "access control services",
        "PCIe 6.0 §7.7.11",
        TOPOLOGY,
    ),
    hidden(
        0x000e,
        "ARI",
        "PCIe 6.0 §7.8.8",
        "the guest's topology has no ARI",
    ),
    hidden(
        0x000f,
        "address translation services",
        "PCIe 6.0 §10.5.1",
        TRANSLATION,
    ),
    hidden(0x0010, "SR-IOV", "PCIe 6.0 §9.3.3", FUNCTIONS),
    hidden(0x0011, "MR-IOV", "MR-IOV 1.0 §4", FUNCTIONS),
    hidden(0x0012, "multicast", "PCIe 6.0 §7.9.11", TOPOLOGY),
    hidden(0x0013, "page requests", "PCIe 6.0 §10.5.2", TRANSLATION),
    hidden(
        0x0014,
        "reserved for AMD",
        "PCI Code and ID Assignment 1.11 §3",
        UNSAID,
    ),
    shown(
        0x0015,
        "resizable BARs",
        "PCIe 6.0 §7.8.6",
        Size::Read(resizable::size, 12),
        // For each BAR two registers: `resizable.rs`.
        &[],
    ),
    hidden(
        0x0016,
        "dynamic power allocation",
        "PCIe 6.0 §7.9.12",
        "power budgets are the host's",
    ),
    hidden(
        0x0017,
        "TPH requester",
        "PCIe 6.0 §7.9.13",
        "steering tags name the host's processors",
    ),
    shown(
        0x0018,
        "latency tolerance reporting",
        "PCIe 6.0 §7.8.2",
        Size::Fixed(8),
        LATENCY,
    ),
    hidden(0x0019, "secondary PCI Express", "PCIe 6.0 §7.7.3", LINK),
    hidden(0x001a, "protocol multiplexing", "PCIe 6.0 §G.5", LINK),
    hidden(
        0x001b,
        "process address spaces",
        "PCIe 6.0 §7.8.9",
        "the guest has no IOMMU with process address spaces",
    ),
    hidden(
        0x001c,
        "lightweight notification",
        "PCIe 5.0 §7.9.14",
        TOPOLOGY,
    ),
    hidden(
        0x001d,
        "downstream port containment",
        "PCIe 6.0 §7.9.14",
        TOPOLOGY,
    ),
    hidden(
        0x001e,
        "L1 substates",
        "PCIe 6.0 §7.8.3",
        "when the link sleeps is the host's to choose",
    ),
    hidden(
        0x001f,
        "precision time measurement",
        "PCIe 6.0 §7.9.15",
        "time is measured against the host's ports",
    ),
    hidden(0x0020, "PCI Express over M-PHY", "PCIe 3.1 §8", LINK),
    hidden(0x0021, "function readiness", "PCIe 6.0 §7.8.10", TOPOLOGY),
    hidden(
        0x0022,
        "readiness time",
        "PCIe 6.0 §7.9.16",
        "resets are carried out by the host, in its own time",
    ),
    shown(
        0x0023,
        "designated vendor-specific",
        "PCIe 6.0 §7.9.6",
        Size::Read(size::designated_vendor, 10),
        DESIGNATED_VENDOR,
    ),
    hidden(
        0x0024,
        "resizable BARs of virtual functions",
        "PCIe 6.0 §7.8.7",
        FUNCTIONS,
    ),
    hidden(0x0025, "data link feature", "PCIe 6.0 §7.7.4", LINK),
    hidden(0x0026, "physical layer 16 GT/s", "PCIe 6.0 §7.7.5", LINK),
    hidden(0x0027, "lane margining", "PCIe 6.0 §7.7.10", LINK),
    hidden(0x0028, "hierarchy id", "PCIe 6.0 §7.9.17", TOPOLOGY),
    hidden(
        0x0029,
        "native enclosure management",
        "PCIe 6.0 §7.9.19",
        "the enclosure is the host's",
    ),
    hidden(0x002a, "physical layer 32 GT/s", "PCIe 6.0 §7.7.6", LINK),
    hidden(0x002b, "alternate protocol", "PCIe 6.0 §7.9.20", LINK),
    hidden(
        0x002c,
        "system firmware intermediary",
        "PCIe 6.0 §7.9.22",
        TOPOLOGY,
    ),
    hidden(0x002d, "shadow functions", "PCIe 6.0 §7.9.25", TOPOLOGY),
    hidden(0x002e, "data object exchange", "PCIe 6.0 §7.9.24", KEYS),
    hidden(0x002f, "device 3", "PCIe 6.0 §7.7.9", TOPOLOGY),
    hidden(
        0x0030,
        "integrity and data encryption",
        "PCIe 6.0 §7.9.26",
        KEYS,
    ),
    hidden(0x0031, "physical layer 64 GT/s", "PCIe 6.0 §7.7.7", LINK),
];

const UNSAID: &str = "nobody says what it is";
/// The shortest has one channel.
const CHANNEL_SIZE: Size = Size::Read(size::channels, 0x1c);

/// To look at, for whoever searches a fault from inside the guest. The host's
/// error handling owns it: it enables, clears and recovers.
const ERRORS: &[Rule] = rules! {
    0x04 4 ALL LATCHED Always
        "uncorrectable error status", "PCIe 6.0 §7.8.4.2",
        "what the guest clears is cleared in its view only: the host handles the errors";
    0x08 4 ALL READ Always
        "uncorrectable error mask", "PCIe 6.0 §7.8.4.3", "";
    0x0c 4 ALL READ Always
        "uncorrectable error severity", "PCIe 6.0 §7.8.4.4", "";
    0x10 4 ALL LATCHED Always
        "correctable error status", "PCIe 6.0 §7.8.4.5",
        "what the guest clears is cleared in its view only: the host handles the errors";
    0x14 4 ALL READ Always
        "correctable error mask", "PCIe 6.0 §7.8.4.6", "";
    0x18 4 ALL READ Always
        "capabilities and control", "PCIe 6.0 §7.8.4.7", "";
    0x1c 16 ALL READ Always
        "header log", "PCIe 6.0 §7.8.4.8", "";
};

const SERIAL_NUMBER: &[Rule] = rules! {
    0x04 8 ALL CONSTANT Always
        "serial number", "PCIe 6.0 §7.9.3.2", "";
};

/// What the host's path can bear, as the host has written it there.
const LATENCY: &[Rule] = rules! {
    0x04 4 ALL CONSTANT Always
        "longest latencies", "PCIe 6.0 §7.8.2", "";
};

/// To look at: which traffic takes which channel must fit the whole way to
/// memory.
const CHANNELS: &[Rule] = rules! {
    0x04 0xff ALL READ Always
        "port and channel registers", "PCIe 6.0 §7.9.1", "";
    0x08 4 0xff00_00ff NONE Always
        "port capability 2: arbitration", "PCIe 6.0 §7.9.1.3",
        "the tables for it are set up by the host";
};

const VENDOR: &[Rule] = rules! {
    0x04 4 ALL CONSTANT Always
        "vendor-specific header", "PCIe 6.0 §7.9.5.2", "";
    0x08 0xff8 ALL PASSED Always
        "body", "PCIe 6.0 §7.9.5", "";
};

/// Those of CXL are hidden: `extended.rs`.
const DESIGNATED_VENDOR: &[Rule] = rules! {
    0x04 6 ALL CONSTANT Always
        "designated vendor-specific headers", "PCIe 6.0 §7.9.6", "";
    0x0a 0xff6 ALL PASSED Always
        "body", "PCIe 6.0 §7.9.6", "";
};

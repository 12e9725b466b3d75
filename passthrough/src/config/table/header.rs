use crate::config::rule::{ALL, CONSTANT, NONE, PASSED, Rule, guest, rules};

/// The first 64 bytes (PCIe 6.0 §7.5.1). BARs that there are, the ROM and the
/// links of the capability list override what is said of them here.
pub(in crate::config) const HEADER: &[Rule] = rules! {
    0x00 4 ALL CONSTANT Always
        "vendor and device", "PCIe 6.0 §7.5.1.1.1", "";

    0x04 2 ALL NONE Always
        "command", "PCIe 6.0 §7.5.1.1.3",
        "what a function does not implement reads as zero";
    0x04 2 0x0544 (guest(0x0544)) Always
        "command: bus master, parity, SERR, interrupt pin off", "PCIe 6.0 §7.5.1.1.3",
        "the guest starts with everything off; bus mastering reaches the device when memory is mapped";
    0x04 2 0x0001 (guest(0x0001)) Ports
        "command: ports", "PCIe 6.0 §7.5.1.1.3",
        "the guest starts with everything off";
    0x04 2 0x0002 (guest(0x0002)) Memory
        "command: memory", "PCIe 6.0 §7.5.1.1.3",
        "the guest starts with everything off";

    // Asking the device for the error bits would cost a system call each time
    // that a guest looks for a capability.
    0x06 2 ALL NONE Always
        "status: errors", "PCIe 6.0 §7.5.1.1.4",
        "errors are the host's to handle and clear";
    0x06 2 0x0008 (guest(0)) Always
        "status: pending interrupt", "PCIe 6.0 §7.5.1.1.4",
        "asked of the device while its pin is what it interrupts by";
    0x06 2 0x06a0 CONSTANT Always
        "status: bus timing", "PCIe 6.0 §7.5.1.1.4", "";

    0x08 4 ALL CONSTANT Always
        "revision and class", "PCIe 6.0 §7.5.1.1.5", "";
    0x0c 2 ALL PASSED Conventional
        "cache line size, latency timer", "PCI 3.0 §6.2.4", "";
    0x0c 1 ALL (guest(0xff)) Express
        "cache line size", "PCIe 6.0 §7.5.1.1.7",
        "a note without effect on PCI Express, and the guest's own";
    0x0d 1 ALL NONE Express
        "latency timer", "PCIe 6.0 §7.5.1.1.8",
        "PCI Express has none";
    0x0e 1 0x7f CONSTANT Always
        "header type", "PCIe 6.0 §7.5.1.1.9", "";
    0x0e 1 0x80 NONE Always
        "header type: multi-function", "PCIe 6.0 §7.5.1.1.9",
        "where a function stands among others is the guest topology's to say";
    0x0f 1 ALL NONE Always
        "self-test", "PCIe 6.0 §7.5.1.1.10",
        "a self-test takes the function off the bus for up to two seconds";

    0x10 24 ALL NONE Always
        "base address registers", "PCIe 6.0 §7.5.1.2.1",
        "a BAR to which the host gave no address can't be used";
    0x28 4 ALL CONSTANT Always
        "CardBus CIS pointer", "PCIe 6.0 §7.5.1.2.2", "";
    0x2c 4 ALL CONSTANT Always
        "subsystem", "PCIe 6.0 §7.5.1.2.3", "";
    0x30 4 ALL NONE Always
        "expansion ROM", "PCIe 6.0 §7.5.1.2.4",
        "it has no ROM, or none that the guest is to see";
    0x34 8 ALL NONE Always
        "capabilities pointer, reserved", "PCIe 6.0 §7.5.1.1.11",
        "no capability is left to point to";
    0x3c 1 ALL (guest(0xff)) Always
        "interrupt line", "PCIe 6.0 §7.5.1.1.12",
        "the guest's notes";
    0x3d 1 ALL NONE Always
        "interrupt pin", "PCIe 6.0 §7.5.1.1.13",
        "it has none, or none that the host can deliver";
    0x3d 1 ALL CONSTANT Pin
        "interrupt pin", "PCIe 6.0 §7.5.1.1.13", "";
    0x3e 2 ALL CONSTANT Always
        "Min_Gnt and Max_Lat", "PCIe 6.0 §7.5.1.2.5", "";
};

/// What no capability claims of the first 256 bytes. A few drivers have
/// registers there; the kernel lets them through as they are, and the IOMMU
/// bounds what they can do, as it does for registers in BARs.
pub(in crate::config) const GAP: Rule = Rule::new(
    0,
    u16::MAX,
    PASSED,
    ("device-specific registers", "PCIe 6.0 §7.5.1"),
    "",
);

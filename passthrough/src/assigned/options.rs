use serde::{Deserialize, Serialize};

/// How a device is given to a guest: what is the embedding monitor's choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AssignOptions {
    /// What the guest finds in its option ROM.
    pub rom: RomSource,
    /// Where it will stand in the guest's topology.
    pub placement: Placement,
}

/// What the guest finds in a device's option ROM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RomSource {
    /// What the device has in it, read when the guest first looks.
    #[default]
    Device,
    /// No ROM: its register reads as zero.
    Off,
    /// These bytes, at most 16 MiB (PCIe 6.0 §7.5.1.2.4). The ROM gets the next
    /// power of two as its size.
    File(Vec<u8>),
}

/// Where a device stands in the guest's topology. What a PCI Express
/// capability says must fit its place (PCIe 6.0 §7.5.3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// On the root bus: conventional PCI, and endpoints that are integrated
    /// into the root complex. A device that is an endpoint with a link on the
    /// host becomes an integrated one.
    #[default]
    RootBus,
    /// Behind a port: an endpoint with a link.
    BehindPort,
}

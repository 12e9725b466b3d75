use std::fmt;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use super::regime::Regime;
use crate::host::{Function, Group, GroupMember, Survey};

/// One device of a group, and whether it lets the group be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name in sysfs.
    pub name: String,
    /// Its address, when it is a PCI function.
    pub address: Option<PciAddress>,
    /// Its state.
    pub state: MemberState,
}

/// What a member of a group is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum MemberState {
    /// It has no driver.
    Driverless,
    /// It is ready for a guest.
    Vfio {
        /// vfio-pci or a variant of it.
        driver: String,
    },
    /// Its driver leaves DMA alone: pci-stub or pcieport.
    Harmless {
        /// The driver.
        driver: String,
    },
    /// A bridge: kernels up to 5.18 let every one pass.
    Bridge {
        /// The driver.
        driver: String,
    },
    /// The host is using it. Blocks.
    HostDriver {
        /// The driver.
        driver: String,
    },
    /// What it is doing could not be found out. Blocks.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl MemberState {
    /// Whether the group can't be taken because of this member.
    pub fn blocks(&self) -> bool {
        matches!(self, Self::HostDriver { .. } | Self::Unknown { .. })
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driverless => f.write_str("has no driver"),
            Self::Vfio { driver } => write!(f, "is on {driver}"),
            Self::Harmless { driver } => write!(f, "is on {driver}, which does no DMA"),
            Self::Bridge { driver } => write!(f, "is a bridge (on {driver})"),
            Self::HostDriver { driver } => write!(f, "is on the host driver '{driver}'"),
            Self::Unknown { reason } => write!(f, "is in a state that can't be told: {reason}"),
        }
    }
}

/// Whether `driver` hands devices to guests: vfio-pci and its variants, such
/// as mlx5_vfio_pci. `vfio_device` is the name that VFIO gave the device, if
/// it did: then the driver is one whatever it is called.
pub fn is_vfio_driver(driver: &str, vfio_device: Option<&str>) -> bool {
    let name = driver.replace('-', "_");
    vfio_device.is_some() || name == "vfio_pci" || name.ends_with("_vfio_pci")
}

impl Member {
    pub(super) fn judge(
        survey: &Survey,
        group: &Group,
        member: &GroupMember,
        regime: Regime,
    ) -> Self {
        let function = member
            .address
            .map(|address| survey.functions.get(&address).ok_or(address));
        let state = match function {
            Some(Ok(function)) => of_function(function, regime),
            Some(Err(address)) => MemberState::Unknown {
                reason: format!("{address} came or went while the host was read; try again"),
            },
            None => of_other(group, member),
        };
        Self {
            name: member.name.clone(),
            address: member.address,
            state,
        }
    }
}

fn of_function(function: &Function, regime: Regime) -> MemberState {
    if let Some(what) = function.unreadable.iter().find(|what| {
        // The other attributes don't bear on viability.
        ["driver", "secondary_bus_number"].contains(&what.attribute.as_str())
    }) {
        let reason = format!("{}: {}", what.attribute, what.reason);
        return MemberState::Unknown { reason };
    }
    let Some(driver) = function.driver.clone() else {
        return MemberState::Driverless;
    };
    if is_vfio_driver(&driver, function.vfio_device.as_deref()) {
        return MemberState::Vfio { driver };
    }
    match regime {
        Regime::AllowList if function.is_bridge() => MemberState::Bridge { driver },
        Regime::DmaOwnership if driver == "pcieport" => MemberState::Harmless { driver },
        _ if driver == "pci-stub" => MemberState::Harmless { driver },
        _ => MemberState::HostDriver { driver },
    }
}

/// A device on another bus, as Arm machines have them in their groups.
fn of_other(group: &Group, member: &GroupMember) -> MemberState {
    let link = format!("devices/{}/driver", member.name);
    if let Some(what) = group.unreadable.iter().find(|what| what.attribute == link) {
        let reason = format!("{link}: {}", what.reason);
        return MemberState::Unknown { reason };
    }
    match member.driver.clone() {
        None => MemberState::Driverless,
        Some(driver) if driver.starts_with("vfio-") => MemberState::Vfio { driver },
        Some(driver) => MemberState::HostDriver { driver },
    }
}

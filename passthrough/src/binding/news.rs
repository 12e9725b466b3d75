use std::fmt;

use super::device::DeviceName;
use crate::host::GroupId;

/// What the guard saw happen to a group of the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardEvent {
    /// A device came into the group.
    Joined {
        /// The group.
        group: GroupId,
        /// The device.
        device: DeviceName,
        /// What became of it.
        fate: Fate,
    },
    /// A member is on a driver that does DMA for the host. The kernel refuses
    /// that while the group is held, from 5.19 on.
    HostDriver {
        /// The group.
        group: GroupId,
        /// The member.
        device: DeviceName,
        /// The driver.
        driver: String,
    },
    /// Somebody unbinds or unplugs a device that the guest has, and waits until
    /// it is let go.
    Leaving {
        /// The group.
        group: GroupId,
        /// The device.
        device: DeviceName,
    },
    /// A member is not in the group any more.
    Left {
        /// The group.
        group: GroupId,
        /// What was its member.
        device: DeviceName,
    },
    /// The members of the group can't be listed.
    Unseen {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// Nothing will be heard of any group any more.
    Deaf {
        /// Why.
        reason: String,
    },
}

/// What became of a device that came into a held group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Only `wanted` can have it from now on.
    Held {
        /// The driver that it is on. None when the kernel refused the host's
        /// for it (`EBUSY`), or looks for one now.
        driver: Option<String>,
        /// VFIO's driver for it.
        wanted: String,
    },
    /// It does no DMA for the host as it is: a bridge, or on a driver that
    /// leaves DMA alone.
    Harmless {
        /// The driver.
        driver: Option<String>,
    },
    /// It has no driver, but nothing keeps one from it besides the kernel,
    /// which refuses every host driver as long as the group is held.
    NotHeld {
        /// Why not.
        reason: String,
    },
    /// A host driver was faster.
    Taken {
        /// The driver.
        driver: String,
    },
}

impl GuardEvent {
    /// Whether the guest can't keep all that it has of the group.
    pub fn loses_viability(&self) -> bool {
        self.lost_group().is_some()
    }

    /// The group of which the guest can't keep all.
    pub(super) fn lost_group(&self) -> Option<GroupId> {
        match self {
            Self::HostDriver { group, .. }
            | Self::Leaving { group, .. }
            | Self::Joined {
                group,
                fate: Fate::Taken { .. },
                ..
            } => Some(*group),
            Self::Joined { .. } | Self::Left { .. } | Self::Unseen { .. } | Self::Deaf { .. } => {
                None
            }
        }
    }
}

impl fmt::Display for GuardEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joined {
                group,
                device,
                fate,
            } => write!(
                f,
                "device {device} came into IOMMU group {group}, which the guest has: {fate}"
            ),
            Self::HostDriver {
                group,
                device,
                driver,
            } => write!(
                f,
                "the host driver '{driver}' has taken device {device} of IOMMU group {group}, \
                 which the guest has: unbind it, or bind it with `airlock bind {device}`"
            ),
            Self::Leaving { group, device } => write!(
                f,
                "the host wants device {device} of IOMMU group {group} back: somebody is \
                 unbinding it from its VFIO driver or unplugging it, and waits for the guest to \
                 let it go"
            ),
            Self::Left { group, device } => {
                write!(
                    f,
                    "device {device} is not in IOMMU group {group} any more: it has left the host"
                )
            }
            Self::Unseen { group, reason } => write!(
                f,
                "the members of IOMMU group {group} can't be listed, so that a change of it goes \
                 unseen: {reason}"
            ),
            Self::Deaf { reason } => write!(
                f,
                "changes to the host's devices are not heard of any more: {reason}. End the VM \
                 before you change anything about the groups of its devices"
            ),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held {
                driver: None,
                wanted,
            } => write!(
                f,
                "the kernel lets no host driver have it while the group is held (EBUSY), and its \
                 driver_override is {wanted} until the guest ends"
            ),
            Self::Held {
                driver: Some(driver),
                ..
            } => write!(f, "it is on {driver} until the guest ends"),
            Self::Harmless { driver: None } => {
                f.write_str("a bridge, which does no harm and is left alone")
            }
            Self::Harmless {
                driver: Some(driver),
            } => write!(
                f,
                "it is on {driver}, which does no harm, and is left alone"
            ),
            Self::NotHeld { reason } => write!(
                f,
                "it has no driver, and only the kernel keeps the host's from it (EBUSY), as its \
                 driver_override can't be set: {reason}"
            ),
            Self::Taken { driver } => write!(
                f,
                "the host driver '{driver}' was faster, so that the group is not viable any more: \
                 unbind it"
            ),
        }
    }
}

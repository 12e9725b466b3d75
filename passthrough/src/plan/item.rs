use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use crate::host::GroupId;
use crate::viability::Remedy;

/// One check and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What was checked.
    pub check: Check,
    /// What it was checked of.
    pub subject: Subject,
    /// How it went.
    pub outcome: Outcome,
    /// What was found: a sentence that names the thing and the cause.
    pub reason: String,
    /// What to do about it; each one is a step, to be taken in this order.
    pub remedies: Vec<Remedy>,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it must be.
    Passed,
    /// It works, or may work, but the user should know.
    Warning,
    /// It can't work.
    Failed,
}

/// What a check is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The machine.
    Host,
    /// A device that was asked for.
    Device(PciAddress),
    /// The group of such a device.
    Group(GroupId),
    /// What the user wrote.
    Argument(String),
}

/// The checks that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// What the user wrote names a device that exists, once.
    Argument,
    /// What sysfs says of it can be read and understood.
    Readable,
    /// The function is of a kind that can be assigned.
    Assignable,
    /// The device is in a group of a real IOMMU.
    Isolation,
    /// The host can do without the device.
    HostNeeds,
    /// The device is on a VFIO driver.
    Driver,
    /// The device can be reset without others.
    Reset,
    /// No member of the group blocks.
    Viability,
    /// Why the group has several members.
    Shared,
    /// Several of its devices were asked for.
    Together,
    /// Firmware does not hold on to the group's memory maps.
    ReservedRegions,
    /// The group's file is there and may be opened.
    GroupFile,
    /// No other process has the group.
    InUse,
    /// The host has an IOMMU.
    Iommu,
    /// Interrupts of devices are checked.
    InterruptRemapping,
    /// By which interface devices are taken.
    Backend,
    /// The VFIO container is there and may be opened.
    Container,
    /// iommufd is there and may be opened.
    Iommufd,
    /// The device's own file is there and may be opened.
    DeviceFile,
    /// `/dev/kvm` is there and may be opened.
    Kvm,
    /// The guest's memory may be locked.
    LockedMemory,
    /// The guest's memory is within the IOMMU's reach.
    AddressWidth,
    /// Each piece of the guest's RAM is where devices can reach it.
    GuestMemory,
    /// There is room for the BARs where devices and guest can reach them.
    Bars,
    /// There are as many huge pages as were asked for.
    HugePages,
    /// The kernel was asked for real, see [`claim`](crate::claim).
    Claim,
}

impl Item {
    pub(super) fn new(
        check: Check,
        subject: Subject,
        outcome: Outcome,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            check,
            subject,
            outcome,
            reason: reason.into(),
            remedies: Vec::new(),
        }
    }

    pub(super) fn passed(check: Check, subject: Subject, reason: impl Into<String>) -> Self {
        Self::new(check, subject, Outcome::Passed, reason)
    }

    pub(super) fn warning(check: Check, subject: Subject, reason: impl Into<String>) -> Self {
        Self::new(check, subject, Outcome::Warning, reason)
    }

    pub(super) fn failed(check: Check, subject: Subject, reason: impl Into<String>) -> Self {
        Self::new(check, subject, Outcome::Failed, reason)
    }

    pub(super) fn fix(mut self, remedy: Remedy) -> Self {
        self.remedies.push(remedy);
        self
    }

    pub(super) fn fixes(mut self, remedies: impl IntoIterator<Item = Remedy>) -> Self {
        self.remedies.extend(remedies);
        self
    }
}

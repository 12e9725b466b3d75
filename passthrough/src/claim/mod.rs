//! The proof: the devices of a plan are really taken, and given back at once.
//!
//! A plan predicts from what sysfs shows, and sysfs does not show who owns a
//! group's DMA. The kernel does know, so it is asked, in the order and by the
//! calls of [`open`](fn@crate::open): container, group, DMA ownership, IOMMU.
//! Then one page of memory is mapped at the end of each range that the guest
//! needs.
//!
//! The devices themselves stay closed. Their first open resets them, by the
//! group's way and by that of `/dev/vfio/devices` and iommufd alike
//! (`vfio_pci_core_enable`), and proves little more: ownership, isolation of
//! interrupts and address ranges belong to the group. What a claim leaves open
//! is so whether the device comes out of its reset, and a VF's token. A device
//! that VFIO does not have is asked for by its name, which touches nothing.
//!
//! Answers come as [`Item`]s for the plan's report. Where kernel and plan
//! disagree, another item says so.

mod prediction;
mod proof;

use devices::pci::PciAddress;

use crate::attach::{ContainerKind, Hold, Refusal};
use crate::host::{GroupId, Survey};
use crate::iommu::{IovaRange, SpaceLimits};
use crate::plan::{Item, Plan};

/// Takes the devices of `plan`, which was made from `survey`, and gives them
/// back. `guest` are the ranges of guest physical addresses that the devices
/// are to reach: none when the guest's size is not known.
///
/// Changes nothing on the host that outlives the call. For its length nobody
/// else can take the groups. Resets no device.
///
/// ```no_run
/// use passthrough::{claim::claim, host::{Host, Survey}, plan::{Plan, Request}};
///
/// let survey = Survey::read(&Host::system())?;
/// let mut plan = Plan::make(&survey, &Request {
///     devices: vec!["0000:01:00.0".to_owned()],
///     ..Request::default()
/// });
/// plan.items.extend(claim(&survey, &plan, &[]));
/// println!("{plan}");
/// # Ok::<(), passthrough::host::SurveyError>(())
/// ```
pub fn claim(survey: &Survey, plan: &Plan, guest: &[IovaRange]) -> Vec<Item> {
    if plan.devices.is_empty() {
        return Vec::new();
    }
    proof::prove(survey, plan, guest, Hold::open())
}

/// What is asked of the kernel. A trait, so that the proof can be tried on
/// every answer.
trait Kernel {
    /// Takes a group, or nothing.
    fn take(&mut self, group: GroupId) -> Result<(), Refusal>;

    /// Opens a device of a group that was taken, and closes it again.
    fn open_device(&self, group: GroupId, device: PciAddress) -> std::io::Result<()>;

    /// What the groups that were taken can map.
    fn limits(&self) -> std::io::Result<SpaceLimits>;

    /// Maps a page and unmaps it.
    fn try_map(&self, iova: u64) -> std::io::Result<()>;

    /// The size of that page.
    fn page_size(&self) -> u64;

    /// Whether the container is really an iommufd.
    fn is_compatibility(&self) -> bool;
}

impl Kernel for Hold {
    fn take(&mut self, group: GroupId) -> Result<(), Refusal> {
        self.take(group.0)
    }

    fn open_device(&self, group: GroupId, device: PciAddress) -> std::io::Result<()> {
        self.open_device(group.0, device)
    }

    fn limits(&self) -> std::io::Result<SpaceLimits> {
        self.limits()
    }

    fn try_map(&self, iova: u64) -> std::io::Result<()> {
        self.try_map(iova)
    }

    fn page_size(&self) -> u64 {
        crate::sys::page_size()
    }

    fn is_compatibility(&self) -> bool {
        self.kind() == ContainerKind::Iommufd
    }
}

#[cfg(test)]
mod proof_test;

use std::io;

/// The kernel's steps to a device. Those by group and those by cdev stand in
/// their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Opening `/dev/vfio/vfio`.
    OpenContainer,
    /// Asking whether it speaks our version and type1.
    CheckContainer,
    /// Opening `/dev/vfio/GROUP`.
    OpenGroup,
    /// The group says that it is not viable.
    NotViable,
    /// Putting the group into the container: claims the group's DMA.
    ClaimGroup,
    /// Choosing type1: attaches the group to the IOMMU.
    SetIommu,
    /// Telling KVM of the group, or of the device.
    TellKvm,
    /// Opening the device through its group: resets it.
    OpenDevice,
    /// Opening `/dev/iommu`.
    OpenIommufd,
    /// Making an address space in it.
    AllocIoas,
    /// Opening `/dev/vfio/devices/vfioN`.
    OpenCdev,
    /// Binding the device to the iommufd: claims its group's DMA, resets it.
    BindIommufd,
    /// Attaching the device to the address space.
    AttachIoas,
    /// Asking the device what it has.
    DescribeDevice,
    /// Asking what the IOMMU can map.
    AskLimits,
}

impl Step {
    /// Says that this step failed, and with what.
    pub(crate) fn refused(self, source: io::Error) -> Refusal {
        Refusal { step: self, source }
    }
}

/// A step that the kernel refused, and its answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) step: Step,
    pub(crate) source: io::Error,
}

use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use devices::pci::PciAddress;

use crate::vfio::VfToken;

/// What answers to the requests of a VFIO container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerKind {
    /// VFIO's own container.
    Vfio,
    /// iommufd, which understands the requests of a container (its
    /// compatibility interface).
    Iommufd,
}

/// What is asked of the kernel on the way to a device. A trait, so that the way
/// can be tried with each step failing.
///
/// Errors are the kernel's, untouched. Files close when they are dropped.
pub(crate) trait Calls: Send + Sync + Debug {
    /// Opens `/dev/vfio/vfio`.
    fn open_container(&self) -> io::Result<OwnedFd>;

    /// Asks a container whether it speaks our version and type1, and what it
    /// is. `Unsupported` when it does not.
    fn check_container(&self, container: BorrowedFd<'_>) -> io::Result<ContainerKind>;

    /// Opens `/dev/vfio/GROUP`.
    fn open_group(&self, group: u32) -> io::Result<OwnedFd>;

    /// Whether nobody else owns the group's DMA (before Linux 5.19: whether no
    /// member of it has a host driver).
    fn group_is_viable(&self, group: BorrowedFd<'_>) -> io::Result<bool>;

    /// Puts a group into a container.
    fn join_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()>;

    /// Has a container that has a group choose the type1 IOMMU.
    fn set_iommu(&self, container: BorrowedFd<'_>) -> io::Result<()>;

    /// Takes a group out of its container. Devices of it must be closed. A
    /// group that is in none is fine.
    fn leave_container(&self, group: BorrowedFd<'_>) -> io::Result<()>;

    /// Opens a device of a group in a container, which resets it.
    fn open_device(
        &self,
        group: BorrowedFd<'_>,
        device: PciAddress,
        token: Option<VfToken>,
    ) -> io::Result<OwnedFd>;

    /// Opens `/dev/iommu`.
    fn open_iommufd(&self) -> io::Result<OwnedFd>;

    /// Makes an address space. Answers its number.
    fn alloc_ioas(&self, iommufd: BorrowedFd<'_>) -> io::Result<u32>;

    /// Ends an address space. No device may be attached to it.
    fn destroy_ioas(&self, iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<()>;

    /// Opens `/dev/vfio/devices/vfioN` of a device.
    fn open_cdev(&self, device: PciAddress) -> io::Result<OwnedFd>;

    /// Binds a device to an iommufd, until its file closes.
    fn bind_iommufd(
        &self,
        cdev: BorrowedFd<'_>,
        iommufd: BorrowedFd<'_>,
        token: Option<VfToken>,
    ) -> io::Result<()>;

    /// Attaches a device that is bound to an address space of its iommufd,
    /// until its file closes.
    fn attach_ioas(&self, cdev: BorrowedFd<'_>, ioas: u32) -> io::Result<()>;

    /// Tells KVM's VFIO device of a group's or a device's file.
    fn tell_kvm(&self, kvm: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()>;

    /// Has KVM's VFIO device let go of a file that it was told of.
    fn untell_kvm(&self, kvm: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()>;
}

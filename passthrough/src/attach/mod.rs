//! The way to a device and back: which files are opened and what is asked of
//! them, in which order, and how each step is undone.
//!
//! ```text
//!  by group (type1)                          by cdev (iommufd)
//!    /dev/vfio/vfio                            /dev/iommu
//!    /dev/vfio/GROUP, viable?                  one address space (IOAS) in it
//!    group into container: DMA claimed         /dev/vfio/devices/vfioN
//!    first group: type1 chosen                 KVM told of the device
//!    KVM told of the group                     bound to the iommufd: DMA claimed, reset
//!    device opened: reset                      attached to the IOAS
//! ```
//!
//! The last step by group, and the last two by cdev, are taken for all devices at the
//! same time: a reset is a wait of a tenth of a second or longer.
//!
//! A step that fails undoes those before it. What is open closes when its last
//! user is dropped, in the order of the drawing from the bottom up.

mod by_cdev;
mod by_group;
mod calls;
mod device;
#[cfg(test)]
mod fake_kernel;
mod hold;
mod kernel;
mod step;
#[cfg(test)]
mod undo_test;

pub(crate) use by_cdev::{Ioas, OpenCdev};
pub(crate) use by_group::{Container, GroupMember};
pub(crate) use calls::{Calls, ContainerKind};
pub(crate) use device::AttachedDevice;
pub(crate) use hold::Hold;
pub(crate) use kernel::KernelCalls;
pub(crate) use step::{Refusal, Step};

use std::any::Any;
use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;
use vfio_ioctls::{VfioContainer, VfioError};

use super::group::GroupFile;
use super::hot_reset::{OwnedGroup, Ownership};
use crate::ports::HostMemory;

/// The kernel's steps to a device, in their order.
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
    /// Telling KVM of the group.
    TellKvm,
    /// Opening the device: resets it.
    OpenDevice,
    /// Asking the device what it has.
    DescribeDevice,
}

/// A step that the kernel refused, and its answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) step: Step,
    pub(crate) source: io::Error,
}

/// KVM's VFIO device (linux/kvm.h, `KVM_DEV_TYPE_VFIO`).
struct KvmVfio(DeviceFd);

impl KvmVfio {
    fn new(fd: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned and handed over.
        Self(unsafe { DeviceFd::from_raw_fd(fd.into_raw_fd()) })
    }

    /// Adds or removes (`action`) the group's file.
    fn set(&self, group: &GroupFile, action: u32) -> io::Result<()> {
        // The kernel reads the number at this address during the call.
        let fd: i32 = group.as_fd().as_raw_fd();
        let attribute = kvm_device_attr {
            flags: 0,
            group: KVM_DEV_VFIO_FILE,
            attr: action.into(),
            addr: std::ptr::from_ref(&fd) as u64,
        };
        let result = self.0.set_device_attr(&attribute);
        result.map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

/// The groups in a container.
struct Groups {
    kvm: Option<KvmVfio>,
    /// How many devices of a group are open, and the group. Those without any
    /// are not in here.
    ///
    /// Lock order: innermost. Held while a group comes or goes, so that nobody
    /// takes a container for attached that is losing its last one.
    open: Mutex<HashMap<u32, (usize, GroupFile)>>,
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, (usize, GroupFile)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens `id` and brings it into `container`, and before KVM.
    fn open_group(
        &self,
        id: u32,
        container: BorrowedFd<'_>,
        first: bool,
    ) -> Result<GroupFile, Refusal> {
        // Closing it leaves the container again.
        let group = GroupFile::open(id)?;
        group.join(container, first)?;
        if let Some(kvm) = &self.kvm {
            kvm.set(&group, KVM_DEV_VFIO_FILE_ADD)
                .map_err(|source| Refusal {
                    step: Step::TellKvm,
                    source,
                })?;
        }
        Ok(group)
    }

    /// Undoes [`Self::open_group`]. Its devices are closed.
    fn close_group(&self, id: u32, group: GroupFile) {
        // KVM's hold on the file would keep it open.
        if let Some(kvm) = &self.kvm
            && let Err(error) = kvm.set(&group, KVM_DEV_VFIO_FILE_DEL)
        {
            log::error!("KVM does not let IOMMU group {id} go: {error}");
        }
        if let Err(error) = group.leave() {
            log::error!("IOMMU group {id} does not leave its container: {error}");
        }
    }
}

/// An open device of a container. Its file closes when it is dropped. With the
/// last device of a group, the group leaves KVM and the container and is closed
/// too.
///
/// Nothing of sysfs is asked for that: when the host is waiting to remove the
/// device, it is gone from there as soon as its file is closed.
#[derive(Debug)]
pub(crate) struct AttachedDevice {
    // Dropped in this order.
    file: OwnedFd,
    membership: Membership,
}

impl AsFd for AttachedDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AttachedDevice {
    /// Has `act` see what proves that this process owns the device and its
    /// neighbours. Until it is done, no group comes or goes.
    pub(crate) fn with_ownership<T>(&self, act: impl FnOnce(&Ownership<'_>) -> T) -> T {
        let open = self.membership.groups.lock();
        let groups = open.iter().map(|(&id, (devices, group))| OwnedGroup {
            id,
            open: *devices,
            file: group.as_fd(),
        });
        act(&Ownership::Groups(&groups.collect::<Vec<_>>()))
    }
}

/// One device's part in keeping its group in the container.
struct Membership {
    // Dropped in this order: the container outlives its groups.
    group: u32,
    groups: Arc<Groups>,
    _container: Arc<dyn Any + Send + Sync>,
}

impl Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of IOMMU group {}", self.group)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut open = self.groups.lock();
        let Some((devices, _)) = open.get_mut(&self.group) else {
            return;
        };
        *devices = devices.saturating_sub(1);
        if *devices == 0
            && let Some((_, group)) = open.remove(&self.group)
        {
            self.groups.close_group(self.group, group);
        }
    }
}

/// A VFIO container with the type1 IOMMU: the groups in it share one address
/// space. Closes when it and the last device in it are gone.
///
/// `vfio-ioctls` opens it and maps memory; the groups and devices are not given
/// to it. Its `VfioDevice` panics in `drop` when the device has left sysfs, as
/// it has when the host waits to remove it, and takes a group away from under
/// its other devices.
pub(crate) struct Container {
    groups: Arc<Groups>,
    container: Arc<VfioContainer>,
}

impl Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("fd", &self.as_fd())
            .finish_non_exhaustive()
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the container, which is
        // borrowed for as long as the answer.
        unsafe { BorrowedFd::borrow_raw(self.container.as_raw_fd()) }
    }
}

impl Container {
    /// Opens a container. Groups are made known to KVM through `kvm`, KVM's
    /// VFIO device, if it is given; it closes with the container.
    pub(crate) fn open(kvm: Option<OwnedFd>) -> Result<Self, Refusal> {
        // Without KVM's device: which groups there are is minded here.
        let container = VfioContainer::new(None).map_err(|error| match error {
            VfioError::OpenContainer(source) => Refusal {
                step: Step::OpenContainer,
                source,
            },
            // Another version, or no type1.
            error => Refusal {
                step: Step::CheckContainer,
                source: io::Error::new(io::ErrorKind::Unsupported, error.to_string()),
            },
        })?;
        let groups = Groups {
            kvm: kvm.map(KvmVfio::new),
            open: Mutex::default(),
        };
        Ok(Self {
            groups: Arc::new(groups),
            container: Arc::new(container),
        })
    }

    /// Opens the device called `name` in sysfs, a member of group `id`, and
    /// brings its group into the container if it is not there yet.
    pub(crate) fn attach(&self, name: &str, id: u32) -> Result<AttachedDevice, Refusal> {
        let mut open = self.groups.lock();
        let first = open.is_empty();
        let (devices, group) = match open.remove(&id) {
            Some(known) => known,
            None => (0, self.groups.open_group(id, self.as_fd(), first)?),
        };
        match group.open_device(name) {
            Ok(file) => {
                open.insert(id, (devices + 1, group));
                Ok(AttachedDevice {
                    file,
                    membership: Membership {
                        group: id,
                        groups: Arc::clone(&self.groups),
                        _container: Arc::clone(&self.container) as Arc<dyn Any + Send + Sync>,
                    },
                })
            }
            Err(source) => {
                if devices == 0 {
                    self.groups.close_group(id, group);
                } else {
                    open.insert(id, (devices, group));
                }
                let step = Step::OpenDevice;
                Err(Refusal { step, source })
            }
        }
    }

    /// Whether a group is in the container. The kernel undoes every map when
    /// the last one leaves.
    pub(crate) fn has_groups(&self) -> bool {
        !self.groups.lock().is_empty()
    }

    /// Lets the container's devices read and write `memory` as `iova`. The
    /// caller keeps `memory` until the range is unmapped or the container has
    /// no group.
    ///
    /// # Errors
    /// The kernel's; nothing is mapped then.
    pub(crate) fn map_dma(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()> {
        let address = memory.address().as_ptr();
        // SAFETY: the contract of `HostMemory`: mapped as long as it lives, and
        // not Rust data.
        let result = unsafe { self.container.vfio_dma_map(iova, memory.size(), address) };
        result.map_err(|error| match error {
            VfioError::IommuDmaMap(errno) => io::Error::from_raw_os_error(errno.errno()),
            error => io::Error::other(error),
        })
    }

    /// Takes a range away from the container's devices. Answers how many bytes
    /// were mapped there.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn unmap_dma(&self, iova: u64, size: u64) -> io::Result<u64> {
        super::container::unmap_dma(self.as_fd(), iova, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// The way of the last device out, with files that are none of VFIO's.
    #[test]
    fn a_group_stays_as_long_as_one_of_its_devices() {
        let null = || File::open("/dev/null").unwrap();
        let groups = Arc::new(Groups {
            kvm: None,
            open: Mutex::default(),
        });
        groups.lock().insert(5, (2, GroupFile::of(null())));
        let container: Arc<dyn Any + Send + Sync> = Arc::new(());
        let device = || AttachedDevice {
            file: null().into(),
            membership: Membership {
                group: 5,
                groups: Arc::clone(&groups),
                _container: Arc::clone(&container),
            },
        };
        let (first, second) = (device(), device());
        drop(first);
        assert!(!groups.lock().is_empty());
        drop(second);
        assert!(groups.lock().is_empty());
        assert_eq!(Arc::strong_count(&container), 1, "the container may go too");
    }
}

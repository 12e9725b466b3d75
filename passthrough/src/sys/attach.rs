use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;
use vfio_bindings::bindings::vfio::{VFIO_API_VERSION, VFIO_BASE, VFIO_TYPE, VFIO_TYPE1v2_IOMMU};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_val};
use vmm_sys_util::ioctl_io_nr;

use super::group::GroupFile;

ioctl_io_nr!(VFIO_GET_API_VERSION, VFIO_TYPE as u32, VFIO_BASE);
ioctl_io_nr!(VFIO_CHECK_EXTENSION, VFIO_TYPE as u32, VFIO_BASE + 1);

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

/// What the groups of a container share.
struct Shared {
    // Dropped in this order.
    kvm: Option<KvmVfio>,
    container: File,
    /// How many devices of a group are open, and the group. Those without any
    /// are not in here.
    ///
    /// Lock order: innermost. Held while a group comes or goes, so that nobody
    /// takes a container for attached that is losing its last one.
    groups: Mutex<HashMap<u32, (usize, GroupFile)>>,
}

impl Shared {
    fn groups(&self) -> MutexGuard<'_, HashMap<u32, (usize, GroupFile)>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens `id` and brings it into the container, and before KVM.
    fn open_group(&self, id: u32, first: bool) -> Result<GroupFile, Refusal> {
        // Closing it leaves the container again.
        let group = GroupFile::open(id)?;
        group.join(self.container.as_fd(), first)?;
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
    _membership: Membership,
}

impl AsFd for AttachedDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One device's part in keeping its group in the container.
struct Membership {
    group: u32,
    shared: Arc<Shared>,
}

impl Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of IOMMU group {}", self.group)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut groups = self.shared.groups();
        let Some((devices, _)) = groups.get_mut(&self.group) else {
            return;
        };
        *devices = devices.saturating_sub(1);
        if *devices == 0
            && let Some((_, group)) = groups.remove(&self.group)
        {
            self.shared.close_group(self.group, group);
        }
    }
}

/// A VFIO container with the type1 IOMMU: the groups in it share one address
/// space. Closes when it and the last device in it are gone.
pub(crate) struct Container {
    shared: Arc<Shared>,
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
        self.shared.container.as_fd()
    }
}

impl Container {
    /// Opens a container. Groups are made known to KVM through `kvm`, KVM's
    /// VFIO device, if it is given; it closes with the container.
    pub(crate) fn open(kvm: Option<OwnedFd>) -> Result<Self, Refusal> {
        let container = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/vfio/vfio")
            .map_err(|source| Refusal {
                step: Step::OpenContainer,
                source,
            })?;
        check(&container).map_err(|source| Refusal {
            step: Step::CheckContainer,
            source,
        })?;
        let shared = Arc::new(Shared {
            kvm: kvm.map(KvmVfio::new),
            container,
            groups: Mutex::default(),
        });
        Ok(Self { shared })
    }

    /// Opens the device called `name` in sysfs, a member of group `id`, and
    /// brings its group into the container if it is not there yet.
    pub(crate) fn attach(&self, name: &str, id: u32) -> Result<AttachedDevice, Refusal> {
        let mut groups = self.shared.groups();
        let first = groups.is_empty();
        let (devices, group) = match groups.remove(&id) {
            Some(known) => known,
            None => (0, self.shared.open_group(id, first)?),
        };
        match group.open_device(name) {
            Ok(file) => {
                groups.insert(id, (devices + 1, group));
                let shared = Arc::clone(&self.shared);
                Ok(AttachedDevice {
                    file,
                    _membership: Membership { group: id, shared },
                })
            }
            Err(source) => {
                if devices == 0 {
                    self.shared.close_group(id, group);
                } else {
                    groups.insert(id, (devices, group));
                }
                let step = Step::OpenDevice;
                Err(Refusal { step, source })
            }
        }
    }

    /// Whether a group is in the container. The kernel undoes every map when
    /// the last one leaves.
    pub(crate) fn has_groups(&self) -> bool {
        !self.shared.groups().is_empty()
    }
}

/// Whether the container speaks our version of VFIO, and type1.
fn check(container: &File) -> io::Result<()> {
    // SAFETY: the request has no argument.
    let version = unsafe { ioctl(container, VFIO_GET_API_VERSION()) };
    if version < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the argument is a number, no address.
    let type1 =
        unsafe { ioctl_with_val(container, VFIO_CHECK_EXTENSION(), VFIO_TYPE1v2_IOMMU.into()) };
    if type1 < 0 {
        return Err(io::Error::last_os_error());
    }
    if u32::try_from(version) != Ok(VFIO_API_VERSION) || type1 == 0 {
        let what = format!("VFIO of version {version}, type1 {type1}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_calls() {
        // linux/vfio.h: _IO(';', 100 + n).
        assert_eq!(VFIO_GET_API_VERSION(), 0x3b64);
        assert_eq!(VFIO_CHECK_EXTENSION(), 0x3b65);
    }

    #[test]
    fn what_is_no_container_is_refused_with_its_errno() {
        let error = check(&File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    /// The way of the last device out, with files that are none of VFIO's.
    #[test]
    fn a_group_stays_as_long_as_one_of_its_devices() {
        let null = || File::open("/dev/null").unwrap();
        let shared = Arc::new(Shared {
            kvm: None,
            container: null(),
            groups: Mutex::default(),
        });
        let group = GroupFile::of(null());
        shared.groups().insert(5, (2, group));
        let container = Container {
            shared: Arc::clone(&shared),
        };
        let device = || AttachedDevice {
            file: null().into(),
            _membership: Membership {
                group: 5,
                shared: Arc::clone(&shared),
            },
        };
        let (first, second) = (device(), device());
        drop(first);
        assert!(container.has_groups());
        drop(second);
        assert!(!container.has_groups());
    }
}

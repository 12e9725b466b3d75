use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kvm_ioctls::DeviceFd;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioDeviceFd, VfioError, VfioOps};

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

impl From<VfioError> for Refusal {
    /// `vfio-ioctls` drops the errno of some steps. Nothing runs between those
    /// ioctls and this place besides closing files and freeing memory, which
    /// leave the thread's errno alone when they succeed.
    fn from(error: VfioError) -> Self {
        let last = io::Error::last_os_error();
        let errno = |error: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(error.errno());
        let (step, source) = match error {
            VfioError::OpenContainer(source) => (Step::OpenContainer, source),
            VfioError::VfioApiVersion | VfioError::VfioExtension | VfioError::VfioType1V2 => {
                let source = io::Error::new(io::ErrorKind::Unsupported, error.to_string());
                (Step::CheckContainer, source)
            }
            VfioError::OpenGroup(source, _) => (Step::OpenGroup, source),
            VfioError::GetGroupStatus => (Step::OpenGroup, last),
            VfioError::GroupViable => (Step::NotViable, io::Error::from_raw_os_error(libc::EPERM)),
            VfioError::GroupSetContainer => (Step::ClaimGroup, last),
            VfioError::ContainerSetIOMMU(source) => (Step::SetIommu, errno(source)),
            VfioError::SetDeviceAttr(source) => (Step::TellKvm, errno(source)),
            VfioError::GroupGetDeviceFD(source) => (Step::OpenDevice, errno(source)),
            VfioError::VfioDeviceGetInfo(source) => (Step::DescribeDevice, errno(source)),
            VfioError::VfioDeviceGetRegionInfo(source) => (Step::DescribeDevice, errno(source)),
            other => (Step::DescribeDevice, io::Error::other(other)),
        };
        Self { step, source }
    }
}

/// The container as one `VfioDevice` sees it.
///
/// `VfioDevice` finds out what it is attached to by looking at what `as_any`
/// answers, at its start and in `drop`. There, it takes the group out of the
/// container and of KVM even if another device of the group is open, and it
/// panics when the device has left sysfs. So its `drop` is shown the container
/// only when it is the last of its group and the device is still there.
/// Detached, its `drop` does nothing, not even close the device's file.
struct View {
    container: Arc<VfioContainer>,
    attached: AtomicBool,
}

impl VfioOps for View {
    fn as_any(&self) -> &dyn Any {
        if self.attached.load(Ordering::SeqCst) {
            &*self.container
        } else {
            &self.attached
        }
    }
}

fn attach(
    container: &Arc<VfioContainer>,
    sysfs: &Path,
) -> Result<(VfioDevice, Arc<View>), Refusal> {
    let view = Arc::new(View {
        container: Arc::clone(container),
        attached: AtomicBool::new(true),
    });
    let device = VfioDevice::new(sysfs, Arc::clone(&view) as Arc<dyn VfioOps>, false)?;
    Ok((device, view))
}

/// Takes the file of a device out of `vfio-ioctls`.
fn detach(device: VfioDevice, view: &View) -> OwnedFd {
    view.attached.store(false, Ordering::SeqCst);
    let fd = device.as_raw_fd();
    drop(device);
    // SAFETY: a detached `VfioDevice` leaves its file open for good, so that
    // the descriptor has no other owner now.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A group in the container, for as long as one of its devices is open. When
/// the last goes, the group leaves KVM and the container and is closed.
struct Group {
    /// The first device of the group, through which the group is let go.
    keeper: ManuallyDrop<VfioDevice>,
    view: Arc<View>,
    sysfs: PathBuf,
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: taken once, here; the group is gone after this.
        let keeper = unsafe { ManuallyDrop::take(&mut self.keeper) };
        if self.sysfs.join("iommu_group").read_link().is_ok() {
            // Closes the device, tells KVM, empties and closes the group.
            drop(keeper);
        } else {
            // The device has left the host. The group's file closes with the
            // container.
            drop(detach(keeper, &self.view));
        }
    }
}

/// An open device of a container. The device's file closes when it is dropped,
/// but that of a group's first device together with the group's last.
pub(crate) struct AttachedDevice {
    // Declared, and so dropped, in this order: device, then group.
    own: Option<OwnedFd>,
    group: Arc<Group>,
}

impl fmt::Debug for AttachedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedDevice")
            .field("fd", &self.as_fd())
            .finish_non_exhaustive()
    }
}

impl AsFd for AttachedDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.own {
            Some(fd) => fd.as_fd(),
            // SAFETY: the keeper stays open as long as the group, which this
            // value holds.
            None => unsafe { BorrowedFd::borrow_raw(self.group.keeper.as_raw_fd()) },
        }
    }
}

/// A VFIO container with the type1 IOMMU: the groups in it share one address
/// space. Closes when it and the last device in it are gone.
pub(crate) struct Container {
    vfio: Arc<VfioContainer>,
    /// Lock order: innermost; no system call but those that attach a device.
    groups: Mutex<HashMap<u32, Weak<Group>>>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("fd", &self.as_fd())
            .finish_non_exhaustive()
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the container is open as long as this value holds it.
        unsafe { BorrowedFd::borrow_raw(self.vfio.as_raw_fd()) }
    }
}

impl Container {
    /// Opens a container. Groups are made known to KVM through `kvm`, KVM's
    /// VFIO device, if it is given; it closes with the container.
    pub(crate) fn open(kvm: Option<OwnedFd>) -> Result<Self, Refusal> {
        let kvm = kvm.map(|fd| {
            // SAFETY: the descriptor is owned and handed over.
            let device = unsafe { DeviceFd::from_raw_fd(fd.into_raw_fd()) };
            Arc::new(VfioDeviceFd::new_from_kvm(device))
        });
        let vfio = Arc::new(VfioContainer::new(kvm)?);
        let groups = Mutex::default();
        Ok(Self { vfio, groups })
    }

    /// Opens the device at `sysfs`, a member of `group`, and brings its group
    /// into the container if it is not there yet.
    pub(crate) fn attach(&self, sysfs: &Path, group: u32) -> Result<AttachedDevice, Refusal> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let (device, view) = attach(&self.vfio, sysfs)?;
        if let Some(group) = groups.get(&group).and_then(Weak::upgrade) {
            let own = Some(detach(device, &view));
            return Ok(AttachedDevice { own, group });
        }
        let held = Arc::new(Group {
            keeper: ManuallyDrop::new(device),
            view,
            sysfs: sysfs.to_owned(),
        });
        groups.insert(group, Arc::downgrade(&held));
        let own = None;
        Ok(AttachedDevice { own, group: held })
    }

    /// Whether a group is in the container. The kernel undoes every map when
    /// the last one leaves.
    pub(crate) fn has_groups(&self) -> bool {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.values().any(|group| group.strong_count() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_keeps_its_errno() {
        let errno = vmm_sys_util::errno::Error::new;
        for (error, step) in [
            (
                VfioError::ContainerSetIOMMU(errno(libc::EPERM)),
                Step::SetIommu,
            ),
            (
                VfioError::GroupGetDeviceFD(errno(libc::EPERM)),
                Step::OpenDevice,
            ),
            (VfioError::SetDeviceAttr(errno(libc::EPERM)), Step::TellKvm),
            (VfioError::GroupViable, Step::NotViable),
        ] {
            let refusal = Refusal::from(error);
            assert_eq!(refusal.step, step);
            assert_eq!(refusal.source.raw_os_error(), Some(libc::EPERM));
        }
    }

    #[test]
    fn a_lost_errno_is_taken_from_the_thread() {
        // Closing what is not open sets EBADF, as a failing ioctl would.
        // SAFETY: -1 is never an open descriptor.
        let result = unsafe { libc::close(-1) };
        assert_eq!(result, -1);
        let refusal = Refusal::from(VfioError::GroupSetContainer);
        assert_eq!(refusal.step, Step::ClaimGroup);
        assert_eq!(refusal.source.raw_os_error(), Some(libc::EBADF));
    }
}

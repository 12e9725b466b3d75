use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE, VFIO_TYPE1v2_IOMMU, vfio_group_status,
};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::ioctl_io_nr;

use super::attach::{Refusal, Step};

ioctl_io_nr!(VFIO_SET_IOMMU, VFIO_TYPE as u32, VFIO_BASE + 2);
ioctl_io_nr!(VFIO_GROUP_GET_STATUS, VFIO_TYPE as u32, VFIO_BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_UNSET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 5);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, VFIO_TYPE as u32, VFIO_BASE + 6);

/// The file of a group, `/dev/vfio/N`. A group that closes leaves its
/// container, once KVM has let it go.
#[derive(Debug)]
pub(super) struct GroupFile(File);

impl AsFd for GroupFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl GroupFile {
    /// Opens `group` and asks whether it is viable.
    pub(super) fn open(group: u32) -> Result<Self, Refusal> {
        let at = |step| move |source| Refusal { step, source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/vfio/{group}"))
            .map_err(at(Step::OpenGroup))?;
        if !is_viable(&file).map_err(at(Step::OpenGroup))? {
            let source = io::Error::from_raw_os_error(libc::EPERM);
            return Err(at(Step::NotViable)(source));
        }
        Ok(Self(file))
    }

    /// Puts the group into `container`: the kernel hands its DMA over, or says
    /// why not. The `first` group has the container choose its IOMMU.
    pub(super) fn join(&self, container: BorrowedFd<'_>, first: bool) -> Result<(), Refusal> {
        let at = |step| move |source| Refusal { step, source };
        let number = container.as_raw_fd();
        // SAFETY: the kernel only reads the number that it is given.
        let answer = unsafe { ioctl_with_ref(&self.0, VFIO_GROUP_SET_CONTAINER(), &number) };
        if answer < 0 {
            // A container that has its IOMMU attaches the group in this call.
            // EPERM at a group that nobody owned is the IOMMU's then.
            let source = io::Error::last_os_error();
            let step = match source.raw_os_error() {
                Some(libc::EPERM | libc::EINVAL) if !first => Step::SetIommu,
                _ => Step::ClaimGroup,
            };
            return Err(at(step)(source));
        }
        if first {
            // SAFETY: the argument is a number, no address.
            let answer =
                unsafe { ioctl_with_val(&container, VFIO_SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()) };
            if answer < 0 {
                return Err(at(Step::SetIommu)(io::Error::last_os_error()));
            }
        }
        Ok(())
    }

    /// Takes the group out of its container. Devices of it must be closed.
    pub(super) fn leave(&self) -> io::Result<()> {
        // SAFETY: the request has no argument.
        if unsafe { ioctl(&self.0, VFIO_GROUP_UNSET_CONTAINER()) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // It is in none. The kernel takes a group out by itself when its
            // last device leaves VFIO (drivers/vfio/group.c,
            // `vfio_device_remove_group`), which may have waited for us.
            Some(libc::EINVAL) => Ok(()),
            _ => Err(error),
        }
    }

    /// A group that is none, for tests of what is done with groups.
    #[cfg(test)]
    pub(super) fn of(file: File) -> Self {
        Self(file)
    }

    /// Opens the device called `name` in sysfs, which resets it.
    pub(super) fn open_device(&self, name: &str) -> io::Result<OwnedFd> {
        let name = CString::new(name)?;
        // SAFETY: the kernel only reads the string, to its zero byte.
        let fd = unsafe { ioctl_with_ptr(&self.0, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Whether nobody else owns the group's DMA (before Linux 5.19: whether no
/// member of it has a host driver).
fn is_viable(group: &File) -> io::Result<bool> {
    let mut status = vfio_group_status {
        argsz: size_of::<vfio_group_status>() as u32,
        flags: 0,
    };
    // SAFETY: the structure has the length that `argsz` promises.
    if unsafe { ioctl_with_mut_ref(group, VFIO_GROUP_GET_STATUS(), &mut status) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_calls() {
        // linux/vfio.h: _IO(';', 100 + n).
        assert_eq!(VFIO_SET_IOMMU(), 0x3b66);
        assert_eq!(VFIO_GROUP_GET_STATUS(), 0x3b67);
        assert_eq!(VFIO_GROUP_SET_CONTAINER(), 0x3b68);
        assert_eq!(VFIO_GROUP_UNSET_CONTAINER(), 0x3b69);
        assert_eq!(VFIO_GROUP_GET_DEVICE_FD(), 0x3b6a);
    }

    #[test]
    fn what_is_no_group_has_no_status() {
        let error = is_viable(&File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        let group = GroupFile::of(File::open("/dev/null").unwrap());
        let errno = |error: io::Error| error.raw_os_error();
        assert_eq!(errno(group.leave().unwrap_err()), Some(libc::ENOTTY));
        let error = group.open_device("0000:01:00.0").unwrap_err();
        assert_eq!(errno(error), Some(libc::ENOTTY));
        let refusal = group.join(group.as_fd(), true).unwrap_err();
        assert_eq!(refusal.step, Step::ClaimGroup);
    }
}

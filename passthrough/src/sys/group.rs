use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE, vfio_group_status,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

use super::answer;

ioctl_io_nr!(VFIO_GROUP_GET_STATUS, VFIO_TYPE as u32, VFIO_BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_UNSET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 5);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, VFIO_TYPE as u32, VFIO_BASE + 6);

/// Whether nobody else owns the group's DMA (before Linux 5.19: whether no
/// member of it has a host driver).
///
/// # Errors
/// The kernel's.
pub(crate) fn group_is_viable(group: BorrowedFd<'_>) -> io::Result<bool> {
    let mut status = vfio_group_status {
        argsz: size_of::<vfio_group_status>() as u32,
        flags: 0,
    };
    // SAFETY: the structure has the length that `argsz` promises.
    answer(unsafe { ioctl_with_mut_ref(&group, VFIO_GROUP_GET_STATUS(), &mut status) })?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group into a container: the kernel hands its DMA over.
///
/// # Errors
/// The kernel's.
pub(crate) fn join_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let number = container.as_raw_fd();
    // SAFETY: the kernel only reads the number that it is given.
    answer(unsafe { ioctl_with_ref(&group, VFIO_GROUP_SET_CONTAINER(), &number) }).map(drop)
}

/// Takes the group out of its container. Devices of it must be closed.
///
/// # Errors
/// The kernel's, but for a group that is in none.
pub(crate) fn leave_container(group: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request has no argument.
    match answer(unsafe { ioctl(&group, VFIO_GROUP_UNSET_CONTAINER()) }) {
        // It is in none. The kernel takes a group out by itself when its
        // last device leaves VFIO (drivers/vfio/group.c,
        // `vfio_device_remove_group`), which may have waited for us.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result.map(drop),
    }
}

/// Opens the device called `name` in sysfs, which resets it.
///
/// # Errors
/// The kernel's.
pub(crate) fn open_group_device(group: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    // SAFETY: the kernel only reads the string, to its zero byte.
    let fd = unsafe { ioctl_with_ptr(&group, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) };
    let fd = answer(fd)?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn the_numbers_of_the_calls() {
        // linux/vfio.h: _IO(';', 100 + n).
        assert_eq!(VFIO_GROUP_GET_STATUS(), 0x3b67);
        assert_eq!(VFIO_GROUP_SET_CONTAINER(), 0x3b68);
        assert_eq!(VFIO_GROUP_UNSET_CONTAINER(), 0x3b69);
        assert_eq!(VFIO_GROUP_GET_DEVICE_FD(), 0x3b6a);
    }

    #[test]
    fn what_is_no_group_is_refused_with_its_errno() {
        let file = File::open("/dev/null").unwrap();
        let group = file.as_fd();
        for result in [
            group_is_viable(group).map(drop),
            join_container(group, group),
            leave_container(group),
            open_group_device(group, "0000:01:00.0").map(drop),
        ] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
    }
}

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_BIND_FLAG_TOKEN, VFIO_TYPE, vfio_device_attach_iommufd_pt,
    vfio_device_bind_iommufd,
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_io_nr;

use super::answer;
use crate::vfio::VfToken;

ioctl_io_nr!(VFIO_DEVICE_BIND_IOMMUFD, VFIO_TYPE as u32, VFIO_BASE + 18);
ioctl_io_nr!(
    VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    VFIO_TYPE as u32,
    VFIO_BASE + 19
);

/// Binds the device of `cdev` to an iommufd until the file closes: the kernel
/// hands over its group's DMA, opens the device and resets it.
///
/// # Errors
/// The kernel's: `EINVAL` for a token before Linux 6.18.
pub(crate) fn bind_iommufd(
    cdev: BorrowedFd<'_>,
    iommufd: BorrowedFd<'_>,
    token: Option<VfToken>,
) -> io::Result<()> {
    let bytes = token.map(VfToken::to_bytes);
    let mut bind = vfio_device_bind_iommufd {
        argsz: size_of::<vfio_device_bind_iommufd>() as u32,
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    if let Some(bytes) = &bytes {
        bind.flags = VFIO_DEVICE_BIND_FLAG_TOKEN;
        bind.token_uuid_ptr = bytes.as_ptr() as u64;
    }
    // SAFETY: the structure has the length that `argsz` promises, and the 16
    // bytes that it points at live through the call.
    answer(unsafe { ioctl_with_mut_ref(&cdev, VFIO_DEVICE_BIND_IOMMUFD(), &mut bind) }).map(drop)
}

/// Attaches a device that is bound to an address space of its iommufd, until
/// the file closes.
///
/// # Errors
/// The kernel's.
pub(crate) fn attach_ioas(cdev: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    let mut attach = vfio_device_attach_iommufd_pt {
        argsz: size_of::<vfio_device_attach_iommufd_pt>() as u32,
        pt_id: ioas,
        ..Default::default()
    };
    // SAFETY: the structure has the length that `argsz` promises.
    let result = unsafe { ioctl_with_mut_ref(&cdev, VFIO_DEVICE_ATTACH_IOMMUFD_PT(), &mut attach) };
    answer(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn the_numbers_of_the_calls() {
        // linux/vfio.h: _IO(';', 100 + n).
        assert_eq!(VFIO_DEVICE_BIND_IOMMUFD(), 0x3b76);
        assert_eq!(VFIO_DEVICE_ATTACH_IOMMUFD_PT(), 0x3b77);
    }

    #[test]
    fn what_is_no_cdev_is_refused_with_its_errno() {
        let file = File::open("/dev/null").unwrap();
        let fd = file.as_fd();
        for result in [bind_iommufd(fd, fd, None), attach_ioas(fd, 1)] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
    }
}

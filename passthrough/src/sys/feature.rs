use std::io;
use std::mem::size_of;
use std::os::fd::BorrowedFd;

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, VFIO_DEVICE_FEATURE_LOW_POWER_EXIT,
    VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET, VFIO_TYPE, vfio_device_feature,
};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_DEVICE_FEATURE, VFIO_TYPE as u32, VFIO_BASE + 17);

/// A feature that is an order and has no data (linux/vfio.h,
/// `VFIO_DEVICE_FEATURE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Feature {
    /// The host may suspend the device from now on.
    LowPowerEntry = VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
    /// It may no longer, and the device is awake.
    LowPowerExit = VFIO_DEVICE_FEATURE_LOW_POWER_EXIT,
}

/// Whether the device takes the order. Does nothing. A kernel that does not
/// know the feature says `ENOTTY`, as do those without any (before Linux 5.7);
/// whatever else it says, the order is none to give.
pub(crate) fn has_feature(device: BorrowedFd<'_>, feature: Feature) -> bool {
    send(device, feature, VFIO_DEVICE_FEATURE_PROBE).is_ok()
}

/// Gives the order.
///
/// # Errors
/// The kernel's: `ENOTTY` when it does not know the feature, `EINVAL` when the
/// device has entered low power already, `EIO` when it does not wake up.
pub(crate) fn set_feature(device: BorrowedFd<'_>, feature: Feature) -> io::Result<()> {
    send(device, feature, 0)
}

fn send(device: BorrowedFd<'_>, feature: Feature, how: u32) -> io::Result<()> {
    let request = vfio_device_feature {
        argsz: size_of::<vfio_device_feature>() as u32,
        flags: feature as u32 | VFIO_DEVICE_FEATURE_SET | how,
        ..Default::default()
    };
    // SAFETY: the structure has the length that `argsz` promises; the kernel
    // only reads it for these features.
    match unsafe { ioctl_with_ref(&device, VFIO_DEVICE_FEATURE(), &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn the_number_of_the_call_and_the_length_of_its_head() {
        assert_eq!(VFIO_DEVICE_FEATURE(), 0x3b75);
        assert_eq!(size_of::<vfio_device_feature>(), 8);
    }

    #[test]
    fn what_is_no_device_has_no_feature() {
        let null = File::open("/dev/null").unwrap();
        for feature in [Feature::LowPowerEntry, Feature::LowPowerExit] {
            assert!(!has_feature(null.as_fd(), feature));
            let error = set_feature(null.as_fd(), feature).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        }
    }
}

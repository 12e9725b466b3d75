use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;

/// Tells KVM's VFIO device (linux/kvm.h, `KVM_DEV_TYPE_VFIO`) of the file of a
/// group or of a device.
///
/// # Errors
/// The kernel's.
pub(crate) fn add_kvm_file(kvm: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    set(kvm, file, KVM_DEV_VFIO_FILE_ADD)
}

/// Has it let go of the file.
///
/// # Errors
/// The kernel's.
pub(crate) fn remove_kvm_file(kvm: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    set(kvm, file, KVM_DEV_VFIO_FILE_DEL)
}

fn set(kvm: BorrowedFd<'_>, file: BorrowedFd<'_>, action: u32) -> io::Result<()> {
    // SAFETY: the descriptor stays open for the call, as it is borrowed, and
    // is never closed by the value, which is not dropped.
    let kvm = ManuallyDrop::new(unsafe { DeviceFd::from_raw_fd(kvm.as_raw_fd()) });
    // The kernel reads the number at this address during the call.
    let fd: i32 = file.as_raw_fd();
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_DEV_VFIO_FILE,
        attr: action.into(),
        addr: std::ptr::from_ref(&fd) as u64,
    };
    let result = kvm.set_device_attr(&attribute);
    result.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

use std::io;
use std::mem::size_of;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_DMA_BUF, VFIO_DEVICE_FEATURE_GET, vfio_device_feature,
    vfio_device_feature_dma_buf, vfio_region_dma_range,
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::answer;
use super::feature::VFIO_DEVICE_FEATURE;

/// The request with its one range, as it lies in memory: the headers of
/// linux/vfio.h have flexible arrays where the next one begins.
#[repr(C)]
#[derive(Debug, Default)]
struct Request {
    argsz: u32,
    flags: u32,
    region_index: u32,
    open_flags: u32,
    reserved: u32,
    nr_ranges: u32,
    offset: u64,
    length: u64,
}

const _: () = assert!(
    size_of::<Request>()
        == size_of::<vfio_device_feature>()
            + size_of::<vfio_device_feature_dma_buf>()
            + size_of::<vfio_region_dma_range>()
);

/// Part of a region as a dma-buf, which other devices can be given
/// (`VFIO_DEVICE_FEATURE_DMA_BUF`, Linux 6.19). It is dead for good once the
/// device's memory decoding goes off.
///
/// # Errors
/// The kernel's: `ENOTTY` when it can't, `ENODEV` while memory decoding is off.
pub(crate) fn export_dma_buf(
    device: BorrowedFd<'_>,
    region: u32,
    offset: u64,
    size: u64,
) -> io::Result<OwnedFd> {
    let mut request = Request {
        argsz: size_of::<Request>() as u32,
        flags: VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
        region_index: region,
        open_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
        nr_ranges: 1,
        offset,
        length: size,
        ..Default::default()
    };
    // SAFETY: the structure has the length that `argsz` promises, and the one
    // range that it names.
    let fd = unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_FEATURE(), &mut request) };
    let fd = answer(fd)?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

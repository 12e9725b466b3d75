use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FLAGS_RESET, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, VFIO_TYPE, vfio_device_info, vfio_region_info,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref};
use vmm_sys_util::ioctl_io_nr;

use super::capability::{Answer, find, u32_at, u64_at};
use crate::vfio::{RegionArea, RegionInfo};

ioctl_io_nr!(VFIO_DEVICE_GET_INFO, VFIO_TYPE as u32, VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, VFIO_TYPE as u32, VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE as u32, VFIO_BASE + 11);

/// What a device has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceInfo {
    /// `VFIO_DEVICE_RESET` works.
    pub(crate) can_reset: bool,
    /// Region indexes run from 0 to below this.
    pub(crate) regions: u32,
    /// Interrupt indexes run from 0 to below this.
    pub(crate) irqs: u32,
}

/// What a device has (`VFIO_DEVICE_GET_INFO`).
///
/// # Errors
/// The kernel's.
pub(crate) fn device_info(device: BorrowedFd<'_>) -> io::Result<DeviceInfo> {
    let mut info = vfio_device_info {
        argsz: size_of::<vfio_device_info>() as u32,
        ..Default::default()
    };
    // SAFETY: the structure has the length that `argsz` promises.
    if unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_INFO(), &mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(DeviceInfo {
        can_reset: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
        regions: info.num_regions,
        irqs: info.num_irqs,
    })
}

/// A region, and where it begins in the device's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelRegion {
    pub(crate) info: RegionInfo,
    pub(crate) file_offset: u64,
}

/// Region `index` (`VFIO_DEVICE_GET_REGION_INFO`); nothing when the kernel
/// knows none by that number.
///
/// # Errors
/// The kernel's, besides `EINVAL`.
pub(crate) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<Option<KernelRegion>> {
    const HEAD: u32 = size_of::<vfio_region_info>() as u32;
    let ask = |argsz| {
        let mut answer = Answer::new(argsz)?;
        answer.set_u32(offset_of!(vfio_region_info, index), index);
        // SAFETY: the buffer has the `argsz` bytes that its first field
        // promises, aligned for the structure, and lives through the call.
        let result = unsafe {
            ioctl_with_mut_ptr(&device, VFIO_DEVICE_GET_REGION_INFO(), answer.as_mut_ptr())
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(answer.bytes())
    };
    let head = match ask(HEAD) {
        Ok(head) => head,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        Err(error) => return Err(error),
    };
    let needed = u32_at(&head, 0);
    let bytes = if needed > HEAD { ask(needed)? } else { head };
    Ok(Some(parse_region_info(&bytes)))
}

fn parse_region_info(bytes: &[u8]) -> KernelRegion {
    const COUNT: usize = 8;
    const AREAS: usize = 16;
    let flags = u32_at(bytes, offset_of!(vfio_region_info, flags));
    let size = u64_at(bytes, offset_of!(vfio_region_info, size));
    let list = match flags & VFIO_REGION_INFO_FLAG_CAPS {
        0 => 0,
        _ => u32_at(bytes, offset_of!(vfio_region_info, cap_offset)),
    };
    let mut mappable = Vec::new();
    if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 {
        if let Some(capability) = find(bytes, list, VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
            let count = u32_at(capability, COUNT) as usize;
            let body = capability.get(AREAS..).unwrap_or_default();
            for area in body.chunks_exact(16).take(count) {
                let (offset, size) = (u64_at(area, 0), u64_at(area, 8));
                mappable.push(RegionArea { offset, size });
            }
        } else {
            mappable.push(RegionArea { offset: 0, size });
        }
    }
    KernelRegion {
        info: RegionInfo {
            size,
            readable: flags & VFIO_REGION_INFO_FLAG_READ != 0,
            writable: flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
            mappable,
        },
        file_offset: u64_at(bytes, offset_of!(vfio_region_info, offset)),
    }
}

/// Resets the device (`VFIO_DEVICE_RESET`).
///
/// # Errors
/// The kernel's: `ENOTTY` or `EINVAL` without a way to reset it, `EAGAIN` when
/// somebody else holds its lock at this moment.
pub(crate) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request has no argument.
    match unsafe { ioctl(&device, VFIO_DEVICE_RESET()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Reads all of `data` from the device's file in one call.
///
/// # Errors
/// The kernel's; `UnexpectedEof` when it gave less.
pub(crate) fn read_at(device: BorrowedFd<'_>, offset: u64, data: &mut [u8]) -> io::Result<()> {
    let offset = file_offset(offset)?;
    let (pointer, length) = (data.as_mut_ptr().cast(), data.len());
    // SAFETY: the kernel writes at most `length` bytes into `data`.
    let count = unsafe { libc::pread(device.as_raw_fd(), pointer, length, offset) };
    match usize::try_from(count) {
        Ok(count) if count == length => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Writes all of `data` to the device's file in one call.
///
/// # Errors
/// The kernel's; `WriteZero` when it took less.
pub(crate) fn write_at(device: BorrowedFd<'_>, offset: u64, data: &[u8]) -> io::Result<()> {
    let offset = file_offset(offset)?;
    let (pointer, length) = (data.as_ptr().cast(), data.len());
    // SAFETY: the kernel only reads `length` bytes of `data`.
    let count = unsafe { libc::pwrite(device.as_raw_fd(), pointer, length, offset) };
    match usize::try_from(count) {
        Ok(count) if count == length => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn a_plain_bar() {
        let region = parse_region_info(&bytes(&[32, 7, 2, 0, 0x4000, 0, 0, 0x200]));
        assert_eq!(region.file_offset, 0x200_0000_0000);
        let info = region.info;
        assert!(info.readable && info.writable);
        let (offset, size) = (0, 0x4000);
        assert_eq!(info.mappable, [RegionArea { offset, size }]);
    }

    #[test]
    fn a_bar_with_sparse_areas() {
        let head = [80, 0xf, 0, 32, 0x8000, 0, 0, 0];
        let sparse = [0x1_0001, 0, 2, 0, 0, 0, 0x1000, 0, 0x3000, 0, 0x5000, 0];
        let region = parse_region_info(&bytes(&[&head[..], &sparse[..]].concat()));
        let expected = [(0, 0x1000), (0x3000, 0x5000)];
        assert_eq!(
            region.info.mappable,
            expected.map(|(offset, size)| RegionArea { offset, size })
        );
    }

    #[test]
    fn an_absent_bar() {
        let region = parse_region_info(&bytes(&[32, 0, 5, 0, 0, 0, 0, 0x500]));
        assert_eq!(region.info.size, 0);
        assert!(!region.info.readable && region.info.mappable.is_empty());
    }

    #[test]
    fn short_transfers_are_errors() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1, 2, 3, 4]).unwrap();
        let mut data = [0; 4];
        read_at(file.as_fd(), 0, &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4]);
        let error = read_at(file.as_fd(), 2, &mut data).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(read_at(file.as_fd(), u64::MAX, &mut data).is_err());
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = write_at(full.as_fd(), 0, &data).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn what_is_no_device_is_refused_with_its_errno() {
        let file = tempfile::tempfile().unwrap();
        let errno = |error: io::Error| error.raw_os_error();
        assert_eq!(errno(reset(file.as_fd()).unwrap_err()), Some(libc::ENOTTY));
        let error = device_info(file.as_fd()).unwrap_err();
        assert_eq!(errno(error), Some(libc::ENOTTY));
        let error = region_info(file.as_fd(), 0).unwrap_err();
        assert_eq!(errno(error), Some(libc::ENOTTY));
    }

    proptest! {
        #[test]
        fn any_answer_does(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse_region_info(&bytes);
        }
    }
}

//! iommufd's requests (linux/iommufd.h). `iommufd-ioctls` makes those that it
//! has.

use std::fs::File;
use std::io;
use std::mem::{ManuallyDrop, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_OPTION, IOMMUFD_TYPE, iommu_ioas_alloc,
    iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_map_file, iommu_ioas_unmap,
    iommu_iova_range, iommu_option, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE, iommufd_option_IOMMU_OPTION_RLIMIT_MODE,
    iommufd_option_ops_IOMMU_OPTION_OP_GET,
};
use iommufd_ioctls::{IommuFd, IommufdError};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_io_nr;

use super::answer;
use crate::iommu::{IovaRange, SpaceLimits};
use crate::ports::HostMemory;

ioctl_io_nr!(
    IOMMU_IOAS_IOVA_RANGES,
    IOMMUFD_TYPE as u32,
    IOMMUFD_CMD_IOAS_IOVA_RANGES
);
ioctl_io_nr!(IOMMU_OPTION, IOMMUFD_TYPE as u32, IOMMUFD_CMD_OPTION);

/// Where a range is to be mapped: there and nowhere else, for both directions.
const MAP_FLAGS: u32 = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
    | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE
    | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;

/// More ranges than any IOMMU has: the bound keeps a broken kernel from eating
/// memory.
const MAX_RANGES: u32 = 1 << 16;

/// Lends an iommufd to the crate that makes its requests.
fn lend<T>(iommufd: BorrowedFd<'_>, call: impl FnOnce(&IommuFd) -> T) -> T {
    // SAFETY: the descriptor stays open for the call, as it is borrowed, and
    // is never closed by the value, which is not dropped.
    let file = unsafe { File::from_raw_fd(iommufd.as_raw_fd()) };
    let lent = ManuallyDrop::new(IommuFd::new_from_fd(file));
    call(&lent)
}

/// The kernel's answer in an error of the crate.
fn errno(error: IommufdError) -> io::Error {
    match error {
        IommufdError::IommuDestroy(errno)
        | IommufdError::IommuIoasAlloc(errno)
        | IommufdError::IommuIoasMap(errno)
        | IommufdError::IommuIoasMapFile(errno)
        | IommufdError::IommuIoasUnmap(errno) => io::Error::from_raw_os_error(errno.errno()),
        error => io::Error::other(error),
    }
}

/// Whether the file is an iommufd: it answers a request of iommufd that changes
/// nothing.
pub(crate) fn is_iommufd(file: BorrowedFd<'_>) -> bool {
    let mut option = iommu_option {
        size: size_of::<iommu_option>() as u32,
        option_id: iommufd_option_IOMMU_OPTION_RLIMIT_MODE,
        op: iommufd_option_ops_IOMMU_OPTION_OP_GET as u16,
        ..Default::default()
    };
    // SAFETY: the structure has the length that `size` promises.
    unsafe { ioctl_with_mut_ref(&file, IOMMU_OPTION(), &mut option) == 0 }
}

/// Makes an address space. Answers its number.
///
/// # Errors
/// The kernel's.
pub(crate) fn alloc_ioas(iommufd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut alloc = iommu_ioas_alloc {
        size: size_of::<iommu_ioas_alloc>() as u32,
        flags: 0,
        out_ioas_id: 0,
    };
    lend(iommufd, |fd| fd.alloc_iommu_ioas(&mut alloc)).map_err(errno)?;
    Ok(alloc.out_ioas_id)
}

/// Ends an address space.
///
/// # Errors
/// The kernel's: `EBUSY` while devices are attached to it.
pub(crate) fn destroy_ioas(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    lend(iommufd, |fd| fd.destroy_iommu_object(ioas)).map_err(errno)
}

/// What the devices that are attached to an address space can all map. The
/// kernel tells only the smallest page size, and has no limit of its own to
/// the number of maps.
///
/// # Errors
/// The kernel's; `InvalidData` for an answer that makes no sense.
pub(crate) fn ioas_limits(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<SpaceLimits> {
    let mut count = 0;
    // A device that attaches meanwhile can add ranges.
    for _ in 0..4 {
        let room = usize::try_from(count).unwrap_or_default();
        let mut ranges = vec![iommu_iova_range::default(); room];
        let mut request = iommu_ioas_iova_ranges {
            size: size_of::<iommu_ioas_iova_ranges>() as u32,
            ioas_id: ioas,
            num_iovas: count,
            allowed_iovas: ranges.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the structure has the length that `size` promises, and the
        // kernel writes at most `num_iovas` ranges to the address in it.
        let result =
            unsafe { ioctl_with_mut_ref(&iommufd, IOMMU_IOAS_IOVA_RANGES(), &mut request) };
        match answer(result) {
            Ok(_) => return limits(&ranges, &request),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
            Err(error) => return Err(error),
        }
        count = request.num_iovas;
        if count > MAX_RANGES {
            let what = format!("the kernel names {count} ranges of addresses");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

fn limits(ranges: &[iommu_iova_range], answer: &iommu_ioas_iova_ranges) -> io::Result<SpaceLimits> {
    let alignment = answer.out_iova_alignment;
    if !alignment.is_power_of_two() {
        let what = format!("the kernel names an alignment of {alignment:#x}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let count = usize::try_from(answer.num_iovas).unwrap_or(usize::MAX);
    let mut ranges: Vec<_> = ranges
        .iter()
        .take(count)
        .map(|range| IovaRange {
            start: range.start,
            last: range.last,
        })
        .collect();
    ranges.sort_unstable();
    Ok(SpaceLimits {
        ranges,
        page_sizes: alignment.max(super::page_size()),
        max_maps: None,
    })
}

/// Lets the devices of an address space read and write `memory` at `iova`. The
/// caller keeps `memory` until the range is unmapped.
///
/// # Errors
/// The kernel's; nothing is mapped then.
pub(crate) fn ioas_map(
    iommufd: BorrowedFd<'_>,
    ioas: u32,
    iova: u64,
    memory: &dyn HostMemory,
) -> io::Result<()> {
    let map = iommu_ioas_map {
        size: size_of::<iommu_ioas_map>() as u32,
        flags: MAP_FLAGS,
        ioas_id: ioas,
        user_va: memory.address().as_ptr() as u64,
        length: memory.size() as u64,
        iova,
        ..Default::default()
    };
    // By the contract of `HostMemory` that is mapped, and no Rust data.
    lend(iommufd, |fd| fd.map_iommu_ioas(&map)).map_err(errno)
}

/// The same for `size` bytes of a file from `start` on: a memfd (Linux 6.13) or
/// a dma-buf (6.19). The kernel keeps the pages until they are unmapped.
///
/// # Errors
/// The kernel's; nothing is mapped then. `ENOTTY` or `EOPNOTSUPP` when it does
/// not know the request, `EINVAL` or `EBADF` for a file that it can't map.
pub(crate) fn ioas_map_file(
    iommufd: BorrowedFd<'_>,
    ioas: u32,
    iova: u64,
    file: BorrowedFd<'_>,
    start: u64,
    size: u64,
) -> io::Result<()> {
    let map = iommu_ioas_map_file {
        size: size_of::<iommu_ioas_map_file>() as u32,
        flags: MAP_FLAGS,
        ioas_id: ioas,
        fd: file.as_raw_fd(),
        start,
        length: size,
        iova,
    };
    lend(iommufd, |fd| fd.map_iommu_ioas_file(&map)).map_err(errno)
}

/// Takes a range away from the devices of an address space. Answers how many
/// bytes were mapped there.
///
/// # Errors
/// The kernel's: `ENOENT` when nothing was mapped.
pub(crate) fn ioas_unmap(
    iommufd: BorrowedFd<'_>,
    ioas: u32,
    iova: u64,
    size: u64,
) -> io::Result<u64> {
    let mut unmap = iommu_ioas_unmap {
        size: size_of::<iommu_ioas_unmap>() as u32,
        ioas_id: ioas,
        iova,
        length: size,
    };
    lend(iommufd, |fd| fd.unmap_iommu_ioas(&mut unmap)).map_err(errno)?;
    Ok(unmap.length)
}

/// Takes everything away. Answers how many bytes were mapped.
///
/// # Errors
/// The kernel's.
pub(crate) fn ioas_unmap_all(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<u64> {
    // The kernel's way to say: the whole address space.
    match ioas_unmap(iommufd, ioas, 0, u64::MAX) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(0),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_numbers_of_the_calls() {
        // linux/iommufd.h: _IO(';', 0x80 + n).
        assert_eq!(IOMMU_IOAS_IOVA_RANGES(), 0x3b84);
        assert_eq!(IOMMU_OPTION(), 0x3b87);
    }

    #[test]
    fn what_is_no_iommufd_is_refused_with_its_errno() {
        let file = File::open("/dev/null").unwrap();
        let fd = file.as_fd();
        assert!(!is_iommufd(fd));
        for result in [
            alloc_ioas(fd).map(drop),
            destroy_ioas(fd, 1),
            ioas_limits(fd, 1).map(drop),
            ioas_map_file(fd, 1, 0, fd, 0, 0x1000),
            ioas_unmap(fd, 1, 0, 0x1000).map(drop),
            ioas_unmap_all(fd, 1).map(drop),
        ] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
        assert!(file.metadata().is_ok(), "lending does not close");
    }

    #[test]
    fn an_answer_without_sense_is_none() {
        let answer = |alignment, count| iommu_ioas_iova_ranges {
            num_iovas: count,
            out_iova_alignment: alignment,
            ..Default::default()
        };
        let range = |start, last| iommu_iova_range { start, last };
        let ranges = [range(0xfef0_0000, u64::MAX), range(0, 0xfedf_ffff)];
        let found = limits(&ranges, &answer(0x1000, 2)).unwrap();
        assert_eq!(found.ranges[0].last, 0xfedf_ffff);
        assert_eq!(found.page_sizes, super::super::page_size());
        assert_eq!(limits(&ranges, &answer(1, 9)).unwrap().ranges.len(), 2);
        assert!(limits(&ranges, &answer(0, 2)).is_err());
        assert!(limits(&ranges, &answer(0x1001, 2)).is_err());
    }
}

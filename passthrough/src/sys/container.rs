use std::io;
use std::mem::size_of;
use std::os::fd::BorrowedFd;

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_DMA_UNMAP_FLAG_ALL, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, VFIO_TYPE,
    VFIO_TYPE1v2_IOMMU, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
    vfio_iommu_type1_info,
};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::ioctl_io_nr;

use super::answer;
use super::capability::{Answer, find, u32_at, u64_at};
use crate::iommu::{IovaRange, SpaceLimits};
use crate::ports::HostMemory;

ioctl_io_nr!(VFIO_GET_API_VERSION, VFIO_TYPE as u32, VFIO_BASE);
ioctl_io_nr!(VFIO_CHECK_EXTENSION, VFIO_TYPE as u32, VFIO_BASE + 1);
ioctl_io_nr!(VFIO_SET_IOMMU, VFIO_TYPE as u32, VFIO_BASE + 2);
ioctl_io_nr!(VFIO_IOMMU_GET_INFO, VFIO_TYPE as u32, VFIO_BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 13);
ioctl_io_nr!(VFIO_IOMMU_UNMAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 14);

const HEAD: u32 = size_of::<vfio_iommu_type1_info>() as u32;

/// What the type1 IOMMU of a container can do.
///
/// # Errors
/// The kernel's.
pub(crate) fn container_limits(container: BorrowedFd<'_>) -> io::Result<SpaceLimits> {
    let ask = |argsz| {
        let mut info = Answer::new(argsz)?;
        // SAFETY: the buffer has the `argsz` bytes that its first field
        // promises, aligned for the structure, and lives through the call.
        let result =
            unsafe { ioctl_with_mut_ptr(&container, VFIO_IOMMU_GET_INFO(), info.as_mut_ptr()) };
        answer(result)?;
        Ok::<_, io::Error>(info.bytes())
    };
    let head = ask(HEAD)?;
    let needed = u32_at(&head, 0);
    let bytes = if needed > HEAD { ask(needed)? } else { head };
    Ok(parse_iommu_info(&bytes))
}

/// Reads the answer. A kernel that names no ranges (before Linux 5.4) has no
/// restriction to tell.
fn parse_iommu_info(bytes: &[u8]) -> SpaceLimits {
    const FLAGS: usize = std::mem::offset_of!(vfio_iommu_type1_info, flags);
    const PAGE_SIZES: usize = std::mem::offset_of!(vfio_iommu_type1_info, iova_pgsizes);
    const CAPABILITIES: usize = std::mem::offset_of!(vfio_iommu_type1_info, cap_offset);
    const COUNT: usize = 8;
    const RANGES: usize = 16;

    let flags = u32_at(bytes, FLAGS);
    let list = match flags & VFIO_IOMMU_INFO_CAPS {
        0 => 0,
        _ => u32_at(bytes, CAPABILITIES),
    };
    let mut ranges = Vec::new();
    if let Some(capability) = find(bytes, list, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) {
        let count = u32_at(capability, COUNT) as usize;
        let body = capability.get(RANGES..).unwrap_or_default();
        for range in body.chunks_exact(16).take(count) {
            let (start, last) = (u64_at(range, 0), u64_at(range, 8));
            ranges.push(IovaRange { start, last });
        }
        ranges.sort_unstable();
    } else {
        let last = u64::MAX;
        ranges.push(IovaRange { start: 0, last });
    }
    let available = find(bytes, list, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
    SpaceLimits {
        ranges,
        page_sizes: match flags & VFIO_IOMMU_INFO_PGSIZES {
            0 => 0,
            _ => u64_at(bytes, PAGE_SIZES),
        },
        max_maps: available.map(|capability| u32_at(capability, COUNT)),
    }
}

/// Lets the container's devices read and write `memory` at `iova`. The caller
/// keeps `memory` until the range is unmapped or the container has no group.
///
/// # Errors
/// The kernel's; nothing is mapped then.
pub(crate) fn container_map(
    container: BorrowedFd<'_>,
    iova: u64,
    memory: &dyn HostMemory,
) -> io::Result<()> {
    let map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: memory.address().as_ptr() as u64,
        iova,
        size: memory.size() as u64,
    };
    // SAFETY: the kernel only reads the structure. The memory that it names
    // is mapped and no Rust data, by the contract of `HostMemory`.
    answer(unsafe { ioctl_with_ref(&container, VFIO_IOMMU_MAP_DMA(), &map) }).map(drop)
}

/// Takes a range away from the container's devices. Answers how many bytes
/// were mapped there.
///
/// # Errors
/// The kernel's.
pub(crate) fn container_unmap(container: BorrowedFd<'_>, iova: u64, size: u64) -> io::Result<u64> {
    unmap(container, iova, size, 0)
}

/// Takes everything away from the container's devices. Answers how many bytes
/// were mapped.
///
/// # Errors
/// The kernel's: `EINVAL` before Linux 5.12.
pub(crate) fn container_unmap_all(container: BorrowedFd<'_>) -> io::Result<u64> {
    unmap(container, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL)
}

fn unmap(container: BorrowedFd<'_>, iova: u64, size: u64, flags: u32) -> io::Result<u64> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
        flags,
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the structure and nothing else, as
    // no dirty bitmap is asked for.
    answer(unsafe { ioctl_with_mut_ref(&container, VFIO_IOMMU_UNMAP_DMA(), &mut unmap) })?;
    Ok(unmap.size)
}

/// Asks a container whether it speaks the version of linux/vfio.h that is used
/// here, and has the type1 IOMMU.
///
/// # Errors
/// The kernel's; `Unsupported` when it has not.
pub(crate) fn check_container(container: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request has no argument.
    let version = answer(unsafe { ioctl(&container, VFIO_GET_API_VERSION()) })?;
    if u32::try_from(version) != Ok(VFIO_API_VERSION) {
        let what = format!("it speaks version {version} of VFIO and not {VFIO_API_VERSION}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    let type1 = VFIO_TYPE1v2_IOMMU.into();
    // SAFETY: the argument is a number, no address.
    let answered = unsafe { ioctl_with_val(&container, VFIO_CHECK_EXTENSION(), type1) };
    match answer(answered)? {
        1 => Ok(()),
        _ => {
            let what = "it has no type1 IOMMU";
            Err(io::Error::new(io::ErrorKind::Unsupported, what))
        }
    }
}

/// Has a container that has a group choose the type1 IOMMU.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_iommu(container: BorrowedFd<'_>) -> io::Result<()> {
    let type1 = VFIO_TYPE1v2_IOMMU.into();
    // SAFETY: the argument is a number, no address.
    answer(unsafe { ioctl_with_val(&container, VFIO_SET_IOMMU(), type1) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The answer of a 39-bit VT-d: two ranges round the interrupt window.
    fn vtd() -> Vec<u8> {
        let words: [u32; 6 + 4 + 8 + 3] = [
            84,
            3,
            0x4020_1000,
            0,
            24,
            0, // the head, capabilities from 24 on
            0x1_0001,
            72,
            2,
            0, // two ranges, next at 72
            0,
            0,
            0xfedf_ffff,
            0,
            0xfef0_0000,
            0,
            0xffff_ffff,
            0x7f, //
            0x1_0003,
            0,
            65_535, // maps
        ];
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn a_39_bit_iommu() {
        let limits = parse_iommu_info(&vtd());
        assert_eq!(limits.page_sizes, 0x4020_1000);
        assert_eq!(limits.max_maps, Some(65_535));
        assert!(limits.fits(0, 0xfee0_0000));
        assert!(!limits.fits(0xfed0_0000, 0x20_0000));
        assert!(limits.fits(0x7f_c000_0000, 0x4000_0000));
        assert!(!limits.fits(0x7f_c000_0000, 0x4000_1000));
    }

    #[test]
    fn ranges_are_in_ascending_order() {
        let mut bytes = vtd();
        let (low, high) = bytes[40..72].split_at_mut(16);
        low.swap_with_slice(high);
        assert_eq!(parse_iommu_info(&bytes), parse_iommu_info(&vtd()));
    }

    #[test]
    fn a_kernel_without_capabilities_has_no_limits() {
        let mut bytes = vtd();
        bytes[4] = 1;
        let limits = parse_iommu_info(&bytes);
        assert!(limits.fits(0, u64::MAX));
        assert_eq!(limits.max_maps, None);
    }

    proptest! {
        #[test]
        fn any_answer_does(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse_iommu_info(&bytes);
        }
    }
}

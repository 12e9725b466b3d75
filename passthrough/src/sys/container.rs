use std::io;
use std::mem::size_of;
use std::os::fd::BorrowedFd;

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, VFIO_TYPE, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref};
use vmm_sys_util::ioctl_io_nr;

use super::capability::{Answer, find, u32_at, u64_at};
use crate::iommu::{IovaRange, SpaceLimits};

ioctl_io_nr!(VFIO_IOMMU_GET_INFO, VFIO_TYPE as u32, VFIO_BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_UNMAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 14);

const HEAD: u32 = size_of::<vfio_iommu_type1_info>() as u32;

/// What the type1 IOMMU of a container can do.
///
/// # Errors
/// The kernel's.
pub(crate) fn iommu_info(container: BorrowedFd<'_>) -> io::Result<SpaceLimits> {
    let ask = |argsz| {
        let mut answer = Answer::new(argsz)?;
        // SAFETY: the buffer has the `argsz` bytes that its first field
        // promises, aligned for the structure, and lives through the call.
        let result =
            unsafe { ioctl_with_mut_ptr(&container, VFIO_IOMMU_GET_INFO(), answer.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(answer.bytes())
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

/// Takes a range away from the container's devices. Answers how many bytes
/// were mapped there.
///
/// # Errors
/// The kernel's.
pub(super) fn unmap_dma(container: BorrowedFd<'_>, iova: u64, size: u64) -> io::Result<u64> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the structure and nothing else, as
    // no dirty bitmap is asked for.
    match unsafe { ioctl_with_mut_ref(&container, VFIO_IOMMU_UNMAP_DMA(), &mut unmap) } {
        0 => Ok(unmap.size),
        _ => Err(io::Error::last_os_error()),
    }
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

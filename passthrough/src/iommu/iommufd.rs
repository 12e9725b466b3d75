use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::space::Dma;
use crate::attach::Ioas;
use crate::ports::HostMemory;
use crate::sys;

/// An address space of iommufd (linux/iommufd.h, `IOMMU_IOAS_ALLOC`).
///
/// Memory is mapped by what it is: a file's by the file, where the kernel can
/// (Linux 6.13), a device's by a dma-buf (6.19), any other by its address.
impl Dma for Ioas {
    fn map(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()> {
        let by_file = |file: BorrowedFd<'_>, start| {
            let size = memory.size() as u64;
            sys::ioas_map_file(self.as_fd(), self.id(), iova, file, start, size)
        };
        if let Some(buffer) = memory.dma_buf() {
            // The kernel keeps the buffer for as long as it is mapped.
            return by_file(buffer?.as_fd(), 0);
        }
        if let Some((file, start)) = memory.file() {
            match by_file(file, start) {
                Err(error) if is_unknown(&error) => {}
                result => return result,
            }
        }
        sys::ioas_map(self.as_fd(), self.id(), iova, memory)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<u64> {
        sys::ioas_unmap(self.as_fd(), self.id(), iova, size)
    }

    fn unmap_all(&self) -> io::Result<u64> {
        sys::ioas_unmap_all(self.as_fd(), self.id())
    }

    fn is_attached(&self) -> bool {
        true
    }

    fn explain(&self, errno: i32, memory: &dyn HostMemory) -> Option<&'static str> {
        let is_device = memory.is_device();
        match errno {
            libc::EINVAL if is_device => Some(
                "through iommufd a device's memory goes to another in whole pages, and this is less \
                 than one; --iommu type1 can map it",
            ),
            libc::ENOTTY | libc::EOPNOTSUPP | libc::EBADF if is_device => Some(
                "this kernel can't give a device's memory to another through iommufd (Linux 6.19 \
                 can, with CONFIG_VFIO_PCI_DMABUF); --iommu type1 can",
            ),
            libc::ENODEV if is_device => Some("the device does not decode memory"),
            libc::EADDRINUSE => Some("the range is reserved for one of the devices"),
            _ => None,
        }
    }
}

/// Whether the kernel does not know the request at all.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP))
}

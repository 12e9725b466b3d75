use std::io;
use std::os::fd::AsFd;

use super::space::Dma;
use crate::attach::Container;
use crate::ports::HostMemory;
use crate::sys;

/// The address space of a VFIO container with the type1 IOMMU
/// (linux/vfio.h, `VFIO_TYPE1v2_IOMMU`).
impl Dma for Container {
    fn map(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()> {
        sys::container_map(self.as_fd(), iova, memory)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<u64> {
        let unmap = || sys::container_unmap(self.as_fd(), iova, size);
        // Where there are no groups, the kernel has undone it.
        self.while_groups_stay(unmap).unwrap_or(Ok(size))
    }

    fn unmap_all(&self) -> io::Result<u64> {
        let unmap = || sys::container_unmap_all(self.as_fd());
        self.while_groups_stay(unmap).unwrap_or(Ok(0))
    }

    fn is_attached(&self) -> bool {
        self.has_groups()
    }

    fn explain(&self, _: i32, _: &dyn HostMemory) -> Option<&'static str> {
        None
    }
}

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::attach::{Container, Refusal};
use super::container::iommu_info;
use super::group::GroupFile;
use super::memory::{Mapping, page_size};
use crate::iommu::SpaceLimits;

/// Groups in a container, without their devices: the steps of
/// [`Container::attach`] up to the one that would open the device, and so reset
/// it. Dropping it gives everything back.
#[derive(Debug)]
pub(crate) struct Hold {
    // Dropped in this order: a closing group leaves its container.
    groups: Vec<(u32, GroupFile)>,
    container: Container,
}

impl Hold {
    /// Opens a container.
    pub(crate) fn open() -> Result<Self, Refusal> {
        Ok(Self {
            groups: Vec::new(),
            container: Container::open(None)?,
        })
    }

    /// Brings `group` into the container: the kernel hands its DMA over, or
    /// says why not. A group that is refused is closed again.
    pub(crate) fn take(&mut self, group: u32) -> Result<(), Refusal> {
        let file = GroupFile::open(group)?;
        file.join(self.container.as_fd(), self.groups.is_empty())?;
        self.groups.push((group, file));
        Ok(())
    }

    /// Opens the device called `name` in a group that is held. Meant for a
    /// device that VFIO does not have, for which the kernel answers `ENODEV`
    /// and touches nothing; one that it has would be reset.
    pub(crate) fn open_device(&self, group: u32, name: &str) -> io::Result<OwnedFd> {
        let mut groups = self.groups.iter();
        let Some((_, file)) = groups.find(|(id, _)| *id == group) else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        file.open_device(name)
    }

    /// What the groups that are held can map.
    pub(crate) fn limits(&self) -> io::Result<SpaceLimits> {
        iommu_info(self.container.as_fd())
    }

    /// Maps one page of memory at `iova` and takes it away again. No device of
    /// the groups is open, so that none is told to reach it.
    pub(crate) fn try_map(&self, iova: u64) -> io::Result<()> {
        let page = page_size();
        let size = usize::try_from(page).map_err(io::Error::other)?;
        let memory = Mapping::anonymous(size)?;
        self.container.map_dma(iova, &memory)?;
        match self.container.unmap_dma(iova, page) {
            Ok(_) => Ok(()),
            Err(error) => {
                // It stays mapped until the container closes.
                std::mem::forget(memory);
                Err(error)
            }
        }
    }
}

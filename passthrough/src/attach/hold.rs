use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use devices::pci::PciAddress;

use super::by_group::claim;
use super::{Calls, Container, ContainerKind, KernelCalls, Refusal};
use crate::iommu::SpaceLimits;
use crate::sys::{self, Mapping, page_size};

/// Groups in a container, without their devices: the steps of
/// [`Container::attach`] up to the one that would open the device, and so reset
/// it. Dropping it gives everything back.
#[derive(Debug)]
pub(crate) struct Hold {
    // Dropped in this order: a closing group leaves its container.
    groups: Vec<(u32, OwnedFd)>,
    container: Container,
    calls: Arc<dyn Calls>,
}

impl Hold {
    /// Opens a container, or an iommufd where there is none: it does for one.
    pub(crate) fn open() -> Result<Self, Refusal> {
        let calls: Arc<dyn Calls> = Arc::new(KernelCalls);
        let container = Container::open(Arc::clone(&calls), None, None).or_else(|refusal| {
            let iommufd = calls.open_iommufd().map_err(|_| refusal)?;
            Container::open(Arc::clone(&calls), Some(iommufd), None)
        })?;
        Ok(Self {
            groups: Vec::new(),
            container,
            calls,
        })
    }

    /// What answers the container's requests.
    pub(crate) fn kind(&self) -> ContainerKind {
        self.container.kind()
    }

    /// Brings `group` into the container: the kernel hands its DMA over, or
    /// says why not. A group that is refused is closed again.
    pub(crate) fn take(&mut self, group: u32) -> Result<(), Refusal> {
        let container = self.container.as_fd();
        let first = self.groups.is_empty();
        let file = claim(&*self.calls, group, None, container, first)?;
        self.groups.push((group, file));
        Ok(())
    }

    /// Opens `device` in a group that is held, and closes it. Meant for a
    /// device that VFIO does not have, for which the kernel answers `ENODEV`
    /// and touches nothing; one that it has would be reset.
    pub(crate) fn open_device(&self, group: u32, device: PciAddress) -> io::Result<()> {
        let mut groups = self.groups.iter();
        let Some((_, file)) = groups.find(|(id, _)| *id == group) else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let opened = self.calls.open_device(file.as_fd(), device, None);
        opened.map(drop)
    }

    /// What the groups that are held can map.
    pub(crate) fn limits(&self) -> io::Result<SpaceLimits> {
        sys::container_limits(self.container.as_fd())
    }

    /// Maps one page of memory at `iova` and takes it away again. No device of
    /// the groups is open, so that none is told to reach it.
    pub(crate) fn try_map(&self, iova: u64) -> io::Result<()> {
        let page = page_size();
        let size = usize::try_from(page).map_err(io::Error::other)?;
        let memory = Mapping::anonymous(size)?;
        let container = self.container.as_fd();
        sys::container_map(container, iova, &memory)?;
        match sys::container_unmap(container, iova, page) {
            Ok(_) => Ok(()),
            Err(error) => {
                // It stays mapped until the container closes.
                std::mem::forget(memory);
                Err(error)
            }
        }
    }
}

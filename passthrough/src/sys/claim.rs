use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE, VFIO_TYPE1v2_IOMMU, vfio_group_status,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::ioctl_io_nr;

use super::attach::{Container, Refusal, Step};
use super::container::{iommu_info, map_dma, unmap_dma};
use super::memory::{Mapping, page_size};
use crate::iommu::SpaceLimits;

ioctl_io_nr!(VFIO_SET_IOMMU, VFIO_TYPE as u32, VFIO_BASE + 2);
ioctl_io_nr!(VFIO_GROUP_GET_STATUS, VFIO_TYPE as u32, VFIO_BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, VFIO_TYPE as u32, VFIO_BASE + 6);

/// Groups in a container, without their devices: the steps of
/// [`Container::attach`] up to the one that would open the device, and so reset
/// it. Dropping it gives everything back.
#[derive(Debug)]
pub(crate) struct Hold {
    // Dropped in this order: a closing group leaves its container.
    groups: Vec<(u32, File)>,
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
        let at = |step| move |source| Refusal { step, source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/vfio/{group}"))
            .map_err(at(Step::OpenGroup))?;
        if !is_viable(&file).map_err(at(Step::OpenGroup))? {
            let source = io::Error::from_raw_os_error(libc::EPERM);
            return Err(at(Step::NotViable)(source));
        }
        let container = self.container.as_fd().as_raw_fd();
        // SAFETY: the kernel only reads the number that it is given.
        let answer = unsafe { ioctl_with_ref(&file, VFIO_GROUP_SET_CONTAINER(), &container) };
        let first = self.groups.is_empty();
        if answer < 0 {
            // A container that has its IOMMU attaches the group in this call.
            // EPERM at a group that nobody owned is the IOMMU's then.
            let source = io::Error::last_os_error();
            let step = match source.raw_os_error() {
                Some(libc::EPERM | libc::EINVAL) if !first => Step::SetIommu,
                _ => Step::ClaimGroup,
            };
            return Err(at(step)(source));
        }
        if first {
            let fd = self.container.as_fd();
            // SAFETY: the argument is a number, no address.
            let answer =
                unsafe { ioctl_with_val(&fd, VFIO_SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()) };
            if answer < 0 {
                return Err(at(Step::SetIommu)(io::Error::last_os_error()));
            }
        }
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
        let name = CString::new(name)?;
        // SAFETY: the kernel only reads the string, to its zero byte.
        let fd = unsafe { ioctl_with_ptr(file, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
        map_dma(self.container.as_fd(), iova, &memory)?;
        match unmap_dma(self.container.as_fd(), iova, page) {
            Ok(_) => Ok(()),
            Err(error) => {
                // It stays mapped until the container closes.
                std::mem::forget(memory);
                Err(error)
            }
        }
    }
}

/// Whether nobody else owns the group's DMA (before Linux 5.19: whether no
/// member of it has a host driver).
fn is_viable(group: &File) -> io::Result<bool> {
    let mut status = vfio_group_status {
        argsz: size_of::<vfio_group_status>() as u32,
        flags: 0,
    };
    // SAFETY: the structure has the length that `argsz` promises.
    if unsafe { ioctl_with_mut_ref(group, VFIO_GROUP_GET_STATUS(), &mut status) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_calls() {
        // linux/vfio.h: _IO(';', 100 + n).
        assert_eq!(VFIO_SET_IOMMU(), 0x3b66);
        assert_eq!(VFIO_GROUP_GET_STATUS(), 0x3b67);
        assert_eq!(VFIO_GROUP_SET_CONTAINER(), 0x3b68);
        assert_eq!(VFIO_GROUP_GET_DEVICE_FD(), 0x3b6a);
    }

    #[test]
    fn what_is_no_group_has_no_status() {
        let error = is_viable(&File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}

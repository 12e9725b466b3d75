use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use devices::pci::PciAddress;
use vfio_ioctls::{VfioDevice, VfioError};

use super::{Calls, ContainerKind};
use crate::host::SYSFS_DEVICES;
use crate::sys;
use crate::vfio::VfToken;

/// The kernel that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelCalls;

fn open(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.open(path).map(File::into)
}

impl Calls for KernelCalls {
    fn open_container(&self) -> io::Result<OwnedFd> {
        open("/dev/vfio/vfio")
    }

    fn check_container(&self, container: BorrowedFd<'_>) -> io::Result<ContainerKind> {
        sys::check_container(container)?;
        Ok(if sys::is_iommufd(container) {
            ContainerKind::Iommufd
        } else {
            ContainerKind::Vfio
        })
    }

    fn open_group(&self, group: u32) -> io::Result<OwnedFd> {
        open(format!("/dev/vfio/{group}"))
    }

    fn group_is_viable(&self, group: BorrowedFd<'_>) -> io::Result<bool> {
        sys::group_is_viable(group)
    }

    fn join_container(&self, group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
        sys::join_container(group, container)
    }

    fn set_iommu(&self, container: BorrowedFd<'_>) -> io::Result<()> {
        sys::set_iommu(container)
    }

    fn leave_container(&self, group: BorrowedFd<'_>) -> io::Result<()> {
        sys::leave_container(group)
    }

    fn open_device(
        &self,
        group: BorrowedFd<'_>,
        device: PciAddress,
        token: Option<VfToken>,
    ) -> io::Result<OwnedFd> {
        // drivers/vfio/pci/vfio_pci_core.c, `vfio_pci_core_match`.
        let name = match token {
            Some(token) => format!("{device} vf_token={token}"),
            None => device.to_string(),
        };
        sys::open_group_device(group, &name)
    }

    fn open_iommufd(&self) -> io::Result<OwnedFd> {
        open("/dev/iommu")
    }

    fn alloc_ioas(&self, iommufd: BorrowedFd<'_>) -> io::Result<u32> {
        sys::alloc_ioas(iommufd)
    }

    fn destroy_ioas(&self, iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
        sys::destroy_ioas(iommufd, ioas)
    }

    fn open_cdev(&self, device: PciAddress) -> io::Result<OwnedFd> {
        let path = Path::new(SYSFS_DEVICES).join(device.to_string());
        match VfioDevice::open_cdev(&path) {
            Ok(file) => Ok(file.into()),
            Err(VfioError::OpenDeviceCdev(error)) => Err(error),
            // sysfs shows none.
            Err(_) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }

    fn bind_iommufd(
        &self,
        cdev: BorrowedFd<'_>,
        iommufd: BorrowedFd<'_>,
        token: Option<VfToken>,
    ) -> io::Result<()> {
        sys::bind_iommufd(cdev, iommufd, token)
    }

    fn attach_ioas(&self, cdev: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
        sys::attach_ioas(cdev, ioas)
    }

    fn tell_kvm(&self, kvm: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
        sys::add_kvm_file(kvm, file)
    }

    fn untell_kvm(&self, kvm: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
        sys::remove_kvm_file(kvm, file)
    }
}

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use devices::pci::PciAddress;

use super::device::Keeper;
use super::{AttachedDevice, Calls, Refusal, Step};
use crate::sys::Ownership;
use crate::vfio::VfToken;

/// An address space of an iommufd (IOAS). All devices that are attached to it
/// see the same maps, whatever their groups. Ends when it and the last device
/// in it are gone.
///
/// The kernel has an owner for each group: the iommufd. So devices of one group
/// come and go in any order, and no second iommufd gets one of them.
#[derive(Clone, Debug)]
pub(crate) struct Ioas(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    calls: Arc<dyn Calls>,
    iommufd: OwnedFd,
    id: u32,
    /// KVM's VFIO device (linux/kvm.h, `KVM_DEV_TYPE_VFIO`).
    kvm: Option<OwnedFd>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // It would end with the file, but that may have been handed in and be
        // open elsewhere too.
        if let Err(error) = self.calls.destroy_ioas(self.iommufd.as_fd(), self.id) {
            log::error!("the address space of {:?} stays: {error}", self.iommufd);
        }
    }
}

/// One device's hold on its address space.
struct Membership {
    file: Arc<OwnedFd>,
    shared: Arc<Shared>,
}

impl Keeper for Membership {
    fn prove(&self, act: &mut dyn FnMut(&Ownership<'_>)) {
        act(&Ownership::Iommufd);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // KVM's hold on the file would keep it open.
        if let Some(kvm) = &self.shared.kvm
            && let Err(error) = self.shared.calls.untell_kvm(kvm.as_fd(), self.file.as_fd())
        {
            log::error!("KVM does not let a device go: {error}");
        }
    }
}

impl AsFd for Ioas {
    /// The iommufd that it is in.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.iommufd.as_fd()
    }
}

impl Ioas {
    /// Makes an address space in a new iommufd, or in one that is `given` open.
    /// Devices are made known to KVM through `kvm`, KVM's VFIO device, if it is
    /// given.
    pub(crate) fn open(
        calls: Arc<dyn Calls>,
        given: Option<OwnedFd>,
        kvm: Option<OwnedFd>,
    ) -> Result<Self, Refusal> {
        let iommufd = match given {
            Some(iommufd) => iommufd,
            None => calls
                .open_iommufd()
                .map_err(|source| Step::OpenIommufd.refused(source))?,
        };
        let id = calls
            .alloc_ioas(iommufd.as_fd())
            .map_err(|source| Step::AllocIoas.refused(source))?;
        Ok(Self(Arc::new(Shared {
            calls,
            iommufd,
            id,
            kvm,
        })))
    }

    /// Opens `device`, unless its cdev is `given` open, and attaches it.
    #[cfg(test)]
    pub(super) fn attach(
        &self,
        device: PciAddress,
        given: Option<OwnedFd>,
        token: Option<VfToken>,
    ) -> Result<AttachedDevice, Refusal> {
        self.open_cdev(device, given)?.attach(token)
    }

    /// Opens the cdev of `device`, unless it is `given` open. Claims and resets
    /// nothing.
    pub(crate) fn open_cdev(
        &self,
        device: PciAddress,
        given: Option<OwnedFd>,
    ) -> Result<OpenCdev, Refusal> {
        let shared = &self.0;
        let calls = &*shared.calls;
        let file = match given {
            Some(file) => file,
            None => calls
                .open_cdev(device)
                .map_err(|source| Step::OpenCdev.refused(source))?,
        };
        let file = Arc::new(file);
        // The kernel wants to know of KVM before the device opens
        // (Documentation/virt/kvm/devices/vfio.rst).
        if let Some(kvm) = &shared.kvm {
            calls
                .tell_kvm(kvm.as_fd(), file.as_fd())
                .map_err(|source| Step::TellKvm.refused(source))?;
        }
        // From here on KVM is told again when it is dropped.
        Ok(OpenCdev(Membership {
            file,
            shared: Arc::clone(shared),
        }))
    }

    /// Its number in the iommufd.
    pub(crate) fn id(&self) -> u32 {
        self.0.id
    }
}

/// A device's open cdev that is not bound yet. Dropping it closes it.
pub(crate) struct OpenCdev(Membership);

impl OpenCdev {
    /// Binds the device, and attaches it to the address space. The kernel resets it,
    /// which takes a tenth of a second or longer.
    pub(crate) fn attach(self, token: Option<VfToken>) -> Result<AttachedDevice, Refusal> {
        let Self(membership) = self;
        let (shared, file) = (&membership.shared, &membership.file);
        let calls = &*shared.calls;
        calls
            .bind_iommufd(file.as_fd(), shared.iommufd.as_fd(), token)
            .map_err(|source| Step::BindIommufd.refused(source))?;
        calls
            .attach_ioas(file.as_fd(), shared.id)
            .map_err(|source| Step::AttachIoas.refused(source))?;
        Ok(AttachedDevice::new(Arc::clone(file), membership))
    }
}

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::PciAddress;

use super::device::Keeper;
use super::{AttachedDevice, Calls, ContainerKind, Refusal, Step};
use crate::sys::{OwnedGroup, Ownership};
use crate::vfio::VfToken;

/// The groups in a container.
#[derive(Debug)]
struct Groups {
    calls: Arc<dyn Calls>,
    /// KVM's VFIO device (linux/kvm.h, `KVM_DEV_TYPE_VFIO`).
    kvm: Option<OwnedFd>,
    /// How many devices of a group are open or about to be, and the group. Those
    /// without any are not in here.
    ///
    /// Lock order: innermost. Held while a group comes or goes, so that nobody
    /// takes a container for attached that is losing its last one.
    open: Mutex<HashMap<u32, (usize, Arc<OwnedFd>)>>,
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, (usize, Arc<OwnedFd>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens `id`, unless it is `given` open, and brings it into `container`,
    /// and before KVM.
    fn open_group(
        &self,
        id: u32,
        given: Option<OwnedFd>,
        container: BorrowedFd<'_>,
        first: bool,
    ) -> Result<OwnedFd, Refusal> {
        let calls = &*self.calls;
        // Closing it leaves the container again.
        let group = claim(calls, id, given, container, first)?;
        if let Some(kvm) = &self.kvm
            && let Err(source) = calls.tell_kvm(kvm.as_fd(), group.as_fd())
        {
            leave(calls, id, &group);
            return Err(Step::TellKvm.refused(source));
        }
        Ok(group)
    }

    /// Undoes [`Self::open_group`]. Its devices are closed.
    fn close_group(&self, id: u32, group: &OwnedFd) {
        // KVM's hold on the file would keep it open.
        if let Some(kvm) = &self.kvm
            && let Err(error) = self.calls.untell_kvm(kvm.as_fd(), group.as_fd())
        {
            log::error!("KVM does not let IOMMU group {id} go: {error}");
        }
        leave(&*self.calls, id, group);
    }
}

/// Takes a group out of its container, which its closing would do too, unless
/// the file was handed in and somebody else has it open.
fn leave(calls: &dyn Calls, id: u32, group: &OwnedFd) {
    if let Err(error) = calls.leave_container(group.as_fd()) {
        log::error!("IOMMU group {id} does not leave its container: {error}");
    }
}

/// Opens group `id`, unless it is `given` open, and puts it into `container`:
/// the kernel hands its DMA over, or says why not. The `first` group has the
/// container choose its IOMMU.
pub(super) fn claim(
    calls: &dyn Calls,
    id: u32,
    given: Option<OwnedFd>,
    container: BorrowedFd<'_>,
    first: bool,
) -> Result<OwnedFd, Refusal> {
    let group = match given {
        Some(group) => group,
        None => calls
            .open_group(id)
            .map_err(|source| Step::OpenGroup.refused(source))?,
    };
    let viable = calls.group_is_viable(group.as_fd());
    if !viable.map_err(|source| Step::OpenGroup.refused(source))? {
        let source = std::io::Error::from_raw_os_error(libc::EPERM);
        return Err(Step::NotViable.refused(source));
    }
    if let Err(source) = calls.join_container(group.as_fd(), container) {
        // A container that has its IOMMU attaches the group in this call.
        // EPERM at a group that nobody owned is the IOMMU's then.
        let step = match source.raw_os_error() {
            Some(libc::EPERM | libc::EINVAL) if !first => Step::SetIommu,
            _ => Step::ClaimGroup,
        };
        return Err(step.refused(source));
    }
    if first && let Err(source) = calls.set_iommu(container) {
        leave(calls, id, &group);
        return Err(Step::SetIommu.refused(source));
    }
    Ok(group)
}

/// One device's part in keeping its group in the container.
struct Membership {
    // Dropped in this order: the container outlives its groups.
    group: u32,
    groups: Arc<Groups>,
    _container: Arc<OwnedFd>,
}

impl Keeper for Membership {
    fn prove(&self, act: &mut dyn FnMut(&Ownership<'_>)) {
        let open = self.groups.lock();
        let groups = open.iter().map(|(&id, (devices, group))| OwnedGroup {
            id,
            open: *devices,
            file: group.as_fd(),
        });
        act(&Ownership::Groups(&groups.collect::<Vec<_>>()));
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut open = self.groups.lock();
        let Some((devices, _)) = open.get_mut(&self.group) else {
            return;
        };
        *devices = devices.saturating_sub(1);
        if *devices == 0
            && let Some((_, group)) = open.remove(&self.group)
        {
            // The file closes here, before anybody else can come to open it.
            self.groups.close_group(self.group, &group);
        }
    }
}

/// A group in a container on behalf of one of its devices, which is not open yet.
/// Dropping it takes that back.
pub(crate) struct GroupMember(Membership);

impl GroupMember {
    /// Opens `device`, which is the group's. The kernel resets it, which takes a tenth
    /// of a second or longer; no lock is held for that.
    pub(crate) fn open(
        self,
        device: PciAddress,
        token: Option<VfToken>,
    ) -> Result<AttachedDevice, Refusal> {
        let Self(membership) = self;
        let groups = &membership.groups;
        let known = groups
            .lock()
            .get(&membership.group)
            .map(|(_, group)| Arc::clone(group));
        // It is there as long as this membership.
        let gone = || std::io::Error::from_raw_os_error(libc::ENODEV);
        let opened = known.ok_or_else(gone).and_then(|group| {
            let group = group.as_fd();
            groups.calls.open_device(group, device, token)
        });
        let file = opened.map_err(|source| Step::OpenDevice.refused(source))?;
        Ok(AttachedDevice::new(Arc::new(file), membership))
    }
}

/// A VFIO container with the type1 IOMMU: the groups in it share one address
/// space. With the last device of a group, the group leaves KVM and the
/// container and is closed too. The container closes when it and the last
/// device in it are gone.
///
/// Nothing of it is left to `vfio-ioctls`: its container can't be given as an
/// open file, and its `VfioDevice` panics in `drop` when the device has left
/// sysfs, as it has when the host waits to remove it, and takes a group away
/// from under its other devices.
pub(crate) struct Container {
    groups: Arc<Groups>,
    file: Arc<OwnedFd>,
    kind: ContainerKind,
}

impl Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("file", &self.file)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Container {
    /// Opens a container, unless one is `given` open. Groups are made known to
    /// KVM through `kvm`, KVM's VFIO device, if it is given; it closes with the
    /// container.
    pub(crate) fn open(
        calls: Arc<dyn Calls>,
        given: Option<OwnedFd>,
        kvm: Option<OwnedFd>,
    ) -> Result<Self, Refusal> {
        let file = match given {
            Some(file) => file,
            None => calls
                .open_container()
                .map_err(|source| Step::OpenContainer.refused(source))?,
        };
        let kind = calls
            .check_container(file.as_fd())
            .map_err(|source| Step::CheckContainer.refused(source))?;
        let groups = Groups {
            calls,
            kvm,
            open: Mutex::default(),
        };
        Ok(Self {
            groups: Arc::new(groups),
            file: Arc::new(file),
            kind,
        })
    }

    /// Opens `device`, a member of group `id`, and brings its group into the
    /// container if it is not there yet: opened, or `given` open.
    #[cfg(test)]
    pub(super) fn attach(
        &self,
        device: PciAddress,
        id: u32,
        given: Option<OwnedFd>,
        token: Option<VfToken>,
    ) -> Result<AttachedDevice, Refusal> {
        self.join(id, given)?.open(device, token)
    }

    /// Brings group `id` into the container for one of its devices, unless it is
    /// there already: opened, or `given` open. Claims its DMA, and resets nothing.
    pub(crate) fn join(&self, id: u32, given: Option<OwnedFd>) -> Result<GroupMember, Refusal> {
        let mut open = self.groups.lock();
        let first = open.is_empty();
        match open.get_mut(&id) {
            Some((devices, _)) => *devices += 1,
            None => {
                let group = self.groups.open_group(id, given, self.as_fd(), first)?;
                open.insert(id, (1, Arc::new(group)));
            }
        }
        drop(open);
        Ok(GroupMember(Membership {
            group: id,
            groups: Arc::clone(&self.groups),
            _container: Arc::clone(&self.file),
        }))
    }

    /// Whether a group is in the container. The kernel undoes every map when
    /// the last one leaves.
    pub(crate) fn has_groups(&self) -> bool {
        !self.groups.lock().is_empty()
    }

    /// Does `act`, during which no group comes or goes; nothing when none is there.
    pub(crate) fn while_groups_stay<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let open = self.groups.lock();
        (!open.is_empty()).then(act)
    }

    /// What answers its requests.
    pub(crate) fn kind(&self) -> ContainerKind {
        self.kind
    }
}

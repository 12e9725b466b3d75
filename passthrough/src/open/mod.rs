//! Opening devices: from a list of addresses to devices in one address space.

mod error;
mod files;
mod place;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use devices::pci::PciAddress;

pub use error::OpenError;
pub use files::{FileName, FileNameError, OpenFiles};

use crate::attach::{
    AttachedDevice, Calls, Container, ContainerKind, GroupMember, Ioas, KernelCalls, OpenCdev,
    Refusal, Step,
};
use crate::host::SYSFS_DEVICES;
use crate::iommu::{AddressSpace, Backend, KernelSpace, SpaceLimits};
use crate::sys;
use crate::together::together;
use crate::vfio::{DeviceBackend, KernelDevice, VfToken};
use place::Place;

/// A device to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Its address on the host.
    pub device: PciAddress,
    /// The token of its physical function, or its own if it is one.
    pub token: Option<VfToken>,
}

impl From<PciAddress> for DeviceRequest {
    fn from(device: PciAddress) -> Self {
        let token = None;
        Self { device, token }
    }
}

/// What to open, and by what.
#[derive(Debug, Default)]
pub struct OpenRequest {
    /// The devices. Each once.
    pub devices: Vec<DeviceRequest>,
    /// By which of the kernel's interfaces: what the plan chose.
    pub backend: Backend,
    /// What somebody else has opened already. The rest is opened by its path.
    pub files: OpenFiles,
    /// The file of a KVM device of type VFIO (linux/kvm.h,
    /// `KVM_DEV_TYPE_VFIO`). KVM learns of the devices through it, if it is
    /// given; it stays open as long as they.
    pub kvm_vfio_device: Option<OwnedFd>,
}

impl OpenRequest {
    /// Asks for `devices`, with nothing special about them.
    pub fn new(devices: &[PciAddress], backend: Backend) -> Self {
        Self {
            devices: devices.iter().copied().map(DeviceRequest::from).collect(),
            backend,
            ..Self::default()
        }
    }
}

/// Which of the kernel's interfaces devices were taken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Their own files and iommufd.
    Iommufd,
    /// Their groups' files and a VFIO container.
    Type1,
    /// Their groups' files and a container that is really an iommufd, which
    /// understands a container's requests.
    Type1OverIommufd,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iommufd => "device files and iommufd",
            Self::Type1 => "groups and a type1 container",
            Self::Type1OverIommufd => {
                "groups and a container that is iommufd's compatibility interface"
            }
        })
    }
}

/// Devices that this process owns now.
///
/// Orderly teardown: drop what uses the devices, then the space, then the
/// devices, as the fields are declared. Any other order is safe too: what is
/// mapped stays out of use until no device can reach it.
#[derive(Debug)]
pub struct Opened {
    /// The address space that all of the devices see.
    pub space: Arc<dyn AddressSpace>,
    /// The devices, in the order asked for.
    pub devices: Vec<Arc<dyn DeviceBackend>>,
    /// By what they were taken.
    pub interface: Interface,
}

/// Opens devices and puts them into one new address space.
///
/// The kernel resets each device when it opens, which is done for all at the same
/// time, in a thread each.
///
/// # Errors
/// [`OpenError`]: what the kernel refused, why, and what to do. Everything is
/// undone then.
pub fn open(request: OpenRequest) -> Result<Opened, OpenError> {
    prepare(request)?.open()
}

/// Opens all files, and by type1 takes the groups, but resets no device. So whoever
/// has no time for resets learns here of most that the kernel may refuse.
///
/// # Errors
/// [`OpenError`], as [`open`] has them. Everything is undone then.
pub fn prepare(request: OpenRequest) -> Result<Prepared, OpenError> {
    let OpenRequest {
        devices,
        backend,
        files,
        kvm_vfio_device,
    } = request;
    let places = place::find(Path::new(SYSFS_DEVICES), &devices)?;
    let calls: Arc<dyn Calls> = Arc::new(KernelCalls);
    let way = match backend {
        Backend::Iommufd => by_cdev(calls, places, files, kvm_vfio_device),
        Backend::Type1 => by_group(calls, places, files, kvm_vfio_device),
    };
    way.map(Prepared)
}

/// Devices whose files are open, and that can be opened themselves. Dropping it closes
/// all.
pub struct Prepared(Way);

enum Way {
    ByCdev(Ioas, Vec<(Place, OpenCdev)>),
    ByGroup(Container, Vec<(Place, GroupMember)>),
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> = match &self.0 {
            Way::ByCdev(_, devices) => devices.iter().map(|(place, _)| place).collect(),
            Way::ByGroup(_, devices) => devices.iter().map(|(place, _)| place).collect(),
        };
        f.debug_tuple("Prepared").field(&places).finish()
    }
}

impl Prepared {
    /// Opens the devices. The kernel resets them, which takes a tenth of a second or
    /// longer; all at the same time, in a thread each.
    ///
    /// # Errors
    /// [`OpenError`], as [`open`] has them. Everything is undone then.
    pub fn open(self) -> Result<Opened, OpenError> {
        match self.0 {
            Way::ByCdev(ioas, devices) => {
                let attach = |place: &Place, cdev: OpenCdev| cdev.attach(place.token);
                let devices = attach_all(devices, attach)?;
                let limits = told(sys::ioas_limits(ioas.as_fd(), ioas.id()))?;
                Ok(Opened {
                    space: Arc::new(KernelSpace::new(ioas, limits)),
                    devices,
                    interface: Interface::Iommufd,
                })
            }
            Way::ByGroup(container, devices) => {
                let open =
                    |place: &Place, member: GroupMember| member.open(place.device, place.token);
                let devices = attach_all(devices, open)?;
                let limits = told(sys::container_limits(container.as_fd()))?;
                let interface = match container.kind() {
                    ContainerKind::Vfio => Interface::Type1,
                    ContainerKind::Iommufd => Interface::Type1OverIommufd,
                };
                Ok(Opened {
                    space: Arc::new(KernelSpace::new(container, limits)),
                    devices,
                    interface,
                })
            }
        }
    }
}

fn by_cdev(
    calls: Arc<dyn Calls>,
    places: Vec<Place>,
    mut files: OpenFiles,
    kvm: Option<OwnedFd>,
) -> Result<Way, OpenError> {
    let ioas = Ioas::open(calls, files.iommufd.take(), kvm).map_err(OpenError::of_host)?;
    let open = |place: &Place| ioas.open_cdev(place.device, files.devices.remove(&place.device));
    let devices = lead_up(places, open)?;
    Ok(Way::ByCdev(ioas, devices))
}

fn by_group(
    calls: Arc<dyn Calls>,
    places: Vec<Place>,
    mut files: OpenFiles,
    kvm: Option<OwnedFd>,
) -> Result<Way, OpenError> {
    let container = Container::open(calls, files.container.take(), kvm);
    let container = container.map_err(OpenError::of_host)?;
    let join = |place: &Place| container.join(place.group.0, files.groups.remove(&place.group));
    let devices = lead_up(places, join)?;
    Ok(Way::ByGroup(container, devices))
}

/// Leads up to each device, one after the other.
fn lead_up<P>(
    places: Vec<Place>,
    mut prepare: impl FnMut(&Place) -> Result<P, Refusal>,
) -> Result<Vec<(Place, P)>, OpenError> {
    let prepare = |place: Place| match prepare(&place) {
        Ok(prepared) => Ok((place, prepared)),
        Err(refusal) => Err(OpenError::of_device(&place, refusal)),
    };
    places.into_iter().map(prepare).collect()
}

/// Attaches all at once and asks each what it has: a reset takes the kernel a tenth of a
/// second or longer, and those of different devices go on beside each other.
fn attach_all<P: Send>(
    prepared: Vec<(Place, P)>,
    attach: impl Fn(&Place, P) -> Result<AttachedDevice, Refusal> + Sync,
) -> Result<Vec<Arc<dyn DeviceBackend>>, OpenError> {
    let opened = together(prepared, |(place, prepared)| {
        let device = attach(&place, prepared).and_then(|attached| {
            let device = KernelDevice::new(attached);
            device.map_err(|source| Step::DescribeDevice.refused(source))
        });
        let device = device.map_err(|refusal| OpenError::of_device(&place, refusal))?;
        Ok(Arc::new(device) as Arc<dyn DeviceBackend>)
    });
    opened.into_iter().collect()
}

fn told(limits: std::io::Result<SpaceLimits>) -> Result<SpaceLimits, OpenError> {
    let limits = limits.map_err(|source| OpenError::of_host(Step::AskLimits.refused(source)))?;
    log::debug!("the IOMMU can map {limits:?}");
    Ok(limits)
}

#[cfg(test)]
#[path = "open_test.rs"]
mod tests;

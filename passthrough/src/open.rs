//! Opening devices: from a list of addresses to devices in one address space.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::pci::PciAddress;
use thiserror::Error;

use crate::iommu::{AddressSpace, Type1Space};
use crate::sys::{self, Container, Refusal, Step};
use crate::vfio::{DeviceBackend, KernelDevice};

const SYSFS_DEVICES: &str = "/sys/bus/pci/devices";
const CONTAINER: &str = "/dev/vfio/vfio";

/// Devices that this process owns now.
///
/// Orderly teardown: drop what uses the devices, then the space, then the
/// devices, as the fields are declared. Any other order is safe too: the kernel
/// unmaps by itself when the last device closes.
#[derive(Debug)]
pub struct Opened {
    /// The address space that all of the devices see.
    pub space: Arc<dyn AddressSpace>,
    /// The devices, in the order asked for.
    pub devices: Vec<Arc<dyn DeviceBackend>>,
}

/// Why devices could not be opened. None is open then.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nothing to open.
    #[error("no device was named")]
    NoDevices,
    /// The same device twice.
    #[error("device {device} is named twice: name each device once")]
    Duplicate {
        /// The device.
        device: PciAddress,
    },
    /// sysfs does not know the device.
    #[error("device {device} does not exist ({path}): `lspci -D` lists the host's devices")]
    NoDevice {
        /// The device.
        device: PciAddress,
        /// Where it should be.
        path: PathBuf,
    },
    /// The device is behind no IOMMU.
    #[error(
        "device {device} has no IOMMU group: enable the IOMMU in the firmware and boot the host \
         with intel_iommu=on or amd_iommu=on"
    )]
    NoGroup {
        /// The device.
        device: PciAddress,
    },
    /// The container could not be made.
    #[error("cannot use {CONTAINER}: {reason}")]
    Container {
        /// The cause in words, with the next step.
        reason: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the device.
    #[error("cannot {action} {path} for device {device} of IOMMU group {group}: {reason}")]
    Refused {
        /// The device.
        device: PciAddress,
        /// Its IOMMU group.
        group: u32,
        /// The step, as a verb.
        action: &'static str,
        /// The file that refused.
        path: PathBuf,
        /// The cause in words, with the next step.
        reason: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

/// Opens `devices` and puts them into one new address space. KVM learns of
/// their groups through `kvm_vfio_device`, the file of a KVM device of type
/// VFIO (linux/kvm.h, `KVM_DEV_TYPE_VFIO`), if it is given; it stays open as
/// long as the devices.
///
/// The kernel resets each device when it opens.
///
/// # Errors
/// [`OpenError`]: what the kernel refused, why, and what to do. Everything is
/// undone then.
pub fn open(devices: &[PciAddress], kvm_vfio_device: Option<OwnedFd>) -> Result<Opened, OpenError> {
    let places = find(Path::new(SYSFS_DEVICES), devices)?;
    let container = Container::open(kvm_vfio_device).map_err(container_error)?;
    let mut opened: Vec<Arc<dyn DeviceBackend>> = Vec::with_capacity(devices.len());
    for place in &places {
        let attached = container.attach(&place.path, place.group);
        let device = attached.and_then(|attached| {
            KernelDevice::new(attached).map_err(|source| Refusal {
                step: Step::DescribeDevice,
                source,
            })
        });
        opened.push(Arc::new(device.map_err(|refusal| place.refused(refusal))?));
    }
    let limits = sys::iommu_info(container.as_fd()).map_err(|source| OpenError::Container {
        reason: "the kernel does not tell what the IOMMU can map",
        source,
    })?;
    log::debug!("the IOMMU can map {limits:?}");
    Ok(Opened {
        space: Arc::new(Type1Space::new(container, limits)),
        devices: opened,
    })
}

/// A device as sysfs knows it.
#[derive(Debug)]
struct Place {
    device: PciAddress,
    path: PathBuf,
    group: u32,
}

fn find(sysfs: &Path, devices: &[PciAddress]) -> Result<Vec<Place>, OpenError> {
    if devices.is_empty() {
        return Err(OpenError::NoDevices);
    }
    let mut places = Vec::with_capacity(devices.len());
    for (at, &device) in devices.iter().enumerate() {
        if devices[..at].contains(&device) {
            return Err(OpenError::Duplicate { device });
        }
        let path = sysfs.join(device.to_string());
        if !path.exists() {
            return Err(OpenError::NoDevice { device, path });
        }
        let link = path.join("iommu_group").read_link().ok();
        let group = link
            .as_deref()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str()?.parse().ok())
            .ok_or(OpenError::NoGroup { device })?;
        places.push(Place {
            device,
            path,
            group,
        });
    }
    Ok(places)
}

impl Place {
    fn refused(&self, refusal: Refusal) -> OpenError {
        let Refusal { step, source } = refusal;
        let (action, reason) = explain(step, source.raw_os_error());
        let path = match step {
            Step::OpenContainer | Step::CheckContainer => {
                return container_error(Refusal { step, source });
            }
            Step::OpenDevice | Step::DescribeDevice => self.path.clone(),
            _ => PathBuf::from(format!("/dev/vfio/{}", self.group)),
        };
        OpenError::Refused {
            device: self.device,
            group: self.group,
            action,
            path,
            reason,
            source,
        }
    }
}

fn container_error(refusal: Refusal) -> OpenError {
    let (_, reason) = explain(refusal.step, refusal.source.raw_os_error());
    let source = refusal.source;
    OpenError::Container { reason, source }
}

/// What a step does, and what the kernel means by refusing it
/// (drivers/vfio/group.c, drivers/vfio/vfio_iommu_type1.c, drivers/iommu/iommu.c
/// of Linux 5.19 and later).
fn explain(step: Step, errno: Option<i32>) -> (&'static str, &'static str) {
    use Step::*;
    const PERMISSION: &str = "this user may not open it: run as root, or give the user access \
                              with chown or a udev rule";
    const OTHER_OWNER: &str = "a device of the group is used by a host driver: `airlock check` \
                               names it; bind it to vfio-pci or unbind it";
    let action = match step {
        OpenContainer | OpenGroup => "open",
        CheckContainer => "use",
        NotViable | ClaimGroup => "claim",
        SetIommu => "attach",
        TellKvm => "tell KVM of",
        OpenDevice => "open",
        DescribeDevice => "read the properties of",
    };
    let reason = match (step, errno) {
        (OpenContainer, Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            "the host's VFIO is not loaded: run `modprobe vfio-pci`"
        }
        (OpenContainer | OpenGroup, Some(libc::EACCES | libc::EPERM)) => PERMISSION,
        (CheckContainer, _) => {
            "the host's VFIO has no type1 IOMMU: run `modprobe vfio_iommu_type1`"
        }
        (OpenGroup, Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            "no device of the group is on a VFIO driver: bind the device to vfio-pci"
        }
        (OpenGroup, Some(libc::EBUSY)) => {
            "another process uses the group: stop it first (`fuser -v` names it)"
        }
        (NotViable, _) | (ClaimGroup, Some(libc::EPERM)) => OTHER_OWNER,
        (ClaimGroup, Some(libc::EBUSY)) => {
            "the group is claimed already, by another process or through iommufd: stop it first"
        }
        (SetIommu, Some(libc::EPERM)) => {
            "the host has no interrupt remapping, so that the device could forge interrupts: \
             enable it in the firmware and on the kernel command line"
        }
        (SetIommu, Some(libc::ENODEV | libc::EINVAL)) => {
            "the group's IOMMU does not work with type1"
        }
        (SetIommu, Some(libc::ENOMEM)) => "the host has no memory left for page tables",
        (OpenDevice, Some(libc::ENODEV)) => {
            "the device is not on a VFIO driver, or just left the host: bind it to vfio-pci"
        }
        (OpenDevice, Some(libc::EACCES)) => {
            "it is a virtual function whose physical function is in VFIO too and demands a token"
        }
        (OpenDevice, Some(libc::EAGAIN)) => {
            "another program is resetting or configuring the device: try again"
        }
        (OpenDevice, Some(libc::EMFILE)) => {
            "this process has too many files open: raise the limit with `ulimit -n`"
        }
        (OpenDevice, Some(libc::EBUSY)) => "the device is in use",
        (DescribeDevice, Some(libc::EIO | libc::ENODEV)) => "the device does not answer",
        _ => "the kernel refuses",
    };
    (action, reason)
}

#[cfg(test)]
#[path = "open_test.rs"]
mod tests;

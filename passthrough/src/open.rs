//! Opening devices: from a list of addresses to devices in one address space.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::pci::PciAddress;
use thiserror::Error;

use crate::iommu::{AddressSpace, Type1Space};
use crate::refusal::{Meaning, explain};
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
    #[error("cannot {action} {CONTAINER}: {cause}: {next}")]
    Container {
        /// The step, as a verb.
        action: &'static str,
        /// The cause in words.
        cause: &'static str,
        /// What to do about it.
        next: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the device.
    #[error("cannot {action} {path} for device {device} of IOMMU group {group}: {cause}: {next}")]
    Refused {
        /// The device.
        device: PciAddress,
        /// Its IOMMU group.
        group: u32,
        /// The step, as a verb.
        action: &'static str,
        /// The file that refused.
        path: PathBuf,
        /// The cause in words.
        cause: &'static str,
        /// What to do about it.
        next: &'static str,
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
        let attached = container.attach(&place.device.to_string(), place.group);
        let device = attached.and_then(|attached| {
            KernelDevice::new(attached).map_err(|source| Refusal {
                step: Step::DescribeDevice,
                source,
            })
        });
        opened.push(Arc::new(device.map_err(|refusal| place.refused(refusal))?));
    }
    let limits = sys::iommu_info(container.as_fd()).map_err(|source| OpenError::Container {
        action: "use",
        cause: "the kernel does not tell what the IOMMU can map",
        next: "look for its own words with `dmesg | tail`",
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
        let Meaning {
            action,
            cause,
            next,
        } = explain(step, &source);
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
            cause,
            next,
            source,
        }
    }
}

fn container_error(refusal: Refusal) -> OpenError {
    let Refusal { step, source } = refusal;
    let Meaning {
        action,
        cause,
        next,
    } = explain(step, &source);
    OpenError::Container {
        action,
        cause,
        next,
        source,
    }
}

#[cfg(test)]
#[path = "open_test.rs"]
mod tests;

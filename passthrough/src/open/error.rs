use std::io;
use std::path::PathBuf;

use devices::pci::PciAddress;
use thiserror::Error;

use super::place::Place;
use crate::attach::{Refusal, Step};
use crate::host::GroupId;
use crate::refusal::{Meaning, explain};

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
    /// There is no address space for the devices: the container or the iommufd
    /// could not be had.
    #[error("cannot {action} {path}: {cause}: {next}")]
    AddressSpace {
        /// The step, as a verb.
        action: &'static str,
        /// The file.
        path: &'static str,
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
        group: GroupId,
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

impl OpenError {
    /// A refusal that has to do with no device.
    pub(super) fn of_host(refusal: Refusal) -> Self {
        let Refusal { step, source } = refusal;
        let meaning = explain(step, &source);
        Self::AddressSpace {
            action: meaning.action,
            path: match step {
                Step::OpenIommufd | Step::AllocIoas => "/dev/iommu",
                Step::AskLimits => "the IOMMU",
                _ => "/dev/vfio/vfio",
            },
            cause: meaning.cause,
            next: meaning.next,
            source,
        }
    }

    /// A refusal on the way to the device at `place`.
    pub(super) fn of_device(place: &Place, refusal: Refusal) -> Self {
        let Refusal { step, source } = refusal;
        let Meaning {
            action,
            cause,
            next,
        } = explain(step, &source);
        let path = match step {
            Step::OpenDevice | Step::DescribeDevice => place.path.clone(),
            Step::OpenCdev | Step::BindIommufd | Step::AttachIoas => place.cdev(),
            _ => PathBuf::from(format!("/dev/vfio/{}", place.group)),
        };
        Self::Refused {
            device: place.device,
            group: place.group,
            action,
            path,
            cause,
            next,
            source,
        }
    }
}

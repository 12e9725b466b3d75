use std::fs;
use std::path::{Path, PathBuf};

use devices::pci::PciAddress;

use super::{DeviceRequest, OpenError};
use crate::host::GroupId;
use crate::vfio::VfToken;

/// A device to open, as sysfs knows it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) device: PciAddress,
    pub(super) token: Option<VfToken>,
    pub(super) path: PathBuf,
    pub(super) group: GroupId,
}

impl Place {
    /// The device's own file; where it would be, if it has none.
    pub(super) fn cdev(&self) -> PathBuf {
        let entries = fs::read_dir(self.path.join("vfio-dev")).ok();
        let name = entries.and_then(|mut entries| Some(entries.next()?.ok()?.file_name()));
        Path::new("/dev/vfio/devices").join(name.unwrap_or_default())
    }
}

/// Looks the devices up in `sysfs`.
pub(super) fn find(sysfs: &Path, devices: &[DeviceRequest]) -> Result<Vec<Place>, OpenError> {
    if devices.is_empty() {
        return Err(OpenError::NoDevices);
    }
    let mut places: Vec<Place> = Vec::with_capacity(devices.len());
    for &DeviceRequest { device, token } in devices {
        if places.iter().any(|place| place.device == device) {
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
            token,
            path,
            group: GroupId(group),
        });
    }
    Ok(places)
}

use super::{Host, HostError};

/// The driver that hands devices to user space.
pub const VFIO_PCI: &str = "vfio-pci";

impl Host {
    /// Gives the devices to the driver `vfio-pci`: `driver_override`, unbind,
    /// probe.
    ///
    /// # Errors
    /// [`HostError::Failed`] when a device is not on it afterwards.
    pub fn bind_vfio(&self, devices: &[&str]) -> Result<(), HostError> {
        devices
            .iter()
            .try_for_each(|name| self.bind(name, VFIO_PCI))
    }

    /// Gives a device to any driver.
    ///
    /// # Errors
    /// [`HostError::Failed`] when the device is not on it afterwards.
    pub fn bind(&self, device: &str, driver: &str) -> Result<(), HostError> {
        let address = self.address(device)?;
        self.shell(&format!(
            "cd /sys/bus/pci/devices/{address}
             echo {driver} > driver_override
             [ ! -e driver ] || echo {address} > driver/unbind
             echo {address} > /sys/bus/pci/drivers_probe
             test \"$(basename \"$(readlink driver)\")\" = {driver}"
        ))?;
        Ok(())
    }

    /// The driver of a device, if it has one.
    ///
    /// # Errors
    /// [`HostError`] when the nested host cannot tell.
    pub fn driver(&self, device: &str) -> Result<Option<String>, HostError> {
        self.link_name(device, "driver")
    }

    /// The IOMMU group of a device, if it has one.
    ///
    /// # Errors
    /// [`HostError`] when the nested host cannot tell.
    pub fn group(&self, device: &str) -> Result<Option<u32>, HostError> {
        let Some(text) = self.link_name(device, "iommu_group")? else {
            return Ok(None);
        };
        let group = text.parse().map_err(|_| HostError::Unexpected {
            text,
            expected: "the number of an IOMMU group",
        })?;
        Ok(Some(group))
    }

    /// What a symbolic link in the device's sysfs directory points at.
    fn link_name(&self, device: &str, link: &str) -> Result<Option<String>, HostError> {
        let address = self.address(device)?;
        let path = format!("/sys/bus/pci/devices/{address}/{link}");
        let target = self.shell(&format!("readlink {path} || true"))?;
        let name = target.trim().rsplit('/').next().unwrap_or_default();
        Ok(Some(name.to_owned()).filter(|name| !name.is_empty()))
    }
}

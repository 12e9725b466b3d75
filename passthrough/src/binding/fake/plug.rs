//! How devices come and go: drivers/pci/{pci-sysfs,iov}.c and
//! drivers/iommu/iommu.c of Linux 6.12.

use super::super::device::DeviceName;
use super::super::sysfs::{AccessError, Write};
use super::FakeDevice;
use super::state::{State, refused};

/// The PCI bus that a device is on.
pub(super) fn pci_bus(name: &DeviceName) -> Option<&str> {
    let (bus, _) = name.name().rsplit_once(':')?;
    (name.bus() == "pci").then_some(bus)
}

impl State {
    pub(super) fn add_bus(&mut self, name: &DeviceName) {
        self.buses.extend(pci_bus(name).map(str::to_owned));
    }

    /// `__iommu_probe_device`: whether its DMA is translated for the host is
    /// decided here, once.
    pub(super) fn add(&mut self, name: &DeviceName, mut device: FakeDevice) {
        self.add_bus(name);
        device.untranslated = self.is_owned(device.group);
        self.devices.insert(name.clone(), device);
    }

    /// Out of the host, or out of its slot.
    pub(super) fn pull(&mut self, name: &DeviceName) {
        self.devices.remove(name);
        self.removed.remove(name);
    }

    /// `remove_store`: all that was set is gone with the device.
    pub(super) fn remove(
        &mut self,
        name: &DeviceName,
        write: &Write,
        undo: &[Write],
    ) -> Result<(), AccessError> {
        let device = self.devices.get(name);
        if let Some(driver) = device.and_then(|device| device.driver.clone()) {
            self.unbind(name, &driver, write, undo)?;
        }
        if let Some(device) = self.devices.remove(name) {
            let bare = FakeDevice {
                id: device.id,
                group: device.group,
                power: "on".to_owned(),
                virtual_functions: device.virtual_functions.map(|(_, names)| (0, names)),
                physical: device.physical,
                bridge: device.bridge,
                ..FakeDevice::default()
            };
            self.removed.insert(name.clone(), bare);
        }
        Ok(())
    }

    /// `bus_rescan_store`. VFs do not answer to a scan.
    pub(super) fn rescan(&mut self, bus: &str) {
        let removed = std::mem::take(&mut self.removed);
        for (name, device) in removed {
            if pci_bus(&name) == Some(bus) && device.physical.is_none() {
                self.add(&name, device);
                let _ = self.probe(&name);
            } else {
                self.removed.insert(name, device);
            }
        }
    }

    /// `sriov_numvfs_store`.
    pub(super) fn make_functions(
        &mut self,
        name: &DeviceName,
        value: &str,
    ) -> Result<(), AccessError> {
        let Some(device) = self.devices.get(name) else {
            return refused(libc::ENOENT);
        };
        let Some((now, names)) = device.virtual_functions.clone() else {
            return refused(libc::EACCES);
        };
        let Ok(count) = value.parse::<u16>() else {
            return refused(libc::EINVAL);
        };
        if usize::from(count) > names.len() {
            return refused(libc::ERANGE);
        }
        if count == now {
            return Ok(());
        }
        let driver = device.driver.clone().unwrap_or_default();
        let can = self.driver(name.bus(), &driver).is_some_and(|d| d.sriov);
        if !can {
            return refused(libc::ENOENT);
        }
        if count > 0 && now > 0 {
            return refused(libc::EBUSY);
        }
        for function in &names {
            self.devices.remove(function);
        }
        for (function, number) in names.iter().zip(1000..1000 + u32::from(count)) {
            let made = FakeDevice {
                physical: Some(name.clone()),
                ..FakeDevice::new("vf", number, "")
            };
            self.devices.insert(function.clone(), made);
            let _ = self.probe(function);
        }
        if let Some(device) = self.devices.get_mut(name) {
            device.virtual_functions = Some((count, names));
        }
        Ok(())
    }
}

//! What the kernel does: drivers/base/{bus,dd,driver}.c and
//! drivers/vfio/pci/vfio_pci_core.c of Linux 6.12.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::super::device::DeviceName;
use super::super::sysfs::{AccessError, Write};
use super::{FakeDevice, FakeDriver, Fault};
use crate::host::{GroupId, Holder};

/// Everything that the kernel knows.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The drivers of each bus, in the order in which they are asked.
    pub(super) drivers: Vec<(String, FakeDriver)>,
    /// Modules that can be loaded, and what comes with them.
    pub(super) modules: BTreeMap<String, (String, FakeDriver)>,
    pub(super) devices: BTreeMap<DeviceName, FakeDevice>,
    /// PCI devices that were removed, and are in their slots still.
    pub(super) removed: BTreeMap<DeviceName, FakeDevice>,
    /// The PCI buses, such as `0000:02`.
    pub(super) buses: BTreeSet<String>,
    pub(super) holders: Vec<Holder>,
    pub(super) holders_are_hidden: bool,
    pub(super) faults: BTreeMap<usize, Fault>,
    pub(super) log: Vec<String>,
    pub(super) lockdown: Option<String>,
    pub(super) boot_id: String,
    /// Lines of modules.alias for VFIO: pattern and module.
    pub(super) aliases: Vec<(String, String)>,
    /// What waits for a device's lock, and what follows each.
    waiting: Vec<(DeviceName, Write, Vec<Write>)>,
}

/// A path in parts.
enum Place<'a> {
    Attribute(DeviceName, &'a str),
    Driver(&'a str, &'a str, &'a str),
    Bus(&'a str, &'a str),
    PciBus(&'a str, &'a str),
    Member(u32, &'a str, &'a str),
    Other,
}

fn place(path: &str) -> Place<'_> {
    let parts: Vec<_> = path.trim_start_matches('/').splitn(6, '/').collect();
    match parts[..] {
        ["sys", "bus", bus, "devices", name] => match DeviceName::new(bus, name) {
            Ok(device) => Place::Attribute(device, ""),
            Err(_) => Place::Other,
        },
        ["sys", "bus", bus, "devices", name, attribute] => match DeviceName::new(bus, name) {
            Ok(device) => Place::Attribute(device, attribute),
            Err(_) => Place::Other,
        },
        ["sys", "bus", bus, "drivers", driver, file] => Place::Driver(bus, driver, file),
        ["sys", "bus", bus, file] => Place::Bus(bus, file),
        ["sys", "class", "pci_bus", bus] => Place::PciBus(bus, ""),
        ["sys", "class", "pci_bus", bus, file] => Place::PciBus(bus, file),
        ["sys", "kernel", "iommu_groups", group, "devices"] => match group.parse() {
            Ok(group) => Place::Member(group, "", ""),
            Err(_) => Place::Other,
        },
        ["sys", "kernel", "iommu_groups", group, "devices", rest] => {
            let (name, attribute) = rest.split_once('/').unwrap_or((rest, ""));
            match group.parse() {
                Ok(group) => Place::Member(group, name, attribute),
                Err(_) => Place::Other,
            }
        }
        _ => Place::Other,
    }
}

pub(super) fn refused<T>(errno: i32) -> Result<T, AccessError> {
    Err(io::Error::from_raw_os_error(errno).into())
}

impl State {
    pub(super) fn driver(&self, bus: &str, name: &str) -> Option<&FakeDriver> {
        let mut drivers = self.drivers.iter();
        let found = drivers.find(|(on, driver)| on == bus && driver.name == name);
        found.map(|(_, driver)| driver)
    }

    fn members(&self, group: u32) -> impl Iterator<Item = (&DeviceName, &FakeDevice)> {
        let devices = self.devices.iter();
        devices.filter(move |(_, device)| device.group == Some(GroupId(group)))
    }

    /// Whether a process has the device open, or its group.
    fn is_open(&self, device: &FakeDevice) -> bool {
        let files = [
            device.group.map(|group| format!("/dev/vfio/{group}")),
            device
                .vfio_device
                .as_ref()
                .map(|name| format!("/dev/vfio/devices/{name}")),
        ];
        let mut files = files.iter().flatten();
        files.any(|file| self.holders.iter().any(|holder| holder.file == *file))
    }

    /// Whether a guest owns the DMA of the group (drivers/iommu/iommu.c,
    /// `iommu_device_use_default_domain`).
    pub(super) fn is_owned(&self, group: Option<GroupId>) -> bool {
        group.is_some_and(|group| {
            let mut members = self.members(group.0);
            members.any(|(_, member)| member.vfio_device.is_some() && self.is_open(member))
        })
    }

    pub(super) fn read(&self, path: &str) -> Option<String> {
        match place(path) {
            Place::Attribute(device, "power/control") => {
                self.devices.get(&device).map(|device| device.power.clone())
            }
            _ if path == "/proc/sys/kernel/random/boot_id" => Some(self.boot_id.clone()),
            _ if path == "/sys/kernel/security/lockdown" => self.lockdown.clone(),
            _ => None,
        }
    }

    pub(super) fn read_locked(&mut self, path: &str) -> Result<Option<String>, AccessError> {
        let Place::Attribute(name, attribute) = place(path) else {
            return Ok(None);
        };
        let Some(device) = self.devices.get(&name) else {
            return Ok(None);
        };
        let text = match attribute {
            "driver_override" => Some(
                device
                    .driver_override
                    .clone()
                    .unwrap_or("(null)".to_owned()),
            ),
            "sriov_numvfs" => {
                let functions = device.virtual_functions.as_ref();
                functions.map(|(count, _)| count.to_string())
            }
            _ => None,
        };
        if text.is_some() && device.leaving {
            return Err(AccessError::Late);
        }
        Ok(text)
    }

    pub(super) fn link(&self, path: &str) -> Option<String> {
        match place(path) {
            Place::Attribute(name, attribute) => {
                let device = self.devices.get(&name)?;
                match attribute {
                    "" => Some(name.name().to_owned()),
                    "driver" if !device.leaving => device.driver.clone(),
                    "iommu_group" => device.group.map(|group| group.to_string()),
                    "physfn" => {
                        let physical = device.physical.as_ref()?;
                        Some(physical.name().to_owned())
                    }
                    _ => None,
                }
            }
            Place::PciBus(bus, "") => self.buses.get(bus).cloned(),
            Place::Driver(bus, driver, "module") => self.driver(bus, driver)?.module.clone(),
            Place::Member(group, member, "subsystem") => {
                let mut members = self.members(group);
                let (name, _) = members.find(|(name, _)| name.name() == member)?;
                Some(name.bus().to_owned())
            }
            _ => None,
        }
    }

    pub(super) fn list(&self, path: &str) -> Option<Vec<String>> {
        let vfio = |device: &FakeDevice| device.vfio_device.clone().into_iter().collect();
        match place(path) {
            Place::Bus(bus, "drivers") => {
                let drivers = self.drivers.iter().filter(|(on, _)| on == bus);
                let mut names: Vec<_> = drivers.map(|(_, driver)| driver.name.clone()).collect();
                names.sort_unstable();
                Some(names)
            }
            Place::Attribute(name, "") => {
                let device = self.devices.get(&name)?;
                let mut names = vec!["driver_override".to_owned(), "power".to_owned()];
                if device.vfio_device.is_some() {
                    names.push("vfio-dev".to_owned());
                }
                Some(names)
            }
            Place::Attribute(name, "vfio-dev") => self.devices.get(&name).map(vfio),
            Place::Member(group, "", "") => {
                let members = self.members(group);
                Some(members.map(|(name, _)| name.name().to_owned()).collect())
            }
            Place::Member(group, member, "vfio-dev") => {
                let mut members = self.members(group);
                let (_, device) = members.find(|(name, _)| name.name() == member)?;
                Some(vfio(device))
            }
            _ => None,
        }
    }

    pub(super) fn write(&mut self, write: &Write, undo: &[Write]) -> Result<(), AccessError> {
        if write.value.is_empty() {
            // sysfs does not even call the attribute's function.
            return Ok(());
        }
        let value = write.value.trim_end_matches('\n');
        match place(&write.path) {
            Place::Attribute(name, attribute) => {
                if !self.devices.contains_key(&name) {
                    return refused(libc::ENOENT);
                }
                self.wait_for(&name, write, undo)?;
                if attribute == "remove" && name.bus() == "pci" {
                    return self.remove(&name, write, undo);
                }
                self.write_attribute(&name, attribute, value)
            }
            Place::Driver(bus, driver, file) => {
                if self.driver(bus, driver).is_none() {
                    return refused(libc::ENOENT);
                }
                let Some(name) = self.named(bus, value) else {
                    return refused(libc::ENODEV);
                };
                match file {
                    "unbind" => self.unbind(&name, driver, write, undo),
                    "bind" => self.bind(&name, driver),
                    _ => refused(libc::EACCES),
                }
            }
            Place::Bus(bus, "drivers_probe") => {
                let Some(name) = self.named(bus, value) else {
                    return refused(libc::ENODEV);
                };
                // dev->driver is still set while the unbind waits, so that
                // bus_rescan_devices_helper does not come to the lock.
                if self.devices.get(&name).is_some_and(|device| device.leaving) {
                    return Ok(());
                }
                self.probe(&name)
            }
            Place::PciBus(bus, "rescan") if self.buses.contains(bus) => {
                self.rescan(bus);
                Ok(())
            }
            _ => refused(libc::ENOENT),
        }
    }

    fn named(&self, bus: &str, name: &str) -> Option<DeviceName> {
        let name = DeviceName::new(bus, name).ok()?;
        self.devices.contains_key(&name).then_some(name)
    }

    /// Waits for the device's lock, which an unbind has that waits itself.
    fn wait_for(
        &mut self,
        name: &DeviceName,
        write: &Write,
        undo: &[Write],
    ) -> Result<(), AccessError> {
        if !self.devices.get(name).is_some_and(|device| device.leaving) {
            return Ok(());
        }
        let waiting = (name.clone(), write.clone(), undo.to_vec());
        self.waiting.push(waiting);
        Err(AccessError::Late)
    }

    fn write_attribute(
        &mut self,
        name: &DeviceName,
        attribute: &str,
        value: &str,
    ) -> Result<(), AccessError> {
        if attribute == "sriov_numvfs" {
            return self.make_functions(name, value);
        }
        let Some(device) = self.devices.get_mut(name) else {
            return refused(libc::ENOENT);
        };
        match (attribute, value) {
            ("driver_override", "") => device.driver_override = None,
            ("driver_override", driver) => device.driver_override = Some(driver.to_owned()),
            ("power/control", "auto" | "on") => device.power = value.to_owned(),
            ("power/control", _) => return refused(libc::EINVAL),
            _ => return refused(libc::EACCES),
        }
        Ok(())
    }

    /// `unbind_store`: the link to the driver goes first, then the driver lets
    /// go, and a VFIO driver waits for its user with that.
    pub(super) fn unbind(
        &mut self,
        name: &DeviceName,
        driver: &str,
        write: &Write,
        undo: &[Write],
    ) -> Result<(), AccessError> {
        let on = self
            .devices
            .get(name)
            .and_then(|device| device.driver.as_deref());
        if on != Some(driver) {
            return refused(libc::ENODEV);
        }
        self.wait_for(name, write, undo)?;
        let vfio = self.driver(name.bus(), driver).is_some_and(|d| d.vfio);
        let Some(device) = self.devices.get(name) else {
            return refused(libc::ENODEV);
        };
        if vfio && self.is_open(device) {
            if let Some(device) = self.devices.get_mut(name) {
                device.leaving = true;
            }
            let waiting = (name.clone(), write.clone(), undo.to_vec());
            self.waiting.push(waiting);
            return Err(AccessError::Late);
        }
        self.detach(name);
        Ok(())
    }

    fn detach(&mut self, name: &DeviceName) {
        let Some(device) = self.devices.get_mut(name) else {
            return;
        };
        if device.vfio_device.take().is_some() {
            // pm_runtime_forbid()
            device.power = "on".to_owned();
        }
        device.driver = None;
        device.leaving = false;
    }

    /// `bind_store`.
    fn bind(&mut self, name: &DeviceName, driver: &str) -> Result<(), AccessError> {
        let Some(device) = self.devices.get(name) else {
            return refused(libc::ENODEV);
        };
        let found = self.driver(name.bus(), driver).cloned();
        match found.filter(|driver| fits(driver, device)) {
            None => refused(libc::ENODEV),
            Some(_) if device.driver.is_some() => refused(libc::EBUSY),
            Some(driver) => match self.attach(name, &driver) {
                Ok(true) => Ok(()),
                Ok(false) => refused(libc::ENODEV),
                Err(errno) => refused(errno),
            },
        }
    }

    /// `drivers_probe_store`: says yes even if no driver wants the device, and
    /// `EINVAL` when the bus could not prepare it for one.
    pub(super) fn probe(&mut self, name: &DeviceName) -> Result<(), AccessError> {
        for (bus, driver) in self.drivers.clone() {
            let Some(device) = self.devices.get(name) else {
                return refused(libc::ENODEV);
            };
            if device.driver.is_some() {
                return Ok(());
            }
            if bus == name.bus() && fits(&driver, device) {
                match self.attach(name, &driver) {
                    Ok(true) => return Ok(()),
                    // The next one may try.
                    Ok(false) => {}
                    Err(_) => return refused(libc::EINVAL),
                }
            }
        }
        Ok(())
    }

    /// `really_probe`: whether the driver took it.
    fn attach(&mut self, name: &DeviceName, driver: &FakeDriver) -> Result<bool, i32> {
        let Some(device) = self.devices.get(name) else {
            return Ok(false);
        };
        if !driver.vfio && self.is_owned(device.group) {
            return Err(libc::EBUSY);
        }
        let functions = device.virtual_functions.as_ref();
        let has_functions = functions.is_some_and(|(count, _)| *count > 0);
        if driver.refuses.contains(name) || driver.vfio && has_functions {
            return Ok(false);
        }
        let Some(device) = self.devices.get_mut(name) else {
            return Ok(false);
        };
        device.driver = Some(driver.name.clone());
        if driver.vfio {
            // pm_runtime_allow()
            device.power = "auto".to_owned();
            device.vfio_device = Some(format!("vfio-{}", name.name()));
        }
        Ok(true)
    }

    /// Lets what waits for a user go on, if the user is gone.
    pub(super) fn go_on(&mut self) {
        for (name, write, undo) in std::mem::take(&mut self.waiting) {
            let device = self.devices.get(&name);
            if device.is_some_and(|device| device.leaving && self.is_open(device)) {
                self.waiting.push((name, write, undo));
                continue;
            }
            if device.is_some_and(|device| device.leaving) {
                self.detach(&name);
                if write.path.ends_with("/remove") {
                    let _ = self.write(&write, &[]);
                }
            } else if self.write(&write, &[]).is_err() {
                continue;
            }
            for write in undo {
                let _ = self.write(&write, &[]);
            }
        }
    }

    /// modprobe: the drivers of the module are there, and take what they know.
    pub(super) fn load(&mut self, module: &str) -> Result<(), AccessError> {
        let plain = |name: &str| name.replace('-', "_");
        let mut modules = self.modules.iter();
        let found = modules.find(|(name, _)| plain(name) == plain(module));
        let Some((_, (bus, driver))) = found.map(|(name, found)| (name, found.clone())) else {
            let text = format!("modprobe: FATAL: Module {module} not found");
            return Err(io::Error::other(text).into());
        };
        if self.driver(&bus, &driver.name).is_some() {
            return Ok(());
        }
        if self
            .lockdown
            .as_deref()
            .is_some_and(|text| !text.contains("[none]"))
        {
            return refused(libc::EKEYREJECTED);
        }
        self.drivers.push((bus, driver));
        for name in self.devices.keys().cloned().collect::<Vec<_>>() {
            let _ = self.probe(&name);
        }
        Ok(())
    }
}

/// `pci_match_device`: an override leaves no other choice, and needs no id.
fn fits(driver: &FakeDriver, device: &FakeDevice) -> bool {
    match &device.driver_override {
        Some(only) => *only == driver.name,
        None => driver.ids.contains(&device.id),
    }
}

//! The port with the words of this module: attributes of devices in, errors
//! that name the device out.

use std::io;
use std::time::Duration;

use super::device::DeviceName;
use super::error::BindError;
use super::held::Found;
use super::sysfs::{AccessError, Sysfs, Write};
use crate::host::{GroupId, Holder, Holders};
use crate::viability::is_vfio_driver;

/// How long loading a module may take: firmware and other modules may have to
/// come first.
const MODULE_LIMIT: Duration = Duration::from_secs(60);

/// Sysfs, and how long an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel<'a> {
    pub(super) sysfs: &'a dyn Sysfs,
    pub(super) limit: Duration,
}

impl Kernel<'_> {
    /// Whether the device is there.
    pub(super) fn has(&self, device: &DeviceName) -> Result<bool, BindError> {
        self.link(device.folder()).map(|place| place.is_some())
    }

    /// Whether the PCI bus of the device is there, with or without the device.
    pub(super) fn has_bus(&self, device: &DeviceName) -> Result<bool, BindError> {
        match device.bus_folder() {
            Some(bus) => self.link(bus).map(|place| place.is_some()),
            None => Ok(false),
        }
    }

    /// Whether the device is a VF, which only its PF can make.
    pub(super) fn is_virtual_function(&self, device: &DeviceName) -> Result<bool, BindError> {
        let physical = self.link(device.attribute("physfn"));
        physical.map(|physical| physical.is_some())
    }

    /// The driver that the device is on.
    pub(super) fn driver(&self, device: &DeviceName) -> Result<Option<String>, BindError> {
        self.link(device.attribute("driver"))
    }

    /// The device's group.
    pub(super) fn group(&self, device: &DeviceName) -> Result<Option<GroupId>, BindError> {
        let number = self.link(device.attribute("iommu_group"))?;
        Ok(number.and_then(|number| number.parse().ok()).map(GroupId))
    }

    /// The driver that alone may bind the device.
    pub(super) fn driver_override(&self, device: &DeviceName) -> Result<Option<String>, BindError> {
        let text = self.locked(device, "driver_override")?;
        Ok(text.filter(|driver| !driver.is_empty() && driver != "(null)"))
    }

    /// `power/control`. Reading it takes no lock.
    pub(super) fn power_control(&self, device: &DeviceName) -> Result<Option<String>, BindError> {
        let path = device.attribute("power/control");
        let read = self.sysfs.read(&path);
        read.map_err(|answer| BindError::Read { path, answer })
    }

    /// How many VFs a PF has now.
    pub(super) fn virtual_functions(&self, device: &DeviceName) -> Result<Option<u16>, BindError> {
        let text = self.locked(device, "sriov_numvfs")?;
        Ok(text.and_then(|count| count.parse().ok()))
    }

    /// All that has to be known to give the device back.
    pub(super) fn found(&self, device: &DeviceName) -> Result<Found, BindError> {
        let driver = self.driver(device)?;
        let driver_module = match &driver {
            Some(driver) => self.link(device.driver_file(driver, "module"))?,
            None => None,
        };
        Ok(Found {
            driver_module,
            driver_override: self.driver_override(device)?,
            power_control: self.power_control(device)?,
            virtual_functions: self.virtual_functions(device)?,
            driver,
        })
    }

    /// The driver `name` as its bus writes it: `-` and `_` are the same to
    /// modprobe, and not to the bus.
    pub(super) fn driver_named(&self, bus: &str, name: &str) -> Result<Option<String>, BindError> {
        let path = format!("/sys/bus/{bus}/drivers");
        let drivers = self.sysfs.list(&path);
        let drivers = drivers.map_err(|answer| BindError::Read { path, answer })?;
        let drivers = drivers.unwrap_or_default();
        let exact = drivers.iter().find(|driver| *driver == name);
        let like = || drivers.iter().find(|driver| same(driver, name));
        Ok(exact.or_else(like).cloned())
    }

    /// Loads `module`, with what stands in the way in the error.
    pub(super) fn load(&self, module: &str) -> Result<(), BindError> {
        let limit = self.limit.max(MODULE_LIMIT);
        let mut reason = match self.sysfs.load_module(module, limit) {
            Ok(()) => return Ok(()),
            Err(AccessError::Late) => format!(
                "it is not loaded after {} s; see `dmesg | tail`",
                limit.as_secs()
            ),
            Err(AccessError::Refused(error)) => error.to_string(),
        };
        if let Some(mode) = self.lockdown() {
            reason.push_str(&format!(
                ". The kernel is locked down ({mode}), which lets only signed modules in: install the distribution's own module, or turn Secure Boot off"
            ));
        }
        let module = module.to_owned();
        Err(BindError::Modprobe { module, reason })
    }

    /// How the kernel is locked down, if it is: `none [integrity] confidentiality`
    /// (kernel_lockdown(7)).
    fn lockdown(&self) -> Option<String> {
        let text = self.sysfs.read("/sys/kernel/security/lockdown").ok()??;
        let (_, rest) = text.split_once('[')?;
        let (mode, _) = rest.split_once(']')?;
        (mode != "none").then(|| mode.to_owned())
    }

    /// Who has a file of VFIO open that keeps `device` from changing drivers:
    /// its own, its group's, or that of another device in the group, for the
    /// kernel gives a group's DMA to a guest or to the host as a whole.
    ///
    /// A device that is being taken from VFIO while somebody has its own file
    /// loses first that file's name, then its driver, and then waits. Whose the
    /// nameless files are can't be told any more: they count for each device that
    /// may be waiting so.
    pub(super) fn users(
        &self,
        device: &DeviceName,
        group: Option<GroupId>,
        holders: &Holders,
    ) -> Vec<Holder> {
        let list = |path: &str| self.sysfs.list(path).ok().flatten().unwrap_or_default();
        let mut folders = vec![device.folder()];
        let mut files = Vec::new();
        if let Some(group) = group {
            files.push(format!("/dev/vfio/{group}"));
            files.push(format!("/dev/vfio/noiommu-{group}"));
            let members = format!("/sys/kernel/iommu_groups/{group}/devices");
            let names = list(&members);
            folders.extend(names.iter().map(|name| format!("{members}/{name}")));
        }
        for folder in folders {
            let names = list(&format!("{folder}/vfio-dev"));
            files.extend(names.iter().map(|name| format!("/dev/vfio/devices/{name}")));
        }
        let may_wait = matches!(self.driver(device), Ok(None));
        let seen = holders.seen.iter();
        seen.filter(|holder| files.contains(&holder.file) || may_wait && is_nameless(&holder.file))
            .cloned()
            .collect()
    }

    /// Writes for `device`. Should the write go through only after the limit,
    /// `undo` is written after it.
    pub(super) fn write(
        &self,
        device: &DeviceName,
        write: &Write,
        undo: &[Write],
    ) -> Result<(), BindError> {
        match self.sysfs.write(write, undo, self.limit) {
            Ok(()) => Ok(()),
            Err(AccessError::Late) => Err(self.blocked(device, &write.path)),
            Err(AccessError::Refused(answer)) => Err(BindError::Write {
                path: write.path.clone(),
                value: write.value.trim_end().to_owned(),
                hint: hint(&write.path, &answer),
                answer,
            }),
        }
    }

    fn blocked(&self, device: &DeviceName, path: &str) -> BindError {
        BindError::Blocked {
            device: device.clone(),
            path: path.to_owned(),
            limit: self.limit,
        }
    }

    fn locked(&self, device: &DeviceName, attribute: &str) -> Result<Option<String>, BindError> {
        let path = device.attribute(attribute);
        match self.sysfs.read_locked(&path, self.limit) {
            Ok(text) => Ok(text),
            Err(AccessError::Late) => Err(self.blocked(device, &path)),
            Err(AccessError::Refused(answer)) => Err(BindError::Read { path, answer }),
        }
    }

    fn link(&self, path: String) -> Result<Option<String>, BindError> {
        let link = self.sysfs.link(&path);
        link.map_err(|answer| BindError::Read { path, answer })
    }
}

/// Whether two names mean the same module.
pub(super) fn same(one: &str, other: &str) -> bool {
    let plain = |c: char| if c == '-' { '_' } else { c };
    one.chars().map(plain).eq(other.chars().map(plain))
}

/// Whether `file`, as procfs shows it, is a device's own that has lost its name.
fn is_nameless(file: &str) -> bool {
    file.starts_with("/dev/vfio/devices/") && file.ends_with(" (deleted)")
}

/// What an errno means in the file that it came from (drivers/base/bus.c,
/// drivers/pci/iov.c).
fn hint(path: &str, error: &io::Error) -> &'static str {
    let file = path.rsplit('/').next().unwrap_or_default();
    match (file, error.raw_os_error()) {
        (_, Some(libc::EACCES | libc::EPERM)) => ": run as root, where /sys is writable",
        (_, Some(libc::EROFS)) => ": /sys is mounted read-only, as in a container",
        ("unbind" | "bind", Some(libc::ENODEV)) => ": the driver does not have the device",
        ("drivers_probe", Some(libc::ENODEV)) => ": the device has left the host",
        ("drivers_probe", Some(libc::EINVAL)) => {
            ": the group belongs to a guest, or the driver is not ready"
        }
        ("remove" | "rescan", Some(libc::ENOENT)) => ": the device, or its bus, has left the host",
        ("sriov_numvfs", Some(libc::ENOENT)) => ": its driver can't change the number of VFs",
        _ => "",
    }
}

/// Has `driver` alone bind the device, or any with none.
pub(super) fn set_override(device: &DeviceName, driver: Option<&str>) -> Write {
    // Nothing at all would not even reach the kernel's function.
    let value = driver.unwrap_or("\n");
    Write::new(device.attribute("driver_override"), value)
}

/// The override with which a device on no driver finds back to `driver`. A
/// VFIO driver takes only what is named to it, and its device may have got
/// there by an override that was cleared since. Drivers of the host are left to
/// their ids: what they have no id for, they may not survive.
pub(super) fn way_back<'a>(driver: Option<&'a str>, before: Option<&'a str>) -> Option<&'a str> {
    match (driver, before) {
        (Some(driver), _) if is_vfio(driver) => Some(driver),
        // Set while the device was on its driver, it would lead elsewhere.
        (Some(driver), Some(before)) if driver != before => None,
        _ => before,
    }
}

/// Whether a driver gives devices to guests, on whatever bus.
pub(super) fn is_vfio(driver: &str) -> bool {
    is_vfio_driver(driver, None) || driver.starts_with("vfio-")
}

/// Brings a device that is on no driver back to where it was found.
pub(super) fn bring_back(
    device: &DeviceName,
    driver: Option<&str>,
    before: Option<&str>,
) -> Vec<Write> {
    let way = way_back(driver, before);
    let mut writes = vec![set_override(device, way)];
    if driver.is_some() {
        writes.push(probe(device));
    }
    if way != before {
        writes.push(set_override(device, before));
    }
    writes
}

/// Takes the device from `driver`, and from no other.
pub(super) fn unbind(device: &DeviceName, driver: &str) -> Write {
    Write::new(device.driver_file(driver, "unbind"), device.name())
}

/// Has the bus look for a driver.
pub(super) fn probe(device: &DeviceName) -> Write {
    Write::new(device.probe_file(), device.name())
}

/// Takes a PCI device out of the kernel, but not out of its slot.
pub(super) fn remove(device: &DeviceName) -> Write {
    Write::new(device.attribute("remove"), "1")
}

/// Has the kernel look for PCI devices on the bus of `device`, and on no other:
/// elsewhere there may be some that were removed for good.
pub(super) fn rescan(device: &DeviceName) -> Write {
    let bus = device.bus_folder().unwrap_or_default();
    Write::new(format!("{bus}/rescan"), "1")
}

/// Gives the device to `driver`, which must know it.
pub(super) fn bind(device: &DeviceName, driver: &str) -> Write {
    Write::new(device.driver_file(driver, "bind"), device.name())
}

/// Makes `count` VFs.
pub(super) fn set_virtual_functions(device: &DeviceName, count: u16) -> Write {
    Write::new(device.attribute("sriov_numvfs"), count.to_string())
}

/// Lets the device sleep while it is idle (`auto`), or not (`on`).
pub(super) fn set_power_control(device: &DeviceName, value: &str) -> Write {
    Write::new(device.attribute("power/control"), value)
}

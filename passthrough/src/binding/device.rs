use std::fmt;
use std::str::FromStr;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest name that a folder of sysfs can have.
const NAME_LIMIT: usize = 255;

/// A device, as sysfs names it: the bus that it is on, and its name there.
///
/// Written `pci/0000:01:00.0` or `platform/fff51000.ethernet`; a PCI address
/// alone means the bus `pci`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    bus: String,
    name: String,
}

/// Why a text names no device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{text}' names no device: write a PCI address (01:00.0 or 0000:01:00.0), or BUS/NAME as in /sys/bus/BUS/devices/NAME"
)]
pub struct DeviceNameError {
    /// What was written.
    pub text: String,
}

impl DeviceName {
    /// The PCI function at `address`.
    pub fn pci(address: PciAddress) -> Self {
        Self {
            bus: "pci".to_owned(),
            name: address.to_string(),
        }
    }

    /// The device `name` of `bus`.
    ///
    /// # Errors
    /// [`DeviceNameError`] when one of them can't be the name of a folder in
    /// sysfs, or a name on the bus `pci` is no address.
    pub fn new(bus: &str, name: &str) -> Result<Self, DeviceNameError> {
        let wrong = || DeviceNameError {
            text: format!("{bus}/{name}"),
        };
        if bus == "pci" {
            return name.parse().map(Self::pci).map_err(|_| wrong());
        }
        if !is_folder(bus) || !is_folder(name) {
            return Err(wrong());
        }
        Ok(Self {
            bus: bus.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The bus, such as `pci`.
    pub fn bus(&self) -> &str {
        &self.bus
    }

    /// Its name on the bus, such as `0000:01:00.0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, when it is a PCI function.
    pub fn address(&self) -> Option<PciAddress> {
        (self.bus == "pci").then(|| self.name.parse().ok())?
    }

    /// Its folder in sysfs.
    pub(super) fn folder(&self) -> String {
        format!("/sys/bus/{}/devices/{}", self.bus, self.name)
    }

    /// One of its attributes.
    pub(super) fn attribute(&self, attribute: &str) -> String {
        format!("{}/{attribute}", self.folder())
    }

    /// The folder of the PCI bus that it is on, when it is a PCI function: that
    /// stays when the function is removed.
    pub(super) fn bus_folder(&self) -> Option<String> {
        self.address()?;
        let (bus, _) = self.name.rsplit_once(':')?;
        Some(format!("/sys/class/pci_bus/{bus}"))
    }

    /// A file of `driver`, which is on the same bus.
    pub(super) fn driver_file(&self, driver: &str, file: &str) -> String {
        format!("/sys/bus/{}/drivers/{driver}/{file}", self.bus)
    }

    /// The file that has the bus look for a driver of a device.
    pub(super) fn probe_file(&self) -> String {
        format!("/sys/bus/{}/drivers_probe", self.bus)
    }
}

/// Whether `name` can stand between two slashes of a path, and on a terminal.
pub(super) fn is_folder(name: &str) -> bool {
    let plain = |c: char| c != '/' && !c.is_control();
    !name.is_empty()
        && name.len() <= NAME_LIMIT
        && name != "."
        && name != ".."
        && name.chars().all(plain)
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((bus, name)) => Self::new(bus, name),
            None => Self::new("pci", text),
        }
        .map_err(|_| DeviceNameError {
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for DeviceName {
    type Error = DeviceNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(device: DeviceName) -> Self {
        format!("{}/{}", device.bus, device.name)
    }
}

impl From<PciAddress> for DeviceName {
    fn from(address: PciAddress) -> Self {
        Self::pci(address)
    }
}

impl fmt::Display for DeviceName {
    /// A PCI function's address alone, as users write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bus == "pci" {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.bus, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_alone_means_pci() {
        for text in [
            "1:0.0",
            "01:00.0",
            "0000:01:00.0",
            "pci/0000:01:00.0",
            "pci/01:00.0",
        ] {
            let device: DeviceName = text.parse().unwrap();
            assert_eq!(device.bus(), "pci");
            assert_eq!(device.to_string(), "0000:01:00.0", "{text}");
            assert_eq!(device.address().unwrap().bus(), 1);
        }
        let device: DeviceName = "platform/fff51000.ethernet".parse().unwrap();
        assert_eq!(device.address(), None);
        assert_eq!(device.to_string(), "platform/fff51000.ethernet");
        assert_eq!(
            device.probe_file(),
            "/sys/bus/platform/drivers_probe".to_owned()
        );
        assert_eq!(device.bus_folder(), None);
        let device: DeviceName = "00e1:02:00.3".parse().unwrap();
        let bus = Some("/sys/class/pci_bus/00e1:02".to_owned());
        assert_eq!(device.bus_folder(), bus);
    }

    #[test]
    fn no_name_leads_out_of_its_folder() {
        for text in [
            "",
            "/",
            "platform/",
            "/name",
            "platform/..",
            "../name",
            "platform/a/b",
            "pci/ethernet",
            "ethernet",
            "platform/a\nb",
        ] {
            let error = text.parse::<DeviceName>().unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        assert!(DeviceName::new("platform", &"a".repeat(256)).is_err());
    }

    #[test]
    fn in_json_the_bus_is_always_named() {
        let device: DeviceName = "01:00.0".parse().unwrap();
        let json = serde_json::to_string(&device).unwrap();
        assert_eq!(json, "\"pci/0000:01:00.0\"");
        assert_eq!(serde_json::from_str::<DeviceName>(&json).unwrap(), device);
        assert!(serde_json::from_str::<DeviceName>("\"platform/..\"").is_err());
    }
}

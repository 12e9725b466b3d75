use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::host::GroupId;

/// Files that somebody else has opened, for a process that may not open them
/// itself. They belong to whoever opens devices with them, and close with the
/// devices.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// `/dev/iommu`. Devices get an address space of their own in it.
    pub iommufd: Option<OwnedFd>,
    /// `/dev/vfio/vfio`, with no group in it.
    pub container: Option<OwnedFd>,
    /// `/dev/vfio/N`, in no container.
    pub groups: BTreeMap<GroupId, OwnedFd>,
    /// `/dev/vfio/devices/vfioN`, bound to no iommufd.
    pub devices: BTreeMap<PciAddress, OwnedFd>,
}

/// Which file of [`OpenFiles`] one is: `iommufd`, `container`, `group/5` or a
/// device's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FileName {
    /// `/dev/iommu`.
    Iommufd,
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/N`.
    Group(GroupId),
    /// `/dev/vfio/devices/vfioN`.
    Device(PciAddress),
}

/// What is no name of a file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no file that can be given open: write iommufd, container, group/N, or the address \
     of a device"
)]
pub struct FileNameError(String);

impl FromStr for FileName {
    type Err = FileNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || FileNameError(text.to_owned());
        match text.split_once('/') {
            None if text == "iommufd" => Ok(Self::Iommufd),
            None if text == "container" => Ok(Self::Container),
            None => text.parse().map(Self::Device).map_err(|_| error()),
            Some(("group", number)) => {
                let number = number.parse().map_err(|_| error())?;
                Ok(Self::Group(GroupId(number)))
            }
            Some(_) => Err(error()),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iommufd => f.write_str("iommufd"),
            Self::Container => f.write_str("container"),
            Self::Group(group) => write!(f, "group/{group}"),
            Self::Device(device) => write!(f, "{device}"),
        }
    }
}

impl TryFrom<String> for FileName {
    type Error = FileNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.to_string()
    }
}

impl OpenFiles {
    /// The names of those that are there.
    pub fn names(&self) -> Vec<FileName> {
        let iommufd = self.iommufd.as_ref().map(|_| FileName::Iommufd);
        let container = self.container.as_ref().map(|_| FileName::Container);
        let groups = self.groups.keys().copied().map(FileName::Group);
        let devices = self.devices.keys().copied().map(FileName::Device);
        let files = iommufd.into_iter().chain(container);
        files.chain(groups).chain(devices).collect()
    }

    /// Adds `file`. Answers the one that it takes the place of.
    pub fn insert(&mut self, name: FileName, file: OwnedFd) -> Option<OwnedFd> {
        match name {
            FileName::Iommufd => self.iommufd.replace(file),
            FileName::Container => self.container.replace(file),
            FileName::Group(group) => self.groups.insert(group, file),
            FileName::Device(device) => self.devices.insert(device, file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_they_are_read() {
        for text in ["iommufd", "container", "group/12", "0000:01:00.0"] {
            assert_eq!(text.parse::<FileName>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "group",
            "group/",
            "group/x",
            "device/1",
            "vfio",
            "/dev/iommu",
        ] {
            let error = text.parse::<FileName>().unwrap_err().to_string();
            assert!(error.contains("group/N"), "{error}");
        }
    }

    #[test]
    fn a_name_has_one_file() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut files = OpenFiles::default();
        for text in ["iommufd", "container", "group/12", "0000:01:00.0"] {
            let name = text.parse().unwrap();
            assert!(files.insert(name, file()).is_none());
            assert!(files.insert(name, file()).is_some());
        }
        assert_eq!(files.names().len(), 4);
    }
}

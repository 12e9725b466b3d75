use super::super::device::DeviceName;
use super::group;
use crate::host::GroupId;

/// A driver of the fake kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeDriver {
    /// Its name.
    pub name: String,
    /// Its module. None when it is part of the kernel.
    pub module: Option<String>,
    /// What it takes by itself.
    pub ids: Vec<String>,
    /// It manages DMA itself, as VFIO's drivers do.
    pub vfio: bool,
    /// It can make VFs.
    pub sriov: bool,
    /// Devices that its probe refuses.
    pub refuses: Vec<DeviceName>,
}

/// A device of the fake kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeDevice {
    /// What drivers know it by.
    pub id: String,
    /// The driver that it is on.
    pub driver: Option<String>,
    /// `driver_override`.
    pub driver_override: Option<String>,
    /// Its group.
    pub group: Option<GroupId>,
    /// `power/control`.
    pub power: String,
    /// Its name in VFIO while it is on one of VFIO's drivers.
    pub vfio_device: Option<String>,
    /// How many VFs it has, and their names.
    pub virtual_functions: Option<(u16, Vec<DeviceName>)>,
    /// The PF that it belongs to.
    pub physical: Option<DeviceName>,
    /// It is a bridge.
    pub bridge: bool,
    /// It was added while its group was a guest's: its DMA for the host faults,
    /// for as long as it is not added anew.
    pub untranslated: bool,
    /// Its unbind waits for its user: the link to the driver is gone, its lock
    /// is held.
    pub leaving: bool,
}

impl FakeDriver {
    /// A driver of the host for devices with one of `ids`.
    pub fn host(name: &str, ids: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// A VFIO driver: it has no ids but those that are only for
    /// `driver_override`.
    pub fn vfio(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            vfio: true,
            ..Self::default()
        }
    }

    /// The same with SR-IOV.
    pub fn with_sriov(self) -> Self {
        Self {
            sriov: true,
            ..self
        }
    }

    /// The same, refusing a device.
    ///
    /// # Panics
    /// When `device` names none.
    pub fn refusing(mut self, device: &str) -> Self {
        self.refuses.push(super::named(device));
        self
    }
}

impl FakeDevice {
    /// A device on `driver`, or on none when that is empty.
    pub fn new(id: &str, number: u32, driver: &str) -> Self {
        Self {
            id: id.to_owned(),
            driver: (!driver.is_empty()).then(|| driver.to_owned()),
            group: group(number),
            power: "on".to_owned(),
            ..Self::default()
        }
    }

    /// The same with `count` VFs called `names`, of which as many exist.
    ///
    /// # Panics
    /// When a name names no device.
    pub fn with_virtual_functions(self, count: u16, names: &[&str]) -> Self {
        let names = names.iter().map(|name| super::named(name)).collect();
        Self {
            virtual_functions: Some((count, names)),
            ..self
        }
    }
}

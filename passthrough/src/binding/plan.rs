use std::fmt;

use serde::Serialize;

use super::device::DeviceName;
use crate::host::GroupId;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindRequest {
    /// The devices.
    pub devices: Vec<DeviceName>,
    /// And all others of their groups.
    pub whole_group: bool,
    /// The driver to use. None for the one that fits best.
    pub driver: Option<String>,
    /// Disable the VFs of a PF, which no VFIO driver takes otherwise.
    pub disable_vfs: bool,
    /// Even if the host needs the device. A device that a process has open
    /// stays refused.
    pub force: bool,
}

/// What will be done, and nothing else. Made by
/// [`Binder::plan`](super::Binder::plan).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BindPlan {
    /// The devices that will be bound, in order.
    pub devices: Vec<PlannedDevice>,
    /// Those that need nothing.
    pub right: Vec<AlreadyRight>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A device that will be bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedDevice {
    /// The device.
    pub device: DeviceName,
    /// Its group.
    pub group: Option<GroupId>,
    /// The driver that it is on.
    pub found_driver: Option<String>,
    /// The drivers to try, the best first: its variant, then vfio-pci.
    pub targets: Vec<Target>,
    /// The VFs that will be disabled first.
    pub virtual_functions: Vec<DeviceName>,
}

/// A driver, and what has to be loaded for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The driver.
    pub driver: String,
    /// The module to load first. None when the driver is there.
    pub module: Option<String>,
}

/// A device that is where it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlreadyRight {
    /// The device.
    pub device: DeviceName,
    /// The driver that it is on.
    pub driver: String,
}

impl fmt::Display for BindPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for right in &self.right {
            writeln!(f, "# {} is already on {}", right.device, right.driver)?;
        }
        Ok(())
    }
}

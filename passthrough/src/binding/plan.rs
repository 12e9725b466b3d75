use std::fmt;

use serde::Serialize;

use super::device::DeviceName;
use super::kernel::{bring_back, probe, set_override, set_virtual_functions, unbind};
use super::sysfs::Write;
use crate::host::{DriverOverride, GroupId};

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
    /// Those that may be taken though the host needs them. A device that a
    /// process has open stays refused.
    pub force: Vec<DeviceName>,
}

/// What will be done, and nothing else. Made by
/// [`Binder::plan`](super::Binder::plan).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
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
    /// The driver that alone may have it, as far as it was asked.
    pub found_override: DriverOverride,
    /// The drivers to try, the best first: its variant, then vfio-pci.
    pub targets: Vec<Target>,
    /// The VFs that will be disabled first.
    pub virtual_functions: Vec<DeviceName>,
    /// Each step, in order, if the best driver takes the device.
    pub steps: Vec<Step>,
    /// Each step back, in order.
    pub undo: Vec<Step>,
}

/// A driver, and what has to be loaded for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The driver.
    pub driver: String,
    /// The module to load first. None when the driver is there.
    pub module: Option<String>,
}

/// One change to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Loads a module. It stays loaded.
    Modprobe(String),
    /// Writes to an attribute.
    Write(Write),
}

/// A device that is where it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlreadyRight {
    /// The device.
    pub device: DeviceName,
    /// The driver that it is on.
    pub driver: String,
}

impl BindPlan {
    /// Every device that was asked for, with or without anything to do.
    pub(super) fn all(&self) -> impl Iterator<Item = &DeviceName> {
        let devices = self.devices.iter().map(|planned| &planned.device);
        devices.chain(self.right.iter().map(|right| &right.device))
    }

    /// Whether `device` is one of them.
    pub(super) fn names(&self, device: &DeviceName) -> bool {
        self.all().any(|asked| asked == device)
    }
}

impl PlannedDevice {
    /// Puts down the steps. They are those that the binder takes when nothing
    /// goes wrong; what it finds then counts.
    pub(super) fn with_steps(mut self) -> Self {
        let device = &self.device;
        let Some(target) = self.targets.first() else {
            return self;
        };
        let mut steps: Vec<_> = target.module.iter().cloned().map(Step::Modprobe).collect();
        let mut undo = Vec::new();
        let count = u16::try_from(self.virtual_functions.len()).unwrap_or(u16::MAX);
        if count > 0 {
            steps.push(Step::Write(set_virtual_functions(device, 0)));
        }
        let before = match &self.found_override {
            DriverOverride::Only(driver) => Some(driver.as_str()),
            DriverOverride::Any | DriverOverride::NotAsked => None,
        };
        steps.push(Step::Write(set_override(device, Some(&target.driver))));
        steps.extend(
            self.found_driver
                .iter()
                .map(|driver| Step::Write(unbind(device, driver))),
        );
        steps.push(Step::Write(probe(device)));
        let back = bring_back(device, self.found_driver.as_deref(), before);
        undo.extend(back.into_iter().map(Step::Write));
        // The override comes first, as on the way there.
        undo.insert(1, Step::Write(unbind(device, &target.driver)));
        if count > 0 {
            undo.push(Step::Write(set_virtual_functions(device, count)));
        }
        (self.steps, self.undo) = (steps, undo);
        self
    }
}

impl fmt::Display for Step {
    /// As a shell would do it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Modprobe(module) => write!(f, "modprobe {module}"),
            Self::Write(write) => write.fmt(f),
        }
    }
}

impl fmt::Display for AlreadyRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is already on {}", self.device, self.driver)
    }
}

impl fmt::Display for BindPlan {
    /// A script: each step in the order in which it is taken, then each step
    /// back. What is said about it stands behind `#`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "# warning: {warning}")?;
        }
        for right in &self.right {
            writeln!(f, "# {right}: nothing to do")?;
        }
        for planned in &self.devices {
            let found = planned.found_driver.as_deref().unwrap_or("no driver");
            let targets = planned.targets.iter().map(|target| target.driver.as_str());
            let targets = targets.collect::<Vec<_>>().join(", else ");
            writeln!(f, "# {}: from {found} to {targets}", planned.device)?;
            for step in &planned.steps {
                writeln!(f, "{step}")?;
            }
        }
        for planned in self.devices.iter().rev() {
            writeln!(f, "# to give {} back:", planned.device)?;
            for step in &planned.undo {
                writeln!(f, "{step}")?;
            }
        }
        Ok(())
    }
}

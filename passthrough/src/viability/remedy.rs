use std::fmt;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use crate::host::{Process, Survey};

/// What the user can do about a failed check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// One line for the shell, complete as it stands.
    Command(String),
    /// What no command does.
    Advice(String),
}

impl Remedy {
    pub(crate) fn advice(text: impl Into<String>) -> Self {
        Self::Advice(text.into())
    }

    /// A command that needs the superuser. `script` must not hold `'`.
    pub(crate) fn privileged(process: &Process, script: String) -> Self {
        if process.is_root() {
            Self::Command(script)
        } else if script.contains(['>', '&', '|', ';']) {
            Self::Command(format!("sudo sh -c '{script}'"))
        } else {
            Self::Command(format!("sudo {script}"))
        }
    }

    /// Moves `device` from the driver that it is on to vfio-pci, or to the
    /// variant that fits it better, by `driver_override`: unlike `new_id` it
    /// touches no other device.
    pub(crate) fn bind_to_vfio(survey: &Survey, device: PciAddress) -> Self {
        let folder = format!("/sys/bus/pci/devices/{device}");
        let function = survey.functions.get(&device);
        let driver = function.map_or("vfio-pci".to_owned(), |function| {
            survey.vfio.driver_for(function)
        });
        let mut steps = Vec::new();
        if !survey.vfio.drivers.contains(&driver) {
            steps.push(format!("modprobe {driver}"));
        }
        steps.push(format!("echo {driver} > {folder}/driver_override"));
        if function.is_some_and(|function| function.driver.is_some()) {
            steps.push(format!("echo {device} > {folder}/driver/unbind"));
        }
        steps.push(format!("echo {device} > /sys/bus/pci/drivers_probe"));
        Self::privileged(&survey.process, steps.join(" && "))
    }

    /// Takes `device` from its driver and leaves it without one.
    pub(crate) fn unbind(survey: &Survey, device: PciAddress) -> Self {
        let script = format!("echo {device} > /sys/bus/pci/devices/{device}/driver/unbind");
        Self::privileged(&survey.process, script)
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(text) | Self::Advice(text) => f.write_str(text),
        }
    }
}

use std::fmt;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use super::member::is_vfio_driver;
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
    /// variant that fits it better. One that is on vfio-pci stays there unless
    /// the variant is named.
    pub(crate) fn bind_to_vfio(survey: &Survey, device: PciAddress) -> Self {
        let mut script = format!("airlock bind {device}");
        if let Some(function) = survey.functions.get(&device)
            && let Some(driver) = &function.driver
            && is_vfio_driver(driver, function.vfio_device.as_deref())
        {
            let best = survey.vfio.driver_for(function);
            script.push_str(&format!(" --driver {best}"));
        }
        Self::privileged(&survey.process, script)
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

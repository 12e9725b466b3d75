//! Plays a journal back: compares each device with what it was, and does what
//! is still missing. Done twice, or cut short and done again, it ends the same.

use std::fmt;

use serde::Serialize;

use super::device::DeviceName;
use super::error::BindError;
use super::journal::Entry;
use super::kernel::{
    Kernel, bind, bring_back, probe, remove, rescan, set_override, set_power_control,
    set_virtual_functions, unbind, way_back,
};
use super::sysfs::Write;
use crate::host::Holders;

/// What became of a device that was to be given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The device.
    pub device: DeviceName,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How giving back went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It is as it was before.
    Back {
        /// The driver that it is on again.
        driver: Option<String>,
    },
    /// It is not in the host any more; there is nothing to give back.
    Gone,
    /// Somebody else has put it on another driver meanwhile. It is left there.
    LeftAlone {
        /// The driver.
        driver: String,
    },
    /// It is still held: the journal keeps it, and another try is possible.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

impl Released {
    /// Whether nothing is left to be done about the device.
    pub fn is_back(&self) -> bool {
        !matches!(self.outcome, Outcome::Failed { .. })
    }
}

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        match &self.outcome {
            Outcome::Back {
                driver: Some(driver),
            } => write!(f, "{device} is back on {driver}"),
            Outcome::Back { driver: None } => write!(f, "{device} is without a driver, as before"),
            Outcome::Gone => write!(f, "{device} has left the host: nothing to give back"),
            Outcome::LeftAlone { driver } => write!(
                f,
                "{device} is on {driver} by now, which somebody else did: left alone"
            ),
            Outcome::Failed { reason } => write!(f, "{device} is not back: {reason}"),
        }
    }
}

/// Gives the device of `entry` back. If it came into a held group, that group
/// should be free by now.
pub(super) fn give_back(kernel: Kernel<'_>, entry: &Entry, holders: &Holders) -> Released {
    Restore {
        kernel,
        entry,
        holders,
        group_is_free: true,
    }
    .outcome()
}

/// Takes back what was begun for `entry`, whose group may be held still.
pub(super) fn take_back(kernel: Kernel<'_>, entry: &Entry, holders: &Holders) -> Released {
    Restore {
        kernel,
        entry,
        holders,
        group_is_free: false,
    }
    .outcome()
}

#[derive(Debug)]
pub(super) struct Restore<'a> {
    pub(super) kernel: Kernel<'a>,
    pub(super) entry: &'a Entry,
    holders: &'a Holders,
    /// This process holds it no longer. Others may.
    pub(super) group_is_free: bool,
}

impl Restore<'_> {
    fn outcome(&self) -> Released {
        Released {
            device: self.entry.device.clone(),
            outcome: self.run().unwrap_or_else(|error| Outcome::Failed {
                reason: error.to_string(),
            }),
        }
    }

    fn run(&self) -> Result<Outcome, BindError> {
        let device = &self.entry.device;
        if self.is_to_be_found_anew()? {
            return self.find_anew();
        }
        if !self.kernel.has(device)? {
            return Ok(Outcome::Gone);
        }
        let now = self.kernel.driver(device)?;
        if let Some(driver) = &now
            && !self.is_found(driver)
            && !self.entry.is_ours(driver)
            && !self.entry.hot_added
        {
            self.restore_override(self.before())?;
            let driver = driver.to_owned();
            return Ok(Outcome::LeftAlone { driver });
        }
        if now != self.entry.found.driver {
            // Else it would be waited for in vain, and with it a process.
            self.check_users()?;
        }
        let way = if now == self.entry.found.driver {
            self.before()
        } else {
            way_back(self.entry.found.driver.as_deref(), self.before())
        };
        self.restore_override(way)?;
        self.unbind_ours()?;
        self.restore_driver()?;
        if way != self.before() {
            self.restore_override(self.before())?;
        }
        self.restore_power_control()?;
        self.restore_virtual_functions()?;
        let driver = self.kernel.driver(device)?;
        Ok(Outcome::Back { driver })
    }

    fn is_found(&self, driver: &str) -> bool {
        self.entry.found.driver.as_deref() == Some(driver)
    }

    pub(super) fn check_users(&self) -> Result<(), BindError> {
        let Entry { device, group, .. } = self.entry;
        let holders = self.kernel.users(device, *group, self.holders);
        if holders.is_empty() {
            return Ok(());
        }
        let device = device.clone();
        Err(BindError::InUse { device, holders })
    }

    pub(super) fn before(&self) -> Option<&str> {
        self.entry.found.driver_override.as_deref()
    }

    /// Takes the device from the driver that the transaction put it on, if it
    /// is on that.
    pub(super) fn unbind_ours(&self) -> Result<(), BindError> {
        let device = &self.entry.device;
        let now = self.kernel.driver(device)?;
        let Some(driver) = now.filter(|driver| self.entry.is_ours(driver)) else {
            return Ok(());
        };
        let write = unbind(device, &driver);
        match self.kernel.write(device, &write, &self.after_unbind()?) {
            // Somebody was faster. What it is on now is seen afterwards.
            Err(BindError::Write { answer, .. }) if answer.raw_os_error() == Some(libc::ENODEV) => {
                Ok(())
            }
            other => other,
        }
    }

    /// What has to follow an unbind that comes through late.
    fn after_unbind(&self) -> Result<Vec<Write>, BindError> {
        let Entry { device, found, .. } = self.entry;
        if self.is_to_be_found_anew()? {
            return Ok(vec![remove(device), rescan(device)]);
        }
        let mut undo = bring_back(device, found.driver.as_deref(), self.before());
        if self.entry.hot_added {
            undo.push(probe(device));
        }
        Ok(undo)
    }

    /// Sets the override to `value`, if it is one of those that are set on the
    /// way there and back: another one is somebody else's.
    pub(super) fn restore_override(&self, value: Option<&str>) -> Result<(), BindError> {
        let Entry { device, found, .. } = self.entry;
        let now = self.kernel.driver_override(device)?;
        let now = now.as_deref();
        let there = now.is_some_and(|now| self.entry.drivers.iter().any(|ours| ours == now));
        let way = way_back(found.driver.as_deref(), self.before());
        let back = now == self.before() || now == way;
        if (there || back) && now != value {
            let write = set_override(device, value);
            self.kernel.write(device, &write, &[])?;
        }
        Ok(())
    }

    /// Has the driver of before take the device again, and sees to it that it
    /// did.
    fn restore_driver(&self) -> Result<(), BindError> {
        let device = &self.entry.device;
        let now = self.kernel.driver(device)?;
        let Some(wanted) = &self.entry.found.driver else {
            return self.check_driverless(now);
        };
        if now.as_ref() == Some(wanted) {
            return Ok(());
        }
        if let Some(module) = &self.entry.found.driver_module
            && self.kernel.driver_named(device.bus(), wanted)?.is_none()
        {
            self.kernel.load(module)?;
        }
        let answer = self.kernel.write(device, &probe(device), &[]);
        let mut now = self.kernel.driver(device)?;
        if let Some(other) = now.as_ref().filter(|now| *now != wanted) {
            // Another driver of the host knows the device too, and was asked
            // first. The right one is named.
            self.kernel.write(device, &unbind(device, other), &[])?;
            self.kernel.write(device, &bind(device, wanted), &[])?;
            now = self.kernel.driver(device)?;
        }
        if now.as_ref() == Some(wanted) {
            return Ok(());
        }
        answer?;
        Err(BindError::NotBound {
            device: device.clone(),
            wanted: wanted.clone(),
            found: on(now.as_deref()),
            hint: "its driver refuses it; see `dmesg | tail`".to_owned(),
        })
    }

    /// For a device that had no driver.
    fn check_driverless(&self, now: Option<String>) -> Result<(), BindError> {
        let device = &self.entry.device;
        match now {
            // Whichever driver of the host wants it, or none.
            None if self.entry.hot_added => self.kernel.write(device, &probe(device), &[]),
            Some(driver) if !self.entry.hot_added => Err(BindError::NotBound {
                device: device.clone(),
                wanted: "no driver".to_owned(),
                found: on(Some(&driver)),
                hint: "another driver took it at that moment; unbind it by hand".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// vfio-pci lets the device sleep and, when it lets go of it, forbids that
    /// again (`pm_runtime_allow`, `pm_runtime_forbid`), whatever it was.
    fn restore_power_control(&self) -> Result<(), BindError> {
        let device = &self.entry.device;
        let Some(before) = &self.entry.found.power_control else {
            return Ok(());
        };
        let now = self.kernel.power_control(device)?;
        if now.is_some_and(|now| now != *before) {
            let write = set_power_control(device, before);
            self.kernel.write(device, &write, &[])?;
        }
        Ok(())
    }

    fn restore_virtual_functions(&self) -> Result<(), BindError> {
        let device = &self.entry.device;
        let Some(before) = self
            .entry
            .found
            .virtual_functions
            .filter(|count| *count > 0)
        else {
            return Ok(());
        };
        if self.kernel.virtual_functions(device)? == Some(0) {
            let write = set_virtual_functions(device, before);
            self.kernel.write(device, &write, &[])?;
        }
        Ok(())
    }
}

/// The driver that a device is on, in a sentence.
pub(super) fn on(driver: Option<&str>) -> String {
    match driver {
        Some(driver) => format!("is on {driver}"),
        None => "has no driver".to_owned(),
    }
}

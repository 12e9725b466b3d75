//! Carries a plan out, all or nothing.

use super::device::DeviceName;
use super::error::BindError;
use super::journal::{Entry, OpenJournal};
use super::kernel::{
    Kernel, bring_back, is_vfio, probe, same, set_override, set_virtual_functions, unbind,
};
use super::plan::{AlreadyRight, PlannedDevice, Target};
use super::restore::{Outcome, Released, on, take_back};
use super::sysfs::Write;
use crate::host::Holders;

/// A planned device, with what was found when its turn came.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) planned: &'a PlannedDevice,
    /// The drivers that are left to try.
    targets: &'a [Target],
    pub(super) entry: Entry,
}

/// What is to be done about a planned device.
#[derive(Debug)]
pub(super) enum Begun<'a> {
    Job(Job<'a>),
    /// It got where it should be by itself, as when a module was loaded that
    /// had its ids.
    Right(AlreadyRight),
}

/// Loads the driver, looks at the device again, and refuses what has changed
/// since the plan was made. Changes nothing of the device.
pub(super) fn begin<'a>(
    kernel: Kernel<'_>,
    planned: &'a PlannedDevice,
    holders: &Holders,
    notes: &mut Vec<String>,
) -> Result<Begun<'a>, BindError> {
    let device = &planned.device;
    if !kernel.has(device)? {
        let device = device.clone();
        return Err(BindError::NotThere { device });
    }
    let targets = loadable(kernel, planned, notes)?;
    let found = kernel.found(device)?;
    let is_target = |driver: &str| targets.iter().any(|target| same(&target.driver, driver));
    if found.driver != planned.found_driver {
        return match found.driver {
            Some(driver) if is_target(&driver) => Ok(Begun::Right(AlreadyRight {
                device: device.clone(),
                driver,
            })),
            driver => Err(changed(planned, driver.as_deref())),
        };
    }
    if found.driver.as_deref().is_some_and(is_vfio) {
        let holders = kernel.users(device, planned.group, holders);
        if !holders.is_empty() {
            let device = device.clone();
            return Err(BindError::InUse { device, holders });
        }
    }
    let count = found.virtual_functions.unwrap_or(0);
    if count > 0 && planned.virtual_functions.is_empty() {
        return Err(BindError::HasVirtualFunctions {
            device: device.clone(),
            count: count.into(),
        });
    }
    Ok(Begun::Job(Job {
        planned,
        targets,
        entry: Entry {
            device: device.clone(),
            group: planned.group,
            drivers: targets.iter().map(|target| target.driver.clone()).collect(),
            found,
            hot_added: false,
        },
    }))
}

/// The targets from the first on that is there or can be loaded.
fn loadable<'a>(
    kernel: Kernel<'_>,
    planned: &'a PlannedDevice,
    notes: &mut Vec<String>,
) -> Result<&'a [Target], BindError> {
    let mut left = &planned.targets[..];
    loop {
        let Some((first, others)) = left.split_first() else {
            // Only a plan that was made up by hand has none.
            let device = planned.device.clone();
            return Err(BindError::DriverNeeded { device });
        };
        match driver_of(kernel, &planned.device, first) {
            Ok(_) => return Ok(left),
            Err(error) if others.is_empty() => return Err(error),
            Err(error) => notes.push(format!(
                "{}: {error}. The next best driver is used",
                planned.device
            )),
        }
        left = others;
    }
}

/// The name of the driver of `target`, which is loaded if need be.
fn driver_of(
    kernel: Kernel<'_>,
    device: &DeviceName,
    target: &Target,
) -> Result<String, BindError> {
    if let Some(driver) = kernel.driver_named(device.bus(), &target.driver)? {
        return Ok(driver);
    }
    let module = target.module.as_ref().unwrap_or(&target.driver);
    kernel.load(module)?;
    let driver = kernel.driver_named(device.bus(), &target.driver)?;
    driver.ok_or_else(|| BindError::Modprobe {
        module: module.clone(),
        reason: format!(
            "it was loaded, but brought no driver {} for the bus '{}'",
            target.driver,
            device.bus()
        ),
    })
}

fn changed(planned: &PlannedDevice, now: Option<&str>) -> BindError {
    BindError::Changed {
        device: planned.device.clone(),
        planned: planned
            .found_driver
            .as_ref()
            .map_or("had no driver".to_owned(), |driver| {
                format!("was on {driver}")
            }),
        found: on(now),
    }
}

impl Job<'_> {
    /// Puts the device on the first driver that takes it. What it has changed
    /// when it fails is in the journal, and the caller's to take back.
    pub(super) fn run(
        &mut self,
        kernel: Kernel<'_>,
        notes: &mut Vec<String>,
    ) -> Result<(), BindError> {
        let device = self.entry.device.clone();
        let count = self.entry.found.virtual_functions.unwrap_or(0);
        if count > 0 {
            let undo = [set_virtual_functions(&device, count)];
            kernel.write(&device, &set_virtual_functions(&device, 0), &undo)?;
        }
        let mut refusal = None;
        for target in self.targets {
            let driver = match driver_of(kernel, &device, target) {
                Ok(driver) => driver,
                // Why the better one did not do says more.
                Err(error) => return Err(refusal.unwrap_or(error)),
            };
            match self.give_to(kernel, &driver) {
                Ok(()) => {
                    if let Some(refusal) = refusal {
                        notes.push(format!("{device} is on {driver}: {refusal}"));
                    }
                    // The one that it is on comes first.
                    self.entry.drivers.retain(|other| !same(other, &driver));
                    self.entry.drivers.insert(0, driver);
                    return Ok(());
                }
                Err(error @ BindError::NotBound { .. })
                    if kernel.driver(&device)?.is_none() && refusal.is_none() =>
                {
                    refusal = Some(error);
                }
                Err(error) => return Err(refusal.unwrap_or(error)),
            }
        }
        let nothing = BindError::DriverNeeded { device };
        Err(refusal.unwrap_or(nothing))
    }

    /// Override, unbind, probe, look.
    fn give_to(&self, kernel: Kernel<'_>, driver: &str) -> Result<(), BindError> {
        let Entry { device, found, .. } = &self.entry;
        let before = found.driver_override.as_deref();
        let undo = [set_override(device, before)];
        kernel.write(device, &set_override(device, Some(driver)), &undo)?;
        let mut undo = bring_back(device, found.driver.as_deref(), before);
        if let Some(old) = &found.driver
            && kernel.driver(device)?.is_some()
        {
            match kernel.write(device, &unbind(device, old), &undo) {
                Err(BindError::Write { answer, .. })
                    if answer.raw_os_error() == Some(libc::ENODEV) =>
                {
                    // It is not on that driver any more.
                    let now = kernel.driver(device)?;
                    return Err(changed(self.planned, now.as_deref()));
                }
                other => other?,
            }
        }
        undo.insert(0, unbind(device, driver));
        let answer = match kernel.write(device, &probe(device), &undo) {
            Err(error @ BindError::Blocked { .. }) => return Err(error),
            answer => answer,
        };
        // The kernel says yes even if no driver wanted it.
        let now = kernel.driver(device)?;
        if now.as_deref() == Some(driver) {
            return Ok(());
        }
        let hint = match (answer, &now) {
            (Err(error), _) => error.to_string(),
            (Ok(()), None) => "the driver refused it; see `dmesg | tail`".to_owned(),
            (Ok(()), Some(_)) => "another driver was given it at that moment".to_owned(),
        };
        Err(BindError::NotBound {
            device: device.clone(),
            wanted: driver.to_owned(),
            found: on(now.as_deref()),
            hint,
        })
    }
}

/// Takes back what was done, for `cause`: the last device first. Those that
/// are back leave the journal.
pub(super) fn undo(
    kernel: Kernel<'_>,
    cause: BindError,
    touched: &[DeviceName],
    open: &mut OpenJournal,
) -> BindError {
    let holders = kernel.sysfs.holders();
    let mut undone = Vec::new();
    for entry in open.journal.devices.iter().rev() {
        if !touched.contains(&entry.device) {
            continue;
        }
        undone.push(match &cause {
            // Asking again would only leave one more process waiting.
            BindError::Blocked { device, path, .. } if *device == entry.device => Released {
                device: entry.device.clone(),
                outcome: Outcome::Failed {
                    reason: format!("the kernel still waits in {path}"),
                },
            },
            _ => take_back(kernel, entry, &holders),
        });
    }
    let failed = |entry: &Entry| {
        let mut failed = undone.iter().filter(|released| !released.is_back());
        failed.any(|released| released.device == entry.device)
    };
    open.journal.devices.retain(failed);
    if let Err(error) = open.save() {
        log::warn!("{error}");
    }
    let cause = Box::new(cause);
    BindError::Undone { cause, undone }
}

/// Keeps `driver` alone from binding the device, which has none so far.
pub(super) fn reserve(kernel: Kernel<'_>, entry: &Entry, driver: &str) -> Result<(), BindError> {
    let Entry { device, found, .. } = entry;
    let undo: [Write; 2] = [
        set_override(device, found.driver_override.as_deref()),
        probe(device),
    ];
    kernel.write(device, &set_override(device, Some(driver)), &undo)?;
    // The kernel may have been faster with a driver of its own choice.
    match kernel.driver(device)? {
        Some(other) if !same(&other, driver) => Err(BindError::NotBound {
            device: device.clone(),
            wanted: driver.to_owned(),
            found: on(Some(&other)),
            hint: "a driver of the host was faster".to_owned(),
        }),
        _ => Ok(()),
    }
}

//! A kernel in memory, as seen through its files: drivers, devices and groups
//! that behave as those of Linux do when sysfs is written to.

mod device;
mod plug;
mod state;
mod survey;

use std::collections::BTreeMap;
use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use device::{FakeDevice, FakeDriver};
use state::State;

use super::device::DeviceName;
use super::sysfs::{AccessError, Sysfs, Write};
use crate::host::{GroupId, Holder, Holders, Survey};

/// The kernel. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct FakeSysfs {
    state: Arc<Mutex<State>>,
}

/// What happens at a step instead of, or around, what the kernel does.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It answers this errno and does nothing.
    Errno(i32),
    /// The program ends before the step.
    CrashBefore,
    /// The program ends right after the step.
    CrashAfter,
    /// Somebody else writes these after the step.
    Others(Vec<Write>),
    /// The device is pulled out of the host after the step.
    Lost(String),
    /// A process opens a file of VFIO after the step.
    Opened(Holder),
}

impl FakeSysfs {
    /// A kernel with the bus `pci`, the driver vfio-pci and nothing else.
    pub fn new() -> Self {
        let fake = Self::default();
        fake.add_driver("pci", FakeDriver::vfio("vfio-pci"));
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a driver. Drivers are asked in the order in which they came.
    pub fn add_driver(&self, bus: &str, driver: FakeDriver) {
        self.state().drivers.push((bus.to_owned(), driver));
    }

    /// Adds a driver that comes with its module.
    pub fn add_module(&self, module: &str, bus: &str, mut driver: FakeDriver) {
        driver.module = Some(module.to_owned());
        let modules = &mut self.state().modules;
        modules.insert(module.to_owned(), (bus.to_owned(), driver));
    }

    /// Adds a line `alias vfio_pci:PATTERN MODULE` to modules.alias.
    pub fn add_alias(&self, pattern: &str, module: &str) {
        let alias = (pattern.to_owned(), module.to_owned());
        self.state().aliases.push(alias);
    }

    /// Takes a driver away, as unloading its module does. Its devices must
    /// have left it.
    pub fn remove_driver(&self, bus: &str, name: &str) {
        let drivers = &mut self.state().drivers;
        drivers.retain(|(on, driver)| on != bus || driver.name != name);
    }

    /// Adds a device as it is.
    ///
    /// # Panics
    /// When `name` names no device.
    pub fn add_device(&self, name: &str, device: FakeDevice) {
        let name = named(name);
        let mut state = self.state();
        state.add_bus(&name);
        state.devices.insert(name, device);
    }

    /// Adds a device as hot-plug does: drivers are asked at once. `before` is
    /// written between its appearance and that.
    ///
    /// # Panics
    /// When `name` names no device.
    pub fn plug(&self, name: &str, device: FakeDevice, before: &[Write]) {
        let name = named(name);
        let mut state = self.state();
        state.add(&name, device);
        for write in before {
            let _ = state.write(write, &[]);
        }
        let _ = state.probe(&name);
    }

    /// Takes a device out of the host.
    ///
    /// # Panics
    /// When `name` names no device.
    pub fn unplug(&self, name: &str) {
        self.state().pull(&named(name));
    }

    /// Takes a bus such as `0000:02` out of the host, with all that is on it.
    pub fn unplug_bus(&self, bus: &str) {
        let mut state = self.state();
        state.buses.remove(bus);
        let stays = |name: &DeviceName| plug::pci_bus(name) != Some(bus);
        state.devices.retain(|name, _| stays(name));
        state.removed.retain(|name, _| stays(name));
    }

    /// A process opens a file of VFIO: a group's (`/dev/vfio/7`) or a device's
    /// (`/dev/vfio/devices/vfio0`). The devices behind it are in use.
    pub fn open(&self, pid: u32, name: &str, file: &str) {
        self.state().holders.push(Holder {
            pid,
            name: name.to_owned(),
            file: file.to_owned(),
        });
    }

    /// From now on no process that looks is shown who has VFIO's files open, as
    /// when they are opened just after the look.
    pub fn hide_holders(&self) {
        self.state().holders_are_hidden = true;
    }

    /// The process closes its files: what waited for that goes on.
    pub fn close(&self, pid: u32) {
        let mut state = self.state();
        state.holders.retain(|holder| holder.pid != pid);
        state.go_on();
    }

    /// Has `fault` happen at the step after `steps` others. Steps are writes
    /// and loads of modules.
    pub fn fault(&self, steps: usize, fault: Fault) {
        let mut state = self.state();
        let at = state.log.len() + steps;
        state.faults.insert(at, fault);
    }

    /// Forgets the faults that did not happen.
    pub fn clear_faults(&self) {
        self.state().faults = BTreeMap::new();
    }

    /// Every step so far, as a shell would do it.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// Changes a device.
    ///
    /// # Panics
    /// When there is no device `name`.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut FakeDevice)) {
        let mut state = self.state();
        change(state.devices.get_mut(&named(name)).expect("a device"));
    }

    /// The device `name` as it is now.
    pub fn device(&self, name: &str) -> Option<FakeDevice> {
        self.state().devices.get(&named(name)).cloned()
    }

    /// Every device as it is now.
    pub fn devices(&self) -> BTreeMap<DeviceName, FakeDevice> {
        self.state().devices.clone()
    }

    /// What /sys/kernel/security/lockdown says.
    pub fn set_lockdown(&self, text: &str) {
        self.state().lockdown = Some(text.to_owned());
    }

    /// Starts the host anew as far as it can be told by the boot's name.
    pub fn set_boot_id(&self, id: &str) {
        self.state().boot_id = id.to_owned();
    }

    /// A survey of this host, which has an IOMMU.
    pub fn survey(&self) -> Survey {
        survey::survey(&self.state())
    }

    /// Takes a step, with the fault that is due.
    fn step(
        &self,
        text: String,
        step: impl FnOnce(&mut State) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        let mut state = self.state();
        let at = state.log.len();
        let fault = state.faults.remove(&at);
        if matches!(fault, Some(Fault::CrashBefore)) {
            drop(state);
            crash();
        }
        state.log.push(text);
        if let Some(Fault::Errno(errno)) = fault {
            return Err(io::Error::from_raw_os_error(errno).into());
        }
        let answer = step(&mut state);
        match fault {
            Some(Fault::CrashAfter) => {
                drop(state);
                crash();
            }
            Some(Fault::Others(writes)) => {
                for write in writes {
                    let _ = state.write(&write, &[]);
                }
            }
            Some(Fault::Lost(name)) => state.pull(&named(&name)),
            Some(Fault::Opened(holder)) => state.holders.push(holder),
            _ => {}
        }
        answer
    }
}

/// Ends the caller as SIGKILL does: nothing of its own code runs but the
/// closing of its files. Without the message of a panic.
fn crash() -> ! {
    resume_unwind(Box::new("the program ends here"))
}

fn named(name: &str) -> DeviceName {
    name.parse().expect("the name of a device")
}

impl Sysfs for FakeSysfs {
    fn read(&self, path: &str) -> io::Result<Option<String>> {
        Ok(self.state().read(path))
    }

    fn read_locked(&self, path: &str, _limit: Duration) -> Result<Option<String>, AccessError> {
        self.state().read_locked(path)
    }

    fn link(&self, path: &str) -> io::Result<Option<String>> {
        Ok(self.state().link(path))
    }

    fn list(&self, path: &str) -> io::Result<Option<Vec<String>>> {
        Ok(self.state().list(path))
    }

    fn write(&self, write: &Write, undo: &[Write], _limit: Duration) -> Result<(), AccessError> {
        self.step(write.to_string(), |state| state.write(write, undo))
    }

    fn load_module(&self, module: &str, _limit: Duration) -> Result<(), AccessError> {
        self.step(format!("modprobe {module}"), |state| state.load(module))
    }

    fn holders(&self) -> Holders {
        let state = self.state();
        let hidden = state.holders_are_hidden;
        Holders {
            seen: if hidden {
                Vec::new()
            } else {
                state.holders.clone()
            },
            hidden: 0,
        }
    }
}

/// The group of that number.
pub(super) fn group(number: u32) -> Option<GroupId> {
    Some(GroupId(number))
}

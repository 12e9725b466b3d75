//! Takes devices from the host's drivers for guests, and gives them back.
//!
//! ```no_run
//! use passthrough::binding::{Binder, BindRequest, Keep};
//! use passthrough::host::{Host, Survey};
//! let binder = Binder::system();
//! let survey = Survey::read(&Host::system())?;
//! let request = BindRequest {
//!     devices: vec!["0000:01:00.0".parse()?],
//!     whole_group: true,
//!     ..BindRequest::default()
//! };
//! let plan = binder.plan(&survey, &request)?;
//! print!("{plan}");
//! let binding = binder.bind(&plan, Keep::WhileHeld)?;
//! // … the guest runs …
//! binding.release()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **The recipe** for one device, the same on every bus that has
//! `driver_override`: name the driver in `driver_override`, take the device
//! from the driver that it was found on, have the bus look for a driver, and
//! look at which one it is on. Never `new_id`, which takes every like device
//! of the host with it.
//!
//! **The order** keeps others out: with the override set first, no other driver
//! can get in after the unbind. The unbind goes to the file of the driver that
//! was found, so the kernel refuses it when the device has moved meanwhile. That
//! `drivers_probe` said yes means nothing: the link to the driver is read back.
//!
//! **What waits.** Each of these files takes the device's lock, which an unbind
//! in progress holds until the device's user lets go. So each is asked in a
//! process of its own that can be left behind, see
//! [`Sysfs`]; and where a user is known, nothing is begun.
//!
//! **All or nothing.** What was found is on disk before the first write. If a
//! step fails, everything goes back. If the process ends, the next one to bind
//! or release gives back what it left. Giving back compares before it writes,
//! so that it can be cut short anywhere and done again. A device that somebody
//! else has put on a third driver meanwhile is left alone. A PCI device that came
//! into a held group is removed and found anew when that is free: before, the
//! kernel would not set its DMA up for the host.

mod anew;
#[cfg(test)]
mod anew_test;
mod bind;
mod binder;
mod bound;
mod device;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod guard;
mod held;
mod holds;
mod journal;
#[cfg(test)]
mod journal_test;
mod kernel;
mod news;
mod plan;
mod planner;
#[cfg(test)]
mod planner_test;
mod restore;
#[cfg(test)]
mod scene;
mod sysfs;
#[cfg(test)]
mod transaction_test;
mod variant;

use serde::{Deserialize, Serialize};

pub use binder::Binder;
pub use bound::Binding;
pub use device::{DeviceName, DeviceNameError};
pub use error::BindError;
#[cfg(any(test, feature = "fake"))]
pub use fake::FakeSysfs;
pub use guard::{Guard, GuardError};
pub use held::{Found, Held, HeldState, Owner, UnreadableJournal};
pub use holds::Holds;
pub use news::{Fate, GuardEvent};
pub use plan::{AlreadyRight, BindPlan, BindRequest, PlannedDevice, Step, Target};
pub use restore::{Outcome, Released};
pub use sysfs::{AccessError, KernelSysfs, Sysfs, Write};

/// For how long a device is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Until it is released by name.
    UntilReleased,
    /// As long as the [`Binding`], and so its process, lives.
    WhileHeld,
}

use std::fmt;
use std::mem;

use super::device::DeviceName;
use super::error::BindError;
use super::journal::OpenJournal;
use super::plan::AlreadyRight;
use super::restore::Released;
use super::{Binder, Keep};

/// Devices that are bound. With [`Keep::WhileHeld`] they go back when this is
/// dropped: that waits for the kernel, within the binder's limit for each step,
/// and writes to the log what went wrong.
pub struct Binding {
    pub(super) binder: Binder,
    /// With [`Keep::WhileHeld`]; locked as long as it is here.
    pub(super) open: Option<OpenJournal>,
    pub(super) keep: Keep,
    pub(super) devices: Vec<DeviceName>,
    /// As many as devices.
    pub(super) drivers: Vec<String>,
    pub(super) right: Vec<AlreadyRight>,
    pub(super) notes: Vec<String>,
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding")
            .field("keep", &self.keep)
            .field("devices", &self.devices)
            .field("right", &self.right)
            .finish_non_exhaustive()
    }
}

impl Binding {
    /// The devices that were bound, in order. Those that were right before are
    /// not among them.
    pub fn devices(&self) -> &[DeviceName] {
        &self.devices
    }

    /// The same with the driver that each is on.
    pub fn drivers(&self) -> impl Iterator<Item = (&DeviceName, &str)> {
        let devices = self.devices.iter();
        devices.zip(self.drivers.iter().map(String::as_str))
    }

    /// The devices that were right before, and stay where they are.
    pub fn right(&self) -> &[AlreadyRight] {
        &self.right
    }

    /// What the user should know: a driver that was not to be had, and so on.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Gives the devices back now. What became of each stands in the answer;
    /// one that is not back stays in the journal, for `airlock release`.
    ///
    /// # Errors
    /// [`BindError`] when it can't even be begun.
    pub fn release(mut self) -> Result<Vec<Released>, BindError> {
        let devices = mem::take(&mut self.devices);
        match (self.open.take(), self.keep) {
            (Some(open), _) => self.binder.release_own(open),
            (None, Keep::UntilReleased) if !devices.is_empty() => self.binder.release(&devices),
            (None, _) => Ok(Vec::new()),
        }
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        match self.binder.release_own(open) {
            Ok(released) => {
                for released in released.iter().filter(|released| !released.is_back()) {
                    log::error!("{released}; `airlock release --stale` tries again");
                }
            }
            Err(error) => {
                log::error!("{error}; `airlock release --stale` gives the devices back");
            }
        }
    }
}

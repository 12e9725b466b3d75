use super::device::DeviceName;
use super::error::BindError;
use super::plan::AlreadyRight;
use super::restore::Released;

/// Devices that are bound. With [`Keep::WhileHeld`](super::Keep::WhileHeld)
/// they go back when this is dropped: that waits for the kernel, within the
/// binder's limit for each step, and writes to the log what went wrong.
#[derive(Debug)]
pub struct Binding {
    pub(super) devices: Vec<DeviceName>,
    pub(super) right: Vec<AlreadyRight>,
    pub(super) notes: Vec<String>,
}

impl Binding {
    /// The devices that were bound, in order. Those that were right before are
    /// not among them.
    pub fn devices(&self) -> &[DeviceName] {
        &self.devices
    }

    /// The devices that were right before, and stay where they are.
    pub fn right(&self) -> &[AlreadyRight] {
        &self.right
    }

    /// What the user should know: a driver that was not to be had, and so on.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Gives the devices back now.
    ///
    /// # Errors
    /// [`BindError`] when it can't even be begun. What became of each device
    /// stands in the answer.
    pub fn release(self) -> Result<Vec<Released>, BindError> {
        Err(BindError::Unfinished)
    }
}

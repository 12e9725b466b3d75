use super::AssignedDevice;
use crate::config::{PowerState, Scope};
use crate::vfio::{DeviceBackend, DeviceError};

/// A reset that the guest has seen and the device not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// The guest brought it from D3hot to D0, which costs it its settings.
    Wake,
    /// A reset of the function, ordered by the guest or carried down by the
    /// bus above (PCIe 6.0 §6.6).
    Reset,
}

impl AssignedDevice {
    /// Resets what the guest sees: its registers, and its interrupts. The
    /// device follows when the effects are settled.
    pub(super) fn begin_reset(&mut self, scope: Scope, pending: Pending) {
        self.reset_interrupts();
        self.view.reset(scope);
        // A whole reset does all that waking up does.
        if self.pending != Some(Pending::Reset) {
            self.pending = Some(pending);
        }
    }

    /// Resets the device. The guest's BARs are unmapped already.
    pub(super) fn carry_out(&mut self, pending: Pending) {
        // The kernel restores the command register after the reset: make it
        // one with which the device stays silent.
        self.set_command(self.command_of_host);
        match pending {
            Pending::Wake => {
                if self.power != PowerState::D3Hot {
                    // The guest went down and up again in one go.
                    self.set_power(PowerState::D3Hot);
                }
                self.set_power(PowerState::D0);
            }
            Pending::Reset => self.reset_device(),
        }
        if let Err(error) = self.view.hand_on(&*self.backend) {
            self.report("does not take its registers' values after reset", &error);
        }
    }

    fn reset_device(&mut self) {
        let reset = if self.backend.can_reset() {
            self.backend.reset()
        } else {
            self.hot_reset()
        };
        if let Err(error) = reset {
            self.report("was not reset for the guest", &error);
            if self.power != PowerState::D0 {
                self.set_power(PowerState::D0);
            }
            return;
        }
        log::debug!("{}: reset for the guest", self.host);
        // The kernel wakes a device that it resets, see `set_power`.
        if self.power != PowerState::D0 {
            self.command = None;
        }
        self.power = PowerState::D0;
    }

    /// Resets the device along with its bus, when nobody uses what else is
    /// there: neither the host, nor another guest, nor this one.
    fn hot_reset(&self) -> Result<(), DeviceError> {
        let Some(info) = self.backend.hot_reset_info()? else {
            // Tells why not.
            return self.backend.reset();
        };
        let others = info.disturbed(self.host);
        if !others.is_empty() {
            return Err(DeviceError::SharedReset { others });
        }
        log::debug!("{}: hot reset of {:?}", self.host, info.affected);
        self.backend.hot_reset()
    }
}

use super::AssignedDevice;
use super::reset::Pending;
use crate::config::{self, PowerState, Scope};
use crate::vfio::DeviceBackend;

impl AssignedDevice {
    /// The state that the guest has put the device in.
    pub(super) fn guest_power(&self) -> PowerState {
        self.power_control().map_or(PowerState::D0, |at| {
            PowerState::from_control(self.view.space().u16(at))
        })
    }

    fn power_control(&self) -> Option<u16> {
        self.view.book.power.map(|at| at + config::POWER_CONTROL)
    }

    /// Looks at what a config write made of the power state. A state that the
    /// device can't go to leaves the one `before` in place; a way back to D0
    /// that costs the device its settings is a reset. Says whether it was one.
    pub(super) fn follow_power(&mut self, before: PowerState) -> bool {
        let (Some(capability), Some(at)) = (self.view.book.power, self.power_control()) else {
            return false;
        };
        let space = self.view.space_mut();
        let control = space.u16(at);
        let now = PowerState::from_control(control);
        let capabilities = space.u16(capability + config::POWER_CAPABILITIES);
        if !before.may_become(now, capabilities) {
            let old = control & !PowerState::D3Hot.to_control() | before.to_control();
            space.set(at, &old.to_le_bytes());
            return false;
        }
        let is_reset = before.resets(now, control);
        if is_reset {
            self.begin_reset(Scope::Function, Pending::Wake);
        }
        is_reset
    }

    /// Brings the device into a state. The kernel waits as long as the device
    /// needs.
    pub(super) fn set_power(&mut self, state: PowerState) {
        let Some(at) = self.power_control() else {
            return;
        };
        match self.write_register(at, state.to_control()) {
            Ok(()) => {
                if self.power == PowerState::D3Hot && state == PowerState::D0 {
                    // For a device that loses its settings in between, the
                    // kernel restores those that it had on the way down.
                    self.command = None;
                }
                self.power = state;
            }
            Err(error) => self.report("does not change its power state", &error),
        }
    }

    /// Lets the host suspend a device that the guest has put into D3hot, when
    /// nothing is lost by that: the host may take its power away, and restores
    /// config space only. A device that keeps its settings in D3hot is left
    /// there.
    pub(super) fn enter_low_power(&mut self) {
        let asleep = self.power == PowerState::D3Hot && self.guest_power() == PowerState::D3Hot;
        let Some(at) = self.power_control().filter(|_| asleep) else {
            return;
        };
        let control = self.view.space().u16(at);
        let loses_settings = PowerState::D3Hot.resets(PowerState::D0, control);
        if self.low_power || !loses_settings || !self.backend.has_low_power() {
            return;
        }
        match self.backend.enter_low_power() {
            Ok(()) => {
                log::debug!("{}: the host may suspend it", self.host);
                self.low_power = true;
            }
            Err(error) => self.report("can't be suspended by the host", &error),
        }
    }

    /// Has the host keep the device awake, as before anything is done with it
    /// that is more than an access to config space.
    pub(super) fn leave_low_power(&mut self) {
        if !self.low_power {
            return;
        }
        match self.backend.leave_low_power() {
            Ok(()) => {
                log::debug!("{}: the host keeps it awake", self.host);
                self.low_power = false;
            }
            Err(error) => self.report("is not kept awake by the host", &error),
        }
    }
}

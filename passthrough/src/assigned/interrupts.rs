use devices::pci::{BarDecode, BarIndex, Reach};

use super::device::{AssignedDevice, CONFIG_REGION};
use crate::config::{self, PowerState};
use crate::interrupt::InterruptStats;
use crate::vfio::DeviceBackend;

/// The device's interrupts, and what they decide of its registers and BARs.
impl AssignedDevice {
    /// What its interrupts have cost so far.
    pub fn interrupt_stats(&self) -> InterruptStats {
        match self.gone {
            true => self.last_stats.clone(),
            false => self.current_stats(),
        }
    }

    /// The same of a device that is there.
    pub(super) fn current_stats(&self) -> InterruptStats {
        let mut stats = self.backend.stats();
        self.interrupts.add_stats(&mut stats);
        stats
    }

    /// Turns all interrupts off, as a reset does.
    pub(super) fn reset_interrupts(&mut self) {
        self.set_command(self.command_now() | config::COMMAND_INTX_DISABLE);
        let sent_messages = self.interrupts.sends_messages();
        self.interrupts.reset();
        if sent_messages {
            self.close_pin();
        }
    }

    /// Brings the host's interrupts in line with the guest's registers. The pin
    /// is closed in the device before it is turned off, and opened after it is
    /// turned on. Says whether BARs must be mapped now that could not be, or
    /// no longer.
    pub(super) fn follow_interrupts(&mut self) -> bool {
        // A device that is to be reset is as good as asleep until it is.
        let asleep = self.pending.is_some()
            || self.guest_power() != PowerState::D0
            || self.power != PowerState::D0;
        let wanted = self.interrupts.wanted(self.view.space(), asleep);
        if !self.interrupts.pin_is_open(&wanted) {
            self.set_command(self.command_now() | config::COMMAND_INTX_DISABLE);
        }
        let (trapped, sent_messages) = (
            self.interrupts.needs_accesses(),
            self.interrupts.sends_messages(),
        );
        self.interrupts.follow(&wanted);
        let needs_accesses = self.interrupts.needs_accesses();
        if needs_accesses && !trapped {
            self.bars.unmap_stale(&[]);
        }
        if self.interrupts.pin_is_open(&wanted) {
            self.set_command(self.command_now() & !config::COMMAND_INTX_DISABLE);
        } else if sent_messages && !self.interrupts.sends_messages() && !self.interrupts.pin_is_on()
        {
            self.close_pin();
        }
        if let Some(posted) = &mut self.posted {
            posted.follow(self.interrupts.table_is_idle());
        }
        trapped != needs_accesses
    }

    /// Turns the pin off in the device itself, where nobody listens to it. The
    /// kernel opens it when it turns MSI or MSI-X off (`pci_intx_for_msi`,
    /// drivers/pci/msi), whatever the command register said, and closes it
    /// only when the bit changes, or when it turns the pin on for somebody.
    pub(super) fn close_pin(&mut self) {
        self.set_command(self.command_now() & !config::COMMAND_INTX_DISABLE);
        self.set_command(self.command_now() | config::COMMAND_INTX_DISABLE);
    }

    /// The device's command register; with the pin off when the host may have
    /// changed it, as it is while the device sleeps or is reset.
    pub(super) fn command_now(&self) -> u16 {
        self.command.unwrap_or(self.command_of_host)
    }

    /// What of the command register is not the guest's.
    pub(super) fn command_of_host(&self) -> u16 {
        let pin = self.command_now() & config::COMMAND_INTX_DISABLE;
        self.command_of_host & !config::COMMAND_INTX_DISABLE | pin
    }

    /// Puts registers into the view that tell of interrupts and are not the
    /// guest's own, if a read covers them.
    pub(super) fn show_interrupts(&mut self, offset: u16, size: usize) {
        if let Some((at, pending)) = self.interrupts.msi_pending(offset, size) {
            let space = self.view.space_mut();
            space.set(at, &pending.to_le_bytes());
        }
        let within = config::STATUS.checked_sub(offset).map(usize::from);
        if within.is_some_and(|within| within < size) {
            let pending = if self.interrupts.pin_is_on() {
                self.pending_pin()
            } else {
                0
            };
            let space = self.view.space_mut();
            let status = space.u16(config::STATUS) & !config::STATUS_INTERRUPT | pending;
            space.set(config::STATUS, &status.to_le_bytes());
        }
    }

    /// The status register's bit that says whether the device wants to
    /// interrupt by its pin. Drivers look at it to tell whose a shared
    /// interrupt is.
    fn pending_pin(&self) -> u16 {
        let mut status = [0; 2];
        let at = u64::from(config::STATUS);
        match self.backend.region_read(CONFIG_REGION, at, &mut status) {
            Ok(()) => u16::from_le_bytes(status) & config::STATUS_INTERRUPT,
            Err(error) => {
                log::debug!("{}: {error}", self.host);
                0
            }
        }
    }

    /// What of the BARs that answer may be mapped into the guest.
    pub(super) fn mappable<'a>(&self, reach: &'a Reach) -> &'a [BarDecode] {
        if self.interrupts.needs_accesses() {
            return &[];
        }
        &reach.answering
    }

    /// The guest has accessed a BAR where it is not mapped.
    pub(super) fn count_trap(&mut self, bar: BarIndex, offset: u64) {
        if let Some(msix) = self.interrupts.msix_mut() {
            msix.count_trap(bar, offset);
        }
    }
}

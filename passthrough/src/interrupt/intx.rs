use std::sync::Arc;

use devices::pci::{InterruptPin, PciAddress};
use thiserror::Error;

use super::stats::InterruptStats;
use crate::limit::LogLimit;
use crate::ports::{InterruptLine, InterruptRouter, PortError};
use crate::vfio::{DeviceBackend, DeviceError, IrqIndex};

/// Messages about one device's pin; a guest can cause any number.
const MAX_MESSAGES: u32 = 8;

/// Why a pin stays silent.
#[derive(Debug, Error)]
enum PinError {
    #[error("the guest's line can't be had: {0}")]
    Line(PortError),
    #[error(
        "another device of the host has the same interrupt line, and this one can't mask its \
         interrupt by itself; unbind the other's driver, or let the guest use MSI"
    )]
    Shared(#[source] DeviceError),
    #[error("the host has no interrupt line for it; let the guest use MSI")]
    NotConnected(#[source] DeviceError),
    #[error(transparent)]
    Device(DeviceError),
}

impl From<DeviceError> for PinError {
    fn from(error: DeviceError) -> Self {
        let errno = match &error {
            DeviceError::Irq { source, .. } => source.raw_os_error(),
            _ => None,
        };
        match errno {
            Some(libc::EBUSY) => Self::Shared(error),
            Some(libc::ENODEV) => Self::NotConnected(error),
            _ => Self::Device(error),
        }
    }
}

/// A function's interrupt pin, and the guest's line that it drives.
///
/// ```text
///  device ---> kernel: masks ---> line's event ---> guest
///                ^                                    |  EOI
///                +---- unmasks <--- resample event <--+
/// ```
///
/// Without a resample event an access to the function's BARs stands for the
/// EOI, see [`Self::acknowledge`].
///
/// The command register's disable bit is the caller's to write: it must be set
/// in the device while the pin is turned on or off, so that nothing fires in
/// between. Clearing it opens the pin, and the kernel signals what has been
/// asserted meanwhile.
#[derive(Debug)]
pub(super) struct IntxInterrupt {
    device: PciAddress,
    backend: Arc<dyn DeviceBackend>,
    line: Box<dyn InterruptLine>,
    state: State,
    /// How often it could not be turned on.
    silent: u64,
    /// How often an access was its EOI.
    trapped_ends: u64,
    log: LogLimit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    On,
    /// The host refused. Not tried again before it is turned off.
    Refused,
}

impl IntxInterrupt {
    /// `pin` of the function at `device`, off; nothing when the host or the
    /// monitor can't deliver it.
    pub(super) fn new(
        device: PciAddress,
        backend: Arc<dyn DeviceBackend>,
        router: &dyn InterruptRouter,
        pin: InterruptPin,
    ) -> Option<Self> {
        backend.irq(IrqIndex::Intx)?;
        let line = match router.new_line(pin) {
            Ok(line) => line?,
            Err(error) => {
                log::warn!("{device}: the guest sees no interrupt pin: {error}");
                return None;
            }
        };
        Some(Self {
            device,
            backend,
            line,
            state: State::Off,
            silent: 0,
            trapped_ends: 0,
            log: LogLimit::new(MAX_MESSAGES),
        })
    }

    /// Whether the device's pin reaches the guest.
    pub(super) fn is_on(&self) -> bool {
        self.state == State::On
    }

    /// Whether each access to the function's BARs must be seen: they stand for
    /// the guest's acknowledgement, as the line doesn't tell of it.
    pub(super) fn needs_accesses(&self) -> bool {
        self.is_on() && self.line.resample_event().is_none()
    }

    /// Turns it on: the line, the device's event, and what unmasks it again.
    /// What the host refuses is logged, and leaves the pin silent.
    pub(super) fn turn_on(&mut self) {
        if self.state != State::Off {
            return;
        }
        self.state = match self.try_on() {
            Ok(()) => State::On,
            Err(error) => {
                self.silent += 1;
                self.report("stays silent", &error);
                self.silence();
                State::Refused
            }
        };
    }

    fn try_on(&mut self) -> Result<(), PinError> {
        self.line.connect().map_err(PinError::Line)?;
        let event = Some(self.line.event());
        self.backend.set_irqs(IrqIndex::Intx, 0, &[event])?;
        if let Some(event) = self.line.resample_event() {
            self.backend.set_intx_unmask_event(Some(event))?;
        }
        Ok(())
    }

    /// Turns it off: the device first, the line after it.
    pub(super) fn turn_off(&mut self) {
        if self.state == State::On {
            self.silence();
        }
        self.state = State::Off;
    }

    fn silence(&mut self) {
        if let Err(error) = self.backend.disable_irqs(IrqIndex::Intx) {
            self.report("can't be turned off", &error);
        }
        if let Err(error) = self.line.disconnect() {
            self.report("can't be taken off its line", &*error);
        }
    }

    /// The guest has turned the pin off in its command register, and so it is
    /// in the device: the function lets go of its line, as a real one does.
    /// One with a resample event does so at the guest's EOI.
    pub(super) fn close(&mut self) {
        if self.needs_accesses() {
            self.line.silence();
        }
    }

    /// The guest has accessed one of the function's BARs. Where that stands
    /// for its EOI, lets go of the line and unmasks the pin; the kernel
    /// signals again if the device still asserts it.
    pub(super) fn acknowledge(&mut self) {
        if !self.needs_accesses() || !self.line.release() {
            return;
        }
        self.trapped_ends += 1;
        if let Err(error) = self.backend.unmask_intx() {
            self.report("stays masked", &error);
        }
    }

    /// Adds what it has cost.
    pub(super) fn add_stats(&self, stats: &mut InterruptStats) {
        stats.armed += u64::from(self.is_on());
        stats.silent += self.silent;
        stats.trapped_ends += self.trapped_ends;
    }

    fn report(&mut self, what: &str, error: &dyn std::error::Error) {
        if let Some(error) = self.log.error(error) {
            let device = self.device;
            log::error!("{device}: the interrupt pin {what}: {error}");
        }
    }
}

impl Drop for IntxInterrupt {
    fn drop(&mut self) {
        self.turn_off();
    }
}

#[cfg(test)]
#[path = "intx_test.rs"]
mod tests;

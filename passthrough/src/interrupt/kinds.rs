use std::sync::Arc;

use devices::pci::{ConfigSpace, MsiState, PciAddress};

use super::intx::IntxInterrupt;
use super::msi::MsiInterrupts;
use super::msix::MsixInterrupts;
use super::stats::InterruptStats;
use crate::config::{self, ConfigView, Deliverable};
use crate::ports::InterruptRouter;
use crate::vfio::{DeviceBackend, IrqIndex};

/// The enable bit of MSI-X's message control register (PCIe 6.0 §7.7.2.2).
const MSIX_ENABLE: u16 = 1 << 15;
/// What a driver turns on before it uses its function.
const IN_USE: u16 = config::COMMAND_IO | config::COMMAND_MEMORY | config::COMMAND_BUS_MASTER;

/// What the guest's registers ask for, of all kinds of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The pin is what the function interrupts by.
    pin: bool,
    /// The guest has turned the pin off in the command register.
    pin_disabled: bool,
    msi: MsiState,
    /// MSI-X's control register.
    msix: u16,
    asleep: bool,
}

/// A function's interrupts: the pin, MSI and MSI-X, of which one at most is on
/// in the device, as the kernel and PCIe 6.0 §6.1.4 want it.
///
/// What is armed follows from the guest's registers alone. What must go off
/// goes before anything comes on:
///
/// | | on in the host |
/// |---|---|
/// | MSI-X | while the guest has it enabled |
/// | MSI | while the guest has it enabled, and not MSI-X |
/// | the pin | from when a driver uses the function, while neither of them is enabled |
/// | none | while the function sleeps, and after a reset |
///
/// Nothing tells whether a driver will go on to MSI-X or wait for the pin, so
/// the pin is on in between, which costs a handful of calls. A guest that turns
/// it off in its command register has it masked, not taken down: some drivers
/// do so at each interrupt.
#[derive(Debug)]
pub(crate) struct Interrupts {
    pin: Option<IntxInterrupt>,
    msi: Option<MsiInterrupts>,
    msix: Option<MsixInterrupts>,
    /// What MSI-X was last told.
    msix_control: u16,
}

impl Interrupts {
    /// The pin of the function at `device`, as far as it can be delivered.
    /// The others join in [`Self::add_messages`], once it is known where their
    /// registers are.
    pub(crate) fn new(
        device: PciAddress,
        backend: &Arc<dyn DeviceBackend>,
        router: &dyn InterruptRouter,
        snapshot: &ConfigSpace,
    ) -> Self {
        let pin = config::pin(snapshot)
            .and_then(|pin| IntxInterrupt::new(device, Arc::clone(backend), router, pin));
        Self {
            pin,
            msi: None,
            msix: None,
            msix_control: 0,
        }
    }

    /// Which kinds the guest may be shown.
    pub(crate) fn deliverable(&self, backend: &dyn DeviceBackend) -> Deliverable {
        Deliverable {
            pin: self.pin.is_some(),
            msi: backend.irq(IrqIndex::Msi).is_some(),
            msix: backend.irq(IrqIndex::Msix).is_some(),
        }
    }

    /// Adds MSI and MSI-X, as the guest is shown them in `view`. All are off.
    pub(crate) fn add_messages(
        &mut self,
        device: PciAddress,
        backend: &Arc<dyn DeviceBackend>,
        router: &Arc<dyn InterruptRouter>,
        view: &ConfigView,
    ) {
        let both = || (Arc::clone(backend), Arc::clone(router));
        self.msi = view.book.msi.and_then(|place| {
            let (backend, router) = both();
            MsiInterrupts::new(device, backend, router, place)
        });
        self.msix = view.book.msix.and_then(|capability| {
            let (backend, router) = both();
            MsixInterrupts::new(device, backend, router, capability)
        });
    }

    /// MSI-X, for its table and pending bits.
    pub(crate) fn msix(&self) -> Option<&MsixInterrupts> {
        self.msix.as_ref()
    }

    /// Whether nothing that is written to the MSI-X table can matter at once.
    pub(crate) fn table_is_idle(&self) -> bool {
        self.msix.as_ref().is_some_and(MsixInterrupts::is_idle)
    }

    /// As [`Self::msix`], to write to the table.
    pub(crate) fn msix_mut(&mut self) -> Option<&mut MsixInterrupts> {
        self.msix.as_mut()
    }

    /// What the registers in `space` ask for. `asleep` is whether the function
    /// is in another state than D0, in which it sends no interrupts
    /// (PCI PM 1.2 §5.4).
    pub(crate) fn wanted(&self, space: &ConfigSpace, asleep: bool) -> Wanted {
        let command = space.u16(config::COMMAND);
        let msix = self.msix.as_ref().map_or(0, |msix| {
            let at = msix
                .capability()
                .offset
                .saturating_add(config::MSIX_CONTROL);
            space.u16(at)
        });
        let msix_on = msix & MSIX_ENABLE != 0;
        let msi = match &self.msi {
            Some(msi) if !asleep && !msix_on => msi.place().state(space),
            _ => MsiState::OFF,
        };
        // A driver may turn decoding off and on again while it uses the pin.
        let in_use = command & IN_USE != 0 || self.pin.as_ref().is_some_and(IntxInterrupt::is_on);
        Wanted {
            pin: self.pin.is_some() && in_use && !asleep && !msix_on && !msi.is_enabled(),
            pin_disabled: command & config::COMMAND_INTX_DISABLE != 0,
            msi,
            msix,
            asleep,
        }
    }

    /// Brings the host in line with `wanted`: what goes off, then what comes
    /// on. Unless [`Self::pin_is_open`] says already that the pin is to be
    /// open, the device's command register must have it disabled.
    pub(crate) fn follow(&mut self, wanted: &Wanted) {
        if let (false, Some(pin)) = (wanted.pin, &mut self.pin) {
            pin.turn_off();
        }
        if let (false, Some(msi)) = (wanted.msi.is_enabled(), &mut self.msi) {
            msi.follow(MsiState::OFF);
        }
        // The others are off when it comes on, and come on when it is off.
        if let Some(msix) = &mut self.msix {
            msix.set_asleep(wanted.asleep);
            if std::mem::replace(&mut self.msix_control, wanted.msix) != wanted.msix {
                msix.write_control(wanted.msix);
            }
        }
        if let Some(msi) = &mut self.msi {
            msi.follow(wanted.msi);
        }
        if let (true, Some(pin)) = (wanted.pin, &mut self.pin) {
            pin.turn_on();
            if wanted.pin_disabled {
                pin.close();
            }
        }
    }

    /// Whether the pin is to be open in the device's command register, once
    /// the host is in line with `wanted`.
    pub(crate) fn pin_is_open(&self, wanted: &Wanted) -> bool {
        let is_on = self.pin.as_ref().is_some_and(IntxInterrupt::is_on);
        is_on && wanted.pin && !wanted.pin_disabled
    }

    /// Whether the pin is what the device interrupts by.
    pub(crate) fn pin_is_on(&self) -> bool {
        self.pin.as_ref().is_some_and(IntxInterrupt::is_on)
    }

    /// Whether the guest's accesses to the BARs must all be seen, so that
    /// these may not be mapped into the guest.
    pub(crate) fn needs_accesses(&self) -> bool {
        self.pin.as_ref().is_some_and(IntxInterrupt::needs_accesses)
    }

    /// The guest has accessed a BAR.
    pub(crate) fn acknowledge(&mut self) {
        if let Some(pin) = &mut self.pin {
            pin.acknowledge();
        }
    }

    /// The pending bits of MSI, and where the guest reads them: 4 bytes of
    /// config space. Nothing when a read of `size` bytes at `offset` does not
    /// cover any of them.
    pub(crate) fn msi_pending(&self, offset: u16, size: usize) -> Option<(u16, u32)> {
        let msi = self.msi.as_ref()?;
        let at = msi.place().pending()?;
        let covered = usize::from(offset) + size > at.into() && offset < at.saturating_add(4);
        covered.then(|| (at, msi.pending()))
    }

    /// Whether MSI or MSI-X is on.
    pub(crate) fn sends_messages(&self) -> bool {
        let msi = self.msi.as_ref().is_some_and(MsiInterrupts::is_on);
        msi || self.msix.as_ref().is_some_and(MsixInterrupts::is_on)
    }

    /// Adds what all kinds have cost.
    pub(crate) fn add_stats(&self, stats: &mut InterruptStats) {
        if let Some(pin) = &self.pin {
            pin.add_stats(stats);
        }
        if let Some(msi) = &self.msi {
            msi.add_stats(stats);
        }
        if let Some(msix) = &self.msix {
            msix.add_stats(stats);
        }
    }

    /// Takes everything down for good.
    pub(crate) fn shut_down(&mut self) {
        self.pin = None;
        self.msi = None;
        self.msix = None;
    }

    /// Back to the state after reset: all off, nothing armed.
    pub(crate) fn reset(&mut self) {
        if let Some(pin) = &mut self.pin {
            pin.turn_off();
        }
        if let Some(msi) = &mut self.msi {
            msi.reset();
        }
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        self.msix_control = 0;
    }
}

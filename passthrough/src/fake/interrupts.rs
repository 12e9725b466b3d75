use std::io;
use std::os::fd::BorrowedFd;

use super::FakeDevice;
use super::config::FakeConfig;
use super::device::State;
use super::intx::FakeIntx;
use super::msi::FakeMsi;
use super::msix::{FakeMsix, PENDING_BYTES};
use crate::vfio::IrqIndex;

/// A device's three kinds of interrupts, of which one can be on.
#[derive(Debug)]
pub(super) struct FakeInterrupts {
    pub(super) intx: FakeIntx,
    pub(super) msi: FakeMsi,
    pub(super) msix: FakeMsix,
}

impl FakeInterrupts {
    pub(super) fn new(config: &FakeConfig) -> Self {
        let msix = config.msix().map_or(0, |(vectors, ..)| vectors.into());
        Self {
            intx: FakeIntx::default(),
            msi: FakeMsi::new(config.msi_vectors()),
            msix: FakeMsix::new(msix),
        }
    }

    /// The host has only so many vectors left.
    pub(super) fn limit(&mut self, available: u32) {
        self.msi.available = available;
        self.msix.available = available;
    }

    fn kind_on(&self) -> Option<IrqIndex> {
        [
            (IrqIndex::Intx, self.intx.is_on()),
            (IrqIndex::Msi, self.msi.host_vectors().is_some()),
            (IrqIndex::Msix, self.msix.host_vectors().is_some()),
        ]
        .into_iter()
        .find_map(|(index, on)| on.then_some(index))
    }

    fn set(
        &mut self,
        index: IrqIndex,
        start: u32,
        events: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<u32> {
        match index {
            IrqIndex::Error | IrqIndex::Request => Ok(0),
            _ if self.kind_on().is_some_and(|on| on != index) => {
                Err(io::Error::from_raw_os_error(libc::EINVAL))
            }
            IrqIndex::Intx => self.intx.set(start, events).map(|()| 0),
            IrqIndex::Msi => self.msi.set(start, events),
            IrqIndex::Msix => self.msix.set(start, events),
        }
    }

    pub(super) fn turn_off(&mut self, index: IrqIndex) {
        match index {
            IrqIndex::Intx => self.intx.turn_off(),
            IrqIndex::Msi => self.msi.turn_off(),
            IrqIndex::Msix => self.msix.disable(),
            IrqIndex::Error | IrqIndex::Request => {}
        }
    }

    /// The device was reset: nothing is pending in it.
    pub(super) fn reset(&mut self) {
        self.msix.pending = [0; PENDING_BYTES];
        self.msi.pending = 0;
        self.intx.assert(false);
    }
}

impl State {
    /// As `VFIO_DEVICE_SET_IRQS`: 0, or how many vectors there could be.
    pub(super) fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        events: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<u32> {
        let result = self.interrupts.set(index, start, events);
        self.show_interrupts();
        result
    }

    /// The kernel masks and unmasks the pin as the command register says.
    pub(super) fn follow_command(&mut self) {
        let disabled = self.config.intx_is_disabled();
        self.interrupts.intx.set_disabled(disabled);
    }

    /// Brings the registers in line that tell of interrupts.
    pub(super) fn show_interrupts(&mut self) {
        let asserted = self.interrupts.intx.is_asserted();
        self.config.show_interrupt(asserted);
        self.config.show_msi_pending(self.interrupts.msi.pending);
    }
}

/// What the device does, and what came of it.
impl FakeDevice {
    /// On a host that has only so many vectors left.
    #[must_use]
    pub fn only_vectors(self, available: u32) -> Self {
        self.leave_vectors(available);
        self
    }

    /// From now on the host has only so many vectors left.
    pub fn leave_vectors(&self, available: u32) {
        self.state().interrupts.limit(available);
    }

    /// The device raises MSI-X vector `vector`: it signals the event, or sets
    /// its pending bit while the vector has none. Says whether it signalled.
    pub fn raise(&self, vector: u32) -> bool {
        let mut state = self.state();
        let may_signal = state.config.is_bus_master();
        state.interrupts.msix.raise(vector, may_signal)
    }

    /// The device raises MSI vector `vector`, see [`Self::raise`].
    pub fn raise_msi(&self, vector: u32) -> bool {
        let mut state = self.state();
        let may_signal = state.config.is_bus_master();
        let signalled = state.interrupts.msi.raise(vector, may_signal);
        state.show_interrupts();
        signalled
    }

    /// The device asserts its interrupt pin, or no longer.
    pub fn assert_pin(&self, asserted: bool) {
        let mut state = self.state();
        state.interrupts.intx.assert(asserted);
        state.show_interrupts();
    }

    /// Does what the kernel does by itself: unmasks the pin if the unmask
    /// event was signalled.
    pub fn see_unmask(&self) {
        self.state().interrupts.intx.look_for_unmask();
    }

    /// Whether the pin would fire if the device asserted it now.
    pub fn pin_is_open(&self) -> bool {
        self.state().interrupts.intx.is_open()
    }

    /// Which kind of interrupt is on.
    pub fn kind_on(&self) -> Option<IrqIndex> {
        self.state().interrupts.kind_on()
    }

    /// How many host vectors are allocated; nothing while MSI and MSI-X are off.
    pub fn host_vectors(&self) -> Option<usize> {
        let state = self.state();
        let msi = state.interrupts.msi.host_vectors();
        state.interrupts.msix.host_vectors().or(msi)
    }
}

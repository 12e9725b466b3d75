use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use devices::pci::{BarIndex, Msix, PciAddress};

use super::msix_vectors::MsixVectors;
use super::stats::{InterruptStats, TrapCounter};
use crate::config::MsixCapability;
use crate::ports::InterruptRouter;
use crate::sys;
use crate::vfio::DeviceBackend;

/// A function's MSI-X: the guest's table, and the host interrupts behind it.
///
/// A vector costs the host nothing until the guest first unmasks it. Then it
/// is armed: route, message, and last the device's event. From there on,
/// masking only holds its event back; the event's counter is the pending bit.
/// Everything is given back when the guest turns MSI-X off or puts the
/// function to sleep; what is pending then is remembered.
///
/// What the host refuses leaves a vector silent, with a log line. The guest
/// tries again by masking and unmasking it.
#[derive(Debug)]
pub(crate) struct MsixInterrupts {
    backend: Arc<dyn DeviceBackend>,
    capability: MsixCapability,
    state: Msix,
    vectors: MsixVectors,
    /// The function sleeps, and nothing of it may be armed.
    asleep: bool,
    traps: TrapCounter,
    pba_reads: Cell<u64>,
}

impl MsixInterrupts {
    /// The state after reset: off.
    pub(crate) fn new(
        device: PciAddress,
        backend: Arc<dyn DeviceBackend>,
        router: Arc<dyn InterruptRouter>,
        capability: MsixCapability,
    ) -> Option<Self> {
        let state = Msix::new(capability.vectors)?;
        let count = state.vectors();
        let vectors = MsixVectors::new(device, Arc::clone(&backend), router, count)?;
        let areas = [Some(capability.table), capability.pba];
        let areas = areas
            .into_iter()
            .flatten()
            .map(|area| (area.bar, area.area));
        Some(Self {
            traps: TrapCounter::new(sys::page_size(), areas),
            backend,
            capability,
            state,
            vectors,
            asleep: false,
            pba_reads: Cell::new(0),
        })
    }

    /// Where table, pending bits and control register are.
    pub(crate) fn capability(&self) -> &MsixCapability {
        &self.capability
    }

    /// Whether it is on in the device.
    pub(crate) fn is_on(&self) -> bool {
        self.vectors.is_on()
    }

    /// Whether no vector can be delivered, whatever is in the table.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.is_idle()
    }

    /// The guest wrote the message control register.
    pub(crate) fn write_control(&mut self, value: u16) {
        let changed = self.state.write_control(value);
        self.apply(changed);
    }

    /// The guest reads the table.
    pub(crate) fn table_read(&self, offset: u64, data: &mut [u8]) {
        self.state.table_read(offset, data);
    }

    /// The guest writes to the table.
    pub(crate) fn table_write(&mut self, offset: u64, data: &[u8]) {
        let changed = self.state.table_write(offset, data);
        if !changed.is_empty() {
            self.apply(changed);
        }
    }

    /// The guest reads the pending bits: those of armed vectors are in the
    /// events, the others in the device, where they are masked.
    pub(crate) fn pba_read(&self, offset: u64, data: &mut [u8]) {
        self.pba_reads.set(self.pba_reads.get() + 1);
        let mut device = [0; 8];
        let device = &mut device[..data.len().min(8)];
        if let Some(pba) = self.capability.pba {
            let at = pba.area.offset.saturating_add(offset);
            let read = self.backend.region_read(pba.bar.get().into(), at, device);
            if read.is_err() {
                device.fill(0);
            }
        }
        let in_device = |vector: u16| {
            let byte = (u64::from(vector) / 8).checked_sub(offset);
            let byte = byte.and_then(|byte| device.get(byte as usize));
            byte.is_some_and(|byte| byte >> (vector % 8) & 1 != 0)
        };
        self.state.pba_read(offset, data, |vector| {
            self.vectors.is_pending(vector) || !self.vectors.is_armed(vector) && in_device(vector)
        });
    }

    /// Back to the state after reset: off, all masked, nothing pending.
    pub(crate) fn reset(&mut self) {
        self.state.reset();
        self.vectors.turn_off();
        self.vectors.forget_pending();
    }

    /// Sends the function to sleep, which takes down what is armed, or wakes
    /// it, which arms what the guest's table says.
    pub(crate) fn set_asleep(&mut self, asleep: bool) {
        if std::mem::replace(&mut self.asleep, asleep) != asleep {
            self.apply(0..self.state.vectors());
        }
    }

    /// Brings the host in line with the guest's table.
    fn apply(&mut self, changed: Range<u16>) {
        if !self.state.is_enabled() || self.asleep {
            self.vectors.turn_off();
            return;
        }
        let state = &self.state;
        let wanted = changed.map(|vector| (vector, state.delivery(vector)));
        self.vectors.follow(wanted);
    }

    /// The guest has accessed `bar` at `offset`, which was not mapped into it.
    pub(crate) fn count_trap(&mut self, bar: BarIndex, offset: u64) {
        self.traps.count(bar, offset);
    }

    /// Adds what it knows to `stats`.
    pub(crate) fn add_stats(&self, stats: &mut InterruptStats) {
        stats.armed += self.vectors.armed() as u64;
        stats.silent += self.vectors.silent();
        stats.lost += self.vectors.lost();
        stats.pba_reads += self.pba_reads.get();
        stats.trapped_pages.extend(self.traps.pages());
    }
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;

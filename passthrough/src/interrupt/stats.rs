use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use devices::pci::BarIndex;
use serde::Serialize;

use crate::ports::HostMemory;
use crate::vfio::{
    DeviceBackend, DeviceError, HotReset, IrqIndex, IrqInfo, RegionArea, RegionInfo,
};

/// What a device's interrupts have cost since it was assigned, and what went
/// wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InterruptStats {
    /// Calls that set host interrupts up or take them down
    /// (`VFIO_DEVICE_SET_IRQS`), of all kinds.
    pub set_irqs: u64,
    /// Of those, how many the host refused, short allocations among them.
    pub refused: u64,
    /// Calls for which the host had fewer vectors than asked for.
    pub short_allocations: u64,
    /// What is armed now, each with a host interrupt: MSI and MSI-X vectors,
    /// or the pin.
    pub armed: u64,
    /// How often the guest wanted a vector, or the pin, that could not be
    /// armed.
    pub silent: u64,
    /// Interrupts of the pin that an access to a BAR ended, as the monitor's
    /// line does not tell when the guest acknowledges: each cost exits.
    pub trapped_ends: u64,
    /// Pending interrupts of MSI-X that could not be handed on.
    pub lost: u64,
    /// Reads of MSI-X's pending bits.
    pub pba_reads: u64,
    /// The pages with MSI-X's table and pending bits, all of whose accesses
    /// trap. Many of them at a page that the driver uses all the time mean
    /// that the device has its registers beside the table.
    pub trapped_pages: Vec<TrappedPage>,
}

/// A page of a BAR that is not mapped into the guest because of MSI-X.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TrappedPage {
    /// The BAR's number.
    pub bar: u8,
    /// Where the page begins in it, in bytes.
    pub offset: u64,
    /// The guest's reads and writes there so far.
    pub traps: u64,
}

/// Counts the guest's accesses to pages of BARs.
#[derive(Debug)]
pub(super) struct TrapCounter {
    page_size: u64,
    /// In ascending order.
    pages: Vec<TrappedPage>,
}

impl TrapCounter {
    /// For the pages with these areas.
    pub(super) fn new(
        page_size: u64,
        areas: impl IntoIterator<Item = (BarIndex, RegionArea)>,
    ) -> Self {
        let mut pages = Vec::new();
        for (bar, area) in areas {
            let end = area.offset.saturating_add(area.size);
            let first = area.offset - area.offset % page_size;
            let mut offset = Some(first);
            while let Some(at) = offset.filter(|at| *at < end) {
                pages.push(TrappedPage {
                    bar: bar.get(),
                    offset: at,
                    traps: 0,
                });
                offset = at.checked_add(page_size);
            }
        }
        pages.sort_by_key(|page| (page.bar, page.offset));
        pages.dedup();
        Self { page_size, pages }
    }

    /// The guest has accessed `bar` at `offset`.
    pub(super) fn count(&mut self, bar: BarIndex, offset: u64) {
        let page = (bar.get(), offset - offset % self.page_size);
        let found = self
            .pages
            .binary_search_by_key(&page, |page| (page.bar, page.offset));
        if let Some(page) = found.ok().and_then(|index| self.pages.get_mut(index)) {
            page.traps += 1;
        }
    }

    pub(super) fn pages(&self) -> &[TrappedPage] {
        &self.pages
    }
}

/// A device whose interrupt calls are counted; all else goes straight through.
#[derive(Debug)]
pub(crate) struct CountedBackend {
    backend: Arc<dyn DeviceBackend>,
    set_irqs: AtomicU64,
    refused: AtomicU64,
    short_allocations: AtomicU64,
}

impl CountedBackend {
    /// Counts from now on.
    pub(crate) fn new(backend: Arc<dyn DeviceBackend>) -> Self {
        Self {
            backend,
            set_irqs: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            short_allocations: AtomicU64::new(0),
        }
    }

    /// The device itself, without keeping it.
    pub(crate) fn downgrade(&self) -> Weak<dyn DeviceBackend> {
        Arc::downgrade(&self.backend)
    }

    /// What was counted, as part of all.
    pub(crate) fn stats(&self) -> InterruptStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        InterruptStats {
            set_irqs: read(&self.set_irqs),
            refused: read(&self.refused),
            short_allocations: read(&self.short_allocations),
            ..InterruptStats::default()
        }
    }

    fn count(&self, result: Result<(), DeviceError>) -> Result<(), DeviceError> {
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        add(&self.set_irqs);
        if let Err(error) = &result {
            add(&self.refused);
            if matches!(error, DeviceError::ShortOfVectors { .. }) {
                add(&self.short_allocations);
            }
        }
        result
    }
}

impl DeviceBackend for CountedBackend {
    fn region(&self, index: u32) -> Option<&RegionInfo> {
        self.backend.region(index)
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        self.backend.region_read(index, offset, data)
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.backend.region_write(index, offset, data)
    }

    fn region_map(&self, index: u32, area: RegionArea) -> Result<Arc<dyn HostMemory>, DeviceError> {
        self.backend.region_map(index, area)
    }

    fn irq(&self, index: IrqIndex) -> Option<IrqInfo> {
        self.backend.irq(index)
    }

    fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        events: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        self.count(self.backend.set_irqs(index, start, events))
    }

    fn disable_irqs(&self, index: IrqIndex) -> Result<(), DeviceError> {
        self.count(self.backend.disable_irqs(index))
    }

    fn set_intx_unmask_event(&self, event: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        self.count(self.backend.set_intx_unmask_event(event))
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        self.count(self.backend.unmask_intx())
    }

    fn can_reset(&self) -> bool {
        self.backend.can_reset()
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.backend.reset()
    }

    fn hot_reset_info(&self) -> Result<Option<HotReset>, DeviceError> {
        self.backend.hot_reset_info()
    }

    fn hot_reset(&self) -> Result<(), DeviceError> {
        self.backend.hot_reset()
    }

    fn has_low_power(&self) -> bool {
        self.backend.has_low_power()
    }

    fn enter_low_power(&self) -> Result<(), DeviceError> {
        self.backend.enter_low_power()
    }

    fn leave_low_power(&self) -> Result<(), DeviceError> {
        self.backend.leave_low_power()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeDevice, Journal, Operation};

    #[test]
    fn interrupt_calls_are_counted() {
        let journal = Journal::default();
        let device = FakeDevice::nvme(&journal).unwrap().only_vectors(1);
        let device = Arc::new(device);
        let counted = CountedBackend::new(Arc::clone(&device) as _);
        let set = |vectors| counted.set_irqs(IrqIndex::Msix, 0, &vec![None; vectors]);
        set(2).unwrap_err();
        set(1).unwrap();
        device.refuse(Operation::SetIrqs, libc::EIO);
        set(1).unwrap_err();
        counted.disable_irqs(IrqIndex::Msix).unwrap();
        let expected = InterruptStats {
            set_irqs: 4,
            refused: 2,
            short_allocations: 1,
            ..InterruptStats::default()
        };
        assert_eq!(counted.stats(), expected);
    }

    #[test]
    fn traps_are_counted_by_page() {
        let bar = |index| BarIndex::new(index).unwrap();
        let area = |offset, size| RegionArea { offset, size };
        let areas = [(bar(2), area(0x2ff0, 0x20)), (bar(2), area(0x3800, 8))];
        let mut counter = TrapCounter::new(0x1000, areas);
        for (index, offset) in [
            (2, 0x2000),
            (2, 0x2ff0),
            (2, 0x3fff),
            (2, 0x1fff),
            (0, 0x2000),
        ] {
            counter.count(bar(index), offset);
        }
        let page = |offset, traps| TrappedPage {
            bar: 2,
            offset,
            traps,
        };
        assert_eq!(counter.pages(), [page(0x2000, 2), page(0x3000, 1)]);
    }
}

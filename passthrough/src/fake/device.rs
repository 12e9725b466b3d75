use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::{BarIndex, BarInfo, BarKind, ConfigSpace, Register};

use super::Journal;
use super::config::{Aftermath, FakeConfig};
use super::interrupts::FakeInterrupts;
use super::msix::PENDING_BYTES;
use crate::ports::HostMemory;
use crate::sys::{self, Mapping};
use crate::vfio::{DeviceBackend, DeviceError, IrqIndex, IrqInfo, RegionArea, RegionInfo};

const ROM_REGION: u32 = 6;
const CONFIG_REGION: u32 = 7;

/// Something that a fake device can be told to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`DeviceBackend::region_read`].
    Read,
    /// [`DeviceBackend::region_write`].
    Write,
    /// [`DeviceBackend::region_map`].
    Map,
    /// [`DeviceBackend::set_irqs`].
    SetIrqs,
    /// [`DeviceBackend::disable_irqs`].
    DisableIrqs,
    /// [`DeviceBackend::set_intx_unmask_event`] and
    /// [`DeviceBackend::unmask_intx`].
    Unmask,
    /// [`DeviceBackend::reset`].
    Reset,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: FakeConfig,
    pub(super) interrupts: FakeInterrupts,
    refusals: Vec<(Operation, i32)>,
}

/// A device in memory that behaves as the kernel's VFIO does.
///
/// * config space: what the kernel virtualizes or filters is virtualized and
///   filtered, resets are carried out, and so are accesses to the vital product
///   data;
/// * BARs: memory that answers `EIO` while decoding is off or in D3hot; the
///   MSI-X table can't be reached, and the pending bits are the device's;
/// * MSI-X: off, or on with a set of host vectors, which can grow (or not, see
///   [`Self::no_resize`]) up to [`Self::only_vectors`]; short allocations and
///   all-or-nothing as the kernel has them;
/// * MSI: the same, but all host vectors come when it is turned on;
/// * the pin: masked each time that it fires, unmasked by call, by event and
///   by the command register; only one kind of interrupt can be on;
/// * reset: clears the memory, wakes the device, keeps config space, as the
///   kernel restores it. A way from D3hot to D0 does the same, unless the
///   device keeps its settings.
///
/// Every access and request is noted in the journal, and the drop as `close`.
#[derive(Debug)]
pub struct FakeDevice {
    journal: Journal,
    regions: Vec<Option<RegionInfo>>,
    memory: Vec<Option<Arc<Mapping>>>,
    memory_bars: Vec<bool>,
    rom: Vec<u8>,
    vectors: u32,
    no_resize: bool,
    can_reset: bool,
    /// Lock order: the device's own, innermost.
    state: Mutex<State>,
}

impl FakeDevice {
    /// A device with these `values` in its config space of `config_size` bytes
    /// and these `bars`, all of whose memory can be mapped.
    ///
    /// # Errors
    /// When there is no memory for the BARs.
    pub fn new(
        values: &ConfigSpace,
        config_size: u64,
        bars: &[BarInfo],
        journal: &Journal,
    ) -> io::Result<Self> {
        let config = FakeConfig::new(values, bars);
        let interrupts = FakeInterrupts::new(&config);
        let page = sys::page_size();
        let mut device = Self {
            journal: journal.clone(),
            regions: vec![None; 9],
            memory: vec![None; 6],
            memory_bars: vec![false; 6],
            rom: Vec::new(),
            vectors: interrupts.msix.vectors,
            no_resize: false,
            can_reset: true,
            state: Mutex::new(State {
                interrupts,
                config,
                refusals: Vec::new(),
            }),
        };
        let region = |size, mappable| RegionInfo {
            size,
            readable: true,
            writable: true,
            mappable,
        };
        for bar in bars {
            let index = usize::from(bar.index.get());
            let mut mappable = Vec::new();
            if !bar.kind.is_io() && bar.size >= page {
                let (offset, size) = (0, bar.size);
                mappable.push(RegionArea { offset, size });
            }
            device.regions[index] = Some(region(bar.size, mappable));
            let size = usize::try_from(bar.size.next_multiple_of(page));
            let size = size.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            device.memory[index] = Some(Arc::new(Mapping::anonymous(size)?));
            device.memory_bars[index] = !bar.kind.is_io();
        }
        device.regions[CONFIG_REGION as usize] = Some(region(config_size, Vec::new()));
        Ok(device)
    }

    /// An NVMe controller much like QEMU's: one 64-bit BAR of 16 KiB whose
    /// third page holds the MSI-X table and whose fourth the pending bits, 65
    /// vectors, power management, PCI Express with reset, and extended
    /// capabilities of which SR-IOV is first.
    ///
    /// # Errors
    /// When there is no memory for the BAR.
    pub fn nvme(journal: &Journal) -> io::Result<Self> {
        let values = ConfigSpace::from_registers(&[
            Register::constant(0x00, 4, 0x0010_1b36),
            Register::constant(0x04, 4, 0x0010_0102),
            Register::constant(0x08, 4, 0x0108_0202),
            Register::constant(0x2c, 4, 0x1100_1af4),
            Register::constant(0x34, 1, 0x40),
            Register::constant(0x3d, 1, 1),
            // MSI-X, MSI, power management, PCI Express.
            Register::constant(0x40, 4, 0x0040_5011),
            Register::constant(0x44, 4, 0x2000),
            Register::constant(0x48, 4, 0x3000),
            Register::constant(0x50, 4, 0x0080_6005),
            Register::constant(0x60, 4, 0x0003_8001),
            Register::constant(0x64, 4, 0x0000_0008),
            Register::constant(0x80, 4, 0x0002_0010),
            Register::constant(0x84, 4, 0x1000_8fc0),
            Register::constant(0x88, 4, 0x0000_2810),
            Register::constant(0x8c, 4, 0x0000_0411),
            Register::constant(0x92, 2, 0x0011),
            Register::constant(0xa4, 4, 0x0000_081f),
            // SR-IOV, error reporting, serial number.
            Register::constant(0x100, 4, 0x1401_0010),
            Register::constant(0x140, 4, 0x1801_0001),
            Register::constant(0x148, 4, 0x0040_0000),
            Register::constant(0x180, 4, 0x0001_0003),
            Register::constant(0x184, 4, 0x5566_7788),
        ]);
        let kind = BarKind::Memory64 {
            prefetchable: false,
        };
        let bar = BarIndex::all().map(|index| BarInfo {
            index,
            kind,
            size: 0x4000,
        });
        let bars: Vec<_> = bar.take(1).collect();
        Self::new(&values, 4096, &bars, journal)
    }

    /// As a kernel that can't add vectors while MSI-X is on (before Linux 6.4).
    #[must_use]
    pub fn no_resize(mut self) -> Self {
        self.no_resize = true;
        self.state().interrupts.msix.no_resize = true;
        self
    }

    /// Without a way to reset it.
    #[must_use]
    pub fn without_reset(mut self) -> Self {
        self.can_reset = false;
        self
    }

    /// With these bytes in its ROM, whose size is the next power of two.
    #[must_use]
    pub fn with_rom(mut self, bytes: &[u8]) -> Self {
        self.rom = bytes.to_vec();
        self.regions[ROM_REGION as usize] = Some(RegionInfo {
            size: (bytes.len() as u64).next_power_of_two(),
            readable: true,
            writable: false,
            mappable: Vec::new(),
        });
        self
    }

    /// Only these areas of a BAR can be mapped.
    #[must_use]
    pub fn with_areas(mut self, bar: BarIndex, areas: Vec<RegionArea>) -> Self {
        if let Some(Some(region)) = self.regions.get_mut(usize::from(bar.get())) {
            region.mappable = areas;
        }
        self
    }

    /// Refuses the next `operation` with `errno`. Refusals queue up.
    pub fn refuse(&self, operation: Operation, errno: i32) {
        self.state().refusals.push((operation, errno));
    }

    /// What the guest's bus would read at `offset` of a BAR's memory.
    pub fn memory(&self, bar: BarIndex, offset: u64) -> u8 {
        let mut data = [0xff];
        if let Some(Some(memory)) = self.memory.get(usize::from(bar.get())) {
            memory.read(offset, &mut data);
        }
        data[0]
    }

    /// The 16 bits of config space at `offset`.
    pub fn config(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.state().config.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Sets bytes of config space, as the hardware does by itself.
    pub fn set_config(&self, offset: u16, data: &[u8]) {
        self.state().config.set(offset, data);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset_now(&self, state: &mut State) {
        state.config.reset();
        state.follow_command();
        state.interrupts.reset();
        state.show_interrupts();
        for memory in self.memory.iter().flatten() {
            memory.write(0, &vec![0; memory.size()]);
        }
    }

    /// Where MSI-X keeps the structure that a pointer register names.
    fn holds(pointer: u32, size: u64, region: u32, at: u64) -> Option<u64> {
        let within = at.checked_sub(u64::from(pointer & !7))?;
        (pointer & 7 == region && within < size).then_some(within)
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let state = self.access(Operation::Read, region, offset, data.len())?;
        if region == CONFIG_REGION {
            state.config.read(offset as u16, data);
            return Ok(());
        }
        if region == ROM_REGION {
            // What follows the image reads as ones (`vfio_pci_bar_rw`).
            let image = self.rom.get(offset as usize..).unwrap_or_default();
            let image = image.iter().chain(std::iter::repeat(&0xff));
            data.iter_mut()
                .zip(image)
                .for_each(|(byte, own)| *byte = *own);
            return Ok(());
        }
        if let Some(Some(memory)) = self.memory.get(region as usize) {
            memory.read(offset, data);
        }
        let Some((vectors, table, pba)) = state.config.msix() else {
            return Ok(());
        };
        for (byte, at) in data.iter_mut().zip(offset..) {
            if Self::holds(table, u64::from(vectors) * 16, region, at).is_some() {
                *byte = 0xff;
            } else if let Some(within) = Self::holds(pba, PENDING_BYTES as u64, region, at) {
                *byte = state.interrupts.msix.pending[within as usize];
            }
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.journal
            .note(format!("write {region} {offset:#x} {data:x?}"));
        let mut state = self.access(Operation::Write, region, offset, data.len())?;
        if region == CONFIG_REGION {
            let aftermath = state.config.write(offset as u16, data);
            state.follow_command();
            if aftermath == Aftermath::Reset {
                self.reset_now(&mut state);
            }
            return Ok(());
        }
        let table = state.config.msix();
        for (byte, at) in data.iter().zip(offset..) {
            let in_table = table.is_some_and(|(vectors, table, _)| {
                Self::holds(table, u64::from(vectors) * 16, region, at).is_some()
            });
            if let (Some(Some(memory)), false) = (self.memory.get(region as usize), in_table) {
                memory.write(at, std::slice::from_ref(byte));
            }
        }
        Ok(())
    }

    /// The checks before every access.
    fn access(
        &self,
        operation: Operation,
        region: u32,
        offset: u64,
        size: usize,
    ) -> io::Result<MutexGuard<'_, State>> {
        let state = self.permit(operation)?;
        let errno = |errno| Err(io::Error::from_raw_os_error(errno));
        let Some(Some(info)) = self.regions.get(region as usize) else {
            return errno(libc::EINVAL);
        };
        let end = offset.checked_add(size as u64);
        if end.is_none_or(|end| end > info.size) {
            return errno(libc::EINVAL);
        }
        let memory = region == ROM_REGION || self.memory_bars.get(region as usize) == Some(&true);
        if memory && !state.config.memory_answers() {
            return errno(libc::EIO);
        }
        Ok(state)
    }

    fn permit(&self, operation: Operation) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let next = state
            .refusals
            .iter()
            .position(|(what, _)| *what == operation);
        match next.map(|at| state.refusals.remove(at)) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(state),
        }
    }
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        self.journal.note("close");
    }
}

impl DeviceBackend for FakeDevice {
    fn region(&self, index: u32) -> Option<&RegionInfo> {
        self.regions.get(index as usize)?.as_ref()
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let size = data.len() as u64;
        self.journal
            .note(format!("read {index} {offset:#x} {size}"));
        self.read(index, offset, data)
            .map_err(|source| DeviceError::Region {
                action: "read",
                region: index,
                offset,
                size,
                source,
            })
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.write(index, offset, data)
            .map_err(|source| DeviceError::Region {
                action: "write",
                region: index,
                offset,
                size: data.len() as u64,
                source,
            })
    }

    fn region_map(&self, index: u32, area: RegionArea) -> Result<Arc<dyn HostMemory>, DeviceError> {
        let RegionArea { offset, size } = area;
        self.journal
            .note(format!("mmap {index} {offset:#x} {size:#x}"));
        let refuse = |source| DeviceError::Region {
            action: "map",
            region: index,
            offset,
            size,
            source,
        };
        drop(self.permit(Operation::Map).map_err(refuse)?);
        let invalid = || refuse(io::Error::from_raw_os_error(libc::EINVAL));
        let memory = self.memory.get(index as usize).and_then(Option::as_ref);
        let memory = memory.ok_or_else(invalid)?;
        let part = Mapping::part(memory, offset, size).ok_or_else(invalid)?;
        Ok(Arc::new(part))
    }

    fn irq(&self, index: IrqIndex) -> Option<IrqInfo> {
        let count = match index {
            IrqIndex::Msix => self.vectors,
            IrqIndex::Intx => self.state().config.has_pin().into(),
            IrqIndex::Msi => self.state().interrupts.msi.vectors,
            IrqIndex::Request => 1,
            IrqIndex::Error => 0,
        };
        let no_resize = match index {
            IrqIndex::Msix => self.no_resize,
            _ => true,
        };
        (count > 0).then_some(IrqInfo { count, no_resize })
    }

    fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        events: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        let shape = events.iter().map(|e| if e.is_some() { 'x' } else { '-' });
        let shape: String = shape.collect();
        self.journal
            .note(format!("set_irqs {index:?} {start} {shape}"));
        let count = events.len() as u32;
        let result = self
            .permit(Operation::SetIrqs)
            .and_then(|mut state| state.set_irqs(index, start, events));
        match result {
            Ok(0) => Ok(()),
            Ok(available) => Err(DeviceError::ShortOfVectors {
                index,
                asked: start + count,
                available,
            }),
            Err(source) => Err(DeviceError::Irq {
                index,
                start,
                count,
                source,
            }),
        }
    }

    fn disable_irqs(&self, index: IrqIndex) -> Result<(), DeviceError> {
        self.journal.note(format!("disable_irqs {index:?}"));
        let state = self.permit(Operation::DisableIrqs);
        let mut state = state.map_err(|source| DeviceError::Irq {
            index,
            start: 0,
            count: 0,
            source,
        })?;
        state.interrupts.turn_off(index);
        Ok(())
    }

    fn set_intx_unmask_event(&self, event: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        let shape = if event.is_some() { 'x' } else { '-' };
        self.journal.note(format!("unmask_event {shape}"));
        self.permit(Operation::Unmask)
            .and_then(|mut state| state.interrupts.intx.set_unmask(event))
            .map_err(DeviceError::Unmask)
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        self.journal.note("unmask");
        self.permit(Operation::Unmask)
            .and_then(|mut state| state.interrupts.intx.unmask())
            .map_err(DeviceError::Unmask)
    }

    fn can_reset(&self) -> bool {
        self.can_reset
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.journal.note("reset");
        let mut state = self.permit(Operation::Reset).map_err(DeviceError::Reset)?;
        if !self.can_reset {
            let source = io::Error::from_raw_os_error(libc::ENOTTY);
            return Err(DeviceError::Reset(source));
        }
        self.reset_now(&mut state);
        Ok(())
    }
}

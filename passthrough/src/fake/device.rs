use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::{BarIndex, BarInfo, BarKind, ConfigSpace, Register};

use super::Journal;
use super::config::{Aftermath, FakeConfig};
use super::interrupts::FakeInterrupts;
use super::msix::PENDING_BYTES;
use crate::ports::HostMemory;
use crate::sys::{self, Mapping};
#[cfg(doc)]
use crate::vfio::DeviceBackend;
use crate::vfio::{Affected, HotReset, RegionArea, RegionInfo};

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
    /// [`DeviceBackend::hot_reset_info`] and [`DeviceBackend::hot_reset`].
    HotReset,
    /// [`DeviceBackend::enter_low_power`] and [`DeviceBackend::leave_low_power`].
    LowPower,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: FakeConfig,
    pub(super) interrupts: FakeInterrupts,
    /// The host may suspend it.
    pub(super) low_power: bool,
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
///   device keeps its settings, and so does a hot reset, if all that it hits
///   may be hit;
/// * low power: the host suspends the device at once, and cuts its power, which
///   is a reset. Whatever wakes it finds it in D0.
///
/// Every access and request is noted in the journal, and the drop as `close`.
#[derive(Debug)]
pub struct FakeDevice {
    pub(super) journal: Journal,
    pub(super) regions: Vec<Option<RegionInfo>>,
    pub(super) memory: Vec<Option<Arc<Mapping>>>,
    memory_bars: Vec<bool>,
    rom: Vec<u8>,
    pub(super) vectors: u32,
    pub(super) no_resize: bool,
    pub(super) can_reset: bool,
    pub(super) has_low_power: bool,
    pub(super) hot_reset: Option<HotReset>,
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
            has_low_power: true,
            hot_reset: None,
            state: Mutex::new(State {
                interrupts,
                config,
                low_power: false,
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

    /// With a bus that can be reset, and what that hits.
    #[must_use]
    pub fn with_hot_reset(mut self, affected: &[Affected]) -> Self {
        self.hot_reset = Some(HotReset {
            affected: affected.to_vec(),
        });
        self
    }

    /// As a kernel that can't suspend devices in use (before Linux 6.1).
    #[must_use]
    pub fn without_low_power(mut self) -> Self {
        self.has_low_power = false;
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

    /// Whether the host may suspend it now.
    pub fn is_in_low_power(&self) -> bool {
        self.state().low_power
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reset_now(&self, state: &mut State) {
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

    pub(super) fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
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

    pub(super) fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
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

    pub(super) fn permit(&self, operation: Operation) -> io::Result<MutexGuard<'_, State>> {
        self.journal.step(format_args!("{operation:?}"))?;
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

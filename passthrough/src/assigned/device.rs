use std::sync::Arc;

use devices::pci::{
    BarDecode, BarIndex, BarInfo, Effects, PciAddress, PciFunction, Reach, SettleError,
};
use thiserror::Error;

use super::options::AssignOptions;
use super::posted::PostedTable;
use super::reset::Pending;
use super::rom::{Rom, RomError};
use crate::bar::{Bars, Emulated, pieces};
use crate::config::{self, ConfigError, ConfigView, PowerState, RuleBook, Scope, Subject};
use crate::interrupt::{CountedBackend, InterruptStats, Interrupts};
use crate::iommu::AddressSpace;
use crate::limit::LogLimit;
use crate::ports::{InterruptRouter, MemoryMapper};
use crate::vfio::{DeviceBackend, DeviceError};

/// VFIO's region of config space.
pub(super) const CONFIG_REGION: u32 = 7;
/// Messages of one kind about one device.
const MAX_MESSAGES: u32 = 8;
/// What the guest's command register decides of the device's own.
const HANDED_ON: u16 = config::COMMAND_IO | config::COMMAND_MEMORY | config::COMMAND_BUS_MASTER;

/// Why a device can't be given to a guest.
#[derive(Debug, Error)]
pub enum AssignError {
    /// Its config space can't be shown.
    #[error("device {device} can't be assigned: {reason}")]
    Config {
        /// The device.
        device: PciAddress,
        /// Why not.
        reason: ConfigError,
    },
    /// The ROM that was to replace its own can't be one.
    #[error("device {device} can't have this ROM: {reason}")]
    Rom {
        /// The device.
        device: PciAddress,
        /// Why not.
        reason: RomError,
    },
    /// It can't be accessed.
    #[error("device {device} can't be assigned: it does not answer; see the host's kernel log")]
    Device {
        /// The device.
        device: PciAddress,
        /// What failed.
        #[source]
        source: DeviceError,
    },
}

/// A host device as a function of the guest.
///
/// Config writes only note what they mean for the outside; [`settle`] carries
/// it out, from the present state, in an order in which nothing is reachable
/// that does not answer:
///
/// ```text
///  BARs unmapped -> low power left -> reset -> power up -> command register
///  -> power down -> BARs mapped, or low power entered
/// ```
///
/// A reset, whoever orders it (the guest by a bit of the device, by a way from
/// D3hot to D0, or by the bus above), changes what the guest reads at once:
/// registers have their values after reset, interrupts are off. The device
/// follows in `settle`.
///
/// The guest's bus-master bit reaches the device in `settle`, or at once when
/// it is cleared. A guest that turns decoding off only to size a BAR causes no
/// remapping as long as `settle` isn't called in between.
///
/// When it is dropped, interrupts are off, the device can't reach memory, and
/// its BARs have left the guest.
///
/// [`settle`]: PciFunction::settle
#[derive(Debug)]
pub struct AssignedDevice {
    pub(super) host: PciAddress,
    // Dropped in this order, after `drop` has silenced the device.
    pub(super) posted: Option<PostedTable>,
    pub(super) interrupts: Interrupts,
    pub(super) bars: Bars,
    rom: Option<Rom>,
    pub(super) view: ConfigView,
    /// The device's command register as last written; nothing when the host
    /// may have changed it since.
    pub(super) command: Option<u16>,
    /// The device's power state, likewise.
    pub(super) power: PowerState,
    /// The host may have suspended it below that.
    pub(super) low_power: bool,
    /// Bits of the command register that are the host's, with the pin off.
    pub(super) command_of_host: u16,
    pub(super) pending: Option<Pending>,
    /// Its guest is over: it neither interrupts nor masters the bus.
    pub(super) still: bool,
    /// It was surrendered: nothing of the host's device is left here.
    pub(super) gone: bool,
    /// What its interrupts had cost when it was surrendered.
    pub(super) last_stats: InterruptStats,
    log: LogLimit,
    pub(super) backend: Arc<CountedBackend>,
}

impl AssignedDevice {
    /// Prepares the device at `host`, opened as `backend`, for a guest. Its
    /// interrupts go through `router`, its BARs are mapped by `mapper`, and
    /// other devices in `space` may reach them.
    ///
    /// # Errors
    /// When the device does not answer, is none that a guest can have, or does
    /// not fit the options.
    pub fn new(
        host: PciAddress,
        backend: Arc<dyn DeviceBackend>,
        options: AssignOptions,
        router: Arc<dyn InterruptRouter>,
        mapper: Arc<dyn MemoryMapper>,
        space: Arc<dyn AddressSpace>,
    ) -> Result<Self, AssignError> {
        let AssignOptions { rom, placement } = options;
        let device = host;
        let config_error = |reason| AssignError::Config { device, reason };
        let device_error = |source| AssignError::Device { device, source };
        let counted = Arc::new(CountedBackend::new(backend));
        let backend = Arc::clone(&counted) as Arc<dyn DeviceBackend>;
        let rom = Rom::new(host, rom, &*backend);
        let rom = rom.map_err(|reason| AssignError::Rom { device, reason })?;
        let snapshot = config::snapshot(&*backend).map_err(device_error)?;
        let infos = config::discover_bars(&*backend, &snapshot).map_err(config_error)?;
        let mut shown = infos.clone();
        shown.extend(rom.as_ref().map(Rom::info));
        let mut interrupts = Interrupts::new(host, &backend, &*router, &snapshot);
        let book = RuleBook::new(&Subject {
            snapshot: &snapshot,
            bars: &shown,
            placement,
            can_reset: backend.can_reset(),
            deliverable: interrupts.deliverable(&*backend),
        });
        let view = ConfigView::new(&snapshot, book.map_err(config_error)?);
        interrupts.add_messages(host, &backend, &router, &view);
        let posted = view.book.msix.as_ref();
        let posted = posted.map(|table| PostedTable::new(Arc::clone(&mapper), table));
        let mut bars = Bars::new(host, mapper, space);
        for info in infos {
            // Also where no interrupt can be delivered: the table is never the
            // guest's to write.
            bars.add(info, &*backend, view.book.msix.as_ref());
        }
        // While its pin is not delivered, the device may not raise it: on a
        // shared line it would disturb the host.
        let command_of_host =
            snapshot.u16(config::COMMAND) & !HANDED_ON | config::COMMAND_INTX_DISABLE;
        let mut device = Self {
            host,
            posted,
            interrupts,
            bars,
            rom,
            view,
            command: None,
            power: PowerState::D0,
            low_power: false,
            command_of_host,
            pending: None,
            still: false,
            gone: false,
            last_stats: InterruptStats::default(),
            log: LogLimit::new(MAX_MESSAGES),
            backend: counted,
        };
        device
            .write_register(config::COMMAND, command_of_host)
            .map_err(device_error)?;
        device.command = Some(command_of_host);
        Ok(device)
    }

    /// The device's address on the host.
    pub fn host_address(&self) -> PciAddress {
        self.host
    }

    fn guest_command(&self) -> u16 {
        self.view.space().u16(config::COMMAND)
    }

    pub(super) fn write_register(&self, offset: u16, value: u16) -> Result<(), DeviceError> {
        let bytes = value.to_le_bytes();
        self.backend
            .region_write(CONFIG_REGION, offset.into(), &bytes)
    }

    /// Writes the device's command register if it has another value. Says
    /// whether it has this one now.
    pub(super) fn set_command(&mut self, value: u16) -> bool {
        if self.command == Some(value) {
            return true;
        }
        match self.write_register(config::COMMAND, value) {
            Ok(()) => {
                self.command = Some(value);
                true
            }
            Err(error) => {
                self.report("does not take its command register", &error);
                false
            }
        }
    }

    pub(super) fn report(&mut self, what: &str, error: &DeviceError) {
        if let Some(error) = self.log.error(error) {
            log::error!("{}: the device {what}: {error}", self.host);
        }
    }
}

impl PciFunction for AssignedDevice {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.gone {
            return data.fill(0xff);
        }
        self.show_interrupts(offset, data.len());
        self.view.read(&*self.backend, offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        if self.gone {
            return Effects::NONE;
        }
        let before = (self.guest_command(), self.guest_power());
        let decoded = self.decoded();
        self.view.write(&*self.backend, offset, data);
        let is_reset = if self.view.book.asks_for_reset(offset, data) {
            self.begin_reset(Scope::Function, Pending::Reset);
            true
        } else {
            self.follow_power(before.1)
        };
        let remap = self.follow_interrupts();
        let command = self.guest_command();
        let mastered = |command: u16| command & config::COMMAND_BUS_MASTER != 0;
        if mastered(before.0)
            && !mastered(command)
            && let Some(now) = self.command
        {
            // Only less can be reached from now on: nothing to wait for.
            self.set_command(now & !config::COMMAND_BUS_MASTER);
        }
        Effects {
            decoding: (before.0 ^ command) & (config::COMMAND_IO | config::COMMAND_MEMORY) != 0
                || is_reset
                || remap
                || before.1 != self.guest_power()
                || decoded != self.decoded(),
            bus_master: !mastered(before.0) && mastered(command),
        }
    }

    fn bars(&self) -> Vec<BarInfo> {
        let rom = self.rom.as_ref().map(Rom::info);
        self.bars.infos().chain(rom).collect()
    }

    fn decoded(&self) -> Vec<BarDecode> {
        // Outside of D0 a function answers config space only (PCIe 6.0 §5.3.1).
        if self.gone || self.guest_power() != PowerState::D0 {
            return Vec::new();
        }
        let command = self.guest_command();
        let decode = |bar: BarInfo| {
            let enable = if bar.kind.is_io() {
                config::COMMAND_IO
            } else {
                config::COMMAND_MEMORY
            };
            let address = bar.address(self.view.space())?;
            (command & enable != 0).then_some(BarDecode { bar, address })
        };
        self.bars().into_iter().filter_map(decode).collect()
    }

    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if self.gone {
            return;
        }
        if bar == BarIndex::ROM {
            if let Some(rom) = &mut self.rom {
                rom.read(&*self.backend, offset, data);
            }
            return;
        }
        self.count_trap(bar, offset);
        let Some(emulated) = self.bars.emulated(bar) else {
            return;
        };
        let mut rest = data;
        for piece in pieces(emulated, offset, rest.len()) {
            let (now, later) = rest.split_at_mut(piece.size);
            rest = later;
            match (piece.emulated, self.interrupts.msix()) {
                (None, _) => {
                    let region = bar.get().into();
                    if let Err(error) = self.backend.region_read(region, piece.offset, now) {
                        log::debug!("{}: {error}", self.host);
                        now.fill(0xff);
                    }
                }
                (Some(Emulated::Table), Some(msix)) => msix.table_read(piece.offset, now),
                (Some(Emulated::Pba), Some(msix)) => msix.pba_read(piece.offset, now),
                (Some(_), None) => {}
            }
        }
        self.interrupts.acknowledge();
    }

    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        if self.gone {
            return;
        }
        self.count_trap(bar, offset);
        let Some(emulated) = self.bars.emulated(bar) else {
            return;
        };
        let mut rest = data;
        for piece in pieces(emulated, offset, data.len()) {
            let (now, later) = rest.split_at(piece.size);
            rest = later;
            match (piece.emulated, self.interrupts.msix_mut()) {
                (None, _) => {
                    let region = bar.get().into();
                    if let Err(error) = self.backend.region_write(region, piece.offset, now) {
                        log::debug!("{}: {error}", self.host);
                    }
                }
                (Some(Emulated::Table), Some(msix)) => msix.table_write(piece.offset, now),
                // The pending bits are read-only.
                (Some(_), _) => {}
            }
        }
        self.interrupts.acknowledge();
    }

    fn reset(&mut self) -> Effects {
        if self.gone {
            return Effects::NONE;
        }
        self.begin_reset(Scope::Bus, Pending::Reset);
        Effects {
            decoding: true,
            bus_master: false,
        }
    }

    fn release(&mut self, answering: &[BarDecode]) {
        self.bars.unmap_stale(answering);
        if let Some(posted) = &mut self.posted {
            posted.answers(answering);
        }
    }

    fn settle(&mut self, reach: &Reach) -> Result<(), SettleError> {
        if self.gone {
            return Ok(());
        }
        self.bars.unmap_stale(self.mappable(reach));
        if let Some(posted) = &mut self.posted {
            posted.answers(&reach.answering);
        }
        if self.pending.is_some() || self.guest_power() != PowerState::D3Hot {
            self.leave_low_power();
        }
        if let Some(pending) = self.pending.take() {
            self.carry_out(pending);
        }
        let power = self.guest_power();
        if power < self.power {
            self.set_power(power);
        }
        let mut handed_on = self.guest_command() & HANDED_ON;
        if !reach.bus_master {
            handed_on &= !config::COMMAND_BUS_MASTER;
        }
        let answers = self.set_command(self.command_of_host() | handed_on);
        if power > self.power {
            self.set_power(power);
        }
        // A device that has just woken up, or been reset, can interrupt again.
        self.follow_interrupts();
        if answers && self.power == PowerState::D0 && !self.low_power {
            self.bars.map_decoded(self.mappable(reach));
        }
        self.enter_low_power();
        Ok(())
    }
}

impl Drop for AssignedDevice {
    fn drop(&mut self) {
        self.quiet();
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;

use std::sync::Arc;

use devices::pci::{
    BarDecode, BarIndex, BarInfo, Effects, PciAddress, PciFunction, Reach, SettleError,
};
use thiserror::Error;

use crate::bar::{Bars, Emulated, pieces};
use crate::config::{self, ConfigError, ConfigView, PowerState};
use crate::interrupt::{CountedBackend, Interrupts, MsixInterrupts};
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
///  BARs unmapped -> reset -> power up -> command register -> power down -> BARs mapped
/// ```
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
    pub(super) interrupts: Interrupts,
    pub(super) bars: Bars,
    pub(super) view: ConfigView,
    /// The device's command register and power state, as last written.
    pub(super) command: u16,
    pub(super) power: PowerState,
    /// Bits of the command register that are the host's, with the pin off.
    pub(super) command_of_host: u16,
    reset_pending: bool,
    log: LogLimit,
    pub(super) backend: Arc<CountedBackend>,
}

impl AssignedDevice {
    /// Prepares the device at `host`, opened as `backend`, for a guest. Its
    /// interrupts go through `router`, its BARs are mapped by `mapper`, and
    /// other devices in `space` may reach them.
    ///
    /// # Errors
    /// When the device does not answer, or is none that a guest can have.
    pub fn new(
        host: PciAddress,
        backend: Arc<dyn DeviceBackend>,
        router: Arc<dyn InterruptRouter>,
        mapper: Arc<dyn MemoryMapper>,
        space: Arc<dyn AddressSpace>,
    ) -> Result<Self, AssignError> {
        let config_error = |reason| AssignError::Config {
            device: host,
            reason,
        };
        let device_error = |source| AssignError::Device {
            device: host,
            source,
        };
        let counted = Arc::new(CountedBackend::new(backend));
        let backend = Arc::clone(&counted) as Arc<dyn DeviceBackend>;
        let snapshot = config::snapshot(&*backend).map_err(device_error)?;
        let infos = config::discover_bars(&*backend, &snapshot).map_err(config_error)?;
        let mut interrupts = Interrupts::new(host, &backend, &*router, &snapshot);
        let deliverable = interrupts.deliverable(&*backend);
        let view = ConfigView::new(&snapshot, &infos, backend.can_reset(), deliverable)
            .map_err(config_error)?;
        interrupts.add_messages(host, &backend, &router, &view);
        let mut bars = Bars::new(host, mapper, space);
        for info in infos {
            let msix = interrupts.msix().map(MsixInterrupts::capability);
            bars.add(info, &*backend, msix);
        }
        let mut device = Self {
            host,
            interrupts,
            bars,
            view,
            command: snapshot.u16(config::COMMAND),
            power: PowerState::D0,
            // While its pin is not delivered, the device may not raise it: on
            // a shared line it would disturb the host.
            command_of_host: snapshot.u16(config::COMMAND) & !HANDED_ON
                | config::COMMAND_INTX_DISABLE,
            reset_pending: false,
            log: LogLimit::new(MAX_MESSAGES),
            backend: counted,
        };
        let quiet = device.command_of_host;
        device
            .write_register(config::COMMAND, quiet)
            .map_err(device_error)?;
        device.command = quiet;
        Ok(device)
    }

    /// The device's address on the host.
    pub fn host_address(&self) -> PciAddress {
        self.host
    }

    fn guest_command(&self) -> u16 {
        self.view.space().u16(config::COMMAND)
    }

    pub(super) fn guest_power(&self) -> PowerState {
        let control = self.view.power.map(|at| at + config::POWER_CONTROL);
        control.map_or(PowerState::D0, |at| {
            PowerState::from_control(self.view.space().u16(at))
        })
    }

    fn write_register(&self, offset: u16, value: u16) -> Result<(), DeviceError> {
        let bytes = value.to_le_bytes();
        self.backend
            .region_write(CONFIG_REGION, offset.into(), &bytes)
    }

    /// Writes the device's command register if it has another value. Says
    /// whether it has this one now.
    pub(super) fn set_command(&mut self, value: u16) -> bool {
        if self.command == value {
            return true;
        }
        match self.write_register(config::COMMAND, value) {
            Ok(()) => {
                self.command = value;
                true
            }
            Err(error) => {
                self.report("does not take its command register", &error);
                false
            }
        }
    }

    fn set_power(&mut self, state: PowerState) {
        let Some(at) = self.view.power else { return };
        match self.write_register(at + config::POWER_CONTROL, state.to_control()) {
            Ok(()) => self.power = state,
            Err(error) => self.report("does not change its power state", &error),
        }
    }

    /// Carries out the guest's reset. Config space has its values after reset
    /// already, and interrupts are off.
    fn carry_out_reset(&mut self) {
        // The kernel restores the command register after the reset: make it
        // one with which the device stays silent.
        self.set_command(self.command_of_host);
        match self.backend.reset() {
            Ok(()) => log::debug!("{}: reset by the guest", self.host),
            Err(error) => self.report("was not reset for the guest", &error),
        }
        self.power = PowerState::D0;
    }

    /// The guest asked for a function level reset (PCIe 6.0 §6.6.2).
    fn begin_reset(&mut self) {
        self.reset_interrupts();
        self.view.reset();
        self.reset_pending = true;
    }

    /// Whether a config write sets the bit that asks for a reset.
    fn asks_for_reset(&self, offset: u16, data: &[u8]) -> bool {
        let Some((at, true)) = self.view.express else {
            return false;
        };
        let [_, mask] = config::FUNCTION_LEVEL_RESET.to_le_bytes();
        let upper = at + config::DEVICE_CONTROL + 1;
        let index = upper.checked_sub(offset).map(usize::from);
        index
            .and_then(|index| data.get(index))
            .is_some_and(|byte| byte & mask != 0)
    }

    /// A state that the device has not leaves the old one in place.
    fn check_power(&mut self, before: PowerState) {
        let Some(at) = self.view.power else { return };
        let space = self.view.space_mut();
        let control = space.u16(at + config::POWER_CONTROL);
        if !PowerState::from_control(control).is_supported(space.u16(at + 2)) {
            let old = control & !PowerState::D3Hot.to_control() | before.to_control();
            space.set(at + config::POWER_CONTROL, &old.to_le_bytes());
        }
    }

    fn report(&mut self, what: &str, error: &DeviceError) {
        if let Some(end) = self.log.admit() {
            let cause = std::error::Error::source(error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            log::error!("{}: the device {what}: {error}{cause}{end}", self.host);
        }
    }
}

impl PciFunction for AssignedDevice {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.show_interrupts(offset, data.len());
        self.view.read(&*self.backend, offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        let before = (self.guest_command(), self.guest_power());
        let decoded = self.decoded();
        self.view.write(&*self.backend, offset, data);
        self.check_power(before.1);

        if self.asks_for_reset(offset, data) {
            self.begin_reset();
            return Effects {
                decoding: true,
                bus_master: false,
            };
        }
        let remap = self.follow_interrupts();
        let command = self.guest_command();
        let mastered = |command: u16| command & config::COMMAND_BUS_MASTER != 0;
        if mastered(before.0) && !mastered(command) {
            // Only less can be reached from now on: nothing to wait for.
            self.set_command(self.command & !config::COMMAND_BUS_MASTER);
        }
        Effects {
            decoding: (before.0 ^ command) & (config::COMMAND_IO | config::COMMAND_MEMORY) != 0
                || before.1 != self.guest_power()
                || remap
                || decoded != self.decoded(),
            bus_master: !mastered(before.0) && mastered(command),
        }
    }

    fn bars(&self) -> Vec<BarInfo> {
        self.bars.infos().collect()
    }

    fn decoded(&self) -> Vec<BarDecode> {
        // In D3hot a function answers config space only (PCI PM 1.2 §5.4.1).
        if self.guest_power() == PowerState::D3Hot {
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
        self.bars.infos().filter_map(decode).collect()
    }

    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.count_trap(bar, offset);
        data.fill(0xff);
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
        self.begin_reset();
        Effects {
            decoding: true,
            bus_master: false,
        }
    }

    fn release(&mut self, answering: &[BarDecode]) {
        self.bars.unmap_stale(answering);
    }

    fn settle(&mut self, reach: &Reach) -> Result<(), SettleError> {
        self.bars.unmap_stale(self.mappable(reach));
        if std::mem::take(&mut self.reset_pending) {
            self.carry_out_reset();
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
        // A device that has just woken up can interrupt again.
        self.follow_interrupts();
        if answers {
            self.bars.map_decoded(self.mappable(reach));
        }
        Ok(())
    }
}

impl Drop for AssignedDevice {
    fn drop(&mut self) {
        // Interrupts off, then DMA off, then the BARs out of the guest: fields
        // that are dropped after this have nothing left to do.
        self.interrupts.shut_down();
        self.set_command(self.command & !config::COMMAND_BUS_MASTER);
        self.bars.unmap_stale(&[]);
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;

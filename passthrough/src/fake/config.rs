use std::collections::BTreeMap;

use devices::pci::{
    BarInfo, ConfigSpace, InterruptPin, MsiCapability, Register, capabilities,
    extended_capabilities,
};

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS: u16 = 0x06;
const STATUS_INTERRUPT: u16 = 1 << 3;
const INTERRUPT_PIN: u16 = 0x3d;
const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
const DEVCAP_FLR: u32 = 1 << 28;
const POWER_STATE: u16 = 3;
const NO_SOFT_RESET: u16 = 1 << 3;
const D1_AND_D2: [u16; 4] = [0, 1 << 9, 1 << 10, 0];
/// A vital product data access is a write, or has been carried out if it is a
/// read.
const PRODUCT_DATA_FLAG: u16 = 1 << 15;

/// What a config write did to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aftermath {
    /// Nothing beyond config space.
    Nothing,
    /// It was reset, by an order or on the way from D3hot to D0.
    Reset,
}

/// Config space as the kernel lets a user see and write it
/// (drivers/vfio/pci/vfio_pci_config.c).
#[derive(Debug)]
pub(super) struct FakeConfig {
    space: ConfigSpace,
    power: Option<u16>,
    express: Option<u16>,
    msi: Option<u16>,
    msix: Option<u16>,
    advanced: Option<u16>,
    product_data: Option<u16>,
    /// What the product data holds, by address.
    products: BTreeMap<u16, u32>,
    /// The command register on the way down to D3hot.
    saved: Option<u16>,
}

impl FakeConfig {
    /// A device whose config space reads as `values`. BAR registers are the
    /// kernel's own, so that sizing them works.
    pub(super) fn new(values: &ConfigSpace, bars: &[BarInfo]) -> Self {
        let mut bytes = [0; 4096];
        values.read(0, &mut bytes);
        let mut config = Self {
            space: ConfigSpace::new(),
            power: None,
            express: None,
            msi: None,
            msix: None,
            advanced: None,
            product_data: None,
            products: BTreeMap::new(),
            saved: None,
        };
        config.space.set(0, &bytes);
        // Between capabilities everything is raw.
        for at in 0x40..0x100 {
            config.permit(at, 1, 0xff);
        }
        config.permit(COMMAND, 2, 0x0547);
        config.permit(0x0c, 2, 0xffff);
        config.permit(0x3c, 1, 0xff);
        for bar in bars {
            bar.define(&mut config.space);
        }
        let list: Vec<_> = capabilities(|at, data| values.read(at, data)).collect();
        for capability in list {
            config.permit_capability(capability.id, capability.offset);
        }
        let list: Vec<_> = extended_capabilities(|at, data| values.read(at, data)).collect();
        for capability in list {
            config.permit_extended(capability.id, capability.offset);
        }
        config
    }

    fn permit(&mut self, offset: u16, size: u8, writable: u32) {
        let mut value = [0; 4];
        self.space.read(offset, &mut value[..usize::from(size)]);
        let value = u32::from_le_bytes(value);
        self.space
            .define(Register::writable(offset, size, value, writable));
    }

    fn permit_capability(&mut self, id: u8, at: u16) {
        let close = |config: &mut Self, size: u16| {
            for offset in at..at.saturating_add(size) {
                config.permit(offset, 1, 0);
            }
        };
        match id {
            0x01 => {
                close(self, 8);
                self.permit(at + 4, 2, 3);
                self.power = Some(at);
            }
            0x03 => {
                close(self, 2);
                self.permit(at + 2, 2, 0xffff);
                self.permit(at + 4, 4, u32::MAX);
                self.product_data = Some(at);
            }
            0x05 => {
                let size = MsiCapability::from_control(self.space.u16(at + 2)).size();
                close(self, size);
                self.msi = Some(at);
            }
            0x09 => close(self, 3),
            0x10 => {
                close(self, 0x3c);
                self.permit(at + 0x08, 2, 0xfdff);
                self.permit(at + 0x28, 2, 0xffdf);
                self.express = Some(at);
            }
            0x11 => {
                close(self, 12);
                self.msix = Some(at);
            }
            0x13 => {
                close(self, 6);
                self.permit(at + 4, 1, 1);
                self.advanced = Some(at);
            }
            _ => {}
        }
    }

    fn permit_extended(&mut self, id: u16, at: u16) {
        match id {
            0x01 => {
                for register in (0x04..0x1c).step_by(4) {
                    self.permit(at.saturating_add(register), 4, u32::MAX);
                }
            }
            0x0b | 0x23 => {
                let size = (self.space.u32(at.saturating_add(4)) >> 20) as u16;
                for offset in at.saturating_add(8)..at.saturating_add(size) {
                    self.permit(offset, 1, 0xff);
                }
            }
            _ => {}
        }
    }

    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    /// Sets bytes as the hardware does.
    pub(super) fn set(&mut self, offset: u16, data: &[u8]) {
        self.space.set(offset, data);
    }

    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> Aftermath {
        let state = self.power_state();
        self.space.write(offset, data);
        let touches = |at: u16| {
            (usize::from(offset)..usize::from(offset) + data.len()).contains(&usize::from(at))
        };
        if let Some(at) = self.product_data
            && touches(at + 3)
        {
            self.access_products(at);
        }
        let (woken, ordered) = (self.follow_power(state), self.take_order());
        match woken || ordered {
            true => Aftermath::Reset,
            false => Aftermath::Nothing,
        }
    }

    /// Carries out an access to the product data, and says so by the flag.
    fn access_products(&mut self, at: u16) {
        let address = self.space.u16(at + 2);
        let place = address & !PRODUCT_DATA_FLAG;
        if address & PRODUCT_DATA_FLAG == 0 {
            let word = self.products.get(&place).copied().unwrap_or(0);
            self.space.set(at + 4, &word.to_le_bytes());
        } else {
            self.products.insert(place, self.space.u32(at + 4));
        }
        let done = (address ^ PRODUCT_DATA_FLAG).to_le_bytes();
        self.space.set(at + 2, &done);
    }

    fn power_state(&self) -> u16 {
        self.power
            .map_or(0, |at| self.space.u16(at + 4) & POWER_STATE)
    }

    /// Changes the power state, from `before`. Says whether that reset the
    /// device. What the kernel saved on the way down it restores then.
    fn follow_power(&mut self, before: u16) -> bool {
        let Some(at) = self.power else { return false };
        let control = self.space.u16(at + 4);
        let now = control & POWER_STATE;
        let needed = D1_AND_D2[usize::from(now)];
        if self.space.u16(at + 2) & needed != needed {
            let old = (control & !POWER_STATE | before).to_le_bytes();
            self.space.set(at + 4, &old);
            return false;
        }
        if now == 3 && before != 3 && control & NO_SOFT_RESET == 0 {
            self.saved = Some(self.space.u16(COMMAND));
        }
        before == 3 && now == 0 && self.restore()
    }

    /// Whether there was something to restore.
    fn restore(&mut self) -> bool {
        let saved = self.saved.take();
        if let Some(command) = saved {
            self.space.set(COMMAND, &command.to_le_bytes());
        }
        saved.is_some()
    }

    /// Whether the device was ordered to reset. The bits read as zero.
    fn take_order(&mut self) -> bool {
        let mut ordered = false;
        if let Some(at) = self.express {
            let control = self.space.u16(at + 8);
            let cleared = (control & !FUNCTION_LEVEL_RESET).to_le_bytes();
            self.space.set(at + 8, &cleared);
            let can = self.space.u32(at + 4) & DEVCAP_FLR != 0;
            ordered |= can && control & FUNCTION_LEVEL_RESET != 0;
        }
        if let Some(at) = self.advanced {
            let control = self.space.u8(at + 4);
            self.space.set(at + 4, &[control & !1]);
            ordered |= self.space.u8(at + 3) & 3 == 3 && control & 1 != 0;
        }
        ordered
    }

    /// A reset wakes the device; the kernel restores the other registers.
    pub(super) fn reset(&mut self) {
        self.restore();
        if let Some(at) = self.power {
            let control = self.space.u16(at + 4) & !POWER_STATE;
            self.space.set(at + 4, &control.to_le_bytes());
        }
    }

    /// Whether memory accesses reach the device.
    pub(super) fn memory_answers(&self) -> bool {
        let asleep = self.power_state() == 3;
        self.space.u16(COMMAND) & COMMAND_MEMORY != 0 && !asleep
    }

    /// Whether the device may send requests.
    pub(super) fn is_bus_master(&self) -> bool {
        self.space.u16(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Whether the user turned the interrupt pin off.
    pub(super) fn intx_is_disabled(&self) -> bool {
        self.space.u16(COMMAND) & COMMAND_INTX_DISABLE != 0
    }

    /// Whether the function has an interrupt pin.
    pub(super) fn has_pin(&self) -> bool {
        InterruptPin::from_register(self.space.u8(INTERRUPT_PIN)).is_some()
    }

    /// Shows whether the device asserts its pin.
    pub(super) fn show_interrupt(&mut self, asserted: bool) {
        let mut status = self.space.u16(STATUS) & !STATUS_INTERRUPT;
        if asserted {
            status |= STATUS_INTERRUPT;
        }
        self.space.set(STATUS, &status.to_le_bytes());
    }

    /// How many MSI vectors the function has.
    pub(super) fn msi_vectors(&self) -> u32 {
        let control = self.msi.map(|at| self.space.u16(at + 2));
        control.map_or(0, |control| {
            MsiCapability::from_control(control).vectors().into()
        })
    }

    /// Shows the pending bits of MSI, where there are any.
    pub(super) fn show_msi_pending(&mut self, pending: u32) {
        let Some(at) = self.msi else { return };
        let capability = MsiCapability::from_control(self.space.u16(at + 2));
        if let Some(offset) = capability.pending() {
            self.space.set(at + offset, &pending.to_le_bytes());
        }
    }

    /// Vectors, table pointer and pending bits pointer of MSI-X.
    pub(super) fn msix(&self) -> Option<(u16, u32, u32)> {
        let at = self.msix?;
        let vectors = (self.space.u16(at + 2) & 0x7ff) + 1;
        Some((vectors, self.space.u32(at + 4), self.space.u32(at + 8)))
    }
}

//! The two ways by which a guest reaches config space.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::address::PciAddress;
use super::bar::{BarIndex, BarInfo};
use super::config::CONFIG_SPACE_SIZE;
use super::function::FunctionHandle;
use super::root_complex::{RootComplex, lock};
use crate::bus::BusDevice;

/// Where accesses to config space arrive: a root complex, or what stands before one.
pub trait ConfigTarget: Send + Sync + Debug {
    /// Answers a read from `register` on, of the function that the guest finds at
    /// `address`; where there is none, with all ones.
    fn config_read(&self, address: PciAddress, register: u16, data: &mut [u8]);

    /// Carries out a write.
    fn config_write(&self, address: PciAddress, register: u16, data: &[u8]);
}

impl ConfigTarget for RootComplex {
    fn config_read(&self, address: PciAddress, register: u16, data: &mut [u8]) {
        Self::config_read(self, address, register, data);
    }

    fn config_write(&self, address: PciAddress, register: u16, data: &[u8]) {
        Self::config_write(self, address, register, data);
    }
}

/// Memory-mapped config space (PCIe 6.0 §7.2.2), for the buses 0 to N and no
/// further: 1 MiB a bus. An access past the end of a function's 4 KiB does not
/// reach the next function.
#[derive(Debug)]
pub struct Ecam {
    root: Arc<dyn ConfigTarget>,
    last_bus: u8,
}

impl Ecam {
    /// Config space of `root`'s buses 0 to `last_bus`.
    pub fn new(root: Arc<dyn ConfigTarget>, last_bus: u8) -> Self {
        Self { root, last_bus }
    }

    /// Bytes of address space that it answers.
    pub fn size(&self) -> u64 {
        (u64::from(self.last_bus) + 1) << 20
    }

    /// Bus in bits 27:20, device and function in 19:12, register in 11:0.
    fn decode(&self, offset: u64) -> Option<(PciAddress, u16)> {
        if offset >= self.size() {
            return None;
        }
        let id = u16::try_from(offset >> 12).ok()?;
        let register = (offset % CONFIG_SPACE_SIZE as u64) as u16;
        Some((PciAddress::from_requester_id(id), register))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.decode(offset) {
            Some((address, register)) => self.root.config_read(address, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((address, register)) = self.decode(offset) {
            self.root.config_write(address, register, data);
        }
    }
}

/// CONFIG_ADDRESS: accesses to CONFIG_DATA are config accesses.
const ENABLE: u32 = 1 << 31;
/// The bits of CONFIG_ADDRESS that exist: enable, bus, device, function, register.
const IMPLEMENTED: u32 = ENABLE | 0x00ff_fffc;

/// The ports CONFIG_ADDRESS and CONFIG_DATA (PCI 3.0 §3.2.2.3.2). They reach
/// the first 256 bytes of each function.
///
/// Only a doubleword access reaches CONFIG_ADDRESS. A smaller one, such as to
/// the reset control port 0xcf9 that chipsets have there, is no config access:
/// it reads as all ones.
#[derive(Debug)]
pub struct ConfigPorts {
    root: Arc<dyn ConfigTarget>,
    /// One register for all vCPUs; the guest keeps its accesses in order.
    address: AtomicU32,
}

impl ConfigPorts {
    /// Where the block stands on every PC.
    pub const BASE: u64 = 0xcf8;
    /// CONFIG_DATA's first port, from the start of the block: all before it is
    /// CONFIG_ADDRESS.
    pub const DATA: u64 = 4;
    /// Ports in the block.
    pub const SIZE: u64 = 8;

    /// The ports to `root`'s config space.
    pub fn new(root: Arc<dyn ConfigTarget>) -> Self {
        Self {
            root,
            address: AtomicU32::new(0),
        }
    }

    /// What CONFIG_DATA leads to at `offset` from the block's start.
    fn target(&self, offset: u64) -> Option<(PciAddress, u16)> {
        let address = self.address.load(Ordering::Acquire);
        if address & ENABLE == 0 {
            return None;
        }
        let register = (address & 0xfc) as u16 | (offset & 3) as u16;
        let id = (address >> 8) as u16;
        Some((PciAddress::from_requester_id(id), register))
    }
}

/// The part of an access of `length` bytes at `offset` that hits CONFIG_DATA.
fn data_part(offset: u64, length: usize) -> Option<(u64, std::ops::Range<usize>)> {
    let skip = usize::try_from(ConfigPorts::DATA.saturating_sub(offset)).ok()?;
    let first = offset.max(ConfigPorts::DATA);
    let room = usize::try_from(ConfigPorts::SIZE.checked_sub(first)?).ok()?;
    let end = length.min(skip.checked_add(room)?);
    (skip < end).then_some((first, skip..end))
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Ok(register) = <&mut [u8; 4]>::try_from(&mut *data)
        {
            *register = self.address.load(Ordering::Acquire).to_le_bytes();
            return;
        }
        data.fill(0xff);
        if let Some((port, range)) = data_part(offset, data.len())
            && let Some((address, register)) = self.target(port)
            && let Some(part) = data.get_mut(range)
        {
            self.root.config_read(address, register, part);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0
            && let Ok(register) = <[u8; 4]>::try_from(data)
        {
            let value = u32::from_le_bytes(register) & IMPLEMENTED;
            self.address.store(value, Ordering::Release);
            return;
        }
        if let Some((port, range)) = data_part(offset, data.len())
            && let Some((address, register)) = self.target(port)
            && let Some(part) = data.get(range)
        {
            self.root.config_write(address, register, part);
        }
    }
}

/// A BAR on the bus: what is not mapped straight into the guest arrives here.
///
/// The monitor puts it on the bus where [`super::PciFunction::decoded`] says.
#[derive(Debug)]
pub struct BarAccess {
    function: FunctionHandle,
    bar: BarInfo,
}

impl BarAccess {
    /// Access to `bar` of `function`.
    pub fn new(function: FunctionHandle, bar: BarInfo) -> Self {
        Self { function, bar }
    }

    /// Which BAR it is.
    pub fn index(&self) -> BarIndex {
        self.bar.index
    }

    /// Whether the access lies inside the BAR, as functions may rely on.
    fn holds(&self, offset: u64, length: usize) -> bool {
        self.bar
            .size
            .checked_sub(offset)
            .is_some_and(|room| length as u64 <= room)
    }
}

impl BusDevice for BarAccess {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if self.holds(offset, data.len()) {
            lock(&self.function).bar_read(self.bar.index, offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.holds(offset, data.len()) {
            lock(&self.function).bar_write(self.bar.index, offset, data);
        }
    }
}

#[cfg(test)]
#[path = "access_test.rs"]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Arc, MutexGuard, PoisonError, RwLock};

use thiserror::Error;

use super::address::PciAddress;
use super::config::CONFIG_SPACE_SIZE;
use super::function::{Effects, FunctionHandle, PciFunction};

/// The header type register, in the first 64 bytes of every kind of header.
const HEADER_TYPE: u16 = 0x0e;
/// Set in every function of a device that has more than one (PCI 3.0 §6.2.1).
const MULTI_FUNCTION: u8 = 0x80;

/// Carries out what a config write changed beyond the function: the embedding
/// monitor's books of decoded addresses and the DMA map.
///
/// Called by the vCPU that wrote, with no lock held, before the guest goes on.
/// Ends with [`PciFunction::settle`]. Two vCPUs that write to one function may
/// be in here at once: work from what the function says now.
pub trait EffectSink: Send + Sync + Debug {
    /// Brings the monitor in line with `function` at `address`.
    fn apply(&self, address: PciAddress, function: &FunctionHandle, effects: Effects);
}

/// Why a function can't stand where it was to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TopologyError {
    /// The root complex has one segment.
    #[error("cannot add {0}: the guest has only segment 0000")]
    NoSuchSegment(PciAddress),
    /// No bridge leads to the bus.
    #[error("cannot add {0}: no bridge leads to its bus; use bus 00")]
    NoSuchBus(PciAddress),
    /// Something is there already.
    #[error("cannot add {0}: the address is taken; choose a free one")]
    Taken(PciAddress),
    /// Guests look at function 0 first and skip the device without it
    /// (PCI 3.0 §6.2.1).
    #[error("cannot add {0}: its device has no function 0 yet, so no guest would look for it")]
    NoFunctionZero(PciAddress),
}

/// The guest's PCI functions, by address.
///
/// All functions stand on bus 0 of segment 0 for now. Whether a device has
/// several functions is the topology's business: the multi-function bit of the
/// header type is put in here, whatever the function itself says, since an
/// assigned function often comes without its siblings.
///
/// Lock order: the map, then nothing. The map's lock is let go before a
/// function is called, the function's before the effects are applied.
#[derive(Debug)]
pub struct RootComplex {
    functions: RwLock<BTreeMap<PciAddress, FunctionHandle>>,
    effects: Arc<dyn EffectSink>,
}

impl RootComplex {
    /// A root complex without functions, that hands effects to `effects`.
    pub fn new(effects: Arc<dyn EffectSink>) -> Self {
        Self {
            functions: RwLock::default(),
            effects,
        }
    }

    /// Puts a function in its place. Function 0 of a device goes first.
    ///
    /// # Errors
    /// See [`TopologyError`].
    pub fn add(&self, address: PciAddress, function: FunctionHandle) -> Result<(), TopologyError> {
        if address.segment() != 0 {
            return Err(TopologyError::NoSuchSegment(address));
        }
        if address.bus() != 0 {
            return Err(TopologyError::NoSuchBus(address));
        }
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if functions.contains_key(&address) {
            return Err(TopologyError::Taken(address));
        }
        if address.function() != 0 && !functions.contains_key(&of_device(address, 0)) {
            return Err(TopologyError::NoFunctionZero(address));
        }
        functions.insert(address, function);
        Ok(())
    }

    /// The function at `address`.
    pub fn function(&self, address: PciAddress) -> Option<FunctionHandle> {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&address)
            .map(Arc::clone)
    }

    /// All functions, in ascending order of their addresses.
    pub fn functions(&self) -> Vec<(PciAddress, FunctionHandle)> {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(address, function)| (*address, Arc::clone(function)))
            .collect()
    }

    /// Reads config space at `offset`.
    ///
    /// Reads as all ones: a function that is absent (PCIe 6.0 §2.3.1), and
    /// what lies past the end of the 4 KiB. What happens to an access across
    /// doublewords is left open by PCIe 6.0 §7.2.2; here it is cut into
    /// aligned requests, lowest first, which the function sees as one access
    /// of no other vCPU between.
    pub fn config_read(&self, address: PciAddress, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(function) = self.function(address) else {
            return;
        };
        let mut guard = lock(&function);
        for (offset, range) in requests(offset, data.len()) {
            if let Some(part) = data.get_mut(range) {
                guard.config_read(offset, part);
            }
        }
        drop(guard);
        let header_type = HEADER_TYPE.checked_sub(offset).map(usize::from);
        // All ones: the function was pulled out.
        if let Some(byte) = header_type.and_then(|index| data.get_mut(index))
            && *byte != u8::MAX
        {
            *byte &= !MULTI_FUNCTION;
            if self.is_multi_function(address) {
                *byte |= MULTI_FUNCTION;
            }
        }
    }

    /// Writes config space at `offset` and has the effects carried out.
    ///
    /// What has no place to go is dropped. See [`Self::config_read`].
    pub fn config_write(&self, address: PciAddress, offset: u16, data: &[u8]) {
        let Some(function) = self.function(address) else {
            return;
        };
        let mut effects = Effects::NONE;
        let mut guard = lock(&function);
        for (offset, range) in requests(offset, data.len()) {
            if let Some(part) = data.get(range) {
                effects = both(effects, guard.config_write(offset, part));
            }
        }
        drop(guard);
        if !effects.is_none() {
            self.effects.apply(address, &function, effects);
        }
    }

    fn is_multi_function(&self, address: PciAddress) -> bool {
        let device = (
            Bound::Excluded(of_device(address, 0)),
            Bound::Included(of_device(address, 7)),
        );
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .range(device)
            .next()
            .is_some()
    }
}

/// Function `function` of the device that `address` is in.
fn of_device(address: PciAddress, function: u16) -> PciAddress {
    PciAddress::from_requester_id(address.requester_id() & !7 | function)
}

/// A function that panicked under its lock stays in the topology: its own
/// state may be odd, but the guest's other devices must go on.
pub(super) fn lock<'a>(function: &'a FunctionHandle) -> MutexGuard<'a, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The effects of two writes. Spelled out, so that a new effect can't be
/// forgotten here.
pub(super) fn both(first: Effects, second: Effects) -> Effects {
    let Effects {
        decoding,
        bus_master,
    } = second;
    Effects {
        decoding: first.decoding | decoding,
        bus_master: first.bus_master | bus_master,
    }
}

/// Cuts an access into naturally aligned requests of 1, 2 or 4 bytes within the
/// 4 KiB: their offsets and the parts of the data.
fn requests(
    offset: u16,
    length: usize,
) -> impl Iterator<Item = (u16, std::ops::Range<usize>)> + use<> {
    let mut done = 0_usize;
    std::iter::from_fn(move || {
        let at = u16::try_from(done)
            .ok()
            .and_then(|done| offset.checked_add(done))
            .filter(|at| usize::from(*at) < CONFIG_SPACE_SIZE)?;
        let rest = length.checked_sub(done).filter(|rest| *rest > 0)?;
        let size = match (at & 3, rest) {
            (0, 4..) => 4,
            (0 | 2, 2..) => 2,
            _ => 1,
        };
        let range = done..done + size;
        done += size;
        Some((at, range))
    })
}

#[cfg(test)]
#[path = "root_complex_test.rs"]
mod tests;

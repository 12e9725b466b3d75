use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Arc, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use thiserror::Error;

use super::address::PciAddress;
use super::bar::BarDecode;
use super::config::CONFIG_SPACE_SIZE;
use super::forwarding::Forwarding;
use super::function::{Effects, FunctionHandle, PciFunction};

/// The header type register, in the first 64 bytes of every kind of header.
const HEADER_TYPE: u16 = 0x0e;
/// Set in every function of a device that has more than one (PCI 3.0 §6.2.1).
const MULTI_FUNCTION: u8 = 0x80;

/// A function about which a config write changed something.
#[derive(Clone, Debug)]
pub struct Change {
    /// Where the function was added. A guest that renumbers its buses does
    /// not change it.
    pub address: PciAddress,
    /// The function.
    pub function: FunctionHandle,
    /// What changed. A port above may be the cause, and not the function.
    pub effects: Effects,
}

/// Carries out what a config write changed beyond the function: the embedding
/// monitor's books of decoded addresses and the DMA map.
///
/// Called by the vCPU that wrote, with no lock held, before the guest goes on.
/// Ends with [`PciFunction::settle`] of each function. Several vCPUs may be in
/// here at once, and not in the order of their writes: work from what the
/// functions and `root` say now.
pub trait EffectSink: Send + Sync + Debug {
    /// Brings the monitor in line with `changes`, all of one write, none of
    /// them about the same function.
    fn apply(&self, root: &RootComplex, changes: &[Change]);
}

/// Why a function can't stand where it was to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TopologyError {
    /// The root complex has one segment.
    #[error("cannot add {0}: the guest has only segment 0000")]
    NoSuchSegment(PciAddress),
    /// No bridge leads to the bus.
    #[error("cannot add {0}: no port leads to its bus; use bus 00, or add a port first")]
    NoSuchBus(PciAddress),
    /// A link has one device at its end (PCIe 6.0 §7.3.1).
    #[error("cannot add {0}: below a port there is only device 00")]
    NotAtTheEnd(PciAddress),
    /// Something is there already.
    #[error("cannot add {0}: the address is taken; choose a free one")]
    Taken(PciAddress),
    /// Guests look at function 0 first and skip the device without it
    /// (PCI 3.0 §6.2.1).
    #[error("cannot add {0}: its device has no function 0 yet, so no guest would look for it")]
    NoFunctionZero(PciAddress),
    /// It forwards nothing.
    #[error("cannot add {0} as a port: it forwards nothing")]
    NotAPort(PciAddress),
    /// Ports stand on the root bus.
    #[error("cannot add the port {0}: root ports stand on bus 00")]
    PortBelowPort(PciAddress),
    /// Two ports can't lead to one bus, and none to the root bus.
    #[error("cannot add the port {port}: bus {bus:02x} is taken; choose another")]
    BusTaken {
        /// The port.
        port: PciAddress,
        /// The bus below it.
        bus: u8,
    },
}

/// A root port: which bus is below it, and what it lets through.
#[derive(Debug)]
struct Port {
    /// The bus of the functions below, as they were added.
    bus: u8,
    /// As its registers say: changed under the port's own lock.
    forwarding: Forwarding,
}

#[derive(Debug, Default)]
struct Topology {
    functions: BTreeMap<PciAddress, FunctionHandle>,
    ports: BTreeMap<PciAddress, Port>,
}

/// The guest's PCI functions, by address.
///
/// ```text
///  bus 00 ---+--- 00.0  host bridge
///            +--- 01.0  root port --- bus 01 --- 00.0  endpoint
///            +--- 02.0  integrated endpoint
/// ```
///
/// Everything here calls a function by the address at which it was added.
/// The guest's accesses are routed by the ports' present bus numbers, which
/// are the same unless the guest has renumbered its buses.
///
/// Whether a device has several functions is the topology's business: the
/// multi-function bit of the header type is put in here, whatever the function
/// itself says, since an assigned function often comes without its siblings.
///
/// Lock order: a function, then the map, then nothing. The map's lock is let
/// go before a function is called, the function's before the effects are
/// applied.
#[derive(Debug)]
pub struct RootComplex {
    topology: RwLock<Topology>,
    effects: Arc<dyn EffectSink>,
}

impl RootComplex {
    /// A root complex without functions, that hands effects to `effects`.
    pub fn new(effects: Arc<dyn EffectSink>) -> Self {
        Self {
            topology: RwLock::default(),
            effects,
        }
    }

    /// Puts a function in its place: on bus 0, or on a bus that a port leads
    /// to. Function 0 of a device goes first.
    ///
    /// # Errors
    /// See [`TopologyError`].
    pub fn add(&self, address: PciAddress, function: FunctionHandle) -> Result<(), TopologyError> {
        self.exclusive().insert(address, function)
    }

    /// Puts a root port in its place, with bus `bus` below it. The port's
    /// registers are to be programmed with that number:
    /// [`program`](super::program) does it.
    ///
    /// # Errors
    /// See [`TopologyError`].
    pub fn add_port(
        &self,
        address: PciAddress,
        bus: u8,
        port: FunctionHandle,
    ) -> Result<(), TopologyError> {
        let Some(forwarding) = lock(&port).forwarding() else {
            return Err(TopologyError::NotAPort(address));
        };
        if address.bus() != 0 {
            return Err(TopologyError::PortBelowPort(address));
        }
        let mut topology = self.exclusive();
        if bus == 0 || topology.ports.values().any(|port| port.bus == bus) {
            return Err(TopologyError::BusTaken { port: address, bus });
        }
        topology.insert(address, port)?;
        topology.ports.insert(address, Port { bus, forwarding });
        Ok(())
    }

    /// The function that was added at `address`.
    pub fn function(&self, address: PciAddress) -> Option<FunctionHandle> {
        self.shared().functions.get(&address).map(Arc::clone)
    }

    /// All functions, in ascending order of their addresses.
    pub fn functions(&self) -> Vec<(PciAddress, FunctionHandle)> {
        self.shared()
            .functions
            .iter()
            .map(|(address, function)| (*address, Arc::clone(function)))
            .collect()
    }

    /// The root ports, each with the bus below it, in ascending order.
    pub fn ports(&self) -> Vec<(PciAddress, u8)> {
        self.shared()
            .ports
            .iter()
            .map(|(address, port)| (*address, port.bus))
            .collect()
    }

    /// The BARs of the function that was added at `address` that the guest's
    /// accesses get to, past the port above.
    pub fn decoded(&self, address: PciAddress) -> Vec<BarDecode> {
        let Some(function) = self.function(address) else {
            return Vec::new();
        };
        let mut decoded = lock(&function).decoded();
        if let Some(forwarding) = self.shared().above(address) {
            decoded.retain(|decode| forwarding.passes(decode));
        }
        decoded
    }

    /// Whether requests of the function that was added at `address` get past
    /// the port above.
    pub fn is_bus_master(&self, address: PciAddress) -> bool {
        self.shared()
            .above(address)
            .is_none_or(|port| port.link && port.bus_master)
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
        let Some(target) = self.shared().route(address) else {
            return;
        };
        let mut guard = lock(&target.function);
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
            if target.is_multi_function {
                *byte |= MULTI_FUNCTION;
            }
        }
    }

    /// Writes config space at `offset` and has the effects carried out.
    ///
    /// What has no place to go is dropped. See [`Self::config_read`].
    pub fn config_write(&self, address: PciAddress, offset: u16, data: &[u8]) {
        let Some(target) = self.shared().route(address) else {
            return;
        };
        let mut effects = Effects::NONE;
        let mut guard = lock(&target.function);
        let before = guard.forwarding();
        for (offset, range) in requests(offset, data.len()) {
            if let Some(part) = data.get(range) {
                effects = both(effects, guard.config_write(offset, part));
            }
        }
        let mut changes = Vec::new();
        if let (Some(before), Some(after)) = (before, guard.forwarding())
            && before != after
        {
            // Under the port's lock: two writes to it are noted in their order.
            let below = self.exclusive().forward(target.address, after);
            drop(guard);
            changes = carry_down(before, after, below);
        } else {
            drop(guard);
        }
        if !effects.is_none() {
            changes.push(Change {
                address: target.address,
                function: target.function,
                effects,
            });
        }
        if !changes.is_empty() {
            self.effects.apply(self, &changes);
        }
    }

    /// Has the effects of a change carried out that no config write made: what
    /// the function that was added at `address` decodes is another now.
    pub fn refresh(&self, address: PciAddress) {
        let Some(function) = self.function(address) else {
            return;
        };
        let effects = Effects {
            decoding: true,
            ..Effects::NONE
        };
        let change = Change {
            address,
            function,
            effects,
        };
        self.effects.apply(self, &[change]);
    }

    fn shared(&self) -> RwLockReadGuard<'_, Topology> {
        self.topology.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Topology> {
        self.topology
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a port's new state means for the functions below it.
fn carry_down(
    before: Forwarding,
    after: Forwarding,
    below: Vec<(PciAddress, FunctionHandle)>,
) -> Vec<Change> {
    let goes_down = before.link && !after.link;
    // Bus numbers matter to config accesses only.
    let numbers = |port: Forwarding| Forwarding {
        secondary: 0,
        subordinate: 0,
        ..port
    };
    let decoding = numbers(before) != numbers(after);
    let bus_master = !before.bus_master && after.bus_master;
    below
        .into_iter()
        .map(|(address, function)| {
            let mut effects = Effects {
                decoding,
                bus_master,
            };
            if goes_down {
                effects = both(effects, lock(&function).reset());
            }
            Change {
                address,
                function,
                effects,
            }
        })
        .filter(|change| !change.effects.is_none())
        .collect()
}

/// Where a config access goes.
struct Target {
    /// The address at which the function was added.
    address: PciAddress,
    function: FunctionHandle,
    is_multi_function: bool,
}

impl Topology {
    fn insert(
        &mut self,
        address: PciAddress,
        function: FunctionHandle,
    ) -> Result<(), TopologyError> {
        if address.segment() != 0 {
            return Err(TopologyError::NoSuchSegment(address));
        }
        if address.bus() != 0 {
            if self.above(address).is_none() {
                return Err(TopologyError::NoSuchBus(address));
            }
            if address.device() != 0 {
                return Err(TopologyError::NotAtTheEnd(address));
            }
        }
        if self.functions.contains_key(&address) {
            return Err(TopologyError::Taken(address));
        }
        if address.function() != 0 && !self.functions.contains_key(&of_device(address, 0)) {
            return Err(TopologyError::NoFunctionZero(address));
        }
        self.functions.insert(address, function);
        Ok(())
    }

    /// What the port above a function lets through; nothing for functions on
    /// the root bus.
    fn above(&self, address: PciAddress) -> Option<Forwarding> {
        let mut ports = self.ports.values();
        let port = ports.find(|port| address.bus() != 0 && port.bus == address.bus())?;
        Some(port.forwarding)
    }

    /// Notes what a port lets through now. Answers what is below.
    fn forward(
        &mut self,
        port: PciAddress,
        forwarding: Forwarding,
    ) -> Vec<(PciAddress, FunctionHandle)> {
        let Some(port) = self.ports.get_mut(&port) else {
            return Vec::new();
        };
        port.forwarding = forwarding;
        let bus = u16::from(port.bus) << 8;
        let first = PciAddress::from_requester_id(bus);
        let last = PciAddress::from_requester_id(bus | 0xff);
        self.functions
            .range(first..=last)
            .map(|(address, function)| (*address, Arc::clone(function)))
            .collect()
    }

    /// Finds what the guest calls `address`. Where ports overlap, the first
    /// one takes the access.
    fn route(&self, address: PciAddress) -> Option<Target> {
        let bus = match address.bus() {
            0 => 0,
            bus => {
                let mut ports = self.ports.values();
                ports.find(|port| port.forwarding.leads_to(bus))?.bus
            }
        };
        let id = u16::from(bus) << 8 | address.requester_id() & 0xff;
        let home = PciAddress::from_requester_id(id);
        if address.segment() != 0 {
            return None;
        }
        let function = Arc::clone(self.functions.get(&home)?);
        Some(Target {
            address: home,
            function,
            is_multi_function: self.is_multi_function(home),
        })
    }

    fn is_multi_function(&self, address: PciAddress) -> bool {
        let others = (
            Bound::Excluded(of_device(address, 0)),
            Bound::Included(of_device(address, 7)),
        );
        self.functions.range(others).next().is_some()
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

#[cfg(test)]
#[path = "routing_test.rs"]
mod routing_tests;

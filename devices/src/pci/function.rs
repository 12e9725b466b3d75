use std::error::Error;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use super::bar::{BarDecode, BarIndex, BarInfo};
use super::forwarding::Forwarding;

/// A function in the topology, with the lock that its accesses take.
///
/// Lock order: this lock before any of the embedding monitor's. A function
/// never calls back into the topology.
pub type FunctionHandle = Arc<Mutex<dyn PciFunction>>;

/// What a config write changed beyond the function itself.
///
/// The function only notes it. The caller lets go of the function's lock,
/// brings its own books (address decoding, the DMA map) in line, and then
/// calls [`PciFunction::settle`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "effects must be carried out after the function's lock is let go"]
pub struct Effects {
    /// [`PciFunction::decoded`] may answer otherwise than before.
    pub decoding: bool,
    /// The guest turned bus mastering on: the device may reach guest memory
    /// as soon as `settle` is called, so the DMA map must be complete first.
    pub bus_master: bool,
}

impl Effects {
    /// Nothing beyond the function changed.
    pub const NONE: Self = Self {
        decoding: false,
        bus_master: false,
    };

    /// Whether the caller has nothing to do.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// What the topology lets through to a function, and from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The BARs that answer: those of [`PciFunction::decoded`] that the port
    /// above lets through and that no other BAR hides.
    pub answering: Vec<BarDecode>,
    /// Whether the port above, if there is one, forwards the function's own
    /// requests. The function's bus-master bit counts besides.
    pub bus_master: bool,
}

/// Why the host could not follow what the guest programmed.
pub type SettleError = Box<dyn Error + Send + Sync>;

/// One function of a PCI device, as the topology sees it.
///
/// Offsets and lengths come from the guest. The topology guarantees
/// `offset + data.len() <= 4096` and a length of 1, 2, 4 or 8 bytes for config
/// accesses, and that BAR accesses lie inside the BAR; an access may still be
/// unaligned. Data is little-endian, as on the wire.
pub trait PciFunction: Send + Debug {
    /// Reads config space. Unimplemented bytes read as zero.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// Writes config space and says what the write changed outside.
    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects;

    /// The BARs that the function implements, in ascending order, the
    /// expansion ROM last. Constant.
    fn bars(&self) -> Vec<BarInfo>;

    /// The BARs that the function's registers make it answer right now, and
    /// where. What of it is heard is the topology's to say: see [`Reach`].
    fn decoded(&self) -> Vec<BarDecode>;

    /// Reads from a BAR that is not mapped straight into the guest.
    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]);

    /// Writes to a BAR that is not mapped straight into the guest.
    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]);

    /// The port above carried a reset down (PCIe 6.0 §6.6.1: a hot reset):
    /// registers get their values after reset, interrupts go off, BARs are
    /// zero. As with a config write the answer says what changed outside;
    /// [`Self::settle`] resets the device itself.
    ///
    /// Does nothing unless it is implemented: right for a function without
    /// state only.
    fn reset(&mut self) -> Effects {
        Effects::NONE
    }

    /// For a port: what it lets through now. Nothing for all others. Whether
    /// a function is a port never changes.
    fn forwarding(&self) -> Option<Forwarding> {
        None
    }

    /// Takes everything out of the guest's address space that is not in
    /// `answering`. The place will be another's as soon as this returns.
    ///
    /// Does nothing unless it is implemented: right for a function that maps
    /// nothing straight into the guest.
    fn release(&mut self, answering: &[BarDecode]) {
        let _ = answering;
    }

    /// Brings the host side in line with what the guest has programmed: maps
    /// and unmaps BARs, hands on the bus-master bit, within what `reach`
    /// allows. Idempotent; works from the present state, so a late call after
    /// two writes is right.
    ///
    /// # Errors
    /// When the host refuses. The virtual machine can't go on.
    fn settle(&mut self, reach: &Reach) -> Result<(), SettleError> {
        let _ = reach;
        Ok(())
    }
}

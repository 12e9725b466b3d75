use std::error::Error;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use super::bar::{BarDecode, BarIndex, BarInfo};

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

    /// The BARs that the function implements, in ascending order. Constant.
    fn bars(&self) -> Vec<BarInfo>;

    /// The BARs that answer right now, and where.
    fn decoded(&self) -> Vec<BarDecode>;

    /// Reads from a BAR that is not mapped straight into the guest.
    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]);

    /// Writes to a BAR that is not mapped straight into the guest.
    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]);

    /// Brings the host side in line with what the guest has programmed: maps
    /// and unmaps BARs, hands on the bus-master bit. Idempotent; works from
    /// the present state, so a late call after two writes is right.
    ///
    /// # Errors
    /// When the host refuses. The virtual machine can't go on.
    fn settle(&mut self) -> Result<(), SettleError> {
        Ok(())
    }
}

use std::sync::Arc;

use crate::iommu::{Offer, Peer};
use crate::ports::{HostMemory, MemoryMapper, MemoryMapping, PortError};

/// Part of a BAR in this process's memory.
#[derive(Clone, Debug)]
pub(crate) struct DirectMemory {
    /// Where it begins in the BAR.
    pub(crate) offset: u64,
    /// The memory, shared with the device.
    pub(crate) memory: Arc<dyn HostMemory>,
}

/// A decoded BAR in the guest's address space and in the IOMMU's; dropping it
/// takes it away.
#[derive(Debug)]
pub(crate) struct BarMapping {
    address: u64,
    // Dropped in this order: other devices lose it first.
    _offers: Vec<Offer>,
    _guest: Vec<Box<dyn MemoryMapping>>,
}

impl BarMapping {
    /// Maps a BAR that answers at guest address `address`, and offers it to
    /// the device's peers. The device's memory decoding must be on.
    ///
    /// # Errors
    /// When the guest's address space refuses; nothing is mapped then.
    pub(crate) fn new(
        address: u64,
        direct: &[DirectMemory],
        mapper: &dyn MemoryMapper,
        peer: &Peer,
    ) -> Result<Self, PortError> {
        let mut guest = Vec::with_capacity(direct.len());
        // The sums can't overflow: a decoded BAR ends below the top.
        for part in direct {
            guest.push(mapper.map(address + part.offset, Arc::clone(&part.memory))?);
        }
        let offer = |part: &DirectMemory| {
            let memory = Arc::clone(&part.memory);
            peer.offer(address + part.offset, memory)
        };
        Ok(Self {
            address,
            _offers: direct.iter().map(offer).collect(),
            _guest: guest,
        })
    }

    /// Where the BAR answers.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

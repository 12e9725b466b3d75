use std::sync::Arc;

use devices::pci::PciAddress;

use crate::iommu::AddressSpace;
use crate::ports::{HostMemory, MemoryMapper, MemoryMapping, PortError};

/// Part of a BAR in this process's memory.
#[derive(Clone, Debug)]
pub(crate) struct DirectMemory {
    /// Where it begins in the BAR.
    pub(crate) offset: u64,
    /// The memory, shared with the device.
    pub(crate) memory: Arc<dyn HostMemory>,
}

/// The BARs of a device as targets for other devices of the guest.
///
/// Best effort: not every IOMMU maps device memory, and not every chipset
/// carries requests between devices. The first refusal is told, and no more.
#[derive(Debug)]
pub(crate) struct PeerToPeer {
    device: PciAddress,
    space: Arc<dyn AddressSpace>,
    warned: bool,
}

impl PeerToPeer {
    pub(crate) fn new(device: PciAddress, space: Arc<dyn AddressSpace>) -> Self {
        Self {
            device,
            space,
            warned: false,
        }
    }

    fn map(&mut self, iova: u64, memory: &Arc<dyn HostMemory>) -> Option<DmaMapping> {
        let device = self.device;
        if !self.space.limits().fits(iova, memory.size() as u64) {
            log::debug!("{device}: the BAR at {iova:#x} is outside of what the IOMMU can map");
            return None;
        }
        match self.space.map(iova, Arc::clone(memory)) {
            Ok(()) => Some(DmaMapping {
                space: Arc::clone(&self.space),
                iova,
            }),
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let cause = &error.source;
                    log::warn!(
                        "{device}: other devices can't reach its BARs (peer to peer): {error}: {cause}"
                    );
                }
                None
            }
        }
    }
}

/// A BAR in the IOMMU's address space; dropping it takes it away.
#[derive(Debug)]
struct DmaMapping {
    space: Arc<dyn AddressSpace>,
    iova: u64,
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        if let Err(error) = self.space.unmap(self.iova) {
            log::error!("{error}: {}", error.source);
        }
    }
}

/// A decoded BAR in the guest's address space and in the IOMMU's; dropping it
/// takes it away.
#[derive(Debug)]
pub(crate) struct BarMapping {
    address: u64,
    // Dropped in this order: other devices lose it first.
    _dma: Vec<DmaMapping>,
    _guest: Vec<Box<dyn MemoryMapping>>,
}

impl BarMapping {
    /// Maps a BAR that answers at guest address `address`. The device's memory
    /// decoding must be on.
    ///
    /// # Errors
    /// When the guest's address space refuses; nothing is mapped then.
    pub(crate) fn new(
        address: u64,
        direct: &[DirectMemory],
        mapper: &dyn MemoryMapper,
        peers: &mut PeerToPeer,
    ) -> Result<Self, PortError> {
        let mut guest = Vec::with_capacity(direct.len());
        // The sums can't overflow: a decoded BAR ends below the top.
        for part in direct {
            guest.push(mapper.map(address + part.offset, Arc::clone(&part.memory))?);
        }
        let dma = direct
            .iter()
            .filter_map(|part| peers.map(address + part.offset, &part.memory));
        Ok(Self {
            address,
            _dma: dma.collect(),
            _guest: guest,
        })
    }

    /// Where the BAR answers.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

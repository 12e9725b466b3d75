//! What devices put into the guest's address space.

use std::sync::Arc;

use passthrough::ports::{HostMemory, MemoryMapper, MemoryMapping, PortError};

use crate::memory::KvmSlots;
use crate::vcpu::CoalescedWrites;

/// Maps by KVM's memory slots, and has writes gathered by KVM's ring, if there
/// is one.
#[derive(Clone, Debug)]
pub struct GuestMapper {
    slots: KvmSlots,
    writes: Option<Arc<CoalescedWrites>>,
}

impl GuestMapper {
    /// Both are those of one VM.
    pub fn new(slots: KvmSlots, writes: Option<Arc<CoalescedWrites>>) -> Self {
        Self { slots, writes }
    }
}

impl MemoryMapper for GuestMapper {
    fn map(
        &self,
        address: u64,
        memory: Arc<dyn HostMemory>,
    ) -> Result<Box<dyn MemoryMapping>, PortError> {
        MemoryMapper::map(&self.slots, address, memory)
    }

    fn post_writes(&self, address: u64, size: u64) -> Option<Box<dyn MemoryMapping>> {
        let posting = self.writes.as_ref()?.post_memory(address, size)?;
        Some(Box::new(posting))
    }
}

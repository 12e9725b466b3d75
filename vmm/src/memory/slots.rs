use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use passthrough::ports::{HostMemory, MemoryMapper, MemoryMapping, PortError};
use thiserror::Error;

/// Why KVM would not map host memory into the guest.
#[derive(Debug, Error)]
pub enum SlotError {
    /// KVM refused.
    #[error("KVM cannot map {size:#x} bytes at guest address {address:#x}")]
    Set {
        /// Guest physical.
        address: u64,
        /// Bytes.
        size: usize,
        /// What KVM answered.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// All slot numbers are taken.
    #[error("KVM's {0} memory slots are all taken: assign fewer devices")]
    Exhausted(usize),
}

/// KVM's memory slots: host memory that the guest reaches with no exit.
///
/// Cloning gives another handle to the same slots.
#[derive(Clone, Debug)]
pub struct KvmSlots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vm: Arc<VmFd>,
    limit: usize,
    // Held while KVM is called: it serializes slot changes itself anyway.
    used: Mutex<BTreeMap<u32, Arc<dyn HostMemory>>>,
}

impl KvmSlots {
    /// The slots of `vm`, none taken yet.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let limit = match vm.check_extension_int(kvm_ioctls::Cap::NrMemslots) {
            // KVM's documented minimum, for kernels that don't say.
            ..=0 => 32,
            limit => limit as usize,
        };
        Self(Arc::new(Inner {
            vm,
            limit,
            used: Mutex::default(),
        }))
    }

    /// Maps `memory` at guest physical `address` until the answer is dropped.
    ///
    /// # Errors
    /// [`SlotError`] when the range overlaps another or slots have run out.
    pub fn map(&self, address: u64, memory: Arc<dyn HostMemory>) -> Result<Slot, SlotError> {
        let mut used = self.0.lock();
        let number = (0u32..)
            .take(self.0.limit)
            .find(|number| !used.contains_key(number))
            .ok_or(SlotError::Exhausted(self.0.limit))?;
        let size = memory.size();
        self.0
            .set(number, address, &memory, size)
            .map_err(|source| SlotError::Set {
                address,
                size,
                source,
            })?;
        used.insert(number, memory);
        Ok(Slot {
            slots: Arc::clone(&self.0),
            number,
            address,
        })
    }
}

impl MemoryMapper for KvmSlots {
    fn map(
        &self,
        address: u64,
        memory: Arc<dyn HostMemory>,
    ) -> Result<Box<dyn MemoryMapping>, PortError> {
        Ok(Box::new(KvmSlots::map(self, address, memory)?))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<dyn HostMemory>>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets slot `number`; a `size` of 0 deletes it.
    fn set(
        &self,
        number: u32,
        address: u64,
        memory: &Arc<dyn HostMemory>,
        size: usize,
    ) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: 0,
            guest_phys_addr: address,
            memory_size: size as u64,
            userspace_addr: memory.address().as_ptr() as u64,
        };
        // SAFETY: the memory stays mapped as long as its Arc lives, which is
        // kept in `used` until the slot is deleted or the VM itself is gone.
        unsafe { self.vm.set_user_memory_region(region) }
    }
}

/// A mapping in the guest; dropping it takes it away.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Inner>,
    number: u32,
    address: u64,
}

impl MemoryMapping for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut used = self.slots.lock();
        let Some(memory) = used.get(&self.number) else {
            return;
        };
        match self.slots.set(self.number, self.address, memory, 0) {
            Ok(()) => {
                used.remove(&self.number);
            }
            // The slot and the memory behind it stay until the VM goes.
            Err(error) => log::error!("KVM keeps the mapping at {:#x}: {error}", self.address),
        }
    }
}

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use passthrough::ports::{HostMemory, MemoryMapper, MemoryMapping, PortError};
use thiserror::Error;

use super::GuestRange;

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

/// What KVM does for slots; a trait, so that the rules can be tried without it.
trait Regions: Send + Sync + Debug {
    /// Sets slot `number`; a `size` of 0 deletes it.
    ///
    /// # Safety
    /// `memory` must live until the slot is deleted or the VM is gone.
    unsafe fn set(
        &self,
        number: u32,
        address: u64,
        memory: &dyn HostMemory,
        size: usize,
    ) -> Result<(), kvm_ioctls::Error>;
}

impl Regions for Arc<VmFd> {
    unsafe fn set(
        &self,
        number: u32,
        address: u64,
        memory: &dyn HostMemory,
        size: usize,
    ) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: 0,
            guest_phys_addr: address,
            memory_size: size as u64,
            userspace_addr: memory.address().as_ptr() as u64,
        };
        // SAFETY: the memory lives as long as the slot, as the caller promises.
        unsafe { self.set_user_memory_region(region) }
    }
}

/// KVM's memory slots: host memory that the guest reaches with no exit.
///
/// Guest RAM ([`Self::map`]) has its slots for good. Device memory, which
/// comes through [`MemoryMapper`], has one while nothing else is in its pages:
///
/// * no RAM, no other device memory, nothing that was reserved
///   ([`Self::reserve`]);
/// * at most one of the BARs that answer ([`Self::set_answering`]): its own.
///
/// Otherwise the guest's accesses exit, and go to whoever the bus says. What
/// has a slot follows from the present state alone, in whatever order that
/// came about, so two BARs may swap places, or meet for a moment.
///
/// Cloning gives another handle to the same slots.
#[derive(Clone, Debug)]
pub struct KvmSlots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    regions: Box<dyn Regions>,
    limit: usize,
    // Lock order: innermost. Held while KVM is called, which serializes slot
    // changes itself anyway.
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    /// What KVM has, by slot number.
    slots: BTreeMap<u32, Occupied>,
    device_memory: BTreeMap<u64, DeviceMemory>,
    made: u64,
    reserved: Vec<GuestRange>,
    answering: Vec<GuestRange>,
    told: bool,
}

/// A slot in use.
#[derive(Debug)]
struct Occupied {
    range: GuestRange,
    memory: Arc<dyn HostMemory>,
    /// Guest RAM: never withdrawn for something else.
    is_ram: bool,
}

/// Memory of a device that is to be in the guest whenever it may.
#[derive(Debug)]
struct DeviceMemory {
    range: GuestRange,
    memory: Arc<dyn HostMemory>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Something else is in its pages.
    Withdrawn,
    InSlot(u32),
    /// KVM did not want it: not asked again.
    Refused,
}

impl KvmSlots {
    /// The slots of `vm`, none taken yet.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let limit = match vm.check_extension_int(kvm_ioctls::Cap::NrMemslots) {
            // KVM's documented minimum, for kernels that don't say.
            ..=0 => 32,
            limit => limit as usize,
        };
        Self::with(Box::new(vm), limit)
    }

    fn with(regions: Box<dyn Regions>, limit: usize) -> Self {
        let books = Mutex::default();
        Self(Arc::new(Inner {
            regions,
            limit,
            books,
        }))
    }

    /// Maps guest RAM at guest physical `address` until the answer is dropped.
    /// Device memory makes room for it.
    ///
    /// # Errors
    /// [`SlotError`] when the range overlaps other RAM or slots have run out.
    pub fn map(&self, address: u64, memory: Arc<dyn HostMemory>) -> Result<Slot, SlotError> {
        let mut books = self.0.lock();
        books.reserved.push(range_of(address, &*memory));
        self.0.withdraw(&mut books);
        let result = self.0.occupy(&mut books, address, memory, true);
        // The slot, if there is one, keeps the place from now on.
        books.reserved.pop();
        self.0.settle(&mut books);
        let inner = Arc::clone(&self.0);
        result.map(|number| Slot { inner, number })
    }

    /// Keeps device memory out of `range` for good: something that is neither
    /// RAM nor a BAR answers there.
    pub fn reserve(&self, range: GuestRange) {
        let mut books = self.0.lock();
        books.reserved.push(range);
        self.0.settle(&mut books);
    }

    /// Says where memory BARs of all functions answer from now on, expansion
    /// ROMs among them, each range being one BAR's. To be called before the
    /// bus learns of it: where two meet in a page, accesses exit from now on.
    pub fn set_answering(&self, ranges: &[GuestRange]) {
        let mut books = self.0.lock();
        if books.answering != ranges {
            books.answering = ranges.to_vec();
            self.0.settle(&mut books);
        }
    }
}

impl MemoryMapper for KvmSlots {
    fn map(
        &self,
        address: u64,
        memory: Arc<dyn HostMemory>,
    ) -> Result<Box<dyn MemoryMapping>, PortError> {
        let mut books = self.0.lock();
        let id = books.made;
        books.made += 1;
        let wanted = DeviceMemory {
            range: range_of(address, &*memory),
            memory,
            state: State::Withdrawn,
        };
        books.device_memory.insert(id, wanted);
        // Others have to make room for it, or it for them.
        self.0.withdraw(&mut books);
        if let Err(error) = self.0.establish(&mut books, id) {
            books.device_memory.remove(&id);
            self.0.settle(&mut books);
            return Err(error.into());
        }
        drop(books);
        let inner = Arc::clone(&self.0);
        Ok(Box::new(Direct { inner, id }))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a free slot number and puts `memory` into the slot.
    fn occupy(
        &self,
        books: &mut Books,
        address: u64,
        memory: Arc<dyn HostMemory>,
        is_ram: bool,
    ) -> Result<u32, SlotError> {
        let number = (0u32..)
            .take(self.limit)
            .find(|number| !books.slots.contains_key(number))
            .ok_or(SlotError::Exhausted(self.limit))?;
        let size = memory.size();
        // SAFETY: `memory` is kept in `slots` until the slot is deleted.
        let set = unsafe { self.regions.set(number, address, &*memory, size) };
        set.map_err(|source| SlotError::Set {
            address,
            size,
            source,
        })?;
        let occupied = Occupied {
            range: range_of(address, &*memory),
            memory,
            is_ram,
        };
        books.slots.insert(number, occupied);
        Ok(number)
    }

    /// Deletes a slot.
    fn vacate(&self, books: &mut Books, number: u32) {
        let Some(slot) = books.slots.get(&number) else {
            return;
        };
        let address = slot.range.start;
        // SAFETY: nothing is mapped by this call.
        match unsafe { self.regions.set(number, address, &*slot.memory, 0) } {
            Ok(()) => {
                books.slots.remove(&number);
            }
            // The slot and the memory behind it stay until the VM goes.
            Err(error) => log::error!("KVM keeps the mapping at {address:#x}: {error}"),
        }
    }

    /// Makes slots what they should be: first less, then more.
    fn settle(&self, books: &mut Books) {
        self.withdraw(books);
        for id in books.ids() {
            if let Err(error) = self.establish(books, id) {
                let told = std::mem::replace(&mut books.told, true);
                let level = if told {
                    log::Level::Debug
                } else {
                    log::Level::Warn
                };
                log::log!(level, "a BAR is slow from now on: {error}");
            }
        }
    }

    /// Takes the slots of device memory that has company.
    fn withdraw(&self, books: &mut Books) {
        for id in books.ids() {
            if let Some(State::InSlot(number)) = books.state(id)
                && !books.may_stand(id)
            {
                self.vacate(books, number);
                books.set_state(id, State::Withdrawn);
            }
        }
    }

    /// Gives device memory its slot, if it waits for one and may have it.
    fn establish(&self, books: &mut Books, id: u64) -> Result<(), SlotError> {
        let Some(wanted) = books.device_memory.get(&id) else {
            return Ok(());
        };
        if wanted.state != State::Withdrawn || !books.may_stand(id) {
            return Ok(());
        }
        let (address, memory) = (wanted.range.start, Arc::clone(&wanted.memory));
        let result = self.occupy(books, address, memory, false);
        let state = result
            .as_ref()
            .map_or(State::Refused, |n| State::InSlot(*n));
        books.set_state(id, state);
        result.map(|_| ())
    }
}

impl Books {
    fn ids(&self) -> Vec<u64> {
        self.device_memory.keys().copied().collect()
    }

    fn state(&self, id: u64) -> Option<State> {
        self.device_memory.get(&id).map(|memory| memory.state)
    }

    fn set_state(&mut self, id: u64, state: State) {
        if let Some(memory) = self.device_memory.get_mut(&id) {
            memory.state = state;
        }
    }

    /// Whether nothing else is in the pages of device memory `id`.
    fn may_stand(&self, id: u64) -> bool {
        let Some(range) = self.device_memory.get(&id).map(|memory| memory.range) else {
            return false;
        };
        let meets = |other: &GuestRange| overlap(&range, other);
        let ram = self.slots.values().filter(|slot| slot.is_ram);
        let others = self.device_memory.iter().filter(|(other, _)| **other != id);
        !self.reserved.iter().any(meets)
            && !ram.map(|slot| &slot.range).any(meets)
            && !others.map(|(_, memory)| &memory.range).any(meets)
            && self.answering.iter().filter(|range| meets(range)).count() <= 1
    }
}

fn range_of(start: u64, memory: &dyn HostMemory) -> GuestRange {
    let size = memory.size() as u64;
    GuestRange { start, size }
}

/// Whether two ranges share a byte. Their ends may lie past the last address,
/// as that of a page around a small BAR in the topmost page does.
fn overlap(a: &GuestRange, b: &GuestRange) -> bool {
    let last = |range: &GuestRange| range.start.saturating_add(range.size.saturating_sub(1));
    a.start <= last(b) && b.start <= last(a)
}

/// Guest RAM in a slot; dropping it takes it away.
#[derive(Debug)]
pub struct Slot {
    inner: Arc<Inner>,
    number: u32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut books = self.inner.lock();
        self.inner.vacate(&mut books, self.number);
        self.inner.settle(&mut books);
    }
}

/// Device memory that is in a slot whenever it may; dropping it takes it away.
#[derive(Debug)]
struct Direct {
    inner: Arc<Inner>,
    id: u64,
}

impl MemoryMapping for Direct {}

impl Drop for Direct {
    fn drop(&mut self) {
        let mut books = self.inner.lock();
        if let Some(State::InSlot(number)) = books.state(self.id) {
            self.inner.vacate(&mut books, number);
        }
        books.device_memory.remove(&self.id);
        // Another may have waited for the place.
        self.inner.settle(&mut books);
    }
}

#[cfg(test)]
#[path = "slots_test.rs"]
mod tests;

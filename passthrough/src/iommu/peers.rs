use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::PciAddress;

use super::{AddressSpace, IovaRange, MapError};
use crate::ports::HostMemory;

/// The devices of an address space, and the BARs that they offer each other as
/// targets (peer to peer). Every address space has one.
///
/// What is mapped follows from the offers alone, in whatever order they came:
/// an offer is mapped while
///
/// * another device is there to use it: mapping a BAR of many GiB takes time
///   and page tables, for nothing when its own device is the only one;
/// * no other offer overlaps it: of two BARs at one place none is the right
///   one. When one goes, the other is mapped;
/// * the IOMMU can reach it.
///
/// All of this is best effort. Not every IOMMU maps device memory, and not
/// every chipset carries requests between devices. The first refusal of each
/// kind is told, and no more.
#[derive(Debug, Default)]
pub struct Peers {
    // Lock order: before the address space's own. Held across its maps and
    // unmaps, so that two moves can't cross.
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    devices: usize,
    offers: BTreeMap<u64, Entry>,
    made: u64,
    /// The answers of the host that the user was told of.
    told: BTreeSet<Option<i32>>,
}

#[derive(Debug)]
struct Entry {
    device: PciAddress,
    iova: u64,
    memory: Arc<dyn HostMemory>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Mapped,
    /// The host did not want to, or everything was taken away: not mapped again.
    Refused,
}

impl Entry {
    fn size(&self) -> u64 {
        self.memory.size() as u64
    }

    /// What it takes of the address space. The last page's end may be the
    /// end of all addresses.
    fn range(&self) -> IovaRange {
        let more = self.size().saturating_sub(1);
        IovaRange {
            start: self.iova,
            last: self.iova.saturating_add(more),
        }
    }
}

impl Peers {
    /// Counts a device that has nothing to offer.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn add_device(&self) {
        self.books().devices += 1;
    }

    /// Runs `unmap`, which takes away every map of the address space, those of
    /// the offers too. What it says was done, or may have been.
    pub(crate) fn withdraw<T>(&self, unmap: impl FnOnce() -> T) -> T {
        let mut books = self.books();
        let result = unmap();
        for entry in books.offers.values_mut() {
            entry.state = State::Refused;
        }
        result
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Makes what is mapped what it should be: first less, then more.
    fn settle(&mut self, space: &dyn AddressSpace) {
        let wanted: Vec<u64> = self
            .offers
            .iter()
            .filter(|(id, entry)| self.is_wanted(**id, entry, space))
            .map(|(id, _)| *id)
            .collect();
        for (id, entry) in &mut self.offers {
            if entry.state == State::Mapped && !wanted.contains(id) {
                unmap(space, entry);
            }
        }
        for id in wanted {
            let Some(entry) = self.offers.get_mut(&id) else {
                continue;
            };
            if entry.state != State::Waiting {
                continue;
            }
            entry.state = match space.map(entry.iova, Arc::clone(&entry.memory)) {
                Ok(()) => State::Mapped,
                Err(error) => {
                    tell(entry.device, &error, &mut self.told);
                    State::Refused
                }
            };
        }
    }

    fn is_wanted(&self, id: u64, entry: &Entry, space: &dyn AddressSpace) -> bool {
        let range = entry.range();
        let alone = self.offers.iter().all(|(other_id, other)| {
            let other = other.range();
            *other_id == id || other.last < range.start || range.last < other.start
        });
        self.devices > 1 && alone && space.limits().fits(entry.iova, entry.size())
    }
}

fn unmap(space: &dyn AddressSpace, entry: &mut Entry) {
    entry.state = State::Waiting;
    if let Err(error) = space.unmap(entry.iova) {
        log::error!("{}: {error}: {}", entry.device, error.source);
    }
}

fn tell(device: PciAddress, error: &MapError, told: &mut BTreeSet<Option<i32>>) {
    let cause = &error.source;
    // The guest put the BAR over its RAM: that is the guest's doing.
    let errno = error.source.raw_os_error();
    if errno == Some(libc::EEXIST) || !told.insert(errno) {
        log::debug!("{device}: {error}: {cause}");
    } else {
        log::warn!("{device}: other devices can't reach its BARs (peer to peer): {error}: {cause}");
    }
}

/// A device's membership in an address space; dropping it leaves.
#[derive(Debug)]
pub(crate) struct Peer {
    device: PciAddress,
    space: Arc<dyn AddressSpace>,
}

impl Peer {
    /// Lets `device` join the devices in `space`.
    pub(crate) fn join(device: PciAddress, space: Arc<dyn AddressSpace>) -> Self {
        let mut books = space.peers().books();
        books.devices += 1;
        books.settle(&*space);
        drop(books);
        Self { device, space }
    }

    /// Offers `memory` of the device to the others at `iova`. The device's
    /// memory decoding must be on for as long as the offer stands.
    pub(crate) fn offer(&self, iova: u64, memory: Arc<dyn HostMemory>) -> Offer {
        let mut books = self.space.peers().books();
        let id = books.made;
        books.made += 1;
        let entry = Entry {
            device: self.device,
            iova,
            memory,
            state: State::Waiting,
        };
        books.offers.insert(id, entry);
        books.settle(&*self.space);
        drop(books);
        let space = Arc::clone(&self.space);
        Offer { space, id }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut books = self.space.peers().books();
        books.devices = books.devices.saturating_sub(1);
        books.settle(&*self.space);
    }
}

/// Memory that is offered; dropping it takes the offer back.
#[derive(Debug)]
pub(crate) struct Offer {
    space: Arc<dyn AddressSpace>,
    id: u64,
}

impl Drop for Offer {
    fn drop(&mut self) {
        let mut books = self.space.peers().books();
        if let Some(mut entry) = books.offers.remove(&self.id) {
            if entry.state == State::Mapped {
                unmap(&*self.space, &mut entry);
            }
            // Another may have waited for the place.
            books.settle(&*self.space);
        }
    }
}

#[cfg(test)]
#[path = "peers_test.rs"]
mod tests;

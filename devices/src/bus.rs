//! Which device answers at an address.
//!
//! One [`Bus`] for memory-mapped I/O, another for ports: both are address
//! spaces of 64 bits here.

use std::fmt::{self, Debug};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use thiserror::Error;

/// A device that answers a range of addresses. Thread-safe: every vCPU calls it.
///
/// `offset` counts from the start of the range. The bus guarantees that
/// `offset + data.len()` lies inside the range and that `data` is not empty;
/// nothing else: any length, any alignment. Data is little-endian.
pub trait BusDevice: Send + Sync + Debug {
    /// Fills all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range of addresses with the name of what answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// For messages only.
    pub name: String,
    /// The first address.
    pub first: u64,
    /// The last address.
    pub last: u64,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}..={:#x}", self.name, self.first, self.last)
    }
}

/// Why the bus could not be changed. It is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BusError {
    /// Two devices would answer at the same address.
    #[error("cannot place {new}: it overlaps {present}")]
    Overlap {
        /// What was to be inserted.
        new: Claim,
        /// The first device in its way.
        present: Claim,
    },
    /// The range is empty or runs past the last address.
    #[error("cannot place {name}: {size:#x} bytes from {base:#x} are no range of addresses")]
    BadRange {
        /// What was to be inserted.
        name: String,
        /// Where.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// No device starts at the address.
    #[error("cannot remove the device at {base:#x}: none starts there")]
    Absent {
        /// Where one was expected.
        base: u64,
    },
}

/// What [`Bus::update`] puts on the bus: the arguments of [`Bus::insert`].
#[derive(Clone, Debug)]
pub struct Insertion {
    /// For messages only.
    pub name: String,
    /// The first address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Who answers.
    pub device: Arc<dyn BusDevice>,
}

#[derive(Clone, Debug)]
struct Entry {
    claim: Claim,
    device: Arc<dyn BusDevice>,
}

/// The devices of one address space.
///
/// An access to nothing reads as all ones, and a write there is dropped. An
/// access that crosses the border of a device is split there: each part goes
/// to whoever claims its addresses, as on a real bus, so no device ever sees
/// bytes that are not its own.
///
/// The lock is held for the lookup only. A device may therefore change the bus
/// from inside its own access, and may still be called for a moment after it
/// was removed by another thread.
#[derive(Debug, Default)]
pub struct Bus {
    /// Sorted by address, free of overlaps.
    entries: RwLock<Vec<Entry>>,
}

impl Bus {
    /// A bus with no devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer the `size` bytes from `base` on.
    ///
    /// # Errors
    /// [`BusError::BadRange`] or [`BusError::Overlap`].
    pub fn insert(
        &self,
        name: impl Into<String>,
        base: u64,
        size: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let name = name.into();
        let new = Insertion {
            name,
            base,
            size,
            device,
        };
        insert(&mut self.exclusive(), new)
    }

    /// Takes away the device whose range starts at `base`, and returns it.
    ///
    /// # Errors
    /// [`BusError::Absent`] when no range starts there.
    pub fn remove(&self, base: u64) -> Result<Arc<dyn BusDevice>, BusError> {
        remove(&mut self.exclusive(), base)
    }

    /// Takes the devices away whose ranges start at `removals`, and lets others
    /// answer, all at one moment: no access sees a part of it done.
    ///
    /// # Errors
    /// As for [`Self::remove`] and [`Self::insert`]; nothing is changed then.
    pub fn update(&self, removals: &[u64], insertions: Vec<Insertion>) -> Result<(), BusError> {
        let mut entries = self.exclusive();
        let mut changed = entries.clone();
        for base in removals {
            remove(&mut changed, *base)?;
        }
        for new in insertions {
            insert(&mut changed, new)?;
        }
        *entries = changed;
        Ok(())
    }

    /// What is claimed, in ascending order.
    pub fn claims(&self) -> Vec<Claim> {
        self.shared()
            .iter()
            .map(|entry| entry.claim.clone())
            .collect()
    }

    /// Reads `data.len()` bytes from `address` on.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let part = self.find(address, done, rest.len());
            let Some(bytes) = rest.get_mut(..part.length) else {
                return;
            };
            match part.target {
                Some((device, offset)) => device.read(offset, bytes),
                None => bytes.fill(0xff),
            }
            done += part.length;
        }
    }

    /// Writes `data` from `address` on.
    pub fn write(&self, address: u64, data: &[u8]) {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let part = self.find(address, done, rest.len());
            let Some(bytes) = rest.get(..part.length) else {
                return;
            };
            if let Some((device, offset)) = part.target {
                device.write(offset, bytes);
            }
            done += part.length;
        }
    }

    /// Who answers `done` bytes behind `address`, and for how many of the
    /// `wanted` bytes. The length is 1 to `wanted`, so walks end.
    fn find(&self, address: u64, done: usize, wanted: usize) -> Part {
        let Some(address) = address.checked_add(done as u64) else {
            // Past the end of the address space: nothing can be there.
            return Part {
                length: wanted,
                target: None,
            };
        };
        let entries = self.shared();
        let place = entries.partition_point(|entry| entry.claim.last < address);
        let Some(entry) = entries.get(place) else {
            return Part {
                length: wanted,
                target: None,
            };
        };
        let claim = &entry.claim;
        if address < claim.first {
            return Part {
                length: shorter(wanted, claim.first - address),
                target: None,
            };
        }
        Part {
            // `last - address` may be u64::MAX, one more may not.
            length: shorter(wanted, (claim.last - address).saturating_add(1)),
            target: Some((Arc::clone(&entry.device), address - claim.first)),
        }
    }

    // A thread that panicked in here left the list whole: every change is one
    // insertion, one removal or one replacement.
    fn shared(&self) -> RwLockReadGuard<'_, Vec<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Vec<Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn insert(entries: &mut Vec<Entry>, new: Insertion) -> Result<(), BusError> {
    let Insertion {
        name,
        base,
        size,
        device,
    } = new;
    let last = size.checked_sub(1).and_then(|rest| base.checked_add(rest));
    let Some(last) = last else {
        return Err(BusError::BadRange { name, base, size });
    };
    let claim = Claim {
        name,
        first: base,
        last,
    };
    let place = entries.partition_point(|entry| entry.claim.last < base);
    if let Some(entry) = entries.get(place)
        && entry.claim.first <= last
    {
        return Err(BusError::Overlap {
            new: claim,
            present: entry.claim.clone(),
        });
    }
    entries.insert(place, Entry { claim, device });
    Ok(())
}

fn remove(entries: &mut Vec<Entry>, base: u64) -> Result<Arc<dyn BusDevice>, BusError> {
    let place = entries
        .binary_search_by_key(&base, |entry| entry.claim.first)
        .map_err(|_| BusError::Absent { base })?;
    Ok(entries.remove(place).device)
}

/// The first part of an access: its bytes, the device and the offset in it.
struct Part {
    length: usize,
    target: Option<(Arc<dyn BusDevice>, u64)>,
}

fn shorter(wanted: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(wanted, |limit| wanted.min(limit))
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;

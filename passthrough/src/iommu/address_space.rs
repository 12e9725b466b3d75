use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::Peers;
use crate::ports::HostMemory;

/// An inclusive range of I/O virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IovaRange {
    /// The first address.
    pub start: u64,
    /// The last address.
    pub last: u64,
}

impl IovaRange {
    /// Whether the `size` bytes from `start` on lie inside. Nothing lies
    /// inside when they run past the end of the address space.
    pub fn contains(&self, start: u64, size: u64) -> bool {
        let Some(last) = size.checked_sub(1).and_then(|more| start.checked_add(more)) else {
            return false;
        };
        self.start <= start && last <= self.last
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.last)
    }
}

/// What an address space can do, asked of the host once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceLimits {
    /// The usable ranges in ascending order: the IOMMU's aperture without the
    /// reserved regions of every attached device.
    pub ranges: Vec<IovaRange>,
    /// Page sizes the IOMMU supports, one bit each. iommufd tells only the
    /// smallest; it uses larger ones by itself.
    pub page_sizes: u64,
    /// How many maps may exist at once, where the host has a limit.
    pub max_maps: Option<u32>,
}

impl SpaceLimits {
    /// Whether the `size` bytes at `start` can be mapped.
    pub fn fits(&self, start: u64, size: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(start, size))
    }
}

/// Why a range could not be mapped or unmapped.
#[derive(Debug, Error)]
#[error("cannot {action} {size:#x} bytes of IOVA at {iova:#x}: {reason}")]
pub struct MapError {
    /// `map` or `unmap`.
    pub action: &'static str,
    /// The first address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// The cause in words, with the next step where there is one.
    pub reason: String,
    /// What the kernel answered.
    #[source]
    pub source: io::Error,
}

/// The address space of one or more devices behind an IOMMU.
///
/// Every attached device sees the same maps. Thread-safe.
pub trait AddressSpace: Send + Sync + Debug {
    /// What may be mapped where.
    fn limits(&self) -> &SpaceLimits;

    /// Lets devices read and write `memory` at `iova`. Pins the pages.
    /// `memory` is kept alive until it is unmapped.
    ///
    /// # Errors
    /// [`MapError`] when the range is outside the aperture, overlaps another
    /// map, or can't be pinned; nothing is mapped then.
    fn map(&self, iova: u64, memory: Arc<dyn HostMemory>) -> Result<(), MapError>;

    /// Takes the map that starts at `iova` away.
    ///
    /// # Errors
    /// [`MapError`] when there is none or the kernel refuses.
    fn unmap(&self, iova: u64) -> Result<(), MapError>;

    /// Takes everything away, in one request where the kernel has one: also
    /// what devices offer each other, which stays away until it is offered
    /// anew.
    ///
    /// # Errors
    /// [`MapError`] of one that the kernel refuses to unmap; the others are
    /// gone then.
    fn unmap_all(&self) -> Result<(), MapError>;

    /// The devices in the space and what they offer each other. Constant; an
    /// implementation keeps a [`Peers::default`] for the purpose.
    fn peers(&self) -> &Peers;
}

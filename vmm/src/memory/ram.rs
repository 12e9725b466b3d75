use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use passthrough::ports::HostMemory;
use thiserror::Error;
use vm_memory::{
    Address, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestRegionCollectionError, MemoryRegionAddress, VolatileSlice,
};

use super::layout::GuestRange;

/// Why guest RAM could not be had.
#[derive(Debug, Error)]
pub enum RamError {
    /// The host refused the mapping.
    #[error("cannot reserve {0:#x} bytes of host memory for the guest")]
    Map(u64, #[source] io::Error),
    /// The host refused to populate it.
    #[error(
        "cannot populate guest RAM at {0:#x}: the host is out of memory or over a cgroup limit"
    )]
    Populate(u64, #[source] io::Error),
    /// The pieces don't make a guest memory.
    #[error("guest RAM can't be put together")]
    Collect(#[from] GuestRegionCollectionError),
}

/// A piece of guest RAM: private anonymous host memory, on transparent huge
/// pages where the host allows them (every distribution's default does).
///
/// Anonymous memory and not a memfd: shared memory gets huge pages only where
/// an administrator turned them on, and zeroing and pinning 4 KiB pages costs
/// two to three times as much.
#[derive(Debug)]
pub struct RamBlock {
    start: u64,
    reservation: NonNull<u8>,
    reserved: usize,
    memory: NonNull<u8>,
    size: usize,
}

// SAFETY: the block is an address range. Nothing in it changes after `new`,
// and what the addresses hold is only reached by volatile accesses.
unsafe impl Send for RamBlock {}
// SAFETY: as above.
unsafe impl Sync for RamBlock {}

// SAFETY: `memory` and `size` never change and are multiples of the huge page
// and the page size; the mapping is only taken away in `drop`.
unsafe impl HostMemory for RamBlock {
    fn address(&self) -> NonNull<u8> {
        self.memory
    }

    fn size(&self) -> usize {
        self.size
    }
}

/// Huge page size of x86-64: what the mapping is aligned to.
const HUGE_PAGE: usize = 2 << 20;

impl RamBlock {
    fn new(range: GuestRange) -> Result<Self, RamError> {
        let fail = |source| RamError::Map(range.size, source);
        let too_big = || fail(io::ErrorKind::OutOfMemory.into());
        let size = usize::try_from(range.size).map_err(|_| too_big())?;
        // One huge page more, so that an aligned part can be picked.
        let reserved = size.checked_add(HUGE_PAGE).ok_or_else(too_big)?;
        // SAFETY: a new private mapping at an address of the kernel's choice
        // touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(fail(io::Error::last_os_error()));
        }
        let reservation = NonNull::new(address.cast::<u8>()).ok_or_else(too_big)?;
        let skip = reservation.align_offset(HUGE_PAGE);
        // SAFETY: `skip` is below HUGE_PAGE, so the result lies in the mapping.
        let memory = unsafe { reservation.add(skip) };
        let block = Self {
            start: range.start,
            reservation,
            reserved,
            memory,
            size,
        };
        block
            .advise(libc::MADV_HUGEPAGE, 0, size)
            .unwrap_or_else(|error| {
                log::info!(
                    "no transparent huge pages for guest RAM: {error}; starting takes longer"
                );
            });
        // The pages that devices reach stay with this process: a child would
        // get copies of all of them.
        block.advise(libc::MADV_DONTFORK, 0, size).map_err(fail)?;
        // A core dump of the monitor without the guest's secrets, and small.
        block
            .advise(libc::MADV_DONTDUMP, 0, size)
            .unwrap_or_else(|error| {
                log::debug!("guest RAM stays part of core dumps: {error}");
            });
        Ok(block)
    }

    /// Where it begins in the guest.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Gives the `size` bytes from `offset` on pages of their own, zeroed.
    /// Pages that are there already stay as they are.
    ///
    /// # Errors
    /// [`RamError::Populate`] when the host has no more memory to give.
    pub fn populate(&self, offset: usize, size: usize) -> Result<(), RamError> {
        match self.advise(libc::MADV_POPULATE_WRITE, offset, size) {
            // Kernels before 5.14 don't know it; pinning populates there.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => {
                result.map_err(|source| RamError::Populate(self.start + offset as u64, source))
            }
        }
    }

    fn advise(&self, advice: i32, offset: usize, size: usize) -> io::Result<()> {
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.size);
        if !inside {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `offset` was checked to lie inside the mapping.
        let address = unsafe { self.memory.add(offset) };
        // SAFETY: the range lies inside our own mapping, and none of the
        // advices used here changes what it holds.
        let result = unsafe { libc::madvise(address.as_ptr().cast(), size, advice) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for RamBlock {
    fn drop(&mut self) {
        // SAFETY: the range is the whole mapping made in `new`; whoever was
        // given its address holds an Arc of this block, so nobody is left.
        let result = unsafe { libc::munmap(self.reservation.as_ptr().cast(), self.reserved) };
        if result != 0 {
            log::error!(
                "guest RAM at {:#x} stays mapped: {}",
                self.start,
                io::Error::last_os_error()
            );
        }
    }
}

impl GuestMemoryRegion for RamBlock {
    type B = ();

    fn len(&self) -> u64 {
        self.size as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let first = usize::try_from(offset.raw_value()).ok();
        let end = first.and_then(|first| first.checked_add(count));
        let (Some(first), Some(_)) = (first, end.filter(|end| *end <= self.size)) else {
            return Err(GuestMemoryError::InvalidBackendAddress);
        };
        // SAFETY: `first` was checked to lie inside the mapping.
        let address = unsafe { self.memory.add(first) };
        // SAFETY: `count` bytes from there lie inside the mapping too, which
        // stays as long as the block that the slice borrows.
        Ok(unsafe { VolatileSlice::new(address.as_ptr(), count) })
    }
}

impl GuestMemoryRegionBytes for RamBlock {}

/// All RAM of a guest.
#[derive(Clone, Debug)]
pub struct GuestRam {
    view: GuestRegionCollection<RamBlock>,
    blocks: Vec<Arc<RamBlock>>,
}

impl GuestRam {
    /// Reserves host memory for `ranges`; pages come when they are touched.
    ///
    /// # Errors
    /// [`RamError`] when the host refuses.
    pub fn new(ranges: &[GuestRange]) -> Result<Self, RamError> {
        let blocks = ranges
            .iter()
            .map(|range| RamBlock::new(*range).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let view = GuestRegionCollection::from_arc_regions(blocks.clone())?;
        Ok(Self { view, blocks })
    }

    /// For reading and writing by guest physical address.
    pub fn view(&self) -> &GuestRegionCollection<RamBlock> {
        &self.view
    }

    /// The pieces, in ascending order.
    pub fn blocks(&self) -> &[Arc<RamBlock>] {
        &self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_is_aligned_written_and_populated() {
        let ranges = [
            GuestRange {
                start: 0,
                size: 4 << 20,
            },
            GuestRange {
                start: 4 << 30,
                size: 2 << 20,
            },
        ];
        let ram = GuestRam::new(&ranges).unwrap();
        for block in ram.blocks() {
            assert_eq!(block.address().as_ptr() as usize % HUGE_PAGE, 0);
        }
        ram.view()
            .write_obj(0x1234_5678u32, GuestAddress(4 << 30))
            .unwrap();
        ram.blocks()[1].populate(0, 2 << 20).unwrap();
        let value: u32 = ram.view().read_obj(GuestAddress(4 << 30)).unwrap();
        assert_eq!(value, 0x1234_5678, "populating keeps what is there");
        assert!(ram.view().read_obj::<u32>(GuestAddress(4 << 20)).is_err());
    }

    #[test]
    fn populating_outside_is_refused() {
        let ram = GuestRam::new(&[GuestRange {
            start: 0,
            size: 2 << 20,
        }])
        .unwrap();
        assert!(
            ram.blocks()[0]
                .advise(libc::MADV_POPULATE_WRITE, 1 << 20, 2 << 20)
                .is_err()
        );
        assert!(
            ram.blocks()[0]
                .advise(libc::MADV_POPULATE_WRITE, usize::MAX, 2)
                .is_err()
        );
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        let error = GuestRam::new(&[GuestRange {
            start: 0,
            size: 1 << 60,
        }])
        .unwrap_err();
        assert!(matches!(error, RamError::Map(..)), "{error}");
    }
}

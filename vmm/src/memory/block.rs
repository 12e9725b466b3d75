use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use passthrough::ports::HostMemory;
use vm_memory::{
    Address, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    MemoryRegionAddress, VolatileSlice,
};

use super::backing::RamFile;
use super::{Backing, BackingKind, GuestRange, NumaNode, RamError};

/// A piece of guest RAM: host memory of one [`Backing`], aligned to its pages,
/// so that every page of the guest can be a huge one of the host.
#[derive(Debug)]
pub struct RamBlock {
    start: u64,
    reservation: NonNull<u8>,
    reserved: usize,
    memory: NonNull<u8>,
    size: usize,
    /// The size of its pages from a pool; nothing when the kernel chooses.
    page: Option<usize>,
    /// Of a shared one: the file, and where in it the block begins.
    file: Option<(Arc<RamFile>, u64)>,
}

// SAFETY: the block is an address range. Nothing in it changes after `new`,
// and what the addresses hold is only reached by volatile accesses.
unsafe impl Send for RamBlock {}
// SAFETY: as above.
unsafe impl Sync for RamBlock {}

// SAFETY: `memory` and `size` never change and are multiples of the huge page
// and the page size; the mapping is only taken away in `drop`. It is a shared
// map of the file, where there is one, from that offset on.
unsafe impl HostMemory for RamBlock {
    fn address(&self) -> NonNull<u8> {
        self.memory
    }

    fn size(&self) -> usize {
        self.size
    }

    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        let (file, offset) = self.file.as_ref()?;
        Some((file.as_fd(), *offset))
    }
}

/// Huge page size of x86-64: what the mapping is aligned to at least.
pub(super) const HUGE_PAGE: usize = 2 << 20;

impl RamBlock {
    /// Maps `range`. A `file` is of the backing's kind, and large enough for
    /// `range` from the offset on.
    pub(super) fn new(
        range: GuestRange,
        backing: &Backing,
        file: Option<(Arc<RamFile>, u64)>,
    ) -> Result<Self, RamError> {
        let fail = |source| RamError::Map(range.size, source);
        let too_big = || fail(io::ErrorKind::OutOfMemory.into());
        let size = usize::try_from(range.size).map_err(|_| too_big())?;
        let page = backing.page_bytes().and_then(|page| page.try_into().ok());
        let alignment = page.unwrap_or(HUGE_PAGE).max(HUGE_PAGE);
        // One page more, so that an aligned part can be picked.
        let reserved = size.checked_add(alignment).ok_or_else(too_big)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new private mapping at an address of the kernel's choice
        // touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(fail(io::Error::last_os_error()));
        }
        let reservation = NonNull::new(address.cast::<u8>()).ok_or_else(too_big)?;
        let skip = reservation.align_offset(alignment);
        // SAFETY: `skip` is below the alignment, so the result lies in the mapping.
        let memory = unsafe { reservation.add(skip) };
        let (flags, fd, offset) = match &file {
            Some((file, offset)) => (libc::MAP_SHARED, file.as_fd().as_raw_fd(), *offset),
            None => (flags, -1, 0),
        };
        let offset = libc::off_t::try_from(offset).map_err(|_| too_big())?;
        // SAFETY: the range lies inside the reservation, which nobody else
        // knows of.
        let address = unsafe {
            libc::mmap(
                memory.as_ptr().cast(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_FIXED,
                fd,
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            // The reservation may have a hole now that is somebody else's by
            // then. It is left where it is; it costs nothing but addresses.
            let error = io::Error::last_os_error();
            return Err(match backing.kind {
                BackingKind::HugePages(page) => RamError::Pool {
                    size: range.size,
                    page,
                    source: error,
                },
                BackingKind::Anonymous | BackingKind::Shared => fail(error),
            });
        }
        let block = Self {
            start: range.start,
            reservation,
            reserved,
            memory,
            size,
            page,
            file,
        };
        if let Some(node) = backing.node {
            block.bind(node).map_err(|error| RamError::Node {
                node: node.number(),
                source: error,
            })?;
        }
        if block.page.is_none() {
            block.ask_for_huge_pages();
        }
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

    fn ask_for_huge_pages(&self) {
        if let Err(error) = self.advise(libc::MADV_HUGEPAGE, 0, self.size) {
            log::info!("no transparent huge pages for guest RAM: {error}; starting takes longer");
        }
    }

    /// Has every page come from `node`, or not at all.
    fn bind(&self, node: NumaNode) -> io::Result<()> {
        let mask = node.mask();
        // The kernel takes one bit less than it is told (mm/mempolicy.c, get_nodes).
        let bits = mask.len() * u64::BITS as usize + 1;
        // SAFETY: the range is our own mapping, and `mask` has as many bits as
        // the kernel reads. A policy changes nothing that is there.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.memory.as_ptr(),
                self.size,
                libc::MPOL_BIND,
                mask.as_ptr(),
                bits,
                0,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Where it begins in the guest.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// How much is best populated in one call, in bytes. A page, because
    /// populating holds the process's memory map: with larger steps every
    /// mmap(2) of the start waits.
    pub fn populate_step(&self) -> usize {
        self.page.unwrap_or(HUGE_PAGE)
    }

    /// Gives the `size` bytes from `offset` on pages of their own, zeroed.
    /// Pages that are there already stay as they are. Several threads may do
    /// it at once.
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

    /// Gives the pages of a range back to the host: it then reads as zeros.
    /// Whoever has them pinned keeps the old ones, which is why only
    /// [`super::GuestRam::discard`] may call it.
    pub(super) fn discard(&self, offset: usize, size: usize) -> io::Result<()> {
        let page = self.page.unwrap_or(crate::sys::page_size() as usize);
        let whole = offset.is_multiple_of(page) && size.is_multiple_of(page);
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.size);
        if !whole || !inside || size == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &self.file {
            Some((file, start)) => file.punch(start + offset as u64, size as u64),
            None => self.advise(libc::MADV_DONTNEED, offset, size),
        }
    }

    pub(super) fn advise(&self, advice: i32, offset: usize, size: usize) -> io::Result<()> {
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.size);
        if !inside {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `offset` was checked to lie inside the mapping.
        let address = unsafe { self.memory.add(offset) };
        // SAFETY: the range lies inside our own mapping, of which nothing holds
        // a reference: it may change, and does so by the guest all the time.
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

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
#[cfg(any(test, feature = "fake"))]
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
#[cfg(any(test, feature = "fake"))]
use std::sync::Arc;

use crate::ports::HostMemory;

/// The host's page size in bytes.
pub(crate) fn page_size() -> u64 {
    // SAFETY: the call has no precondition.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It can't fail on Linux, whose smallest page has 4 KiB.
    u64::try_from(size).unwrap_or(4096)
}

/// How many bytes this process may pin (`RLIMIT_MEMLOCK`); nothing when there
/// is no limit.
pub(crate) fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one structure into `limit`.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Where in the address space a map should lie: at an address that leaves
/// `phase` when it is divided by `alignment`.
///
/// The kernel can use huge page-table entries for device memory only where
/// virtual and physical address agree in their low bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// A power of two, at least the page size.
    pub(crate) alignment: usize,
    /// Page-aligned, below `alignment`.
    pub(crate) phase: usize,
}

/// Memory mapped into this process, shared with a device or with nobody.
/// Unmapped when it is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    size: usize,
}

// SAFETY: the value owns a range of memory that any thread may use; access to
// it is volatile and never through references.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

// SAFETY: the range is page-aligned, as mmap answers and takes sizes only in
// whole pages here; it stays mapped until `drop` and no reference to it exists.
unsafe impl HostMemory for Mapping {
    fn address(&self) -> NonNull<u8> {
        self.address
    }

    fn size(&self) -> usize {
        self.size
    }
}

impl Mapping {
    /// Maps `size` bytes of `file` from `offset` on, shared, readable and
    /// writable.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` when sizes are not in whole pages.
    pub(crate) fn of_file(
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
        placement: Placement,
    ) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let page = usize::try_from(page_size()).map_err(|_| invalid())?;
        let Placement { alignment, phase } = placement;
        let whole = size.is_multiple_of(page) && phase.is_multiple_of(page);
        if size == 0 || !whole || phase >= alignment || !alignment.is_power_of_two() {
            return Err(invalid());
        }
        let offset = libc::off_t::try_from(offset).map_err(|_| invalid())?;
        let slack = alignment.checked_add(size).ok_or_else(invalid)?;
        // An inaccessible map reserves the room; the real one replaces the
        // well-placed part of it, and the rest goes back.
        let reserved = Self::anonymous_with(slack, libc::PROT_NONE)?;
        let start = reserved.address.as_ptr() as usize;
        let skip = phase.wrapping_sub(start) & (alignment - 1);
        // SAFETY: `skip` is below `alignment`, so `skip + size` lies inside
        // the reservation of `alignment + size` bytes.
        let target = unsafe { reserved.address.as_ptr().add(skip) };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let fd = file.as_raw_fd();
        // SAFETY: the range that is replaced belongs to the reservation, which
        // nobody else knows of.
        let address = unsafe { libc::mmap(target.cast(), size, protection, flags, fd, offset) };
        // From here on the reservation has no owner: it was given away, or, if
        // the map failed, may have a hole that is somebody else's by now. Then
        // it is left where it is; it costs nothing but addresses.
        let reserved = ManuallyDrop::new(reserved);
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let after = skip + size;
        // SAFETY: both ends of the reservation are still the reservation's own
        // and no longer needed.
        unsafe { unmap(reserved.address.as_ptr(), skip) };
        // SAFETY: `after` is at most the reservation's size.
        let tail = unsafe { reserved.address.as_ptr().add(after) };
        // SAFETY: as for the first end.
        unsafe { unmap(tail, slack - after) };
        let address = NonNull::new(address.cast()).ok_or_else(invalid)?;
        let mapping = Self { address, size };
        mapping.keep_from_children()?;
        Ok(mapping)
    }

    /// A child process must not have device memory: as long as it lives, the
    /// device would stay open.
    pub(super) fn keep_from_children(&self) -> io::Result<()> {
        let address = self.address.as_ptr().cast();
        // SAFETY: the range is this map's own, and nothing of it changes here.
        match unsafe { libc::madvise(address, self.size, libc::MADV_DONTFORK) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Zeroed memory that is shared with nobody: `size` bytes, in whole pages.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn anonymous(size: usize) -> io::Result<Self> {
        Self::anonymous_with(size, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn anonymous_with(size: usize, protection: libc::c_int) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new map at a place of the kernel's choice touches nothing
        // that exists.
        let address = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast());
        let address = address.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { address, size })
    }

    /// The `size` bytes of a map from `offset` on, in whole pages, as memory of
    /// their own; nothing when they are not inside.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn part(whole: &Arc<Self>, offset: u64, size: u64) -> Option<Part> {
        let (offset, size) = (usize::try_from(offset).ok()?, usize::try_from(size).ok()?);
        let page = usize::try_from(page_size()).ok()?;
        let end = offset.checked_add(size)?;
        let paged = offset.is_multiple_of(page) && size.is_multiple_of(page);
        (size > 0 && paged && end <= whole.size).then(|| Part {
            whole: Arc::clone(whole),
            offset,
            size,
        })
    }

    /// Reads bytes one by one. What lies past the end reads as all ones.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(0_u64..) {
            *byte = match self.byte(offset, at) {
                // SAFETY: `byte` answers only addresses inside the map.
                Some(address) => unsafe { ptr::read_volatile(address) },
                None => 0xff,
            };
        }
    }

    /// Writes bytes one by one. What lies past the end is dropped.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        for (&byte, at) in data.iter().zip(0_u64..) {
            if let Some(address) = self.byte(offset, at) {
                // SAFETY: `byte` answers only addresses inside the map, and
                // nobody holds a reference to any.
                unsafe { ptr::write_volatile(address, byte) };
            }
        }
    }

    fn byte(&self, offset: u64, more: u64) -> Option<*mut u8> {
        let at = usize::try_from(offset.checked_add(more)?).ok()?;
        // SAFETY: `at` is inside the map.
        (at < self.size).then(|| unsafe { self.address.as_ptr().add(at) })
    }
}

/// Part of a [`Mapping`], which stays mapped as long as its parts.
#[cfg(any(test, feature = "fake"))]
#[derive(Debug)]
pub(crate) struct Part {
    whole: Arc<Mapping>,
    offset: usize,
    size: usize,
}

// SAFETY: whole pages inside of a map that lives as long as this value.
#[cfg(any(test, feature = "fake"))]
unsafe impl HostMemory for Part {
    fn address(&self) -> NonNull<u8> {
        // SAFETY: `Mapping::part` has checked that the offset is inside.
        unsafe { self.whole.address.add(self.offset) }
    }

    fn size(&self) -> usize {
        self.size
    }
}

/// An eventfd, non-blocking and close-on-exec, as interrupt routes have.
///
/// # Errors
/// When descriptors have run out.
#[cfg(any(test, feature = "fake"))]
pub(crate) fn event() -> io::Result<OwnedFd> {
    // SAFETY: the call touches no memory.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the value owns the range and is gone after this.
        unsafe { unmap(self.address.as_ptr(), self.size) };
    }
}

/// Gives a range back. It can fail only for ranges that were never mapped.
///
/// # Safety
/// The caller owns the range, page-aligned, and does not use it any more.
unsafe fn unmap(address: *mut u8, size: usize) {
    if size > 0 {
        // SAFETY: as the caller promises.
        unsafe { libc::munmap(address.cast(), size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn anonymous_memory_is_zero_and_bounded() {
        let page = page_size();
        let memory = Mapping::anonymous(page as usize).unwrap();
        memory.write(page - 2, &[1, 2, 3]);
        let mut data = [0; 3];
        memory.read(page - 3, &mut data);
        assert_eq!(data, [0, 1, 2]);
        memory.read(page - 1, &mut data);
        assert_eq!(data, [2, 0xff, 0xff]);
        memory.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 3]);
    }

    #[test]
    fn a_file_is_mapped_where_it_was_asked_for() {
        let page = page_size() as usize;
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * page as u64).unwrap();
        for phase in [0, page, 31 * page] {
            let alignment = 32 * page;
            let placement = Placement { alignment, phase };
            let map = Mapping::of_file(file.as_fd(), page as u64, 2 * page, placement).unwrap();
            assert_eq!(map.address().as_ptr() as usize % alignment, phase);
            map.write(0, &[phase as u8, 7]);
            let mut data = [0; 2];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut data, page as u64).unwrap();
            assert_eq!(data, [phase as u8, 7]);
        }
    }

    #[test]
    fn a_device_s_memory_is_not_inherited() {
        let page = page_size() as usize;
        let file = tempfile::tempfile().unwrap();
        file.set_len(page as u64).unwrap();
        let placement = Placement {
            alignment: page,
            phase: 0,
        };
        let map = Mapping::of_file(file.as_fd(), 0, page, placement).unwrap();
        let start = format!("{:x}-", map.address().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let entry = &maps[maps.find(&start).unwrap()..];
        let flags = entry.lines().find(|line| line.starts_with("VmFlags:"));
        // VM_DONTCOPY (proc_pid_smaps(5)).
        assert!(flags.unwrap().contains(" dc "), "{flags:?}");
    }

    #[test]
    fn a_large_map_is_aligned_and_not_touched() {
        const GIB: usize = 1 << 30;
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 30).unwrap();
        let placement = Placement {
            alignment: GIB,
            phase: 0,
        };
        let map = Mapping::of_file(file.as_fd(), 0, 16 * GIB, placement).unwrap();
        let start = map.address().as_ptr() as usize;
        assert_eq!(start % GIB, 0);
        assert_eq!(map.size(), 16 * GIB);
        let ranges = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let range = format!("{start:x}-{:x} rw-s", start + 16 * GIB);
        let lines = ranges.lines().skip_while(|line| !line.starts_with(&range));
        let resident = lines.take(24).find(|line| line.starts_with("Rss:"));
        let words: Vec<_> = resident.unwrap().split_whitespace().collect();
        assert_eq!(words, ["Rss:", "0", "kB"]);
    }

    #[test]
    fn odd_sizes_are_refused() {
        let page = page_size() as usize;
        let file = tempfile::tempfile().unwrap();
        let map = |size, alignment, phase| {
            Mapping::of_file(file.as_fd(), 0, size, Placement { alignment, phase })
        };
        assert!(map(0, page, 0).is_err());
        assert!(map(page + 1, page, 0).is_err());
        assert!(map(page, 3 * page, 0).is_err());
        assert!(map(page, page, page).is_err());
        assert!(map(usize::MAX - page + 1, 1 << 40, 0).is_err());
    }
}

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;

use super::mapping;
use crate::sys;

/// A write of the guest's that waits in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// To a port, not to memory.
    pub(super) port: bool,
    /// Where.
    pub(super) address: u64,
    data: [u8; 8],
    length: usize,
}

impl Entry {
    /// What was written.
    pub(super) fn data(&self) -> &[u8] {
        self.data.get(..self.length).unwrap_or(&self.data)
    }
}

/// The page in which KVM gathers writes (linux/kvm.h,
/// `struct kvm_coalesced_mmio_ring`). A VM has one; each of its vCPUs shows it.
///
/// ```text
///  first   the oldest entry     moved by this side once it is carried out
///  last    behind the newest    moved by KVM
///  entries, a ring of as many as the page has room for
/// ```
#[derive(Debug)]
pub(super) struct Ring {
    page: NonNull<u8>,
    size: usize,
}

// SAFETY: an address range that stays until `drop`. What it holds is reached
// by atomic and volatile accesses only.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// Maps the ring of `vcpu`'s VM. Like all that holds a VM, it is kept out
    /// of child processes (see [`super::keep_from_children`]).
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        let size = sys::page_size() as usize;
        let offset = KVM_COALESCED_MMIO_PAGE_OFFSET as usize * size;
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // nothing that exists.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        let page = match NonNull::new(page.cast::<u8>()) {
            Some(page) if page.as_ptr().cast() != libc::MAP_FAILED => page,
            _ => return Err(io::Error::last_os_error()),
        };
        let ring = Self { page, size };
        mapping::keep_range_from_children(page.as_ptr(), size)?;
        Ok(ring)
    }

    /// Whether every write that had come in has been carried out.
    pub(super) fn is_empty(&self) -> bool {
        // In this order: an entry that came in and was carried out between the
        // two looks like one that waits, never the other way round.
        let first = self.first().load(Ordering::Acquire);
        first == self.last().load(Ordering::Acquire)
    }

    /// Has `carry_out` see the oldest entry, if there is one, and only then
    /// lets go of it. One thread at a time may call it.
    pub(super) fn next(&self, carry_out: impl FnOnce(Entry)) -> bool {
        let first = self.first().load(Ordering::Acquire);
        if first == self.last().load(Ordering::Acquire) {
            return false;
        }
        let capacity = self.capacity();
        if let Some(entry) = self.entry(first) {
            carry_out(entry);
        }
        let next = (first as usize + 1) % capacity;
        self.first().store(next as u32, Ordering::Release);
        true
    }

    /// Entries that the page has room for; one stays free.
    fn capacity(&self) -> usize {
        (self.size - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()
    }

    fn entry(&self, index: u32) -> Option<Entry> {
        let index = usize::try_from(index).ok()?;
        if index >= self.capacity() {
            return None;
        }
        let offset = size_of::<kvm_coalesced_mmio_ring>() + index * size_of::<kvm_coalesced_mmio>();
        // SAFETY: the index was checked against the page's size.
        let place = unsafe { self.page.add(offset) };
        // SAFETY: KVM has written the entry whole before it moved `last` past
        // it, and leaves it alone until `first` has passed it. It is aligned:
        // the page is, and both sizes are multiples of 8.
        let raw = unsafe { place.cast::<kvm_coalesced_mmio>().read_volatile() };
        // SAFETY: both members of the union are this number.
        let pio = unsafe { raw.__bindgen_anon_1.pio };
        Some(Entry {
            port: pio != 0,
            address: raw.phys_addr,
            data: raw.data,
            length: usize::try_from(raw.len).unwrap_or(usize::MAX),
        })
    }

    fn first(&self) -> &AtomicU32 {
        // SAFETY: the ring begins with this number, which both sides reach by
        // atomic accesses alone, and the page lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.page.as_ptr().cast()) }
    }

    fn last(&self) -> &AtomicU32 {
        // SAFETY: the second number of a page of at least 4 KiB.
        let place = unsafe { self.page.add(size_of::<u32>()) };
        // SAFETY: as for `first`.
        unsafe { AtomicU32::from_ptr(place.as_ptr().cast()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows from it.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.size) };
    }
}

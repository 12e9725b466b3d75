use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::{GuestError, at};

const DEVICE: &str = "/dev/mem";
const PAGE: u64 = 4096;

/// A range of the guest's physical addresses, uncached.
#[derive(Debug)]
pub struct Memory {
    address: u64,
    /// Of `address` in the first page.
    skip: usize,
    region: MmapRegion,
}

impl Memory {
    /// Maps a range; nothing needs to be there yet.
    ///
    /// # Errors
    /// [`GuestError`] when the kernel refuses.
    pub fn map(address: u64, size: u64) -> Result<Self, GuestError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::SYNC.bits() as i32)
            .open(DEVICE)
            .map_err(at(DEVICE))?;
        let skip = address % PAGE;
        let failed = |reason: String| GuestError::Memory { address, reason };
        let length = usize::try_from(skip + size).map_err(|error| failed(error.to_string()))?;
        let region = MmapRegion::from_file(FileOffset::new(file, address - skip), length)
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            address,
            skip: skip as usize,
            region,
        })
    }

    /// One read of 1, 2, 4 or 8 bytes at a multiple of as many.
    ///
    /// # Errors
    /// [`GuestError`] when that is outside.
    pub fn read<T: vm_memory::AtomicAccess>(&self, offset: usize) -> Result<T, GuestError> {
        let slice = self.region.as_volatile_slice();
        let read = slice.load(self.skip + offset, Ordering::Relaxed);
        read.map_err(|error| self.failed(offset, &error))
    }

    /// One write, as [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write<T: vm_memory::AtomicAccess>(
        &self,
        offset: usize,
        value: T,
    ) -> Result<(), GuestError> {
        let slice = self.region.as_volatile_slice();
        let written = slice.store(value, self.skip + offset, Ordering::Relaxed);
        written.map_err(|error| self.failed(offset, &error))
    }

    fn failed(&self, offset: usize, reason: &dyn std::fmt::Display) -> GuestError {
        GuestError::Memory {
            address: self.address + offset as u64,
            reason: reason.to_string(),
        }
    }
}

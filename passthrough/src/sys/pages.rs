use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Mapping;
use super::memory::page_size;
use crate::ports::HostMemory;

/// Memory of this process for devices and guests: zeroed, in whole pages, at
/// one place for as long as it lives. Not inherited by child processes, which
/// would get copies of pages that devices write to.
///
/// What devices write to is no Rust data, so there are no references to it:
/// bytes and words are copied in and out.
#[derive(Debug)]
pub struct Pages(Mapping);

impl Pages {
    /// At least `size` bytes, and at least one page.
    ///
    /// # Errors
    /// The kernel's, when it has no memory left.
    pub fn new(size: usize) -> io::Result<Self> {
        let page = usize::try_from(page_size()).map_err(io::Error::other)?;
        let size = size.max(1).checked_next_multiple_of(page);
        let mapping = Mapping::anonymous(size.ok_or(io::ErrorKind::OutOfMemory)?)?;
        mapping.keep_from_children()?;
        Ok(Self(mapping))
    }

    /// Copies bytes out, one by one: a device that writes meanwhile may be seen
    /// half-way. What lies past the end reads as all ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    /// Copies bytes in, one by one. What lies past the end is dropped.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }

    /// The little-endian word at `offset`, as a whole, before anything that is
    /// read after it: for words by which a device says that it is done. All
    /// ones past the end, and at an offset that is no multiple of four.
    pub fn load_u32(&self, offset: u64) -> u32 {
        let word = self.word(offset);
        u32::from_le(word.map_or(u32::MAX, |word| word.load(Ordering::Acquire)))
    }

    /// Sets the little-endian word at `offset`, as a whole, after everything
    /// that was written before it. Nothing happens past the end, and at an
    /// offset that is no multiple of four.
    pub fn store_u32(&self, offset: u64, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        let at = usize::try_from(offset).ok()?;
        let end = at.checked_add(size_of::<u32>())?;
        if !at.is_multiple_of(align_of::<u32>()) || end > self.0.size() {
            return None;
        }
        // SAFETY: the word was checked to lie inside the map.
        let word = unsafe { self.0.address().add(at) };
        // SAFETY: it is aligned, stays mapped as long as `self`, and this
        // process touches it by atomic and volatile accesses only.
        Some(unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) })
    }
}

// SAFETY: all of it is the mapping's, whose contract it is too.
unsafe impl HostMemory for Pages {
    fn address(&self) -> NonNull<u8> {
        self.0.address()
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_are_the_same_memory() {
        let pages = Pages::new(1).unwrap();
        let size = pages.size() as u64;
        assert_eq!(size, page_size());
        pages.store_u32(8, 0x1234_5678);
        let mut bytes = [0; 4];
        pages.read(8, &mut bytes);
        assert_eq!(bytes, [0x78, 0x56, 0x34, 0x12]);
        pages.write(size - 4, &[1, 0, 0, 0, 9]);
        assert_eq!(pages.load_u32(size - 4), 1);
    }

    #[test]
    fn what_is_outside_or_odd_is_all_ones() {
        let pages = Pages::new(page_size() as usize + 1).unwrap();
        let size = pages.size() as u64;
        assert_eq!(size, 2 * page_size());
        for offset in [1, 6, size, size - 2, u64::MAX, u64::MAX - 3] {
            pages.store_u32(offset, 0);
            assert_eq!(pages.load_u32(offset), u32::MAX);
        }
        assert!(Pages::new(usize::MAX).is_err());
    }
}

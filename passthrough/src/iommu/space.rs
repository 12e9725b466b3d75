use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{AddressSpace, MapError, Peers, SpaceLimits};
use crate::ports::HostMemory;
use crate::sys;

/// What the kernel does for an address space. A trait, so that the rules are
/// the same for all of the kernel's interfaces, and can be tried without an
/// IOMMU.
pub(crate) trait Dma: Send + Sync + Debug {
    /// Pins `memory` and maps it.
    fn map(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()>;

    /// Unmaps and unpins; answers how many bytes were mapped.
    fn unmap(&self, iova: u64, size: u64) -> io::Result<u64>;

    /// Unmaps everything in one request; answers how many bytes were mapped.
    fn unmap_all(&self) -> io::Result<u64>;

    /// Whether the maps stand. A container loses them all with its last device.
    fn is_attached(&self) -> bool;

    /// What a refusal to map `memory` means, where this interface has its own
    /// reasons.
    fn explain(&self, errno: i32, memory: &dyn HostMemory) -> Option<&'static str>;
}

/// An address space that the kernel keeps: the books of what is mapped, and the
/// rules that hold without asking it.
///
/// What is still mapped when it is dropped is unmapped then.
#[derive(Debug)]
pub(crate) struct KernelSpace<D: Dma> {
    dma: D,
    limits: SpaceLimits,
    peers: Peers,
    /// By first address. Lock order: innermost; held across the kernel's map
    /// and unmap, so that two of them can't cross.
    maps: Mutex<BTreeMap<u64, Arc<dyn HostMemory>>>,
}

impl<D: Dma> KernelSpace<D> {
    pub(crate) fn new(dma: D, limits: SpaceLimits) -> Self {
        Self {
            dma,
            limits,
            peers: Peers::default(),
            maps: Mutex::default(),
        }
    }

    fn maps(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<dyn HostMemory>>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules that hold without asking the kernel.
    fn check(
        &self,
        maps: &BTreeMap<u64, Arc<dyn HostMemory>>,
        iova: u64,
        size: u64,
    ) -> Result<(), (String, i32)> {
        let page = match self.limits.page_sizes {
            0 => sys::page_size(),
            sizes => 1 << sizes.trailing_zeros(),
        };
        if size == 0 || !iova.is_multiple_of(page) || !size.is_multiple_of(page) {
            let reason = format!("the IOMMU maps whole pages of {page:#x} bytes");
            return Err((reason, libc::EINVAL));
        }
        if !self.limits.fits(iova, size) {
            let ranges: Vec<_> = self.limits.ranges.iter().map(ToString::to_string).collect();
            let ranges = ranges.join(", ");
            let reason = format!(
                "the IOMMU can map only {ranges}: place guest memory and BARs inside these ranges"
            );
            return Err((reason, libc::EINVAL));
        }
        // Inside the limits, so that the sum can't overflow.
        let last = iova + (size - 1);
        if let Some((other, memory)) = maps.range(..=last).next_back() {
            let other_last = other + (memory.size() as u64 - 1);
            if other_last >= iova {
                let reason = format!("{other:#x}-{other_last:#x} is mapped already");
                return Err((reason, libc::EEXIST));
            }
        }
        match self.limits.max_maps {
            Some(max) if u32::try_from(maps.len()).unwrap_or(u32::MAX) >= max => {
                Err((too_many(max), libc::ENOSPC))
            }
            _ => Ok(()),
        }
    }

    /// Has the kernel unmap everything, at once or, where it does not know how,
    /// one by one. What stays mapped stays in the books.
    fn clear(&self, maps: &mut BTreeMap<u64, Arc<dyn HostMemory>>) -> Result<(), MapError> {
        if !self.dma.is_attached() || maps.is_empty() || self.dma.unmap_all().is_ok() {
            maps.clear();
            return Ok(());
        }
        let mut result = Ok(());
        maps.retain(|iova, memory| {
            let size = memory.size() as u64;
            let Err(source) = self.dma.unmap(*iova, size) else {
                return false;
            };
            result = Err(MapError {
                action: "unmap",
                iova: *iova,
                size,
                reason: "the kernel refuses".to_owned(),
                source,
            });
            true
        });
        result
    }
}

fn too_many(max: u32) -> String {
    format!(
        "the host allows {max} maps at once: use fewer and larger ones, or raise the \
         dma_entry_limit parameter of module vfio_iommu_type1"
    )
}

/// What a refusal to map means, in words.
fn explain_map(errno: Option<i32>, size: u64, limits: &SpaceLimits) -> String {
    match errno {
        Some(libc::ENOMEM) => match sys::memlock_limit() {
            Some(limit) => format!(
                "this process may pin only {limit:#x} bytes (RLIMIT_MEMLOCK) and this map needs \
                 {size:#x}: raise the limit with `ulimit -l` or LimitMEMLOCK="
            ),
            None => "the host has no memory left to pin".to_owned(),
        },
        Some(libc::EEXIST) => "part of the range is mapped already".to_owned(),
        Some(libc::EINVAL) => "the range is not aligned to the IOMMU's pages or outside of what \
                               it can map"
            .to_owned(),
        Some(libc::ENOSPC) => match limits.max_maps {
            Some(max) => too_many(max),
            None => "the host allows no more maps".to_owned(),
        },
        Some(libc::EFAULT) => "the memory can't be pinned: it is not mapped, or belongs to a \
                               device whose memory decoding is off"
            .to_owned(),
        _ => "the kernel refuses".to_owned(),
    }
}

impl<D: Dma> AddressSpace for KernelSpace<D> {
    fn limits(&self) -> &SpaceLimits {
        &self.limits
    }

    fn map(&self, iova: u64, memory: Arc<dyn HostMemory>) -> Result<(), MapError> {
        let size = memory.size() as u64;
        let refuse = |reason, source| MapError {
            action: "map",
            iova,
            size,
            reason,
            source,
        };
        let mut maps = self.maps();
        if let Err((reason, errno)) = self.check(&maps, iova, size) {
            return Err(refuse(reason, io::Error::from_raw_os_error(errno)));
        }
        if !self.dma.is_attached() {
            let reason = "every device of this address space is closed".to_owned();
            return Err(refuse(reason, io::Error::from_raw_os_error(libc::ENODEV)));
        }
        if let Err(source) = self.dma.map(iova, &*memory) {
            let errno = source.raw_os_error();
            let own = errno.and_then(|errno| self.dma.explain(errno, &*memory));
            let reason = own.map_or_else(|| explain_map(errno, size, &self.limits), str::to_owned);
            return Err(refuse(reason, source));
        }
        maps.insert(iova, memory);
        Ok(())
    }

    fn unmap(&self, iova: u64) -> Result<(), MapError> {
        let mut maps = self.maps();
        let size = maps.get(&iova).map_or(0, |memory| memory.size() as u64);
        let refuse = |reason: &str, source| MapError {
            action: "unmap",
            iova,
            size,
            reason: reason.to_owned(),
            source,
        };
        if size == 0 {
            let source = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(refuse("nothing is mapped there", source));
        }
        if self.dma.is_attached() {
            match self.dma.unmap(iova, size) {
                Ok(unmapped) if unmapped == size => {}
                Ok(unmapped) => {
                    let source = io::Error::other(format!("{unmapped:#x} bytes were mapped"));
                    return Err(refuse("the kernel has another map there", source));
                }
                Err(source) => return Err(refuse("the kernel refuses", source)),
            }
        }
        maps.remove(&iova);
        Ok(())
    }

    fn unmap_all(&self) -> Result<(), MapError> {
        self.peers.withdraw(|| self.clear(&mut self.maps()))
    }

    fn peers(&self) -> &Peers {
        &self.peers
    }
}

impl<D: Dma> Drop for KernelSpace<D> {
    fn drop(&mut self) {
        let mut maps = std::mem::take(&mut *self.maps());
        if let Err(error) = self.clear(&mut maps) {
            log::error!("{error}: {}", error.source);
            // Devices may still reach them: they must not be used for anything
            // else while this process lives.
            std::mem::forget(maps);
        }
    }
}

#[cfg(test)]
#[path = "space_test.rs"]
mod tests;

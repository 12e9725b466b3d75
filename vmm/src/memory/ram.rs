use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passthrough::ports::HostMemory;
use thiserror::Error;
use vm_memory::{GuestRegionCollection, GuestRegionCollectionError};

use super::backing::RamFile;
use super::{Backing, BackingKind, GuestRange, RamBlock};
use crate::config::HugePageSize;

/// Why guest RAM could not be had, or not be given up.
#[derive(Debug, Error)]
pub enum RamError {
    /// No file for it.
    #[error("cannot make a file in memory (memfd) of {0:#x} bytes for guest RAM")]
    File(u64, #[source] io::Error),
    /// The host refused the mapping.
    #[error("cannot reserve {0:#x} bytes of host memory for the guest")]
    Map(u64, #[source] io::Error),
    /// The pool of huge pages is too small by now.
    #[error(
        "cannot set aside {} huge pages of {page} for guest RAM: they were free when the plan was made",
        .size / .page.bytes()
    )]
    Pool {
        /// Bytes.
        size: u64,
        /// Of each page.
        page: HugePageSize,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel would not take it from the node alone.
    #[error("cannot bind guest RAM to NUMA node {node}")]
    Node {
        /// The node.
        node: u32,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The host refused to populate it.
    #[error(
        "cannot populate guest RAM at {0:#x}: the host is out of memory or over a cgroup limit"
    )]
    Populate(u64, #[source] io::Error),
    /// The pieces don't make a guest memory.
    #[error("guest RAM can't be put together")]
    Collect(#[from] GuestRegionCollectionError),
    /// Devices reach the pages by their addresses in the host.
    #[error(
        "guest RAM at {0} can't be given back while devices are assigned: they would go on using the old pages"
    )]
    Kept(GuestRange),
    /// There is no such RAM, or it can't be given back.
    #[error("guest RAM at {range} can't be given back")]
    Discard {
        /// What was to be given back.
        range: GuestRange,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// All RAM of a guest.
///
/// Its pages may go back to the host while the guest runs, as a balloon has it
/// ([`Self::discard`]), but not while devices are assigned: an IOMMU holds on
/// to the pages that it was given, so the guest would get new ones that its
/// devices don't see. Whoever gives RAM to an IOMMU takes a [`KeptPages`] first.
#[derive(Clone, Debug)]
pub struct GuestRam {
    view: GuestRegionCollection<RamBlock>,
    blocks: Vec<Arc<RamBlock>>,
    keepers: Arc<Keepers>,
}

/// How many want the pages to stay. The lock is held while pages are given
/// back, so that nobody comes between.
#[derive(Debug, Default)]
struct Keepers(Mutex<usize>);

impl Keepers {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestRam {
    /// Reserves private memory for `ranges`; pages come when they are touched.
    ///
    /// # Errors
    /// [`RamError`] when the host refuses.
    pub fn new(ranges: &[GuestRange]) -> Result<Self, RamError> {
        Self::backed(ranges, &Backing::default())
    }

    /// The same with memory of another kind, whose pages `ranges` are made of.
    ///
    /// # Errors
    /// [`RamError`] when the host refuses.
    pub fn backed(ranges: &[GuestRange], backing: &Backing) -> Result<Self, RamError> {
        let sizes = ranges.iter().map(|range| range.size);
        let size = sizes.fold(0, u64::saturating_add);
        let file = match backing.kind {
            BackingKind::Anonymous => None,
            BackingKind::Shared => Some(RamFile::new(None, size)),
            BackingKind::HugePages(page) => Some(RamFile::new(Some(page), size)),
        };
        let file = file
            .transpose()
            .map_err(|error| RamError::File(size, error))?;
        let file = file.map(Arc::new);
        let mut offset = 0;
        let mut blocks = Vec::new();
        for range in ranges {
            let file = file.clone().map(|file| (file, offset));
            blocks.push(Arc::new(RamBlock::new(*range, backing, file)?));
            offset += range.size;
        }
        let view = GuestRegionCollection::from_arc_regions(blocks.clone())?;
        Ok(Self {
            view,
            blocks,
            keepers: Arc::default(),
        })
    }

    /// For reading and writing by guest physical address.
    pub fn view(&self) -> &GuestRegionCollection<RamBlock> {
        &self.view
    }

    /// The pieces, in ascending order.
    pub fn blocks(&self) -> &[Arc<RamBlock>] {
        &self.blocks
    }

    /// Keeps all pages where they are for as long as the answer lives.
    pub fn keep_pages(&self) -> KeptPages {
        KeptPages::of(&self.keepers)
    }

    /// Gives the host memory behind a range back; the guest then reads zeros
    /// there. The range lies in one piece of RAM and consists of whole pages:
    /// of the pool's, where RAM is from one.
    ///
    /// # Errors
    /// [`RamError::Kept`] from the moment that devices are assigned until no
    /// address space has RAM mapped any more, [`RamError::Discard`] for what
    /// is no RAM or no whole pages, or when the kernel refuses. Nothing has
    /// changed then.
    pub fn discard(&self, range: GuestRange) -> Result<(), RamError> {
        let keepers = self.keepers.count();
        if *keepers > 0 {
            return Err(RamError::Kept(range));
        }
        let refused = |source| RamError::Discard { range, source };
        let offset_in = |block: &RamBlock| {
            let offset = range.start.checked_sub(block.start())?;
            usize::try_from(offset).ok().filter(|at| *at < block.size())
        };
        let mut blocks = self.blocks.iter();
        let found = blocks.find_map(|block| Some((block, offset_in(block)?)));
        let size = usize::try_from(range.size).ok();
        let (Some((block, offset)), Some(size)) = (found, size) else {
            return Err(refused(io::ErrorKind::InvalidInput.into()));
        };
        block.discard(offset, size).map_err(refused)
    }
}

/// While it lives, RAM keeps its pages: see [`GuestRam::discard`].
#[derive(Debug)]
pub struct KeptPages(Arc<Keepers>);

impl KeptPages {
    fn of(keepers: &Arc<Keepers>) -> Self {
        *keepers.count() += 1;
        Self(Arc::clone(keepers))
    }
}

impl Clone for KeptPages {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for KeptPages {
    fn drop(&mut self) {
        *self.0.count() -= 1;
    }
}

/// A piece of RAM as an address space gets it: for as long as it is mapped, RAM
/// keeps its pages.
#[derive(Debug)]
pub struct DeviceRam {
    block: Arc<RamBlock>,
    _pages: KeptPages,
}

impl DeviceRam {
    /// `block`, whose pages are kept.
    pub fn new(block: Arc<RamBlock>, pages: KeptPages) -> Self {
        Self {
            block,
            _pages: pages,
        }
    }
}

// SAFETY: all answers are the block's, which fulfils the contract and lives as
// long as this value.
unsafe impl HostMemory for DeviceRam {
    fn address(&self) -> NonNull<u8> {
        self.block.address()
    }

    fn size(&self) -> usize {
        self.block.size()
    }

    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.block.file()
    }
}

#[cfg(test)]
#[path = "ram_test.rs"]
mod tests;

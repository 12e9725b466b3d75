use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use super::{NumaError, NumaNode};
use crate::config::{HugePageSize, RamConfig};

/// Where the kernel says whether shared memory gets huge pages.
const SHARED_HUGE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// What guest RAM is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// The kind of memory.
    pub kind: BackingKind,
    /// The only node of the host that it may come from.
    pub node: Option<NumaNode>,
}

/// A kind of host memory.
///
/// Zeroing and pinning 4 KiB pages costs two to three times as much as huge
/// ones, so each is there for where it gives huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingKind {
    /// Private, on transparent huge pages where the host allows them, as every
    /// distribution's default does.
    #[default]
    Anonymous,
    /// A memfd, on transparent huge pages where an administrator has turned
    /// them on for shared memory. An IOMMU can take its pages by file.
    Shared,
    /// A memfd from the pool of huge pages of this size. They are set aside
    /// when it is mapped: touching them never fails for want of pages.
    HugePages(HugePageSize),
}

impl Backing {
    /// What serves a guest best, as the user has it, on this host. `assigned`
    /// says whether devices are to reach it.
    ///
    /// # Errors
    /// [`NumaError`] when the host has not the node.
    pub fn choose(config: &RamConfig, assigned: bool) -> Result<Self, NumaError> {
        let shared_huge = std::fs::read_to_string(SHARED_HUGE).unwrap_or_default();
        Ok(Self {
            kind: BackingKind::choose(config.pages, &shared_huge, assigned),
            node: config.numa_node.map(NumaNode::find).transpose()?,
        })
    }

    /// The size of its pages in bytes, where they are all of one size.
    pub fn page_bytes(&self) -> Option<u64> {
        match self.kind {
            BackingKind::HugePages(size) => Some(size.bytes()),
            BackingKind::Anonymous | BackingKind::Shared => None,
        }
    }
}

/// For the log: `private memory of NUMA node 1`.
impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            BackingKind::Anonymous => f.write_str("private memory")?,
            BackingKind::Shared => f.write_str("a memfd")?,
            BackingKind::HugePages(size) => write!(f, "huge pages of {size}")?,
        }
        match self.node {
            Some(node) => write!(f, " of NUMA node {}", node.number()),
            None => Ok(()),
        }
    }
}

impl BackingKind {
    fn choose(pages: Option<HugePageSize>, shared_huge: &str, assigned: bool) -> Self {
        match pages {
            Some(size) => Self::HugePages(size),
            // A file is worth it only for an IOMMU.
            None if assigned && gives_huge_pages(shared_huge) => Self::Shared,
            None => Self::Anonymous,
        }
    }
}

/// Whether a memfd whose owner asks for them gets huge pages: the kernel's
/// choices with the one that holds in brackets
/// (Documentation/admin-guide/mm/transhuge.rst).
fn gives_huge_pages(shared_huge: &str) -> bool {
    let chosen = shared_huge.split_whitespace().find_map(|word| {
        let word = word.strip_prefix('[')?;
        word.strip_suffix(']')
    });
    matches!(chosen, Some("always" | "within_size" | "advise" | "force"))
}

/// A file that exists only in memory and has the size of the guest's RAM.
/// Nobody who gets it can make it smaller under those who have it mapped.
#[derive(Debug)]
pub(super) struct RamFile(OwnedFd);

impl RamFile {
    /// Makes one of `size` bytes, whole pages; none of them is there yet.
    pub(super) fn new(pages: Option<HugePageSize>, size: u64) -> io::Result<Self> {
        let kind = match pages {
            None => MemfdFlags::empty(),
            Some(HugePageSize::TwoMib) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Some(HugePageSize::OneGib) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind;
        let create = |flags| rustix::fs::memfd_create("guest-ram", flags);
        // Not for execution, where the kernel knows that (6.3).
        let file = match create(flags | MemfdFlags::NOEXEC_SEAL) {
            Err(rustix::io::Errno::INVAL) => create(flags),
            result => result,
        }?;
        rustix::fs::ftruncate(&file, size)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(Self(file))
    }

    /// Gives the pages of a range back to the host; it then reads as zeros.
    pub(super) fn punch(&self, offset: u64, size: u64) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, mode, offset, size)?)
    }
}

impl AsFd for RamFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_taken_where_it_has_huge_pages_and_devices() {
        let choose = |shared_huge: &str, assigned| BackingKind::choose(None, shared_huge, assigned);
        for on in ["always", "within_size", "advise", "force"] {
            let text =
                "always within_size advise never deny force\n".replace(on, &format!("[{on}]"));
            assert_eq!(choose(&text, true), BackingKind::Shared, "{text}");
            assert_eq!(choose(&text, false), BackingKind::Anonymous, "{text}");
        }
        let default = "always within_size advise [never] deny force\n";
        for off in [default, "", "always", "[]", "[deny]"] {
            assert_eq!(choose(off, true), BackingKind::Anonymous, "{off}");
        }
        let pages = HugePageSize::OneGib;
        let asked = BackingKind::choose(Some(pages), default, false);
        assert_eq!(asked, BackingKind::HugePages(pages));
        let of = |kind| Backing { kind, node: None }.to_string();
        assert_eq!(of(asked), "huge pages of 1G");
        assert_eq!(of(BackingKind::Shared), "a memfd");
    }

    #[test]
    fn nobody_can_cut_the_file_short() {
        let file = RamFile::new(None, 4 << 20).unwrap();
        assert!(rustix::fs::ftruncate(file.as_fd(), 2 << 20).is_err());
        assert!(rustix::fs::ftruncate(file.as_fd(), 8 << 20).is_err());
        file.punch(2 << 20, 2 << 20).unwrap();
    }
}

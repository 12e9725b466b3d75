use std::io;
use std::path::Path;

use thiserror::Error;

use super::HostMeminfo;
use crate::config::HugePageSize;

const NODES: &str = "/sys/devices/system/node";
/// The kernel's own bound on node numbers (`MAX_NUMNODES`, with
/// `CONFIG_NODES_SHIFT` at its largest).
const MAX_NODES: u32 = 1024;

/// Why guest RAM can't come from a NUMA node.
#[derive(Debug, Error)]
pub enum NumaError {
    /// There are none to choose from.
    #[error(
        "this host's kernel knows no NUMA nodes ({NODES} can't be read); leave --numa-node out"
    )]
    NoNodes(#[source] io::Error),
    /// Not that one.
    #[error("the host has no NUMA node {node} with memory; it has {present}")]
    Absent {
        /// What was asked for.
        node: u32,
        /// Those that there are, as the kernel lists them.
        present: String,
    },
    /// The node does not say what it has.
    #[error("cannot find out how much memory NUMA node {node} has")]
    Unreadable {
        /// The node.
        node: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its part of a pool of huge pages is too small.
    #[error(
        "guest memory needs {need} huge pages of {page}, and {free} are free on NUMA node {node}: set their number in {path}"
    )]
    Pool {
        /// The node.
        node: u32,
        /// How many pages it takes.
        need: u64,
        /// How many there are.
        free: u64,
        /// Their size.
        page: HugePageSize,
        /// Where their number is set.
        path: String,
    },
}

/// A NUMA node of the host that has memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumaNode(u32);

impl NumaNode {
    /// The node of that number.
    ///
    /// # Errors
    /// [`NumaError`] naming those that exist.
    pub fn find(number: u32) -> Result<Self, NumaError> {
        Self::find_in(Path::new(NODES), number)
    }

    fn find_in(nodes: &Path, number: u32) -> Result<Self, NumaError> {
        let text = std::fs::read_to_string(nodes.join("has_memory")).map_err(NumaError::NoNodes)?;
        let present = text.trim().to_owned();
        if number >= MAX_NODES || !is_listed(&present, number) {
            return Err(NumaError::Absent {
                node: number,
                present,
            });
        }
        Ok(Self(number))
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// What it has of memory.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn meminfo(self) -> Result<HostMeminfo, NumaError> {
        let path = format!("{NODES}/node{}/meminfo", self.0);
        let info = std::fs::read_to_string(path).and_then(|text| HostMeminfo::of_node(&text));
        info.map_err(|source| NumaError::Unreadable {
            node: self.0,
            source,
        })
    }

    /// Checks that `memory` bytes of its huge pages are free.
    ///
    /// # Errors
    /// [`NumaError::Pool`] with the numbers.
    pub fn check_pool(self, memory: u64, page: HugePageSize) -> Result<(), NumaError> {
        let bytes = page.bytes();
        let pool = format!(
            "{NODES}/node{}/hugepages/hugepages-{}kB",
            self.0,
            bytes >> 10
        );
        let text = std::fs::read_to_string(format!("{pool}/free_hugepages"));
        // A size that the host does not know has no file, and no pages.
        let free = text.ok().and_then(|text| text.trim().parse().ok());
        let (need, free) = (memory.div_ceil(bytes), free.unwrap_or(0));
        if free >= need {
            return Ok(());
        }
        Err(NumaError::Pool {
            node: self.0,
            need,
            free,
            page,
            path: format!("{pool}/nr_hugepages"),
        })
    }

    /// The set with this node alone, as mbind(2) takes it: words of 64 nodes.
    pub(super) fn mask(self) -> Vec<u64> {
        let word = (self.0 / 64) as usize;
        let mut mask = vec![0; word + 1];
        mask[word] = 1 << (self.0 % 64);
        mask
    }
}

/// Whether a list of the kernel's, such as `0-1,4`, has `number`.
fn is_listed(list: &str, number: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse(), last.trim().parse());
        matches!((first, last), (Ok(first), Ok(last)) if (first..=last).contains(&number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_the_kernel_writes_them() {
        for (list, inside, outside) in [("0", 0, 1), ("0-1,4", 4, 3), ("2-63", 63, 64)] {
            assert!(is_listed(list, inside), "{list}");
            assert!(!is_listed(list, outside), "{list}");
        }
        for list in ["", "-", "x-y", ",", "3-1"] {
            assert!(!is_listed(list, 1), "{list}");
        }
    }

    #[test]
    fn absent_nodes_are_named_with_those_that_exist() {
        let folder = tempfile::tempdir().unwrap();
        let find = |number| NumaNode::find_in(folder.path(), number);
        assert!(matches!(find(0), Err(NumaError::NoNodes(_))));
        std::fs::write(folder.path().join("has_memory"), "0-1,70\n").unwrap();
        assert_eq!(find(70).unwrap().mask(), [0, 1 << 6]);
        assert_eq!(find(1).unwrap().mask(), [2]);
        let error = find(2).unwrap_err().to_string();
        assert_eq!(
            error,
            "the host has no NUMA node 2 with memory; it has 0-1,70"
        );
        std::fs::write(folder.path().join("has_memory"), "0-4294967295\n").unwrap();
        assert!(find(u32::MAX).is_err());
    }

    #[test]
    fn a_pool_that_is_too_small_is_told_with_numbers() {
        let node = NumaNode(0);
        let error = node.check_pool(1 << 50, HugePageSize::TwoMib).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("needs 536870912 huge pages of 2M"), "{text}");
        assert!(text.contains("node0/hugepages/hugepages-2048kB"), "{text}");
    }
}

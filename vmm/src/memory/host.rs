use std::io;

/// What the host has of memory, from `/proc/meminfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMeminfo {
    /// All of it, in bytes (`MemTotal`).
    pub total: u64,
    /// What can be had without swapping, in bytes (`MemAvailable`).
    pub available: u64,
}

impl HostMeminfo {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When `/proc/meminfo` can't be read or lacks a value.
    pub fn read() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        Self::parse(&text).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/meminfo has no MemTotal or MemAvailable",
            )
        })
    }

    /// What one NUMA node has, from `/sys/devices/system/node/nodeN/meminfo`.
    /// The kernel does not sum up there what can be had without swapping: what
    /// is free or caches files is.
    pub(super) fn of_node(text: &str) -> io::Result<Self> {
        // Each line begins with `Node N`.
        let lines = text.lines().filter_map(|line| line.splitn(3, ' ').nth(2));
        let lines: String = lines.flat_map(|line| [line, "\n"]).collect();
        let bytes = |name: &str| bytes(&lines, name);
        let parts = [
            bytes("MemFree:"),
            bytes("Active(file):"),
            bytes("Inactive(file):"),
            bytes("SReclaimable:"),
        ];
        let available = parts
            .into_iter()
            .try_fold(0u64, |sum, part| sum.checked_add(part?));
        let info = bytes("MemTotal:").zip(available);
        let (total, available) = info.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "its meminfo lacks a value")
        })?;
        Ok(Self { total, available })
    }

    fn parse(text: &str) -> Option<Self> {
        Some(Self {
            total: bytes(text, "MemTotal:")?,
            available: bytes(text, "MemAvailable:")?,
        })
    }
}

/// The value of a line `NAME: … kB`.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_in_bytes() {
        let text = "MemTotal:       2013512 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n";
        let info = HostMeminfo::parse(text).unwrap();
        assert_eq!(info.total, 2_013_512 * 1024);
        assert_eq!(info.available, 1_024_000);
    }

    #[test]
    fn lacking_values_are_no_answer() {
        assert_eq!(HostMeminfo::parse("MemTotal: 1 kB\n"), None);
        assert_eq!(HostMeminfo::parse("MemTotal: x\nMemAvailable: y"), None);
    }

    #[test]
    fn a_node_counts_what_is_free_and_what_caches_files() {
        let text = "Node 1 MemTotal:       100 kB\nNode 1 MemFree:        40 kB\n\
                    Node 1 Active(file):    3 kB\nNode 1 Inactive(file):  4 kB\n\
                    Node 1 SReclaimable:    5 kB\n";
        let info = HostMeminfo::of_node(text).unwrap();
        assert_eq!((info.total, info.available), (100 << 10, 52 << 10));
        assert!(HostMeminfo::of_node(&text.replace("Free", "Gone")).is_err());
        assert!(HostMeminfo::of_node("").is_err());
    }
}

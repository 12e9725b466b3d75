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

    fn parse(text: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            kib.checked_mul(1024)
        };
        Some(Self {
            total: bytes("MemTotal:")?,
            available: bytes("MemAvailable:")?,
        })
    }
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
}

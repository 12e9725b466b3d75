use serde::{Deserialize, Serialize};

use super::sysfs::Host;

const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePagePool {
    /// The size of a page in bytes.
    pub page_bytes: u64,
    /// How many there are.
    pub total: u64,
    /// How many nobody has.
    pub free: u64,
    /// How many of the free ones are promised to somebody.
    pub reserved: u64,
}

impl HugePagePool {
    /// How many a new program can get.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }

    /// Reads all pools, that of the smallest pages first.
    pub(super) fn read(host: &Host) -> Vec<Self> {
        let folders = host.list(POOLS).ok().flatten().unwrap_or_default();
        let mut pools: Vec<_> = folders
            .iter()
            .filter_map(|folder| {
                let kib = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?;
                let number = |name: &str| {
                    let text = host.text(&format!("{POOLS}/{folder}/{name}"));
                    text.ok()??.parse().ok()
                };
                Some(Self {
                    page_bytes: kib.parse::<u64>().ok()?.checked_mul(1024)?,
                    total: number("nr_hugepages")?,
                    free: number("free_hugepages")?,
                    reserved: number("resv_hugepages")?,
                })
            })
            .collect();
        pools.sort_unstable_by_key(|pool| pool.page_bytes);
        pools
    }

    /// Where their number is set.
    pub fn path(&self) -> String {
        format!(
            "{POOLS}/hugepages-{}kB/nr_hugepages",
            self.page_bytes / 1024
        )
    }
}

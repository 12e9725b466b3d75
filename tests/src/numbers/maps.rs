//! What it costs to give memory to a device.

use std::fmt::{self, Formatter};

use clap::ValueEnum;
use serde::Serialize;

use super::error::{At, NumbersError};
use super::guest::Given;
use super::inside::MapTimes;
use super::spread::{Fine, Spread};
use super::{PROBE, STEP_LIMIT};
use crate::Backend;
use crate::host::{Host, Step};

/// How much is mapped at once: the figures are for so much.
const MIB: u64 = 1024;
const ROUNDS: u32 = 7;

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// What memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pages {
    /// Private memory in pages of 4 KiB.
    Small,
    /// Private memory in transparent huge pages.
    Huge,
    /// A memfd in transparent huge pages.
    SharedHuge,
    /// A memfd from the pool of pages of 2 MiB.
    Pool,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Small => "private, 4 KiB",
            Self::Huge => "private, transparent huge",
            Self::SharedHuge => "memfd, transparent huge",
            Self::Pool => "memfd, 2 MiB (hugetlb)",
        })
    }
}

/// One kind of memory on one backend; times in milliseconds a GiB.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MapCost {
    /// What it is made of.
    pub pages: Pages,
    /// By what it is mapped.
    backend: String,
    /// Until all pages were there, zeroed.
    pub populate: f64,
    /// The map alone.
    pub map: Spread,
    /// The unmap alone.
    pub unmap: Spread,
    /// How many calls the map took.
    pub calls: u64,
}

/// Measures each kind of memory on both backends.
pub(super) fn measure(host: &Host, device: &Given) -> Result<Vec<MapCost>, NumbersError> {
    let mut all = Vec::new();
    for pages in Pages::value_variants() {
        for backend in [Backend::Iommufd, Backend::Type1] {
            all.push(one(host, &device.address, *pages, backend)?);
        }
    }
    Ok(all)
}

fn one(host: &Host, device: &str, pages: Pages, backend: Backend) -> Result<MapCost, NumbersError> {
    let step = format!("map of {pages} by {backend}");
    let (set, unset) = match pages {
        Pages::Small => (
            format!("echo never >{THP}/enabled"),
            format!("echo madvise >{THP}/enabled"),
        ),
        Pages::Huge => (String::new(), String::new()),
        Pages::SharedHuge => (
            format!("echo advise >{THP}/shmem_enabled"),
            format!("echo never >{THP}/shmem_enabled"),
        ),
        Pages::Pool => (
            format!("echo {} >{POOL}; test $(cat {POOL}) = {0}", MIB / 2),
            format!("echo 0 >{POOL}"),
        ),
    };
    host.shell(&set).at(&step)?;
    let name = pages.to_possible_value();
    let name = name.as_ref().map_or("", |value| value.get_name());
    let words = [
        PROBE,
        "inside",
        "map",
        device,
        &backend.to_string(),
        name,
        &MIB.to_string(),
        &ROUNDS.to_string(),
    ];
    let outcome = host.run(&Step::argv(words).limit(STEP_LIMIT)).at(&step)?;
    let outcome = outcome.expect_success().at(&step)?;
    host.shell(&unset).at(&step)?;
    let times: MapTimes = serde_json::from_str(&outcome.stdout)
        .map_err(|error| NumbersError::wrong(&step, error.to_string()))?;
    of(pages, backend, &times).ok_or_else(|| NumbersError::wrong(&step, "nothing was mapped"))
}

fn of(pages: Pages, backend: Backend, times: &MapTimes) -> Option<MapCost> {
    // Exact below 2^53 ns.
    let per_gib = |ns: u64| ns as f64 / 1e6 * 1024.0 / MIB as f64;
    let spread = |times: &[u64]| {
        let times: Vec<_> = times.iter().copied().map(per_gib).collect();
        Spread::of(&times)
    };
    Some(MapCost {
        pages,
        backend: backend.to_string(),
        populate: per_gib(times.populate),
        map: spread(&times.map)?,
        unmap: spread(&times.unmap)?,
        calls: times.calls,
    })
}

/// The table.
pub(super) fn show(f: &mut Formatter<'_>, all: &[MapCost]) -> fmt::Result {
    writeln!(
        f,
        "\nMemory for a device: ms per GiB, populated first; median (least-most)\n\
         {:<25} {:<8} {:>9} {:>21} {:>21} {:>6}",
        "pages", "by", "populate", "map alone", "unmap alone", "calls"
    )?;
    for cost in all {
        writeln!(
            f,
            "{:<25} {:<8} {:>9.0} {:>21} {:>21} {:>6}",
            cost.pages,
            cost.backend,
            cost.populate,
            Fine(cost.map),
            Fine(cost.unmap),
            cost.calls
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_become_milliseconds() {
        let mut times = MapTimes {
            populate: 2_000_000_000,
            map: vec![5_000_000, 7_000_000, 6_000_000],
            unmap: vec![1_000_000],
            calls: 1,
        };
        let cost = of(Pages::Pool, Backend::Type1, &times).unwrap();
        assert_eq!((cost.populate, cost.map.median), (2000.0, 6.0));
        assert_eq!((cost.map.min, cost.unmap.max), (5.0, 1.0));
        times.map.clear();
        assert_eq!(of(Pages::Pool, Backend::Type1, &times), None);
    }
}

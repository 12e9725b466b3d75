//! Memory, BARs and huge pages against what there is, with the numbers.

use super::*;
use crate::host::fake::{FakeHost, request};

const PLACE: &str = "0000:01:00.0";
const GIB: u64 = 1 << 30;
const REGIONS: &str = "/sys/kernel/iommu_groups/12/reserved_regions";

fn machine() -> FakeHost {
    let host = FakeHost::new();
    host.endpoint(PLACE, Some(12), "vfio-pci")
        .file(REGIONS, "0x00000000fee00000 0x00000000feefffff msi\n");
    host
}

/// RAM as a PC has it.
fn asking(memory: u64) -> Request {
    let low = memory.min(3 * GIB);
    let mut ram = vec![GuestRange {
        start: 0,
        size: low,
    }];
    if memory > low {
        ram.push(GuestRange {
            start: 4 * GIB,
            size: memory - low,
        });
    }
    Request {
        memory_bytes: Some(memory),
        ram,
        window_32: Some(GuestRange {
            start: 3 * GIB,
            size: GIB / 2,
        }),
        ..request(&[PLACE])
    }
}

fn items(plan: &Plan, check: Check) -> Vec<(Outcome, String)> {
    let items = plan.items.iter().filter(|item| item.check == check);
    items
        .map(|item| (item.outcome, item.reason.clone()))
        .collect()
}

fn bar(start: u64, size: u64, flags: u64) -> String {
    format!("{start:#018x} {:#018x} {flags:#018x}\n", start + size - 1)
}

const REACH: &str = "0x0-0xfedfffff, 0xfef00000-0x7fffffffff (39 bits in dmar0, without 0xfee00000-0xfeefffff: interrupts)";

#[test]
fn memory_that_fits_is_said_with_numbers() {
    let plan = Plan::make(&machine().survey(), &asking(8 * GIB));
    assert!(plan.is_go(), "{plan}");
    let text = format!(
        "guest RAM 0x0-0xbfffffff, 0x100000000-0x23fffffff fits what the IOMMU reaches: {REACH}"
    );
    assert_eq!(items(&plan, Check::GuestMemory), [(Outcome::Passed, text)]);
}

#[test]
fn memory_that_does_not_fit_39_bits_fits_48() {
    let host = machine();
    // The hole below 4 GiB moves the end of 512 GiB beyond 512 GiB.
    let plan = Plan::make(&host.survey(), &asking(512 * GIB));
    let text =
        format!("guest RAM 0x100000000-0x803fffffff does not fit what the IOMMU reaches: {REACH}");
    assert_eq!(items(&plan, Check::GuestMemory), [(Outcome::Failed, text)]);
    assert!(Plan::make(&host.survey(), &asking(511 * GIB)).is_go());
    host.file("/sys/class/iommu/dmar0/intel-iommu/cap", "d2008c222f0686\n");
    assert!(Plan::make(&host.survey(), &asking(512 * GIB)).is_go());
}

#[test]
fn memory_over_a_reserved_range() {
    let host = machine();
    let line = "0x0000000080000000 0x00000000800fffff reserved\n";
    host.file(REGIONS, line);
    let plan = Plan::make(&host.survey(), &asking(4 * GIB));
    let text = "guest RAM 0x0-0xbfffffff does not fit what the IOMMU reaches: 0x0-0x7fffffff, 0x80100000-0x7fffffffff (39 bits in dmar0, without 0x80000000-0x800fffff: reserved)";
    assert_eq!(
        items(&plan, Check::GuestMemory),
        [(Outcome::Failed, text.to_owned())]
    );
    // Up to it, and not a byte more.
    assert!(Plan::make(&host.survey(), &asking(2 * GIB)).is_go());
    assert!(!Plan::make(&host.survey(), &asking(2 * GIB + 1)).is_go());
    host.file(REGIONS, line.replace("reserved", "direct-relaxable"));
    assert!(Plan::make(&host.survey(), &asking(4 * GIB)).is_go());
}

/// What a monitor lays its guest out by.
#[test]
fn reach_is_the_narrowest_aperture_without_what_is_reserved() {
    let host = machine();
    host.endpoint("0000:02:00.0", Some(13), "vfio-pci").file(
        "/sys/kernel/iommu_groups/13/reserved_regions",
        "0x7b000000 0x7bffffff direct\n0x7c000000 0x7cffffff direct-relaxable\n",
    );
    let reach_of = |devices: &[&str]| {
        let devices: Vec<_> = devices.iter().map(|text| text.parse().unwrap()).collect();
        let pieces = reach(&host.survey(), &devices);
        let pieces = pieces.iter().map(|range| (range.start, range.last));
        pieces.collect::<Vec<_>>()
    };
    let high = (0xfef0_0000, 0x7f_ffff_ffff);
    assert_eq!(reach_of(&[PLACE]), [(0, 0xfedf_ffff), high]);
    // Both groups' regions hold for both devices.
    assert_eq!(
        reach_of(&[PLACE, "0000:02:00.0"]),
        [(0, 0x7aff_ffff), (0x7c00_0000, 0xfedf_ffff), high]
    );
    assert_eq!(reach_of(&[]), [(0, u64::MAX)]);
    assert_eq!(reach_of(&["0000:7f:00.0"]), [(0, u64::MAX)]);
}

#[test]
fn too_much_memory_is_told_how_much_would_fit() {
    let host = machine();
    let line = "0x80000000 0x800fffff reserved\n0xfee00000 0xfeefffff msi\n";
    host.file(REGIONS, line);
    let mut asked = asking(512 * GIB);
    // RAM as a monitor lays it round the hole, in pages of 2 MiB.
    asked.ram[0].size = 2 * GIB;
    let above = GuestRange {
        start: 2 * GIB + (2 << 20),
        size: GIB - (2 << 20),
    };
    asked.ram.insert(1, above);
    let plan = Plan::make(&host.survey(), &asked).to_string();
    assert!(plan.contains("at most 523262 MiB of memory"), "{plan}");
}

#[test]
fn reserved_ranges_that_cover_everything_or_overlap() {
    let host = machine();
    host.file(REGIONS, "0x0 0xffffffffffffffff reserved\n");
    assert!(!Plan::make(&host.survey(), &asking(GIB)).is_go());
    host.file(
        REGIONS,
        "0x40000000 0xffffffff reserved\n0x50000000 0x5fffffff msi\n0x1000000000000 0xffffffffffffffff reserved\n",
    );
    let survey = host.survey();
    assert!(Plan::make(&survey, &asking(GIB)).is_go());
    assert!(!Plan::make(&survey, &asking(GIB + 1)).is_go());
}

#[test]
fn large_bars_need_room_above_memory() {
    let host = machine();
    host.attribute(
        PLACE,
        "resource",
        &(bar(0xfe00_0000, 0x1000, 0x4_0200) + &bar(64 << 30, 16 * GIB, 0x14_220c)),
    );
    let plan = Plan::make(&host.survey(), &asking(8 * GIB));
    assert_eq!(
        items(&plan, Check::Bars),
        [
            (
                Outcome::Passed,
                "1 64-bit BAR (16 GiB) fits above guest RAM: 0x240000000-0x7ffffffff of 0x240000000-0x7fffffffff".to_owned()
            ),
            (
                Outcome::Passed,
                "1 BAR below 4 GiB (4 KiB) fits 0xc0000000-0xdfffffff".to_owned()
            ),
        ]
    );
    // 500 of 512 GiB leave 11 above the hole: too little for 16.
    let mut asked = asking(500 * GIB);
    asked.address_bits = Some(46);
    let plan = Plan::make(&host.survey(), &asked);
    let (outcome, text) = &items(&plan, Check::Bars)[0];
    assert_eq!(*outcome, Outcome::Failed);
    assert!(
        text.starts_with("1 64-bit BAR (16 GiB) does not fit: above guest RAM there is 0x7d40000000-0x7fffffffff (11 GiB); the largest is BAR 1 of 0000:01:00.0 (16 GiB); the IOMMU reaches 0x0-"),
        "{text}"
    );
    assert!(text.ends_with(", the CPU 46 bits"), "{text}");
    // The CPU may be what ends first.
    let mut asked = asking(8 * GIB);
    asked.address_bits = Some(34);
    assert!(!Plan::make(&host.survey(), &asked).is_go());
}

#[test]
fn a_64_bit_bar_may_go_below_when_there_is_nothing_above() {
    let host = machine();
    host.attribute(PLACE, "resource", &bar(64 << 30, 1 << 20, 0x14_220c));
    let mut asked = asking(GIB);
    asked.address_bits = Some(32);
    let survey = host.survey();
    let plan = Plan::make(&survey, &asked);
    assert!(plan.is_go(), "{plan}");
    asked.window_32 = Some(GuestRange {
        start: 3 * GIB,
        size: 0x1000,
    });
    assert!(!Plan::make(&survey, &asked).is_go());
}

#[test]
fn huge_pages() {
    let host = machine();
    let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    host.file(&format!("{folder}/nr_hugepages"), "300\n")
        .file(&format!("{folder}/free_hugepages"), "300\n")
        .file(&format!("{folder}/resv_hugepages"), "44\n");
    let mut asked = asking(512 << 20);
    asked.huge_pages = Some(2 << 20);
    let survey = host.survey();
    let text = "512 MiB of guest memory need 256 huge pages of 2 MiB, and 256 are free";
    assert_eq!(
        items(&Plan::make(&survey, &asked), Check::HugePages),
        [(Outcome::Passed, text.to_owned())]
    );
    asked.memory_bytes = Some((512 << 20) + 1);
    let plan = Plan::make(&survey, &asked);
    assert!(plan.to_string().contains(
        "✗ 512 MiB of guest memory need 257 huge pages of 2 MiB, and 256 are free\n    fix: echo 301 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages\n"
    ), "{plan}");
    asked.huge_pages = Some(GIB);
    let plan = Plan::make(&survey, &asked);
    let text = "the host has no huge pages of 1 GiB; the sizes that it has: 2 MiB";
    assert_eq!(
        items(&plan, Check::HugePages),
        [(Outcome::Failed, text.to_owned())]
    );
    for odd in [0, 4096] {
        asked.huge_pages = Some(odd);
        assert!(!Plan::make(&survey, &asked).is_go());
    }
}

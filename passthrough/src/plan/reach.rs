use std::fmt;

use devices::pci::PciAddress;

use super::host::units;
use super::size::human;
use super::{Check, GuestRange, Item, Request, Subject};
use crate::host::{IommuUnit, ReservedKind, ReservedRegion, Resource, Survey};
use crate::iommu::IovaRange;
use crate::viability::Remedy;

const GIB: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 * GIB;

/// Where `devices` can reach memory together, in ascending order and apart from
/// each other: the aperture of the narrowest IOMMU unit of theirs, without what
/// is reserved for one of their groups. Regions that the firmware lets go
/// (direct-relaxable) are not reserved.
///
/// Pure, and a prediction like the rest of the plan: a guest is laid out by it
/// before anything is opened, and what an open
/// [`AddressSpace`](crate::iommu::AddressSpace) says is then checked against
/// that. All addresses when there are no devices, or none behind an IOMMU, and
/// to the last one when the width of the units can't be told.
pub fn reach(survey: &Survey, devices: &[PciAddress]) -> Vec<IovaRange> {
    Reach::of(survey, &units(survey, devices), devices).pieces
}

/// What the devices can address: all that every IOMMU unit of theirs reaches,
/// without what is reserved for one of their groups.
#[derive(Debug)]
struct Reach<'a> {
    /// The narrowest unit, and its bits.
    narrowest: Option<(u8, &'a IommuUnit)>,
    reserved: Vec<&'a ReservedRegion>,
    pieces: Vec<IovaRange>,
}

/// Checks the guest's RAM and the devices' BARs against what the IOMMU
/// reaches: devices see both at the guest's addresses.
pub(super) fn check(
    survey: &Survey,
    request: &Request,
    devices: &[PciAddress],
    items: &mut Vec<Item>,
) {
    let units = units(survey, devices);
    if request.ram.is_empty() || units.is_empty() {
        // Without an IOMMU there is an item about that.
        return;
    }
    let reach = Reach::of(survey, &units, devices);
    items.extend(ram(&reach, &request.ram));
    items.extend(bars(survey, request, devices, &reach));
}

impl<'a> Reach<'a> {
    fn of(survey: &'a Survey, units: &[&'a IommuUnit], devices: &[PciAddress]) -> Self {
        let known = units
            .iter()
            .filter_map(|unit| Some((unit.address_width?, *unit)));
        let narrowest = known.min_by_key(|(bits, _)| *bits);
        let last = narrowest.map_or(u64::MAX, |(bits, _)| {
            1u64.checked_shl(bits.into())
                .map_or(u64::MAX, |end| end - 1)
        });
        let groups = devices
            .iter()
            .filter_map(|device| survey.groups.get(&survey.functions.get(device)?.group?));
        // VFIO leaves relaxable ranges to the guest
        // (drivers/vfio/vfio_iommu_type1.c, `vfio_iommu_resv_exclude`).
        let mut reserved: Vec<_> = groups
            .flat_map(|group| &group.reserved)
            .filter(|region| region.kind != ReservedKind::DirectRelaxable)
            .collect();
        reserved.sort_unstable_by_key(|region| (region.start, region.last));
        reserved.dedup();
        let mut pieces = Vec::new();
        let mut next = Some(0);
        for region in &reserved {
            let Some(first) = next else { break };
            if region.start > first && first <= last {
                let last = last.min(region.start - 1);
                pieces.push(IovaRange { start: first, last });
            }
            next = region.last.checked_add(1).map(|end| end.max(first));
        }
        if let Some(first) = next.filter(|first| *first <= last) {
            pieces.push(IovaRange { start: first, last });
        }
        Self {
            narrowest,
            reserved,
            pieces,
        }
    }
}

impl fmt::Display for Reach<'_> {
    /// The ranges, and where they come from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces: Vec<_> = self.pieces.iter().map(ToString::to_string).collect();
        f.write_str(&pieces.join(", "))?;
        match self.narrowest {
            Some((bits, unit)) => write!(f, " ({bits} bits in {}", unit.name)?,
            None => f.write_str(" (its width can't be told")?,
        }
        for region in &self.reserved {
            let kind = match &region.kind {
                ReservedKind::Direct => "firmware",
                ReservedKind::DirectRelaxable => "firmware, relaxable",
                ReservedKind::Reserved => "reserved",
                ReservedKind::Msi => "interrupts",
                ReservedKind::Other(kind) => kind,
            };
            write!(
                f,
                ", without {:#x}-{:#x}: {kind}",
                region.start, region.last
            )?;
        }
        f.write_str(")")
    }
}

/// Whether all of `range` lies in `piece`.
fn holds(piece: &IovaRange, range: GuestRange) -> bool {
    piece.start <= range.start && range.last() <= piece.last
}

/// How much of `ram` the pieces hold, in whole huge pages.
fn held(pieces: &[IovaRange], ram: &[GuestRange]) -> u64 {
    const HUGE_PAGE: u64 = 2 << 20;
    let common = |range: &GuestRange, piece: &IovaRange| {
        let first = range.start.max(piece.start);
        let end = range.last().min(piece.last).checked_add(1)?;
        Some(end.checked_sub(first)? / HUGE_PAGE * HUGE_PAGE)
    };
    ram.iter()
        .filter(|range| range.size > 0)
        .flat_map(|range| pieces.iter().filter_map(|piece| common(range, piece)))
        .fold(0, u64::saturating_add)
}

fn ram(reach: &Reach<'_>, ram: &[GuestRange]) -> Vec<Item> {
    let mut items = Vec::new();
    for range in ram.iter().filter(|range| range.size > 0) {
        if reach.pieces.iter().any(|piece| holds(piece, *range)) {
            continue;
        }
        let text = format!(
            "guest RAM {:#x}-{:#x} does not fit what the IOMMU reaches: {reach}",
            range.start,
            range.last()
        );
        let item = Item::failed(Check::GuestMemory, Subject::Host, text);
        let end = reach.pieces.last().map_or(0, |piece| piece.last);
        items.push(if range.last() > end {
            item.fix(Remedy::Advice(format!(
                "give the guest at most {} MiB of memory; an emulated IOMMU may be made wider (QEMU: aw-bits=48)",
                held(&reach.pieces, ram) >> 20
            )))
        } else {
            item.fix(Remedy::advice(
                "the guest's RAM must leave the reserved range out: lay it round, or give it so little memory that it ends below",
            ))
        });
    }
    if items.is_empty() {
        let ranges: Vec<_> = ram
            .iter()
            .map(|range| format!("{:#x}-{:#x}", range.start, range.last()))
            .collect();
        let text = format!(
            "guest RAM {} fits what the IOMMU reaches: {reach}",
            ranges.join(", ")
        );
        items.push(Item::passed(Check::GuestMemory, Subject::Host, text));
    }
    items
}

/// A BAR that needs room.
#[derive(Clone, Copy, Debug)]
struct Bar {
    device: PciAddress,
    index: u8,
    size: u64,
}

fn bars(
    survey: &Survey,
    request: &Request,
    devices: &[PciAddress],
    reach: &Reach<'_>,
) -> Vec<Item> {
    let of = |wide: bool| -> Vec<Bar> {
        let functions = devices
            .iter()
            .filter_map(|device| survey.functions.get(device));
        functions
            .flat_map(|function| {
                let bars = function.resources.iter();
                bars.map(move |bar| (function.address, bar))
            })
            .filter(|(_, bar)| bar.is_memory_bar() && bar.is_64_bit() == wide)
            .map(|(device, bar)| room(device, bar))
            .collect()
    };
    let (narrow, wide) = (of(false), of(true));
    let mut items = Vec::new();
    let high = above(request, reach);
    let mut low = narrow;
    if let Some(end) = place(&wide, high) {
        if !wide.is_empty() {
            let text = format!(
                "{} above guest RAM: {:#x}-{:#x} of {}",
                count(&wide, "64-bit BAR", "", "fit"),
                high.map_or(0, |piece| piece.start),
                end,
                high.map_or(String::new(), |piece| piece.to_string())
            );
            items.push(Item::passed(Check::Bars, Subject::Host, text));
        }
    } else if place(&wide, window(request)).is_some() {
        // There they compete with those that can go nowhere else.
        low.extend(&wide);
    } else {
        items.push(no_room(&wide, high, request, reach));
    }
    if low.is_empty() || request.window_32.is_none() {
        return items;
    }
    let window = window(request);
    let there = window.map_or(String::new(), |piece| piece.to_string());
    let need = |verb| count(&low, "BAR", " below 4 GiB", verb);
    items.push(match place(&low, window) {
        Some(_) => Item::passed(
            Check::Bars,
            Subject::Host,
            format!("{} {there}", need("fit")),
        ),
        None => Item::failed(
            Check::Bars,
            Subject::Host,
            format!("{} fit {there}{}", need("do not"), largest(&low)),
        )
        .fix(Remedy::advice("give the guest fewer devices")),
    });
    items
}

/// A BAR takes a power of two, aligned to itself (PCIe 6.0 §7.5.1.2.1).
fn room(device: PciAddress, bar: &Resource) -> Bar {
    Bar {
        device,
        index: bar.index,
        size: bar.size.checked_next_power_of_two().unwrap_or(u64::MAX),
    }
}

fn total(bars: &[Bar]) -> u64 {
    bars.iter().fold(0, |sum, bar| sum.saturating_add(bar.size))
}

fn window(request: &Request) -> Option<IovaRange> {
    let range = request.window_32.filter(|range| range.size > 0)?;
    Some(IovaRange {
        start: range.start,
        last: range.last(),
    })
}

/// The largest piece above guest RAM and 4 GiB that both the CPU and the IOMMU
/// reach, from a whole GiB on.
fn above(request: &Request, reach: &Reach<'_>) -> Option<IovaRange> {
    let ram = request.ram.iter().map(|range| range.last()).max()?;
    let start = ram.checked_add(1)?.max(FOUR_GIB);
    let cpu = request
        .address_bits
        .and_then(|bits| 1u64.checked_shl(bits.into()))
        .map_or(u64::MAX, |end| end - 1);
    let pieces = reach.pieces.iter().filter_map(|piece| {
        let first = piece.start.max(start).checked_next_multiple_of(GIB)?;
        let last = piece.last.min(cpu);
        (first <= last).then_some(IovaRange { start: first, last })
    });
    pieces.max_by_key(|piece| piece.last - piece.start)
}

/// Lays `bars` into `window`, the largest first, and tells the last address
/// used; nothing when they don't fit. Without BARs any window will do.
fn place(bars: &[Bar], window: Option<IovaRange>) -> Option<u64> {
    if bars.is_empty() {
        return Some(0);
    }
    let window = window?;
    let mut sizes: Vec<_> = bars.iter().map(|bar| bar.size).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let mut next = window.start;
    let mut last = next;
    for size in sizes {
        let start = next.checked_next_multiple_of(size)?;
        last = start.checked_add(size - 1)?;
        if last > window.last {
            return None;
        }
        next = last.checked_add(1)?;
    }
    Some(last)
}

/// How many there are, how much they take, and what they do: "fit" or "do not".
fn count(bars: &[Bar], what: &str, place: &str, verb: &str) -> String {
    let (plural, verb) = match (bars.len(), verb) {
        (1, "fit") => ("", "fits"),
        (1, _) => ("", "does not"),
        (_, verb) => ("s", verb),
    };
    let size = human(total(bars));
    format!("{} {what}{plural}{place} ({size}) {verb}", bars.len())
}

/// Names the largest BAR.
fn largest(bars: &[Bar]) -> String {
    let bar = bars.iter().max_by_key(|bar| bar.size);
    bar.map_or(String::new(), |bar| {
        let size = human(bar.size);
        format!(
            "; the largest is BAR {} of {} ({size})",
            bar.index, bar.device
        )
    })
}

fn no_room(bars: &[Bar], high: Option<IovaRange>, request: &Request, reach: &Reach<'_>) -> Item {
    let place = match high {
        Some(piece) => format!(
            "above guest RAM there is {piece} ({})",
            human((piece.last - piece.start).saturating_add(1))
        ),
        None => "there is nothing above guest RAM".to_owned(),
    };
    let cpu = request
        .address_bits
        .map_or(String::new(), |bits| format!(", the CPU {bits} bits"));
    let text = format!(
        "{} fit: {place}{}; the IOMMU reaches {reach}{cpu}",
        count(bars, "64-bit BAR", "", "do not"),
        largest(bars)
    );
    Item::failed(Check::Bars, Subject::Host, text).fix(Remedy::advice(
        "give the guest less memory or fewer devices; an emulated IOMMU may be made wider (QEMU: aw-bits=48)",
    ))
}

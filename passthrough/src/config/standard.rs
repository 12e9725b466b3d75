use std::ops::Range;

use devices::pci::{Capability, capabilities};

use super::book::{Found, ResetBit, RuleBook};
use super::express::Express;
use super::msi::MsiPlace;
use super::msix::MsixCapability;
use super::rule::{Access, Rule};
use super::subject::Subject;
use super::table::{Fate, GAP, Kind, STANDARD, Size, UNKNOWN, find, name_of};
use super::{ConfigError, express};
use crate::assigned::Placement;

const FIRST: u16 = 0x40;
const END: u16 = 0x100;
const POINTER: u16 = 0x34;
const STATUS: u16 = 0x06;
/// The status bit that says that there is a list.
const STATUS_LIST: u32 = 1 << 4;

const POWER_MANAGEMENT: u8 = 0x01;
const MSI: u8 = 0x05;
const VENDOR_SPECIFIC: u8 = 0x09;
const PCI_EXPRESS: u8 = 0x10;
const MSI_X: u8 = 0x11;
const SATA: u8 = 0x12;
const ADVANCED_FEATURES: u8 = 0x13;

/// Why a capability that is shorter than its kind can be is hidden.
pub(super) const CUT_SHORT: &str = "it runs into the next one, or past the end";
/// Why a second capability of a kind is hidden.
pub(super) const SECOND: &str = "only the first of a kind counts";

/// Why messages that the device can send are hidden.
const NOT_DELIVERED: &str = "the host can't deliver its interrupts";

/// What a guest gets of a capability: the rules, or the reason why nothing.
pub(super) type Decision = Result<Vec<Rule>, &'static str>;

/// Decides what the guest sees of each standard capability, chains up what is
/// left, and leaves the gaps between them to the device.
///
/// # Errors
/// When the device can't be an endpoint of the guest, or not there.
pub(super) fn add(book: &mut RuleBook, subject: &Subject<'_>) -> Result<(), ConfigError> {
    let snapshot = subject.snapshot;
    let list: Vec<_> = capabilities(|at, data| snapshot.read(at, data)).collect();
    let starts: Vec<u16> = list.iter().map(|c| c.offset).collect();
    let mut shown: Vec<Capability> = Vec::new();
    let mut claimed = Vec::new();
    for &capability in &list {
        let Capability { id, offset } = capability;
        let kind = find(STANDARD, id.into());
        let room = room(&starts, offset, END);
        let size = extent(subject, kind, offset, room);
        let repeated = id != VENDOR_SPECIFIC && shown.iter().any(|other| other.id == id);
        let decision = match size {
            Err(_) => Err(CUT_SHORT),
            Ok(_) if repeated => Err(SECOND),
            Ok(_) => decide(book, subject, kind, capability)?,
        };
        let (Ok(size) | Err(size)) = size;
        let found = Found {
            id: id.into(),
            version: None,
            title: name_of(id.into(), false),
            place: offset..offset + size,
            hidden: decision.as_ref().err().copied(),
        };
        let end = (offset + size).next_multiple_of(4);
        claimed.push(offset..end);
        if decision.is_ok() {
            shown.push(capability);
        }
        book.enter(found, end, &decision.unwrap_or_default());
    }
    for gap in gaps(claimed) {
        book.place(gap, &[GAP]);
    }
    if subject.placement == Placement::BehindPort && !book.express {
        return Err(ConfigError::NoLink);
    }
    book.place(0..END, &links(&shown));
    Ok(())
}

/// Bytes from `offset` up to the next of `starts`, or to `end`.
pub(super) fn room(starts: &[u16], offset: u16, end: u16) -> u16 {
    let next = starts.iter().copied().filter(|at| *at > offset).min();
    next.unwrap_or(end).saturating_sub(offset)
}

/// Bytes of a capability that has `room` bytes. What has less than it can do
/// with is an error.
pub(super) fn extent(
    subject: &Subject<'_>,
    kind: Option<&Kind>,
    offset: u16,
    room: u16,
) -> Result<u16, u16> {
    let (size, least) = match kind.map_or(Size::Unknown, |kind| kind.size) {
        Size::Fixed(size) => (size, size),
        Size::Read(read, least) => (read(subject.snapshot, offset), least),
        Size::Whole(read) => {
            let size = read(subject.snapshot, offset);
            (size, size)
        }
        Size::Unknown => (room, 0),
    };
    match room {
        room if room < least => Err(room),
        room => Ok(size.max(least).min(room)),
    }
}

/// What the guest gets of a capability. Notes in `book` what there is to know
/// of it.
fn decide(
    book: &mut RuleBook,
    subject: &Subject<'_>,
    kind: Option<&Kind>,
    Capability { id, offset }: Capability,
) -> Result<Decision, ConfigError> {
    let snapshot = subject.snapshot;
    let mut rules = match kind.map(|kind| kind.fate) {
        Some(Fate::Shown(rules)) => subject.choose(rules),
        Some(Fate::Hidden(why)) => return Ok(Err(why)),
        None => return Ok(Err(UNKNOWN)),
    };
    match id {
        POWER_MANAGEMENT => book.power = Some(offset),
        PCI_EXPRESS => match express::build(subject, offset)? {
            Ok(express) => {
                let Express {
                    rules: more,
                    reset,
                    limits,
                } = express;
                rules.extend(more);
                book.limits.extend(limits);
                book.resets.extend(reset);
                book.express = true;
            }
            Err(why) => return Ok(Err(why)),
        },
        MSI if !subject.deliverable.msi => return Ok(Err(NOT_DELIVERED)),
        MSI => {
            let msi = MsiPlace::read(snapshot, offset);
            rules.extend(msi.rules());
            book.msi = Some(msi);
        }
        MSI_X if !subject.deliverable.msix => return Ok(Err(NOT_DELIVERED)),
        MSI_X => book.msix = Some(MsixCapability::read(snapshot, offset, subject.bars)?),
        // The registers' place: a BAR by its number, or right behind.
        SATA if snapshot.u8(offset + 4) & 0xf == 0xf => {
            return Ok(Err("the kernel lets nobody write its registers"));
        }
        // Reset and pending transactions come together.
        ADVANCED_FEATURES if subject.can_reset && snapshot.u8(offset + 3) & 3 == 3 => {
            book.resets.push(ResetBit {
                offset: offset + 4,
                mask: 1,
            });
        }
        _ => {}
    }
    Ok(Ok(rules))
}

/// The links of the list: the status bit, the pointer in the header, and each
/// next pointer.
fn links(shown: &[Capability]) -> Vec<Rule> {
    const WHY: &str = "what is hidden is left out of the list";
    let link = |at, to: Option<&Capability>, title| {
        let pointer = Access::Value(to.map_or(0, |capability| capability.offset.into()));
        Rule::new(at, 1, pointer, title, WHY)
    };
    let Some(first) = shown.first() else {
        let title = ("status: capabilities list", "PCIe 6.0 §7.5.1.1.4");
        let none = Rule::new(STATUS, 2, Access::Value(0), title, "no capability is left");
        return vec![none.bits(STATUS_LIST)];
    };
    let title = ("status: capabilities list", "PCIe 6.0 §7.5.1.1.4");
    let list = Rule::new(STATUS, 2, Access::Value(STATUS_LIST), title, WHY);
    let title = ("capabilities pointer", "PCIe 6.0 §7.5.1.1.11");
    let mut links = vec![list.bits(STATUS_LIST), link(POINTER, Some(first), title)];
    for (at, capability) in shown.iter().enumerate() {
        let id = Access::Value(capability.id.into());
        let title = ("capability id", "PCI 3.0 §6.7");
        links.push(Rule::new(capability.offset, 1, id, title, WHY));
        let title = ("next capability", "PCI 3.0 §6.7");
        links.push(link(capability.offset + 1, shown.get(at + 1), title));
    }
    links
}

/// What of 0x40 to 0xff no capability claims, in whole dwords.
fn gaps(mut claimed: Vec<Range<u16>>) -> Vec<Range<u16>> {
    claimed.sort_by_key(|range| range.start);
    let mut gaps = Vec::new();
    let mut at = FIRST;
    for range in claimed {
        if at < range.start {
            gaps.push(at..range.start);
        }
        at = at.max(range.end);
    }
    if at < END {
        gaps.push(at..END);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_is_left() {
        let left = |claimed: &[(u16, u16)]| -> Vec<(u16, u16)> {
            let claimed = claimed.iter().map(|&(start, end)| start..end).collect();
            let gaps = gaps(claimed).into_iter();
            gaps.map(|gap| (gap.start, gap.end)).collect()
        };
        assert_eq!(left(&[]), [(0x40, 0x100)]);
        let claimed = [(0x50, 0x58), (0x40, 0x48)];
        assert_eq!(left(&claimed), [(0x48, 0x50), (0x58, 0x100)]);
        assert_eq!(left(&[(0x40, 0x100)]), []);
    }

    #[test]
    fn room_ends_at_the_next_one() {
        assert_eq!(room(&[0x40, 0x50, 0x48], 0x40, 0x100), 8);
        assert_eq!(room(&[0x40, 0x50, 0x48], 0x50, 0x100), 0xb0);
    }
}

use devices::pci::{CONFIG_SPACE_SIZE, ExtendedCapability, extended_capabilities};

use super::book::{Found, RuleBook};
use super::resizable;
use super::rule::{Access, Rule};
use super::standard::{CUT_SHORT, Decision, SECOND, extent, room};
use super::subject::Subject;
use super::table::{EXTENDED, EXTENDED_SPACE, Fate, Kind, UNKNOWN, find, name_of};

const FIRST: u16 = 0x100;
const END: u16 = CONFIG_SPACE_SIZE as u16;

const VENDOR_SPECIFIC: u16 = 0x0b;
const RESIZABLE: u16 = 0x15;
const DESIGNATED_VENDOR: u16 = 0x23;
/// The vendor id under which CXL defines its registers (CXL 3.1 §8.1).
const CXL: u16 = 0x1e98;
const CONVENTIONAL: &str = "conventional PCI has no extended config space";

/// Decides what the guest sees of each extended capability, and chains up what
/// is left. Only what is known to be harmless is shown.
pub(super) fn add(book: &mut RuleBook, subject: &Subject<'_>) {
    book.place(0..END, &[EXTENDED_SPACE]);
    let snapshot = subject.snapshot;
    let list: Vec<_> = extended_capabilities(|at, data| snapshot.read(at, data)).collect();
    let starts: Vec<u16> = list.iter().map(|c| c.offset).collect();
    let mut shown: Vec<ExtendedCapability> = Vec::new();
    for &capability in &list {
        let ExtendedCapability {
            id,
            offset,
            version,
        } = capability;
        let kind = find(EXTENDED, id);
        let room = room(&starts, offset, END);
        let size = extent(subject, kind, offset, room);
        let any_number = [VENDOR_SPECIFIC, DESIGNATED_VENDOR].contains(&id);
        let decision = match size {
            _ if !book.express => Err(CONVENTIONAL),
            Err(_) => Err(CUT_SHORT),
            Ok(_) if !any_number && shown.iter().any(|other| other.id == id) => Err(SECOND),
            Ok(size) => decide(subject, kind, capability, size),
        };
        let (Ok(size) | Err(size)) = size;
        let found = Found {
            id,
            version: Some(version),
            title: name_of(id, true),
            place: offset..offset + size,
            hidden: decision.as_ref().err().copied(),
        };
        if decision.is_ok() {
            shown.push(capability);
        }
        book.enter(found, offset + size, &decision.unwrap_or_default());
    }
    if book.express {
        book.place(FIRST..END, &chain(&shown));
    }
}

fn decide(
    subject: &Subject<'_>,
    kind: Option<&Kind>,
    capability: ExtendedCapability,
    size: u16,
) -> Decision {
    let rules = match kind.map(|kind| kind.fate) {
        Some(Fate::Shown(rules)) => subject.choose(rules),
        Some(Fate::Hidden(why)) => return Err(why),
        None => return Err(UNKNOWN),
    };
    let ExtendedCapability { id, offset, .. } = capability;
    match id {
        RESIZABLE => resizable::rules(subject, offset, size),
        DESIGNATED_VENDOR if subject.snapshot.u16(offset + 4) == CXL => {
            Err("it describes a CXL link of the host")
        }
        _ => Ok(rules),
    }
}

/// The headers. The list always begins at 0x100: what is hidden there leaves
/// an empty capability behind, which only points on (PCIe 6.0 §7.9.28).
fn chain(shown: &[ExtendedCapability]) -> Vec<Rule> {
    const TITLE: (&str, &str) = ("extended capability header", "PCIe 6.0 §7.6.3");
    const WHY: &str = "what is hidden is left out of the list";
    let next = |to: Option<&ExtendedCapability>| to.map_or(0, |c| u32::from(c.offset) << 20);
    let mut headers = Vec::with_capacity(shown.len() + 1);
    if shown.first().is_none_or(|first| first.offset != FIRST) {
        let empty = Access::Value(next(shown.first()));
        headers.push(Rule::new(0, 4, empty, TITLE, WHY));
    }
    for (at, capability) in shown.iter().enumerate() {
        let id = u32::from(capability.version) << 16 | u32::from(capability.id);
        let header = Access::Value(next(shown.get(at + 1)) | id);
        let offset = capability.offset - FIRST;
        headers.push(Rule::new(offset, 4, header, TITLE, WHY));
    }
    headers
}

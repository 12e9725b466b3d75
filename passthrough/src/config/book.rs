use std::ops::Range;

use devices::pci::{BarInfo, ConfigSpace};

use super::msi::MsiPlace;
use super::msix::MsixCapability;
use super::rule::{Access, Rule};
use super::subject::Subject;
use super::table::HEADER;
use super::{ConfigError, extended, standard};

const HEADER_TYPE: u16 = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;

/// The rules of one device, each with its place.
///
/// Pure data: nothing here depends on what the guest does.
#[derive(Debug, Default)]
pub(crate) struct RuleBook {
    /// The rules. Later ones override earlier ones, bit by bit.
    pub(crate) rules: Vec<Placed>,
    /// The device's capabilities, standard ones first, in the order of their
    /// links.
    pub(crate) found: Vec<Found>,
    /// Fields with a largest value.
    pub(crate) limits: Vec<Limit>,
    /// The bits that order a reset.
    pub(crate) resets: Vec<ResetBit>,
    /// The power management capability.
    pub(crate) power: Option<u16>,
    /// The MSI capability.
    pub(crate) msi: Option<MsiPlace>,
    /// The MSI-X capability.
    pub(crate) msix: Option<MsixCapability>,
    /// The guest sees a PCI Express capability, so there is extended space.
    pub(super) express: bool,
}

/// A rule and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The bytes that it applies to.
    pub(crate) place: Range<u16>,
    /// The rule. Its offset has been used up.
    pub(crate) rule: Rule,
}

/// A capability of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its id.
    pub(crate) id: u16,
    /// Its version, if it is an extended one.
    pub(crate) version: Option<u8>,
    /// What it is called, and where it is specified.
    pub(crate) title: (&'static str, &'static str),
    /// Its bytes.
    pub(crate) place: Range<u16>,
    /// Why the guest does not see it; nothing when it does.
    pub(crate) hidden: Option<&'static str>,
}

/// A field of a 16-bit register with a largest value: a write of more leaves
/// it as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The register.
    pub(crate) offset: u16,
    /// The field's bits.
    pub(crate) mask: u16,
    /// The largest value, in the place of the field.
    pub(crate) largest: u16,
}

/// A bit that orders a reset of the function when a one is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResetBit {
    /// The byte.
    pub(crate) offset: u16,
    /// The bit.
    pub(crate) mask: u8,
}

impl RuleBook {
    /// The rules for a device.
    ///
    /// # Errors
    /// When no guest can have it.
    pub(crate) fn new(subject: &Subject<'_>) -> Result<Self, ConfigError> {
        if subject.snapshot.u32(0) == u32::MAX {
            return Err(ConfigError::NoAnswer);
        }
        match subject.snapshot.u8(HEADER_TYPE) & !MULTI_FUNCTION {
            0 => {}
            other => return Err(ConfigError::HeaderType(other)),
        }
        let mut book = Self::default();
        book.place(0..0x40, &subject.choose(HEADER));
        for bar in subject.bars {
            book.place(0..0x40, &bar_rules(bar));
        }
        standard::add(&mut book, subject)?;
        extended::add(&mut book, subject);
        Ok(book)
    }

    /// Adds rules whose offsets count from the start of `place`. They hold
    /// inside of it only.
    pub(super) fn place(&mut self, place: Range<u16>, rules: &[Rule]) {
        for rule in rules {
            let start = place.start.saturating_add(rule.offset).min(place.end);
            let end = start.saturating_add(rule.size).min(place.end);
            if start < end {
                self.rules.push(Placed {
                    place: start..end,
                    rule: *rule,
                });
            }
        }
    }

    /// Adds a capability: its rules, and zeros (up to `end`) for what they leave
    /// open. Without rules it is hidden for a reason.
    pub(super) fn enter(&mut self, found: Found, end: u16, rules: &[Rule]) {
        let why = found
            .hidden
            .unwrap_or("reserved, or nothing that a guest has");
        let nothing = Rule::new(0, u16::MAX, Access::Value(0), found.title, why);
        self.place(found.place.start..end, &[nothing]);
        self.place(found.place.clone(), rules);
        self.found.push(found);
    }

    /// Whether a config write orders a reset.
    pub(crate) fn asks_for_reset(&self, offset: u16, data: &[u8]) -> bool {
        self.resets.iter().any(|bit| {
            let index = bit.offset.checked_sub(offset).map(usize::from);
            let byte = index.and_then(|index| data.get(index));
            byte.is_some_and(|byte| byte & bit.mask != 0)
        })
    }
}

/// The registers of a BAR or of the ROM, as they define themselves.
fn bar_rules(bar: &BarInfo) -> Vec<Rule> {
    const NAMES: [&str; 7] = [
        "BAR 0",
        "BAR 1",
        "BAR 2",
        "BAR 3",
        "BAR 4",
        "BAR 5",
        "expansion ROM",
    ];
    let title = NAMES.get(usize::from(bar.index.get())).unwrap_or(&"BAR");
    let mut space = ConfigSpace::new();
    bar.define(&mut space);
    let register = bar.index.register();
    let registers = if bar.kind.is_64_bit() { 2 } else { 1 };
    let rule = |at: u16| {
        let bytes = [0, 1, 2, 3].map(|byte| space.guest_bits(at + byte));
        let access = Access::Guest {
            value: space.u32(at),
            writable: u32::from_le_bytes(bytes),
        };
        let section = (*title, "PCIe 6.0 §7.5.1.2.1");
        let why = "where it is on the host is the host's, where in the guest the guest's to say";
        Rule::new(at, 4, access, section, why)
    };
    (0..registers).map(|at| rule(register + at * 4)).collect()
}

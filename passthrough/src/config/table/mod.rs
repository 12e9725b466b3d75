//! The rules: all of what a guest sees of a device's registers that can be said
//! without looking at the device, as data.
//!
//! What depends on the device's own registers (the BARs, the links of the
//! lists, sizes) is put between these by `standard.rs`, `extended.rs` and the
//! files of single capabilities. Later rules override earlier ones bit by bit,
//! and every bit of the 4 KiB has at least one.

mod extended;
mod header;
mod standard;

pub(super) use extended::{EXTENDED, EXTENDED_SPACE};
pub(super) use header::{GAP, HEADER};
pub(super) use standard::STANDARD;

use devices::pci::ConfigSpace;

use super::rule::Rule;

/// A kind of capability.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Its id in its list (PCI Code and ID Assignment §2, §3).
    pub(super) id: u16,
    /// What it is called.
    pub(super) name: &'static str,
    /// Where its layout is specified.
    pub(super) section: &'static str,
    /// Bytes.
    pub(super) size: Size,
    /// What the guest sees of it.
    pub(super) fate: Fate,
}

/// How long a capability is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Size {
    /// Always the same.
    Fixed(u16),
    /// As its registers say: they are asked, and the shortest that makes sense.
    Read(fn(&ConfigSpace, u16) -> u16, u16),
    /// As its registers say, all of which must be there.
    Whole(fn(&ConfigSpace, u16) -> u16),
    /// Up to the next one.
    Unknown,
}

/// What the guest sees of a kind of capability.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// These rules. Where there is more to decide, for this very device, the
    /// code that knows the kind does so and adds rules to them.
    Shown(&'static [Rule]),
    /// Nothing, for this reason.
    Hidden(&'static str),
}

/// The reason why a kind that is in no list is hidden.
pub(super) const UNKNOWN: &str = "nobody knows what it does to the host";

/// The row of a kind.
pub(super) fn find(table: &'static [Kind], id: u16) -> Option<&'static Kind> {
    table.iter().find(|kind| kind.id == id)
}

/// What a capability is called, and where it is specified.
pub(crate) fn name_of(id: u16, extended: bool) -> (&'static str, &'static str) {
    let (table, unknown) = match extended {
        false => (STANDARD, "PCI Code and ID Assignment §2"),
        true => (EXTENDED, "PCI Code and ID Assignment §3"),
    };
    find(table, id).map_or(("unknown", unknown), |kind| (kind.name, kind.section))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rule::Access;

    fn all() -> impl Iterator<Item = (&'static str, Rule)> {
        let kinds = STANDARD.iter().chain(EXTENDED);
        let shown = kinds.flat_map(|kind| match kind.fate {
            Fate::Shown(rules) => rules.iter().map(|rule| (kind.name, *rule)).collect(),
            Fate::Hidden(_) => Vec::new(),
        });
        let header = HEADER.iter().map(|rule| ("header", *rule));
        header
            .chain(shown)
            .chain([("gap", GAP), ("extended", EXTENDED_SPACE)])
    }

    #[test]
    fn every_rule_says_what_where_and_why() {
        for (kind, rule) in all() {
            assert!(!rule.name.is_empty() && rule.size > 0, "{kind}: {rule:?}");
            assert!(rule.section.contains('§'), "{kind}: {rule:?}");
            assert_ne!(rule.why.is_empty(), !rule.is_plain(), "{kind}: {rule:?}");
            assert!(!rule.why.ends_with('.'), "{kind}: {rule:?}");
        }
    }

    #[test]
    fn masks_stay_within_the_bits_that_a_rule_speaks_of() {
        for (kind, rule) in all() {
            let width = u32::from(rule.size.min(4)) * 8;
            let bits = rule.bits & u32::MAX >> (32 - width);
            let inside = |mask: u32| mask == u32::MAX || mask & !bits == 0;
            let fits = match rule.access {
                Access::Constant(mask) | Access::Value(mask) => inside(mask),
                Access::Guest { value, writable } | Access::Kept { value, writable } => {
                    inside(value) && inside(writable)
                }
                Access::Shared { writable } => inside(writable),
                Access::Device {
                    readable,
                    writable,
                    clearable,
                } => inside(readable) && inside(writable | clearable) && writable & clearable == 0,
            };
            assert!(fits, "{kind}: {rule:x?}");
        }
    }

    #[test]
    fn ids_are_unique() {
        for table in [STANDARD, EXTENDED] {
            for (at, kind) in table.iter().enumerate() {
                assert!(
                    table[..at].iter().all(|other| other.id < kind.id),
                    "{kind:?}"
                );
                assert!(find(table, kind.id).is_some());
            }
            assert!(find(table, 0xfffe).is_none());
        }
    }
}

use super::data::{Bytes, Difference};
use crate::config::Placed;

/// Why a byte differs for which every rule says that it does not: the view
/// was made from something better than the hardware's own word.
const KERNEL: &str = "a virtual function has no ids of its own; the kernel knows them";

/// Where two images of config space differ, and by which rules. Bytes beyond
/// the shorter one are not compared.
pub(super) fn differences(physical: &[u8], guest: &[u8], rules: &[Placed]) -> Vec<Difference> {
    let mut found: Vec<(Vec<usize>, Difference)> = Vec::new();
    for (at, (&host, &shown)) in (0_u16..).zip(physical.iter().zip(guest)) {
        if host == shown {
            continue;
        }
        let owners = owners(rules, at, host ^ shown);
        if let Some((same, last)) = found.last_mut()
            && *same == owners
        {
            // A few equal bytes of the same register don't part it in two.
            let end = usize::from(last.offset) + last.physical.0.len();
            let next = usize::from(at);
            if next - end < 4 {
                last.physical.0.extend(&physical[end..=next]);
                last.guest.0.extend(&guest[end..=next]);
                continue;
            }
        }
        let rule = |index: &usize| rules.get(*index).map(|placed| &placed.rule);
        let told = || owners.iter().filter_map(rule);
        let why = |why: &'static str| if why.is_empty() { KERNEL } else { why };
        let difference = Difference {
            offset: at,
            physical: Bytes(vec![host]),
            guest: Bytes(vec![shown]),
            name: joined(told().map(|rule| rule.name), ", "),
            section: joined(told().map(|rule| rule.section), ", "),
            reason: joined(told().map(|rule| why(rule.why)), "; "),
        };
        found.push((owners, difference));
    }
    found
        .into_iter()
        .map(|(_, difference)| difference)
        .collect()
}

/// The rules that have the last word on some `bits` of the byte at `at`.
fn owners(rules: &[Placed], at: u16, mut bits: u8) -> Vec<usize> {
    let mut owners = Vec::new();
    for (index, Placed { place, rule }) in rules.iter().enumerate().rev() {
        if !place.contains(&at) {
            continue;
        }
        let speaks_of = (rule.bits >> ((at - place.start) % 4 * 8)) as u8;
        if speaks_of & bits != 0 {
            owners.push(index);
            bits &= !speaks_of;
        }
    }
    owners
}

/// Texts in a row, each once.
fn joined(texts: impl Iterator<Item = &'static str>, between: &str) -> String {
    let mut once: Vec<&str> = Vec::new();
    for text in texts {
        if !once.contains(&text) {
            once.push(text);
        }
    }
    once.join(between)
}

use std::ops::Range;

use devices::pci::{BarInfo, Capability, ConfigSpace, capabilities};

use super::express::Express;
use super::msi::MsiPlace;
use super::msix::MsixCapability;
use super::rule::{PASSED, Rule, Treatment, rule};
use super::view::Deliverable;
use super::{ConfigError, express, msix, power, vendor};

const FIRST: u16 = 0x40;
const END: u16 = 0x100;
const POINTER: u16 = 0x34;
/// The status register.
pub(super) const STATUS: u16 = 0x06;
/// Its bit that says that there is a list.
pub(super) const STATUS_LIST: u32 = 1 << 4;

const POWER_MANAGEMENT: u8 = 0x01;
const VITAL_PRODUCT_DATA: u8 = 0x03;
const MSI: u8 = 0x05;
const PCI_X: u8 = 0x07;
const VENDOR_SPECIFIC: u8 = 0x09;
const PCI_EXPRESS: u8 = 0x10;
const MSI_X: u8 = 0x11;
const ADVANCED_FEATURES: u8 = 0x13;
const ENHANCED_ALLOCATION: u8 = 0x14;

/// Why messages that the device can send are hidden.
const NOT_DELIVERED: &str = "the host can't deliver its interrupts";

/// The first 256 bytes behind the header, as the guest sees them.
#[derive(Debug, Default)]
pub(super) struct Standard {
    /// Where rules apply, and the rules, with offsets from the start of that
    /// place; they hold inside of it only.
    pub(super) rules: Vec<(Range<u16>, Vec<Rule>)>,
    has_list: bool,
    /// The power management capability.
    pub(super) power: Option<u16>,
    /// The PCI Express capability, and whether it offers a reset.
    pub(super) express: Option<(u16, bool)>,
    /// The MSI capability.
    pub(super) msi: Option<MsiPlace>,
    /// The MSI-X capability.
    pub(super) msix: Option<MsixCapability>,
}

/// Decides what the guest sees of each capability, and chains up what is left.
///
/// Bytes between the capabilities are the device's own: a few drivers have
/// registers there.
///
/// # Errors
/// When the device can't be an endpoint of the guest.
pub(super) fn build(
    snapshot: &ConfigSpace,
    bars: &[BarInfo],
    can_reset: bool,
    deliverable: Deliverable,
) -> Result<Standard, ConfigError> {
    let list: Vec<_> = capabilities(|at, data| snapshot.read(at, data)).collect();
    let mut standard = Standard::default();
    let mut shown: Vec<Capability> = Vec::new();
    let mut claimed = Vec::new();
    for &capability in &list {
        let Capability { id, offset } = capability;
        let next = list.iter().map(|c| c.offset).filter(|at| *at > offset);
        let room = next.min().unwrap_or(END) - offset;
        let size = size(snapshot, id, offset).map_or(room, |size| size.min(room));
        let place = offset..offset + size;
        claimed.push(place.clone());
        let once = |taken: bool| match taken {
            true => Err("only the first of a kind counts"),
            false => Ok(()),
        };
        let decision = match id {
            POWER_MANAGEMENT => once(standard.power.is_some()).map(|()| {
                standard.power = Some(offset);
                power::rules(snapshot, offset)
            }),
            PCI_EXPRESS => match express::rules(snapshot, offset, can_reset)? {
                Express::Shown { rules, flr } => once(standard.express.is_some()).map(|()| {
                    standard.express = Some((offset, flr));
                    rules
                }),
                Express::Hidden => Err("a legacy endpoint may not stand on a root bus"),
            },
            MSI if !deliverable.msi => Err(NOT_DELIVERED),
            MSI => once(standard.msi.is_some()).map(|()| {
                let msi = MsiPlace::read(snapshot, offset);
                standard.msi = Some(msi);
                msi.rules()
            }),
            MSI_X if !deliverable.msix => Err(NOT_DELIVERED),
            MSI_X => match once(standard.msix.is_some()) {
                Ok(()) => {
                    let msix = MsixCapability::read(snapshot, offset, bars)?;
                    standard.msix = Some(msix);
                    Ok(msix.rules().to_vec())
                }
                Err(reason) => Err(reason),
            },
            VITAL_PRODUCT_DATA => Ok(vendor::vpd_rules()),
            VENDOR_SPECIFIC => Ok(vendor::rules(vendor::size(snapshot, offset))),
            other => Err(why_hidden(other)),
        };
        match decision {
            Ok(rules) => {
                standard.rules.push((place, rules));
                shown.push(capability);
            }
            Err(reason) => {
                log::debug!("capability {id:#04x} at {offset:#04x} is hidden: {reason}");
            }
        }
    }
    for gap in gaps(claimed) {
        let size = gap.end - gap.start;
        let rules = vec![rule(
            0,
            size,
            PASSED,
            "device-specific, between capabilities",
        )];
        standard.rules.push((gap, rules));
    }
    standard.has_list = !shown.is_empty();
    chain(&mut standard, &shown);
    Ok(standard)
}

/// The links of the list: the pointer in the header, and each next pointer.
fn chain(standard: &mut Standard, shown: &[Capability]) {
    let pointer = |to: Option<&Capability>| Treatment::Value(to.map_or(0, |c| c.offset.into()));
    let mut links = Vec::with_capacity(shown.len() + 2);
    let first = pointer(shown.first());
    links.push(rule(
        POINTER,
        1,
        first,
        "capabilities pointer, PCIe 6.0 §7.5.1.1.11",
    ));
    for (at, capability) in shown.iter().enumerate() {
        let id = Treatment::Value(capability.id.into());
        let next = pointer(shown.get(at + 1));
        links.push(rule(capability.offset, 1, id, "capability id"));
        links.push(rule(capability.offset + 1, 1, next, "next capability"));
    }
    standard.rules.push((0..END, links));
}

impl Standard {
    /// Whether any capability is left.
    pub(super) fn has_list(&self) -> bool {
        self.has_list
    }
}

/// Bytes of a capability; nothing when they are not known.
fn size(snapshot: &ConfigSpace, id: u8, at: u16) -> Option<u16> {
    Some(match id {
        POWER_MANAGEMENT => power::SIZE,
        VITAL_PRODUCT_DATA => vendor::VPD_SIZE,
        MSI => MsiPlace::read(snapshot, at).capability.size(),
        PCI_X => 8,
        VENDOR_SPECIFIC => vendor::size(snapshot, at),
        PCI_EXPRESS => express::size(snapshot, at),
        MSI_X => msix::SIZE,
        ADVANCED_FEATURES => 8,
        _ => return None,
    })
}

fn why_hidden(id: u8) -> &'static str {
    match id {
        PCI_X => "it tunes a bus that the guest does not see",
        ADVANCED_FEATURES => "its reset is not carried out yet",
        ENHANCED_ALLOCATION => "it would fix BARs at addresses of the host",
        _ => "nobody knows what it does to the host",
    }
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
        at = at.max(range.end.next_multiple_of(4));
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
        let claimed = [(0x50, 0x57), (0x40, 0x48)];
        assert_eq!(left(&claimed), [(0x48, 0x50), (0x58, 0x100)]);
        assert_eq!(left(&[(0x40, 0x100)]), []);
    }
}

use std::ops::Range;

use devices::pci::{CONFIG_SPACE_SIZE, ConfigSpace, ExtendedCapability, extended_capabilities};

use super::rule::{CONSTANT, READ, Rule, Treatment, rule};
use super::vendor;

const FIRST: u16 = 0x100;
const END: u16 = CONFIG_SPACE_SIZE as u16;

const ERROR_REPORTING: u16 = 0x01;
const SERIAL_NUMBER: u16 = 0x03;
const VENDOR_SPECIFIC: u16 = 0x0b;
/// Bytes of the error reporting capability of an endpoint, without prefix logs.
const ERROR_REPORTING_SIZE: u16 = 0x2c;

/// Decides what the guest sees of each extended capability, and chains up what
/// is left. Only what is known to be harmless is shown.
pub(super) fn build(snapshot: &ConfigSpace) -> Vec<(Range<u16>, Vec<Rule>)> {
    let list: Vec<_> = extended_capabilities(|at, data| snapshot.read(at, data)).collect();
    let mut built = Vec::new();
    let mut shown: Vec<ExtendedCapability> = Vec::new();
    for &capability in &list {
        let ExtendedCapability { id, offset, .. } = capability;
        let next = list.iter().map(|c| c.offset).filter(|at| *at > offset);
        let place = offset..next.min().unwrap_or(END);
        match rules(snapshot, id, offset) {
            Ok(rules) => {
                built.push((place, rules));
                shown.push(capability);
            }
            Err(reason) => {
                log::debug!("extended capability {id:#06x} at {offset:#05x} is hidden: {reason}");
            }
        }
    }
    built.push((FIRST..END, chain(&shown)));
    built
}

fn rules(snapshot: &ConfigSpace, id: u16, at: u16) -> Result<Vec<Rule>, &'static str> {
    match id {
        // To look at, for whoever searches a fault from inside the guest. The
        // host's error handling owns it: it enables, clears and recovers.
        ERROR_REPORTING => Ok(vec![rule(
            4,
            ERROR_REPORTING_SIZE - 4,
            READ,
            "error reporting, PCIe 6.0 §7.8.4",
        )]),
        SERIAL_NUMBER => Ok(vec![rule(4, 8, CONSTANT, "serial number, PCIe 6.0 §7.9.3")]),
        VENDOR_SPECIFIC => Ok(vendor::extended_rules(snapshot, at)),
        other => Err(why_hidden(other)),
    }
}

/// The reasons, for the log (ids: PCI Code and ID Assignment §3).
fn why_hidden(id: u16) -> &'static str {
    match id {
        0x0000 => "it is empty",
        0x0002 | 0x0008 | 0x0009 => "virtual channels belong to the host's links",
        0x0004 => "power budgets are the host's",
        0x000d => "access control belongs to the host's topology",
        0x000e => "the guest's topology has no ARI",
        0x000f | 0x0013 => "the guest has no IOMMU to translate with",
        0x0010 | 0x0011 => "virtual functions are made on the host",
        0x0012 => "multicast belongs to the host's topology",
        0x0015 | 0x0024 => "resizing would move the BARs of the host",
        0x0016 => "dynamic power allocation is the host's",
        0x0017 => "steering tags name the host's processors",
        0x0018 => "latency tolerance is the host's to give",
        0x0019 | 0x0026 | 0x002a | 0x0031 => "the guest's function has no link",
        0x001b => "the guest has no IOMMU with process address spaces",
        0x001d => "containment belongs to the host's ports",
        0x001e => "link power states are the host's",
        0x001f => "time is measured against the host's ports",
        0x0023 => "it may describe a link of the host, as CXL does",
        _ => "nobody knows what it does to the host",
    }
}

/// The headers. The list always begins at 0x100: what is hidden there leaves
/// an empty capability behind, which only points on (PCIe 6.0 §7.9.28).
fn chain(shown: &[ExtendedCapability]) -> Vec<Rule> {
    let next = |to: Option<&ExtendedCapability>| to.map_or(0, |c| u32::from(c.offset) << 20);
    let mut headers = Vec::with_capacity(shown.len() + 1);
    if shown.first().is_none_or(|first| first.offset != FIRST) {
        let empty = Treatment::Value(next(shown.first()));
        headers.push(rule(0, 4, empty, "empty capability"));
    }
    for (at, capability) in shown.iter().enumerate() {
        let id = u32::from(capability.version) << 16 | u32::from(capability.id);
        let header = Treatment::Value(next(shown.get(at + 1)) | id);
        let offset = capability.offset - FIRST;
        headers.push(rule(offset, 4, header, "extended capability header"));
    }
    headers
}

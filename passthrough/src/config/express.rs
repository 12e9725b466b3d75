use devices::pci::ConfigSpace;

use super::ConfigError;
use super::book::{Limit, ResetBit};
use super::rule::{Access, Rule};
use super::subject::Subject;
use crate::assigned::Placement;

/// The PCI Express capabilities register, from the capability's start.
pub(super) const FLAGS: u16 = 0x02;
const TYPE: u16 = 0x00f0;
const VERSION: u16 = 0x000f;
const DEVICE_CAPABILITIES: u16 = 0x04;
const LARGEST_PAYLOAD: u32 = 7;
const HAS_EXTENDED_TAGS: u32 = 1 << 5;
const CAN_RESET: u32 = 1 << 28;
const DEVICE_CONTROL: u16 = 0x08;
const RELAXED_ORDERING: u16 = 1 << 4;
const PAYLOAD: u16 = 7 << 5;
const EXTENDED_TAGS: u16 = 1 << 8;
const READ_REQUEST: u16 = 7 << 12;
/// 4096 bytes; larger values are reserved.
const LARGEST_READ_REQUEST: u16 = 5 << 12;

const TYPE_ENDPOINT: u8 = 0x0;
const TYPE_LEGACY_ENDPOINT: u8 = 0x1;
const TYPE_INTEGRATED_ENDPOINT: u8 = 0x9;

/// What depends on the device in its PCI Express capability.
#[derive(Debug, Default)]
pub(super) struct Express {
    /// Rules besides those of the table.
    pub(super) rules: Vec<Rule>,
    /// The bit that orders a reset, if there is one.
    pub(super) reset: Option<ResetBit>,
    /// Fields with a largest value.
    pub(super) limits: Vec<Limit>,
}

/// Fits the capability at `at` to the device's place in the guest.
///
/// Behind a port an endpoint stays what it is. On the root bus there is no
/// link, and only integrated endpoints live there: an endpoint becomes one. A
/// legacy endpoint may not be integrated (PCIe 6.0 §1.3.2.3); it loses the
/// capability, for the reason that is the inner error, and looks like
/// conventional PCI.
///
/// # Errors
/// When it is not an endpoint, or can't stand where it is to.
pub(super) fn build(
    subject: &Subject<'_>,
    at: u16,
) -> Result<Result<Express, &'static str>, ConfigError> {
    let snapshot = subject.snapshot;
    let flags = snapshot.u16(at + FLAGS);
    let mut express = Express::default();
    let section = ("PCI Express capabilities: type", "PCIe 6.0 §7.5.3.2");
    match (port_type(flags), subject.placement) {
        (TYPE_ENDPOINT | TYPE_LEGACY_ENDPOINT, Placement::BehindPort)
        | (TYPE_INTEGRATED_ENDPOINT, Placement::RootBus) => {
            let same = Access::Constant(TYPE.into());
            let rule = Rule::new(FLAGS, 2, same, section, "");
            express.rules.push(rule.bits(TYPE.into()));
        }
        (TYPE_ENDPOINT, Placement::RootBus) => {
            let integrated = Access::Value(u32::from(TYPE_INTEGRATED_ENDPOINT) << 4);
            let why = "on the root bus only integrated endpoints can stand";
            let rule = Rule::new(FLAGS, 2, integrated, section, why);
            express.rules.push(rule.bits(TYPE.into()));
        }
        (TYPE_LEGACY_ENDPOINT, Placement::RootBus) => {
            return Ok(Err("a legacy endpoint may not stand on a root bus"));
        }
        (TYPE_INTEGRATED_ENDPOINT, Placement::BehindPort) => return Err(ConfigError::NoLink),
        (other, _) => return Err(ConfigError::PortType(other)),
    }
    if flags & VERSION == 0 {
        let section = ("PCI Express capabilities: version", "PCIe 6.0 §7.5.3.2");
        let why = "some virtual functions claim version 0, which does not exist";
        let rule = Rule::new(FLAGS, 2, Access::Value(1), section, why);
        express.rules.push(rule.bits(VERSION.into()));
    }
    payload(snapshot, at, &mut express);
    left_off(snapshot, at, &mut express);
    if subject.can_reset && snapshot.u32(at + DEVICE_CAPABILITIES) & CAN_RESET != 0 {
        express.reset = Some(ResetBit {
            offset: at + DEVICE_CONTROL + 1,
            mask: 0x80,
        });
    }
    Ok(Ok(express))
}

/// The payload that the host has set up is the largest that its path carries:
/// the guest is offered no more. The kernel keeps it as it is, whatever the
/// guest writes.
fn payload(snapshot: &ConfigSpace, at: u16, express: &mut Express) {
    let largest = snapshot.u32(at + DEVICE_CAPABILITIES) & LARGEST_PAYLOAD;
    let control = snapshot.u16(at + DEVICE_CONTROL);
    let size = largest.min(u32::from(control & PAYLOAD) >> 5);
    let section = ("device capabilities: largest payload", "PCIe 6.0 §7.5.3.3");
    let why = "no larger than the host's path to the device is set up for";
    let rule = Rule::new(DEVICE_CAPABILITIES, 4, Access::Value(size), section, why);
    express.rules.push(rule.bits(LARGEST_PAYLOAD));
    let kept = Access::Kept {
        value: size << 5,
        writable: PAYLOAD.into(),
    };
    let section = ("device control: payload", "PCIe 6.0 §7.5.3.4");
    let why = "the host has chosen what its path carries; the guest reads back what it asked for";
    let rule = Rule::new(DEVICE_CONTROL, 2, kept, section, why);
    express.rules.push(rule.bits(PAYLOAD.into()));
    for (mask, largest) in [
        (PAYLOAD, (size << 5) as u16),
        (READ_REQUEST, LARGEST_READ_REQUEST),
    ] {
        express.limits.push(Limit {
            offset: at + DEVICE_CONTROL,
            mask,
            largest,
        });
    }
}

/// Linux turns both on wherever the way to memory bears them. Where they are
/// off there was a reason, and a guest can't know it.
fn left_off(snapshot: &ConfigSpace, at: u16, express: &mut Express) {
    const WHY: &str = "the host has left it off: its path to the device may not bear it";
    let off = !snapshot.u16(at + DEVICE_CONTROL) & (RELAXED_ORDERING | EXTENDED_TAGS);
    let none = Access::Value(0);
    if off != 0 {
        let section = ("device control: ordering, tags", "PCIe 6.0 §7.5.3.4");
        let rule = Rule::new(DEVICE_CONTROL, 2, none, section, WHY);
        express.rules.push(rule.bits(off.into()));
    }
    if off & EXTENDED_TAGS != 0 {
        let section = ("device capabilities: extended tags", "PCIe 6.0 §7.5.3.3");
        let rule = Rule::new(DEVICE_CAPABILITIES, 4, none, section, WHY);
        express.rules.push(rule.bits(HAS_EXTENDED_TAGS));
    }
}

fn port_type(flags: u16) -> u8 {
    ((flags & TYPE) >> 4) as u8
}

/// Whether a function with these PCI Express capabilities has a link, and so
/// belongs behind a port.
pub(super) fn has_link(flags: u16) -> bool {
    port_type(flags) != TYPE_INTEGRATED_ENDPOINT
}

/// Whether the capability at `at` has the second set of registers.
pub(super) fn has_second(config: &ConfigSpace, at: u16) -> bool {
    config.u16(at + FLAGS) & VERSION >= 2
}

/// Bytes of the capability at `at`: integrated endpoints have no link
/// registers at its end, and a first version ends before the second set.
pub(super) fn size(config: &ConfigSpace, at: u16) -> u16 {
    let flags = config.u16(at + FLAGS);
    match (flags & VERSION, has_link(flags)) {
        (1, true) => 0x14,
        (1, false) => 0x0c,
        (_, true) => 0x3c,
        (_, false) => 0x2c,
    }
}

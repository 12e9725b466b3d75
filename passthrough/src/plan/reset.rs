use devices::pci::PciAddress;

use super::device::names;
use super::{Check, Item, Request, Subject};
use crate::host::{Function, Survey};
use crate::viability::Remedy;

/// Checks that what one user leaves in the device can be cleared away before
/// the next gets it.
pub(super) fn check(survey: &Survey, request: &Request, function: &Function) -> Item {
    let device = function.address;
    let subject = Subject::Device(device);
    let reset = &function.reset;
    if reset.possible {
        let how = match reset.methods.as_slice() {
            [] => "the kernel does not say how".to_owned(),
            methods => methods.join(", "),
        };
        let reason = format!("{device} can be reset by itself ({how})");
        return Item::passed(Check::Reset, subject, reason);
    }
    let cannot = format!(
        "{device} can't be reset by itself: a guest may find what the one before left in it"
    );
    let Some(port) = function.parents.first() else {
        let reason = format!("{cannot}, and it is on a root bus, which can't be reset either");
        return Item::warning(Check::Reset, subject, reason);
    };
    let hit = on_bus_of(survey, function, *port);
    if hit.is_empty() {
        let reason = format!("{cannot}; a reset of its bus at {port} would hit nothing else");
        return Item::warning(Check::Reset, subject, reason);
    }
    let asked = |address: &PciAddress| {
        let mut devices = request.devices.iter();
        devices.any(|device| device.trim().parse() == Ok(*address))
    };
    let others: Vec<_> = hit.iter().copied().filter(|other| !asked(other)).collect();
    let reason = format!(
        "{cannot}; a reset of its bus at {port} would hit {} too",
        names(&hit)
    );
    let item = Item::warning(Check::Reset, subject, reason);
    if others.is_empty() {
        item
    } else {
        item.fix(Remedy::advice(format!(
            "give the guest {} as well, so that all can be reset together",
            names(&others)
        )))
    }
}

/// What else is below `port`, at any depth. Bridges are reset along with what
/// is behind them.
fn on_bus_of(survey: &Survey, function: &Function, port: PciAddress) -> Vec<PciAddress> {
    let mut behind = survey.endpoints_behind(port);
    behind.retain(|other| *other != function.address);
    behind
}

use devices::pci::PciAddress;

use super::device::names;
use super::{Check, Item, Request, Subject};
use crate::host::{Function, Survey};
use crate::viability::{Remedy, is_vfio_driver};

/// Checks that what one user leaves in the device can be cleared away before
/// the next gets it.
pub(super) fn check(survey: &Survey, request: &Request, function: &Function) -> Item {
    let device = function.address;
    let subject = Subject::Device(device);
    let reset = survey.reset_of(function);
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
    let (Some(port), Some(hit)) = (function.parents.first(), survey.reset_along(function)) else {
        let reason = format!("{cannot}, and it is on a root bus, which can't be reset either");
        return Item::warning(Check::Reset, subject, reason);
    };
    if hit.is_empty() {
        let reason = format!("{cannot}; a reset of its bus at {port} would hit nothing else");
        return Item::warning(Check::Reset, subject, reason);
    }
    let hits = format!("a reset of its bus at {port} would hit {} too", names(&hit));
    let others: Vec<_> = (hit.iter().copied())
        .filter(|other| !is_free(survey, *other))
        .collect();
    if !others.is_empty() {
        let reason = format!("{cannot}; {hits}");
        return Item::warning(Check::Reset, subject, reason).fix(Remedy::advice(format!(
            "bind {} to vfio-pci as well, if the host can do without: the kernel resets the bus \
             when none of it is in use",
            names(&others)
        )));
    }
    let asked = |address: &PciAddress| {
        let mut devices = request.devices.iter();
        devices.any(|device| device.trim().parse() == Ok(*address))
    };
    // What the guest does not have and nobody else can have.
    let idle = |other: &PciAddress| {
        let group = survey.functions.get(other).map(|other| other.group);
        !asked(other) && group == Some(function.group)
    };
    let when = if hit.iter().all(idle) {
        "which happens when the guest resets it, and after its use"
    } else {
        "which happens when none of them is in use"
    };
    Item::warning(Check::Reset, subject, format!("{cannot}; {hits}, {when}"))
}

/// Whether no driver of the host has the device, but VFIO has: what the kernel
/// asks of all that a bus reset hits.
fn is_free(survey: &Survey, device: PciAddress) -> bool {
    survey.functions.get(&device).is_some_and(|function| {
        let driver = function.driver.as_deref();
        driver.is_some_and(|driver| is_vfio_driver(driver, function.vfio_device.as_deref()))
    })
}

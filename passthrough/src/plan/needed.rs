use std::collections::BTreeSet;

use devices::pci::PciAddress;

use super::{Check, Item, Subject};
use crate::host::{Function, HostUse, Survey};
use crate::viability::{Remedy, is_vfio_driver};

/// As many uses as a line can bear.
const SHOWN: usize = 3;

/// Checks that the host can do without `device`, unless it is among `forced`.
pub(super) fn check(
    survey: &Survey,
    device: PciAddress,
    forced: &BTreeSet<PciAddress>,
    items: &mut Vec<Item>,
) {
    let Some(function) = survey.functions.get(&device) else {
        return;
    };
    let driver = function.driver.as_deref();
    let given_up =
        driver.is_some_and(|driver| is_vfio_driver(driver, function.vfio_device.as_deref()));
    items.extend(uses(survey, function, forced, given_up));
    if function.boot_display {
        items.push(display(function, forced, given_up));
    }
}

fn uses(
    survey: &Survey,
    function: &Function,
    forced: &BTreeSet<PciAddress>,
    given_up: bool,
) -> Option<Item> {
    let device = function.address;
    let uses = survey.uses.get(&device)?;
    let mut texts: Vec<_> = uses.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more) = uses.len().checked_sub(SHOWN + 1) {
        texts.push(format!("{} more", more + 1));
    }
    let reason = format!("{device} {}", texts.join(", "));
    let subject = Subject::Device(device);
    if given_up {
        // A mount that outlived its disk, as a surprise removal leaves it.
        let reason = format!("{reason}, though its host driver is gone");
        return Some(Item::warning(Check::HostNeeds, subject, reason));
    }
    if forced.contains(&device) {
        let reason = format!("{reason}: the host loses that, as forced");
        return Some(Item::warning(Check::HostNeeds, subject, reason));
    }
    let reason = format!("{reason}: the host still needs it");
    Some(
        Item::failed(Check::HostNeeds, subject, reason)
            .fixes(uses.iter().take(SHOWN).map(|what| end(survey, what)))
            .fix(instead(device)),
    )
}

/// How to end a use.
fn end(survey: &Survey, what: &HostUse) -> Remedy {
    let plain = |text: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,".contains(c);
        text.chars().all(plain)
    };
    match what {
        HostUse::Mounted { on, .. } if on == "/" => {
            Remedy::advice("the root file system can't be unmounted while the host runs")
        }
        HostUse::Mounted { on, .. } if plain(on) => {
            Remedy::privileged(&survey.process, format!("umount {on}"))
        }
        HostUse::Mounted { on, .. } => Remedy::advice(format!("unmount '{on}'")),
        HostUse::Swap { device } if plain(device) => {
            Remedy::privileged(&survey.process, format!("swapoff /dev/{device}"))
        }
        HostUse::Swap { device } => Remedy::advice(format!("turn swap on '{device}' off")),
        HostUse::DefaultRoute { interface } => Remedy::advice(format!(
            "move the default route from {interface} to another interface (`ip route` shows it)"
        )),
    }
}

fn instead(device: PciAddress) -> Remedy {
    Remedy::advice(format!(
        "or give the guest another device; if the host can do without it, force {device} by name"
    ))
}

/// The firmware's picture, and so the kernel's console, is on the device. On a
/// VFIO driver it is no host's console any more, but the frame buffer of the
/// firmware may still lie in its BAR.
fn display(function: &Function, forced: &BTreeSet<PciAddress>, given_up: bool) -> Item {
    let device = function.address;
    let subject = Subject::Device(device);
    let what = format!("{device} is the display that the host booted with (boot VGA)");
    if given_up {
        let reason = format!("{what}: the host has no picture while a guest has it");
        return Item::warning(Check::HostNeeds, subject, reason).fix(Remedy::advice(
            "if the guest's driver can't use its memory, keep the firmware's frame buffer off it: add initcall_blacklist=sysfb_init to the host kernel's command line",
        ));
    }
    if forced.contains(&device) {
        let reason = format!("{what}: the host loses its picture, as forced");
        return Item::warning(Check::HostNeeds, subject, reason);
    }
    let reason = format!("{what}: the host still needs it");
    Item::failed(Check::HostNeeds, subject, reason)
        .fix(Remedy::advice(
            "choose another display in the firmware's setup, and reboot",
        ))
        .fix(instead(device))
}

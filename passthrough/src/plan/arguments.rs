use std::collections::BTreeSet;

use devices::pci::PciAddress;

use super::{Check, Item, Subject};
use crate::host::Survey;
use crate::viability::Remedy;

/// The devices that `arguments` name, each once; what is wrong with the others
/// goes to `items`.
pub(super) fn check(
    survey: &Survey,
    arguments: &[String],
    items: &mut Vec<Item>,
) -> Vec<PciAddress> {
    let mut seen: Vec<(PciAddress, &String)> = Vec::new();
    let mut devices = Vec::new();
    for argument in arguments {
        let failed = |reason: String| {
            Item::failed(Check::Argument, Subject::Argument(argument.clone()), reason)
        };
        let address: PciAddress = match argument.trim().parse() {
            Ok(address) => address,
            Err(error) => {
                items.push(failed(error.to_string()));
                continue;
            }
        };
        if let Some((_, first)) = seen.iter().find(|(other, _)| *other == address) {
            let written = if *first == argument {
                String::new()
            } else {
                format!(" (as '{first}' and as '{argument}')")
            };
            items.push(
                failed(format!("{address} is given twice{written}"))
                    .fix(Remedy::advice("name each device once")),
            );
            continue;
        }
        seen.push((address, argument));
        if survey.functions.contains_key(&address) {
            devices.push(address);
        } else {
            items.push(failed(absent(survey, address)).fix(Remedy::Command("lspci -D".to_owned())));
        }
    }
    devices
}

/// The devices that the user forces; what is no address goes to `items`.
pub(super) fn forced(arguments: &[String], items: &mut Vec<Item>) -> BTreeSet<PciAddress> {
    let mut forced = BTreeSet::new();
    for argument in arguments {
        match argument.trim().parse() {
            Ok(address) => {
                forced.insert(address);
            }
            Err(error) => items.push(Item::failed(
                Check::Argument,
                Subject::Argument(argument.clone()),
                format!("what is to be forced is no device: {error}"),
            )),
        }
    }
    forced
}

/// Says that `address` does not exist, and what comes close.
fn absent(survey: &Survey, address: PciAddress) -> String {
    let mut reason = format!("there is no PCI function {address} on this host");
    let close: Vec<_> = survey
        .functions
        .keys()
        .filter(|other| {
            let same_slot =
                (other.segment(), other.device()) == (address.segment(), address.device());
            same_slot && other.bus() == address.bus()
        })
        .map(ToString::to_string)
        .collect();
    if !close.is_empty() {
        reason += &format!("; in that slot there is {}", close.join(", "));
    }
    reason
}

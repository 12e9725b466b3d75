use devices::pci::PciAddress;

use super::{Check, Item, Outcome, Request, Subject, reset};
use crate::host::{DriverOverride, Function, Iommu, Survey};
use crate::viability::{Remedy, is_vfio_driver};

/// Without these attributes there is no right answer.
const DECISIVE: [&str; 4] = ["driver", "iommu_group", "physfn", "secondary_bus_number"];

/// Checks `device` by itself, without its group.
pub(super) fn check(survey: &Survey, request: &Request, device: PciAddress, items: &mut Vec<Item>) {
    let Some(function) = survey.functions.get(&device) else {
        return;
    };
    for what in &function.unreadable {
        let path = format!("/sys/bus/pci/devices/{device}/{}", what.attribute);
        let mut item = unreadable(Subject::Device(device), &path, &what.reason);
        if !DECISIVE.contains(&what.attribute.as_str()) {
            item.outcome = Outcome::Warning;
        }
        items.push(item);
    }
    if function.is_bridge() {
        // Nothing else that could be said of it would help.
        items.push(bridge(survey, function));
        return;
    }
    items.extend(relations(survey, request, function));
    let known = |attribute| {
        let mut unreadable = function.unreadable.iter();
        !unreadable.any(|what| what.attribute == attribute)
    };
    if known("iommu_group") {
        items.extend(isolation(survey, request, function));
    }
    if known("driver") {
        items.push(driver(survey, function));
    }
    items.push(reset::check(survey, request, function));
}

pub(super) fn unreadable(subject: Subject, path: &str, reason: &str) -> Item {
    Item::failed(
        Check::Readable,
        subject,
        format!("cannot make sense of {path}: {reason}"),
    )
    .fix(Remedy::advice(
        "check again as root: what can't be seen is not taken",
    ))
}

/// Addresses, as many as a line can bear.
pub(super) fn names(addresses: &[PciAddress]) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<_> = addresses
        .iter()
        .take(SHOWN)
        .map(ToString::to_string)
        .collect();
    if let Some(more) = addresses.len().checked_sub(SHOWN + 1) {
        names.push(format!("and {} more", more + 1));
    }
    names.join(", ")
}

fn bridge(survey: &Survey, function: &Function) -> Item {
    let device = function.address;
    let behind = survey.endpoints_behind(device);
    let advice = if behind.is_empty() {
        "name an endpoint; there is none behind this bridge".to_owned()
    } else {
        format!("name a device behind it: {}", names(&behind))
    };
    Item::failed(
        Check::Assignable,
        Subject::Device(device),
        format!("{device} is a bridge: VFIO gives only endpoints to guests (header type 0)"),
    )
    .fix(Remedy::advice(advice))
}

/// What SR-IOV forbids.
fn relations(survey: &Survey, request: &Request, function: &Function) -> Option<Item> {
    let device = function.address;
    let failed = |reason| Item::failed(Check::Assignable, Subject::Device(device), reason);
    let made = survey.virtual_functions(device);
    if !made.is_empty() {
        let off = format!("echo 0 > /sys/bus/pci/devices/{device}/sriov_numvfs");
        return Some(
            failed(format!(
                "{device} is a physical function with {} VFs enabled ({}): it can't go to a guest while they exist",
                made.len(),
                names(&made)
            ))
            .fix(Remedy::privileged(&survey.process, off))
            .fix(Remedy::advice("or leave it to the host and give VFs to the guest")),
        );
    }
    let physical = survey.functions.get(&function.physical_function?)?;
    let driver = physical.driver.as_deref()?;
    if !is_vfio_driver(driver, physical.vfio_device.as_deref()) {
        return None;
    }
    let physical = physical.address;
    let what = format!("{device} is a VF of {physical}, which is itself on {driver}");
    if request.with_token.contains(&device) {
        let reason = format!("{what} and may reset the VF at any time: its token was given");
        let subject = Subject::Device(device);
        return Some(Item::warning(Check::Assignable, subject, reason));
    }
    Some(
        failed(format!(
            "{what}: its owner's VF token is needed, and it may reset the VF at any time"
        ))
        .fix(Remedy::Advice(format!(
            "give {physical} back to its host driver first"
        )))
        .fix(Remedy::advice(
            "or, if that is wanted, give the token that its owner has set (vf-token=UUID)",
        )),
    )
}

/// Why `device` has no usable group. A usable one is checked with its members.
fn isolation(survey: &Survey, request: &Request, function: &Function) -> Option<Item> {
    let device = function.address;
    let failed = |reason| Item::failed(Check::Isolation, Subject::Device(device), reason);
    let Some(id) = function.group else {
        if survey.iommu.units.is_empty() {
            return Some(
                failed(format!(
                    "{device} is in no IOMMU group: {}",
                    off(&survey.iommu)
                ))
                .fix(cover(&survey.iommu)),
            );
        }
        let units: Vec<_> = survey
            .iommu
            .units
            .iter()
            .map(|unit| unit.name.as_str())
            .collect();
        return Some(
            failed(format!(
                "{device} is in no IOMMU group: the host's IOMMU ({}) does not cover it, so nothing confines its DMA",
                units.join(", ")
            ))
            .fix(cover(&survey.iommu)),
        );
    };
    let Some(group) = survey.groups.get(&id) else {
        return Some(
            failed(format!(
                "{device} says it is in IOMMU group {id}, which does not exist"
            ))
            .fix(Remedy::advice(
                "check again: the host was changing while it was read",
            )),
        );
    };
    group.is_noiommu().then(|| {
        let asked = if request.allow_noiommu {
            "; asked for or not, the kernel maps no guest memory for such a group"
        } else {
            ""
        };
        failed(format!(
            "{device} is in noiommu group {id}: nothing confines its DMA, so it can't go to a guest{asked}"
        ))
        .fix(cover(&survey.iommu))
    })
}

/// Why there is no IOMMU.
fn off(iommu: &Iommu) -> String {
    match (&iommu.firmware_table, iommu.turned_off_by()) {
        (_, Some(argument)) => {
            format!("the kernel's command line turns the IOMMU off ('{argument}')")
        }
        (Some(table), None) => format!(
            "the firmware has an IOMMU (ACPI table {table}), but the kernel does not use it"
        ),
        (None, None) => "the firmware announces no IOMMU".to_owned(),
    }
}

/// How to get an IOMMU in front of a device that is behind none.
fn cover(iommu: &Iommu) -> Remedy {
    if !iommu.units.is_empty() {
        return Remedy::advice(
            "put the device into a slot that the IOMMU covers; in a virtual machine, behind its IOMMU (QEMU: no bypass_iommu)",
        );
    }
    let advice = match (iommu.firmware_table.as_deref(), iommu.turned_off_by()) {
        (_, Some(argument)) => {
            return Remedy::Advice(format!(
                "take '{argument}' off the kernel's command line and reboot"
            ));
        }
        (Some("DMAR"), None) => "add intel_iommu=on to the kernel's command line and reboot",
        (Some("IVRS"), None) => {
            "see `dmesg | grep AMD-Vi` for why the kernel left it off (a kernel without CONFIG_AMD_IOMMU says nothing)"
        }
        (Some(_), None) => "load the IOMMU's driver: modprobe virtio-iommu",
        (None, None) => {
            "turn on VT-d (Intel) or AMD-Vi (AMD) in the firmware's setup, add intel_iommu=on to the kernel's command line on Intel, and reboot; a virtual machine needs an emulated IOMMU"
        }
    };
    Remedy::advice(advice)
}

fn driver(survey: &Survey, function: &Function) -> Item {
    let device = function.address;
    let subject = Subject::Device(device);
    let best = survey.vfio.driver_for(function);
    let state = match function.driver.as_deref() {
        Some("vfio-pci") if best != "vfio-pci" => {
            return Item::warning(
                Check::Driver,
                subject,
                format!(
                    "{device} is on vfio-pci; {best} fits it better: it was made for the device, and knows what the generic driver does not (migration, special memory)"
                ),
            )
            .fix(Remedy::bind_to_vfio(survey, device));
        }
        Some(driver) if is_vfio_driver(driver, function.vfio_device.as_deref()) => {
            return Item::passed(Check::Driver, subject, format!("{device} is on {driver}"));
        }
        Some("pci-stub") => "is on pci-stub, which only keeps it unused".to_owned(),
        Some(driver) => format!("is on the host driver '{driver}'"),
        None => match &function.driver_override {
            DriverOverride::Only(driver) if !is_vfio_driver(driver, None) => {
                format!("has no driver (its driver_override lets only '{driver}' have it)")
            }
            _ => "has no driver".to_owned(),
        },
    };
    let item = Item::failed(
        Check::Driver,
        subject,
        format!("{device} {state}; a guest can get it only from {best}"),
    );
    if function.group.is_some() {
        item.fix(Remedy::bind_to_vfio(survey, device))
    } else {
        item.fix(Remedy::advice(
            "get an IOMMU in front of it first: vfio-pci refuses a device without a group",
        ))
    }
}

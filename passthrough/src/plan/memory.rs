use devices::pci::PciAddress;

use super::host::units;
use super::size::human;
use super::{Check, Item, Request, Subject};
use crate::host::{LockedMemory, Survey};
use crate::viability::Remedy;

/// Checks the guest's memory against what devices put on it: it is locked
/// while they may reach it, and must lie where they can reach.
pub(super) fn check(
    survey: &Survey,
    request: &Request,
    devices: &[PciAddress],
    items: &mut Vec<Item>,
) {
    let Some(memory) = request.memory_bytes else {
        return;
    };
    if devices.is_empty() {
        return;
    }
    items.push(locked(survey, memory));
    if request.ram.is_empty() {
        items.extend(width(survey, memory, devices));
    }
}

/// type1 accounts each page of a map against the process's limit, unless it
/// has `CAP_IPC_LOCK` (drivers/vfio/vfio_iommu_type1.c).
fn locked(survey: &Survey, memory: u64) -> Item {
    let need = human(memory);
    let item = |new: fn(Check, Subject, String) -> Item, reason| {
        new(Check::LockedMemory, Subject::Host, reason)
    };
    if survey.process.may_lock_any {
        let reason = format!("{need} of guest memory may be locked (CAP_IPC_LOCK)");
        return item(Item::passed, reason);
    }
    let Some(LockedMemory { soft, hard }) = survey.process.locked_memory else {
        let reason = format!(
            "whether {need} of guest memory may be locked can't be told: /proc/self/limits does not say"
        );
        return item(Item::warning, reason);
    };
    let Some(soft) = soft.filter(|soft| *soft < memory) else {
        return item(
            Item::passed,
            format!("{need} of guest memory may be locked"),
        );
    };
    let short = |and: &str| {
        let soft = human(soft);
        let reason = format!(
            "{need} of guest memory must be locked, but this process may lock {soft}{and} (RLIMIT_MEMLOCK)"
        );
        item(Item::failed, reason)
    };
    let kib = memory.div_ceil(1024);
    if hard.is_none_or(|hard| hard >= memory) {
        short("").fix(Remedy::Command(format!("ulimit -l {kib}")))
    } else {
        let hard = hard.map_or(String::new(), human);
        short(&format!(", and no more than {hard} by its hard limit"))
            .fix(Remedy::privileged(
                &survey.process,
                format!(
                    "prlimit --pid $$ --memlock={0}:{0}",
                    kib.saturating_mul(1024)
                ),
            ))
            .fix(Remedy::advice(
                "to keep it, set memlock in /etc/security/limits.conf, or LimitMEMLOCK= in the service",
            ))
    }
}

/// Guest memory starts at 0 and takes at least its own size.
fn width(survey: &Survey, memory: u64, devices: &[PciAddress]) -> Option<Item> {
    let units = units(survey, devices);
    let (bits, unit) = units
        .iter()
        .filter_map(|unit| Some((unit.address_width?, unit)))
        .min_by_key(|(bits, _)| *bits)?;
    let reach = 1u64.checked_shl(bits.into())?;
    (memory > reach).then(|| {
        Item::failed(
            Check::AddressWidth,
            Subject::Host,
            format!(
                "{} of guest memory are beyond the reach of {}: its {bits} address bits end at {}",
                human(memory),
                unit.name,
                human(reach)
            ),
        )
        .fix(Remedy::advice(
            "give the guest less memory; an emulated IOMMU may be made wider (QEMU: aw-bits=48)",
        ))
    })
}

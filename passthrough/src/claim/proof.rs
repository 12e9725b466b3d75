//! Asking the kernel, and comparing its answers with the plan's.

use std::collections::BTreeSet;

use devices::pci::PciAddress;

use super::Kernel;
use super::prediction::{Prediction, of_container, of_group, of_memory};
use crate::attach::{Refusal, Step};
use crate::host::{GroupId, Survey};
use crate::iommu::IovaRange;
use crate::plan::{Check, Item, Outcome, Plan, Remedy, Subject};
use crate::refusal::explain;
use crate::viability::{Verdict, is_vfio_driver};

const CONTAINER: &str = "/dev/vfio/vfio";

/// Proves the devices of `plan` with a kernel that has been opened, or has
/// refused that.
pub(super) fn prove<K: Kernel>(
    survey: &Survey,
    plan: &Plan,
    guest: &[IovaRange],
    kernel: Result<K, Refusal>,
) -> Vec<Item> {
    let mut items = Vec::new();
    let mut groups = BTreeSet::new();
    for device in &plan.devices {
        match confining_group(survey, *device) {
            Some(group) => {
                groups.insert(group);
            }
            None => items.push(unconfined(*device)),
        }
    }
    if groups.is_empty() {
        return items;
    }
    let mut kernel = match kernel {
        Ok(kernel) => kernel,
        Err(refusal) => {
            items.push(refused(Subject::Host, CONTAINER, &refusal));
            items.extend(compare(Subject::Host, CONTAINER, of_container(plan), false));
            return items;
        }
    };
    let mut taken = false;
    for group in groups {
        taken |= one_group(survey, plan, group, &mut kernel, &mut items);
    }
    if taken && !guest.is_empty() {
        let item = memory(&kernel, guest);
        let granted = item.outcome == Outcome::Passed;
        items.push(item);
        items.extend(compare(
            Subject::Host,
            "the guest's memory",
            of_memory(plan),
            granted,
        ));
    }
    items
}

/// The group that keeps `device` from the rest of the host.
fn confining_group(survey: &Survey, device: PciAddress) -> Option<GroupId> {
    let group = survey.functions.get(&device)?.group?;
    let found = survey.groups.get(&group)?;
    (!found.is_noiommu()).then_some(group)
}

fn unconfined(device: PciAddress) -> Item {
    item(
        Subject::Device(device),
        Outcome::Failed,
        format!("{device} can't be claimed: it is in no group of an IOMMU"),
    )
}

/// Takes one group; answers whether the kernel gave it.
fn one_group(
    survey: &Survey,
    plan: &Plan,
    group: GroupId,
    kernel: &mut impl Kernel,
    items: &mut Vec<Item>,
) -> bool {
    let subject = Subject::Group(group);
    let prediction = of_group(survey, plan, group);
    let what = format!("group {group}");
    if let Err(refusal) = kernel.take(group) {
        let file = format!("/dev/vfio/{group}");
        let mut item = refused(subject.clone(), &file, &refusal);
        if matches!(refusal.step, Step::NotViable | Step::ClaimGroup) {
            let verdict = Verdict::judge(survey, group);
            let changes = verdict.map(|verdict| verdict.changes).unwrap_or_default();
            let changes: Vec<_> = changes.iter().map(|change| change.remedy(survey)).collect();
            if !changes.is_empty() {
                item.remedies = changes;
            }
        }
        items.push(item);
        // Who holds a file can only be seen of one's own processes.
        let busy = refusal.source.raw_os_error() == Some(libc::EBUSY);
        let unseen = busy && survey.holders.hidden > 0;
        if !unseen {
            items.extend(compare(subject, &what, prediction, false));
        }
        return false;
    }
    let devices = plan.devices.iter().copied().filter(|device| {
        let function = survey.functions.get(device);
        function.is_some_and(|function| function.group == Some(group))
    });
    let mut absent = Vec::new();
    let mut ready = Vec::new();
    for device in devices {
        if is_on_vfio(survey, device) {
            ready.push(device.to_string());
        } else if let Err(source) = kernel.open_device(group, device) {
            let step = Step::OpenDevice;
            let refusal = Refusal { step, source };
            let name = device.to_string();
            absent.push(refused(Subject::Device(device), &name, &refusal));
        } else {
            ready.push(device.to_string());
        }
    }
    let isolated = match survey.vfio.unsafe_interrupts {
        Some(true) => "",
        _ => ", and its interrupts are isolated",
    };
    let through = match kernel.is_compatibility() {
        true => ", through iommufd's compatibility interface",
        false => "",
    };
    items.push(item(
        subject.clone(),
        Outcome::Passed,
        format!(
            "the kernel gave group {group} and has it back{through}: nobody else owns its DMA{isolated}"
        ),
    ));
    if !ready.is_empty() {
        items.push(item(
            subject.clone(),
            Outcome::Passed,
            format!(
                "VFIO has {} there; not opened, which would reset it",
                ready.join(", ")
            ),
        ));
    }
    let granted = absent.is_empty();
    items.extend(absent);
    items.extend(compare(subject, &what, prediction, granted));
    true
}

fn is_on_vfio(survey: &Survey, device: PciAddress) -> bool {
    survey.functions.get(&device).is_some_and(|function| {
        let driver = function.driver.as_deref();
        driver.is_some_and(|driver| is_vfio_driver(driver, function.vfio_device.as_deref()))
    })
}

/// Whether the devices can reach what the guest needs.
fn memory(kernel: &impl Kernel, guest: &[IovaRange]) -> Item {
    let subject = Subject::Host;
    let limits = match kernel.limits() {
        Ok(limits) => limits,
        Err(error) => {
            let reason = format!("the kernel does not tell what the devices can reach: {error}");
            return item(subject, Outcome::Failed, reason).with(Remedy::Advice(
                "look for its own words with `dmesg | tail`".to_owned(),
            ));
        }
    };
    let inside = |range: &IovaRange| {
        let mut ranges = limits.ranges.iter();
        ranges.any(|reach| reach.start <= range.start && range.last <= reach.last)
    };
    if let Some(range) = guest.iter().find(|range| !inside(range)) {
        return item(
            subject,
            Outcome::Failed,
            format!(
                "guest addresses {range} can't be mapped: the kernel maps {} for these devices",
                list(&limits.ranges)
            ),
        )
        .with(Remedy::Advice(
            "give the guest less memory; an emulated IOMMU may be made wider (QEMU: aw-bits=48)"
                .to_owned(),
        ));
    }
    let page = kernel.page_size();
    for range in guest {
        // The last page: a range that ends too high fails there.
        let iova = range.last & !(page - 1);
        if let Err(error) = kernel.try_map(iova) {
            return item(
                subject,
                Outcome::Failed,
                format!("a page at the end of guest addresses {range} can't be mapped: {error}"),
            )
            .with(Remedy::Advice(
                "see `dmesg | tail`; raise the limit with `ulimit -l` if it names RLIMIT_MEMLOCK"
                    .to_owned(),
            ));
        }
    }
    item(
        subject,
        Outcome::Passed,
        format!(
            "the kernel maps guest addresses {} for the devices",
            list(guest)
        ),
    )
}

fn list(ranges: &[IovaRange]) -> String {
    let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    ranges.join(", ")
}

fn item(subject: Subject, outcome: Outcome, reason: String) -> Item {
    Item {
        check: Check::Claim,
        subject,
        outcome,
        reason,
        remedies: Vec::new(),
    }
}

impl Item {
    fn with(mut self, remedy: Remedy) -> Self {
        self.remedies.push(remedy);
        self
    }
}

fn refused(subject: Subject, what: &str, refusal: &Refusal) -> Item {
    let meaning = explain(refusal.step, &refusal.source);
    let (action, cause) = (meaning.action, meaning.cause);
    item(
        subject,
        Outcome::Failed,
        format!(
            "the kernel would not {action} {what}: {cause} ({})",
            refusal.source
        ),
    )
    .with(Remedy::Advice(meaning.next.to_owned()))
}

/// Says it when plan and kernel are of two minds about `what`. The kernel is
/// right.
fn compare(subject: Subject, what: &str, prediction: Prediction, granted: bool) -> Option<Item> {
    if !prediction.is_refuted_by(granted) {
        return None;
    }
    let (plan, kernel) = if granted {
        ("refuse", "gave")
    } else {
        ("give", "refused")
    };
    Some(
        item(
            subject,
            Outcome::Warning,
            format!(
                "PREDICTION AND CLAIM DISAGREE about {what}: by the checks above the kernel would {plan} it, but it {kernel} it. The kernel is right"
            ),
        )
        .with(Remedy::Advice(
            "check again; if they still disagree, please report it with the output of `airlock devices --json`"
                .to_owned(),
        )),
    )
}

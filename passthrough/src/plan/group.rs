use std::collections::BTreeSet;

use devices::pci::PciAddress;

use super::backend::own;
use super::device::{names, unreadable};
use super::{Backend, Check, FileName, Item, Request, Subject, needed};
use crate::host::{Group, Holder, NodeState, ReservedKind, Survey};
use crate::viability::{Isolation, Member, MemberState, Remedy, Verdict};

/// Checks the groups of `devices`, each once.
pub(super) fn check(
    survey: &Survey,
    request: &Request,
    devices: &[PciAddress],
    backend: Backend,
    forced: &BTreeSet<PciAddress>,
    items: &mut Vec<Item>,
) {
    let ids: BTreeSet<_> = devices
        .iter()
        .filter_map(|device| survey.functions.get(device)?.group)
        .collect();
    let groups = ids.iter().filter_map(|id| survey.groups.get(id));
    for group in groups.filter(|group| !group.is_noiommu()) {
        let given = request.given.contains(&FileName::Group(group.id));
        let opens_file = backend == Backend::Type1 && !given;
        one(survey, devices, forced, group, opens_file, items);
    }
}

fn one(
    survey: &Survey,
    devices: &[PciAddress],
    forced: &BTreeSet<PciAddress>,
    group: &Group,
    opens_file: bool,
    items: &mut Vec<Item>,
) {
    let subject = || Subject::Group(group.id);
    for what in &group.unreadable {
        let path = format!("/sys/kernel/iommu_groups/{}/{}", group.id, what.attribute);
        items.push(unreadable(subject(), &path, &what.reason));
    }
    let Some(verdict) = Verdict::judge(survey, group.id) else {
        return;
    };
    // Members in the way would have to go too: the host may need them.
    for member in verdict.blocking().filter_map(|member| member.address) {
        if !devices.contains(&member) {
            needed::check(survey, member, forced, items);
        }
    }
    items.extend(viability(survey, devices, &verdict));
    items.extend(shared(&verdict));
    items.extend(together(devices, &verdict));
    items.extend(firmware(group));
    // Without a device on a VFIO driver the group has no file yet.
    let taken = verdict
        .members
        .iter()
        .any(|member| matches!(member.state, MemberState::Vfio { .. }));
    if taken && opens_file {
        items.push(file(survey, group));
    }
    items.extend(in_use(survey, group));
}

/// What blocks besides the devices that were asked for: those have an item of
/// their own, with the same remedy.
fn viability(survey: &Survey, devices: &[PciAddress], verdict: &Verdict) -> Option<Item> {
    let id = verdict.group;
    let subject = Subject::Group(id);
    if verdict.is_viable() {
        let others = verdict.members.len().saturating_sub(1);
        let reason = match others {
            0 => format!("group {id} is viable: one device, isolated"),
            _ => format!("group {id} is viable: {}", states(verdict.members.iter())),
        };
        return Some(Item::passed(Check::Viability, subject, reason));
    }
    if verdict.members.is_empty() {
        return Some(
            Item::failed(
                Check::Viability,
                subject,
                format!("no member of group {id} can be seen"),
            )
            .fix(Remedy::advice("check again as root")),
        );
    }
    let asked = |name: &str| devices.iter().any(|device| device.to_string() == name);
    let others: Vec<_> = verdict
        .blocking()
        .filter(|member| !asked(&member.name))
        .collect();
    if others.is_empty() {
        return None;
    }
    let remedies = verdict
        .changes
        .iter()
        .filter(|change| !asked(&change.device))
        .map(|change| change.remedy(survey));
    Some(
        Item::failed(
            Check::Viability,
            subject,
            format!(
                "group {id} is not viable: {} (rule: {})",
                states(others.into_iter()),
                verdict.regime
            ),
        )
        .fixes(remedies),
    )
}

/// Why the group is not one device.
fn shared(verdict: &Verdict) -> Option<Item> {
    let Isolation::Shared(_) = verdict.isolation else {
        return None;
    };
    Some(Item::passed(
        Check::Shared,
        Subject::Group(verdict.group),
        format!(
            "group {} has {} members: {}",
            verdict.group,
            verdict.members.len(),
            verdict.isolation
        ),
    ))
}

/// Several devices of one group: they have one owner anyway.
fn together(devices: &[PciAddress], verdict: &Verdict) -> Option<Item> {
    let members = verdict.members.iter().filter_map(|member| member.address);
    let asked: Vec<_> = members.filter(|member| devices.contains(member)).collect();
    (asked.len() > 1).then(|| {
        Item::passed(
            Check::Together,
            Subject::Group(verdict.group),
            format!(
                "{} are of one group and go to one guest, as they must",
                names(&asked)
            ),
        )
    })
}

fn states<'a>(members: impl Iterator<Item = &'a Member>) -> String {
    let states: Vec<_> = members
        .map(|member| format!("{} {}", member.name, member.state))
        .collect();
    states.join("; ")
}

/// Memory that firmware wants mapped for the device at all times: the IOMMU
/// core refuses to give such a device away (drivers/iommu/iommu.c,
/// `require_direct`; before Linux 6.6 Intel's driver did).
fn firmware(group: &Group) -> Option<Item> {
    let region = group
        .reserved
        .iter()
        .find(|region| region.kind == ReservedKind::Direct)?;
    Some(
        Item::failed(
            Check::ReservedRegions,
            Subject::Group(group.id),
            format!(
                "the firmware keeps memory {:#x}-{:#x} mapped for group {} (RMRR), so the kernel won't give its devices away",
                region.start, region.last, group.id
            ),
        )
        .fix(Remedy::advice(
            "look in the firmware's setup for shared memory or management access of this slot and turn it off, or use another slot",
        )),
    )
}

fn file(survey: &Survey, group: &Group) -> Item {
    let path = &group.node.path;
    let subject = Subject::Group(group.id);
    let failed = |reason| Item::failed(Check::GroupFile, subject.clone(), reason);
    match &group.node.state {
        NodeState::Accessible => {
            Item::passed(Check::GroupFile, subject, format!("{path} may be opened"))
        }
        NodeState::Missing => failed(format!(
            "{path} does not exist though a device of the group is on a VFIO driver"
        ))
        .fix(Remedy::advice(format!(
            "in a container, hand {path} in; otherwise check that /dev is a devtmpfs and that the kernel has CONFIG_VFIO_GROUP"
        ))),
        NodeState::Denied { reason, .. } => {
            failed(denied(survey, path, &group.node.state, reason)).fix(own(survey, &group.node))
        }
    }
}

/// Who may open `path`, and that this process may not.
pub(super) fn denied(survey: &Survey, path: &str, state: &NodeState, reason: &str) -> String {
    let user = survey.process.effective_uid;
    let user = user.map_or("this process".to_owned(), |uid| format!("user {uid}"));
    match state {
        NodeState::Denied { uid, gid, mode, .. } => format!(
            "{user} may not open {path}: {reason} (owner {uid}, group {gid}, mode {mode:04o})"
        ),
        _ => format!("{user} may not open {path}: {reason}"),
    }
}

/// The processes that have the group's file, or one of its devices, open.
fn holders<'a>(survey: &'a Survey, group: &'a Group) -> Vec<&'a Holder> {
    let mut holders: Vec<_> = survey.holders.of(&group.node.path).collect();
    let members = group.members.iter().filter_map(|member| member.address);
    let names = members.filter_map(|address| {
        let function = survey.functions.get(&address)?;
        function.vfio_device.as_deref()
    });
    for name in names {
        let file = format!("/dev/vfio/devices/{name}");
        let held = survey.holders.seen.iter();
        holders.extend(held.filter(|holder| holder.file == file));
    }
    holders
}

fn in_use(survey: &Survey, group: &Group) -> Option<Item> {
    let id = group.id;
    let holders = holders(survey, group);
    if holders.is_empty() {
        let hidden = survey.holders.hidden;
        return (hidden > 0).then(|| {
            Item::passed(
                Check::InUse,
                Subject::Group(id),
                format!("no process seen has group {id} open ({hidden} can't be looked at)"),
            )
        });
    }
    let who: Vec<_> = holders
        .iter()
        .map(|holder| {
            let Holder { pid, name, file } = holder;
            format!("'{name}' (pid {pid}) has {file} open")
        })
        .collect();
    let pids: BTreeSet<_> = holders.iter().map(|holder| holder.pid).collect();
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    let failed = Item::failed(
        Check::InUse,
        Subject::Group(id),
        format!("group {id} is in use: {}", who.join("; ")),
    );
    Some(failed.fix(Remedy::advice(format!(
        "shut that virtual machine down, or end the process: kill {}",
        pids.join(" ")
    ))))
}

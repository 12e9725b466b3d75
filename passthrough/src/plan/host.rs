use devices::pci::PciAddress;

use super::group::denied;
use super::{Backend, Check, FileName, Item, Request, Subject, backend};
use crate::host::{IommuUnit, ModuleState, NodeState, Remapping, Survey};
use crate::viability::Remedy;

/// What VFIO needs of the host.
pub(super) fn check(
    survey: &Survey,
    request: &Request,
    devices: &[PciAddress],
    backend: Backend,
    items: &mut Vec<Item>,
) {
    items.extend(iommu(survey, devices));
    items.extend(interrupts(survey, request, backend));
    if backend == Backend::Type1 && !request.given.contains(&FileName::Container) {
        items.push(container(survey));
    }
    backend::check(survey, request, devices, backend, items);
}

/// The units that `devices` are behind. Devices behind none have failed.
pub(super) fn units<'a>(survey: &'a Survey, devices: &[PciAddress]) -> Vec<&'a IommuUnit> {
    let units = survey.iommu.units.iter();
    units
        .filter(|unit| devices.iter().any(|device| unit.devices.contains(device)))
        .collect()
}

fn iommu(survey: &Survey, devices: &[PciAddress]) -> Option<Item> {
    let units = units(survey, devices);
    let described: Vec<_> = units
        .iter()
        .map(|unit| {
            let width = unit.address_width;
            let width = width.map_or(String::new(), |bits| format!(", {bits}-bit addresses"));
            format!("{} ({}{width})", unit.kind.name(), unit.name)
        })
        .collect();
    (!described.is_empty()).then(|| {
        Item::passed(
            Check::Iommu,
            Subject::Host,
            format!("the IOMMU is on: {}", described.join(", ")),
        )
    })
}

fn interrupts(survey: &Survey, request: &Request, backend: Backend) -> Option<Item> {
    let (module, allowed) = match backend {
        Backend::Iommufd => ("iommufd", survey.vfio.unsafe_interrupts_iommufd),
        Backend::Type1 => ("vfio_iommu_type1", survey.vfio.unsafe_interrupts),
    };
    let parameter = format!("{module}.allow_unsafe_interrupts");
    // Without an IOMMU there is nothing to remap: its own item says so.
    if survey.iommu.units.is_empty() {
        return None;
    }
    let allowed = allowed == Some(true);
    let item = |new: fn(Check, Subject, String) -> Item, reason: String| {
        Some(new(Check::InterruptRemapping, Subject::Host, reason))
    };
    let remapping = &survey.iommu.interrupt_remapping;
    let set = |value: &str| {
        let file = format!("/sys/module/{module}/parameters/allow_unsafe_interrupts");
        Remedy::privileged(&survey.process, format!("echo {value} > {file}"))
    };
    match (remapping.state, allowed) {
        (Remapping::On, false) => item(Item::passed, "interrupt remapping is on".to_owned()),
        (Remapping::On, true) => item(
            Item::warning,
            format!("interrupt remapping is on, but {parameter} keeps the kernel from checking it for each device"),
        )
        .map(|item| item.fix(set("N"))),
        (Remapping::Unknown, false) => item(
            Item::warning,
            format!("whether interrupt remapping is on can't be told ({}): the open will prove it", remapping.evidence),
        ),
        (Remapping::Unknown, true) if !request.allow_unsafe_interrupts => item(
            Item::failed,
            format!("whether interrupt remapping is on can't be told ({}), and {parameter} keeps the kernel from checking it", remapping.evidence),
        )
        .map(|item| item.fix(set("N"))),
        (Remapping::Off, allowed) if !request.allow_unsafe_interrupts => {
            let note = if allowed {
                format!("; {parameter} would let it through all the same")
            } else {
                String::new()
            };
            item(
                Item::failed,
                format!("interrupt remapping is off ({}): a guest could raise any interrupt of the host{note}", remapping.evidence),
            )
            .map(|item| item.fix(turn_on(survey)))
        }
        (Remapping::Off, false) => item(
            Item::failed,
            "interrupt remapping is off, and the kernel has not been told to take devices all the same".to_owned(),
        )
        .map(|item| item.fix(set("Y"))),
        (_, true) => item(
            Item::warning,
            format!("unsafe interrupts, as asked for: a guest can raise any interrupt of the host ({})", remapping.evidence),
        ),
    }
}

fn turn_on(survey: &Survey) -> Remedy {
    let mut arguments = survey.iommu.arguments.iter();
    let off = arguments.find(|argument| {
        matches!(
            argument.as_str(),
            "intremap=off" | "nointremap" | "amd_iommu_intr=legacy"
        )
    });
    match off {
        Some(argument) => Remedy::Advice(format!(
            "take '{argument}' off the kernel's command line and reboot"
        )),
        None => Remedy::advice(
            "turn on interrupt remapping (x2APIC) in the firmware's setup; see `dmesg | grep -i remap` for why the kernel left it off; an emulated IOMMU needs intremap=on",
        ),
    }
}

fn container(survey: &Survey) -> Item {
    let node = &survey.vfio.container;
    let modules = &survey.vfio.modules;
    let absent = ["vfio", "vfio_pci", "vfio_iommu_type1"]
        .into_iter()
        .find(|module| modules.state(module) == ModuleState::Absent);
    let load = || match absent {
        Some(module) => Remedy::Advice(format!(
            "the running kernel ({}) has no module {module}: install the package with its modules, or boot a kernel built with CONFIG_{}",
            survey.kernel.release,
            module.to_uppercase()
        )),
        None => Remedy::privileged(
            &survey.process,
            "modprobe -a vfio-pci vfio_iommu_type1".to_owned(),
        ),
    };
    match &node.state {
        NodeState::Accessible if survey.vfio.type1 => Item::passed(
            Check::Container,
            Subject::Host,
            format!("{} may be opened", node.path),
        ),
        NodeState::Accessible => Item::warning(
            Check::Container,
            Subject::Host,
            "VFIO's IOMMU driver (vfio_iommu_type1) is not loaded: the open fails unless the kernel loads it by itself",
        )
        .fix(load()),
        NodeState::Missing => Item::failed(
            Check::Container,
            Subject::Host,
            format!("{} does not exist: VFIO is not loaded, or was not handed into this container", node.path),
        )
        .fix(load()),
        state @ NodeState::Denied { reason, .. } => Item::failed(
            Check::Container,
            Subject::Host,
            denied(survey, &node.path, state, reason),
        )
        // It gives nothing away by itself, and 0666 is what the kernel makes it with.
        .fix(Remedy::privileged(&survey.process, format!("chmod 0666 {}", node.path))),
    }
}

/// Checks `/dev/kvm`, which the guest needs with and without devices.
pub(super) fn check_kvm(survey: &Survey, items: &mut Vec<Item>) {
    let node = &survey.kvm;
    let path = &node.path;
    items.push(match &node.state {
        NodeState::Accessible => {
            Item::passed(Check::Kvm, Subject::Host, format!("{path} may be opened"))
        }
        NodeState::Missing => Item::failed(
            Check::Kvm,
            Subject::Host,
            format!("{path} does not exist: KVM is not loaded, or the CPU's virtualization is off"),
        )
        .fix(Remedy::privileged(
            &survey.process,
            "modprobe kvm_intel || modprobe kvm_amd".to_owned(),
        ))
        .fix(Remedy::advice(
            "if that fails, turn on VT-x (Intel) or SVM (AMD) in the firmware's setup",
        )),
        state @ NodeState::Denied {
            reason, gid, mode, ..
        } => {
            let item = Item::failed(
                Check::Kvm,
                Subject::Host,
                denied(survey, path, state, reason),
            );
            if *gid != 0 && mode & 0o060 == 0o060 {
                let join = format!("sudo usermod -aG \"$(stat -c %G {path})\" \"$USER\"");
                item.fix(Remedy::Command(join)).fix(Remedy::advice(
                    "then log in again: groups are read at login",
                ))
            } else {
                let user = survey.process.effective_uid;
                let owner = user.map_or("$USER".to_owned(), |uid| uid.to_string());
                let give = format!("chown {owner} {path}");
                item.fix(Remedy::privileged(&survey.process, give))
            }
        }
    });
}

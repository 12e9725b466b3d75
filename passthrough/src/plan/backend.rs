use devices::pci::PciAddress;

use super::group::denied;
use super::{Backend, Check, FileName, Item, Request, Subject};
use crate::host::{Function, ModuleState, Node, NodeState, Survey};
use crate::viability::{Remedy, is_vfio_driver};

/// By which interface `devices` are to be taken: as asked for, or else iommufd
/// where everything for it is there.
pub(super) fn choose(survey: &Survey, request: &Request, devices: &[PciAddress]) -> Backend {
    request.backend.unwrap_or_else(|| {
        let by_group = |name: &FileName| matches!(name, FileName::Container | FileName::Group(_));
        if request.given.iter().any(by_group) || lacking(survey, request, devices).is_some() {
            Backend::Type1
        } else {
            Backend::Iommufd
        }
    })
}

/// Says by which interface the devices are taken, and checks that what it needs
/// is there.
pub(super) fn check(
    survey: &Survey,
    request: &Request,
    devices: &[PciAddress],
    backend: Backend,
    items: &mut Vec<Item>,
) {
    let says = |text| Item::passed(Check::Backend, Subject::Host, text);
    match backend {
        Backend::Type1 => items.push(says(format!(
            "devices are taken by group and container (type1); iommufd is not used, {}",
            lacking(survey, request, devices)
                .unwrap_or_else(|| format!("though it is there ({})", files(survey, devices)))
        ))),
        Backend::Iommufd => {
            let text = "devices are taken by their own files and iommufd";
            items.push(says(format!("{text} ({})", files(survey, devices))));
            if !request.given.contains(&FileName::Iommufd) {
                items.push(iommufd(survey));
            }
            for device in devices {
                if !request.given.contains(&FileName::Device(*device)) {
                    items.extend(cdev(survey, *device));
                }
            }
        }
    }
}

/// What is missing for iommufd, if anything is.
fn lacking(survey: &Survey, request: &Request, devices: &[PciAddress]) -> Option<String> {
    let node = &survey.vfio.iommufd;
    let is_given = |name| request.given.contains(&name);
    match &node.state {
        _ if is_given(FileName::Iommufd) => {}
        NodeState::Missing => {
            return Some(match survey.vfio.modules.state("iommufd") {
                ModuleState::Absent => "this kernel was built without it".to_owned(),
                ModuleState::Loadable => format!("and not loaded ({} is missing)", node.path),
                ModuleState::Present | ModuleState::Unknown => {
                    format!("and {} is missing", node.path)
                }
            });
        }
        NodeState::Denied { reason, .. } => {
            return Some(format!("and {} may not be opened: {reason}", node.path));
        }
        NodeState::Accessible => {}
    }
    let functions = devices
        .iter()
        .filter_map(|device| survey.functions.get(device));
    for function in functions {
        // A device that VFIO does not have has no file yet.
        if is_given(FileName::Device(function.address)) || !is_on_vfio(function) {
            continue;
        }
        let Some(cdev) = &function.cdev else {
            let device = function.address;
            return Some(format!(
                "and {device} has no file for it below /dev/vfio/devices"
            ));
        };
        match &cdev.state {
            NodeState::Accessible => {}
            NodeState::Missing => return Some(format!("and {} is missing", cdev.path)),
            NodeState::Denied { reason, .. } => {
                return Some(format!("and {} may not be opened: {reason}", cdev.path));
            }
        }
    }
    None
}

fn is_on_vfio(function: &Function) -> bool {
    let driver = function.driver.as_deref();
    driver.is_some_and(|driver| is_vfio_driver(driver, function.vfio_device.as_deref()))
}

fn files(survey: &Survey, devices: &[PciAddress]) -> String {
    let functions = devices
        .iter()
        .filter_map(|device| survey.functions.get(device));
    let cdevs = functions.filter_map(|function| Some(function.cdev.as_ref()?.path.as_str()));
    let files: Vec<_> = [survey.vfio.iommufd.path.as_str()]
        .into_iter()
        .chain(cdevs)
        .collect();
    files.join(", ")
}

fn iommufd(survey: &Survey) -> Item {
    let node = &survey.vfio.iommufd;
    let check = Check::Iommufd;
    let item = match &node.state {
        NodeState::Accessible => return may_be_opened(check, Subject::Host, node),
        NodeState::Missing => Item::failed(
            check,
            Subject::Host,
            format!(
                "{} does not exist: iommufd is not loaded, or was not handed into this container",
                node.path
            ),
        )
        .fix(match survey.vfio.modules.state("iommufd") {
            ModuleState::Absent => Remedy::Advice(format!(
                "the running kernel ({}) has no module iommufd: boot a kernel built with CONFIG_IOMMUFD",
                survey.kernel.release
            )),
            _ => Remedy::privileged(&survey.process, "modprobe iommufd".to_owned()),
        }),
        NodeState::Denied { reason, .. } => {
            let text = denied(survey, &node.path, &node.state, reason);
            Item::failed(check, Subject::Host, text).fix(own(survey, node))
        }
    };
    item.fix(Remedy::advice("or take the devices by --iommu type1"))
}

/// The file of a device. One that VFIO does not have has none yet: its driver
/// has an item of its own.
fn cdev(survey: &Survey, device: PciAddress) -> Option<Item> {
    let function = survey.functions.get(&device)?;
    if !is_on_vfio(function) {
        return None;
    }
    let (check, subject) = (Check::DeviceFile, Subject::Device(device));
    let Some(node) = &function.cdev else {
        let text = format!("{device} has no file of its own below /dev/vfio/devices");
        let advice = "boot a kernel built with CONFIG_VFIO_DEVICE_CDEV, or take the devices by --iommu type1";
        return Some(Item::failed(check, subject, text).fix(Remedy::advice(advice)));
    };
    Some(match &node.state {
        NodeState::Accessible => may_be_opened(check, subject, node),
        NodeState::Missing => {
            let text = format!(
                "{} does not exist though {device} is on a VFIO driver",
                node.path
            );
            Item::failed(check, subject, text).fix(Remedy::Advice(format!(
                "in a container, hand {} in; otherwise check that /dev is a devtmpfs",
                node.path
            )))
        }
        NodeState::Denied { reason, .. } => {
            let text = denied(survey, &node.path, &node.state, reason);
            Item::failed(check, subject, text).fix(own(survey, node))
        }
    })
}

fn may_be_opened(check: Check, subject: Subject, node: &Node) -> Item {
    Item::passed(check, subject, format!("{} may be opened", node.path))
}

/// Gives a file to this user.
pub(super) fn own(survey: &Survey, node: &Node) -> Remedy {
    let user = survey.process.effective_uid;
    let owner = user.map_or("$USER".to_owned(), |uid| uid.to_string());
    Remedy::privileged(&survey.process, format!("chown {owner} {}", node.path))
}

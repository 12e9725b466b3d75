use devices::pci::PciAddress;

use super::{Check, Item, Subject};
use crate::host::{ModuleState, NodeState, Survey};

/// Says by which interface the devices are taken, and what of the other one is
/// there.
pub(super) fn check(survey: &Survey, devices: &[PciAddress]) -> Item {
    Item::passed(
        Check::Backend,
        Subject::Host,
        format!(
            "devices are taken by group and container (type1); iommufd is not used{}",
            iommufd(survey, devices)
        ),
    )
}

fn iommufd(survey: &Survey, devices: &[PciAddress]) -> String {
    let node = &survey.vfio.iommufd;
    match &node.state {
        NodeState::Missing => {
            return match survey.vfio.modules.state("iommufd") {
                ModuleState::Absent => ", this kernel was built without it".to_owned(),
                ModuleState::Loadable => format!(", and not loaded ({} is missing)", node.path),
                ModuleState::Present | ModuleState::Unknown => {
                    format!(", and {} is missing", node.path)
                }
            };
        }
        NodeState::Denied { reason, .. } => {
            return format!(", and {} may not be opened: {reason}", node.path);
        }
        NodeState::Accessible => {}
    }
    let mut files = vec![node.path.as_str()];
    for device in devices {
        let function = survey.functions.get(device);
        let Some(cdev) = function.and_then(|function| function.cdev.as_ref()) else {
            return format!(", and {device} has no file for it below /dev/vfio/devices");
        };
        match &cdev.state {
            NodeState::Accessible => files.push(&cdev.path),
            NodeState::Missing => return format!(", and {} is missing", cdev.path),
            NodeState::Denied { reason, .. } => {
                return format!(", and {} may not be opened: {reason}", cdev.path);
            }
        }
    }
    format!(", though it is there ({})", files.join(", "))
}

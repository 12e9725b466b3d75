use serde::{Deserialize, Serialize};

use super::node::Node;
use super::sysfs::Host;

/// Which pieces of VFIO the kernel has ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioPieces {
    /// `/dev/vfio/vfio`, the container.
    pub container: Node,
    /// `/dev/iommu`, iommufd.
    pub iommufd: Node,
    /// The driver vfio-pci is there to bind devices to.
    pub pci_driver: bool,
    /// The type1 IOMMU driver is loaded.
    pub type1: bool,
    /// `vfio_iommu_type1.allow_unsafe_interrupts`, while the module is loaded.
    pub unsafe_interrupts: Option<bool>,
    /// `iommufd.allow_unsafe_interrupts`, while the module is loaded.
    pub unsafe_interrupts_iommufd: Option<bool>,
    /// `vfio.enable_unsafe_noiommu_mode`, while the module has it.
    pub unsafe_noiommu: Option<bool>,
}

impl VfioPieces {
    pub(super) fn read(host: &Host) -> Self {
        let flag = |module: &str, name: &str| {
            let text = host.text(&format!("/sys/module/{module}/parameters/{name}"));
            text.ok().flatten().map(|text| text == "Y" || text == "1")
        };
        let exists = |path| host.exists(path).unwrap_or(false);
        Self {
            container: Node::read(host, "/dev/vfio/vfio"),
            iommufd: Node::read(host, "/dev/iommu"),
            pci_driver: exists("/sys/bus/pci/drivers/vfio-pci"),
            type1: exists("/sys/module/vfio_iommu_type1"),
            unsafe_interrupts: flag("vfio_iommu_type1", "allow_unsafe_interrupts"),
            unsafe_interrupts_iommufd: flag("iommufd", "allow_unsafe_interrupts"),
            unsafe_noiommu: flag("vfio", "enable_unsafe_noiommu_mode"),
        }
    }
}

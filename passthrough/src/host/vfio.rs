use serde::{Deserialize, Serialize};

use super::modules::{ModuleState, Modules, driver_of};
use super::node::Node;
use super::pci::Function;
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
    /// The VFIO drivers that are there, the variants too.
    pub drivers: Vec<String>,
    /// The kernel can give devices by group: `/dev/vfio/N`. Shown only while
    /// VFIO is loaded.
    pub groups: bool,
    /// The kernel can give devices by their own file and iommufd:
    /// `/dev/vfio/devices/vfioN`. Shown only while a VFIO driver has one.
    pub cdevs: bool,
    /// The kernel's modules.
    pub modules: Modules,
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
    /// The driver that gives `function` to guests best: the variant that was
    /// made for it, or vfio-pci.
    pub fn driver_for(&self, function: &Function) -> String {
        let module = self.modules.variant_for(function).unwrap_or("vfio_pci");
        driver_of(module, &self.drivers)
    }

    pub(super) fn read(host: &Host, release: &str) -> Self {
        let flag = |module: &str, name: &str| {
            let text = host.text(&format!("/sys/module/{module}/parameters/{name}"));
            text.ok().flatten().map(|text| text == "Y" || text == "1")
        };
        let exists = |path| host.exists(path).unwrap_or(false);
        let modules = Modules::read(host, release);
        let list = |path| host.list(path).ok().flatten().unwrap_or_default();
        let mut drivers = list("/sys/bus/pci/drivers");
        drivers.retain(|driver| driver.replace('-', "_").ends_with("vfio_pci"));
        Self {
            container: Node::read(host, "/dev/vfio/vfio"),
            iommufd: Node::read(host, "/dev/iommu"),
            pci_driver: drivers.iter().any(|driver| driver == "vfio-pci"),
            drivers,
            groups: exists("/sys/class/vfio"),
            cdevs: exists("/dev/vfio/devices"),
            type1: modules.state("vfio_iommu_type1") == ModuleState::Present,
            modules,
            unsafe_interrupts: flag("vfio_iommu_type1", "allow_unsafe_interrupts"),
            unsafe_interrupts_iommufd: flag("iommufd", "allow_unsafe_interrupts"),
            unsafe_noiommu: flag("vfio", "enable_unsafe_noiommu_mode"),
        }
    }
}

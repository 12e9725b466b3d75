use std::fmt;

use serde::{Deserialize, Serialize};

use crate::host::Kernel;

/// Which rule the kernel follows when a group is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Regime {
    /// Up to 5.18: VFIO walks through the group and lets pass what has no
    /// driver, a VFIO driver or pci-stub, and any bridge
    /// (drivers/vfio/vfio.c, `vfio_dev_viable`).
    AllowList,
    /// From 5.19 on: the IOMMU core counts the drivers that use the kernel's
    /// DMA API. Only drivers that manage DMA by themselves do not count
    /// (`driver_managed_dma`): VFIO drivers, pci-stub, pcieport.
    DmaOwnership,
}

impl Regime {
    /// The rule of `kernel`. A release that can't be understood gets the
    /// stricter one, which is also that of every kernel to come.
    pub fn of(kernel: &Kernel) -> Self {
        match kernel.version {
            Some(version) if version < (5, 19) => Self::AllowList,
            _ => Self::DmaOwnership,
        }
    }
}

impl fmt::Display for Regime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowList => "allow-list, Linux up to 5.18",
            Self::DmaOwnership => "DMA ownership, Linux 5.19 and later",
        })
    }
}

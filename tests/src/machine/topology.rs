use super::Disk;

/// A slot of the root bus and what hangs below it.
#[derive(Clone, Debug)]
pub enum Slot {
    /// A PCIe root port with one device below, of one or more functions. With
    /// `acs` the device's functions share a group; without, the port is in it too.
    Port {
        /// Whether the port has Access Control Services.
        acs: bool,
        /// The functions, at `.0`, `.1`, …
        functions: Vec<Device>,
    },
    /// Several root ports that are functions of one slot, with one device below
    /// each. With `acs` each port and each device has a group of its own;
    /// without, they are all in one.
    Ports {
        /// Whether the ports have Access Control Services.
        acs: bool,
        /// The device below each port.
        devices: Vec<Device>,
    },
    /// A root port, a bridge from PCIe to conventional PCI, and devices on it:
    /// the bridge and all of them share a group.
    ConventionalBridge(Vec<Device>),
    /// A device on the root bus itself.
    Integrated(Device),
    /// A device that the IOMMU doesn't serve, below a host bridge of its own:
    /// it has no group, though the others have.
    Bypassed(Device),
}

impl Slot {
    /// The devices in it.
    pub fn devices(&self) -> &[Device] {
        match self {
            Slot::Port { functions, .. } => functions,
            Slot::Ports { devices, .. } | Slot::ConventionalBridge(devices) => devices,
            Slot::Integrated(device) | Slot::Bypassed(device) => std::slice::from_ref(device),
        }
    }
}

/// A device to assign, with the name by which a scenario asks for its address.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name; also QEMU's id of it.
    pub name: String,
    /// What it is.
    pub model: DeviceModel,
    /// Further properties of QEMU's `-device`.
    pub properties: Vec<String>,
    /// Whether its place is empty at first, see [`Device::absent`].
    pub absent: bool,
}

/// What a device is.
#[derive(Clone, Debug)]
pub enum DeviceModel {
    /// An NVMe controller with one namespace.
    Nvme(Disk),
    /// Intel's 82574L, on a user network that reaches nothing outside QEMU:
    /// the gateway is 10.0.2.2 and the guest's address is to be 10.0.2.15.
    E1000e,
    /// Intel's 82540EM, a conventional PCI NIC, on such a network.
    E1000,
    /// Virtio's NIC (1af4:1041: no legacy interface) on such a network. Its DMA
    /// goes through the IOMMU, as that of a real device.
    VirtioNet,
    /// An NVMe controller with one namespace that can have virtual functions.
    /// They come up without queues: good for binding, not for reading.
    NvmeSriov {
        /// The namespace of the physical function.
        disk: Disk,
        /// How many virtual functions it can have.
        max_vfs: u8,
    },
    /// QEMU's teaching device: a 1 MiB BAR, DMA, INTx and MSI.
    Edu,
    /// Any other of QEMU's devices.
    Other(String),
}

impl Device {
    /// A device of any model.
    pub fn new(name: impl Into<String>, model: DeviceModel) -> Self {
        Self {
            name: name.into(),
            model,
            properties: Vec::new(),
            absent: false,
        }
    }

    /// An NVMe controller with `disk` as its namespace 1.
    pub fn nvme(name: impl Into<String>, disk: Disk) -> Self {
        Self::new(name, DeviceModel::Nvme(disk))
    }

    /// A PCIe NIC on a closed network, see [`DeviceModel::E1000e`].
    pub fn e1000e(name: impl Into<String>) -> Self {
        Self::new(name, DeviceModel::E1000e)
    }

    /// A conventional PCI NIC on a closed network.
    pub fn e1000(name: impl Into<String>) -> Self {
        Self::new(name, DeviceModel::E1000)
    }

    /// Virtio's NIC on a closed network, see [`DeviceModel::VirtioNet`].
    pub fn virtio_net(name: impl Into<String>) -> Self {
        Self::new(name, DeviceModel::VirtioNet)
    }

    /// An NVMe controller that can have `max_vfs` virtual functions; see
    /// [`Host::enable_vfs`](crate::host::Host::enable_vfs). It has a slot of its
    /// own.
    pub fn nvme_sriov(name: impl Into<String>, disk: Disk, max_vfs: u8) -> Self {
        Self::new(name, DeviceModel::NvmeSriov { disk, max_vfs })
    }

    /// QEMU's teaching device.
    pub fn edu(name: impl Into<String>) -> Self {
        Self::new(name, DeviceModel::Edu)
    }

    /// Adds a property, for example `msix_qsize=17`.
    pub fn property(mut self, property: impl Into<String>) -> Self {
        self.properties.push(property.into());
        self
    }

    /// Leaves its place empty until [`Host::plug`](crate::host::Host::plug).
    pub fn absent(mut self) -> Self {
        self.absent = true;
        self
    }

    /// The disk of a device that has one.
    pub fn disk(&self) -> Option<&Disk> {
        match &self.model {
            DeviceModel::Nvme(disk) | DeviceModel::NvmeSriov { disk, .. } => Some(disk),
            _ => None,
        }
    }
}

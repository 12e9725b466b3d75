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

    /// QEMU's teaching device.
    pub fn edu(name: impl Into<String>) -> Self {
        Self::new(name, DeviceModel::Edu)
    }

    /// Adds a property, for example `msix_qsize=17`.
    pub fn property(mut self, property: impl Into<String>) -> Self {
        self.properties.push(property.into());
        self
    }
}

use std::io;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use super::acs::Routing;
use super::attributes::Reader;
use super::group::GroupId;
use super::link::Link;
use super::node::Node;
use super::parse;
use super::sysfs::Host;

pub(super) const DEVICES: &str = "/sys/bus/pci/devices";

/// One PCI function of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub ids: Option<Ids>,
    /// An endpoint or a bridge.
    pub header: Header,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The driver that alone may bind it, if one was named.
    pub driver_override: DriverOverride,
    /// Its IOMMU group.
    pub group: Option<GroupId>,
    /// The bridges above it, the nearest first, up to the root.
    pub parents: Vec<PciAddress>,
    /// The NUMA node that it is nearest to, where there is more than one.
    pub numa_node: Option<u16>,
    /// The function that a VF belongs to.
    pub physical_function: Option<PciAddress>,
    /// How many VFs a PF can make.
    pub virtual_functions_max: Option<u16>,
    /// The BARs and the ROM that it decodes on the host.
    pub resources: Vec<Resource>,
    /// How the kernel can reset it by itself.
    pub reset: Reset,
    /// Its PCIe link. None for conventional PCI.
    pub link: Option<Link>,
    /// D0 and so on, from Linux 5.11.
    pub power_state: Option<String>,
    /// The firmware put its first picture on it.
    pub boot_display: bool,
    /// How it passes on what devices send to each other. Looked at only where
    /// a group is shared, and where its config space can be read.
    pub routing: Option<Routing>,
    /// Its name in VFIO, such as `vfio3`. Kernels from 6.1 have it for every
    /// device that a VFIO driver has taken.
    pub vfio_device: Option<String>,
    /// `/dev/vfio/devices/vfio3`, where the kernel makes such files.
    pub cdev: Option<Node>,
    /// What could not be read or understood.
    pub unreadable: Vec<Unreadable>,
}

/// The numbers that say what a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Who made it.
    pub vendor: u16,
    /// Which of the vendor's devices it is.
    pub device: u16,
    /// Who made the board.
    pub subsystem_vendor: u16,
    /// Which of the boards it is.
    pub subsystem_device: u16,
    /// Base class, sub-class and programming interface, a byte each.
    pub class: u32,
}

/// The layout of a function's config header (PCIe 6.0 §7.5.1.1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Header {
    /// Type 0.
    Endpoint,
    /// Type 1 or 2.
    Bridge,
}

/// What `driver_override` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverOverride {
    /// Any driver that knows the device may bind it.
    Any,
    /// This one only.
    Only(String),
    /// Not asked: the answer might have taken for ever, see
    /// [the module](super).
    NotAsked,
}

/// How a function can be reset without its neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// The kernel has a way.
    pub possible: bool,
    /// The ways, in the order tried: `device_specific`, `acpi`, `flr`,
    /// `af_flr`, `pm`, `bus`, `cxl_bus`. Kernels before 5.15 do not tell. See
    /// [`Survey::reset_of`](super::Survey::reset_of) for those of the bus.
    pub methods: Vec<String>,
}

/// A range that a function decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// 0 to 5 for the BARs, 6 for the ROM.
    pub index: u8,
    /// The first address as the host sees it.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is (linux/ioport.h, `IORESOURCE_*`).
    pub flags: u64,
}

/// An attribute that could not be read or made no sense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Its name.
    pub attribute: String,
    /// Why.
    pub reason: String,
}

impl Resource {
    /// `IORESOURCE_MEM` and `IORESOURCE_MEM_64` (linux/ioport.h).
    const MEMORY: u64 = 0x200;
    const MEMORY_64: u64 = 0x10_0000;
    const ROM: u8 = 6;

    /// Whether it is a BAR for memory, not for I/O ports and not the ROM.
    pub fn is_memory_bar(&self) -> bool {
        self.index < Self::ROM && self.flags & Self::MEMORY != 0
    }

    /// Whether it may lie above 4 GiB.
    pub fn is_64_bit(&self) -> bool {
        self.flags & Self::MEMORY_64 != 0
    }
}

impl Unreadable {
    pub(super) fn new(attribute: &str, error: &io::Error) -> Self {
        Self {
            attribute: attribute.to_owned(),
            reason: error.to_string(),
        }
    }
}

impl Function {
    /// Whether the function forwards between buses.
    pub fn is_bridge(&self) -> bool {
        self.header == Header::Bridge
    }

    /// Whether it is a PCI Express function, not one of conventional PCI.
    pub fn is_express(&self) -> bool {
        self.link.is_some()
    }

    /// Reads the function that sysfs calls `name`; nothing when it is gone.
    pub(super) fn read(
        host: &Host,
        address: PciAddress,
        name: &str,
        taken: &TakenGroups,
    ) -> Option<Self> {
        let mut reader = Reader::new(host, name)?;
        let place = match host.link(&format!("{DEVICES}/{name}")) {
            Ok(place) => place?,
            Err(error) => {
                reader.fail(".", &error);
                String::new()
            }
        };
        let ids = reader.parsed("modalias", parse::ids);
        if ids.is_none() && reader.unreadable.is_empty() {
            // Every PCI function has the attribute: the function went away.
            return None;
        }
        let driver = reader.link_name("driver");
        let group = reader.number("iommu_group").map(GroupId);
        let physical_function = reader.address("physfn");
        let vfio_device = match driver {
            Some(_) => reader.list("vfio-dev").into_iter().next(),
            None => None,
        };
        let power_state = reader.text("power_state");
        let awake = power_state.as_deref() == Some("D0");
        Some(Self {
            address,
            ids,
            header: if reader.has("secondary_bus_number") {
                Header::Bridge
            } else {
                Header::Endpoint
            },
            driver_override: driver_override(&mut reader, driver.as_deref(), group, taken),
            parents: parse::parents(&place, address),
            // -1 on a host with one node.
            numa_node: reader.text("numa_node").and_then(|node| node.parse().ok()),
            virtual_functions_max: reader
                .text("sriov_totalvfs")
                .and_then(|count| count.parse().ok()),
            resources: reader
                .parsed("resource", parse::resources)
                .unwrap_or_default(),
            reset: Reset::read(&mut reader),
            // A VF's link is that of its PF.
            link: Link::read(&mut reader, awake && physical_function.is_none()),
            boot_display: reader.text("boot_vga").as_deref() == Some("1"),
            routing: None,
            cdev: vfio_device.as_ref().and_then(|device| {
                let folder = reader.list(&format!("vfio-dev/{device}"));
                let made = folder.iter().any(|name| name == "dev");
                made.then(|| Node::read(host, &format!("/dev/vfio/devices/{device}")))
            }),
            driver,
            group,
            physical_function,
            power_state,
            vfio_device,
            unreadable: reader.unreadable,
        })
    }
}

/// Which groups have a device that VFIO has, or is still waiting to get back.
#[derive(Debug)]
pub(super) struct TakenGroups {
    /// `/sys/class/vfio`: a group stays there until its last device has left.
    names: Option<Vec<String>>,
    /// VFIO is there at all.
    vfio: bool,
}

impl TakenGroups {
    pub(super) fn read(host: &Host) -> Self {
        let list = |path| host.list(path).ok().flatten();
        let names = list("/sys/class/vfio");
        Self {
            vfio: names.is_some() || list("/sys/class/vfio-dev").is_some(),
            names,
        }
    }

    /// Whether the group may have such a device.
    fn may_hold(&self, group: Option<GroupId>) -> bool {
        let (Some(group), Some(names)) = (group, &self.names) else {
            return self.vfio;
        };
        let (plain, noiommu) = (group.to_string(), format!("noiommu-{group}"));
        names.iter().any(|name| *name == plain || *name == noiommu)
    }
}

/// Asks for the override only where the answer can't wait for a guest: before
/// Linux 7 the attribute takes the device's lock, which an unbind from a VFIO
/// driver holds until the guest has let go of the device. The link to the
/// driver goes first, so a device without one may be in the middle of it.
fn driver_override(
    reader: &mut Reader<'_>,
    driver: Option<&str>,
    group: Option<GroupId>,
    taken: &TakenGroups,
) -> DriverOverride {
    let waits = match driver {
        Some(driver) => driver.contains("vfio") || reader.has("vfio-dev"),
        None => taken.may_hold(group),
    };
    if waits {
        return DriverOverride::NotAsked;
    }
    match reader.text("driver_override") {
        Some(driver) if !driver.is_empty() && driver != "(null)" => DriverOverride::Only(driver),
        _ => DriverOverride::Any,
    }
}

impl Reset {
    fn read(reader: &mut Reader<'_>) -> Self {
        let methods = reader.text("reset_method");
        let possible = match &methods {
            // Its owner may have forbidden each: `reset` stays then.
            Some(methods) => !methods.is_empty(),
            None => reader.has("reset"),
        };
        let methods = methods.unwrap_or_default();
        Self {
            possible,
            methods: methods.split_whitespace().map(str::to_owned).collect(),
        }
    }
}

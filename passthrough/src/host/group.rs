use std::fmt;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use super::node::Node;
use super::pci::Unreadable;
use super::sysfs::Host;

pub(super) const GROUPS: &str = "/sys/kernel/iommu_groups";

/// The number of an IOMMU group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The devices that the IOMMU cannot tell apart or keep from each other. They
/// are given to a guest together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The number.
    pub id: GroupId,
    /// What the host's own drivers get: `DMA`, `DMA-FQ`, `identity` and so on.
    pub domain: Option<String>,
    /// The name that some groups have.
    pub name: Option<String>,
    /// Every device in it.
    pub members: Vec<GroupMember>,
    /// Ranges of I/O virtual addresses that guests must not use.
    pub reserved: Vec<ReservedRegion>,
    /// `/dev/vfio/N`.
    pub node: Node,
    /// What could not be read or understood.
    pub unreadable: Vec<Unreadable>,
}

/// One device of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    /// The device's name in sysfs.
    pub name: String,
    /// Its address, when it is a PCI function. What else is known of it
    /// stands with the functions then.
    pub address: Option<PciAddress>,
    /// The driver of a device that is no PCI function.
    pub driver: Option<String>,
}

/// A range that the IOMMU driver keeps for itself (linux/iommu.h,
/// `iommu_resv_type`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedRegion {
    /// The first address.
    pub start: u64,
    /// The last address.
    pub last: u64,
    /// What for.
    pub kind: ReservedKind,
}

/// Why a range is reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReservedKind {
    /// Firmware needs it mapped 1:1 at all times.
    Direct,
    /// Firmware needs it mapped 1:1 until a guest takes the device.
    DirectRelaxable,
    /// Never mapped.
    Reserved,
    /// Where interrupts are written to.
    Msi,
    /// A kind that this version does not know.
    Other(String),
}

impl Group {
    /// Whether VFIO made the group for a device without an IOMMU.
    pub fn is_noiommu(&self) -> bool {
        self.name.as_deref() == Some("vfio-noiommu")
    }

    pub(super) fn read(host: &Host, id: GroupId, nodes: &[String]) -> Self {
        let mut unreadable = Vec::new();
        let mut text = |name: &str| {
            host.text(&format!("{GROUPS}/{id}/{name}"))
                .unwrap_or_else(|error| {
                    unreadable.push(Unreadable::new(name, &error));
                    None
                })
        };
        let domain = text("type");
        let name = text("name");
        let mut reserved = Vec::new();
        for line in text("reserved_regions").unwrap_or_default().lines() {
            match reserved_region(line) {
                Some(region) => reserved.push(region),
                None => unreadable.push(Unreadable {
                    attribute: "reserved_regions".to_owned(),
                    reason: format!("'{line}' is not a range and a type"),
                }),
            }
        }
        let members = match host.list(&format!("{GROUPS}/{id}/devices")) {
            Ok(names) => names.unwrap_or_default(),
            Err(error) => {
                unreadable.push(Unreadable::new("devices", &error));
                Vec::new()
            }
        };
        let members = members.into_iter().map(|name| {
            let address = name.parse().ok();
            let mut driver = None;
            if address.is_none() {
                let link = host.link_name(&format!("{GROUPS}/{id}/devices/{name}/driver"));
                driver = link.unwrap_or_else(|error| {
                    unreadable.push(Unreadable::new(&format!("devices/{name}/driver"), &error));
                    None
                });
            }
            GroupMember {
                name,
                address,
                driver,
            }
        });
        let members = members.collect();
        let file = if name.as_deref() == Some("vfio-noiommu") {
            format!("noiommu-{id}")
        } else {
            id.to_string()
        };
        let path = format!("/dev/vfio/{file}");
        let node = if nodes.binary_search(&file).is_ok() {
            Node::read(host, &path)
        } else {
            Node::missing(path)
        };
        Self {
            id,
            domain,
            name,
            members,
            reserved,
            node,
            unreadable,
        }
    }
}

fn reserved_region(line: &str) -> Option<ReservedRegion> {
    let mut parts = line.split_whitespace();
    let mut number = || {
        let digits = parts.next()?.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    };
    let (start, last) = (number()?, number()?);
    let kind = match parts.next()? {
        "direct" => ReservedKind::Direct,
        "direct-relaxable" => ReservedKind::DirectRelaxable,
        "reserved" => ReservedKind::Reserved,
        "msi" => ReservedKind::Msi,
        other => ReservedKind::Other(other.to_owned()),
    };
    (start <= last).then_some(ReservedRegion { start, last, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_regions_as_the_kernel_writes_them() {
        let region = reserved_region("0x00000000fee00000 0x00000000feefffff msi").unwrap();
        assert_eq!((region.start, region.last), (0xfee0_0000, 0xfeef_ffff));
        assert_eq!(region.kind, ReservedKind::Msi);
        let kind = |line| reserved_region(line).map(|region| region.kind);
        assert_eq!(
            kind("0x0 0xffffff direct-relaxable"),
            Some(ReservedKind::DirectRelaxable)
        );
        assert_eq!(
            kind("0x0 0xff new"),
            Some(ReservedKind::Other("new".to_owned()))
        );
        for garbage in [
            "",
            "0x0",
            "0x0 0xff",
            "0xff 0x0 msi",
            "x y z",
            "0x0 0x1ffffffffffffffff msi",
        ] {
            assert_eq!(kind(garbage), None, "{garbage}");
        }
    }
}

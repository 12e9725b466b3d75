use std::io;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use super::group::GroupId;
use super::sysfs::Host;

pub(super) const DEVICES: &str = "/sys/bus/pci/devices";

/// BARs and ROM: the lines of `resource` after them belong to SR-IOV and to
/// bridge windows (linux/pci.h).
const BARS_AND_ROM: u8 = 7;

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
    /// Its IOMMU group.
    pub group: Option<GroupId>,
    /// The bridges above it, the nearest first.
    pub parents: Vec<PciAddress>,
    /// The function that a VF belongs to.
    pub physical_function: Option<PciAddress>,
    /// The BARs and the ROM that it decodes on the host.
    pub resources: Vec<Resource>,
    /// Its name in VFIO, such as `vfio3`. Kernels from 6.1 have it for every
    /// device that a VFIO driver has taken.
    pub vfio_device: Option<String>,
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

    /// Reads the function that sysfs calls `name`; nothing when it is gone.
    pub(super) fn read(host: &Host, address: PciAddress, name: &str) -> Option<Self> {
        let mut reader = Reader {
            host,
            name,
            unreadable: Vec::new(),
        };
        let place = match host.link(&format!("{DEVICES}/{name}")) {
            Ok(place) => place?,
            Err(error) => {
                reader.fail(".", &error);
                String::new()
            }
        };
        let ids = reader.parsed("modalias", ids);
        if ids.is_none() && reader.unreadable.is_empty() {
            // Every PCI function has the attribute: the function went away.
            return None;
        }
        let header = reader.asked(
            "secondary_bus_number",
            host.exists(&format!("{DEVICES}/{name}/secondary_bus_number")),
        );
        let driver = reader.link_name("driver");
        let group = reader.link_name("iommu_group").and_then(|group| {
            let id = group.parse().ok().map(GroupId);
            if id.is_none() {
                reader.senseless("iommu_group", &group);
            }
            id
        });
        let physical_function = reader.link_name("physfn").and_then(|physfn| {
            let address = physfn.parse().ok();
            if address.is_none() {
                reader.senseless("physfn", &physfn);
            }
            address
        });
        let vfio_device = driver.as_ref().and_then(|_| {
            let names = host.list(&format!("{DEVICES}/{name}/vfio-dev"));
            reader
                .asked("vfio-dev", names)
                .flatten()?
                .into_iter()
                .next()
        });
        Some(Self {
            address,
            ids,
            // An unreadable answer stands in `unreadable` and is refused there.
            header: if header == Some(true) {
                Header::Bridge
            } else {
                Header::Endpoint
            },
            driver,
            group,
            parents: parents(&place, address),
            physical_function,
            resources: reader.parsed("resource", resources).unwrap_or_default(),
            vfio_device,
            unreadable: reader.unreadable,
        })
    }
}

struct Reader<'a> {
    host: &'a Host,
    name: &'a str,
    unreadable: Vec<Unreadable>,
}

impl Reader<'_> {
    fn fail(&mut self, attribute: &str, error: &io::Error) {
        self.unreadable.push(Unreadable::new(attribute, error));
    }

    fn senseless(&mut self, attribute: &str, text: &str) {
        let text: String = text.chars().take(80).collect();
        self.unreadable.push(Unreadable {
            attribute: attribute.to_owned(),
            reason: format!("'{text}' makes no sense there"),
        });
    }

    fn asked<T>(&mut self, attribute: &str, answer: io::Result<T>) -> Option<T> {
        answer.map_err(|error| self.fail(attribute, &error)).ok()
    }

    fn link_name(&mut self, attribute: &str) -> Option<String> {
        let answer = self
            .host
            .link_name(&format!("{DEVICES}/{}/{attribute}", self.name));
        self.asked(attribute, answer).flatten()
    }

    fn parsed<T>(&mut self, attribute: &str, parse: fn(&str) -> Option<T>) -> Option<T> {
        let answer = self
            .host
            .text(&format!("{DEVICES}/{}/{attribute}", self.name));
        let text = self.asked(attribute, answer).flatten()?;
        let value = parse(&text);
        if value.is_none() {
            self.senseless(attribute, &text);
        }
        value
    }
}

/// The numbers in `pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00`.
fn ids(modalias: &str) -> Option<Ids> {
    let mut rest = modalias.strip_prefix("pci:")?;
    let mut number = |key: &str, digits: usize| {
        let (value, after) = rest.strip_prefix(key)?.split_at_checked(digits)?;
        rest = after;
        u32::from_str_radix(value, 16).ok()
    };
    let vendor = number("v", 8)?.try_into().ok()?;
    let device = number("d", 8)?.try_into().ok()?;
    // PCI_ANY_ID stands where a bridge has no subsystem.
    let subsystem_vendor = number("sv", 8)? as u16;
    let subsystem_device = number("sd", 8)? as u16;
    let class = number("bc", 2)? << 16 | number("sc", 2)? << 8 | number("i", 2)?;
    Some(Ids {
        vendor,
        device,
        subsystem_vendor,
        subsystem_device,
        class,
    })
}

/// The lines `start last flags` of `resource`, without the empty ones.
fn resources(text: &str) -> Option<Vec<Resource>> {
    let mut found = Vec::new();
    for (index, line) in (0..BARS_AND_ROM).zip(text.lines()) {
        let mut numbers = line
            .split_whitespace()
            .map(|number| u64::from_str_radix(number.strip_prefix("0x")?, 16).ok());
        let (start, last, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
        if flags == 0 {
            continue;
        }
        let size = last.checked_sub(start)?.checked_add(1)?;
        found.push(Resource {
            index,
            start,
            size,
            flags,
        });
    }
    Some(found)
}

/// The bridges in `../../../devices/pci0000:00/0000:00:1c.0/0000:01:00.0`.
fn parents(place: &str, own: PciAddress) -> Vec<PciAddress> {
    place
        .rsplit('/')
        .filter_map(|part| part.parse().ok())
        .filter(|address| *address != own)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_as_the_kernel_writes_them() {
        let nvme = ids("pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02").unwrap();
        assert_eq!((nvme.vendor, nvme.device), (0x1b36, 0x10));
        assert_eq!(
            (nvme.subsystem_vendor, nvme.subsystem_device),
            (0x1af4, 0x1100)
        );
        assert_eq!(nvme.class, 0x01_0802);
        for garbage in [
            "",
            "pci:",
            "pci:v0000",
            "usb:v1B36",
            "pci:vÄÄÄÄÄÄÄÄd",
            "pci:v00011B36d00000010sv00001AF4sd00001100bc01sc08i02",
        ] {
            assert_eq!(ids(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn resources_as_the_kernel_writes_them() {
        let text = "0x00000000febd0000 0x00000000febd3fff 0x0000000000140204\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x000000000000c000 0x000000000000c01f 0x0000000000040101\n";
        let found = resources(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].index, found[0].size), (0, 0x4000));
        assert_eq!((found[1].index, found[1].size), (2, 0x20));
        assert_eq!(resources("0x10 0x0 0x200"), None);
        assert_eq!(resources("0x0 0xffffffffffffffff 0x200"), None);
        assert_eq!(resources("what"), None);
    }

    #[test]
    fn parents_come_from_the_place_in_the_tree() {
        let own = "0000:02:00.0".parse().unwrap();
        let place = "../../../devices/pci0000:00/0000:00:1c.0/0000:01:00.0/0000:02:00.0";
        let names: Vec<_> = parents(place, own)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["0000:01:00.0", "0000:00:1c.0"]);
    }
}

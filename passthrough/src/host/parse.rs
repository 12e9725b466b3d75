//! What the texts of sysfs mean.

use devices::pci::PciAddress;

use super::pci::{Ids, Resource};

/// BARs and ROM: the lines of `resource` after them belong to SR-IOV and to
/// bridge windows (linux/pci.h).
const BARS_AND_ROM: u8 = 7;

/// The numbers in `pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00`.
pub(super) fn ids(modalias: &str) -> Option<Ids> {
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
pub(super) fn resources(text: &str) -> Option<Vec<Resource>> {
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
pub(super) fn parents(place: &str, own: PciAddress) -> Vec<PciAddress> {
    parents_of(place)
        .filter(|address| *address != own)
        .collect()
}

/// The functions that a device at `place` is behind, the nearest first.
pub(super) fn parents_of(place: &str) -> impl Iterator<Item = PciAddress> {
    place.rsplit('/').filter_map(|part| part.parse().ok())
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

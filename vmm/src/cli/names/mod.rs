//! Names for the numbers of PCI: from the system's pci.ids where it has one,
//! and of classes from a table here.

mod class;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

pub(super) use class::class_name;

/// Where distributions keep the list (pciutils; hwdata).
const FILES: [&str; 2] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];
/// The list has 1.4 MB and grows by some 50 kB a year.
const FILE_LIMIT: u64 = 16 << 20;
/// The longest name that is shown, in characters.
const NAME_LIMIT: usize = 80;

/// The names of some vendors and devices.
#[derive(Debug, Default)]
pub(super) struct Names {
    vendors: BTreeMap<u16, String>,
    devices: BTreeMap<(u16, u16), String>,
}

impl Names {
    /// Looks up the names of `wanted`, pairs of vendor and device, in the
    /// system's list. Without a list there are no names.
    pub(super) fn look_up(wanted: &BTreeSet<(u16, u16)>) -> Self {
        let mut files = FILES.iter().filter_map(|path| File::open(path).ok());
        match files.next() {
            Some(file) if !wanted.is_empty() => {
                Self::parse(BufReader::new(file.take(FILE_LIMIT)), wanted)
            }
            _ => Self::default(),
        }
    }

    /// Reads the list up to the last vendor that is wanted; it is sorted.
    ///
    /// ```text
    /// 8086  Intel Corporation
    ///         10d3  82574L Gigabit Network Connection        (one tab)
    ///                 8086 a01f  Gigabit CT Desktop Adapter  (two tabs)
    /// C 00  Unclassified device
    /// ```
    pub(super) fn parse(mut list: impl BufRead, wanted: &BTreeSet<(u16, u16)>) -> Self {
        let mut names = Self::default();
        let last = wanted.last().map_or(0, |(vendor, _)| *vendor);
        let mut vendor = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            if !matches!(list.read_until(b'\n', &mut line), Ok(1..)) {
                return names;
            }
            let text = String::from_utf8_lossy(&line);
            if text.starts_with('#') || text.starts_with("\t\t") || text.trim().is_empty() {
                continue;
            }
            if let Some(device) = text.strip_prefix('\t') {
                if let Some(vendor) = vendor
                    && let Some((id, name)) = entry(device)
                    && wanted.contains(&(vendor, id))
                {
                    names.devices.insert((vendor, id), name);
                }
                continue;
            }
            // Classes, which come last, begin with a letter and a space.
            let Some((id, name)) = entry(&text).filter(|(id, _)| *id <= last) else {
                return names;
            };
            vendor = (wanted.range((id, 0)..=(id, u16::MAX)).next().is_some()).then_some(id);
            if vendor.is_some() {
                names.vendors.insert(id, name);
            }
        }
    }

    /// The vendor's name.
    pub(super) fn vendor(&self, vendor: u16) -> Option<&str> {
        self.vendors.get(&vendor).map(String::as_str)
    }

    /// The device's name, without the vendor's.
    pub(super) fn device(&self, vendor: u16, device: u16) -> Option<&str> {
        self.devices.get(&(vendor, device)).map(String::as_str)
    }

    /// Both, with the device's number where it has no name.
    pub(super) fn full(&self, vendor: u16, device: u16) -> Option<String> {
        let maker = self.vendor(vendor)?;
        Some(match self.device(vendor, device) {
            Some(device) => format!("{maker} {device}"),
            None => format!("{maker} device {device:04x}"),
        })
    }
}

fn entry(line: &str) -> Option<(u16, String)> {
    let (id, name) = line.split_at_checked(4)?;
    let id = id
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then_some(id)?;
    let id = u16::from_str_radix(id, 16).ok()?;
    let name = name.strip_prefix(' ')?.trim();
    // The list may be anybody's: nothing in it may drive the terminal.
    let shown = name.chars().filter(|c| !c.is_control()).take(NAME_LIMIT);
    (!name.is_empty()).then(|| (id, shown.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# a comment\n\n\
        1af4  Red Hat, Inc.\n\t1000  Virtio network device\n\t\t1af4 0001  a board\n\
        8086  Intel Corporation\n\t10d3  82574L Gigabit \x1b[31mNetwork\n\
        ffff  Illegal Vendor ID\n\
        C 01  Mass storage controller\n\t08  Non-Volatile memory controller\n";

    fn names(wanted: &[(u16, u16)], list: &str) -> Names {
        Names::parse(list.as_bytes(), &wanted.iter().copied().collect())
    }

    #[test]
    fn only_what_is_wanted_is_kept() {
        let found = names(&[(0x8086, 0x10d3), (0x8086, 0xffff)], LIST);
        assert_eq!(found.vendors.len(), 1);
        assert_eq!(
            found.full(0x8086, 0x10d3).unwrap(),
            "Intel Corporation 82574L Gigabit [31mNetwork"
        );
        assert_eq!(
            found.full(0x8086, 0xffff).unwrap(),
            "Intel Corporation device ffff"
        );
        assert_eq!(found.full(0x1af4, 0x1000), None);
        assert_eq!(names(&[(0x1af4, 1)], LIST).device(0x1af4, 1), None);
    }

    #[test]
    fn classes_are_no_vendors() {
        assert_eq!(
            names(&[(0xc, 8), (0xffff, 8)], LIST).device(0xffff, 8),
            None
        );
    }

    #[test]
    fn any_list_does() {
        for list in [
            "",
            "\t",
            "8086",
            "8086\n",
            "+086  x\n",
            "8086  \n",
            "\u{fffd}086  é\n",
            "C",
        ] {
            assert_eq!(names(&[(0x8086, 1)], list).vendors.len(), 0, "{list}");
        }
        let long = format!("8086  {}\n", "x".repeat(1000));
        assert_eq!(
            names(&[(0x8086, 1)], &long).vendor(0x8086).unwrap().len(),
            NAME_LIMIT
        );
    }
}

//! What the host itself needs PCI functions for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use super::parse::parents_of;
use super::sysfs::Host;

/// How deep devices are looked for behind devices: a file system on LVM on
/// RAID on multipath takes four.
const DEPTH: u32 = 8;

/// What the host would lose with a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostUse {
    /// A mounted file system is on a disk behind it.
    Mounted {
        /// Where it is mounted.
        on: String,
        /// The block device that is mounted.
        device: String,
    },
    /// It has swap behind it.
    Swap {
        /// The block device.
        device: String,
    },
    /// The default route leads out by it.
    DefaultRoute {
        /// The network interface of the route.
        interface: String,
    },
}

impl fmt::Display for HostUse {
    /// The end of a sentence about the function.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { on, device } => {
                write!(
                    f,
                    "has the disk of {on} behind it ({device} is mounted there)"
                )
            }
            Self::Swap { device } => write!(f, "has swap behind it ({device})"),
            Self::DefaultRoute { interface } => {
                write!(f, "carries the default route (by {interface})")
            }
        }
    }
}

/// The functions in use, and what for.
pub(super) type Uses = BTreeMap<PciAddress, BTreeSet<HostUse>>;

/// Finds what the host can be seen to use. A boot display is known by the
/// function itself. What is not seen: the disks of ZFS and, but for the first,
/// of btrfs, which the kernel does not name.
pub(super) fn read(host: &Host) -> Uses {
    let mut finder = Finder {
        host,
        uses: Uses::new(),
        looked_at: BTreeMap::new(),
    };
    finder.mounts();
    finder.swap();
    finder.routes();
    finder.uses
}

struct Finder<'a> {
    host: &'a Host,
    uses: Uses,
    /// What is behind the block devices seen so far: many file systems may be
    /// mounted from one.
    looked_at: BTreeMap<String, BTreeSet<PciAddress>>,
}

impl Finder<'_> {
    fn note(&mut self, functions: BTreeSet<PciAddress>, what: &HostUse) {
        for function in functions {
            self.uses.entry(function).or_default().insert(what.clone());
        }
    }

    /// Mounts of this process and, where they can be seen, of the host.
    fn mounts(&mut self) {
        let mut mounts = BTreeSet::new();
        for process in ["self", "1"] {
            let _ = self
                .host
                .lines(&format!("/proc/{process}/mountinfo"), |line| {
                    mounts.extend(mount(&super::sysfs::clean(line)));
                });
        }
        for Mount { number, source, on } in mounts {
            let (functions, device) = match self.block_number(&number) {
                Some(found) => found,
                // btrfs and overlays have numbers of their own.
                None => match self.block_file(&source) {
                    Some(found) => found,
                    None => continue,
                },
            };
            self.note(functions, &HostUse::Mounted { on, device });
        }
    }

    fn swap(&mut self) {
        let mut files = BTreeSet::new();
        let _ = self.host.lines("/proc/swaps", |line| {
            let line = super::sysfs::clean(line);
            let mut words = line.split_whitespace();
            // A swap file is on a file system, which is mounted.
            if let (Some(file), Some("partition")) = (words.next(), words.next()) {
                files.insert(file.to_owned());
            }
        });
        for file in files {
            if let Some((functions, device)) = self.block_file(&file) {
                self.note(functions, &HostUse::Swap { device });
            }
        }
    }

    fn routes(&mut self) {
        let mut interfaces = BTreeSet::new();
        for process in ["self", "1"] {
            for (file, parse) in [
                ("route", default_route as fn(&str) -> Option<String>),
                ("ipv6_route", default_route_v6),
            ] {
                let _ = self
                    .host
                    .lines(&format!("/proc/{process}/net/{file}"), |line| {
                        interfaces.extend(parse(&super::sysfs::clean(line)));
                    });
            }
        }
        for interface in interfaces {
            let mut functions = BTreeSet::new();
            self.interface(&interface, DEPTH, &mut functions);
            self.note(functions, &HostUse::DefaultRoute { interface });
        }
    }

    /// The functions behind network interface `name`: a bridge, bond or VLAN
    /// has links to what is below it.
    fn interface(&self, name: &str, depth: u32, found: &mut BTreeSet<PciAddress>) {
        if depth == 0 || !is_name(name) {
            return;
        }
        let folder = format!("/sys/class/net/{name}");
        let Ok(Some(place)) = self.host.link(&folder) else {
            return;
        };
        if let Some(function) = parents_of(&place).next() {
            found.insert(function);
            return;
        }
        let below = self.host.list(&folder).ok().flatten().unwrap_or_default();
        for lower in below.iter().filter_map(|name| name.strip_prefix("lower_")) {
            self.interface(lower, depth - 1, found);
        }
    }

    /// The functions behind the block device `major:minor`, and its name.
    fn block_number(&mut self, number: &str) -> Option<(BTreeSet<PciAddress>, String)> {
        if !number.bytes().all(|b| b.is_ascii_digit() || b == b':') {
            return None;
        }
        self.block_link(&format!("/sys/dev/block/{number}"))
    }

    /// The functions behind the block device with the file `path`.
    fn block_file(&mut self, path: &str) -> Option<(BTreeSet<PciAddress>, String)> {
        let name = path.strip_prefix("/dev/")?;
        // /dev/mapper/root points to ../dm-0.
        let target = self.host.link_name(path).ok().flatten();
        let name = target.as_deref().unwrap_or(name);
        is_name(name).then(|| self.block_link(&format!("/sys/class/block/{name}")))?
    }

    fn block_link(&mut self, link: &str) -> Option<(BTreeSet<PciAddress>, String)> {
        let place = self.host.link(link).ok()??;
        let name = place.rsplit('/').next()?.to_owned();
        if !self.looked_at.contains_key(&place) {
            let mut found = BTreeSet::new();
            self.block(&place, DEPTH, &mut found);
            self.looked_at.insert(place.clone(), found);
        }
        Some((self.looked_at.get(&place)?.clone(), name))
    }

    /// The functions behind the block device at `place`, such as
    /// `../../devices/pci0000:00/0000:00:1f.2/ata1/…/block/sda/sda1`.
    fn block(&self, place: &str, depth: u32, found: &mut BTreeSet<PciAddress>) {
        if depth == 0 {
            return;
        }
        if let Some(function) = parents_of(place).next() {
            found.insert(function);
            return;
        }
        // An NVMe disk with several ways to it is below none of them:
        // ../../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1.
        if let Some((_, below)) = place.split_once("/nvme-subsystem/") {
            let subsystem = below.split('/').next().unwrap_or_default();
            self.nvme(subsystem, found);
            return;
        }
        // dm, md and bcache list what they are made of; a partition's disk does.
        let Some((_, below)) = place.split_once("/block/") else {
            return;
        };
        let disk = below.split('/').next().unwrap_or_default();
        let slaves = format!("/sys/class/block/{disk}/slaves");
        for slave in self.host.list(&slaves).ok().flatten().unwrap_or_default() {
            if let Ok(Some(place)) = self.host.link(&format!("/sys/class/block/{slave}")) {
                self.block(&place, depth - 1, found);
            }
        }
    }

    fn nvme(&self, subsystem: &str, found: &mut BTreeSet<PciAddress>) {
        let folder = format!("/sys/devices/virtual/nvme-subsystem/{subsystem}");
        let names = self.host.list(&folder).ok().flatten().unwrap_or_default();
        for name in names.iter().filter(|name| name.starts_with("nvme")) {
            // A controller is a link; a disk is a folder.
            if let Ok(Some(place)) = self.host.link(&format!("{folder}/{name}")) {
                found.extend(parents_of(&place).next());
            }
        }
    }
}

/// Whether `name` is one part of a path: it comes from a file.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != "." && name != ".."
}

/// A mounted file system.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mount {
    /// `major:minor`.
    number: String,
    source: String,
    on: String,
}

/// `22 1 8:2 / /boot rw - ext4 /dev/sda2 rw` (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<Mount> {
    let (first, second) = line.split_once(" - ")?;
    let mut words = first.split(' ');
    let number = words.nth(2)?.to_owned();
    let on = words.nth(1)?.to_owned();
    let source = second.split(' ').nth(1)?.to_owned();
    Some(Mount { number, source, on })
}

/// `RTF_UP` and `RTF_REJECT` (linux/route.h).
fn leads_out(flags: &str) -> bool {
    let flags = u32::from_str_radix(flags, 16).unwrap_or(0);
    flags & 1 != 0 && flags & 0x200 == 0
}

/// The interface of a line of `/proc/net/route`, if it is a default route.
fn default_route(line: &str) -> Option<String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (interface, to, flags, mask) =
        (words.first()?, words.get(1)?, words.get(3)?, words.get(7)?);
    let default = *to == "00000000" && *mask == "00000000";
    (default && leads_out(flags)).then(|| (*interface).to_owned())
}

/// The same of `/proc/net/ipv6_route`.
fn default_route_v6(line: &str) -> Option<String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (to, length, flags, interface) =
        (words.first()?, words.get(1)?, words.get(8)?, words.get(9)?);
    let default = *length == "00" && to.bytes().all(|digit| digit == b'0');
    (default && leads_out(flags) && *interface != "lo").then(|| (*interface).to_owned())
}

#[cfg(test)]
#[path = "uses_test.rs"]
mod tests;

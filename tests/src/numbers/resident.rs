//! What a process has in memory beyond its guest's RAM.

use serde::Serialize;

use super::error::{At, NumbersError};
use super::program::{Guest, Program};
use super::{GUEST_MIB, STEP_LIMIT};
use crate::host::{Host, Step};

/// A map of at least so many KiB is guest RAM, if anything of it is there.
const RAM_KIB: u64 = 64 << 10;

/// Memory of one monitor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Resident {
    /// Which.
    program: Program,
    /// What it has besides guest RAM and BARs, in KiB: its part of what is
    /// shared with others (Pss).
    pub kib: u64,
    /// What of it is no file's, in KiB.
    pub anonymous_kib: u64,
    /// Its threads.
    pub threads: u64,
    /// Its program's file, in KiB, without libraries.
    pub file_kib: u64,
    /// The largest, by name.
    pub largest: Vec<(String, u64)>,
}

/// A mapping of `/proc/PID/smaps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mapping {
    name: String,
    size: u64,
    pss: u64,
    anonymous: u64,
    huge: u64,
}

impl Resident {
    pub(super) fn program(&self) -> Program {
        self.program
    }

    /// Its threads and the bytes of its program, a line each.
    fn with(mut self, counts: &str) -> Result<Self, String> {
        let mut numbers = counts.lines().map(|line| line.trim().parse::<u64>());
        let (Some(Ok(threads)), Some(Ok(bytes))) = (numbers.next(), numbers.next()) else {
            return Err(format!("no threads and size: '{counts}'"));
        };
        self.threads = threads;
        self.file_kib = bytes >> 10;
        Ok(self)
    }
}

/// Boots a guest on each monitor, and looks once the guest has read.
pub(super) fn measure(
    host: &Host,
    device: &str,
    programs: &[Program],
) -> Result<Vec<Resident>, NumbersError> {
    let measure = |program| {
        let step = format!("memory of {program}");
        let guest = Guest {
            // Long enough for a look; not all monitors take input.
            tasks: "nvme,nap,nap,nap,nap,nap,nap,nap,nap,poweroff",
            memory_mib: GUEST_MIB,
            device: Some(device.to_owned()),
            initrd: None,
        };
        let start = Step::argv(guest.argv(program)).limit(STEP_LIMIT);
        let mut process = host.start(&start).at(&step)?;
        process.wait_line("lab: nvme-read", STEP_LIMIT).at(&step)?;
        let smaps = host.shell(&format!("cat /proc/{}/smaps", process.pid()));
        let smaps = smaps.at(&step)?;
        let counts = host.shell(&format!(
            "ls /proc/{}/task | wc -l; stat -Lc %s {}",
            process.pid(),
            program.file()
        ));
        let counts = counts.at(&step)?;
        let outcome = process.wait().at(&step)?;
        super::guest_has_read(&step, &outcome)?;
        let resident = of(program, &smaps).and_then(|resident| resident.with(&counts));
        resident.map_err(|reason| NumbersError::wrong(&step, reason))
    };
    programs.iter().copied().map(measure).collect()
}

/// Sums up what is neither guest RAM nor a device's.
fn of(program: Program, smaps: &str) -> Result<Resident, String> {
    let mappings = parse(smaps);
    let is_ram = |mapping: &Mapping| mapping.size >= RAM_KIB && mapping.pss > 0;
    let ram: u64 = mappings
        .iter()
        .filter(|mapping| is_ram(mapping))
        .map(|mapping| mapping.size)
        .sum();
    if ram != GUEST_MIB << 10 {
        return Err(format!(
            "maps of {ram} KiB look like guest RAM of {} KiB",
            GUEST_MIB << 10
        ));
    }
    let mut rest: Vec<_> = mappings
        .into_iter()
        .filter(|mapping| !is_ram(mapping) && !mapping.name.contains("vfio"))
        .collect();
    rest.sort_by_key(|mapping| std::cmp::Reverse(mapping.pss));
    let sum = |field: fn(&Mapping) -> u64| rest.iter().map(field).sum::<u64>();
    let (kib, anonymous_kib) = (sum(|mapping| mapping.pss), sum(|mapping| mapping.anonymous));
    if kib == 0 {
        return Err("it has no memory at all".to_owned());
    }
    let largest = rest.into_iter().take(8);
    Ok(Resident {
        program,
        kib,
        anonymous_kib,
        threads: 0,
        file_kib: 0,
        largest: largest.map(|mapping| (mapping.name, mapping.pss)).collect(),
    })
}

/// What of guest RAM is in huge pages, in KiB.
pub(super) fn huge_kib(smaps: &str) -> u64 {
    let mappings = parse(smaps).into_iter();
    mappings
        .filter(|mapping| mapping.size >= RAM_KIB)
        .map(|mapping| mapping.huge)
        .sum()
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(field) = first.strip_suffix(':') else {
            // The head: range, rights, offset, device, inode, name.
            let name: Vec<_> = words.skip(4).collect();
            let name = if name.is_empty() {
                "[anonymous]".to_owned()
            } else {
                name.join(" ")
            };
            mappings.push(Mapping {
                name,
                ..Mapping::default()
            });
            continue;
        };
        let kib = words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(mapping), Some(kib)) = (mappings.last_mut(), kib) else {
            continue;
        };
        match field {
            "Size" => mapping.size = kib,
            "Pss" => mapping.pss = kib,
            "Anonymous" => mapping.anonymous = kib,
            "AnonHugePages" | "ShmemPmdMapped" | "Shared_Hugetlb" | "Private_Hugetlb" => {
                mapping.huge += kib;
            }
            _ => {}
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::super::peer::PeerKind;
    use super::*;
    use crate::Backend;

    const SMAPS: &str = "\
55e1c0000000-55e1c0100000 r-xp 00000000 00:1b 42                         /run/lab/airlock
Size:               1024 kB
Rss:                 900 kB
Pss:                 800 kB
Pss_Dirty:             0 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Pss:              524288 kB
Anonymous:        524288 kB
AnonHugePages:    522240 kB
7f0020000000-7f0024000000 ---p 00000000 00:00 0
Size:              65536 kB
Pss:                   0 kB
7f0030000000-7f0030004000 rw-s 00000000 00:06 11                         anon_inode:[vfio-device]
Size:                 16 kB
Pss:                  16 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
Pss:                  40 kB
Anonymous:            40 kB
";

    #[test]
    fn guest_ram_and_bars_are_left_out() {
        let program = Program::Airlock(Backend::Type1);
        let found = of(program, SMAPS).unwrap();
        assert_eq!((found.kib, found.anonymous_kib), (840, 40));
        assert_eq!(found.largest[0], ("/run/lab/airlock".to_owned(), 800));
        assert_eq!(huge_kib(SMAPS), 522_240);
    }

    #[test]
    fn other_ram_than_the_guests_is_refused() {
        let half = SMAPS.replace("Size:             524288 kB", "Size:             262144 kB");
        let error = of(Program::Peer(PeerKind::Qemu), &half).unwrap_err();
        assert!(error.contains("262144 KiB"), "{error}");
        assert!(of(Program::Peer(PeerKind::Qemu), "").is_err());
    }
}

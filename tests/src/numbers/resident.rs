//! What a process has in memory beyond its guest's RAM.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::STEP_LIMIT;
use super::error::{At, NumbersError};
use super::field::{Unable, each};
use super::guest::{GUEST_MIB, Given, Guest};
use super::program::Program;
use super::report::verdict;
use crate::host::{Host, Step};

/// The goal for memory beyond guest RAM with one device, in KiB.
const GOAL_KIB: u64 = 5 << 10;
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

/// Boots a guest on each monitor, and looks once the guest has read.
pub(super) fn measure(
    host: &Host,
    device: &Given,
    programs: &[Program],
    unable: &mut Vec<Unable>,
) -> Result<Vec<Resident>, NumbersError> {
    let measure = |program| {
        let step = format!("memory of {program}");
        // Long enough for a look; not all monitors take input.
        let guest = Guest::new("nvme,nap,nap,nap,nap,nap,nap,nap,nap,poweroff").device(device);
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
        of(program, &smaps, &counts).map_err(|reason| NumbersError::wrong(&step, reason))
    };
    each(programs, unable, "have its memory counted", measure)
}

/// Sums up what is neither guest RAM nor a device's. `counts` has the threads and the
/// bytes of the program, a line each.
fn of(program: Program, smaps: &str, counts: &str) -> Result<Resident, String> {
    let mut numbers = counts.lines().map(|line| line.trim().parse::<u64>());
    let (Some(Ok(threads)), Some(Ok(bytes))) = (numbers.next(), numbers.next()) else {
        return Err(format!("no threads and size: '{counts}'"));
    };
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
        threads,
        file_kib: bytes >> 10,
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

/// The table.
pub(super) fn show(f: &mut Formatter<'_>, all: &[Resident]) -> fmt::Result {
    writeln!(
        f,
        "\nMemory beyond guest RAM after the guest's read: KiB (Pss), without BARs\n\
         {:<18} {:>8} {:>18} {:>8} {:>13}",
        "", "all", "of them no file's", "threads", "program, KiB"
    )?;
    for memory in all {
        let goal = match memory.program {
            Program::Peer(_) => String::new(),
            Program::Airlock(_) => format!(
                "  goal of less than {GOAL_KIB} {}",
                verdict(memory.kib < GOAL_KIB)
            ),
        };
        writeln!(
            f,
            "{:<18} {:>8} {:>18} {:>8} {:>13}{goal}",
            memory.program, memory.kib, memory.anonymous_kib, memory.threads, memory.file_kib
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::peer::PeerKind;
    use super::*;
    use crate::Backend;

    const COUNTS: &str = "4\n5120000\n";
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
        let found = of(program, SMAPS, COUNTS).unwrap();
        assert_eq!((found.kib, found.anonymous_kib), (840, 40));
        assert_eq!((found.threads, found.file_kib), (4, 5000));
        assert_eq!(found.largest[0], ("/run/lab/airlock".to_owned(), 800));
        assert_eq!(huge_kib(SMAPS), 522_240);
    }

    #[test]
    fn other_ram_than_the_guests_is_refused() {
        let half = SMAPS.replace("Size:             524288 kB", "Size:             262144 kB");
        let error = of(Program::Peer(PeerKind::Qemu), &half, COUNTS).unwrap_err();
        assert!(error.contains("262144 KiB"), "{error}");
        assert!(of(Program::Peer(PeerKind::Qemu), "", COUNTS).is_err());
        assert!(of(Program::Peer(PeerKind::Qemu), SMAPS, "4\n").is_err());
    }
}

//! How many system calls a monitor makes until its guest has read and powered
//! off.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};
use std::fs;

use serde::Serialize;

use super::STEP_LIMIT;
use super::error::{At, NumbersError};
use super::field::{Unable, each};
use super::guest::{GUEST_MIB, Given, Guest};
use super::peer::PeerKind;
use super::program::Program;
use super::report::verdict;
use super::requests::request;
use crate::host::{Host, Outcome, Step};

/// What guests do besides, how often their tasks do it without being told, and the
/// tasks.
const MORE: [((&str, u64), &str); 2] = [
    (("reads of 4 KiB", 1000), "nvme,reads,poweroff"),
    (("driver rebinds", 3), "nvme,rebind,poweroff"),
];
const TRACE: &str = "/run/lab/numbers-trace";
/// The request that has a vCPU run.
const RUN: &str = "KVM_RUN";
/// Whose calls are ten times the goal.
const GOAL_OF: Program = Program::Peer(PeerKind::CloudHypervisor);
/// How many kinds of requests are told by name.
const REQUESTS: usize = 12;
/// The requests that map memory for devices.
const MAPS: [&str; 3] = [
    "VFIO_IOMMU_MAP_DMA",
    "IOMMU_IOAS_MAP",
    "IOMMU_IOAS_MAP_FILE",
];

/// The calls of one monitor and all of its threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calls {
    /// Which.
    program: Program,
    /// All calls.
    pub total: u64,
    /// `ioctl`.
    pub ioctl: u64,
    /// What of them runs a vCPU until it exits.
    pub run: u64,
    /// What of them maps memory for devices.
    pub map: u64,
    /// `pread64`.
    pub pread: u64,
    /// `pwrite64`.
    pub pwrite: u64,
    /// Why vCPUs came back (`KVM_EXIT_…`): accesses that the monitor answers are `IO`
    /// and `MMIO`.
    pub exits: BTreeMap<String, u64>,
    /// Each request of `ioctl`, by name.
    pub requests: BTreeMap<String, u64>,
    /// Each call, by name.
    pub names: BTreeMap<String, u64>,
    /// What it takes besides to do more than that.
    pub added: Vec<Added>,
}

/// What something that a guest does costs once it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Added {
    /// What it does.
    pub what: &'static str,
    /// How often.
    pub count: u64,
    /// `ioctl` calls for them; fewer than none is noise.
    pub ioctl: i64,
    /// What of them runs a vCPU until it exits.
    pub run: i64,
    /// All calls for them.
    pub total: i64,
}

impl Calls {
    /// What `more` has besides, of a guest that did `what` so often besides.
    pub(super) fn add(&mut self, (what, count): (&'static str, u64), more: &Self) {
        let added = |more: u64, before: u64| more.cast_signed() - before.cast_signed();
        self.added.push(Added {
            what,
            count,
            ioctl: added(more.ioctl, self.ioctl),
            run: added(more.run, self.run),
            total: added(more.total, self.total),
        });
    }

    /// The requests, most frequent first.
    fn frequent(&self) -> Vec<(&str, u64)> {
        let mut all: Vec<_> = self
            .requests
            .iter()
            .map(|(name, n)| (name.as_str(), *n))
            .collect();
        // What runs vCPUs is told by why they came back.
        all.retain(|(name, _)| *name != RUN);
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        all
    }
}

/// Boots a guest on each monitor below `strace`, and others that do more.
pub(super) fn measure(
    host: &Host,
    device: &Given,
    programs: &[Program],
    unable: &mut Vec<Unable>,
) -> Result<Vec<Calls>, NumbersError> {
    let trace = |program, tasks| {
        let step = format!("system calls of {program}");
        let guest = Guest::new(tasks).device(device);
        let has_read = |outcome: &_| super::guest_has_read(&step, outcome);
        trace(host, program, guest.argv(program), &step, has_read)
    };
    let measure = |program| {
        let mut calls = trace(program, "nvme,poweroff")?;
        for (what, tasks) in MORE {
            calls.add(what, &trace(program, tasks)?);
        }
        Ok(calls)
    };
    each(programs, unable, "be traced", measure)
}

/// Runs a program's command line below `strace`; `check` says whether it did what it was to.
pub(super) fn trace(
    host: &Host,
    program: Program,
    command: Vec<String>,
    step: &str,
    check: impl FnOnce(&Outcome) -> Result<(), NumbersError>,
) -> Result<Calls, NumbersError> {
    let words = [
        "strace", "-f", "-y", "-s", "0", "-e", "kvm=vcpu", "-o", TRACE,
    ];
    let argv = words.map(str::to_owned).into_iter().chain(command);
    let outcome = host.run(&Step::argv(argv).limit(STEP_LIMIT)).at(step)?;
    check(&outcome)?;
    host.shell(&format!("mv {TRACE} /run/lab/work/trace"))
        .at(step)?;
    let path = host.work_directory().join("trace");
    let trace = fs::read_to_string(&path).map_err(NumbersError::file(&path))?;
    of(program, &trace).map_err(|reason| NumbersError::wrong(step, reason))
}

/// Adds up the lines of a trace.
fn of(program: Program, trace: &str) -> Result<Calls, String> {
    let mut requests = BTreeMap::new();
    let mut names = BTreeMap::new();
    let mut exits = BTreeMap::new();
    let mut ended = false;
    let add = |all: &mut BTreeMap<String, u64>, name: &str| {
        *all.entry(name.to_owned()).or_insert(0) += 1;
    };
    for line in trace.lines() {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let call = call.trim_start();
        if let Some((_, reason)) = call.rsplit_once("(KVM_EXIT_") {
            add(&mut exits, reason.trim_end_matches(')'));
        }
        ended |= call.starts_with("+++ exited with 0");
        // What goes on, signals and ends are no calls.
        let Some((name, rest)) = call.split_once('(') else {
            continue;
        };
        if !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') {
            continue;
        }
        add(&mut names, name);
        if name == "ioctl" {
            add(
                &mut requests,
                &request(rest).ok_or_else(|| format!("no request: '{line}'"))?,
            );
        }
    }
    let count = |all: &BTreeMap<String, u64>, name: &str| all.get(name).copied().unwrap_or(0);
    let calls = Calls {
        program,
        total: names.values().sum(),
        ioctl: count(&names, "ioctl"),
        run: count(&requests, RUN),
        map: MAPS.iter().map(|name| count(&requests, name)).sum(),
        pread: count(&names, "pread64"),
        pwrite: count(&names, "pwrite64"),
        exits,
        requests,
        names,
        added: Vec::new(),
    };
    if !ended {
        return Err("the trace does not say that the monitor ended well".to_owned());
    }
    if calls.run == 0 || calls.map == 0 {
        return Err(format!(
            "the trace has no {RUN} or no map for devices: {:?}",
            calls.requests
        ));
    }
    Ok(calls)
}

/// The table.
pub(super) fn show(f: &mut Formatter<'_>, all: &[Calls]) -> fmt::Result {
    writeln!(
        f,
        "\nSystem calls until a guest of {GUEST_MIB} MiB has read and powered off\n\
         {:<18} {:>7} {:>12} {:>8} {:>8} {:>9} {:>7}",
        "", "ioctl", "of them run", "DMA map", "pread64", "pwrite64", "total"
    )?;
    for calls in all {
        writeln!(
            f,
            "{:<18} {:>7} {:>12} {:>8} {:>8} {:>9} {:>7}",
            calls.program,
            calls.ioctl,
            calls.run,
            calls.map,
            calls.pread,
            calls.pwrite,
            calls.total
        )?;
    }
    for calls in all {
        for added in &calls.added {
            writeln!(
                f,
                "{}: {} {} more add {} ioctl, {} of them run, and {} calls in all",
                calls.program, added.count, added.what, added.ioctl, added.run, added.total
            )?;
        }
    }
    for calls in all {
        if matches!(calls.program, Program::Peer(_)) {
            continue;
        }
        let others = calls.ioctl - calls.run;
        writeln!(f, "{}: {others} ioctl are not KVM_RUN", calls.program)?;
        if let Some(peer) = all.iter().find(|calls| calls.program == GOAL_OF) {
            let (ioctl, pread) = (peer.ioctl.div_ceil(10), peer.pread.div_ceil(10));
            writeln!(
                f,
                "  goal of a tenth of {GOAL_OF}'s, {ioctl} ioctl and {pread} pread64: {} and {}",
                verdict(calls.ioctl <= ioctl),
                verdict(calls.pread <= pread)
            )?;
        }
        let frequent = calls.frequent();
        let named = frequent.iter().take(REQUESTS);
        let named = named.map(|(name, count)| format!("{count} {name}"));
        let exits = calls.exits.iter();
        let exits = exits.map(|(why, count)| format!("{count} KVM_RUN for {why}"));
        let all: Vec<_> = exits.chain(named).collect();
        writeln!(f, "  {}", all.join(", "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACED: &str = "\
12  execve(\"/run/lab/airlock\", [\"/run/lab/airlock\", \"run\"], 0x7ffc /* 9 vars */) = 0
12  ioctl(5, KVM_CREATE_VM, 0) = 6
12  ioctl(7</dev/iommu>, _IOC(_IOC_NONE, 0x3b, 0x85, 0), 0x7ffc) = 0
13  ioctl(8, KVM_RUN <unfinished ...>
12  pread64(9, \"\"..., 4, 0) = 4
13  <... ioctl resumed>, 0) = 0 (KVM_EXIT_IO)
13  ioctl(8<anon_inode:kvm-vcpu:0>, KVM_RUN, 0) = 0 (KVM_EXIT_MMIO)
12  ioctl(6</dev/vfio/vfio>, VFIO_DEVICE_PCI_HOT_RESET or VFIO_IOMMU_MAP_DMA, 0x7ffd) = 0
12  ioctl(9<anon_inode:[vfio-device]>, VFIO_DEVICE_PCI_HOT_RESET or VFIO_IOMMU_MAP_DMA, 0x7ffd) = 0
12  ioctl(0, TCGETS, 0x7ffd) = -1 ENOTTY (Inappropriate ioctl for device)
12  --- SIGUSR1 {si_signo=SIGUSR1, si_code=SI_TKILL, si_pid=12, si_uid=0} ---
13  +++ exited with 0 +++
12  +++ exited with 0 +++
";

    #[test]
    fn calls_are_counted_once_however_they_are_told() {
        let calls = of(Program::BASE, TRACED).unwrap();
        assert_eq!((calls.total, calls.ioctl, calls.pread), (9, 7, 1));
        assert_eq!((calls.run, calls.map), (2, 2));
        assert_eq!((calls.exits["IO"], calls.exits["MMIO"]), (1, 1));
        assert_eq!(calls.requests["VFIO_IOMMU_MAP_DMA"], 1);
        assert_eq!(calls.requests["VFIO_DEVICE_PCI_HOT_RESET"], 1);
        let mut more = calls.clone();
        (more.ioctl, more.run, more.total) = (17, 2, 8);
        let mut first = calls.clone();
        first.add(("reads", 1000), &more);
        let added = &first.added[0];
        assert_eq!((added.ioctl, added.run, added.total), (10, 0, -1));
        assert!(calls.frequent().iter().all(|(name, _)| *name != RUN));
        assert_eq!(calls.requests["IOMMU_IOAS_MAP"], 1);
        assert_eq!(calls.requests["TCGETS"], 1);
    }

    #[test]
    fn a_trace_that_ends_early_is_refused() {
        let (front, _) = TRACED.split_once("13  +++").unwrap();
        assert!(of(Program::Peer(PeerKind::Qemu), front).is_err());
        let none = TRACED.replace("KVM_RUN", "KVM_GET_SREGS");
        assert!(
            of(Program::Peer(PeerKind::Qemu), &none)
                .unwrap_err()
                .contains("KVM_RUN")
        );
    }
}

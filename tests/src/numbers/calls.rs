//! How many system calls a monitor makes until its guest has read and powered
//! off.

use std::collections::BTreeMap;

use serde::Serialize;

use super::error::{At, NumbersError};
use super::program::{Guest, Program};
use super::{GUEST_MIB, STEP_LIMIT};
use crate::host::{Host, Step};

const TRACE: &str = "/run/lab/numbers-trace";
/// The request that has a vCPU run.
const RUN: &str = "KVM_RUN";
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
    /// Each request of `ioctl`, by name.
    pub requests: BTreeMap<String, u64>,
    /// Each call, by name.
    pub names: BTreeMap<String, u64>,
}

impl Calls {
    pub(super) fn program(&self) -> Program {
        self.program
    }

    /// The requests, most frequent first.
    pub(super) fn frequent(&self) -> Vec<(&str, u64)> {
        let mut all: Vec<_> = self
            .requests
            .iter()
            .map(|(name, n)| (name.as_str(), *n))
            .collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        all
    }
}

/// Boots a guest on each monitor below `strace`.
pub(super) fn measure(host: &Host, device: &str) -> Result<Vec<Calls>, NumbersError> {
    let measure = |program| {
        let step = format!("system calls of {program}");
        let guest = Guest {
            tasks: "nvme,poweroff",
            memory_mib: GUEST_MIB,
            device: device.to_owned(),
        };
        let words = ["strace", "-f", "-s", "0", "-o", TRACE].map(str::to_owned);
        let argv = words.into_iter().chain(guest.argv(program));
        let outcome = host.run(&Step::argv(argv).limit(STEP_LIMIT)).at(&step)?;
        super::guest_was_well(&step, &outcome)?;
        // Its own addresses make each line differ: only what is counted comes back.
        let script = format!("{}; rm {TRACE}", shorten());
        let trace = host.run(&Step::shell(script).limit(STEP_LIMIT)).at(&step)?;
        let trace = trace.expect_success().at(&step)?.stdout;
        of(program, &trace).map_err(|reason| NumbersError::wrong(&step, reason))
    };
    Program::ALL.into_iter().map(measure).collect()
}

/// A script that prints how often each kind of line is in the trace: how many,
/// then the call without thread, file and further arguments.
fn shorten() -> String {
    format!(
        "sed -E -e 's/^[0-9]+ +//' -e 's/^ioctl\\([^,]*, (_IOC\\([^)]*\\)).*/ioctl \\1/' \
         -e 's/^ioctl\\([^,]*, ([^),<]*).*/ioctl \\1/' -e 's/^([a-z_0-9]+)\\(.*/\\1/' {TRACE} | sort | uniq -c"
    )
}

/// Adds up what [`shorten`] prints.
fn of(program: Program, counted: &str) -> Result<Calls, String> {
    let mut requests = BTreeMap::new();
    let mut names = BTreeMap::new();
    let mut ended = false;
    for line in counted.lines() {
        let (count, call) = line.trim().split_once(' ').ok_or("a line has no count")?;
        let count: u64 = count.parse().map_err(|_| format!("no count: '{line}'"))?;
        if call.starts_with("+++") {
            ended |= call.contains("exited with 0");
        }
        // What goes on, signals and ends are no calls.
        if call.starts_with(['<', '-', '+']) {
            continue;
        }
        let (name, request) = call.split_once(' ').unwrap_or((call, ""));
        *names.entry(name.to_owned()).or_insert(0) += count;
        if name == "ioctl" {
            *requests.entry(request_name(request.trim())).or_insert(0) += count;
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
        requests,
        names,
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

/// The name of a request that `strace` may not know: linux/iommufd.h,
/// linux/vfio.h.
fn request_name(told: &str) -> String {
    let number = told
        .strip_prefix("_IOC(_IOC_NONE, 0x3b, 0x")
        .and_then(|rest| rest.split([',', ')']).next());
    let name = match number {
        Some("76") => "VFIO_DEVICE_BIND_IOMMUFD",
        Some("77") => "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        Some("78") => "VFIO_DEVICE_DETACH_IOMMUFD_PT",
        Some("80") => "IOMMU_DESTROY",
        Some("81") => "IOMMU_IOAS_ALLOC",
        Some("84") => "IOMMU_IOAS_IOVA_RANGES",
        Some("85") => "IOMMU_IOAS_MAP",
        Some("86") => "IOMMU_IOAS_UNMAP",
        Some("87") => "IOMMU_OPTION",
        Some("8a") => "IOMMU_GET_HW_INFO",
        Some("8f") => "IOMMU_IOAS_MAP_FILE",
        _ => told,
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const TRACED: &str = "\
12  execve(\"/run/lab/airlock\", [\"/run/lab/airlock\", \"run\"], 0x7ffc /* 9 vars */) = 0
12  ioctl(5, KVM_CREATE_VM, 0) = 6
12  ioctl(7</dev/iommu>, _IOC(_IOC_NONE, 0x3b, 0x85, 0), 0x7ffc) = 0
13  ioctl(8, KVM_RUN <unfinished ...>
12  pread64(9, \"\"..., 4, 0) = 4
13  <... ioctl resumed>, 0) = 0
13  ioctl(8, KVM_RUN, 0) = 0
12  ioctl(0, TCGETS, 0x7ffd) = -1 ENOTTY (Inappropriate ioctl for device)
12  --- SIGUSR1 {si_signo=SIGUSR1, si_code=SI_TKILL, si_pid=12, si_uid=0} ---
13  +++ exited with 0 +++
12  +++ exited with 0 +++
";

    fn count(trace: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        std::fs::write(&path, trace).unwrap();
        let script = shorten().replace(TRACE, path.to_str().unwrap());
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn calls_are_counted_once_however_they_are_told() {
        let calls = of(Program::BASE, &count(TRACED)).unwrap();
        assert_eq!((calls.total, calls.ioctl, calls.pread), (7, 5, 1));
        assert_eq!((calls.run, calls.map), (2, 1));
        assert_eq!(calls.frequent()[0], ("KVM_RUN", 2));
        assert_eq!(calls.requests["IOMMU_IOAS_MAP"], 1);
        assert_eq!(calls.requests["TCGETS"], 1);
    }

    #[test]
    fn a_trace_that_ends_early_is_refused() {
        let (front, _) = TRACED.split_once("13  +++").unwrap();
        assert!(of(Program::Qemu, &count(front)).is_err());
        let none = TRACED.replace("KVM_RUN", "KVM_GET_SREGS");
        assert!(
            of(Program::Qemu, &count(&none))
                .unwrap_err()
                .contains("KVM_RUN")
        );
    }
}

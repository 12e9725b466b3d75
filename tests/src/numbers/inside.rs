//! What the command does in the nested host, where it is started again.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use passthrough::host::{Host, Survey};
use passthrough::plan::{Plan, Request};
use passthrough::ports::HostMemory;
use passthrough::{OpenRequest, open};
use serde::{Deserialize, Serialize};
use vmm::config::HugePageSize;
use vmm::memory::{Backing, BackingKind, DeviceRam, GuestRam, GuestRange};

use super::maps::Pages;
use super::resident;
use super::start::ANSWER;
use crate::agent::monotonic_ns;

/// What a failure in the nested host is told by.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often all vCPUs that there are have left the guest.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
/// How often the watcher looks.
const PAUSE: Duration = Duration::from_millis(1);
/// The longest wait for a guest's first instruction.
const LIMIT: Duration = Duration::from_secs(90);

/// How long it took to give memory to a device, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapTimes {
    /// Until all pages were there.
    pub populate: u64,
    /// Each map of all of it.
    pub map: Vec<u64>,
    /// Each unmap.
    pub unmap: Vec<u64>,
    /// How many calls one map of all of it took.
    pub calls: u64,
}

/// Maps memory for a device, over and over.
///
/// # Errors
/// When the device can't be had, or the memory is not of the kind asked for.
pub fn map(device: &str, backend: &str, pages: Pages, mib: u64, rounds: u32) -> Result<MapTimes> {
    let request = Request {
        devices: vec![device.to_owned()],
        backend: Some(backend.parse()?),
        without_kvm: true,
        ..Request::default()
    };
    let plan = Plan::make(&Survey::read(&Host::system())?, &request);
    if !plan.is_go() {
        return Err(plan.to_string().into());
    }
    let opened = open(OpenRequest::new(&plan.devices, plan.backend))?;
    let kind = match pages {
        Pages::Small | Pages::Huge => BackingKind::Anonymous,
        Pages::SharedHuge => BackingKind::Shared,
        Pages::Pool => BackingKind::HugePages(HugePageSize::TwoMib),
    };
    let range = GuestRange {
        start: 0,
        size: mib << 20,
    };
    let ram = GuestRam::backed(&[range], &Backing { kind, node: None })?;
    let begun = monotonic_ns();
    for block in ram.blocks() {
        for offset in (0..block.size()).step_by(block.populate_step()) {
            block.populate(offset, block.populate_step())?;
        }
    }
    let mut times = MapTimes {
        populate: monotonic_ns() - begun,
        map: Vec::new(),
        unmap: Vec::new(),
        calls: ram.blocks().len() as u64,
    };
    let huge = resident::huge_kib(&fs::read_to_string("/proc/self/smaps")?);
    let expected = if pages == Pages::Small { 0 } else { mib << 10 };
    if huge != expected {
        return Err(format!("{huge} KiB are in huge pages instead of {expected} KiB").into());
    }
    for _ in 0..rounds {
        let begun = monotonic_ns();
        for block in ram.blocks() {
            let memory = DeviceRam::new(Arc::clone(block), ram.keep_pages());
            opened.space.map(block.start(), Arc::new(memory))?;
        }
        times.map.push(monotonic_ns() - begun);
        let begun = monotonic_ns();
        for block in ram.blocks() {
            opened.space.unmap(block.start())?;
        }
        times.unmap.push(monotonic_ns() - begun);
    }
    Ok(times)
}

/// When a monitor was started, and when its first vCPU had been in the guest,
/// on the nested host's `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Before the fork.
    pub started: u64,
    /// At the first look after the first exit.
    pub entered: u64,
    /// After the monitor had ended.
    pub ended: u64,
}

/// Says it on standard error, as `start` reads it.
pub fn tell(watched: Watched) {
    // Whoever reads it finds out that nothing came.
    if let Ok(text) = serde_json::to_string(&watched) {
        let _ = io::stderr().write_all(format!("{ANSWER}{text}\n").as_bytes());
    }
}

/// Starts a monitor and looks until a guest of its ran; `tell` is called then.
/// Ends as the monitor does.
///
/// # Errors
/// When there is another guest, or no guest runs in 90 s.
pub fn watch(command: &[String], tell: impl FnOnce(Watched)) -> Result<ExitStatus> {
    let (program, arguments) = command.split_first().ok_or("nothing to watch")?;
    if count_exits()? != 0 {
        return Err("another guest runs, whose exits would be counted".into());
    }
    let started = monotonic_ns();
    let mut child = Command::new(program).args(arguments).spawn()?;
    let entered = wait_for_entry(&mut child);
    if entered.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let ended = monotonic_ns();
    let entered = entered?;
    tell(Watched {
        started,
        entered,
        ended,
    });
    Ok(status)
}

fn wait_for_entry(child: &mut Child) -> Result<u64> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if count_exits()? > 0 {
            return Ok(monotonic_ns());
        }
        if let Some(status) = child.try_wait()? {
            return Err(format!("it ended with {status} before its guest ran").into());
        }
        thread::sleep(PAUSE);
    }
    Err(format!("no guest ran in {LIMIT:?}").into())
}

/// The file is opened each time: what was read stays for as long as it's open.
fn count_exits() -> Result<u64> {
    let wrong = |error: &dyn Error| format!("{EXITS}: {error}");
    let text = fs::read_to_string(EXITS).map_err(|error| wrong(&error))?;
    Ok(text.trim().parse().map_err(|error| wrong(&error))?)
}

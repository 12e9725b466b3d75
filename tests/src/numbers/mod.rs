//! `cargo numbers`: what it costs to give a device and memory to a guest, from
//! one nested host, beside QEMU.
//!
//! What counts is measured from outside and in the same way for all monitors:
//! the first entry of a vCPU by KVM's own count of exits, the first read by the
//! guest's console, system calls by `strace`, memory by the kernel's books. A
//! measurement that is missing or can't be right is an error with its name.

mod calls;
mod error;
pub mod inside;
mod maps;
mod program;
mod report;
mod resident;
mod spread;
mod start;

use std::time::Duration;
use std::{env, fs};

pub use calls::Calls;
pub use error::NumbersError;
pub use maps::{MapCost, Pages};
pub use report::Report;
pub use resident::Resident;
pub use spread::Spread;
pub use start::Start;

use crate::cache::Cache;
use crate::host::{Host, HostError, Outcome, Step};
use crate::kernel::KernelVersion;
use crate::lab::Lab;
use crate::machine::{Device, Disk, Machine};
use crate::markers::Markers;
use crate::prerequisites;
use crate::progress::say;
use error::At;

/// How often each start counts, unless asked otherwise.
pub const ROUNDS: u32 = 5;

/// The nested host's memory: the largest guest, and what it is measured with.
const HOST_MIB: u32 = 6144;
/// What of it is free for sure, and enough for the largest guest.
const TOUCHED_MIB: u32 = 4700;
/// The guest whose calls and memory are counted.
const GUEST_MIB: u64 = 512;
/// The longest that one guest, or one kind of memory, may take: several times
/// what it takes, for a busy machine.
const STEP_LIMIT: Duration = Duration::from_secs(240);
/// This command in the nested host.
const PROBE: &str = "/run/lab/numbers";
const DISK: &str = "disk";

/// Measures everything on a nested host with `kernel`; each start counts
/// `rounds` times. Tells on standard error what it is at.
///
/// # Errors
/// [`NumbersError`] with the name of the first measurement that fails.
pub fn measure(kernel: KernelVersion, rounds: u32) -> Result<Report, NumbersError> {
    prerequisites::ensure(&Cache::open()?, prerequisites::NUMBERS)?;
    let lab = Lab::prepare()?;
    let machine = Machine::new("numbers")
        .kernel(kernel)
        .memory_mib(HOST_MIB)
        .device(Device::nvme(DISK, disk()));
    let host = lab.boot(&machine).at("boot of the nested host")?;
    install_probe(&host)?;
    let qemu = program::install_qemu(&host)?;
    let release = host.shell("uname -r").at("release of the kernel")?;
    touch_memory(&host)?;
    host.bind_vfio(&[DISK]).at("the NVMe for VFIO")?;
    let device = host.address(DISK).at("address of the NVMe")?.to_string();

    say("numbers: maps for devices");
    let maps = maps::measure(&host, &device)?;
    say("numbers: system calls");
    let calls = calls::measure(&host, &device)?;
    say("numbers: memory");
    let memory = resident::measure(&host, &device)?;
    say("numbers: starts, which takes some minutes");
    let starts = start::measure(&host, &device, rounds)?;
    host.shutdown().at("power-off of the nested host")?;
    Ok(Report {
        kernel: release.trim().to_owned(),
        qemu,
        rounds,
        maps,
        starts,
        calls,
        memory,
    })
}

/// Fills memory once and gives it back. What emulates the nested host has a page
/// of its memory only from the first touch on, and whoever came first would pay.
fn touch_memory(host: &Host) -> Result<(), NumbersError> {
    const FILE: &str = "/dev/shm/fill";
    let script = format!(
        "mount -o remount,size=90% /dev/shm
         head -c {TOUCHED_MIB}M /dev/zero >{FILE}
         rm {FILE}"
    );
    let step = "a first touch of the nested host's memory";
    let touched = host.run(&Step::shell(script).limit(STEP_LIMIT)).at(step)?;
    touched.expect_success().at(step)?;
    Ok(())
}

fn disk() -> Disk {
    Disk::seeded(16 << 20, 7)
}

/// Puts this very program into the nested host.
fn install_probe(host: &Host) -> Result<(), NumbersError> {
    let own = env::current_exe().map_err(NumbersError::file("/proc/self/exe"))?;
    let to = host.work_directory().join("numbers");
    fs::copy(&own, &to).map_err(NumbersError::file(&to))?;
    host.shell(&format!("cp /run/lab/work/numbers {PROBE}"))
        .at("a copy of this program for the nested host")?;
    Ok(())
}

/// The monitor ended well, and its guest had read by DMA what the disk holds.
fn guest_was_well(step: &str, outcome: &Outcome) -> Result<(), NumbersError> {
    if !outcome.success() {
        return Err(HostError::Failed(Box::new(outcome.clone()))).at(step);
    }
    let markers = Markers::of(&outcome.lines);
    let read = markers.first("nvme-read");
    let read = read.ok_or_else(|| NumbersError::wrong(step, "the guest read nothing"))?;
    let written = disk().digest(program::Guest::BYTES)?.to_string();
    if read.value("sha256") != written {
        return Err(NumbersError::wrong(
            step,
            "the guest read other data than the disk holds",
        ));
    }
    Ok(())
}

//! `cargo demo`: from nothing to a guest that reads a disk through an assigned
//! NVMe controller.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::airlock::{Run, check, installed};
use crate::digest::Sha256;
use crate::host::{Host, HostError, Outcome};
use crate::lab::{Lab, LabError};
use crate::machine::{Device, Disk, DiskError, Machine};
use crate::markers::{Marker, Markers};
use crate::timeline::Timeline;

/// How much the disk holds, and how much of it the guest reads.
const DISK_BYTES: u64 = 64 << 20;
const READ_BYTES: u64 = 4 << 20;

/// The name of the device in the machine.
const DISK: &str = "disk";

/// Why the demonstration did not show what it should.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The lab cannot be set up.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The nested host failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The disk's digest cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// `airlock check` says no, though the device can be assigned.
    #[error("airlock check refused the device ({0:?}); its report is above")]
    Refused(crate::host::Exit),
    /// `airlock run` failed.
    #[error("airlock run ended with {0:?} instead of status 0; its output is above")]
    Run(crate::host::Exit),
    /// The guest did not reach a milestone.
    #[error("the guest never said '{0}'; its output is above")]
    Silent(&'static str),
    /// The guest read something else than the disk holds.
    #[error("the guest read other data than the disk holds: SHA-256 {read} instead of {written}")]
    Data {
        /// The digest of what it read.
        read: String,
        /// The digest of what is there.
        written: Sha256,
    },
    /// The device sent no interrupt to one of its queues.
    #[error("no MSI-X interrupt of {0} arrived in the guest, though it used the queue")]
    NoInterrupt(String),
    /// The timeline is not one.
    #[error("airlock run --timeline wrote what is not a timeline: {0}")]
    Timeline(#[from] serde_json::Error),
}

/// Runs the demonstration and tells of it on standard output.
///
/// # Errors
/// [`DemoError`] when anything is not as it should be.
pub fn run() -> Result<(), DemoError> {
    let lab = Lab::prepare()?;
    let disk = Disk::pattern(DISK_BYTES);
    let machine = Machine::new("demo").device(Device::nvme(DISK, disk.clone()));

    head("A host with an IOMMU, emulated by QEMU, and an NVMe controller in it");
    let begun = Instant::now();
    let host = lab.boot(&machine)?;
    tell(&format!("up after {:.1} s", begun.elapsed().as_secs_f64()));
    tell(host.shell("uname -srm")?.trim());
    host.bind_vfio(&[DISK])?;
    let address = host.address(DISK)?;
    let group = host
        .group(DISK)?
        .map_or("none".to_owned(), |n| n.to_string());
    tell(&format!(
        "{address} is on vfio-pci, alone in IOMMU group {group}"
    ));

    let step = check(&[address]);
    head(&format!("$ {}", step.title()));
    let verdict = host.run(&step)?;
    for line in &verdict.lines {
        tell(&line.text);
    }
    if !verdict.success() {
        return Err(DemoError::Refused(verdict.exit));
    }

    let path = installed("timeline.json");
    let run = Run::tasks("nvme,poweroff")
        .pvh()
        .cmdline(&format!("lab.bytes={READ_BYTES}"))
        .device(address)
        .timeline(&path);
    head(&format!("$ {}", run.step().title()));
    let outcome = follow(&host, &run)?;
    let markers = Markers::of(&outcome.lines);

    head("What the guest saw");
    show_guest(&markers, &disk)?;
    if !outcome.success() {
        return Err(DemoError::Run(outcome.exit));
    }

    head("Where the time went, in the nested host since its kernel started");
    let mut timeline = Timeline::parse(&host.shell(&format!("cat {path}"))?)?;
    timeline.add("nested host up", host.ready_ns());
    timeline.add("airlock process started", outcome.started_ns);
    for (name, marker) in [
        ("guest's init runs", milestone(&markers, "init")?),
        (
            "guest's first NVMe read",
            milestone(&markers, "nvme-first-read")?,
        ),
    ] {
        timeline.add(name, marker.ns);
    }
    timeline.add("airlock process ended", outcome.ended_ns);
    for line in timeline.to_string().lines() {
        tell(line);
    }
    head("In short");
    for (what, from, to) in [
        (
            "VMM start to first vCPU entry",
            "airlock process started",
            "first-vcpu-entry",
        ),
        (
            "guest kernel to init",
            "first-vcpu-entry",
            "guest's init runs",
        ),
        (
            "VMM start to first NVMe read",
            "airlock process started",
            "guest's first NVMe read",
        ),
    ] {
        if let Some(span) = timeline.between(from, to) {
            tell(&format!("{span:>10.1} ms  {what}"));
        }
    }
    host.shutdown()?;
    head("The guest drove the device by itself: data, interrupts and power-off are right.");
    Ok(())
}

/// Runs the guest and shows its console as it comes.
fn follow(host: &Host, run: &Run) -> Result<Outcome, DemoError> {
    let mut process = host.start(&run.step())?;
    // The step's own limit ends a guest that says nothing: `wait` below.
    while let Some(line) = process.next_line(Duration::from_secs(90))? {
        tell(&format!("| {}", line.text));
    }
    Ok(process.wait()?)
}

fn milestone<'a>(markers: &'a Markers, name: &'static str) -> Result<&'a Marker, DemoError> {
    markers.first(name).ok_or(DemoError::Silent(name))
}

/// Shows and checks the device, the data and the interrupts.
fn show_guest(markers: &Markers, disk: &Disk) -> Result<(), DemoError> {
    let found = milestone(markers, "nvme-found")?;
    tell(&format!(
        "{}: {} sectors, by the guest's own NVMe driver",
        found.value("disk"),
        found.value("sectors")
    ));
    let read = milestone(markers, "nvme-read")?;
    let written = disk.digest(READ_BYTES)?;
    if read.value("sha256") != written.to_string() {
        return Err(DemoError::Data {
            read: read.value("sha256").to_owned(),
            written,
        });
    }
    tell(&format!(
        "{} bytes read, SHA-256 {written}: the same as in the image",
        read.value("bytes")
    ));
    milestone(markers, "interrupts")?;
    for interrupt in markers.all("interrupts") {
        let (name, count) = (interrupt.value("name"), interrupt.number("count"));
        tell(&format!(
            "{name}: {} interrupts by {}",
            count.unwrap_or_default(),
            interrupt.value("chip")
        ));
        if count.unwrap_or_default() == 0 {
            return Err(DemoError::NoInterrupt(name.to_owned()));
        }
    }
    Ok(())
}

fn head(text: &str) {
    print(&format!("\n== {text}\n"));
}

fn tell(text: &str) {
    print(&format!("   {text}\n"));
}

fn print(text: &str) {
    // A closed pipe is no reason to fail.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

//! Guests that have `guest-pci` and tasks of their own.

use std::path::PathBuf;
use std::sync::OnceLock;

use lab::Backend;
use lab::airlock::Run;
use lab::binaries::{GUEST_PCI, build_static};
use lab::cache::Cache;
use lab::host::{Exit, Host, HostError};
use lab::machine::Disk;
use lab::markers::Markers;

/// What guests read of each disk.
pub(super) const BYTES: u64 = 1 << 20;
pub(super) const NVME: &str = "1b36:0010";
pub(super) const NIC: &str = "8086:10d3";

pub(super) fn disk() -> Disk {
    Disk::seeded(16 << 20, 31)
}

/// A run whose task `view` is this script, then power off.
pub(super) fn run(host: &Host, backend: Backend, script: &str) -> Result<Run, HostError> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let cache = Cache::open().expect("no cache");
        build_static(&cache, GUEST_PCI).unwrap_or_else(|error| panic!("{error}"))
    });
    let tasks = format!("task_view() {{\n{script}\n}}\n");
    let initrd = host.guest_initrd("view.cpio", &[(GUEST_PCI, program)], &tasks)?;
    Ok(Run::tasks("view,poweroff")
        .iommu(backend)
        .initrd(Some(initrd))
        .cmdline(&format!("lab.bytes={BYTES}")))
}

/// The markers of a guest that did all it was asked to.
pub(super) fn finish(host: &Host, run: &Run) -> Result<Markers, HostError> {
    let outcome = host.run(&run.step())?;
    assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
    let markers = Markers::of(&outcome.lines);
    for trouble in ["failed", "missing"] {
        assert!(
            markers.first(trouble).is_none(),
            "{}\n{}",
            outcome.stdout,
            outcome.stderr
        );
    }
    Ok(markers)
}

/// Every time that the guest read its disk, it read what the image holds.
pub(super) fn assert_reads(markers: &Markers, times: usize) {
    let reads: Vec<_> = markers.all("nvme-read").collect();
    assert_eq!(reads.len(), times);
    let written = disk().digest(BYTES).unwrap().to_string();
    for read in reads {
        assert_eq!(read.value("sha256"), written);
        assert_eq!(read.number("bytes"), Some(BYTES));
    }
}

//! `cargo numbers`: what it costs to give a device and memory to a guest, from
//! one nested host, beside QEMU.
//!
//! Starts are measured twice: in time as it goes by, which drifts on a busy machine,
//! and on a host whose time is the instructions that it has carried out, where two
//! runs agree.
//!
//! What counts is measured from outside and in the same way for all monitors:
//! the first entry of a vCPU by KVM's own count of exits, the first read by the
//! guest's console, system calls by `strace`, memory by the kernel's books. A
//! measurement that is missing or can't be right is an error with its name.

mod bars;
mod calls;
mod chart;
mod error;
mod exits;
mod field;
mod guest;
pub mod inside;
mod maps;
mod peer;
mod program;
mod rates;
mod reads;
mod report;
mod requests;
mod resident;
mod spread;
mod stage;
mod start;
mod timetable;
mod tool;
mod vectors;

use std::time::Duration;

pub use bars::{BarCost, Decoding};
pub use calls::{Added, Calls};
pub use chart::Chart;
pub use error::NumbersError;
pub use exits::Exits;
pub use field::{Devices, Unable};
pub use maps::{MapCost, Pages};
pub use peer::{Peer, PeerKind};
pub use rates::Rates;
pub use reads::Reads;
pub use report::Report;
pub use resident::Resident;
pub use spread::Spread;
pub use start::Start;
pub use vectors::{VectorCalls, VectorTime, VectorTimes};

use clap::ValueEnum;

use crate::cache::Cache;
use crate::host::{HostError, Outcome};
use crate::kernel::KernelVersion;
use crate::lab::Lab;
use crate::markers::Markers;
use crate::prerequisites;
use crate::progress::say;
use error::At;
use guest::{GUEST_MIB, Guest};
use stage::{DISK, NIC, Stage};

/// How often each start counts, unless asked otherwise.
pub const ROUNDS: u32 = 5;
/// The same where time is instructions: to show that two agree.
const COUNTED_ROUNDS: u32 = 2;

/// How often the host that counts instructions may be lost: now and then a guest takes it
/// along, whatever its monitor.
const LOSSES: u32 = 2;

/// The longest that one guest, or one kind of memory, may take: several times
/// what it takes, for a busy machine.
const STEP_LIMIT: Duration = Duration::from_secs(600);
/// This command in the nested host.
const PROBE: &str = "/run/lab/numbers";

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Memory that is mapped for a device
    Maps,
    /// A BAR of 16 GiB
    Bars,
    /// System calls, and why vCPUs leave the guest
    Calls,
    /// Reads and round trips of guests, beside the nested host's own
    Reads,
    /// Memory, threads and size of the process
    Memory,
    /// Starts, in time as it goes by
    Starts,
    /// Starts, vectors and single accesses, where an instruction takes a nanosecond
    Counted,
}

/// Measures `parts` on a nested host with `kernel`, on airlock, QEMU and `peers`; each
/// start counts `rounds` times. Tells on standard error what it is at. What was
/// measured is in `report` also when something fails.
///
/// # Errors
/// [`NumbersError`] with the name of the first measurement that fails.
pub fn measure(
    kernel: KernelVersion,
    rounds: u32,
    peers: &[Peer],
    parts: &[Part],
    report: &mut Report,
) -> Result<(), NumbersError> {
    prerequisites::ensure(&Cache::open()?, prerequisites::NUMBERS)?;
    let lab = Lab::prepare()?;
    let machine = stage::machine(kernel);
    let mut peers = peers.to_vec();
    if peers.iter().all(|peer| peer.kind != PeerKind::Qemu) {
        peers.insert(0, Peer::qemu());
    }
    report.rounds = rounds;
    report.counted_rounds = COUNTED_ROUNDS;
    if parts.iter().any(|part| *part != Part::Counted) {
        let stage = Stage::set(&lab, &machine, stage::SECONDS, &peers)?;
        stage.tell(report)?;
        while_time_goes_by(&stage, parts, report)?;
        stage.leave()?;
    }
    if parts.contains(&Part::Counted) {
        say("numbers: on a host that counts instructions, which takes some minutes");
        let machine = machine.counting_instructions();
        let mut stage = Stage::set(&lab, &machine, stage::COUNTED_SECONDS, &peers)?;
        stage.tell(report)?;
        let mut losses = 0;
        while let Err(error) = where_instructions_count(&stage, report) {
            losses += 1;
            if losses > LOSSES || !error.is_a_loss() {
                return Err(error);
            }
            say(&format!("RETRY: numbers: go on with a new host: {error}"));
            stage = stage.again(&lab, &machine, &peers)?;
        }
        stage.leave()?;
    }
    Ok(())
}

fn while_time_goes_by(
    stage: &Stage,
    parts: &[Part],
    report: &mut Report,
) -> Result<(), NumbersError> {
    let wanted = |part| parts.contains(&part);
    let (host, disk) = (&stage.host, &stage.disk);
    let programs = stage.field.able(Devices::Nvme);
    let unable = &mut report.unable;
    if wanted(Part::Maps) {
        say("numbers: maps for devices");
        report.maps = maps::measure(host, disk)?;
    }
    if wanted(Part::Memory) {
        say("numbers: memory");
        report.memory = resident::measure(host, disk, &programs, unable)?;
    }
    if wanted(Part::Starts) {
        say("numbers: starts, which takes some minutes");
        start::measure(stage, report.rounds, &mut report.starts, unable)?;
    }
    if wanted(Part::Calls) {
        say("numbers: system calls and exits, which takes some minutes");
        report.calls = calls::measure(host, disk, &programs, unable)?;
        report.exits = exits::measure(host, disk, &programs, unable)?;
        let many = stage.field.able(Devices::Vectors);
        report.vector_calls = vectors::calls(host, &stage.many, &many, unable)?;
    }
    if wanted(Part::Bars) {
        say("numbers: a BAR of 16 GiB, which takes some minutes");
        let large = (&stage.large, disk);
        report.bars = bars::measure(host, large, &programs, unable)?;
    }
    // Last: the devices are bound anew.
    if wanted(Part::Reads) {
        say("numbers: reads and round trips");
        let both = stage.field.able(Devices::NvmeAndNic);
        report.reads = reads::measure(host, DISK, NIC, &both)?;
    }
    Ok(())
}

fn where_instructions_count(stage: &Stage, report: &mut Report) -> Result<(), NumbersError> {
    let (host, field) = (&stage.host, &stage.field);
    let unable = &mut report.unable;
    let programs = field.able(Devices::Nvme);
    start::measure(stage, COUNTED_ROUNDS, &mut report.counted, unable)?;
    report.rates = rates::measure(host, &stage.disk, &programs, unable)?;
    let many = field.able(Devices::Vectors);
    report.vector_times = vectors::times(host, &stage.many, &many, unable)?;
    Ok(())
}

/// The monitor ended well.
fn guest_was_well(step: &str, outcome: &Outcome) -> Result<(), NumbersError> {
    match outcome.success() {
        true => Ok(()),
        false => Err(HostError::Failed(Box::new(outcome.clone()))).at(step),
    }
}

/// The monitor ended well, and its guest had read by DMA what the disk holds.
fn guest_has_read(step: &str, outcome: &Outcome) -> Result<(), NumbersError> {
    guest_was_well(step, outcome)?;
    let markers = Markers::of(&outcome.lines);
    let read = markers.first("nvme-read");
    let read = read.ok_or_else(|| NumbersError::wrong(step, "the guest read nothing"))?;
    let written = stage::disk().digest(Guest::BYTES)?.to_string();
    if read.value("sha256") != written {
        return Err(NumbersError::wrong(
            step,
            "the guest read other data than the disk holds",
        ));
    }
    Ok(())
}

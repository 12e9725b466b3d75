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
mod start;
mod timetable;
mod tool;
mod vectors;

use std::time::Duration;
use std::{env, fs};

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
use crate::host::{Host, HostError, Outcome, Step};
use crate::kernel::KernelVersion;
use crate::lab::Lab;
use crate::machine::{Device, DeviceModel, Disk, Machine, Slot};
use crate::markers::Markers;
use crate::prerequisites;
use crate::progress::say;
use error::At;
use field::Field;
use guest::{GUEST_MIB, Given, Guest};
use program::Program;

/// How often each start counts, unless asked otherwise.
pub const ROUNDS: u32 = 5;
/// The same where time is instructions: to show that two agree.
const COUNTED_ROUNDS: u32 = 2;

/// The nested host's memory: the largest guest, and what it is measured with.
const HOST_MIB: u32 = 6144;
/// What of it is free for sure, and enough for the largest guest.
const TOUCHED_MIB: u32 = 4700;
/// The longest that one guest, or one kind of memory, may take: several times
/// what it takes, for a busy machine.
const STEP_LIMIT: Duration = Duration::from_secs(600);
/// This command in the nested host.
const PROBE: &str = "/run/lab/numbers";
const DISK: &str = "disk";
/// A network card.
const NIC: &str = "nic";
/// Another NVMe, which has as many MSI-X vectors as a function may.
const MANY: &str = "many";
/// Memory behind a BAR of 16 GiB.
const LARGE: &str = "large";

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
    let machine = Machine::new("numbers")
        .kernel(kernel)
        .memory_mib(HOST_MIB)
        .device(Device::nvme(DISK, disk()))
        .device(Device::e1000e(NIC))
        .device(Device::nvme(MANY, disk()).property("msix_qsize=2048"))
        .slot(Slot::Integrated(Device::new(
            LARGE,
            DeviceModel::Other("ivshmem-plain,memdev=large-memory".to_owned()),
        )))
        .qemu_args([
            "-object",
            "memory-backend-ram,size=16G,share=on,reserve=off,id=large-memory",
        ]);
    let mut peers = peers.to_vec();
    if peers.iter().all(|peer| peer.kind != PeerKind::Qemu) {
        peers.insert(0, Peer::qemu());
    }
    report.rounds = rounds;
    report.counted_rounds = COUNTED_ROUNDS;
    if parts.iter().any(|part| *part != Part::Counted) {
        let prepared = prepare(&lab, &machine, &peers)?;
        prepared.tell(report)?;
        while_time_goes_by(&prepared, parts, report)?;
        let host = prepared.host;
        host.shutdown().at("power-off of the nested host")?;
    }
    if parts.contains(&Part::Counted) {
        say("numbers: on a host that counts instructions, which takes some minutes");
        let prepared = prepare(&lab, &machine.counting_instructions(), &peers)?;
        prepared.tell(report)?;
        where_instructions_count(&prepared, report)?;
        let host = prepared.host;
        host.shutdown().at("power-off of the nested host")?;
    }
    Ok(())
}

fn while_time_goes_by(
    prepared: &Prepared,
    parts: &[Part],
    report: &mut Report,
) -> Result<(), NumbersError> {
    let wanted = |part| parts.contains(&part);
    let (host, disk) = (&prepared.host, &prepared.disk);
    let programs = prepared.field.able(Devices::Nvme);
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
        report.starts = start::measure(prepared, report.rounds, unable)?;
    }
    if wanted(Part::Calls) {
        say("numbers: system calls and exits, which takes some minutes");
        report.calls = calls::measure(host, disk, &programs, unable)?;
        report.exits = exits::measure(host, disk, &programs, unable)?;
        let many = prepared.field.able(Devices::Vectors);
        report.vector_calls = vectors::calls(host, &prepared.many, &many)?;
    }
    if wanted(Part::Bars) {
        say("numbers: a BAR of 16 GiB, which takes some minutes");
        let large = (&prepared.large, disk);
        report.bars = bars::measure(host, large, &programs, unable)?;
    }
    // Last: the devices are bound anew.
    if wanted(Part::Reads) {
        say("numbers: reads and round trips");
        let both = prepared.field.able(Devices::NvmeAndNic);
        report.reads = reads::measure(host, DISK, NIC, &both)?;
    }
    Ok(())
}

fn where_instructions_count(prepared: &Prepared, report: &mut Report) -> Result<(), NumbersError> {
    let (host, field) = (&prepared.host, &prepared.field);
    let unable = &mut report.unable;
    let programs = field.able(Devices::Nvme);
    report.counted = start::measure(prepared, COUNTED_ROUNDS, unable)?;
    report.rates = rates::measure(host, &prepared.disk, &programs, unable)?;
    let many = field.able(Devices::Vectors);
    report.vector_times = vectors::times(host, &prepared.many, &many, unable)?;
    Ok(())
}

/// A nested host with all that is measured in it.
struct Prepared {
    host: Host,
    /// The versions of other monitors, by name.
    versions: Vec<(String, String)>,
    /// Who takes part in what.
    field: Field,
    disk: Given,
    nic: Given,
    many: Given,
    large: Given,
}

impl Prepared {
    /// A guest with these that reads, if it can, and ends.
    fn guest(&self, devices: Devices) -> Guest {
        let nvme = Guest::new("nvme,poweroff");
        match devices {
            Devices::Nothing => Guest::new("poweroff"),
            Devices::Nvme => nvme.device(&self.disk),
            Devices::NvmeAndNic => nvme.device(&self.disk).device(&self.nic),
            Devices::Vectors => nvme.device(&self.many),
        }
    }

    /// Says in the report what runs here.
    fn tell(&self, report: &mut Report) -> Result<(), NumbersError> {
        let release = self.host.shell("uname -r").at("release of the kernel")?;
        report.kernel = release.trim().to_owned();
        report.peers.clone_from(&self.versions);
        for unable in &self.field.unable {
            if !report.unable.contains(unable) {
                report.unable.push(unable.clone());
            }
        }
        let guest = self.guest(Devices::Nvme);
        let programs = self.field.able(Devices::Nvme);
        let words = |program: Program| (program, guest.argv(program).join(" "));
        report.commands = programs.into_iter().map(words).collect();
        Ok(())
    }
}

/// Boots a nested host, and tries out who can boot guests in it.
fn prepare(lab: &Lab, machine: &Machine, peers: &[Peer]) -> Result<Prepared, NumbersError> {
    let host = lab.boot(machine).at("boot of the nested host")?;
    install_probe(&host)?;
    peer::install_airlock(&host)?;
    let install = |peer: &Peer| Ok((peer.kind.to_string(), peer::install(&host, peer)?));
    let versions = peers
        .iter()
        .map(install)
        .collect::<Result<_, NumbersError>>()?;
    touch_memory(&host)?;
    host.bind_vfio(&[DISK, NIC, MANY, LARGE])
        .at("the devices for VFIO")?;
    let given = |name| Given::named(&host, name);
    let (disk, nic, many, large) = (given(DISK)?, given(NIC)?, given(MANY)?, given(LARGE)?);
    let kinds: Vec<_> = peers.iter().map(|peer| peer.kind).collect();
    let mut prepared = Prepared {
        host,
        versions,
        field: Field::default(),
        disk,
        nic,
        many,
        large,
    };
    let guests = Devices::ALL.map(|one| (one, prepared.guest(one)));
    prepared.field = Field::try_out(&prepared.host, &kinds, &guests)?;
    Ok(prepared)
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
    let written = disk().digest(Guest::BYTES)?.to_string();
    if read.value("sha256") != written {
        return Err(NumbersError::wrong(
            step,
            "the guest read other data than the disk holds",
        ));
    }
    Ok(())
}

//! What a guest gets of its devices, beside what the nested host gets of them
//! itself: reads of the NVMe by one and the same program, and round trips of a
//! network card.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::error::{At, NumbersError};
use super::guest::{Given, Guest};
use super::program::Program;
use super::spread::Spread;
use super::{STEP_LIMIT, tool};
use crate::host::{Host, Outcome, Step, VFIO_PCI};
use crate::markers::Markers;

const ROUNDS: u32 = 3;
/// Echo requests, each sent when the one before was answered.
const TRIPS: u32 = 300;

/// The tasks of guests. busybox tells milliseconds with three decimals.
const TASKS: &str = r#"
task_disk() { guest-pci disk /dev/nvme0n1; }
task_trips() {
    await eth0 test -e /sys/class/net/eth0 || return
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    await link grep -q 1 /sys/class/net/eth0/carrier || return
    mean=$(ping -A -q -c TRIPS -W 5 10.0.2.2 | sed -n 's|.*min/avg/max = [^/]*/\([0-9]*\)\.\([0-9]*\)/.*|\1\2|p')
    marker trips "us=$mean"
}
"#;

/// What one monitor's guests get, or the nested host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reads {
    /// Which monitor; none is the nested host itself.
    program: Option<Program>,
    /// A random read of 4 KiB, one at a time: microseconds.
    pub one: Spread,
    /// The same, 32 at a time: microseconds for each.
    pub queue: Spread,
    /// A sequential read of 1 MiB: microseconds.
    pub sequential: Spread,
    /// An echo's round trip through the network card: microseconds.
    pub trip: Spread,
}

#[derive(Debug, Default)]
struct Samples {
    one: Vec<f64>,
    queue: Vec<f64>,
    sequential: Vec<f64>,
    trip: Vec<f64>,
}

impl Samples {
    /// What `guest-pci disk` told.
    fn add_disk(&mut self, outcome: &Outcome) -> Option<()> {
        let markers = Markers::of(&outcome.lines);
        let disk = markers.first("disk")?;
        // Exact below 2^53 ns.
        let microseconds = |key| Some(disk.number(key)? as f64 / 1e3);
        self.one.push(microseconds("one")?);
        self.queue.push(microseconds("queue")?);
        self.sequential.push(microseconds("sequential")?);
        Some(())
    }

    fn of(&self, program: Option<Program>) -> Option<Reads> {
        Some(Reads {
            program,
            one: Spread::of(&self.one)?,
            queue: Spread::of(&self.queue)?,
            sequential: Spread::of(&self.sequential)?,
            trip: Spread::of(&self.trip)?,
        })
    }
}

/// Measures on the nested host and on each monitor, in turns. Leaves the devices
/// with VFIO.
pub(super) fn measure(
    host: &Host,
    disk: &str,
    nic: &str,
    programs: &[Program],
) -> Result<Vec<Reads>, NumbersError> {
    let tasks = TASKS.replace("TRIPS", &TRIPS.to_string());
    let initrd = tool::initrd(host, "reads.cpio", &tasks)?;
    let own = tool::for_host(host)?;
    let of_all = [None].into_iter().chain(programs.iter().copied().map(Some));
    let mut all: Vec<_> = of_all.map(|one| (one, Samples::default())).collect();
    for round in 0..ROUNDS {
        for (program, samples) in &mut all {
            match program {
                None => on_host(host, (disk, nic), &own, samples)?,
                Some(program) => {
                    let step = format!("reads on {program}, round {round}");
                    in_guest(host, &step, (disk, nic), &initrd, *program, samples)?;
                }
            }
        }
    }
    let none = || NumbersError::wrong("reads", "no round counts");
    all.iter()
        .map(|(program, samples)| samples.of(*program).ok_or_else(none))
        .collect()
}

fn on_host(
    host: &Host,
    (disk, nic): (&str, &str),
    tool: &str,
    samples: &mut Samples,
) -> Result<(), NumbersError> {
    let step = "reads on the nested host";
    host.bind(disk, "nvme").at(step)?;
    let tries = "tries=100; until [ -b /dev/nvme0n1 ] || [ $tries = 0 ]; do
                 tries=$((tries - 1)); sleep 0.05; done";
    let run = Step::shell(format!("{tries}; {tool} disk /dev/nvme0n1")).limit(STEP_LIMIT);
    let outcome = host.run(&run).at(step)?.expect_success().at(step)?;
    let told = samples.add_disk(&outcome);
    told.ok_or_else(|| NumbersError::wrong(step, outcome.stdout))?;
    host.bind(nic, "e1000e").at(step)?;
    samples
        .trip
        .push(host.round_trip(nic, TRIPS).at(step)? * 1e3);
    host.bind(disk, VFIO_PCI).at(step)?;
    host.bind(nic, VFIO_PCI).at(step)
}

fn in_guest(
    host: &Host,
    step: &str,
    (disk, nic): (&str, &str),
    initrd: &str,
    program: Program,
    samples: &mut Samples,
) -> Result<(), NumbersError> {
    let run = |tasks, device| {
        // Each time that VFIO takes a device it may have another file.
        let device = Given::named(host, device)?;
        let guest = Guest::new(tasks).device(&device).initrd(initrd);
        let run = Step::argv(guest.argv(program)).limit(STEP_LIMIT);
        host.run(&run).at(step)
    };
    let nothing = || NumbersError::wrong(step, "the guest told of no time");
    let outcome = run("nvme,disk,poweroff", disk)?;
    super::guest_has_read(step, &outcome)?;
    samples.add_disk(&outcome).ok_or_else(nothing)?;
    let outcome = run("trips,poweroff", nic)?;
    super::guest_was_well(step, &outcome)?;
    let markers = Markers::of(&outcome.lines);
    let trip = markers.first("trips").and_then(|trips| trips.number("us"));
    samples.trip.push(trip.ok_or_else(nothing)? as f64);
    Ok(())
}

/// The table.
pub(super) fn show(f: &mut Formatter<'_>, all: &[Reads]) -> fmt::Result {
    let Some(host) = all.iter().find(|reads| reads.program.is_none()) else {
        return Ok(());
    };
    writeln!(
        f,
        "\nWhat a guest gets of its devices: µs, median (least-most) of {ROUNDS}, and times the \
         nested host itself\n\
         {:<18} {:>18} {:>6} {:>18} {:>6} {:>20} {:>6} {:>18} {:>6}",
        "",
        "4 KiB, one",
        "",
        "4 KiB, 32 at once",
        "",
        "1 MiB, sequential",
        "",
        "NIC, round trip",
        ""
    )?;
    for reads in all {
        let name = reads.program.map(|program| program.to_string());
        write!(f, "{:<18}", name.as_deref().unwrap_or("nested host"))?;
        for (value, base, width) in [
            (reads.one, host.one, 18),
            (reads.queue, host.queue, 18),
            (reads.sequential, host.sequential, 20),
            (reads.trip, host.trip, 18),
        ] {
            let times = super::report::times(value.median, base.median);
            write!(f, " {value:>width$} {times:>6}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

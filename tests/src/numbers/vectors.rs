//! What it costs to enable vectors by MSI-X, by their number, and to take a device
//! from its driver and give it back.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::calls::{self, Added};
use super::error::{At, NumbersError};
use super::field::{Unable, excused};
use super::guest::{Given, Guest};
use super::program::Program;
use super::{STEP_LIMIT, tool};
use crate::host::{Host, Outcome, Step};
use crate::markers::{Marker, Markers};

/// How many vectors are enabled; the device has as many as the last.
const COUNTS: [u64; 3] = [1, 64, 2048];
/// How often the driver lets go of the device and takes it again.
const REBINDS: u32 = 3;

/// How monitors are started: with an end, should they not come to it, and with enough
/// files, two for each vector and their own. airlock sees to these itself.
const BEFORE: [&str; 6] = ["timeout", "-k", "5", "120", "prlimit", "--nofile=16384"];

/// The tasks of guests. On a monitor whose effort grows with the square of the number,
/// the last would take hours. A driver takes the device first, as it does anywhere, and
/// the disk is there again at the latest a millisecond after the driver has found it.
const TASKS: &str = r#"
without_driver() {
    await nvme0n1 test -b /dev/nvme0n1 || return
    unbind 1b36:0010
}
task_none() { without_driver; }
task_v1() { without_driver && guest-pci vectors 1b36:0010 1; }
task_v64() { without_driver && guest-pci vectors 1b36:0010 64; }
task_v2048() { without_driver && timeout 60 guest-pci vectors 1b36:0010 2048; }
task_all() {
    without_driver || return
    for count in 1 64 2048; do timeout 20 guest-pci vectors 1b36:0010 $count; done
    rebind
    await nvme0n1 test -b /dev/nvme0n1 || return
    marker rebind-begin
    for round in 1 2 3; do
        unbind 1b36:0010
        rebind
        until [ -b /dev/nvme0n1 ]; do usleep 1000; done
    done
    marker rebind-end
}
"#;

/// What is tried.
const WHAT: &str = "enable 2,048 vectors in time";
/// What a table has for it.
const UNABLE: &str = "unable";

/// Each number's task.
const SINGLE: [&str; 3] = ["v1,poweroff", "v64,poweroff", "v2048,poweroff"];

/// The times of one monitor, where an instruction takes a nanosecond.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VectorTimes {
    /// Which.
    program: Program,
    /// For each number of vectors.
    pub vectors: Vec<VectorTime>,
    /// From the moment that a driver lets go of the device until the driver that takes
    /// it again has found the disk: milliseconds.
    pub rebind: Option<f64>,
}

impl VectorTimes {
    fn is_whole(&self) -> bool {
        let counts = self.vectors.iter().map(|time| time.count);
        counts.eq(COUNTS) && self.rebind.is_some()
    }
}

/// How long a number of vectors takes, in the order in which Linux does it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct VectorTime {
    /// How many.
    pub count: u64,
    /// Until all are enabled, from MSI-X off on: microseconds.
    pub enable: f64,
    /// Until all are masked and MSI-X is off: microseconds.
    pub disable: f64,
}

/// The system calls of one monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VectorCalls {
    /// Which.
    program: Program,
    /// What each number of vectors takes, on and off.
    pub added: Vec<Added>,
}

fn command(program: Program, tasks: &'static str, device: &Given, initrd: &str) -> Vec<String> {
    let guest = Guest::new(tasks).device(device).initrd(initrd);
    let before = BEFORE.map(str::to_owned).into_iter();
    before.chain(guest.argv(program)).collect()
}

/// Boots one guest on each monitor that does all of it, or as much as a peer can.
pub(super) fn times(
    host: &Host,
    device: &Given,
    programs: &[Program],
    unable: &mut Vec<Unable>,
) -> Result<Vec<VectorTimes>, NumbersError> {
    let initrd = tool::initrd(host, "vectors.cpio", TASKS)?;
    let mut measure = |program: Program| {
        let step = format!("vectors on {program}");
        let command = command(program, "all,poweroff", device, &initrd);
        let run = Step::argv(command).limit(STEP_LIMIT);
        let outcome = host.run(&run).at(&step)?;
        let markers = Markers::of(&outcome.lines);
        let times = of(program, &markers);
        let whole = super::guest_was_well(&step, &outcome).and_then(|()| match times.is_whole() {
            true => Ok(()),
            false => Err(NumbersError::wrong(&step, markers.names().join(", "))),
        });
        excused(program, unable, WHAT, whole)?;
        Ok(times)
    };
    programs.iter().copied().map(&mut measure).collect()
}

/// What a guest told of, as far as it came.
fn of(program: Program, markers: &Markers) -> VectorTimes {
    // Exact below 2^53 ns.
    let time = |marker: &Marker| {
        Some(VectorTime {
            count: marker.number("count")?,
            enable: marker.number("enable")? as f64 / 1e3,
            disable: marker.number("disable")? as f64 / 1e3,
        })
    };
    let rebind = |markers: &Markers| {
        let begin = markers.first("rebind-begin")?.ns;
        let end = markers.first("rebind-end")?.ns;
        Some(end.checked_sub(begin)? as f64 / 1e6 / f64::from(REBINDS))
    };
    VectorTimes {
        program,
        vectors: markers.all("vectors").filter_map(time).collect(),
        rebind: rebind(markers),
    }
}

/// Boots a guest for each number on each monitor, below `strace`.
pub(super) fn calls(
    host: &Host,
    device: &Given,
    programs: &[Program],
    unable: &mut Vec<Unable>,
) -> Result<Vec<VectorCalls>, NumbersError> {
    let initrd = tool::initrd(host, "vectors.cpio", TASKS)?;
    let mut trace = |program, tasks, told: Option<u64>, what: &str| {
        let step = format!("system calls of {program} for vectors");
        let check = |outcome: &Outcome| {
            super::guest_was_well(&step, outcome)?;
            let markers = Markers::of(&outcome.lines);
            let count = markers.first("vectors").and_then(|one| one.number("count"));
            match count == told {
                true => Ok(()),
                false => Err(NumbersError::wrong(
                    &step,
                    format!("{count:?} vectors were enabled instead of {told:?}"),
                )),
            }
        };
        let command = command(program, tasks, device, &initrd);
        let traced = calls::trace(host, program, command, &step, check);
        excused(program, unable, what, traced)
    };
    let measure = |program| {
        let unbind = "take its driver from a device when it is traced";
        let Some(mut calls) = trace(program, "none,poweroff", None, unbind)? else {
            let added = Vec::new();
            return Ok(VectorCalls { program, added });
        };
        for (count, tasks) in COUNTS.into_iter().zip(SINGLE) {
            let what = format!("enable vectors ({count}) in time when it is traced");
            if let Some(more) = trace(program, tasks, Some(count), &what)? {
                calls.add(("vectors", count), &more);
            }
        }
        Ok(VectorCalls {
            program,
            added: calls.added,
        })
    };
    programs.iter().copied().map(measure).collect()
}

/// The table of times.
pub(super) fn show_times(f: &mut Formatter<'_>, all: &[VectorTimes]) -> fmt::Result {
    writeln!(
        f,
        "\nMSI-X of a device with 2,048 vectors where an instruction takes a nanosecond: µs to \
         enable so many (and to disable them); ms for its driver to let go and take it again\n\
         {:<18} {:>18} {:>18} {:>18} {:>10}",
        "", "1", "64", "2,048", "rebind, ms"
    )?;
    for times in all {
        write!(f, "{:<18}", times.program)?;
        for count in COUNTS {
            let time = times.vectors.iter().find(|time| time.count == count);
            let told = time.map(|time| format!("{:.0} ({:.0})", time.enable, time.disable));
            write!(f, " {:>18}", told.as_deref().unwrap_or(UNABLE))?;
        }
        let rebind = times.rebind.map(|ms| format!("{ms:.1}"));
        writeln!(f, " {:>10}", rebind.as_deref().unwrap_or(UNABLE))?;
    }
    Ok(())
}

/// The table of calls.
pub(super) fn show_calls(f: &mut Formatter<'_>, all: &[VectorCalls]) -> fmt::Result {
    writeln!(
        f,
        "\nSystem calls to enable so many of 2,048 vectors and disable them: ioctl (of them \
         KVM_RUN), all\n{:<18} {:>22} {:>22} {:>22}",
        "", "1", "64", "2,048"
    )?;
    for calls in all {
        write!(f, "{:<18}", calls.program)?;
        for count in COUNTS {
            let added = calls.added.iter().find(|added| added.count == count);
            let told =
                added.map(|added| format!("{} ({}), {}", added.ioctl, added.run, added.total));
            write!(f, " {:>22}", told.as_deref().unwrap_or(UNABLE))?;
        }
        writeln!(f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Line, Stream};

    fn markers(lines: &[(u64, &str)]) -> Markers {
        let lines: Vec<_> = lines
            .iter()
            .map(|(ns, text)| Line {
                ns: *ns,
                stream: Stream::Stdout,
                text: (*text).to_owned(),
            })
            .collect();
        Markers::of(&lines)
    }

    #[test]
    fn a_guest_tells_of_each_number_and_of_rebinds() {
        let lines = vec![
            (1, "lab: vectors uptime=1 count=1 enable=2000 disable=500"),
            (2, "lab: vectors uptime=1 count=64 enable=3000 disable=500"),
            (
                3,
                "lab: vectors uptime=1 count=2048 enable=4000 disable=500",
            ),
            (1_000_000, "lab: rebind-begin uptime=1"),
            (7_000_000, "lab: rebind-end uptime=1"),
        ];
        let times = of(Program::BASE, &markers(&lines));
        assert!(times.is_whole());
        assert_eq!(times.vectors[0].enable, 2.0);
        assert_eq!(times.vectors[2].disable, 0.5);
        assert_eq!(times.rebind, Some(2.0));
        for missing in 0..lines.len() {
            let mut lines = lines.clone();
            lines.remove(missing);
            assert!(!of(Program::BASE, &markers(&lines)).is_whole());
        }
    }
}

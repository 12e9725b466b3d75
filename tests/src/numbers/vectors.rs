//! What it costs to enable vectors by MSI-X, by their number, and to take a device
//! from its driver and give it back.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::calls::{self, Added, Calls};
use super::error::{At, NumbersError};
use super::guest::{Given, Guest};
use super::program::Program;
use super::{STEP_LIMIT, tool};
use crate::host::{Host, Step};
use crate::markers::Markers;

/// How many vectors are enabled; the device has as many as the last.
const COUNTS: [u64; 3] = [1, 64, 2048];
/// How often the driver lets go of the device and takes it again.
const REBINDS: u32 = 3;

/// The tasks of guests. A driver takes the device first, as it does anywhere, and
/// the disk is there again at the latest a millisecond after the driver has found it.
const TASKS: &str = r#"
without_driver() {
    await nvme0n1 test -b /dev/nvme0n1 || return
    unbind 1b36:0010
}
task_none() { without_driver; }
task_v1() { without_driver; guest-pci vectors 1b36:0010 1; }
task_v64() { without_driver; guest-pci vectors 1b36:0010 64; }
task_v2048() { without_driver; guest-pci vectors 1b36:0010 2048; }
task_all() {
    without_driver
    for count in 1 64 2048; do guest-pci vectors 1b36:0010 $count; done
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
    pub rebind: f64,
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

fn guest(tasks: &'static str, device: &Given, initrd: &str) -> Guest {
    Guest::new(tasks).device(device).initrd(initrd)
}

/// Boots one guest on each monitor that does all of it.
pub(super) fn times(
    host: &Host,
    device: &Given,
    programs: &[Program],
) -> Result<Vec<VectorTimes>, NumbersError> {
    let initrd = tool::initrd(host, "vectors.cpio", TASKS)?;
    let measure = |program: Program| {
        let step = format!("vectors on {program}");
        let guest = guest("all,poweroff", device, &initrd);
        let run = Step::argv(guest.argv(program)).limit(STEP_LIMIT);
        let outcome = host.run(&run).at(&step)?;
        super::guest_was_well(&step, &outcome)?;
        let markers = Markers::of(&outcome.lines);
        of(program, &markers)
            .ok_or_else(|| NumbersError::wrong(&step, format!("it told of {:?}", markers.names())))
    };
    programs.iter().copied().map(measure).collect()
}

fn of(program: Program, markers: &Markers) -> Option<VectorTimes> {
    // Exact below 2^53 ns.
    let vectors: Vec<_> = markers
        .all("vectors")
        .filter_map(|marker| {
            Some(VectorTime {
                count: marker.number("count")?,
                enable: marker.number("enable")? as f64 / 1e3,
                disable: marker.number("disable")? as f64 / 1e3,
            })
        })
        .collect();
    if vectors.iter().map(|time| time.count).ne(COUNTS) {
        return None;
    }
    let begin = markers.first("rebind-begin")?.ns;
    let end = markers.first("rebind-end")?.ns;
    Some(VectorTimes {
        program,
        vectors,
        rebind: end.checked_sub(begin)? as f64 / 1e6 / f64::from(REBINDS),
    })
}

/// Boots a guest for each number on each monitor, below `strace`.
pub(super) fn calls(
    host: &Host,
    device: &Given,
    programs: &[Program],
) -> Result<Vec<VectorCalls>, NumbersError> {
    let initrd = tool::initrd(host, "vectors.cpio", TASKS)?;
    let trace = |program, tasks, told: Option<u64>| {
        let step = format!("system calls of {program} for vectors");
        let check = |outcome: &_| {
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
        calls::trace(host, program, &guest(tasks, device, &initrd), &step, check)
    };
    let measure = |program| {
        let mut calls: Calls = trace(program, "none,poweroff", None)?;
        for (count, tasks) in COUNTS.into_iter().zip(SINGLE) {
            calls.add(("vectors", count), &trace(program, tasks, Some(count))?);
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
        for time in &times.vectors {
            let told = format!("{:.0} ({:.0})", time.enable, time.disable);
            write!(f, " {told:>18}")?;
        }
        writeln!(f, " {:>10.1}", times.rebind)?;
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
        for added in &calls.added {
            let told = format!("{} ({}), {}", added.ioctl, added.run, added.total);
            write!(f, " {told:>22}")?;
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
        let mut lines = vec![
            (1, "lab: vectors uptime=1 count=1 enable=2000 disable=500"),
            (2, "lab: vectors uptime=1 count=64 enable=3000 disable=500"),
            (
                3,
                "lab: vectors uptime=1 count=2048 enable=4000 disable=500",
            ),
            (1_000_000, "lab: rebind-begin uptime=1"),
            (7_000_000, "lab: rebind-end uptime=1"),
        ];
        let times = of(Program::BASE, &markers(&lines)).unwrap();
        assert_eq!(times.vectors[0].enable, 2.0);
        assert_eq!(times.vectors[2].disable, 0.5);
        assert_eq!(times.rebind, 2.0);
        lines.remove(1);
        assert_eq!(of(Program::BASE, &markers(&lines)), None);
    }
}
